"""What a Redis says: a model of one connection, for the upstream of `test_properties.py` and for its oracles.

It knows what a connection can be in the middle of, and is as strict as Redis there. Its data is made up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from coalesce.core.identity import Identity

if TYPE_CHECKING:
    from collections.abc import Sequence

BASE = Identity(None, None, 0, 2)
WRONG_PASSWORD = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"
NO_SUCH_DATABASE = b"-ERR DB index is out of range\r\n"
NO_NAME = b"-ERR Client names cannot contain spaces, newlines or special characters.\r\n"
HELLO_SYNTAX = b"-ERR Syntax error in HELLO option '%b'\r\n"
EXEC_ABORT = b"-EXECABORT Transaction discarded because of "
SUBSCRIBING = {b"SUBSCRIBE", b"PSUBSCRIBE", b"SSUBSCRIBE", b"UNSUBSCRIBE", b"PUNSUBSCRIBE", b"SUNSUBSCRIBE"}
# What a subscriber may say in RESP2.
_ALLOWED = SUBSCRIBING | {b"PING", b"QUIT", b"RESET"}
_COUNTS = {
    b"SET": 3, b"MULTI": 1, b"EXEC": 1, b"DISCARD": 1, b"UNWATCH": 1, b"WATCH": 2, b"ASKING": 1, b"MONITOR": 1,
    b"WAIT": 3,
}  # fmt: skip
# What keeps its connection for something that no other session may see. (CLIENT ID does not. It is taken as if.)
_KEEPS = {b"STRANGE", b"MONITOR"}


class State(NamedTuple):
    """What Redis holds for a connection."""

    identity: Identity
    name: bytes
    queue: tuple[list[bytes], ...] | None = None  # None: no transaction is open
    aborted: bool = False  # ... or it is, and EXEC will refuse
    watching: bool = False
    asking: bool = False
    subscriptions: tuple[tuple[bytes, bytes], ...] = ()  # in order: b"", b"p" or b"s", and the channel
    monitors: bool = False
    kept: bool = False
    muted: bool = False  # CLIENT REPLY OFF
    over: bool = False  # it closes

    @property
    def clean(self) -> bool:
        """Whether the connection is as it was when it was dialled."""
        return self == State(self.identity, self.name)

    @property
    def cleaned(self) -> State:
        """With the transaction over."""
        return self._replace(queue=None, aborted=False, watching=False)

    @property
    def restricted(self) -> bool:
        """Whether next to nothing may be asked, for being subscribed."""
        return bool(self.subscriptions) and self.identity.protocol == 2


class Rules(NamedTuple):
    """What the server allows."""

    passwords: frozenset[bytes]
    pings: bool = True
    swaps: bool = True  # SWAPDB


def bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def signed(state: State, value: bytes) -> bytes:
    """A value that only this identity can have got as the reply to this request."""
    identity = state.identity
    return b"%b/%b/%d/%d%b:%b" % (
        identity.username or b"", identity.password or b"", identity.database, identity.protocol,
        b"/asking" if state.asking else b"", value,
    )  # fmt: skip


def nil(state: State) -> bytes:
    """The array that is none."""
    return b"_\r\n" if state.identity.protocol == 3 else b"*-1\r\n"


def popped(state: State, key: bytes) -> bytes:
    """What BLPOP says that got an element."""
    return b"*2\r\n" + bulk(key) + bulk(signed(state, key))


def push(state: State, elements: Sequence[bytes | int | None]) -> bytes:
    """What is said to a subscriber: a confirmation or a message."""
    frame = b">%d\r\n" % len(elements) if state.identity.protocol == 3 else b"*%d\r\n" % len(elements)
    for element in elements:
        if element is None:
            frame += b"_\r\n" if state.identity.protocol == 3 else b"$-1\r\n"
        else:
            frame += b":%d\r\n" % element if isinstance(element, int) else bulk(element)
    return frame


def messages(state: State, shard: bool, channel: bytes, payload: bytes) -> list[tuple[bytes, tuple[bytes, bytes]]]:
    """What a connection is sent when something is published, each with the subscription that it is for."""
    frames = []
    for kind, subscribed in [] if state.muted else state.subscriptions:
        if kind == b"p" and not shard and channel.startswith(subscribed.rstrip(b"*")):
            frames.append((push(state, [b"pmessage", subscribed, channel, payload]), (kind, subscribed)))
        elif (kind == b"s") == shard and subscribed == channel:
            frames.append((push(state, [kind + b"message", channel, payload]), (kind, subscribed)))
    return frames


def blocks(state: State, request: list[bytes], rules: Rules) -> bool:
    """Whether there is no reply yet; `answer` tells what it is when the time is over at once."""
    return request[0].upper() in {b"BLPOP", b"WAIT"} and state.queue is None and not _refusal(state, request, rules)


def answer(state: State, request: list[bytes], rules: Rules) -> tuple[bytes, State]:
    """The reply, and what the connection is afterwards."""
    reply, after = _answer(state, request, rules)
    if request[0].upper() != b"ASKING" and after.queue is None:
        after = after._replace(asking=False)
    return b"" if after.muted else reply, after


def _answer(state: State, request: list[bytes], rules: Rules) -> tuple[bytes, State]:  # noqa: PLR0911
    name = request[0].upper()
    if name in {b"QUIT", b"POST"}:
        return b"+OK\r\n" if name == b"QUIT" else b"", state._replace(over=True)
    refusal = _refusal(state, request, rules)
    if refusal and name == b"EXEC":  # Redis: rejectCommand ends the transaction, also where there is none
        return EXEC_ABORT + b": " + refusal, state.cleaned
    if refusal:
        return b"-" + refusal, state._replace(aborted=state.queue is not None)
    if name == b"RESET":
        return b"+RESET\r\n", State(BASE, b"")
    if name in {b"EXEC", b"DISCARD"}:
        return _answer_end(state, name, rules)
    if state.queue is None:
        return _answer_at_once(state, request, rules)
    if name in {b"MULTI", b"WATCH"}:
        return b"-ERR " + name + b" inside MULTI is not allowed\r\n", state
    return b"+QUEUED\r\n", state._replace(queue=(*state.queue, request))


def _refusal(state: State, request: list[bytes], rules: Rules) -> bytes:
    """Why a request is not even looked at."""
    name = request[0].upper()
    if name == b"FROBNICATE":
        return b"ERR unknown command '" + request[0] + b"', with args beginning with: \r\n"
    if _COUNTS.get(name, len(request)) != len(request):
        return b"ERR wrong number of arguments for '" + name.lower() + b"' command\r\n"
    if (name == b"PING" and not rules.pings) or (name == b"SWAPDB" and not rules.swaps):
        return b"NOPERM this user has no permissions to run the '" + name.lower() + b"' command\r\n"
    if name in SUBSCRIBING and b"secrets" in request:
        return b"NOPERM this user has no permissions to access one of the channels used as arguments\r\n"
    if state.restricted and name not in _ALLOWED:
        return b"ERR Can't execute '" + name.lower() + b"': only (P|S)SUBSCRIBE and the like are allowed\r\n"
    return b""


def _answer_end(state: State, name: bytes, rules: Rules) -> tuple[bytes, State]:
    """What ends a transaction."""
    if state.queue is None:
        return b"-ERR " + name + b" without MULTI\r\n", state
    if name == b"DISCARD":
        return b"+OK\r\n", state.cleaned
    if state.aborted:
        return EXEC_ABORT + b"previous errors.\r\n", state.cleaned
    after = state.cleaned
    replies = b"*%d\r\n" % len(state.queue)
    for queued in state.queue:
        reply, after = _answer_at_once(after, queued, rules)
        replies += reply
    return replies, after


def _answer_at_once(  # noqa: C901, PLR0911, PLR0912 (a command each)
    state: State, request: list[bytes], rules: Rules
) -> tuple[bytes, State]:
    match [request[0].upper(), *request[1:]]:
        case [b"PING", *values]:
            return _pong(state, values), state
        case [b"ECHO", value]:
            return bulk(value), state
        case [(b"SET" | b"SWAPDB"), _, _]:
            return b"+OK\r\n", state
        case [b"MULTI"]:
            return b"+OK\r\n", state._replace(queue=(), aborted=False)
        case [(b"WATCH" | b"UNWATCH") as name, *_]:
            return b"+OK\r\n", state._replace(watching=name == b"WATCH")
        case [b"ASKING"]:
            return b"+OK\r\n", state._replace(asking=True)
        case [b"BLPOP", *_]:
            return nil(state), state
        case [b"WAIT", *_]:
            return b":1\r\n", state
        case [(b"AUTH" | b"SELECT" | b"HELLO"), *_]:
            return _answer_identity(state, request, rules)
        case [b"CLIENT", subcommand, *arguments]:
            return _answer_client(state, subcommand.upper(), arguments)
        case [name, *channels] if name in SUBSCRIBING:
            return _answer_subscriber(state, name, channels)
        case [name, *_] if name in _KEEPS:
            return b"+OK\r\n", state._replace(kept=True, monitors=state.monitors or name == b"MONITOR")
        case [name, key, *_]:
            return _answer_data(name, signed(state, key), state.identity.protocol), state
    raise AssertionError(f"the model does not know {request}")


def _pong(state: State, values: list[bytes]) -> bytes:
    if state.restricted:
        return b"*2\r\n" + bulk(b"pong") + bulk(values[0] if values else b"")
    return bulk(values[0]) if values else b"+PONG\r\n"


def _answer_data(name: bytes, value: bytes, protocol: int) -> bytes:  # noqa: PLR0911 (a command each)
    """One type of reply each."""
    match name:
        case b"GET":
            return bulk(value)
        case b"GETRANGE":
            return bulk((value + b"\r\n") * (20_000 // len(value)))
        case b"TYPE":  # a line may have any length
            return b"*2\r\n+" + value * (20_000 // len(value)) + b"\r\n-" + value * (20_000 // len(value)) + b"\r\n"
        case b"LLEN":
            return b"-ERR " + value * (20_000 // len(value)) + b"\r\n"
        case b"LRANGE":
            return b"*3\r\n" + bulk(value) + b"*2\r\n$-1\r\n:7\r\n" + bulk(b"")
        case b"HGETALL":
            return (b"%1\r\n" if protocol == 3 else b"*2\r\n") + bulk(value) + b"+\r\n"
        case b"INCR":
            return b"-ERR " + value + b" is not an integer\r\n"
    raise AssertionError(f"the model does not know {name!r}")


def _answer_identity(state: State, request: list[bytes], rules: Rules) -> tuple[bytes, State]:  # noqa: PLR0911
    identity = state.identity
    match [request[0].upper(), *request[1:]]:
        case [b"SELECT", database]:
            if not database.isdigit():
                return b"-ERR invalid DB index\r\n", state
            if int(database) > 15:
                return NO_SUCH_DATABASE, state
            return b"+OK\r\n", state._replace(identity=identity._replace(database=int(database)))
        case [b"AUTH", *credentials]:
            username, password = credentials if len(credentials) == 2 else (None, credentials[0])
            if password not in rules.passwords:
                return WRONG_PASSWORD, state
            return b"+OK\r\n", state._replace(identity=identity._replace(username=username, password=password))
        case [b"HELLO"]:
            return _hello(identity.protocol), state
        case [b"HELLO", protocol, *options]:
            return _answer_hello(state, int(protocol), options, rules)
    raise AssertionError


def _answer_hello(state: State, protocol: int, options: list[bytes], rules: Rules) -> tuple[bytes, State]:
    name = state.name
    identity = state.identity._replace(protocol=protocol)
    while options:
        if options[0].upper() == b"AUTH":
            _, username, password, *options = options
            if password not in rules.passwords:
                return WRONG_PASSWORD, state
            identity = identity._replace(username=username, password=password)
        elif options[0].upper() != b"SETNAME" or len(options) < 2:
            return HELLO_SYNTAX % options[0], state
        else:
            _, name, *options = options
            if b" " in name:
                return NO_NAME, state
    return _hello(protocol), state._replace(identity=identity, name=name)


def _hello(protocol: int) -> bytes:
    return (b"%1\r\n" if protocol == 3 else b"*2\r\n") + b"$5\r\nproto\r\n:%d\r\n" % protocol


def _answer_client(state: State, subcommand: bytes, arguments: list[bytes]) -> tuple[bytes, State]:  # noqa: PLR0911
    match [subcommand, *arguments]:
        case [b"SETNAME", name]:
            return (NO_NAME, state) if b" " in name else (b"+OK\r\n", state._replace(name=name))
        case [b"GETNAME"]:
            nothing = b"_\r\n" if state.identity.protocol == 3 else b"$-1\r\n"
            return bulk(state.name) if state.name else nothing, state
        case [b"LIST"]:  # a client looks for itself in there
            return bulk(b"name=" + state.name), state
        case [b"ID"]:
            return b":7\r\n", state._replace(kept=True)
        case [b"REPLY", b"OFF"]:
            return b"", state._replace(muted=True)
        case [b"REPLY", b"ON"]:
            return b"+OK\r\n", state._replace(muted=False)
        case [b"MAINT_NOTIFICATIONS", b"OFF"] | [b"UNPAUSE"]:
            return b"+OK\r\n", state
        case [b"MAINT_NOTIFICATIONS", *_]:  # what a client gets from a Redis that has none
            return b"-ERR unknown subcommand 'MAINT_NOTIFICATIONS'. Try CLIENT HELP.\r\n", state
        case [b"SETINFO", _, _]:
            return b"+OK\r\n", state
    raise AssertionError(f"the model does not know CLIENT {subcommand!r}")


def _answer_subscriber(state: State, name: bytes, channels: Sequence[bytes | None]) -> tuple[bytes, State]:
    """A confirmation for each channel, and one at least."""
    kind = name.removesuffix(b"SUBSCRIBE").removesuffix(b"UN").lower()
    leaves = b"UN" in name
    known = state.subscriptions
    if leaves and not channels:
        channels = [channel for other, channel in known if other == kind] or [None]
    confirmations = b""
    for channel in channels:
        if leaves:
            known = tuple(other for other in known if other != (kind, channel))
        elif channel is not None and (kind, channel) not in known:
            known = (*known, (kind, channel))
        count = sum((other == b"s") == (kind == b"s") for other, _ in known)
        confirmations += push(state, [name.lower(), channel, count])
    return confirmations, state._replace(subscriptions=known)
