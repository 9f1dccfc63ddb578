"""The upstream: dial, handshake, and a lane's connection with its writes, reads, loss and reconnects.

A lane has one task, `keep`, which dials, waits until the connection is lost, and dials again. What happens on a
connection in between needs no task: `Connection.on_ready` is called by the poller, `Connection.send` by the core.
"""

from __future__ import annotations

import logging
import os
import random
import re
import socket
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import trio

from coalesce.config import UnixAddress
from coalesce.core.errors import UpstreamError
from coalesce.core.exchange import CONNECTION_NAME
from coalesce.core.lane import LaneState
from coalesce.core.resp import BULK_LIMIT, CRLF, pack, reply_end
from coalesce.poller import READABLE, WRITABLE

if TYPE_CHECKING:
    from coalesce.config import Address, Config
    from coalesce.core.exchange import Exchange
    from coalesce.core.lane import Identity, Lane
    from coalesce.poller import Poller

log = logging.getLogger("coalesce")

# Redis writes at most 64 KiB at a time; a larger chunk holds more replies side by side when it is ahead of us.
_CHUNK = 64 * 1024
# Seconds between two attempts: the first at once, then doubled up to the last, each times 0.5 to 1 by chance.
_FIRST_BACKOFF = 0.05
_LAST_BACKOFF = 1.0
# Seconds that a connection has to live for its loss to be the first failure, not the next.
_LIVED = 1.0
# Seconds without a session after which a lane is closed. Short jobs of one identity follow each other within it.
_IDLE = 60.0


class Refused(Exception):
    """The upstream refused an identity; `reply` is what it said."""

    def __init__(self, reply: bytes) -> None:
        super().__init__(reply[1:].partition(CRLF)[0].decode("latin-1"))
        self.reply = reply


class UnavailableError(Exception):
    """The upstream could not be reached for as long as requests may wait."""


class Dialled(NamedTuple):
    """A connection that runs as the identity asked for, with nothing owed on it."""

    sock: socket.socket
    round_trip: float  # seconds
    authenticated: bool
    bulk_limit: int  # bytes
    software: str  # "Redis 7.0.15"


async def dial(address: Address, identity: Identity, name: bytes) -> Dialled:
    """Connects and makes the connection run as `identity`. The caller owns the socket, which does not block.

    Raises OSError when the upstream can't be reached or hangs up, Refused when it says no, UpstreamError when it does
    not talk RESP. Has no deadline of its own.
    """
    if isinstance(address, UnixAddress):
        stream: trio.SocketStream = await trio.open_unix_socket(address.path)
    else:
        stream = await trio.open_tcp_stream(address.host, address.port)
    try:
        return await _shake_hands(stream, identity, name)
    except BaseException:
        stream.socket.close()
        raise


async def dial_patiently(config: Config, identity: Identity, name: bytes) -> Dialled:
    """Dials until it works, or for as long as requests may wait. Raises UnavailableError then, and Refused at once."""
    patience_ends = trio.current_time() + config.upstream_wait
    attempt = 0
    while True:
        attempt += 1
        try:
            with trio.fail_after(config.connect_timeout):
                return await dial(config.upstream.address, identity, name)
        except trio.TooSlowError:
            why = "no answer to the attempt to connect"
        except (OSError, UpstreamError) as problem:
            why = reason(problem)
        pause = _pause(attempt)
        if trio.current_time() + pause > patience_ends:
            raise UnavailableError(why)
        await trio.sleep(pause)


def _pause(attempt: int) -> float:
    """Seconds to wait after so many failed attempts."""
    return attempt and min(_FIRST_BACKOFF * 2.0 ** (attempt - 1), _LAST_BACKOFF) * random.uniform(0.5, 1)  # noqa: S311 (no secret)


async def _shake_hands(stream: trio.SocketStream, identity: Identity, name: bytes) -> Dialled:
    """The identity's requests, in one write, and then questions whose answers may well be errors."""
    become = []
    if identity.password is not None:
        who = [] if identity.username is None else [identity.username]
        become.append([b"AUTH", *who, identity.password])
    if identity.protocol == 3:
        become.append([b"HELLO", b"3"])
    if identity.database:
        become.append([b"SELECT", b"%d" % identity.database])
    ask = [
        [b"CLIENT", b"SETNAME", name],
        [b"CONFIG", b"GET", b"proto-max-bulk-len"],
        [b"INFO", b"server"],
        [b"PING"],
    ]
    start = perf_counter()
    try:
        await stream.send_all(b"".join(pack(request) for request in become + ask))
        replies = await _read_replies(stream, len(become) + len(ask))
    except trio.BrokenResourceError as problem:
        raise ConnectionError(f"connection lost in the handshake: {problem.__cause__ or problem}") from problem
    round_trip = perf_counter() - start
    for reply in replies[: len(become)]:
        if reply.partition(b" ")[0] in _TRANSIENT:
            raise UpstreamError(reply[1:].strip().decode("latin-1"))
        if reply.startswith(b"-"):
            raise Refused(reply)
    _, limit, info, ping = replies[len(become) :]
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(False)
    if sock.family != socket.AF_UNIX:
        # A host that died, or a path that was lost, says nothing. Seconds: noticed within 30, idle or not.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
    return Dialled(
        sock,
        round_trip,
        authenticated=not ping.startswith(b"-NOAUTH"),
        bulk_limit=_bulk_limit(limit),
        software=_software(info),
    )


