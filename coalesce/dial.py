"""New connections to the upstream: resolve, connect, become an identity. At no more than so many a second."""

from __future__ import annotations

import logging
import math
import os
import random
import re
import socket
import ssl
from contextlib import suppress
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import trio

from coalesce.bytestream import ByteStream
from coalesce.config import UnixAddress
from coalesce.core.errors import OPEN_TO_ALL, UpstreamError
from coalesce.core.own import ROLE_PRIMARY, ROLE_REPLICA
from coalesce.core.resp import CRLF, pack, reply_end
from coalesce.keepalive import keep_alive, repeat_often
from coalesce.passwords import PasswordFileError, read_password
from coalesce.tally import Dial, Tally
from coalesce.tls import NO_TLS, server_name, tls_reason, upstream_certificates, wrap

if TYPE_CHECKING:
    from collections.abc import Callable

    from coalesce.config import Address, Config
    from coalesce.core.identity import Identity

log = logging.getLogger("coalesce")

# Seconds between two attempts: the first at once, then doubled up to the last, each times 0.5 to 1 by chance.
_FIRST_BACKOFF = 0.05
_LAST_BACKOFF = 1.0
# Dials that may come at once, before the limit of a second counts.
_BURST = 100
# Connections kept that the upstream refused an identity on, and for how many seconds. Each is as good as new.
_SPARES = 16
_SPARE_FOR = 10.0
# Seconds beyond its end after which an attempt was not late: we were, and its answer may have come long ago.
_OURSELVES_LATE = 0.1
# Seconds between two lines about attempts that failed.
_SAY_EVERY = 5.0


class Refused(Exception):
    """The upstream refused an identity; `reply` is what it said."""

    def __init__(self, reply: bytes) -> None:
        super().__init__(told(reply))
        self.reply = reply


class DialError(Exception):
    """No connection, for a reason in a few words that name no address: clients are told, too."""


class NotLetInError(DialError):
    """The same, where it is coalesce's own credentials that do not work: that is no reply for a client."""


class TlsError(DialError):
    """No TLS, or not as one side wants it: a certificate is not trusted, say. Another attempt would find the same."""


class NoAnswerError(DialError):
    """The time for an attempt was over before anything was known."""


class Dialled(NamedTuple):
    """A connection that runs as the identity asked for, with nothing owed on it."""

    sock: socket.socket
    round_trip: float  # seconds
    authenticated: bool
    version: tuple[int, ...] | None  # None: it does not say, or not yet
    software: str  # "redis 7.0.15"
    bulk_limit: int | None  # bytes; None: not asked, or it does not say
    primary: bool  # it says that it is one
    replica: bool  # the same


class _Stage:
    """How far an attempt has come: what it means if there is no answer."""

    __slots__ = ("no_answer",)

    def __init__(self) -> None:
        self.no_answer = "no answer to the attempt to connect"


