"""A lane's upstream connection: its writes, reads, loss and reconnects.

A lane has one task, `keep`, which dials, waits until the connection is lost, and dials again. What happens on a
connection in between needs no task: `Connection.on_ready` is called by the poller, `Connection.send` by the core.
"""

from __future__ import annotations

import logging
from time import perf_counter
from typing import TYPE_CHECKING

import trio

from coalesce.core.errors import UpstreamError, unavailable
from coalesce.core.identity import CONNECTION_NAME
from coalesce.core.lane import LaneState
from coalesce.dial import DialError, Refused, pause
from coalesce.poller import READABLE, WRITABLE

if TYPE_CHECKING:
    import socket

    from coalesce.config import Config
    from coalesce.core.exchange import Exchange
    from coalesce.core.identity import Identity
    from coalesce.core.lane import Lane
    from coalesce.dial import Dialled, Dialler
    from coalesce.poller import Poller

log = logging.getLogger("coalesce")

# Redis writes at most 64 KiB at a time; a larger chunk holds more replies side by side when it is ahead of us.
_CHUNK = 64 * 1024
# Bytes of a batch that are sent at a time: a socket may take 4 MB in one go, which is a millisecond for everybody else.
_PIECE = 256 * 1024
# Seconds that a connection has to live for its loss to be the first failure, not the next.
_LIVED = 1.0
# Seconds without a session after which a lane is closed. Short jobs of one identity follow each other within it.
_IDLE = 60.0
# To AUTH with a password alone, since 6.0.
_NO_PASSWORD_WANTED = b"-ERR AUTH <password> called without any password configured"


class Connection:
    """A lane's connection. Owns the socket, from `connected` until it is lost."""

    def __init__(self, sock: socket.socket, lane: Lane, exchange: Exchange, poller: Poller) -> None:
        self._sock = sock
        self._lane = lane
        self._exchange = exchange
        self._poller = poller
        self._rest: memoryview | None = None  # of a batch that the socket would not take at once
        self.lost = trio.Event()
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
            self.lose(problem.strerror or str(problem))
            return
        if sent < len(batch):
            self._rest = memoryview(batch)[sent:]
            self._lane.send = None
            self._poller.change(self._sock, READABLE | WRITABLE)

    def on_ready(self, flags: int) -> None:
        """HOT. One recv; its replies are with their callers afterwards."""
        if flags & ~WRITABLE:
            try:
                data = self._sock.recv(_CHUNK)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as problem:
                self.lose(problem.strerror or str(problem))
                return
            if not data:
                self.lose("closed by the upstream")
                return
            try:
                self._exchange.replies(self._lane, data, perf_counter())
            except UpstreamError as problem:
                log.warning("lane u%d: %s: the connection can't be trusted any more", self._lane.number, problem)
                self.lose(str(problem))
                return
        if flags & WRITABLE:
            self._send_rest()

    def fail(self, fault: Exception) -> None:
        """A fault of ours while this lane was served: its connection can't be trusted any more."""
        self._exchange.faults += 1
        log.error("lane u%d: a fault in coalesce, the connection is closed", self._lane.number, exc_info=fault)
        self.lose("a fault in coalesce")

    def _send_rest(self) -> None:
        if self._rest is None or self.lost.is_set():
            return
        try:
            sent = self._sock.send(self._rest[:_PIECE])
        except (BlockingIOError, InterruptedError):
            return
        except OSError as problem:
            self.lose(problem.strerror or str(problem))
            return
        self._rest = self._rest[sent:]
        if not self._rest:
            self._rest = None
            self._lane.send = self.send
            self._poller.change(self._sock, READABLE)

    def lose(self, why: str) -> None:
        """The connection is gone, for the reason stated."""
        if self.lost.is_set():
            return
        self.close()
        self.why = why
        self.lost.set()
        self._poller.end_turn()
        self._exchange.lose(self._lane)

    def hang_up(self) -> None:
        """Closes, whatever is owed."""
        self.lose("")

    def report(self) -> bool:
        """Says why the connection was lost; whether another is to take its place."""
        if self.why:
            level = logging.DEBUG if self._lane.exclusive else logging.WARNING  # there may be a thousand leases
            log.log(level, "lane u%d: connection lost: %s", self._lane.number, self.why)
        return bool(self.why) and not self._lane.exclusive

    def release(self) -> tuple[socket.socket, bytes]:
        """Hands the socket on, and what it did not take yet. The lane is over."""
        self._poller.remove(self._sock)
        self.lost.set()
        return self._sock, bytes(self._rest or b"")

    def close(self) -> None:
        self._poller.remove_and_close(self._sock)


