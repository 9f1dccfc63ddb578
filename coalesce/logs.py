"""The log: to standard error, by a thread of its own, which alone waits when nobody reads it.

A container's log is a pipe. When its reader stands still, a line written from the only thread there is would stop
every client.

For people a line is a time, a level and a message; for machines (`--log-format json`) one JSON object, with the ids of
both ends, a client's and a lane's, in fields of their own. Whoever says something gives these as `extra=`.

What a client or an upstream can have said as often as it likes must not hide everything else: of lines alike there are
a few, and then one in ten seconds that counts them. Alike are those made of one template; of faults, those that come
from one place, too.

Exceptions are logged without their texts: `KeyError(arguments)` would say what a client sent, `ValueError` what could
not be read, and nobody can know of all libraries what theirs repeat. Their types and the places they came by are enough
to find a fault; the words for an error number of the system are added.
"""

from __future__ import annotations

import logging
import os
import queue
import select
import ssl
import sys
import threading
import traceback
from contextlib import contextmanager, nullcontext, suppress
from copy import copy
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

# Lines that wait for their reader; the next ones are dropped, and counted.
_WAITING = 1000
# Seconds that the last lines may take at the end.
_LAST_LINES = 1.0
# Lines alike that are written at once; and seconds until those that followed are summed up, again and again until there
# were none for as long.
_BURST = 10
_PERIOD = 10.0
# Events at a time that are told apart; none of ours has its text made up before.
_EVENTS = 1000
# The same of a trace: they are many, and have up to 64 KB. Lines, and characters in all of them.
_TRACED = 10_000
_TRACED_SIZE = 16 * 1024 * 1024
# What would begin another line, or tell a terminal to do something.
CONTROLS = {code: f"\\x{code:02x}" for code in [*range(32), *range(127, 160), 0x2028, 0x2029]}


def traceback_without_texts(problem: BaseException) -> str:
    """As Python prints it, chained exceptions and groups included, but for what the exceptions themselves say."""
    return "\n".join(_described(problem, set()))


def _described(problem: BaseException, seen: set[int]) -> list[str]:
    seen.add(id(problem))
    before = problem.__cause__ or (None if problem.__suppress_context__ else problem.__context__)
    lines: list[str] = []
    if before is not None and id(before) not in seen:
        lines += [*_described(before, seen), "", "... and then:", ""]
    lines.append("Traceback (most recent call last):")
    lines += "".join(traceback.format_tb(problem.__traceback__)).splitlines()
    lines.append(_name(problem))
    if isinstance(problem, BaseExceptionGroup):
        for number, each in enumerate(problem.exceptions, 1):
            if id(each) not in seen:
                lines.append(f"  {number} of {len(problem.exceptions)}:")
                lines += [f"    {line}" for line in _described(each, seen)]
    return lines


def _name(problem: BaseException) -> str:
    kind = type(problem)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    # (OpenSSL's numbers are not the system's.)
    if isinstance(problem, OSError) and isinstance(problem.errno, int) and not isinstance(problem, ssl.SSLError):
        return f"{name}: {os.strerror(problem.errno)}"
    return name


def hide_texts_of_exceptions() -> None:
    """From now on, what ends this process, one of its threads or a destructor is told of without its text, too."""

    def say(what: str, problem: BaseException | None) -> None:
        _say(f"coalesce: {what}", problem)

    def ends(kind: type[BaseException], problem: BaseException, frames: TracebackType | None) -> None:
        del kind, frames
        say("a fault in coalesce ends it", problem)

    sys.excepthook = ends
    threading.excepthook = lambda told: say("a fault in coalesce ends a thread", told.exc_value)
    sys.unraisablehook = lambda told: say("a fault in coalesce that nobody could be told of", told.exc_value)