class Dialler:
    """Dials one upstream. Addresses are resolved for each dial; all that a name has are tried."""

    def __init__(self, config: Config, tally: Tally | None = None) -> None:
        """Raises CertificateError."""
        self._tally = Tally() if tally is None else tally
        self._certificates = upstream_certificates(config)  # None: plain
        self._server_name = server_name(config)
        self._address = config.upstream.address
        self._username = config.upstream.username
        self._password = config.upstream.password
        self._password_file = config.upstream_password_file
        self._timeout = config.connect_timeout
        self._patience = config.upstream_wait
        self._guarded = config.client_password_file is not None
        self._has_own_password = self._password is not None or self._password_file is not None
        self._silence = config.upstream_silence
        self._interval = 1 / config.max_dials
        self._next = -math.inf  # when the next dial would have its turn, if none might come early
        self._down_since: float | None = None  # None: the last dial worked
        self._failures = 0  # since then
        self._why: str | None = None  # ... what was wrong
        self._say_from = 0.0
        self._say_turns_from = 0.0
        self._spares: list[tuple[ByteStream, float]] = []  # ... and since when
        self._closed = 0  # how often all of them were

    async def dial(
        self,
        identity: Identity,
        name: bytes,
        *,
        ask: bool = False,
        ends: float | None = None,
        turn_ends: float | None = None,
    ) -> Dialled:
        """One attempt; the caller owns the socket, which does not block. Raises Refused and DialError.

        What goes wrong is in the log, but not each time. The attempt ends after the time that one may take, or at
        `ends` (trio's clock). It waits for its turn until `turn_ends`, but never for longer than requests may wait, and
        is none if that does not come. With `ask`, the upstream is asked for its limit, too. Nothing else is done that a
        user may be forbidden: each refusal would be in its ACL LOG.
        """
        ends = math.inf if ends is None else ends
        await self._turn(min(ends, math.inf if turn_ends is None else turn_ends, trio.current_time() + self._patience))
        timeout = trio.current_time() + self._timeout
        try:
            dialled = await self._dial(identity, name, ask=ask, ends=min(ends, timeout))
        except DialError as problem:
            if isinstance(problem, NoAnswerError) and ends < timeout and self._why is not None:
                raise DialError(self._why) from None  # it had less time than those before it
            self.report(str(problem))
            raise
        keep_alive(dialled.sock, self._silence)
        repeat_often(dialled.sock, self._silence)
        if self._down_since is not None:
            log.info("connected to %s again, after %.1f s", self._address, trio.current_time() - self._down_since)
            self._down_since = None
            self._why = None
        return dialled

    async def try_once(self, identity: Identity, name: bytes) -> Dialled:
        """The same for whoever says himself what went wrong."""
        return await self._dial(identity, name, ask=False, ends=trio.current_time() + self._timeout)

    async def _dial(self, identity: Identity, name: bytes, *, ask: bool, ends: float) -> Dialled:
        outcome = Dial.FAILED
        try:
            dialled = await self._dial_until(identity, name, ask=ask, ends=ends)
            outcome = Dial.CONNECTED
        except Refused:
            outcome = Dial.REFUSED
            raise
        else:
            return dialled
        finally:
            self._tally.dials[outcome] += 1

    async def _dial_until(self, identity: Identity, name: bytes, *, ask: bool, ends: float) -> Dialled:
        for again in (True, False):
            stage = _Stage()
            try:
                with trio.fail_at(ends):
                    return await self._attempt(identity, name, stage, ask=ask)
            except trio.TooSlowError:
                now = trio.current_time()
                if now < ends + _OURSELVES_LATE or not again:
                    break
                ends = now + self._timeout
            except (OSError, UpstreamError) as problem:
                hung_up = isinstance(problem, ssl.SSLEOFError | ssl.SSLZeroReturnError)
                kind = TlsError if isinstance(problem, ssl.SSLError) and not hung_up else DialError
                raise kind(_reason(problem)) from problem
        raise NoAnswerError(stage.no_answer)

    async def dial_patiently(self, identity: Identity, name: bytes) -> Dialled:
        """Dials until it works, or for as long as requests may wait. Raises Refused at once, and DialError then."""
        patience_ends = trio.current_time() + self._patience
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self.dial(identity, name, turn_ends=patience_ends)
            except DialError:
                wait = pause(attempt)
                if trio.current_time() + wait > patience_ends:
                    raise
            await trio.sleep(wait)

    def report(self, why: str) -> None:
        """An attempt failed. Says so, unless it has just been said: all lanes and leases try again and again."""
        now = trio.current_time()
        if self._down_since is None:
            self._down_since = now
            self._failures = 0
        self._failures += 1
        self._why = why
        if now >= self._say_from:
            log.warning("can't connect to %s: %s (attempts: %d)", self._address, why, self._failures)
            self._say_from = now + _SAY_EVERY

    def expire(self) -> None:
        """Closes the spare connections that nobody has used for some time."""
        while self._spares and self._spares[0][1] + _SPARE_FOR < trio.current_time():
            self._spares.pop(0)[0].close()

    def close(self) -> None:
        """Closes all spare connections: also when they may lead to an upstream that is no longer the right one."""
        for stream, _ in self._spares:
            stream.close()
        self._spares.clear()
        self._closed += 1  # one that is being dialled is not kept either

    async def _turn(self, ends: float) -> None:
        """Waits until there may be one dial more. Raises DialError if that is after `ends`, and takes no turn then."""
        now = trio.current_time()
        turn = max(self._next, now - _BURST * self._interval) + self._interval
        if turn <= max(now, ends):  # (what is over already is no reason not to try, if it need not wait)
            self._next = turn
            await trio.sleep_until(max(now, turn))
            return
        await trio.sleep_until(ends)
        if self._why is not None:
            raise DialError(self._why)
        why = "too many connections wanted at once (--max-dials)"
        if ends >= self._say_turns_from:
            log.warning("can't connect to %s: %s", self._address, why)
            self._say_turns_from = ends + _SAY_EVERY
        raise DialError(why)

    async def _attempt(self, identity: Identity, name: bytes, stage: _Stage, *, ask: bool) -> Dialled:
        if identity.password is not None and self._spares:
            stream, _ = self._spares.pop()
            try:
                return await self._become(stream, identity, name, ask=ask)
            except OSError as problem:
                log.debug("a spare connection was of no use: %s", problem)
        own = self._own_password() if identity.password is None else None
        return await self._become(await self._connect(stage), identity, name, own, ask=ask)

    async def _connect(self, stage: _Stage) -> ByteStream:
        sock = await _connect(self._address)
        stage.no_answer = "connected, but no answer to a request"
        if self._certificates is not None:
            stage.no_answer = "no answer to the TLS handshake: does it speak TLS, which rediss:// asks for?"
            sock = await _start_tls(sock, self._certificates.latest(), self._server_name)
            stage.no_answer = "connected, but no answer to a request"
        return ByteStream(sock)

    def _own_password(self) -> bytes | None:
        """What coalesce itself authenticates with, as of this moment. Raises DialError."""
        if self._password_file is None:
            return self._password
        try:
            return read_password(self._password_file)
        except PasswordFileError as problem:
            raise NotLetInError(f"coalesce's password (--upstream-password-file): {problem}") from None

    async def _become(
        self, stream: ByteStream, identity: Identity, name: bytes, own: bytes | None = None, *, ask: bool
    ) -> Dialled:
        """Makes a fresh connection run as the identity.

        A client's wrong password costs no connection: AUTH goes first and alone, and when it fails, it has changed
        nothing. `own` is coalesce's password, for a connection that runs as coalesce.
        """
        kept = False
        closed = self._closed
        try:
            if identity.password is not None:
                await self._look_for_another_open_door(stream)  # (it may soon be shut, but not for this connection)
                try:
                    await _authenticate(stream, identity.username, identity.password)
                except Refused:
                    kept = closed == self._closed and self._keep(stream)
                    raise
            elif own is not None:
                await self._look_for_an_open_door(stream)
                try:
                    await _authenticate(stream, self._username, own)
                except Refused as refusal:
                    raise NotLetInError(f"the upstream refuses coalesce's credentials: {refusal}") from None
            return await _shake_hands(stream, identity, name, ask=ask)
        except BaseException:
            if not kept:
                stream.close()
            raise

    async def _look_for_an_open_door(self, stream: ByteStream) -> None:
        """Where clients have to authenticate to coalesce, the upstream must not let everybody in.

        A pinned client's AUTH and RESET are the upstream's affair, and would make it the upstream's user `default`.
        """
        if self._guarded and self._username not in {None, b"default"} and await _lets_everybody_in(stream):
            raise NotLetInError("the upstream's user default needs no password: clients could become it")

    async def _look_for_another_open_door(self, stream: ByteStream) -> None:
        """The same where coalesce has no credentials of its own, and so is that user: then nobody can be another."""
        if self._guarded and not self._has_own_password and await _lets_everybody_in(stream):
            raise Refused(OPEN_TO_ALL)

    def _keep(self, stream: ByteStream) -> bool:
        """Whether the connection is kept for another dial."""
        if len(self._spares) >= _SPARES:
            return False
        self._spares.append((stream, trio.current_time()))
        return True


