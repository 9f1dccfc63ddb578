"""What clients say, into `Exchange.receive`, and what comes back: as from a connection of their own.

The oracle of a client is a Redis of its own: the bytes that the client said, read by the plain reader of
`tests/core/twins.py` and answered by `answer`. A reply tells which request it is for (a digest of all of it), and a
client's name is in what it says (0xfc in a script); so a reply that is another's, missing or superfluous, and a request
that is read, split or packed otherwise than Redis reads it, all show in the bytes that the client gets. Upstreams are
made of the same two functions, and check what they are sent: canonical, and nothing on a shared lane that leaves
something behind. In the end the requests that they ran are those that clients made.

The head of an input: how many clients (1 to 4), whether they have to authenticate, small limits, a small bulk limit.
The first byte of a step: who (2 bits), what happens first (3 bits: see `_before`).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from coalesce.core.commands import Need, need_of
from coalesce.core.exchange import Exchange
from coalesce.core.identity import CONNECTION_NAME
from coalesce.core.lane import Lane, LaneState, Limits
from tests.core import model, twins
from tests.core.model import BASE, SUBSCRIBING, WRONG_PASSWORD, Rules, State

from .script import expanded, steps_of

if TYPE_CHECKING:
    from coalesce.core.identity import Identity

NO_LIMITS = Limits(lane=10**9, client=10**9)
SMALL_LIMITS = Limits(lane=6, client=3, lanes=3)
SMALL_BULK = 66_000  # Redis takes no less than 1 MiB for it, and so nothing below an inline command's limit
SECRET = b"nobody can know"
MOST_SAID = 150_000  # bytes, by one client: the twin copies what is left at each request
REPEATED = 4_000  # bytes of a step, and so at most a thousand requests
RULES = Rules(frozenset({b"good"}))
NOT_AUTHENTICATED = b"-NOAUTH Authentication required.\r\n"
_NAME = re.compile(rb"[!-~]*")  # Redis: validateClientName
# What the model has an answer of its own for.
_MODELLED = {
    b"PING", b"MULTI", b"EXEC", b"DISCARD", b"WATCH", b"UNWATCH", b"ASKING", b"WAIT", b"AUTH", b"SELECT", b"HELLO",
    b"CLIENT", b"MONITOR", b"RESET", b"QUIT", b"POST", b"HOST:", b"STRANGE", b"SWAPDB", *SUBSCRIBING,
}  # fmt: skip
# What travels in another form, is answered for the upstream, or is asked by the proxy itself.
_NOT_COUNTED = {b"CLIENT", b"HELLO", b"AUTH", b"SELECT", b"RESET", b"QUIT", b"POST", b"HOST:", b"SWAPDB", b"PING"}


# --- the Redis ---


class Connection(NamedTuple):
    """What a Redis knows of a connection."""

    state: State
    authenticated: bool
    locked: bool  # whether this Redis wants a password


def answer(connection: Connection, request: list[bytes]) -> tuple[bytes, Connection]:
    """The reply, and what the connection is afterwards. `model.answer`, for all that a client may say."""
    state = connection.state
    name = request[0].upper()
    refusal = _refusal(connection, request)
    if refusal:
        if name == b"EXEC":
            return _heard(state, b"-EXECABORT " + refusal), connection._replace(state=state.cleaned)
        aborted = state.aborted or state.queue is not None
        return _heard(state, b"-" + refusal), connection._replace(state=state._replace(aborted=aborted))
    if name in {b"POST", b"HOST:"}:
        return b"", connection._replace(state=state._replace(over=True))
    if name == b"EXEC" and state.queue is not None and not state.aborted:
        reply = b"*%d\r\n" % len(state.queue)
        after = connection._replace(state=state.cleaned)
        for queued in state.queue:
            part, after = _answer_at_once(after, queued)
            reply += part
    elif state.queue is None and name not in {b"EXEC", b"DISCARD", b"QUIT", b"RESET"}:
        reply, after = _answer_at_once(connection, request)
    else:
        reply, changed = model.answer(state, request, RULES)
        still = not connection.locked if name == b"RESET" else connection.authenticated
        after = Connection(changed, still, connection.locked)
    if name != b"ASKING" and after.state.queue is None:
        after = after._replace(state=after.state._replace(asking=False))
    return _heard(after.state, reply), after


def _heard(state: State, reply: bytes) -> bytes:
    return b"" if state.muted else reply


def _refusal(connection: Connection, request: list[bytes]) -> bytes:
    """Why a request is not even looked at."""
    name = request[0].upper()
    state = connection.state
    asks_for_it = name in {b"AUTH", b"QUIT", b"RESET"} or (
        name == b"HELLO" and b"AUTH" in (word.upper() for word in request[2:])
    )
    if not connection.authenticated and not asks_for_it:
        return NOT_AUTHENTICATED[1:]
    if name not in _MODELLED and need_of(request) not in {Need.RIDE, Need.BORROW}:
        return b"ERR unknown command '" + hashlib.sha1(repr(request).encode()).hexdigest().encode() + b"'\r\n"  # noqa: S324
    if (name in SUBSCRIBING and b"UN" not in name and len(request) < 2) or (name == b"RESET" and len(request) > 1):
        return b"ERR wrong number of arguments\r\n"
    if name == b"CLIENT" and len(request) < 2:
        return b"ERR wrong number of arguments\r\n"
    return model._refusal(state, request, RULES)


def _answer_at_once(connection: Connection, request: list[bytes]) -> tuple[bytes, Connection]:
    state = connection.state
    name = request[0].upper()
    if name not in _MODELLED:
        return _digest(state, request), connection
    if name == b"HELLO" and (request[1:2] not in ([b"2"], [b"3"], [])):
        return b"-NOPROTO unsupported protocol version\r\n", connection
    if name == b"SELECT" and (len(request) != 2 or twins._integer(request[1]) is None or b"-" in request[1]):
        return b"-ERR invalid DB index\r\n", connection
    if [word.upper() for word in request[:2]] == [b"CLIENT", b"SETNAME"] and not all(map(_NAME.fullmatch, request[2:])):
        return model.NO_NAME, connection
    try:
        reply, after = model._answer_at_once(state, request, RULES)
    except (AssertionError, ValueError, IndexError, TypeError, KeyError):  # a form that is none
        return b"-ERR syntax error\r\n", connection
    now = connection.authenticated or after.identity.password is not None
    return reply, connection._replace(state=after, authenticated=now)


def _digest(state: State, request: list[bytes]) -> bytes:  # noqa: PLR0911 (a type each)
    """A reply that only this request of this identity gets: its type, too, follows from what was asked."""
    digest = hashlib.sha1(model.signed(state, repr(request).encode())).hexdigest().encode()  # noqa: S324
    match digest[0] % 8:
        case 0:
            return b"+" + digest + b"\r\n"
        case 1:
            return b"-ERR " + digest + b"\r\n"
        case 2:
            return b":%d\r\n" % int(digest[:12], 16)
        case 3:
            return b"*3\r\n" + model.bulk(digest) + b"*1\r\n$-1\r\n:1\r\n"
        case 4 if state.identity.protocol == 3:
            return b"|1\r\n+ttl\r\n:1\r\n%1\r\n" + model.bulk(digest) + b"_\r\n"
        case 5:
            return model.bulk((digest + b"\r\n") * 450)  # large enough to be passed on in pieces
        case _:
            return model.bulk(digest)


class Talk:
    """A Redis of one connection, fed with raw bytes."""

    def __init__(self, state: State, *, locked: bool, bulk_limit: int) -> None:
        authenticated = not locked or state.identity.password is not None
        self.now = Connection(state, authenticated, locked)
        self.ran: list[list[bytes]] = []
        self.raw = b""  # the beginning of a request
        self._bulk_limit = bulk_limit

    @property
    def over(self) -> bool:
        return self.now.state.over

    def feed(self, data: bytes) -> bytes:
        """What it says to that."""
        self.raw += data
        said = bytearray()
        while self.raw and not self.over:
            authenticated = self.now.authenticated
            try:
                request, behind = twins.read_request(self.raw, authenticated=authenticated, bulk_limit=self._bulk_limit)
            except twins.Incomplete:
                break
            except twins.Broken as error:
                said += _heard(self.now.state, error.reply)
                self.now = self.now._replace(state=self.now.state._replace(over=True))
                break
            self.raw = behind
            if request:
                self.ran.append(request)
                reply, self.now = answer(self.now, request)
                said += reply
        return bytes(said)


# --- both ends ---


class Client:
    """A client's end (`Peer`), and the Redis that it would have had to itself."""

    def __init__(self, world: World, number: int) -> None:
        self.name = b"%d" % number
        self.said: list[bytes] = []
        self.written = bytearray()
        self.unread: list[bytes] = []
        self.reading = True
        self.closed = False
        self.left = False
        self.ended = False
        self.pinned: Upstream | None = None
        self._world = world
        self.session = world.exchange.connect(self)

    def write(self, data: bytes) -> None:
        assert not self.closed, "a write behind the close"
        assert self.pinned is None, "a write behind the hand-over"
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
        """That is the matter of test_properties.py."""

    def pin(self, lane: Lane, pending: bytes) -> None:
        assert not self.closed
        assert lane.state is LaneState.CLOSED
        self.pinned = self._world.upstreams.pop(lane)
        self.pinned.pinned_by = self
        self.pinned.feed(pending)

    def says(self, data: bytes) -> None:
        if data and not self.left and not self.ended and sum(map(len, self.said)) + len(data) < MOST_SAID:
            self.said.append(data)
            self.unread.append(data)

    def reads_on(self) -> bool:
        """Hands over the next chunk, if somebody takes it."""
        if not self.unread or self.closed or not (self.reading or self.pinned):
            return False
        data = self.unread.pop(0)
        if self.pinned is not None:
            self.pinned.feed(data)
        else:
            self._world.exchange.receive(self.session, data)
        return True

    def leaves(self) -> None:
        if not self.left and not self.closed:
            self.left = True
            if self.pinned is None:
                self._world.exchange.depart(self.session)
            else:
                self.closed = True
                self._world.exchange.leases.unpin()


