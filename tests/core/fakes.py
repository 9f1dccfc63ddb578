"""Fakes that more than one test needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from coalesce.core.exchange import Exchange
    from coalesce.core.lane import Lane


class RecordingPeer:
    """A client as the core sees it. Records. Reads as a real one does: not while it is told not to."""

    def __init__(self) -> None:
        self.written = b""
        self.breaks_with: Callable[[], None] | None = None  # what a write comes to when the socket is broken
        self.reading = True
        self.closed = False
        self.held = 0
        self.pinned: tuple[Lane, bytes] | None = None

    def write(self, data: bytes) -> None:
        if self.breaks_with is not None:
            self.breaks_with()
        else:
            self.written += data

    write_more = write

    def read(self, wanted: bool, end: bool) -> None:
        del end
        self.reading = wanted

    def close(self) -> None:
        self.closed = True

    def fail(self, fault: Exception) -> None:
        raise fault

    def hold(self, size: int) -> None:
        self.held = size

    def pin(self, lane: Lane, pending: bytes) -> None:
        self.pinned = lane, pending


class RecordingLink:
    """A lane's connection as the core sees it. Records what is sent."""

    def __init__(self, exchange: Exchange, lane: Lane) -> None:
        self._exchange = exchange
        self._lane = lane
        self.batches: list[bytes] = []

    def send(self, batch: bytes) -> None:
        self.batches.append(batch)

    def hang_up(self) -> None:
        self._exchange.lose(self._lane)

    def fail(self, fault: Exception) -> None:
        raise fault


class Caller:
    """Stands in the FIFO, and keeps what it is given."""

    session = None

    def __init__(self) -> None:
        self.owed = 0
        self.got = b""
        self.was_lost = False

    def write(self, data: bytes) -> None:
        self.got += data

    write_more = write

    def fail(self, fault: Exception) -> None:
        raise fault

    def lost(self) -> None:
        self.was_lost = True


class Taking:
    """An upstream that takes everything."""

    def send(self, batch: bytes) -> None:
        """Its replies are the test's."""

    def hang_up(self) -> None:
        raise AssertionError("a lane closes no connection by itself")