async def keep(lane: Lane, exchange: Exchange, poller: Poller, dialler: Dialler, config: Config) -> None:
    """Keeps a lane connected, until its identity is refused or nobody rides it any more."""
    if lane.exclusive:
        await _keep_lease(lane, exchange, poller, dialler)
        return
    patience_ends = trio.current_time() + config.upstream_wait
    attempt = 0
    while True:
        # An upstream that wants AUTH can be asked for its limit only by those who have it.
        ask = lane.identity == exchange.base or not exchange.lane(exchange.base).authenticated
        # Requests wait; the first attempt has its time all the same.
        hurry = attempt > 0 and lane.state is LaneState.DIALLING
        try:
            with poller.others_in_a_hurry():
                dialled = await dialler.dial(
                    lane.identity, CONNECTION_NAME, ask=ask, ends=patience_ends if hurry else None
                )
        except Refused as refusal:
            if not exchange.is_base(lane):
                log.debug("lane u%d: refused: %s", lane.number, refusal)
                exchange.refuse(lane, refusal.reply)
                exchange.flush(perf_counter())
                return
            why = str(refusal)
            dialler.report(why)
        except DialError as problem:
            why = str(problem)
        else:
            since = trio.current_time()
            if not await _attend(lane, exchange, poller, dialled):
                return
            patience_ends = trio.current_time() + config.upstream_wait
            attempt = 0 if trio.current_time() > since + _LIVED else attempt + 1
            await trio.sleep(pause(attempt))  # who accepts only to hang up is not dialled a thousand times a second
            continue
        attempt += 1
        with poller.others_in_a_hurry():
            await _back_off(lane, exchange, attempt, patience_ends, why)
        if lane.state is LaneState.FAILING and not lane.sessions and not exchange.is_base(lane):
            exchange.retire(lane)
            return


async def _keep_lease(lane: Lane, exchange: Exchange, poller: Poller, dialler: Dialler) -> None:
    """A leased connection: dialled once, for somebody who waits, and kept until it is lost or nobody borrows it."""
    try:
        with poller.others_in_a_hurry():
            dialled = await _dial_again(dialler, lane.identity)
    except Refused as refusal:
        reply = refusal.reply
    except DialError as problem:
        reply = unavailable(str(problem))
    else:
        await _attend(lane, exchange, poller, dialled)
        return
    exchange.lease_failed(lane, reply)
    exchange.flush(perf_counter())


async def _dial_again(dialler: Dialler, identity: Identity) -> Dialled:
    """A connection for a session that has long been let in. Raises as `dial_patiently`.

    Where `AUTH password` has been taken since, and the default user wants none any more, whoever connects is that user.
    """
    try:
        return await dialler.dial_patiently(identity, b"")
    except Refused as refusal:
        if identity.username is None and refusal.reply.startswith(_NO_PASSWORD_WANTED):
            return await dialler.dial_patiently(identity._replace(password=None), b"")
        raise


async def _back_off(lane: Lane, exchange: Exchange, attempt: int, patience_ends: float, why: str) -> None:
    """Waits before the next attempt; requests that have waited for as long as they may are answered meanwhile."""
    wake = trio.current_time() + pause(attempt)
    if lane.state is LaneState.DIALLING and patience_ends <= wake:
        await trio.sleep_until(patience_ends)
        exchange.fail(lane, why)
        exchange.flush(perf_counter())
    await trio.sleep_until(wake)


async def _attend(lane: Lane, exchange: Exchange, poller: Poller, dialled: Dialled) -> bool:
    """Lets a lane use its new connection until that is lost; False when nobody needs the lane any more."""
    lane.authenticated = dialled.authenticated
    if dialled.bulk_limit is not None:
        exchange.bulk_limit = dialled.bulk_limit
    lane.version = dialled.version
    connection = Connection(dialled.sock, lane, exchange, poller)
    try:
        exchange.connected(lane, connection, dialled.round_trip)
        exchange.flush(perf_counter())
        while True:
            with trio.move_on_after(_IDLE):
                await connection.lost.wait()
                return connection.report()
            if lane.exclusive:
                if exchange.lease_is_idle(lane):
                    return False
            elif not lane.sessions and not lane.owed and not exchange.is_base(lane):
                exchange.retire(lane)
                return False
    finally:
        if not connection.lost.is_set():
            connection.close()
