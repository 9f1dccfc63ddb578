"""A lane's upstream connection: its writes, its reads, its loss. What comes after it, see upstream.py.

No task and no waiting, but for `emptied`: `on_ready` is called by the poller, `send` by the core.
"""

from __future__ import annotations

import logging
from time import perf_counter
from typing import TYPE_CHECKING

import trio

from coalesce.core.errors import UpstreamError
from coalesce.poller import READABLE, WRITABLE
from coalesce.pulse import Pulse
from coalesce.tally import Lost, Side

if TYPE_CHECKING:
    import socket

    from coalesce.core.exchange import Exchange
    from coalesce.core.lane import Lane
    from coalesce.poller import Poller

log = logging.getLogger("coalesce")

# Redis writes at most 64 KiB at a time; a larger chunk holds more replies side by side when it is ahead of us.
_CHUNK = 64 * 1024
# ... and while a reply of many elements is passed on: each takes a microsecond of everybody's time.
_SMALL_CHUNK = 16 * 1024
# Bytes of a batch that are sent at a time: a socket may take 4 MB in one go, which is a millisecond for everybody else.
_PIECE = 256 * 1024


class Connection:
    """A lane's connection. Owns the socket, from `connected` until it is lost."""

    def __init__(self, sock: socket.socket, lane: Lane, exchange: Exchange, poller: Poller) -> None:
        self._sock = sock
        self._lane = lane
        self._exchange = exchange
        self._poller = poller
        self._tally = poller.tally
        self._rest: memoryview | None = None  # of a batch that the socket would not take at once
        self._held = False  # nothing more is sent, as another connection is to follow
        self.pulse = Pulse(sock)
        self.lost = trio.Event()
        self.news = trio.Event()  # it is lost, was turned away, or has been emptied while held
        self.why = ""
        poller.add(sock, self, READABLE)

    def __repr__(self) -> str:
        return f"<Connection of {self._lane!r}>"

    def send(self, batch: bytes) -> None:
        """Sends a batch. Until all of it has left, the lane gets no other (I10)."""
        try:
            sent = self._sock.send(batch if len(batch) <= _PIECE else memoryview(batch)[:_PIECE])
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as problem:
            self._break(problem)
            return
        self._tally.sent += sent
        if sent < len(batch):
            self._rest = memoryview(batch)[sent:]
            self._lane.send = None
            self._poller.change(self._sock, READABLE | WRITABLE)

    def on_ready(self, flags: int) -> None:
        """HOT. One recv; its replies are with their callers afterwards."""
        if flags & ~WRITABLE:
            try:
                data = self._sock.recv(_SMALL_CHUNK if self._lane.crowded else _CHUNK)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as problem:
                self._break(problem)
                return
            if not data:
                self.lose("closed by the upstream", Lost.CLOSED)
                return
            self._tally.received += len(data)
            try:
                self._exchange.replies(self._lane, data, perf_counter())
            except UpstreamError as problem:
                lane = self._lane
                log.warning("%s: %s: the connection can't be trusted any more", lane, problem, extra=lane.ids)
                self._tally.protocol_errors[Side.UPSTREAM] += 1
                self.lose(str(problem), Lost.DESYNC)
                return
            if self._lane.turned_away or self._held:
                self.news.set()
                self._poller.end_turn()
        if flags & WRITABLE:
            self._send_rest()

    def fail(self, fault: Exception) -> None:
        """A fault of ours while this lane was served: its connection can't be trusted any more."""
        faults = self._poller.faults
        faults.say(self._lane, fault, "the connection is closed")
        with faults.contained(self._lane, "while the connection was closed"):
            self.lose("a fault in coalesce", Lost.FAULT)

    def _break(self, problem: OSError) -> None:
        reset = isinstance(problem, ConnectionResetError | BrokenPipeError)
        self.lose(problem.strerror or str(problem), Lost.RESET if reset else Lost.OTHER)

    def _send_rest(self) -> None:
        if self._rest is None or self.lost.is_set():
            return
        try:
            sent = self._sock.send(self._rest[:_PIECE])
        except (BlockingIOError, InterruptedError):
            return
        except OSError as problem:
            self._break(problem)
            return
        self._tally.sent += sent
        self._rest = self._rest[sent:]
        if not self._rest:
            self._rest = None
            self._lane.send = None if self._held else self.send
            self._poller.change(self._sock, READABLE)

    def hold(self) -> None:
        """Sends no more than has been begun; what is in flight is still answered."""
        self._held = True
        self._lane.send = None

    def go_on(self) -> None:
        """Takes `hold` back."""
        self._held = False
        if self._rest is None and not self.lost.is_set():
            self._lane.send = self.send

    async def emptied(self) -> None:
        """Waits until nobody has anything in flight any more, or the connection is lost."""
        while self._lane.is_waited_for and not self.lost.is_set():
            self.news = trio.Event()
            await self.news.wait()

    def end(self) -> None:
        """Closes, with nothing in flight that anybody waits for, as another follows. Unsent requests go with that."""
        self.close()
        self.lost.set()
        self._tally.lost[Lost.REPLACED] += 1
        self._exchange.replaced(self._lane)

    def lose(self, why: str, reason: Lost) -> None:
        """The connection is gone, for the reason stated."""
        if self.lost.is_set():
            return
        if not self._lane.exclusive:
            self._tally.lost[reason] += 1
        self.close()
        self.why = why
        self.lost.set()
        self.news.set()
        self._poller.end_turn()
        self._exchange.lose(self._lane)

    def hang_up(self) -> None:
        """Closes, whatever is owed."""
        self.lose("", Lost.OTHER)

    def report(self) -> None:
        """Says why the connection was lost."""
        if self.why:
            level = logging.DEBUG if self._lane.exclusive else logging.WARNING  # there may be a thousand leases
            log.log(level, "%s: connection lost: %s", self._lane, self.why, extra=self._lane.ids)

    def release(self) -> tuple[socket.socket, bytes]:
        """Hands the socket on, and what it did not take yet. The lane is over."""
        self._poller.remove(self._sock)
        self.lost.set()
        self.news.set()
        return self._sock, bytes(self._rest or b"")

    def discard(self) -> None:
        """Closes, where the lane is over and nobody could take the socket, which `release` was to hand on."""
        if not self.lost.is_set():
            self.lost.set()
            self.news.set()
            self.close()

    def close(self) -> None:
        self._poller.remove_and_close(self._sock)
