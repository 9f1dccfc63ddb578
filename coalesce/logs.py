"""The log: to standard error, by a thread of its own, which alone waits when nobody reads it.

A container's log is a pipe. When its reader stands still, a line written from the only thread there is would stop
every client.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from contextlib import contextmanager, suppress
from logging.handlers import QueueHandler, QueueListener
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Lines that wait for their reader; the next ones are dropped, and counted.
_WAITING = 1000
# Seconds that the last lines may take at the end.
_LAST_LINES = 1.0


class _StandardError:
    """Without a buffer, whose lock a thread that waits would hold when the process ends."""

    def write(self, text: str) -> None:
        os.write(2, text.encode("utf-8", "backslashreplace"))

    def flush(self) -> None:
        """There is nothing to flush."""


class _DroppingHandler(QueueHandler):
    """Never waits."""

    def __init__(self, lines: queue.Queue[logging.LogRecord]) -> None:
        super().__init__(lines)
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