class Upstream:
    """A lane's connection (`Link`), with the Redis behind it."""

    def __init__(self, world: World, lane: Lane) -> None:
        self.lane = lane
        state = State(lane.identity, b"" if lane.exclusive else CONNECTION_NAME)
        self.talk = Talk(state, locked=world.locked, bulk_limit=world.bulk_limit)
        self.replies = b""
        self.pinned_by: Client | None = None
        self._world = world

    def send(self, batch: bytes) -> None:
        before = len(self.talk.ran)
        self.replies += self.talk.feed(batch)
        requests = self.talk.ran[before:]
        assert b"".join(map(twins.canonical, requests)) == batch, "not canonical (I9)"
        assert not self.talk.over, "the upstream closes a lane"
        if not self.lane.exclusive:
            assert self.talk.now.state == State(self.lane.identity, CONNECTION_NAME), "something is left on a lane"
            needs = {need_of(request) for request in requests}
            assert needs <= {Need.RIDE, Need.CLIENT_STATE, Need.IDENTITY, Need.TRANSACTION, Need.BORROW}
            assert {
                request[0].upper() for request in requests if need_of(request) in {Need.TRANSACTION, Need.BORROW}
            } <= {b"MULTI", b"EXEC"}

    def feed(self, data: bytes) -> None:
        """What a pinned client sends, as it is."""
        self.replies += self.talk.feed(data)

    def hang_up(self) -> None:
        assert self._world.upstreams.pop(self.lane) is self
        self._world.exchange.lose(self.lane)