def pause(attempt: int, chance: Callable[[float, float], float] = random.uniform) -> float:
    """Seconds to wait after so many failed attempts. All that are lost at once are not to come back at once."""
    doubled = min(attempt - 1, 10)  # no float is 2 ** 1024, where a quarter of an hour without an upstream leads
    return attempt and min(_FIRST_BACKOFF * 2.0**doubled, _LAST_BACKOFF) * chance(0.5, 1)


async def _connect(address: Address) -> socket.socket:
    """A socket that does not block."""
    if isinstance(address, UnixAddress):
        stream = await trio.open_unix_socket(address.path)
    else:
        try:
            stream = await trio.open_tcp_stream(address.host, address.port)
        except UnicodeError:  # trio goes by a later IDNA than the one that config.py has at hand
            raise socket.gaierror(socket.EAI_NONAME, "no host can have that name") from None
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(False)
    return sock


async def _start_tls(sock: socket.socket, context: ssl.SSLContext, name: str | None) -> socket.socket:
    """The same connection after the handshake."""
    wrapped = wrap(context, sock, server_hostname=name)
    try:
        while True:
            try:
                wrapped.do_handshake()
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(wrapped)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(wrapped)
            else:
                return wrapped
    except BaseException:
        wrapped.close()
        raise


async def _lets_everybody_in(stream: ByteStream) -> bool:
    """Whether the upstream's user `default` needs no password."""
    (said,) = await converse(stream, [[b"PING"]])
    return not said.startswith(b"-NOAUTH")


