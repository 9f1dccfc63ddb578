"""The invariants (I1 to I9, see `coalesce/__init__.py`) under any interleaving, with fakes at both ends.

The upstream is a model: `answer` is what a Redis would say to one request, given what the connection runs as. The same
function tells what each client has to get, because a client can't tell the proxy from a connection of its own
(promise 1). So the oracle of a client knows nothing but the bytes that it sent and the bytes that it got.
"""

from __future__ import annotations

from collections import Counter
from functools import wraps
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from coalesce.core.errors import UpstreamError
from coalesce.core.exchange import CONNECTION_NAME, Exchange
from coalesce.core.lane import Identity, Lane, LaneState, Limits
from coalesce.core.session import Session, SessionState

from . import twins

if TYPE_CHECKING:
    from collections.abc import Callable

BASE = Identity(None, None, 0, 2)
LIMITS = Limits(lane=6, client=3)
WRONG_PASSWORD = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"
NO_SUCH_DATABASE = b"-ERR DB index is out of range\r\n"

# --- the model: what Redis says ---


class State(NamedTuple):
    """What Redis holds for a connection."""

    identity: Identity
    name: bytes


def bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def signed(identity: Identity, value: bytes) -> bytes:
    """A value that only this identity can have got as the reply to this request."""
    return b"%b/%b/%d/%d:%b" % (
        identity.username or b"", identity.password or b"", identity.database, identity.protocol, value,
    )  # fmt: skip


def answer(state: State, request: list[bytes], passwords: set[bytes]) -> tuple[bytes, State]:
    """The reply, and what the connection is afterwards. Knows only what may ride a lane."""
    match [request[0].upper(), *request[1:]]:
        case [b"PING"]:
            return b"+PONG\r\n", state
        case [b"ECHO", value]:
            return bulk(value), state
        case [b"SET", _, _]:
            return b"+OK\r\n", state
        case [(b"AUTH" | b"SELECT" | b"HELLO"), *_]:
            return _answer_identity(state, request, passwords)
        case [b"CLIENT", subcommand, *arguments]:
            return _answer_client(state, subcommand.upper(), arguments)
        case [name, key, *_]:
            return _answer_data(name, signed(state.identity, key), state.identity.protocol), state
    raise AssertionError(f"the model does not know {request}")


