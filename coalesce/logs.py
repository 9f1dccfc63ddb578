"""The log: to standard error, by a thread of its own, which alone waits when nobody reads it.

A container's log is a pipe. When its reader stands still, a line written from the only thread there is would stop
every client.

Exceptions are logged without their texts: `KeyError(arguments)` would say what a client sent, `ValueError` what could
not be read, and nobody can know of all libraries what theirs repeat. Their types and the places they came by are enough
to find a fault; the words for an error number of the system are added.
"""

from __future__ import annotations

import logging
import os
import queue
import ssl
import sys
import threading
import traceback
from contextlib import contextmanager, suppress
from copy import copy
from logging.handlers import QueueHandler, QueueListener
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

# Lines that wait for their reader; the next ones are dropped, and counted.
_WAITING = 1000
# Seconds that the last lines may take at the end.
_LAST_LINES = 1.0


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


class _WithoutTexts(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        record = copy(record)
        record.exc_text = None  # as another formatter wrote it
        return super().format(record)

    def formatException(  # noqa: N802 (logging's name)
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None],
    ) -> str:
        return "" if ei[1] is None else traceback_without_texts(ei[1])


class _StandardError:
    """Without a buffer, whose lock a thread that waits would hold when the process ends."""

    def write(self, text: str) -> None:
        os.write(2, text.encode("utf-8", "backslashreplace"))

    def flush(self) -> None:
        """There is nothing to flush."""


def _say(what: str, problem: BaseException | None) -> None:
    """Past the log. Where standard error is gone, so is this: raising would have Python print the exception itself."""
    text = "" if problem is None else f"{traceback_without_texts(problem)}\n"
    with suppress(OSError):
        _StandardError().write(f"{what}\n{text}")


class _DroppingHandler(QueueHandler):
    """Never waits."""

    def __init__(self, lines: queue.Queue[logging.LogRecord]) -> None:
        super().__init__(lines)
        self.setFormatter(_WithoutTexts())  # here, not by the writer: `prepare` leaves it no exception
        self._lines = lines
        self._dropped = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        if self._dropped and self._lines.qsize() < _WAITING // 2:
            dropped, self._dropped = self._dropped, 0
            logging.getLogger("coalesce").warning("%d lines of this log were dropped: nobody read it", dropped)
        try:
            self._lines.put_nowait(record)
        except queue.Full:
            self._dropped += 1

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """A line that can't be made. Its own handling would print the arguments."""
        _say(f"a line of the log could not be made ({record.filename}:{record.lineno})", sys.exception())


@contextmanager
def logging_to_stderr(level: int = logging.INFO) -> Iterator[None]:
    """Within it, the log of the process goes to standard error."""
    lines: queue.Queue[logging.LogRecord] = queue.Queue(_WAITING)
    writer = logging.StreamHandler(_StandardError())
    writer.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    listener = QueueListener(lines, writer)
    handler = _DroppingHandler(lines)
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level)
    listener.start()
    try:
        yield
    finally:
        root.removeHandler(handler)
        last = threading.Thread(target=_stop, args=(listener,), daemon=True)
        last.start()
        last.join(_LAST_LINES)


def _stop(listener: QueueListener) -> None:
    with suppress(queue.Full):  # nobody reads it
        listener.stop()
