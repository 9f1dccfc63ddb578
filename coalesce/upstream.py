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
from coalesce.core.errors import UpstreamError, unavailable
from coalesce.core.identity import CONNECTION_NAME
from coalesce.core.lane import LaneState
from coalesce.core.resp import CRLF, pack, reply_end
from coalesce.poller import READABLE, WRITABLE

if TYPE_CHECKING:
    from coalesce.config import Address, Config
    from coalesce.core.exchange import Exchange
    from coalesce.core.identity import Identity
    from coalesce.core.lane import Lane
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
    version: tuple[int, ...] | None  # None: it does not say, or not yet
    software: str  # "redis 7.0.15"
    bulk_limit: int | None  # bytes; None: not asked, or it does not say


async def dial(address: Address, identity: Identity, name: bytes, *, ask: bool = False) -> Dialled:
    """Connects and makes the connection run as `identity`. The caller owns the socket, which does not block.

    With `ask`, also asks for the upstream's limit. Nothing else is done that a user may be forbidden: each refusal
    would be in the upstream's ACL LOG.

    Raises OSError when the upstream can't be reached or hangs up, Refused when it says no, UpstreamError when it does
    not talk RESP. Has no deadline of its own.
    """
    if isinstance(address, UnixAddress):
        stream: trio.SocketStream = await trio.open_unix_socket(address.path)
    else:
        stream = await trio.open_tcp_stream(address.host, address.port)
    try:
        return await _shake_hands(stream, identity, name, ask=ask)
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
        log.warning("can't connect to %s for one client: %s", config.upstream.address, why)
        pause = _pause(attempt)
        if trio.current_time() + pause > patience_ends:
            raise UnavailableError(why)
        await trio.sleep(pause)


def _pause(attempt: int) -> float:
    """Seconds to wait after so many failed attempts."""
    return attempt and min(_FIRST_BACKOFF * 2.0 ** (attempt - 1), _LAST_BACKOFF) * random.uniform(0.5, 1)  # noqa: S311 (no secret)


async def _shake_hands(stream: trio.SocketStream, identity: Identity, name: bytes, *, ask: bool) -> Dialled:
    """The identity's requests, and questions whose answers may be errors, in one write."""
    hello = [b"HELLO", b"%d" % identity.protocol, *([b"SETNAME", name] if name else [])]
    become = []
    if identity.password is not None:
        who = [] if identity.username is None else [identity.username]
        become.append([b"AUTH", *who, identity.password])
    if identity.database:
        become.append([b"SELECT", b"%d" % identity.database])
    if identity.protocol == 3:
        become.append(hello)
    questions = [hello] if identity.protocol == 2 else []
    if ask:
        questions.append([b"CONFIG", b"GET", b"proto-max-bulk-len"])
    start = perf_counter()
    try:
        await stream.send_all(b"".join(pack(request) for request in become + questions))
        replies = await _read_replies(stream, len(become) + len(questions))
    except trio.BrokenResourceError as problem:
        raise ConnectionError(f"connection lost in the handshake: {problem.__cause__ or problem}") from problem
    round_trip = perf_counter() - start
    _check(replies, len(become))
    greeting = replies[-1 - ask]
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(False)
    if sock.family != socket.AF_UNIX:
        # A host that died, or a path that was lost, says nothing. Seconds: noticed within 30, idle or not.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
    server, version = _greeted(greeting)
    return Dialled(
        sock,
        round_trip,
        authenticated=not greeting.startswith(b"-NOAUTH"),
        version=tuple(map(int, version.split("."))) if version else None,
        software=f"{server} {version}" if version else "version unknown",
        bulk_limit=_bulk_limit(replies[-1]) if ask else None,
    )


def _check(replies: list[bytes], become: int) -> None:
    """Raises Refused for an error among the first `become`, UpstreamError where a later attempt may fare better."""
    for number, reply in enumerate(replies):
        if reply.startswith(_FULL) or (number < become and reply.partition(b" ")[0] in _TRANSIENT):
            raise UpstreamError(reply[1:].strip().decode("latin-1"))
        if number < become and reply.startswith(b"-"):
            raise Refused(reply)


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
_FULL = b"-ERR max number of clients reached"
_TRANSIENT = {b"-BUSY", b"-LOADING", b"-MASTERDOWN", b"-TRYAGAIN"}