class World:
    """Clients and upstreams of one exchange."""

    def __init__(self, *, clients: int, locked: bool, limits: Limits, bulk_limit: int) -> None:
        self.locked = locked
        self.bulk_limit = bulk_limit
        self.opened: list[Lane] = []
        self.upstreams: dict[Lane, Upstream] = {}
        self.all_upstreams: list[Upstream] = []
        self.now = 0.0
        self.exchange = Exchange(BASE, self.opened.append, limits, lambda: SECRET)
        self.exchange.bulk_limit = bulk_limit
        self.clients = [Client(self, number) for number in range(clients)]

    def talk(self) -> Talk:
        """What a client would have to itself."""
        return Talk(State(BASE, b""), locked=self.locked, bulk_limit=self.bulk_limit)

    def dial(self) -> bool:
        """Connects all lanes that are not."""
        opened = bool(self.opened)
        while self.opened:
            lane = self.opened.pop(0)
            if lane.state is not LaneState.DIALLING:
                continue
            if lane.exclusive and lane not in self.exchange.leases.of:
                continue  # nobody waits for it any more
            refusal = _refused(lane.identity)
            if refusal and lane.exclusive:
                self.exchange.lease_failed(lane, refusal)
            elif refusal:
                self.exchange.refuse(lane, refusal)
            else:
                upstream = self.upstreams[lane] = Upstream(self, lane)
                lane.authenticated = upstream.talk.now.authenticated
                self.all_upstreams.append(upstream)
                self.exchange.connected(lane, upstream, 0.0)
        return opened

    def flush(self, later: float = 1.0) -> None:
        self.now += later
        self.exchange.flush(self.now)

    def deliver(self, most: int) -> bool:
        """What upstreams have said reaches their lanes, so many bytes at the most; whether there was any."""
        some = False
        for upstream in list(self.all_upstreams):
            chunk, upstream.replies = upstream.replies[:most], upstream.replies[most:]
            client = upstream.pinned_by
            some |= bool(chunk)
            if client is not None:
                client.written += chunk if not client.closed else b""
                if upstream.talk.over and not upstream.replies and not client.closed:
                    client.closed = True
                    self.exchange.leases.unpin()
            elif chunk and upstream.lane in self.upstreams:
                self.exchange.replies(upstream.lane, chunk, self.now)
        return some

    def settle(self) -> None:
        """All is connected, sent, answered, read, until nothing happens any more."""
        for _ in range(100_000):
            moved = self.dial()
            for client in self.clients:
                moved |= client.reads_on()
            self.flush()
            moved |= self.deliver(10**9)
            if not (moved or self.exchange.dirty or self.opened):
                return
        raise AssertionError("it never comes to an end")