async def _authenticate(stream: ByteStream, username: bytes | None, password: bytes) -> None:
    """Raises Refused."""
    _check(await converse(stream, [[b"AUTH", *([] if username is None else [username]), password]]), 1)


def told(error: bytes) -> str:
    """What an error reply of the handshake says, for the log and for other clients: of Redis's own words alone.

    What else is in it may be what it was given, the password in whole or in part: `unknown command 'AUTH', with args
    beginning with: 'hunter2'`.
    """
    found = _TELLING.match(error)
    return found[1].decode() if found else "an error"


_TELLING = re.compile(
    rb"-((?:ASK|BUSY|CLUSTERDOWN|DENIED|ERR|LOADING|MASTERDOWN|MISCONF|MOVED|NOAUTH|NOPERM|NOPROTO|OOM|READONLY|"
    rb"TRYAGAIN|WRONGPASS)(?= |\r\n)(?: (?:"
    rb"AUTH <password> called without any password configured for the default user|"
    rb"Authentication required|"
    rb"Client sent AUTH, but no password is set|"
    rb"DB index is out of range|"
    rb"HELLO must be called with the client already authenticated|"
    rb"Link with MASTER is down|"
    rb"(?:Redis|Valkey) is (?:busy running a script|loading the dataset in memory|running in protected mode)|"
    rb"SELECT is not allowed in cluster mode|"
    rb"invalid DB index|"
    rb"invalid username-password pair or user is disabled|"
    rb"max number of clients reached|"
    rb"unknown command|"
    rb"unsupported protocol version|"
    rb"wrong number of arguments"
    rb"))?)"
)