class _Human(logging.Formatter):
    """A line an event; a traceback has more."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        return super().formatMessage(record).translate(CONTROLS)


def _json_formatter() -> logging.Formatter:
    """An object a line, and nothing else."""
    from pythonjsonlogger.json import JsonFormatter  # noqa: PLC0415 (time and memory, for those who want it)

    class Json(JsonFormatter):
        def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 (logging's name)
            del datefmt
            return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    names = {"asctime": "time", "levelname": "level", "exc_info": "traceback"}
    reserved = ["exc_info", "exc_text", *vars(logging.makeLogRecord({}))]
    return Json(["asctime", "levelname", "message"], rename_fields=names, reserved_attrs=[*reserved, "taskName"])


FORMATS = {"human": _Human, "json": _json_formatter}
# Of the log that is open, and that log.
_formatter: logging.Formatter | None = None
_log: Log | None = None


def dropped() -> int:
    """Lines of the log, and of the trace, that nobody read in time or that could not be written, until now."""
    return 0 if _log is None else _log.dropped + _log.refused


def trace(line: str) -> None:
    """To the log that is open, if one is."""
    if _log is not None:
        _log.trace(line)


def write(text: str, to: int = 2) -> None:
    """Without a buffer, whose lock a thread that waits would hold when the process ends. Raises OSError."""
    data = memoryview(text.encode("utf-8", "backslashreplace"))
    while data:
        try:
            data = data[os.write(to, data) :]
        except BlockingIOError:  # somebody whom it was inherited from wants it so: this is one and the same for both
            select.select([], [to], [])


def _say(what: str, problem: BaseException | None) -> None:
    """Past the log. Where standard error is gone, so is this: raising would have Python print the exception itself."""
    text = f"{what}\n"
    if problem is not None:
        text += f"{traceback_without_texts(problem)}\n"
    with suppress(Exception):
        if _formatter is not None and not isinstance(_formatter, _Human):
            record = logging.LogRecord("coalesce", logging.ERROR, "", 0, what, None, None)
            record.exc_text = None if problem is None else traceback_without_texts(problem)
            text = f"{_formatter.format(record)}\n"
    with suppress(OSError):
        write(text)


class _Alike:
    """Lines alike in a period."""

    __slots__ = ("ends", "last", "left", "more")

    def __init__(self, ends: float) -> None:
        self.ends = ends
        self.left = _BURST  # that may still be written
        self.more = 0  # that were not
        self.last: logging.LogRecord | None = None  # of these


class Repeats:
    """How often what was said. Times are in seconds, of one clock."""

    def __init__(self) -> None:
        self._of: dict[object, _Alike] = {}  # the period that ends first is the first

    def admit(self, record: logging.LogRecord, now: float) -> bool:
        """Whether a line is to be written, or counted for the next summary."""
        what = _event(record)
        alike = self._of.get(what)
        if alike is None:
            if len(self._of) >= _EVENTS:
                return True
            alike = self._of[what] = _Alike(now + _PERIOD)
        if alike.left:
            alike.left -= 1
            return True
        alike.more += 1
        alike.last = copy(record)
        alike.last.exc_info = None  # with all that its frames hold
        return False

    @property
    def ends(self) -> float | None:
        """When the next period ends."""
        return next((alike.ends for alike in self._of.values()), None)

    def summaries(self, now: float, *, at_end: bool = False) -> list[logging.LogRecord]:
        """Of the periods that are over by now, each once; at the end, of all."""
        found: list[logging.LogRecord] = []
        for what, alike in list(self._of.items()):
            if alike.ends > now and not at_end:
                break
            del self._of[what]
            if alike.last is not None:
                found.append(_summary(alike.last, alike.more, _PERIOD + now - alike.ends))
                again = self._of[what] = _Alike(now + _PERIOD)
                again.left = 0  # while it goes on, that is all there is of it
        return found


def _event(record: logging.LogRecord) -> object:
    """What a line tells of. There are no more of these than places in the source."""
    problem = record.exc_info[1] if record.exc_info else None
    trace = None if problem is None else problem.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = None if trace is None else (type(problem), trace.tb_frame.f_code, trace.tb_lineno)
    return record.levelno, record.msg, place


# A summary has its own.
_TIMES = {"created", "msecs", "relativeCreated"}


def _summary(last: logging.LogRecord, more: int, seconds: float) -> logging.LogRecord:
    """With the last of them. (Their traceback has been written, with the first.)"""
    record = logging.makeLogRecord({name: value for name, value in vars(last).items() if name not in _TIMES})
    template = str(last.msg) if last.args else str(last.msg).replace("%", "%%")
    record.msg = f"%d more like this in the last %.0f seconds: {template}"
    record.args = (more, seconds, *(last.args if isinstance(last.args, tuple) else ()))
    record.more = more
    return record


class Log(logging.Handler):
    """Takes the lines of the process, and never waits: what nobody reads is dropped."""

    def __init__(self, formatter: logging.Formatter, clock: Callable[[], float] = monotonic) -> None:
        super().__init__()
        self.dropped = 0  # lines that nobody read, until now
        self.refused = 0  # ... and that could not be written; the writer alone counts these
        self._said_gap = 0  # ... of them, those that the trace has told of
        self._traced = self._traced_written = 0  # lines of the trace; the writer alone counts the latter
        self._traced_size = self._traced_size_written = 0  # ... and their characters
        self._said_dropped = 0  # ... of them, those that a line has told of
        self._form = formatter
        self._clock = clock
        self._repeats = Repeats()  # guarded by the lock of the handler, which nobody holds while he waits
        self._lines: queue.SimpleQueue[logging.LogRecord | str | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, daemon=True, name="log")

    def start(self) -> None:
        self._writer.start()

    def stop(self) -> None:
        """Writes what there is, as far as it is read."""
        self._lines.put(None)
        self._writer.join(_LAST_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        if self._repeats.admit(record, self._clock()):
            self._take(record)

    def trace(self, line: str) -> None:
        """A line for standard output, by the same thread."""
        size = self._traced_size - self._traced_size_written
        if self._lines.qsize() >= _TRACED or size + len(line) > _TRACED_SIZE:
            self.dropped += 1
            return
        if self.dropped > self._said_gap:
            line = f"# {self.dropped - self._said_gap} lines were dropped: nobody read them\n{line}"
            self._said_gap = self.dropped
        self._traced += 1
        self._traced_size += len(line)
        self._lines.put(line)

    def _take(self, record: logging.LogRecord) -> None:
        try:
            line = _frozen(record)
        except Exception as problem:  # noqa: BLE001 (whatever its arguments raise; logging's own handling prints them)
            _say(f"a line of the log could not be made ({record.filename}:{record.lineno})", problem)
            return
        waiting = self._lines.qsize() - (self._traced - self._traced_written)
        if waiting >= _WAITING:
            self.dropped += 1
            return
        if self.dropped > self._said_dropped and waiting < _WAITING // 2:
            dropped, self._said_dropped = self.dropped - self._said_dropped, self.dropped
            logging.getLogger("coalesce").warning("%d lines of this log were dropped: nobody read it", dropped)
        self._lines.put(line)

    def _write(self) -> None:
        while (line := self._next()) is not None:
            if isinstance(line, str):
                self._traced_written += 1
                self._traced_size_written += len(line)
                try:
                    write(f"{line}\n", to=1)
                except OSError:
                    self.refused += 1
            else:
                self._write_line(line)
        self._sum_up(at_end=True)

    def _next(self) -> logging.LogRecord | str | None:
        """The next line, None at the end. Meanwhile sums up what has been said too often."""
        while True:
            self._sum_up()
            with self.lock or nullcontext():
                ends = self._repeats.ends
            with suppress(queue.Empty):
                return self._lines.get(timeout=None if ends is None else max(0.0, ends - self._clock()))

    def _sum_up(self, *, at_end: bool = False) -> None:
        with self.lock or nullcontext():
            summaries = self._repeats.summaries(self._clock(), at_end=at_end)
        for each in summaries:
            self._write_line(each)

    def _write_line(self, line: logging.LogRecord) -> None:
        try:
            write(f"{self._form.format(_frozen(line))}\n")
        except OSError:
            self.refused += 1  # standard error is gone, or its disk is full
        except Exception as problem:  # noqa: BLE001 (of a line that can't be made)
            _say(f"a line of the log could not be made ({line.filename}:{line.lineno})", problem)


def _frozen(record: logging.LogRecord) -> logging.LogRecord:
    """The record with its message made, and its exception told without texts: as it is now, for another thread."""
    record = copy(record)
    record.msg = record.message = record.getMessage()
    record.args = None
    problem = record.exc_info[1] if record.exc_info else None
    if problem is not None:
        record.exc_text = traceback_without_texts(problem)
    record.exc_info = None
    return record


@contextmanager
def logging_to_stderr(level: int | str = logging.INFO, form: str = "human") -> Iterator[Log]:
    """Within it, the log of the process goes to standard error, in one of FORMATS."""
    global _formatter, _log  # noqa: PLW0603 (as there is one standard error; for what is said past the log)
    _formatter = FORMATS[form]()
    log = _log = Log(_formatter)
    root = logging.getLogger()
    root.addHandler(log)
    root.setLevel(level)
    log.start()
    try:
        yield log
    finally:
        root.removeHandler(log)
        _log = None
        log.stop()