async def _read_replies(stream: trio.SocketStream, count: int) -> list[bytes]:
    data = b""
    replies: list[bytes] = []
    position = 0
    while len(replies) < count:
        chunk = await stream.receive_some()
        if not chunk:
            last = data[position:].decode("latin-1").strip()
            raise ConnectionError(f"hung up in the handshake{': ' + last if last else ''}")
        data += chunk
        while len(replies) < count and position < len(data) and (end := reply_end(data, position)) >= 0:
            replies.append(data[position:end])
            position = end
    if position < len(data):
        raise UpstreamError("more replies than requests in the handshake")
    return replies


# What an upstream says that could soon say something else. (A client that connected now would be told the same, and
# would try again.)
_TRANSIENT = {b"-BUSY", b"-LOADING", b"-MASTERDOWN", b"-TRYAGAIN"}


def _bulk_limit(reply: bytes) -> int:
    """From the reply to CONFIG GET, an array or a map of one pair. Redis's default where it may not be asked."""
    lines = reply.split(CRLF)
    return int(lines[4]) if len(lines) == 6 and re.fullmatch(rb"[0-9]{1,18}", lines[4]) else BULK_LIMIT


def _software(info: bytes) -> str:
    """From the reply to INFO server. Valkey states its own version beside that of the Redis it is compatible with."""
    for name, field in (("Valkey", rb"valkey_version:(\S+)"), ("Redis", rb"redis_version:(\S+)")):
        found = re.search(field, info)
        if found:
            return f"{name} {found[1].decode('latin-1')}"
    return "version unknown"


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
            sent = self._sock.send(batch)
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

    def _send_rest(self) -> None:
        if self._rest is None or self.lost.is_set():
            return
        try:
            sent = self._sock.send(self._rest)
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

    def close(self) -> None:
        self._poller.remove_and_close(self._sock)


async def keep(lane: Lane, exchange: Exchange, poller: Poller, config: Config) -> None:
    """Keeps a lane connected, until its identity is refused or nobody rides it any more."""
    patience_ends = trio.current_time() + config.upstream_wait
    attempt = 0
    while True:
        try:
            hurry = (
                attempt > 0 and lane.state is LaneState.DIALLING
            )  # requests wait; the first has its time all the same
            ends = trio.current_time() + config.connect_timeout
            with (
                trio.fail_at(max(trio.current_time(), min(ends, patience_ends)) if hurry else ends),
                poller.others_in_a_hurry(),
            ):
                dialled = await dial(config.upstream.address, lane.identity, CONNECTION_NAME)
        except Refused as refusal:
            if lane.identity != exchange.base:
                log.debug("lane u%d: refused: %s", lane.number, refusal)
                exchange.refuse(lane, refusal.reply)
                exchange.flush(perf_counter())
                return
            why = str(refusal)
        except trio.TooSlowError:
            why = "no answer to the attempt to connect"
        except (OSError, UpstreamError) as problem:
            why = reason(problem)
        else:
            since = trio.current_time()
            if not await _attend(lane, exchange, poller, dialled):
                return
            patience_ends = trio.current_time() + config.upstream_wait
            attempt = 0 if trio.current_time() > since + _LIVED else attempt + 1
            await trio.sleep(_pause(attempt))  # who accepts only to hang up is not dialled a thousand times a second
            continue
        attempt += 1
        log.warning("lane u%d: can't connect to %s: %s", lane.number, config.upstream.address, why)
        with poller.others_in_a_hurry():
            await _back_off(lane, exchange, attempt, patience_ends, why)
        if lane.state is LaneState.FAILING and not lane.sessions and lane.identity != exchange.base:
            exchange.retire(lane)
            return


async def _back_off(lane: Lane, exchange: Exchange, attempt: int, patience_ends: float, why: str) -> None:
    """Waits before the next attempt; requests that have waited for as long as they may are answered meanwhile."""
    wake = trio.current_time() + _pause(attempt)
    if lane.state is LaneState.DIALLING and patience_ends <= wake:
        await trio.sleep_until(patience_ends)
        exchange.fail(lane, why)
        exchange.flush(perf_counter())
    await trio.sleep_until(wake)


async def _attend(lane: Lane, exchange: Exchange, poller: Poller, dialled: Dialled) -> bool:
    """Lets a lane use its new connection until that is lost; False when nobody needs the lane any more."""
    lane.authenticated = dialled.authenticated
    lane.bulk_limit = dialled.bulk_limit
    connection = Connection(dialled.sock, lane, exchange, poller)
    exchange.connected(lane, connection.send, dialled.round_trip)
    exchange.flush(perf_counter())
    try:
        while True:
            with trio.move_on_after(_IDLE):
                await connection.lost.wait()
                log.warning("lane u%d: connection lost: %s", lane.number, connection.why)
                return True
            if not lane.sessions and not lane.owed and lane.identity != exchange.base:
                exchange.retire(lane)
                return False
    finally:
        if not connection.lost.is_set():
            connection.close()


def reason(problem: Exception) -> str:
    """Why the upstream could not be reached, in a few words that name no address: clients are told, too.

    trio wraps one error for each address tried; the first tells enough.
    """
    cause = problem.__cause__
    if isinstance(cause, ExceptionGroup):
        problem = cause.exceptions[0]
    elif isinstance(cause, OSError):
        problem = cause
    if isinstance(problem, OSError) and problem.errno is not None and not isinstance(problem, socket.gaierror):
        return os.strerror(problem.errno)
    return (problem.strerror if isinstance(problem, OSError) else None) or str(problem) or repr(problem)