def _answer_data(name: bytes, value: bytes, protocol: int) -> bytes:
    """One type of reply each."""
    match name:
        case b"GET":
            return bulk(value)
        case b"GETRANGE":
            return bulk((value + b"\r\n") * (20_000 // len(value)))
        case b"LRANGE":
            return b"*3\r\n" + bulk(value) + b"*2\r\n$-1\r\n:7\r\n" + bulk(b"")
        case b"HGETALL":
            return (b"%1\r\n" if protocol == 3 else b"*2\r\n") + bulk(value) + b"+\r\n"
        case b"INCR":
            return b"-ERR " + value + b" is not an integer\r\n"
    raise AssertionError(f"the model does not know {name!r}")


def _answer_identity(state: State, request: list[bytes], passwords: set[bytes]) -> tuple[bytes, State]:
    identity, name = state
    match [request[0].upper(), *request[1:]]:
        case [b"SELECT", database]:
            if int(database) > 15:
                return NO_SUCH_DATABASE, state
            return b"+OK\r\n", State(identity._replace(database=int(database)), name)
        case [b"AUTH", *credentials]:
            username, password = credentials if len(credentials) == 2 else (None, credentials[0])
            if password not in passwords:
                return WRONG_PASSWORD, state
            return b"+OK\r\n", State(identity._replace(username=username, password=password), name)
        case [b"HELLO"]:
            return _hello(identity.protocol), state
        case [b"HELLO", protocol, *options]:
            return _answer_hello(state, int(protocol), options, passwords)
    raise AssertionError


def _answer_hello(state: State, protocol: int, options: list[bytes], passwords: set[bytes]) -> tuple[bytes, State]:
    identity, name = state
    identity = identity._replace(protocol=protocol)
    while options:
        if options[0].upper() == b"AUTH":
            _, username, password, *options = options
            if password not in passwords:
                return WRONG_PASSWORD, state
            identity = identity._replace(username=username, password=password)
        else:
            _, name, *options = options
    return _hello(protocol), State(identity, name)


def _hello(protocol: int) -> bytes:
    return (b"%1\r\n" if protocol == 3 else b"*2\r\n") + b"$5\r\nproto\r\n:%d\r\n" % protocol


def _answer_client(state: State, subcommand: bytes, arguments: list[bytes]) -> tuple[bytes, State]:
    match [subcommand, *arguments]:
        case [b"SETNAME", name]:
            if b" " in name:
                return b"-ERR Client names cannot contain spaces, newlines or special characters.\r\n", state
            return b"+OK\r\n", State(state.identity, name)
        case [b"GETNAME"]:
            nothing = b"_\r\n" if state.identity.protocol == 3 else b"$-1\r\n"
            return bulk(state.name) if state.name else nothing, state
        case [b"MAINT_NOTIFICATIONS", b"OFF"]:
            return b"+OK\r\n", state
        case [b"MAINT_NOTIFICATIONS", *_]:  # what a client gets from a Redis that has none
            return b"-ERR unknown subcommand 'MAINT_NOTIFICATIONS'. Try CLIENT HELP.\r\n", state
        case [b"SETINFO", _, _]:
            return b"+OK\r\n", state
    raise AssertionError(f"no lane carries CLIENT {subcommand!r}")


# --- the fake upstream ---


class Upstream:
    """A lane's connection, and the Redis behind it. Dialled anew it is a new one."""

    def __init__(self, lane: Lane, passwords: set[bytes]) -> None:
        self.lane = lane
        self.state = State(lane.identity, CONNECTION_NAME)
        self.passwords = passwords
        self.busy_after_send = False
        self.received = 0  # requests
        self.replied = 0  # whole replies that the lane has been given
        self.outgoing = b""
        self.begun = b""  # of the reply that the lane has been given a part of

    def send(self, batch: bytes) -> None:
        """Takes a batch; when it can't take all at once, the lane gets no other (I10)."""
        assert self.lane.send == self.send, "a batch for a connection that is gone or busy"
        reading = twins.read_requests(batch)
        assert reading.error is None
        assert not reading.leftover
        assert b"".join(map(twins.canonical, reading.requests)) == batch, "not canonical (I9)"
        for request in reading.requests:
            self.received += 1
            reply, self.state = answer(self.state, request, self.passwords)
            self._check_identity(request)
            self.outgoing += reply
        if self.busy_after_send:
            self.lane.send = None

    def _check_identity(self, request: list[bytes]) -> None:
        assert self.state == State(self.lane.identity, CONNECTION_NAME), f"{request} changed a shared connection"

    @property
    def lacking(self) -> int:
        """Bytes of the reply that the lane has been given a part of."""
        if not self.begun:
            return 0
        return len(twins.split_replies(self.begun + self.outgoing)[0][0]) - len(self.begun)

    def take(self, size: int) -> bytes:
        """The next bytes of its replies."""
        chunk, self.outgoing = self.outgoing[:size], self.outgoing[size:]
        whole, self.begun = twins.split_replies(self.begun + chunk)
        self.replied += len(whole)
        return chunk


# --- the fake client and its oracle ---


class Client:
    """A client's end: what it says, what it gets, and whether that is what it should get."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.tokens = 0
        self.to_say = b""
        self.socket_broken = False
        # Told by the core.
        self.reading = True
        self.closed = False
        self.leased: tuple[Identity, bytes, bytes] | None = None
        # What the oracle knows.
        self.said = b""
        self.reading_of_said = twins.read_requests(b"")
        self.answered = 0  # requests
        self.got = b""  # of the reply that is due next
        self.state = State(BASE, b"")
        self.over = False  # it got its last reply
        self.may_end = False  # it said all it had to say, or the proxy drains
        self.cut_off = False  # it left, was lost or refused: nothing more has to come
        self.session = world.exchange.connect(self)

    def __repr__(self) -> str:
        return f"c{self.number} {self.session!r}"

    # As `Peer`.

    def write(self, data: bytes) -> None:
        assert not self.closed, "a write behind the close"
        assert self.leased is None, "a write behind the lease"
        if self.socket_broken:  # as downstream.Client: it is noticed when something is sent
            self.leaves()
            return
        self.got += data

    write_more = write

    def read(self, wanted: bool) -> None:
        self.reading = wanted

    def close(self) -> None:
        self.closed = True

    def lease(self, identity: Identity, name: bytes, pending: bytes) -> None:
        assert self.leased is None
        self.leased = (identity, name, pending)

    # What it does.

    @property
    def here(self) -> bool:
        return not self.closed and self.leased is None

    def sends(self, size: int) -> None:
        """As much of what it has to say; a client that is not read from says nothing."""
        chunk, rest = self.to_say[:size], self.to_say[size:]
        if chunk and self.here and self.reading:
            self.to_say = rest
            self.said += chunk
            self.reading_of_said = twins.read_requests(self.said)
            self.world.exchange.receive(self.session, chunk)

    def leaves(self) -> None:
        self.cut_off = True
        self.world.exchange.depart(self.session)

    def token(self) -> bytes:
        """A value that nobody else ever sends."""
        self.tokens += 1
        return b"c%d-%d" % (self.number, self.tokens)

    # The oracle.

    @property
    def due(self) -> list[bytes] | None:
        """The request whose reply comes next."""
        requests = self.reading_of_said.requests
        return requests[self.answered] if self.answered < len(requests) else None

    def judge(self) -> None:
        """All that it got is what it should have got (I1, I8).

        If it was closed in good order, nothing is missing (I3).
        """
        while self.got and not self.over:
            request = self.due
            if request is None:
                self._judge_protocol_error()
            elif not self._take_reply(request):
                break
        assert not (self.over and self.got), f"{self} got {self.got[:80]!r} behind its last reply"
        if self.closed and not self.cut_off:
            assert self.over or self._may_be_closed(), f"{self} was closed, {self.due} due"
        if self.leased is not None:
            self._judge_lease(*self.leased)

    def _judge_protocol_error(self) -> None:
        error = self.reading_of_said.error
        assert error is not None, f"{self} got {self.got[:80]!r} without a request"
        assert self.got == error.reply
        self.got = b""
        self.over = True

    def _may_be_closed(self) -> bool:
        if self.due is None:
            return self.may_end and self.reading_of_said.error is None
        return self.due[0].upper() == b"POST"

    def _judge_lease(self, identity: Identity, name: bytes, pending: bytes) -> None:
        """The connection of its own goes on exactly where the lane left off."""
        request = self.due
        assert request is not None
        assert request[0].upper() in LEASING
        assert not self.got
        assert State(identity, name) == self.state
        assert pending == twins.canonical(request) + self.reading_of_said.behind[self.answered]

    def _take_reply(self, request: list[bytes]) -> bool:
        """Moves on by one whole reply; what is there of the next has to be its beginning."""
        possible = self.world.possible_replies(self.state, request)
        for reply, state in possible:
            if self.got.startswith(reply):
                self.got = self.got[len(reply) :]
                self.state = state
                self.answered += 1
                self.over = request[0].upper() == b"QUIT"
                return True
        beginnings = [reply for reply, _ in possible if reply.startswith(self.got)]
        assert beginnings, f"{self} got {self.got[:80]!r} for {request}"
        return False


class World:
    """What clients and upstreams have in common."""

    def __init__(self) -> None:
        self.opened: list[Lane] = []
        self.passwords = {b"good", b"shifty"}
        self.failed: set[Identity] = set()
        self.refused: set[Identity] = set()
        self.exchange = Exchange(BASE, self.opened.append, LIMITS)

    def possible_replies(self, state: State, request: list[bytes]) -> list[tuple[bytes, State]]:
        """Each with what the client is afterwards. Several only where an outage or a changed password allows it."""
        name = request[0].upper()
        if name in LEASING or name == b"POST":
            return []
        if name == b"QUIT":
            return [(b"+OK\r\n", state)]
        if name == b"RESET":
            return [(b"+RESET\r\n", State(BASE, b""))]
        possible = [answer(state, request, passwords) for passwords in ({b"good", b"shifty"}, {b"good"})]
        for identity in {state.identity, _wanted(state, request)}:
            if identity in self.failed:
                possible.append((outage(identity), state))
            if identity in self.refused:
                possible += [(WRONG_PASSWORD, state), (NO_SUCH_DATABASE, state)]
        return possible


def _wanted(state: State, request: list[bytes]) -> Identity:
    """The identity that a request would give, if all passwords and databases were good."""
    if request[0].upper() == b"SELECT":
        return state.identity._replace(database=int(request[1]))
    return answer(state, request, {b"good", b"shifty", b"bad"})[1].identity


def outage(identity: Identity) -> bytes:
    return b"-ERR coalesce: upstream unavailable: outage of " + repr(identity).encode() + b"\r\n"


# --- requests ---

UNIQUE = [[b"ECHO"], [b"GET"], [b"get"], [b"GETRANGE"], [b"lRange"], [b"HGETALL"], [b"incr"], [b"GET"], [b"ECHO"]]
FIXED = [
    [b"PING"], [b"Ping"], [b"SET", b"k", b"\r\n*1\r\n$4\r\nPING\r\n"], [b"SELECT", b"1"], [b"SELECT", b"0"],
    [b"select", b"99"], [b"HELLO", b"3"], [b"HELLO", b"2"], [b"HELLO"], [b"AUTH", b"good"], [b"AUTH", b"u", b"shifty"],
    [b"auth", b"bad"], [b"HELLO", b"3", b"AUTH", b"u", b"good", b"SETNAME", b"n3"],
    [b"HELLO", b"3", b"AUTH", b"u", b"bad", b"SETNAME", b"n4"], [b"HELLO", b"2", b"SETNAME", b"n2"],
    [b"CLIENT", b"SETNAME", b"n1"], [b"CLIENT", b"SETNAME", b""], [b"client", b"setname", b"n 1"],
    [b"CLIENT", b"GETNAME"], [b"CLIENT", b"GETNAME"], [b"CLIENT", b"MAINT_NOTIFICATIONS", b"ON"],
    [b"CLIENT", b"SETINFO", b"LIB-NAME", b"x"], [b"RESET"],
]  # fmt: skip
LAST = [[b"QUIT"], [b"MULTI"], [b"BLPOP", b"k", b"0"], [b"POST", b"/"]]
BROKEN = [b"*1\r\n:5\r\n", b'ECHO "\r\n', b"*01\r\n"]
JUNK = [b">2\r\n+message\r\n+x\r\n", b"HTTP/1.1 400\r\n", b"$x\r\n", b"*1\r\n?\r\n"]
LEASING = {b"MULTI", b"BLPOP"}


def spoken(request: list[bytes], token: bytes, inline: bool) -> bytes:
    """As a client says it. A name alone gets the arguments it needs, of which one is unlike any other."""
    if len(request) == 1 and request in UNIQUE:
        request = [*request, token, b"0", b"-1"] if request[0] in {b"GETRANGE", b"lRange"} else [*request, token]
    if inline and all(argument.isalnum() for argument in request):
        return b" ".join(request) + b"\n"
    return twins.canonical(request)


# --- the machine ---


def step(**strategies: st.SearchStrategy) -> Callable:
    """A rule, after which every invariant is checked."""

    def decorate(method: Callable) -> Callable:
        @wraps(method)
        def checked(self: Proxy, **drawn: object) -> None:
            self.sound = False
            method(self, **drawn)
            self.check()
            self.sound = True

        return rule(**strategies)(checked)

    return decorate


pick = st.integers(0, 11)
sizes = st.one_of(st.just(10**9), st.integers(1, 60))
requests = st.lists(
    st.one_of(st.sampled_from(UNIQUE), st.sampled_from(UNIQUE), st.sampled_from(FIXED)), min_size=1, max_size=5
)
lasts = st.one_of(st.sampled_from(LAST).map(twins.canonical), st.sampled_from(BROKEN))


class Proxy(RuleBasedStateMachine):
    """n clients on one exchange, whose lanes end at model upstreams."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.exchange = self.world.exchange
        self.clients = [Client(self.world, number) for number in range(3)]
        self.upstreams: dict[Lane, Upstream] = {}
        self.now = 0.0
        self.sound = True

    # --- what may happen: clients ---

    @step()
    def connects(self) -> None:
        if not self.exchange.draining and sum(client.here for client in self.clients) < 5:
            self.clients.append(Client(self.world, len(self.clients)))

    def somebody(self, number: int) -> Client | None:
        """One of those who are still here."""
        here = [client for client in self.clients if client.here]
        return here[number % len(here)] if here else None

    @step(who=pick, what=requests, inline=st.booleans(), size=sizes)
    def says(self, who: int, what: list[list[bytes]], inline: bool, size: int) -> None:
        client = self.somebody(who)
        if client is not None:
            client.to_say += b"".join(spoken(request, client.token(), inline) for request in what)
            client.sends(size)

    @step(who=pick, name=st.sampled_from(FIXED))
    def says_one_thing(self, who: int, name: list[bytes]) -> None:
        client = self.somebody(who)
        if client is not None:
            client.to_say += twins.canonical(name)
            client.sends(10**9)

    @step(who=pick, size=sizes)
    def says_more(self, who: int, size: int) -> None:
        client = self.somebody(who)
        if client is not None:
            client.sends(size)

    @step(who=pick, what=lasts, behind=requests, size=sizes)
    def says_last(self, who: int, what: bytes, behind: list[list[bytes]], size: int) -> None:
        client = self.somebody(who)
        if client is not None:
            client.to_say += what + b"".join(spoken(request, client.token(), inline=False) for request in behind)
            client.sends(size)

    @step(who=pick)
    def ends_its_input(self, who: int) -> None:
        client = self.somebody(who)
        if client is not None and client.reading:
            client.may_end = True
            self.exchange.end_of_input(client.session)

    @step(who=pick)
    def departs(self, who: int) -> None:
        client = self.somebody(who)
        if client is not None:
            client.leaves()

    @step(who=pick)
    def breaks(self, who: int) -> None:
        """Nobody notices before the next write."""
        client = self.somebody(who)
        if client is not None:
            client.socket_broken = True

    # --- what may happen: upstreams ---

    def some_lane(self, number: int, *states: LaneState) -> Lane | None:
        lanes = [lane for lane in self.exchange.lanes.values() if lane.state in states]
        return lanes[number % len(lanes)] if lanes else None

    @step(which=pick, far=st.booleans())
    def dials(self, which: int, far: bool) -> None:
        lane = self.some_lane(which, LaneState.DIALLING, LaneState.FAILING)
        if lane is not None:
            self.dial(lane, 1e-3 if far else 1e-5)

    def dial(self, lane: Lane, round_trip: float) -> None:
        """What the handshake would come to."""
        password = lane.identity.password
        if password is not None and password not in self.world.passwords:
            self.refuse(lane, WRONG_PASSWORD)
        elif lane.identity.database > 15:
            self.refuse(lane, NO_SUCH_DATABASE)
        else:
            upstream = self.upstreams[lane] = Upstream(lane, self.world.passwords)
            self.exchange.connected(lane, upstream.send, round_trip)

    def refuse(self, lane: Lane, reply: bytes) -> None:
        self.world.refused.add(lane.identity)
        for client in self.clients:
            if client.session in lane.sessions:
                client.cut_off = True
        self.exchange.refuse(lane, reply)

    @step(which=pick)
    def fails(self, which: int) -> None:
        lane = self.some_lane(which, LaneState.DIALLING)
        if lane is not None:
            self.world.failed.add(lane.identity)
            self.exchange.fail(lane, f"outage of {lane.identity!r}")

    @step(which=pick)
    def loses(self, which: int) -> None:
        lane = self.some_lane(which, LaneState.READY)
        if lane is not None:
            self.lose(lane)

    def lose(self, lane: Lane) -> None:
        """Who has a request in flight on the connection goes with it, and nobody else."""
        doomed = {_session_of(caller) for caller in lane.in_flight}
        stay = [client for client in self.clients if client.here and client.session not in doomed]
        for client in self.clients:
            if client.session in doomed:
                client.cut_off = True
        del self.upstreams[lane]
        self.exchange.lose(lane)
        assert not lane.in_flight
        assert not [client for client in self.clients if client.here and client.session in doomed]
        assert all(client.here for client in stay)

    @step(which=pick)
    def retires(self, which: int) -> None:
        lane = self.some_lane(which, LaneState.READY, LaneState.FAILING)
        if lane is not None and lane.identity != BASE and not lane.sessions and not lane.owed:
            self.upstreams.pop(lane, None)
            self.exchange.retire(lane)

    @step(which=pick, size=sizes)
    def replies(self, which: int, size: int) -> None:
        lane = self.some_lane(which, LaneState.READY)
        if lane is not None:
            self.reply(lane, size)

    def reply(self, lane: Lane, size: int) -> None:
        chunk = self.upstreams[lane].take(size)
        if chunk:
            self.exchange.replies(lane, chunk, self.now)

    @step(which=pick, junk=st.sampled_from([*JUNK, None]), size=sizes)
    def desyncs(self, which: int, junk: bytes | None, size: int) -> None:
        """The upstream says what it should not, at the end of a reply; None is a reply that nobody asked for."""
        lane = self.some_lane(which, LaneState.READY)
        if lane is None:
            return
        upstream = self.upstreams[lane]
        chunk = upstream.take(10**9 if junk is None else size)
        chunk += upstream.take(upstream.lacking)
        for client in self.clients:
            if client.session in {_session_of(caller) for caller in lane.in_flight}:
                client.cut_off = True
        others = [client for client in self.clients if client.here and not client.cut_off]
        with pytest.raises(UpstreamError):
            self.exchange.replies(lane, chunk + (junk or b"+SURPLUS\r\n"), self.now)
        self.lose(lane)
        assert all(client.here for client in others)

    @step(which=pick)
    def stops_taking(self, which: int) -> None:
        """The next batch does not fit the socket at once."""
        lane = self.some_lane(which, LaneState.READY)
        if lane is not None:
            self.upstreams[lane].busy_after_send = True

    @step(which=pick)
    def takes_again(self, which: int) -> None:
        lane = self.some_lane(which, LaneState.READY)
        if lane is not None:
            self.take_again(lane)

    def take_again(self, lane: Lane) -> None:
        upstream = self.upstreams[lane]
        upstream.busy_after_send = False
        lane.send = upstream.send

    @step()
    def changes_its_mind_on_a_password(self) -> None:
        self.world.passwords ^= {b"shifty"}

    # --- what may happen: the proxy ---

    @step(later=st.sampled_from([1e-6, 2e-3]))
    def flushes(self, later: float) -> None:
        self.flush(later)

    def flush(self, later: float) -> None:
        self.now += later
        self.exchange.flush(self.now)
        for lane in self.exchange.dirty:
            assert lane.state is not LaneState.CLOSED, f"{lane!r} is never forgotten"
            if lane.callers:  # nobody flushes again before the next event, which may be far
                assert lane.state is not LaneState.FAILING, f"{lane!r}: a request waits for its error"
                assert lane.send is None or lane.in_flight, f"{lane!r}: a lone request waits (promise 5)"

    @step()
    def passes_a_moment(self) -> None:
        """What usually happens: all are connected, all is sent, all is answered."""
        self.round()

    def round(self) -> None:
        for lane in list(self.exchange.lanes.values()):
            if lane.state in {LaneState.DIALLING, LaneState.FAILING}:
                self.dial(lane, 1e-5)
        for lane in list(self.upstreams):
            self.take_again(lane)
        self.flush(1.0)
        for lane in list(self.upstreams):
            self.reply(lane, 10**9)

    @step(sure=st.integers(0, 9))
    def drains(self, sure: int) -> None:
        if sure == 9:
            for client in self.clients:
                client.may_end = True
            self.exchange.drain()

    # --- what always holds ---

    def check(self) -> None:
        self.check_lanes()
        self.check_sessions()
        for client in self.clients:
            client.judge()

    def check_lanes(self) -> None:
        for lane in self.world.opened:
            upstream = self.upstreams.get(lane)
            expected = upstream.received - upstream.replied if upstream is not None else 0
            assert len(lane.in_flight) == expected, f"{lane!r}: an entry left without its reply (I4)"
            unsent = twins.read_requests(b"".join(lane.unsent))
            assert (len(unsent.requests), unsent.leftover) == (len(lane.callers), b""), f"{lane!r} (I2)"
            assert lane in self.exchange.dirty or not lane.callers, f"{lane!r} is not dirty"

    def check_sessions(self) -> None:
        owed: Counter[Session] = Counter()
        places: dict[Session, set[Lane]] = {}
        for lane in self.world.opened:
            for caller in [*lane.in_flight, *lane.callers]:
                session = _session_of(caller)
                owed[session] += 1
                places.setdefault(session, set()).add(lane)
        for client in self.clients:
            session = client.session
            assert len(places.get(session, ())) <= 1, f"{client} is owed replies on two lanes (I6)"
            if client.here:  # nobody counts for those who are gone
                assert session.owed == owed[session], f"{client}: {owed[session]} places in FIFOs"
                self.check_progress(client)
            else:
                assert session.state in {SessionState.GONE, SessionState.LEASED}
                assert session not in self.exchange.sessions

    def check_progress(self, client: Client) -> None:
        """Whoever waits, waits for something; whoever is read from has room."""
        session = client.session
        assert session in session.lane.sessions
        assert session.lane.state is not LaneState.CLOSED
        assert client.reading == (session.state is SessionState.FLOWING and not session.throttled)
        if session.state is not SessionState.FLOWING:
            assert session.owed, f"{client} waits for nothing"
        elif session.throttled:
            held = [lane for lane in self.world.opened if lane.full and lane.owed and session in lane.waiting]
            assert session.owed or held, f"{client} is never read again"
        else:
            assert not self.exchange.draining, f"{client} goes on in a drain"
            assert session.owed < LIMITS.client, f"{client} is read from, whatever it is owed (promise 6)"

    # --- what holds in the end ---

    def teardown(self) -> None:
        if self.sound:
            self.come_to_rest()
            for client in self.clients:
                client.to_say += twins.canonical([b"GET", client.token()]) if client.here else b""
            self.come_to_rest()

    def come_to_rest(self) -> None:
        """Everybody says what there is to say; afterwards nothing is owed and nobody is stuck (I3)."""
        for _ in range(200):
            for client in self.clients:
                client.sends(10**9)
            self.round()
            self.check()
            if not self.is_busy():
                break
        for lane in self.exchange.lanes.values():
            assert not lane.owed, f"{lane!r} still owes"
        for client in self.clients:
            if client.here:
                assert not self.exchange.draining
                assert client.session.state is SessionState.FLOWING, f"{client} is stuck"
                assert (client.to_say, client.due, client.got) == (b"", None, b""), f"{client} lacks a reply"

    def is_busy(self) -> bool:
        talking = any(client.to_say for client in self.clients if client.here)
        return talking or any(lane.owed for lane in self.exchange.lanes.values())


def _session_of(caller: object) -> Session:
    """A place in the FIFO is the session's own, or stands for one of its requests."""
    return caller if isinstance(caller, Session) else caller._session


Proxy.TestCase.settings = settings(
    max_examples=1000, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestProxy = Proxy.TestCase


# --- what the machine has found, as it printed it ---

EVERYTHING = 10**9


def test_replies_written_before_the_session_goes_on() -> None:
    """A RESET waits for the replies in front of it: also where a rewritten reply lies in one chunk with the next."""
    proxy = Proxy()
    proxy.says(who=0, what=[[b"CLIENT", b"SETNAME", b"n1"], [b"ECHO"]], inline=False, size=EVERYTHING)
    proxy.says_one_thing(who=0, name=[b"RESET"])
    proxy.teardown()


def test_replies_written_before_the_close() -> None:
    proxy = Proxy()
    proxy.says_one_thing(who=0, name=[b"CLIENT", b"SETNAME", b"n1"])
    proxy.says_one_thing(who=0, name=[b"PING"])
    proxy.ends_its_input(who=0)
    proxy.teardown()


def test_replies_written_before_a_lease() -> None:
    proxy = Proxy()
    proxy.says(who=0, what=[[b"CLIENT", b"GETNAME"], [b"GET"]], inline=False, size=EVERYTHING)
    proxy.says_last(who=0, what=twins.canonical([b"MULTI"]), behind=[[b"GET"]], size=EVERYTHING)
    proxy.teardown()


def test_a_throttled_session_is_read_again_when_its_lane_was_full() -> None:
    proxy = Proxy()
    proxy.says(who=0, what=[[b"ECHO"]] * LIMITS.lane, inline=False, size=EVERYTHING)
    proxy.passes_a_moment()
    proxy.teardown()


def test_a_session_that_only_names_itself_is_throttled_too() -> None:
    proxy = Proxy()
    proxy.says(who=0, what=[[b"CLIENT", b"GETNAME"]] * LIMITS.client, inline=False, size=EVERYTHING)
    assert not proxy.clients[0].reading
    proxy.teardown()


def test_reset_of_a_client_whose_socket_is_broken() -> None:
    """The reply is what finds it broken, so the session is gone when the write returns."""
    proxy = Proxy()
    proxy.breaks(who=0)
    proxy.says_one_thing(who=0, name=[b"RESET"])
    proxy.teardown()


def test_a_flush_also_takes_what_its_own_errors_set_free() -> None:
    """Nothing may be left for a flush that comes with the next event, however far that is."""
    proxy = Proxy()
    proxy.fails(which=0)
    proxy.says(who=0, what=[[b"ECHO"], [b"SELECT", b"0"], [b"ECHO"]], inline=False, size=EVERYTHING)
    proxy.flushes(later=1e-6)
    proxy.teardown()


def test_a_flush_also_takes_what_moves_to_another_lane() -> None:
    proxy = Proxy()
    proxy.passes_a_moment()
    proxy.says_one_thing(who=0, name=[b"SELECT", b"1"])
    proxy.passes_a_moment()
    proxy.passes_a_moment()
    proxy.loses(which=1)
    proxy.fails(which=0)
    proxy.says(who=0, what=[[b"ECHO"], [b"RESET"], [b"GET"]], inline=False, size=EVERYTHING)
    proxy.flushes(later=1e-6)
    proxy.teardown()


def test_a_refused_lane_is_forgotten_with_all_its_requests() -> None:
    """Its session asked for what it has already, and goes on when that is refused: on a lane that is closed."""
    proxy = Proxy()
    proxy.says_one_thing(who=0, name=[b"AUTH", b"u", b"shifty"])
    proxy.passes_a_moment()
    proxy.loses(which=1)
    proxy.says(who=0, what=[[b"SELECT", b"0"], [b"GET"]], inline=False, size=EVERYTHING)
    proxy.changes_its_mind_on_a_password()
    proxy.dials(which=1, far=False)
    proxy.flushes(later=1e-6)
    proxy.teardown()