def _refused(identity: Identity) -> bytes:
    """What the handshake of a lane comes to."""
    if identity.password is not None and identity.password not in RULES.passwords:
        return WRONG_PASSWORD
    return model.NO_SUCH_DATABASE if identity.database > 15 else b""


# --- the target ---


def play(script: bytes) -> None:
    """AssertionError, or whatever is raised, where somebody gets, or is asked, what does not follow from the bytes."""
    if len(script) < 3:
        return
    head = script[0]
    world = World(
        clients=1 + head % 4,
        locked=bool(head & 4),
        limits=SMALL_LIMITS if head & 8 else NO_LIMITS,
        bulk_limit=SMALL_BULK if head & 16 else 512 * 1024 * 1024,
    )
    world.dial()
    for step in steps_of(script[2:])[:60]:
        client = world.clients[(step.how & 3) % len(world.clients)]
        _before(world, client, step.how >> 2 & 7)
        client.says(expanded(step.data, client.name, REPEATED))
        client.reads_on()
    world.settle()
    for client in world.clients:
        _judge(world, client)
    _check_what_ran(world)


def _before(world: World, client: Client, what: int) -> None:
    match what:
        case 1:
            world.settle()
        case 2:
            world.flush(1e-6)
        case 3:
            world.dial()
            world.flush()
            world.deliver(7)
        case 4:
            world.deliver(10**9)
        case 5:
            world.deliver(20)
        case 6 if client.pinned is None and not client.closed and client.reading and not client.unread:
            client.ended = True
            world.exchange.end_of_input(client.session)
        case 7:
            client.leaves()


def _judge(world: World, client: Client) -> None:
    """It got what a Redis of its own would have said to what it said, all of it, and nothing else."""
    # Whether a line is too long, or ends, depends on when Redis looks: after each chunk, or when all has come.
    talks = [world.talk(), world.talk()]
    expected = [talks[0].feed(b"".join(client.said)), b"".join(map(talks[1].feed, client.said))]
    written = bytes(client.written)
    if client.left or (client.ended and _may_block(talks[0].ran)):
        assert any(each.startswith(written) for each in expected), f"got {written!r} of {expected[0]!r}"
        return
    assert written in expected, f"got {written!r}, not {expected[0]!r}"
    own = talks[expected.index(written)]
    if client.ended and client.pinned is not None:
        return  # the upstream is told, and decides
    assert client.closed == (own.over or client.ended)
    assert client.closed or not client.unread, "never read"
    if not client.closed and client.pinned is None:
        assert client.session.owed == 0


def _may_block(requests: list[list[bytes]]) -> bool:
    return any(need_of(request) in {Need.BORROW, Need.WAIT} for request in requests)


def _check_what_ran(world: World) -> None:
    """Upstreams ran what clients asked for, once, and nothing else."""
    ran = Counter(_key(request) for upstream in world.all_upstreams for request in upstream.talk.ran)
    asked: Counter[tuple[bytes, ...]] = Counter()
    unsure = False
    for client in world.clients:
        own = world.talk()
        own.feed(b"".join(client.said))
        asked.update(map(_key, own.ran))
        unsure |= client.left or client.ended
    del ran[()], asked[()]
    assert ran <= asked, f"nobody asked for {ran - asked}"
    assert unsure or ran == asked, f"never ran: {asked - ran}"


def _key(request: list[bytes]) -> tuple[bytes, ...]:
    return () if request[0].upper() in _NOT_COUNTED else tuple(request)