# To AUTH with a password alone, since 6.0.
_NO_PASSWORD_WANTED = b"-ERR AUTH <password> called without any password configured"


def _bulk_limit(reply: bytes) -> int | None:
    """From the reply to CONFIG GET, an array or a map of one pair."""
    lines = reply.split(CRLF)
    return int(lines[4]) if len(lines) == 6 and re.fullmatch(rb"[0-9]{1,18}", lines[4]) else None


def _greeted(reply: bytes) -> tuple[str, str]:
    """The server's name and version, from the reply to HELLO; empty where it says neither."""
    found = re.search(rb"\r\nserver\r\n\$\d+\r\n(\w+)\r\n\$7\r\nversion\r\n\$\d+\r\n(\d+(?:\.\d+)*)\r\n", reply)
    return (found[1].decode("latin-1"), found[2].decode("latin-1")) if found else ("", "")


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

    def hang_up(self) -> None:
        """Closes, whatever is owed."""
        self.lose("")

    def report(self) -> bool:
        """Says why the connection was lost; whether another is to take its place."""
        if self.why:
            log.warning("lane u%d: connection lost: %s", self._lane.number, self.why)
        return bool(self.why) and not self._lane.exclusive

    def release(self) -> tuple[socket.socket, bytes]:
        """Hands the socket on, and what it did not take yet. The lane is over."""
        self._poller.remove(self._sock)
        self.lost.set()
        return self._sock, bytes(self._rest or b"")

    def close(self) -> None:
        self._poller.remove_and_close(self._sock)


async def keep(lane: Lane, exchange: Exchange, poller: Poller, config: Config) -> None:
    """Keeps a lane connected, until its identity is refused or nobody rides it any more."""
    if lane.exclusive:
        await _keep_lease(lane, exchange, poller, config)
        return
    patience_ends = trio.current_time() + config.upstream_wait
    attempt = 0
    while True:
        # An upstream that wants AUTH can be asked for its limit only by those who have it.
        ask = lane.identity == exchange.base or not exchange.lane(exchange.base).authenticated
        try:
            # Requests wait; the first attempt has its time all the same.
            hurry = attempt > 0 and lane.state is LaneState.DIALLING
            ends = trio.current_time() + config.connect_timeout
            with (
                trio.fail_at(max(trio.current_time(), min(ends, patience_ends)) if hurry else ends),
                poller.others_in_a_hurry(),
            ):
                dialled = await dial(config.upstream.address, lane.identity, CONNECTION_NAME, ask=ask)
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


async def _keep_lease(lane: Lane, exchange: Exchange, poller: Poller, config: Config) -> None:
    """A leased connection: dialled once, for somebody who waits, and kept until it is lost or nobody borrows it."""
    try:
        with poller.others_in_a_hurry():
            dialled = await _dial_again(config, lane.identity)
    except Refused as refusal:
        reply = refusal.reply
    except UnavailableError as problem:
        reply = unavailable(str(problem))
    else:
        await _attend(lane, exchange, poller, dialled)
        return
    exchange.lease_failed(lane, reply)
    exchange.flush(perf_counter())


async def _dial_again(config: Config, identity: Identity) -> Dialled:
    """A connection for a session that has long been let in. Raises as `dial_patiently`.

    Where `AUTH password` has been taken since, and the default user wants none any more, whoever connects is that user.
    """
    try:
        return await dial_patiently(config, identity, b"")
    except Refused as refusal:
        if identity.username is None and refusal.reply.startswith(_NO_PASSWORD_WANTED):
            return await dial_patiently(config, identity._replace(password=None), b"")
        raise


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
    if dialled.bulk_limit is not None:
        exchange.bulk_limit = dialled.bulk_limit
    lane.version = dialled.version
    connection = Connection(dialled.sock, lane, exchange, poller)
    exchange.connected(lane, connection, dialled.round_trip)
    exchange.flush(perf_counter())
    try:
        while True:
            with trio.move_on_after(_IDLE):
                await connection.lost.wait()
                return connection.report()
            if lane.exclusive:
                if exchange.lease_is_idle(lane):
                    return False
            elif not lane.sessions and not lane.owed and lane.identity != exchange.base:
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