async def _shake_hands(stream: ByteStream, identity: Identity, name: bytes, *, ask: bool) -> Dialled:
    """The rest of the identity's requests, and questions whose answers may be errors, in one write."""
    hello = [b"HELLO", b"%d" % identity.protocol, *([b"SETNAME", name] if name else [])]
    become = []
    if identity.database:
        become.append([b"SELECT", b"%d" % identity.database])
    if identity.protocol == 3:
        become.append(hello)
    questions = [hello] if identity.protocol == 2 else []
    if ask:
        questions.append([b"CONFIG", b"GET", b"proto-max-bulk-len"])
    start = perf_counter()
    replies = await converse(stream, become + questions)
    round_trip = perf_counter() - start
    _check(replies, len(become))
    greeting = replies[-1 - ask]
    sock = stream.sock
    server, version = _greeted(greeting)
    return Dialled(
        sock,
        round_trip,
        authenticated=not greeting.startswith(b"-NOAUTH"),
        version=tuple(map(int, version.split("."))) if version else None,
        software=f"{server} {version}" if version else "version unknown",
        bulk_limit=_bulk_limit(replies[-1]) if ask else None,
        primary=ROLE_PRIMARY in greeting,
        replica=ROLE_REPLICA in greeting,
    )


async def converse(stream: ByteStream, requests: list[list[bytes]]) -> list[bytes]:
    """As many replies as requests."""
    try:
        with suppress(ssl.SSLEOFError):  # it hung up already: why is still to be read
            await stream.send_all(b"".join(pack(request) for request in requests))
        return await _read_replies(stream, len(requests))
    except ssl.SSLError:
        raise  # with TLS 1.3, this is how a client's certificate is refused
    except OSError as problem:
        raise ConnectionError(f"connection lost in the handshake: {problem.strerror or problem}") from problem


def _check(replies: list[bytes], become: int) -> None:
    """Raises Refused for an error among the first `become`, UpstreamError where a later attempt may fare better."""
    for number, reply in enumerate(replies):
        if reply.startswith(_FULL) or (number < become and reply.partition(b" ")[0] in _TRANSIENT):
            raise UpstreamError(told(reply))
        if number < become and reply.startswith(b"-"):
            raise Refused(reply)


async def _read_replies(stream: ByteStream, count: int) -> list[bytes]:
    data = b""
    replies: list[bytes] = []
    position = 0
    while len(replies) < count:
        chunk = await stream.receive_some()
        if not chunk:
            # (The beginning of a reply tells nothing: what it would have gone on to say decides what it is.)
            last = f": {told(replies[-1])}" if replies and replies[-1].startswith(b"-") else ""
            raise ConnectionError(f"hung up in the handshake{last}")
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


def _bulk_limit(reply: bytes) -> int | None:
    """From the reply to CONFIG GET, an array or a map of one pair."""
    lines = reply.split(CRLF)
    return int(lines[4]) if len(lines) == 6 and re.fullmatch(rb"[0-9]{1,18}", lines[4]) else None


def _greeted(reply: bytes) -> tuple[str, str]:
    """The server's name and version, from the reply to HELLO; empty where it says neither."""
    found = re.search(rb"\r\nserver\r\n\$\d+\r\n(\w+)\r\n\$7\r\nversion\r\n\$\d+\r\n(\d+(?:\.\d+)*)\r\n", reply)
    return (found[1].decode("latin-1"), found[2].decode("latin-1")) if found else ("", "")


def _reason(problem: Exception) -> str:
    """Why the upstream could not be reached.

    trio wraps one error for each address tried; the first tells enough.
    """
    cause = problem.__cause__
    if isinstance(cause, ExceptionGroup):
        problem = cause.exceptions[0]
    elif isinstance(cause, OSError):
        problem = cause
    if isinstance(problem, ssl.SSLError):
        reason = tls_reason(problem)
        return f"{reason}, which rediss:// asks for" if reason == NO_TLS else reason
    if isinstance(problem, OSError) and problem.errno is not None and not isinstance(problem, socket.gaierror):
        return os.strerror(problem.errno)
    return (problem.strerror if isinstance(problem, OSError) else None) or str(problem) or repr(problem)
