"""The invariants (I1 to I9, see `coalesce/__init__.py`) under any interleaving, with fakes at both ends.

The upstream is a model: `model.answer` is what a Redis would say to one request, given what the connection is in the
middle of. The same function tells what each client has to get, because a client can't tell the proxy from a connection
of its own. So the oracle of a client knows nothing but the bytes that it sent and the bytes that it got,
and which messages the model sent to the connection that it had.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict, deque
from functools import wraps
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

import coalesce.core.exchange as exchange_module
from coalesce.core import large as large_lanes
from coalesce.core import leased
from coalesce.core.errors import UNMARKED, UpstreamError, no_lease
from coalesce.core.exchange import Exchange
from coalesce.core.held import Large
from coalesce.core.identity import CONNECTION_NAME, Identity
from coalesce.core.lane import Lane, LaneState, Limits
from coalesce.core.ledger import Kind, Outcomes
from coalesce.core.moves import Moving
from coalesce.core.session import Session, SessionState
from coalesce.core.stream import Verdict

from . import model, twins
from .model import BASE, NO_SUCH_DATABASE, SUBSCRIBING, WRONG_PASSWORD, Rules, State, nil, popped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from coalesce.core.lane import Caller
    from coalesce.core.lease import Lease

LIMITS = Limits(lane=6, client=3, lanes=5, leases=2)
SECRET = b"nobody knows"
OUR_PING = [b"PING", SECRET]
OUR_HELLOS = [[b"HELLO", protocol, SECRET] for protocol in (b"2", b"3")]
PATIENCE = 1.5  # seconds that a session waits for a lease
BLOCKING = {b"BLPOP", b"WAIT"}
HELD_LIMIT = 200  # bytes
LARGE = 18  # bytes of a request's arguments: some of SET, ECHO, GETRANGE


@pytest.fixture(scope="module", autouse=True)
def small_limits() -> Iterator[None]:
    """So that they are reached."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchange_module, "HELD_LIMIT", HELD_LIMIT)
        patch.setattr(exchange_module, "LARGE", LARGE)
        patch.setattr(leased, "LARGE", LARGE)
        yield


# --- the fake upstream ---


def _authenticates(request: list[bytes]) -> bool:
    return b"AUTH" in [argument.upper() for argument in request[: 3 if request[0].upper() == b"HELLO" else 1]]


class Upstream:
    """A lane's connection (`Link`), and the Redis behind it. Dialled anew it is a new one."""

    def __init__(self, lane: Lane, world: World, pings: bool) -> None:
        self.lane = lane
        self.state = State(lane.identity, b"" if lane.exclusive else CONNECTION_NAME)
        self.pings = pings
        self.busy_after_send = False
        self.received = 0  # requests of the FIFO
        self.replied = 0  # whole replies that the FIFO has been given
        self.outgoing = b""
        self.begun = b""  # of the reply that the FIFO has been given a part of
        self.inbox: deque[tuple[list[bytes], Session | None]] = deque()  # None: of the proxy itself
        self.blocked: list[bytes] | None = None  # the request that blocks
        self.conflict = False  # a watched key was changed
        self.marked = -1  # how many writes there had been when this connection wrote
        self.user: Session | None = None  # who was served last
        self.pinned_by: Client | None = None
        self._raw = b""  # what a pinned client sent of its next request
        self._broken: twins.Broken | None = None  # it said what is no request
        self._input_ended = False
        self._world = world
        if not lane.exclusive and not lane.large:
            world.generations[lane.identity] += 1
        world.standing.append(self)
        self.old = False  # from before the end of a pause
        self.generation = world.generations[lane.identity]  # each may have other data: see `Exchange._outdate`

    @property
    def owes(self) -> bool:
        return bool(self.outgoing or self.inbox or self.blocked)

    @property
    def lease(self) -> Lease | None:
        return self._world.exchange.leases.of.get(self.lane)

    @property
    def rules(self) -> Rules:
        return self._world.rules._replace(pings=self.pings)

    def send(self, batch: bytes) -> None:
        """Takes a batch; when it can't take all at once, the lane gets no other (I10)."""
        assert self.lane.send == self.send, "a batch for a connection that is gone or busy"
        assert not self.old, "a batch for an upstream that may have been replaced"
        assert self.lane.exclusive or not self._world.exchange.paused, "a batch in a pause"
        reading = twins.read_requests(batch)
        assert reading.error is None
        assert not reading.leftover
        assert b"".join(map(twins.canonical, reading.requests)) == batch, "not canonical (I9)"
        if not self.lane.exclusive:
            behind = reading.requests if self.owes else reading.requests[1:]
            assert not any(map(_authenticates, behind)), "a failed AUTH behind others is not answered"
        lease = self.lease
        if lease is not None and lease.stream is not None:
            assert not self.lane.in_flight
            callers = [None if request == OUR_PING else lease.session for request in reading.requests]
        else:
            self.received += len(reading.requests)
            places = list(self.lane.in_flight)[-len(reading.requests) :]
            self._world.sent[self.lane].update(places)
            callers = [_session_of(caller) for caller in places]
        if lease is not None:
            self._serve(lease.session)
            assert set(callers) <= {lease.session, None}
        self.inbox += zip(reading.requests, callers, strict=True)
        self.run()
        assert self.lane.exclusive or self.state.clean, "something is left on a shared connection"
        if self.busy_after_send:
            self.lane.send = None

    def _serve(self, session: Session | None) -> None:
        """Whoever comes next finds the connection as if it had been dialled for them."""
        if session is not self.user:
            late = self._world.exchange.paused and session not in self._world.lent_before
            assert not late, f"{session!r} is lent a connection in a pause"
            assert self.state.clean, f"{session!r} is lent {self.state}"
            assert not self.owes, f"{session!r} is lent a connection that is still busy"
            assert not self.begun
            self.user = session
            self.marked = -1

    def hang_up(self) -> None:
        assert self._world.upstreams.pop(self.lane) is self
        assert self.lane.exclusive or self.lane.large
        self._world.exchange.lose(self.lane)

    def fail(self, fault: Exception) -> None:
        raise fault

    # A connection that a client kept.

    def feed(self, data: bytes) -> None:
        """What the client sends, as it is."""
        assert self.pinned_by is not None
        self._raw += data
        if self._broken is None:
            reading = twins.read_requests(self._raw)
            self._raw, self._broken = reading.leftover, reading.error
            self.inbox += [(request, self.pinned_by.session) for request in reading.requests]
            self.run()

    def end_input(self) -> None:
        """The client sends no more: what blocks is given up, and once all has been answered it is over."""
        self._input_ended = True
        self.run()
        if self.pinned_by is not None and self.blocked is not None:
            self.pinned_by.cut_off = True

    # The Redis.

    def unblock(self, element: bool) -> None:
        """What blocks gets its element, or its time is over; what stood behind it goes on."""
        request, self.blocked = self.blocked, None
        assert request is not None
        if request[0].upper() == b"WAIT":
            self.say(b":1\r\n" if self.marked >= self._client.last_write or self.pinned_by else b":999\r\n")
        else:
            self.say(popped(self.state, request[1]) if element else nil(self.state))
        self.state = self.state._replace(asking=False)
        self.run()

    def say(self, reply: bytes) -> None:
        self.outgoing += b"" if self.state.muted else reply

    def publish(self, shard: bool, channel: bytes, payload: bytes) -> None:
        for frame, subscription in model.messages(self.state, shard, channel, payload):
            self.outgoing += frame
            self._client.messages.append((frame, subscription))

    def show(self, line: bytes) -> None:
        """What MONITOR brings."""
        if self.state.monitors and not self.state.muted:
            self.outgoing += line
            self._client.messages.append((line, None))

    @property
    def _client(self) -> Client:
        assert self.user is not None
        return self._world.client_of[self.user]

    def run(self) -> None:
        while self.inbox and self.blocked is None and not self.state.over:
            request, session = self.inbox.popleft()
            if not self.lane.exclusive:
                assert self.state.clean or session is self.user, f"{request} of {session!r} in another's transaction"
                self.user = session
            if self.pinned_by is None:
                self._check_request(request, session)
            if session is not None:
                self._world.client_of[session].runs(request)
                self._check_generation(session)
            if model.blocks(self.state, request, self.rules):
                assert self.lane.exclusive, "others wait behind a request that blocks"
                self.blocked = request
                break
            self._answer(request)
        if self._broken is not None and not self.inbox and self.blocked is None and not self.state.over:
            self.say(self._broken.reply)
            self.state = self.state._replace(over=True)
        if self._input_ended and (self.blocked or not self.inbox):
            self.state = self.state._replace(over=True)

    def _answer(self, request: list[bytes]) -> None:
        before = self.state
        reply, self.state = model.answer(before, request, self.rules)
        if self.conflict and before.queue is not None and reply.startswith(b"*"):
            reply = nil(before)
        self.conflict = self.conflict and self.state.watching
        if not reply.startswith(b"-") and (request[0] == b"SWAPDB" or self.lane.version is not None):
            self.marked = self._world.writes
        if self.lane.exclusive or self.state.queue is None:
            assert self.lane.exclusive or self.state.identity == self.lane.identity, f"{request} moved everybody"
        self.outgoing += reply

    def _check_request(self, request: list[bytes], session: Session | None) -> None:
        """It is run as who asked for it."""
        assert self.state.identity == self.lane.identity, f"{request} runs as {self.state.identity}"
        if session is None and not self.lane.exclusive:
            assert request in (OUR_PING, [b"PING"], [b"HELLO", b"%d" % self.lane.identity.protocol])
        elif session is None:
            assert self.user is not None
            named = [b"HELLO", b"%d" % self.lane.identity.protocol, b"SETNAME", self.user.name]
            ours = [named, OUR_PING, *OUR_HELLOS, [b"SWAPDB", b"0", b"0"], [b"PING"]]
            assert self.lane.exclusive
            assert request in ours
        else:
            name = session.name if self.lane.exclusive else CONNECTION_NAME
            assert self.state.name == name, f"{request} of {session!r} runs under the name {self.state.name!r}"

    def _check_generation(self, session: Session) -> None:
        """Nobody comes back to an older upstream, which lacks what a newer one has said +OK to."""
        client = self._world.client_of[session]
        identity = self.lane.identity
        assert self.generation >= client.generations[identity], f"{client} is back on an older upstream"
        client.generations[identity] = self.generation

    @property
    def lacking(self) -> int:
        """Bytes of the reply that the lane has been given a part of."""
        if not self.begun:
            return 0
        return len(twins.split_replies(self.begun + self.outgoing)[0][0]) - len(self.begun)

    def _next_size(self) -> int:
        """Of the next whole reply or message; all of it, where it has been begun."""
        frames = b"*" + self.outgoing[1:] if self.outgoing.startswith(b">") else self.outgoing
        try:
            return len(twins.split_replies(frames)[0][0])
        except (twins.NoReply, IndexError):
            return len(self.outgoing)

    def take(self, size: int) -> bytes:
        """The next bytes of its replies; of size 0, all of the next reply or message."""
        if not size:
            size = self.lacking or self._next_size()
        chunk, self.outgoing = self.outgoing[:size], self.outgoing[size:]
        if self.pinned_by is None and (self.lease is None or self.lease.stream is None):
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
        self.half_closed = False
        # Told by the core.
        self.reading = True
        self.heeds_end = False
        self.held = 0
        self.closed = False
        self.pinned_to: Upstream | None = None
        # What the oracle knows.
        self.said = b""
        self.reading_of_said = twins.read_requests(b"")
        self.executed = 0  # requests that an upstream has run, or that nobody will
        self.last_write = 0  # of all writes there were
        self.answered = 0  # requests
        self.got = b""  # of the reply that is due next
        self.messages: deque[tuple[bytes, tuple[bytes, bytes] | None]] = deque()  # ... and those on their way
        self.state = State(BASE, b"")
        self.over = False  # it got its last reply
        self.may_end = False  # it said all it had to say, or the proxy drains
        self.waits_since = 0.0  # for a lease, if for anything
        self.cut_off = False  # it left, was lost or refused: nothing more has to come
        self.generations: Counter[Identity] = Counter()  # of the upstreams that have run its requests
        self.session = world.exchange.connect(self)
        world.client_of[self.session] = self

    def __repr__(self) -> str:
        return f"c{self.number} {self.session!r}"

    # As `Peer`.

    def write(self, data: bytes) -> None:
        assert not self.closed or self.socket_broken, "a write behind the close"
        assert self.pinned_to is None, "a write behind the hand-over"
        if self.socket_broken:  # as downstream.Client: it is noticed when something is sent
            self.leaves()
            return
        self.got += data

    write_more = write

    def read(self, wanted: bool, end: bool) -> None:
        self.reading = wanted
        self.heeds_end = end

    def close(self) -> None:
        self.closed = True

    def fail(self, fault: Exception) -> None:
        raise fault

    def hold(self, size: int) -> None:
        assert size != self.held
        self.held = size

    def pin(self, lane: Lane, pending: bytes) -> None:
        assert self.here
        assert lane.state is LaneState.CLOSED
        assert lane not in self.world.exchange.leases.of
        upstream = self.pinned_to = self.world.upstreams.pop(lane)
        self.world.pinned.append(self)
        upstream.user = self.session  # for what is not even a request, nothing may have been sent
        needed = (
            not upstream.state.clean
            or upstream.state.identity != lane.identity
            or not upstream.pings
            or self.half_closed
            or self.world.exchange.draining
            or self.reading_of_said.error is not None
            or re.match(rb"(?i)\*3\r\n\$6\r\nCLIENT\r\n\$5\r\nREPLY|\*[4-9]\r\n\$5\r\nHELLO", pending)
        )
        assert needed, f"{self} keeps a connection for {pending!r}"
        upstream.pinned_by = self
        upstream.feed(pending)
        if self.half_closed:
            upstream.end_input()

    # What it does.

    @property
    def here(self) -> bool:
        """Whether it is the core's."""
        return not self.closed and self.pinned_to is None

    def sends(self, size: int) -> None:
        """As much of what it has to say; a client that is not read from says nothing."""
        chunk, rest = self.to_say[:size], self.to_say[size:]
        if not chunk or self.closed or self.half_closed or (self.here and not self.reading):
            return
        self.to_say = rest
        self.said += chunk
        self.reading_of_said = twins.read_requests(self.said)
        if self.pinned_to is None:
            before = self.session.state
            self.world.exchange.receive(self.session, chunk)
            if before is self.session.state and before in {_S.PINNING, _S.SETTLING}:
                held = self.session.reader.held if self.session.reader is not None else 0
                assert held <= HELD_LIMIT or not self.reading, f"{self} fills our memory, and is read from"
        else:
            self.pinned_to.feed(chunk)

    def ends_its_input(self) -> None:
        if self.here and not self.reading and not self.heeds_end:
            return
        self.may_end = self.half_closed = True
        if self.pinned_to is not None:
            self.pinned_to.end_input()
        elif self.reading:
            # Given up: WAIT unless it is answered at once, others in a pause, where none is.
            self.cut_off |= any(map(self.awaits, BLOCKING if self.world.exchange.paused else {b"WAIT"}))
            self.world.exchange.end_of_input(self.session)
        else:
            self.cut_off |= any(map(self.awaits, BLOCKING))  # given up
            self.world.exchange.end_in_sight(self.session)
            self.half_closed = not self.here  # to be found when it is read from again

    def leaves(self) -> None:
        self.cut_off = True
        if self.pinned_to is None:
            self.world.exchange.depart(self.session)
        else:
            self.loses_its_connection()

    def reads_from_its_connection(self, size: int) -> None:
        """A pinned one."""
        upstream = self.pinned_to
        assert upstream is not None
        chunk = upstream.take(size)
        if chunk and self.socket_broken:
            self.leaves()
            return
        self.got += chunk
        if upstream.state.over and not upstream.outgoing:
            self.loses_its_connection()

    def loses_its_connection(self) -> None:
        """A pinned one."""
        self.closed = True
        self.world.pinned.remove(self)
        self.world.exchange.leases.unpin()

    def comes_to_an_end(self) -> None:
        """Ends what its connection is in the middle of, if it has said everything else."""
        if self.closed or self.to_say or self.due is not None or self.reading_of_said.leftover:
            return
        if self.pinned_to is not None:
            if not self.pinned_to.owes:
                assert (self.got, list(self.messages)) == (b"", []), f"{self} lacks something"
                self.leaves()
        elif self.state.queue is not None:
            self.to_say = twins.canonical([b"DISCARD"])
        elif self.state.subscriptions:
            self.to_say = b"".join(twins.canonical([kind + b"UNSUBSCRIBE"]) for kind in (b"", b"P", b"S"))
        elif self.state.watching:
            self.to_say = twins.canonical([b"UNWATCH"])
        elif self.state.asking:
            self.to_say = twins.canonical([b"GET", self.token()])

    def token(self) -> bytes:
        """A value that nobody else ever sends."""
        self.tokens += 1
        return b"c%d-%d" % (self.number, self.tokens)

    # The oracle.

    def runs(self, request: list[bytes]) -> None:
        """An upstream runs a request of this client: in the order in which they were sent, on whichever connection."""
        requests = self.reading_of_said.requests
        while self.executed < len(requests):
            said = requests[self.executed]
            self.executed += 1
            if said == request or (_rewritten(said) and _rewritten(said) == _rewritten(request)):
                if request[0].upper() == b"SET":
                    self.world.writes += 1
                    self.last_write = self.world.writes
                return
        raise AssertionError(f"{self}: {request} is run out of order (I6), or twice (I7)")

    @property
    def due(self) -> list[bytes] | None:
        """The request whose reply comes next."""
        requests = self.reading_of_said.requests
        return requests[self.answered] if self.answered < len(requests) else None

    def judge(self) -> None:
        """All that it got is what it should have got (I1, I8).

        If it was closed in good order, nothing is missing (I3).
        """
        while not self.over and (self.got or self._is_muted()):
            request = self.due
            if not self._take_message() and not self._take_reply(request):
                break
        assert not (self.over and self.got), f"{self} got {self.got[:80]!r} behind its last reply"
        if self.closed and not self.cut_off:
            assert self.over or self._may_be_closed(), f"{self} was closed, {self.due} due"

    def _is_muted(self) -> bool:
        """Whether the reply that is due is none at all."""
        if self.due is None or self.executed <= self.answered or self.pinned_to is None:
            return False
        return model.answer(self.state, self.due, self.world.rules)[1].muted

    def _take_message(self) -> bool:
        if not self.messages or not self.got.startswith(self.messages[0][0]):
            return False
        frame, subscription = self.messages.popleft()
        self.got = self.got[len(frame) :]
        wanted = self.state.monitors if subscription is None else subscription in self.state.subscriptions
        assert wanted, f"{self} got {frame[:80]!r}, and does not want it"
        return True

    def _take_reply(self, request: list[bytes] | None) -> bool:
        """Moves on by one whole reply; what is there of the next has to be its beginning."""
        if request is None:
            possible = self._possible_without_a_request()
        else:
            possible = self.world.possible_replies(
                self.state, request, in_the_core=self.pinned_to is None, closed=self.closed
            )
        for reply, state in possible:
            if state.over and len(self.got) > len(reply):
                continue  # it would be the last
            if self.got.startswith(reply) and (reply or self._is_muted()):
                self.got = self.got[len(reply) :]
                self.state = state
                self.answered += request is not None
                self.over = state.over
                return True
        expected = [reply for reply, _ in possible] + [frame for frame, _ in list(self.messages)[:1]]
        assert any(reply.startswith(self.got) for reply in expected), f"{self} got {self.got[:80]!r} for {request}"
        return False

    def _possible_without_a_request(self) -> list[tuple[bytes, State]]:
        """What was said is no request, or too much of one: that may need a lease, and not get it."""
        error = self.reading_of_said.error
        if error is None:
            return []
        last = [reply for reply, _ in self.world.possible_refusals(self.state, [b"*"], closed=True)]
        return [(reply, self.state._replace(over=True)) for reply in [error.reply, *last]]

    def _may_be_closed(self) -> bool:
        due = self.due
        if due is not None:
            # (What is before a request that blocks is given up with it, as by `drains`: here it was said after that.)
            endless = due[0].upper() in SUBSCRIBING or any(map(self.awaits, BLOCKING)) or self.state.subscriptions
            return due[0].upper() == b"POST" or (self.world.exchange.draining and endless)
        if self.reading_of_said.error is not None:
            return self.world.exchange.draining or self.state.muted
        return self.may_end

    def awaits(self, name: bytes) -> bool:
        """Whether the reply to such a request is still to come."""
        return any(request[0].upper() == name for request in self.reading_of_said.requests[self.answered :])


def _rewritten(request: list[bytes]) -> list[bytes]:
    """What is left of a request that travels in another form."""
    begin = [argument.upper() for argument in request[:2]]
    is_rewritten = begin in [[b"CLIENT", b"SETNAME"], [b"CLIENT", b"MAINT_NOTIFICATIONS"]] or begin[:1] == [b"HELLO"]
    return begin if is_rewritten else []


class World:
    """What clients and upstreams have in common."""

    def __init__(self) -> None:
        self.opened: list[Lane] = []
        self.upstreams: dict[Lane, Upstream] = {}
        self.pinned: list[Client] = []
        self.client_of: dict[Session, Client] = {}
        self.rules = Rules(frozenset({b"good", b"shifty"}))
        self.silent = False  # some connection may not PING
        self.unmarked = False  # ... or could not SWAPDB
        self.writes = 0
        self.lent_before: set[Session] = set()  # ... the last pause
        self.expired = False
        self.failed: set[Identity] = set()
        self.refused: set[Identity] = set()
        self.generations: Counter[Identity] = Counter()  # connections of the usual lanes
        # What the ledgers are compared with: see `check_ledgers`.
        self.standing: list[Upstream] = []  # connections
        self.in_flight: dict[Lane, Counter[Caller]] = {}
        self.sent: defaultdict[Lane, Counter[Caller]] = defaultdict(Counter)  # since then
        self.gone: set[Session] = set()
        self.unsent_before: Counter[tuple[Kind, int]] = Counter()  # withdrawn, and stranded
        self.counted: dict[Kind, tuple[int, int, Outcomes]] = {}
        self.exchange = Exchange(BASE, self.opened.append, LIMITS, lambda: SECRET)

    def possible_replies(
        self, state: State, request: list[bytes], *, in_the_core: bool, closed: bool
    ) -> list[tuple[bytes, State]]:
        """Each with what the client is afterwards. Several only where an outage or a changed password allows it."""
        name = request[0].upper()
        if name == b"POST" and in_the_core:
            return []
        rules = [Rules(frozenset(passwords)) for passwords in ({b"good", b"shifty"}, {b"good"})]
        if self.silent:
            rules.append(rules[0]._replace(pings=False))
        possible = [model.answer(state, request, each) for each in rules]
        if name == b"EXEC" and state.watching and possible[0][0].startswith(b"*"):
            possible.append((nil(state), possible[0][1]))
        if model.blocks(state, request, rules[0]):
            after = state._replace(asking=False)
            if name == b"BLPOP":
                possible.append((popped(state, request[1]), after))
            elif self.unmarked:
                possible.append((UNMARKED, after))
        if state.clean and in_the_core:  # otherwise, whatever happens to the connection happens to the client
            possible = self.possible_refusals(state, request, closed=closed) + possible
        return possible

    def possible_refusals(self, state: State, request: list[bytes], *, closed: bool) -> list[tuple[bytes, State]]:
        """What the proxy says in the upstream's stead, or takes from another connection's handshake."""
        name = request[0].upper()
        # What is behind it must not run without it, unless it rides, and is refused along with it.
        # (Or it was closed by something else later on: see `_take_reply`.)
        ends = closed and (name in MOVING | {b"MULTI", b"WATCH", b"ASKING", b"*"} or request[1:2] == [b"REPLY"])
        possible = []
        if self.expired and name in BORROWING | MOVING:
            possible.append((no_lease(LIMITS.leases), state))
        for identity in {state.identity, _wanted(state, request)}:
            if identity in self.failed:
                possible.append((outage(identity), state))
            if identity in self.refused:
                possible += [(WRONG_PASSWORD, state), (NO_SUCH_DATABASE, state)]
        return [
            (reply, after._replace(over=over))
            for reply, after in possible
            for over in sorted({ends, False}, reverse=True)
        ]


def _wanted(state: State, request: list[bytes]) -> Identity:
    """The identity that a request would give, if all passwords and databases were good."""
    if request[0].upper() == b"SELECT" and request[1].isdigit():
        return state.identity._replace(database=int(request[1]))
    if request[0].upper() in MOVING:
        return model.answer(state, request, Rules(frozenset({b"good", b"shifty", b"bad"})))[1].identity
    return state.identity


def outage(identity: Identity) -> bytes:
    return b"-ERR coalesce: upstream unavailable: outage of " + repr(identity).encode() + b"\r\n"


# --- requests ---

UNIQUE = [
    [b"ECHO"], [b"GET"], [b"get"], [b"GETRANGE"], [b"lRange"], [b"HGETALL"], [b"incr"], [b"GET"], [b"ECHO"], [b"TYPE"],
    [b"LLEN"],
]  # fmt: skip
FIXED = [
    [b"PING"], [b"Ping"], [b"SET", b"k", b"\r\n*1\r\n$4\r\nPING\r\n"], [b"SELECT", b"1"], [b"SELECT", b"0"],
    [b"select", b"99"], [b"HELLO", b"3"], [b"HELLO", b"2"], [b"HELLO"], [b"AUTH", b"good"], [b"AUTH", b"u", b"shifty"],
    [b"auth", b"bad"], [b"HELLO", b"3", b"AUTH", b"u", b"good", b"SETNAME", b"n3"],
    [b"HELLO", b"3", b"AUTH", b"u", b"bad", b"SETNAME", b"n4"], [b"HELLO", b"2", b"SETNAME", b"n2"],
    [b"CLIENT", b"SETNAME", b"n1"], [b"CLIENT", b"SETNAME", b""], [b"client", b"setname", b"n 1"],
    [b"CLIENT", b"GETNAME"], [b"CLIENT", b"GETNAME"], [b"CLIENT", b"MAINT_NOTIFICATIONS", b"ON"],
    [b"CLIENT", b"SETINFO", b"LIB-NAME", b"x"], [b"RESET"],
]  # fmt: skip
STATEFUL = [
    [b"MULTI"], [b"MULTI"], [b"multi"], [b"EXEC"], [b"EXEC"], [b"exec"], [b"DISCARD"], [b"WATCH", b"k"], [b"UNWATCH"],
    [b"BLPOP"], [b"BLPOP"], [b"blpop"], [b"MULTI", b"x"], [b"EXEC", b"x"], [b"DISCARD", b"x"], [b"WATCH"],
    [b"SET", b"k"], [b"ASKING"], [b"asking"], [b"WAIT", b"1", b"0"], [b"wait", b"1"], [b"CLIENT", b"LIST"],
    [b"CLIENT", b"UNPAUSE"], [b"client", b"unpause"],
]  # fmt: skip
SUBSCRIBER = [
    [b"SUBSCRIBE", b"a"], [b"subscribe", b"a"], [b"SUBSCRIBE", b"a", b"b"], [b"SUBSCRIBE", b"b", b"secrets"],
    [b"PSUBSCRIBE", b"a*"], [b"SSUBSCRIBE", b"a"], [b"ssubscribe", b"a", b"b"], [b"UNSUBSCRIBE"], [b"UNSUBSCRIBE"],
    [b"unsubscribe", b"a"], [b"UNSUBSCRIBE", b"a", b"b"], [b"PUNSUBSCRIBE"], [b"SUNSUBSCRIBE"],
]  # fmt: skip
# Some keep their connection, if the upstream takes them.
PINNING = [
    [b"MONITOR"], [b"STRANGE"], [b"strange"], [b"CLIENT", b"ID"], [b"CLIENT", b"REPLY", b"OFF"], [b"FROBNICATE"],
    [b"frobnicate"], [b"MONITOR", b"x"], [b"SELECT", b"x"], [b"HELLO", b"3", b"SETNAME", b"n 5"],
]  # fmt: skip
LAST = [[b"QUIT"], [b"SUBSCRIBE", b"a"], [b"POST", b"/"], [b"MONITOR"]]
BROKEN = [b"*1\r\n:5\r\n", b'ECHO "\r\n', b"*01\r\n"]
JUNK = [b"HTTP/1.1 400\r\n", b"$x\r\n", b"*1\r\n?\r\n", b">2\r\n+message\r\n+x\r\n"]
BORROWING = SUBSCRIBING | BLOCKING | {
    b"MULTI", b"EXEC", b"DISCARD", b"WATCH", b"ASKING", b"CLIENT", b"MONITOR", b"STRANGE", b"FROBNICATE", b"*",
}  # fmt: skip
MOVING = {b"AUTH", b"SELECT", b"HELLO"}  # which needs a lease in some forms, and where there are lanes enough


def spoken(request: list[bytes], token: bytes, inline: bool) -> bytes:
    """As a client says it. A name alone gets the arguments it needs, of which one is unlike any other."""
    if len(request) == 1 and request in UNIQUE:
        request = [*request, token, b"0", b"-1"] if request[0] in {b"GETRANGE", b"lRange"} else [*request, token]
    elif request in [[b"BLPOP"], [b"blpop"]]:
        request = [*request, token, b"0"]
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
    st.one_of(
        *[st.sampled_from(UNIQUE)] * 2,
        *[st.sampled_from(FIXED), st.sampled_from(STATEFUL), st.sampled_from(SUBSCRIBER)],
    ),
    min_size=1, max_size=5,
)  # fmt: skip
blocks = st.builds(
    lambda before, begin, inside, end: [*before, *begin, *inside, end],
    st.lists(st.sampled_from([[b"CLIENT", b"SETNAME", b"n6"], [b"WATCH", b"k"], [b"GET"]]), max_size=2),
    st.sampled_from([[[b"MULTI"]], [[b"MULTI"]], []]),
    st.lists(st.one_of(st.sampled_from(UNIQUE), st.sampled_from([[b"SET", b"k", b"v"], *STATEFUL])), max_size=3),
    st.sampled_from([[b"EXEC"], [b"EXEC"], [b"exec"], [b"DISCARD"]]),
)
subscriptions = st.lists(
    st.one_of(*[st.sampled_from(SUBSCRIBER)] * 3, st.sampled_from([*UNIQUE, [b"PING"], [b"HELLO", b"3"]])),
    min_size=1, max_size=5,
)  # fmt: skip
# Subscribed to nothing for a moment.
gaps = st.builds(
    lambda begin, end: [*begin, [b"UNSUBSCRIBE"], end],
    st.sampled_from([[[b"SUBSCRIBE", b"a"]], [[b"SUBSCRIBE", b"a"]], []]),
    st.sampled_from([[b"SUBSCRIBE", b"b"], [b"SSUBSCRIBE", b"a"], [b"GET"], [b"GETRANGE"], [b"TYPE"]]),
)
lasts = st.one_of(st.sampled_from(LAST).map(twins.canonical), st.sampled_from(BROKEN))


class Proxy(RuleBasedStateMachine):
    """n clients on one exchange, whose lanes end at model upstreams."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.exchange = self.world.exchange
        self.clients = [Client(self.world, number) for number in range(3)]
        self.upstreams = self.world.upstreams
        self.now = self.resumed_at = 0.0
        self.published = 0
        self.sound = True

    # --- what may happen: clients ---

    @step()
    def connects(self) -> None:
        if not self.exchange.draining and sum(not client.closed for client in self.clients) < 5:
            self.clients.append(Client(self.world, len(self.clients)))

    def somebody(self, number: int) -> Client | None:
        """One of those who are still here, pinned ones too."""
        here = [client for client in self.clients if not client.closed]
        return here[number % len(here)] if here else None

    @step(who=pick, what=requests, inline=st.booleans(), size=sizes)
    def says(self, who: int, what: list[list[bytes]], inline: bool, size: int) -> None:
        client = self.somebody(who)
        if client is not None:
            client.to_say += b"".join(spoken(request, client.token(), inline) for request in what)
            client.sends(size)

    @step(who=pick, what=st.one_of(blocks, subscriptions, gaps), size=sizes)
    def says_what_belongs_together(self, who: int, what: list[list[bytes]], size: int) -> None:
        self.says(who=who, what=what, inline=False, size=size)

    @step(who=pick, name=st.sampled_from([*FIXED, *STATEFUL, *SUBSCRIBER, *PINNING]))
    def says_one_thing(self, who: int, name: list[bytes]) -> None:
        self.says(who=who, what=[name], inline=False, size=10**9)

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
        if client is not None:
            client.ends_its_input()

    @step(who=pick)
    def departs(self, who: int) -> None:
        client = self.somebody(who)
        if client is not None:
            client.leaves()

    @step(who=pick)
    def holds_most(self, who: int) -> None:
        """It is closed, and what it left behind is withdrawn; or that of one who left long ago."""
        if self.clients:
            client = self.clients[who % len(self.clients)]
            if client.pinned_to is None:
                if client.here:
                    client.leaves()
                self.exchange.withdraw(client.session)
                unsent = [it for lane in self.lanes if not lane.exclusive for it in lane.callers]
                assert client.session not in [it.session for it in unsent if isinstance(it, Large) and it._size]

    @step(who=pick)
    def breaks(self, who: int) -> None:
        """Nobody notices before the next write."""
        client = self.somebody(who)
        if client is not None:
            client.socket_broken = True

    @step(which=pick, size=sizes, leaves=st.booleans())
    def talks_to_its_own(self, which: int, size: int, leaves: bool) -> None:
        """One who is pinned; those would soon have all leases if they did not leave often."""
        if self.world.pinned:
            client = self.world.pinned[which % len(self.world.pinned)]
            client.reads_from_its_connection(size)
            if leaves and not client.closed:
                client.leaves()

    # --- what may happen: upstreams ---

    @property
    def lanes(self) -> list[Lane]:
        """All that may have a connection: those that are shared, and those of leases."""
        exclusive = [lane for lane in self.world.opened if lane.exclusive and lane.state is not LaneState.CLOSED]
        return [*self.exchange.lanes.values(), *self.exchange.large_lanes.values(), *exclusive]

    def some_lane(self, number: int, *states: LaneState) -> Lane | None:
        lanes = [lane for lane in self.lanes if lane.state in states]
        return lanes[number % len(lanes)] if lanes else None

    @step(which=pick, far=st.booleans(), pings=st.sampled_from([True, True, False]))
    def dials(self, which: int, far: bool, pings: bool = True) -> None:
        lane = self.some_lane(which, LaneState.DIALLING, LaneState.FAILING)
        if lane is not None:
            self.dial(lane, 1e-3 if far else 1e-5, pings=pings)

    def dial(self, lane: Lane, round_trip: float, *, pings: bool = True) -> None:
        """What the handshake would come to. (For what is large, the shell dials beside the usual lane only.)"""
        if lane.large and self.exchange.lane(lane.identity).state is not LaneState.READY:
            return
        if not lane.exclusive:
            lane.outdated = False
        password = lane.identity.password
        if password is not None and password not in self.world.rules.passwords:
            self.refuse(lane, WRONG_PASSWORD)
        elif lane.identity.database > 15:
            self.refuse(lane, NO_SUCH_DATABASE)
        else:
            self.world.silent |= not pings
            lane.version = (7, 0) if lane.number % 3 == 0 else None
            upstream = self.upstreams[lane] = Upstream(lane, self.world, pings)
            lane.primary = lane.number % 3 == 1  # so it is asked whether it still is one
            self.exchange.connected(lane, upstream, round_trip)

    def refuse(self, lane: Lane, reply: bytes) -> None:
        if lane.large:
            self.exchange.refuse(lane, reply)
            return
        self.world.refused.add(lane.identity)
        if lane.exclusive:
            self.exchange.lease_failed(lane, reply)
            return
        for client in self.clients:
            beside = self.exchange.large_lanes.get(lane.identity)
            if client.here and (client.session in lane.sessions or (beside and client.session in beside.sessions)):
                client.cut_off = True
        self.exchange.refuse(lane, reply)

    @step(which=pick)
    def fails(self, which: int) -> None:
        lane = self.some_lane(which, LaneState.DIALLING)
        if lane is not None and (lane.exclusive or not self.exchange.paused):  # for a pause, the keeper waits
            self.world.failed.add(lane.identity)
            if lane.exclusive:
                self.exchange.lease_failed(lane, outage(lane.identity))
            else:
                self.exchange.fail(lane, f"outage of {lane.identity!r}")

    @step(which=pick)
    def loses(self, which: int) -> None:
        lane = self.some_lane(which, LaneState.READY)
        if lane is not None:
            self.lose(lane)

    def lose(self, lane: Lane) -> None:
        """Who has a request in flight on the connection, or borrowed it, goes with it, and nobody else."""
        doomed = {_session_of(caller) for caller in lane.in_flight}
        lease = self.exchange.leases.of.get(lane)
        if lease is not None and lease.session is not None and lease.session.state is not SessionState.BORROWING:
            doomed.add(lease.session)
        stay = [client for client in self.clients if client.here and client.session not in doomed]
        for client in self.clients:
            if client.session in doomed:
                client.cut_off = True
        del self.upstreams[lane]
        self.exchange.lose(lane)
        assert not lane.in_flight
        assert not [client for client in self.clients if client.here and client.session in doomed]
        assert all(client.here for client in stay)

    @step(which=pick, later=st.sampled_from([1e-6, None]))
    def loses_one_that_was_just_dialled(self, which: int, later: float | None) -> None:
        """Whoever waits for it still does: nothing of theirs has been sent."""
        lanes = [lane for lane in self.lanes if lane.exclusive and lane.state is LaneState.DIALLING]
        if lanes:
            lane = lanes[which % len(lanes)]
            self.dial(lane, 1e-5)
            if later is not None:
                self.flush(later)
            if lane.state is LaneState.READY:
                self.lose(lane)

    @step(which=pick)
    def a_pinned_one_loses_its_connection(self, which: int) -> None:
        if self.world.pinned:
            client = self.world.pinned[which % len(self.world.pinned)]
            client.cut_off = True
            client.loses_its_connection()

    @step(which=pick)
    def retires(self, which: int) -> None:
        lane = self.some_lane(which, LaneState.READY, LaneState.FAILING)
        if lane is None or lane.exclusive:
            return
        beside = not lane.large and lane.identity in self.exchange.large_lanes
        if not self.exchange.is_base(lane) and not lane.sessions and not lane.owed and not beside:
            self.upstreams.pop(lane, None)
            self.exchange.retire(lane)

    @step(which=pick, size=st.one_of(sizes, st.just(0)))
    def replies(self, which: int, size: int) -> None:
        lane = self.some_lane(which, LaneState.READY)
        if lane is not None:
            self.reply(lane, size)

    def reply(self, lane: Lane, size: int) -> None:
        upstream = self.upstreams[lane]
        chunk = upstream.take(size)
        if not chunk:
            return
        lease = upstream.lease
        if upstream.pings:
            self.exchange.replies(lane, chunk, self.now)
            return
        if lease is not None and lease.stream is not None:
            doomed = {lease.stream._session}
        else:
            doomed = {_session_of(caller) for caller in lane.in_flight} - {None}
        before = {client: client.cut_off for client in map(self.world.client_of.__getitem__, doomed)}
        for client in before:
            client.cut_off = True
        try:
            self.exchange.replies(lane, chunk, self.now)
        except UpstreamError:  # our own PING was refused
            self.lose(lane)
        for client, cut_off in before.items():
            client.cut_off = cut_off or client.socket_broken or client.closed

    @step(who=pick)
    def was_given_a_large_reply(self, who: int) -> None:
        client = self.clients[who % len(self.clients)]
        large_lanes.had(self.exchange, client.session)

    @step(which=pick)
    def replies_one_by_one(self, which: int) -> None:
        self.send_all()
        lane = self.some_lane(which, LaneState.READY)
        while lane in self.upstreams and self.upstreams[lane].outgoing:
            self.reply(lane, 0)
            self.check()

    @step(which=pick, junk=st.sampled_from([*JUNK, None]), size=sizes)
    def desyncs(self, which: int, junk: bytes | None, size: int) -> None:
        """The upstream says what it should not, at the end of a reply; None is a reply that nobody asked for."""
        lane = self.some_lane(which, LaneState.READY)
        if lane is None:
            return
        upstream = self.upstreams[lane]
        doomed = {_session_of(caller) for caller in lane.in_flight}
        if upstream.lease is not None and upstream.lease.stream is not None:
            stream = upstream.lease.stream
            if isinstance(stream, Verdict) or stream.opening or junk not in JUNK[:3]:
                return  # it would be passed on
            doomed.add(upstream.user)
            size = 10**9
        elif junk is None:
            if upstream.blocked is not None:
                return  # it would be taken for the reply to what blocks
            size = 10**9
        chunk = upstream.take(size)
        chunk += upstream.take(upstream.lacking)
        for client in self.clients:
            client.cut_off |= client.session in doomed
        others = [client for client in self.clients if client.here and not client.cut_off]
        try:
            self.exchange.replies(lane, chunk + (junk or b"+SURPLUS\r\n"), self.now)
        except UpstreamError:
            pass
        else:
            assert lane not in self.upstreams, "junk is not noticed (I5)"
        if lane in self.upstreams:  # not hung up for want of the one who borrowed it
            self.lose(lane)
        assert all(client.here or client.cut_off for client in others)

    @step(which=pick)
    def looks_for_an_idle_lease(self, which: int) -> None:
        leases = [lane for lane in self.upstreams if lane.exclusive]
        if not leases:
            return
        lane = leases[which % len(leases)]
        lent = self.exchange.leases.of[lane].session is not None
        if self.exchange.lease_is_idle(lane):
            assert not lent
            del self.upstreams[lane]

    def blocked(self) -> list[Upstream]:
        """Those that block, with those that pinned clients have."""
        pinned = [client.pinned_to for client in self.world.pinned if client.pinned_to is not None]
        return [upstream for upstream in [*self.upstreams.values(), *pinned] if upstream.blocked is not None]

    @step(which=pick, element=st.booleans())
    def unblocks(self, which: int, element: bool) -> None:
        blocked = self.blocked()
        if blocked:
            blocked[which % len(blocked)].unblock(element)

    @step()
    def changes_what_is_watched(self) -> None:
        for upstream in self.upstreams.values():
            upstream.conflict = upstream.state.watching

    @step(channel=st.sampled_from([b"a", b"a", b"b"]), shard=st.booleans(), large=st.sampled_from([False, False, True]))
    def publishes(self, channel: bytes, shard: bool, large: bool) -> None:
        self.published += 1
        payload = b"m%d\r\n" % self.published * (3_000 if large else 1)
        pinned = [client.pinned_to for client in self.world.pinned if client.pinned_to is not None]
        for upstream in [*self.upstreams.values(), *pinned]:
            if not upstream.state.over:
                upstream.publish(shard, channel, payload)
                upstream.show(b'+17.%d [0 127.0.0.1:1] "PUBLISH"\r\n' % self.published)

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
        rules = self.world.rules
        self.world.rules = rules._replace(passwords=rules.passwords ^ {b"shifty"})

    @step()
    def changes_its_mind_on_swapdb(self) -> None:
        self.world.rules = self.world.rules._replace(swaps=not self.world.rules.swaps)
        self.world.unmarked = True

    # --- what may happen: the proxy ---

    @step(later=st.sampled_from([1e-6, 2e-3]))
    def flushes(self, later: float) -> None:
        self.flush(later)

    def flush(self, later: float) -> None:
        self.now += later
        self.exchange.flush(self.now)
        for lane in self.exchange.dirty:
            assert lane.state is not LaneState.CLOSED, f"{lane!r} is never forgotten"
            if lane.has_unsent:  # nobody flushes again before the next event, which may be far
                assert lane.state is not LaneState.FAILING, f"{lane!r}: a request waits for its error"
                waits = lane.send is None or lane.in_flight or lane.outdated or self.exchange.paused
                assert waits, f"{lane!r}: a lone request waits"

    @step()
    def pauses(self) -> None:
        for client in self.clients:
            client.cut_off |= client.half_closed and any(map(client.awaits, BLOCKING))
        self.exchange.pause()
        leases = self.exchange.leases.of.values()
        self.world.lent_before = {it.session for it in leases if it.session is not None}
        assert SessionState.BORROWING not in {it.state for it in self.world.lent_before}

    @step()
    def resumes(self) -> None:
        if self.exchange.paused:
            self.resumed_at = self.now
            for lane, upstream in self.upstreams.items():
                upstream.old = not lane.exclusive
            self.exchange.go_on(self.now)

    @step()
    def forgets_moves(self) -> None:
        """As the shell does, now and then: what nobody waits for may go, and nothing else."""
        asked = [client for client in self.clients if client.session.state is SessionState.MOVING]
        self.exchange.forget_moves()
        assert all(client.session.owed == 1 and client.here for client in asked)
        if self.exchange.paused:
            for lane in self.exchange.shared_lanes:
                unsent = [*lane.callers, *(caller for _, caller in lane.first)]
                assert not any(isinstance(caller, Moving) and caller.session.gone for caller in unsent)
                assert lane.connections or lane.owed or lane.sessions or self.exchange.is_base(lane) or lane.large

    @step()
    def passes_a_moment(self) -> None:
        """What usually happens: all are connected, all is sent, all is answered."""
        self.round()

    @step(later=st.sampled_from([0.01, 1.0]))
    def expires(self, later: float) -> None:
        """As the shell does: often, with a flush behind."""
        self.world.expired = True
        waiting = [client for client in self.clients if client.session.state is SessionState.BORROWING]
        early = [
            client
            for client in waiting
            if max(client.waits_since, self.resumed_at) + PATIENCE > self.now + later or self.exchange.paused
        ]
        self.now += later
        self.exchange.expire(self.now, PATIENCE)
        assert not [client for client in early if client.session.state is SessionState.FLOWING], "refused too early"
        self.flush(0.0)

    @step()
    def has_no_replies_yet(self) -> None:
        self.send_all()

    def send_all(self) -> None:
        for lane in self.lanes:
            if lane.outdated and lane in self.upstreams and not lane.is_waited_for and not lane.exclusive:
                del self.upstreams[lane]
                self.exchange.replaced(lane)
            may_dial = not self.exchange.paused or self.exchange.is_base(lane)
            if may_dial and lane.state in {LaneState.DIALLING, LaneState.FAILING}:
                self.dial(lane, 1e-5)
        for lane in list(self.upstreams):
            self.take_again(lane)
        self.flush(1.0)

    def round(self) -> None:
        self.send_all()
        for lane in list(self.upstreams):
            if lane in self.upstreams:
                self.reply(lane, 10**9)
        for client in list(self.world.pinned):
            client.reads_from_its_connection(10**9)
        for client in self.clients:
            if client.here and client.half_closed:  # the end of its input is still there
                client.ends_its_input()

    @step(sure=st.integers(0, 5))
    def drains(self, sure: int) -> None:
        if sure == 5:
            for client in self.clients:
                lease = client.session.lease
                client.may_end = True
                client.cut_off |= any(map(client.awaits, BLOCKING)) or (lease is not None and lease.stream is not None)
            self.resumes()
            self.exchange.drain()

    # --- what always holds ---

    def check(self) -> None:
        self.check_lanes()
        self.check_ledgers()
        for client in self.clients:
            client.judge()
        self.check_sessions()
        self.check_leases()
        self.check_held()

    def check_lanes(self) -> None:
        for lane in self.world.opened:
            upstream = self.upstreams.get(lane)
            expected = upstream.received - upstream.replied if upstream is not None else 0
            assert len(lane.in_flight) == expected, f"{lane!r}: an entry left without its reply (I4)"
            if upstream is None or upstream.lease is None or upstream.lease.stream is None:
                unsent = twins.read_requests(b"".join(lane.unsent))
                assert (len(unsent.requests), unsent.leftover) == (len(lane.callers), b""), f"{lane!r} (I2)"
            else:
                assert lane.owed == 0
            assert lane in self.exchange.dirty or not lane.has_unsent, f"{lane!r} is not dirty"
            for session in lane.waiting if lane.state is not LaneState.CLOSED else ():
                assert session.throttled, f"{session!r} is read from, and waits for {lane!r}"
                assert session.lane is lane, f"{session!r} waits for {lane!r}"

    def check_ledgers(self) -> None:
        """What has ended since the last look is in the books, once, and as what it was."""
        world = self.world
        lost: Counter[Kind] = Counter()  # requests
        for upstream in [it for it in world.standing if world.upstreams.get(it.lane) is not it]:
            world.standing.remove(upstream)
            lost[upstream.lane.kind] += upstream.received - upstream.replied if upstream.pinned_by is None else 0
        ended: dict[Kind, list[Caller]] = {kind: [] for kind in Kind}
        for lane in world.opened:
            sent, now = world.sent.pop(lane, Counter()), Counter(lane.in_flight)
            ended[lane.kind] += (world.in_flight.get(lane, Counter()) + sent - now).elements()
            world.in_flight[lane] = now
        outcomes = self.exchange.outcomes()
        for kind, ledger in self.exchange.ledgers.items():
            sent_before, own_before, before = world.counted.get(kind, (0, 0, Outcomes(0, 0, 0, 0)))
            delivered, swallowed, failed, refused = map(int.__sub__, outcomes[kind], before)
            swallowed -= ledger.withdrawn - world.unsent_before[kind, 0]
            failed -= ledger.stranded - world.unsent_before[kind, 1]
            world.unsent_before[kind, 0], world.unsent_before[kind, 1] = ledger.withdrawn, ledger.stranded
            world.counted[kind] = ledger.sent, ledger.own, outcomes[kind]
            whose = [caller.session for caller in ended[kind] if caller.session is not None]
            assert ledger.own - own_before == len(ended[kind]) - len(whose)
            assert delivered + swallowed + failed == len(whose), f"{kind}: the books don't balance"
            assert min(delivered, swallowed, failed, refused, ledger.sent - sent_before) >= 0, "a counter counts up"
            gone_now = sum(session.state in {_S.GONE, _S.PINNED} for session in whose)
            assert sum(session in world.gone for session in whose) <= swallowed <= gone_now
            assert delivered <= len(ended[kind]) - lost[kind], "what was lost was not delivered"
            assert failed <= gone_now
        world.gone = {session for session in world.client_of if session.gone}

    def check_sessions(self) -> None:
        owed: Counter[Session] = Counter()
        places: dict[Session, set[Lane]] = {}
        for lane in self.world.opened:
            for caller in [*lane.in_flight, *lane.callers, *(caller for _, caller in lane.first)]:
                session = _session_of(caller)
                if session is not None:
                    owed[session] += 1
                    places.setdefault(session, set()).add(lane)
        for lane, lease in self.exchange.leases.of.items():
            if lease.session is not None and lease.stream is not None:
                owed[lease.session] += isinstance(lease.stream, Verdict) or lease.stream._asked
                places.setdefault(lease.session, set()).add(lane)
        for client in self.clients:
            session = client.session
            assert len(places.get(session, ())) <= 1, f"{client} is owed replies on two lanes (I6)"
            if client.here:  # nobody counts for those who are gone
                assert session.owed == owed[session], f"{client}: {owed[session]} places in FIFOs"
                self.check_progress(client)
            else:
                assert session.state in {SessionState.GONE, SessionState.PINNED}
                assert session.lease is None
                assert session not in self.exchange.sessions

    def check_held(self) -> None:
        """What each client is told is held for it, is."""
        held: Counter[Session] = Counter()
        for lane in self.world.opened:
            unsent = set()
            for caller in [*lane.in_flight, *lane.callers]:
                if isinstance(caller, Large):
                    held[caller.session] += caller._size
                    unsent.add(caller)
            assert unsent.issuperset(lane.withdrawable)
            left = {it for it in lane.callers if isinstance(it, Large) and it._size}  # (0: withdrawn)
            assert set(lane.withdrawable) == left or lane.exclusive
            for request in lane.withdrawable.values():
                assert any(piece is request for piece in lane.unsent)
        for client in self.clients:
            session = client.session
            if session.reader is not None:
                begun = session.reader._arguments
                held[session] += len(session.reader.pending) + sum(map(len, begun)) + 56 * len(begun)
            held[session] += sum(map(len, session.waiting or []))
            lease = session.lease
            large_alone = lease.held if lease is not None else 0
            in_fifo = sum(
                it._size for it in [*lease.lane.callers, *lease.lane.in_flight] if isinstance(it, Large)
            ) if lease is not None else 0
            assert large_alone >= in_fifo
            assert client.held == held[session] + large_alone - in_fifo, client

    def check_progress(self, client: Client) -> None:
        """Whoever waits, waits for something; whoever is read from has room."""
        session = client.session
        lease = session.lease
        identity = session.lane.identity if lease is None else lease.home
        homes = [self.exchange.lanes.get(identity), self.exchange.large_lanes.get(identity)]
        (home,) = [lane for lane in homes if lane is not None and session in lane.sessions]
        assert session.lane is (lease.lane if lease is not None and session.state is not _S.BORROWING else home)
        assert session.lane.state is not LaneState.CLOSED
        assert (session.state in {_S.FLOWING, _S.MOVING}) <= (lease is None)
        for_ever = (
            lease is not None and session.state is _S.SETTLING and (lease.blocking > 0 or lease.stream is not None)
        )
        reads = session.state in {_S.FLOWING, _S.LEASED, _S.PINNING}
        waits = session.state is _S.BORROWING or for_ever
        assert client.reading == ((reads or waits) and not session.throttled and not session.ended)
        if session.state is not _S.BORROWING:
            client.waits_since = self.now
            assert reads or session.owed, f"{client} waits for nothing"
        if not reads:
            return
        streams = lease is not None and lease.stream is not None
        on_its_way = streams and (self.upstreams[lease.lane].owes or lease.lane.unsent or client.got)
        cared_for = session.owed or on_its_way or session.throttled  # (its next request is taken once it is resumed)
        assert cared_for or client.due is None, f"{client} said {client.due}, and nobody cares"
        if session.throttled:
            held = [
                lane
                for lane in self.world.opened
                if lane.full and (lane.owed or on_its_way) and session in lane.waiting
            ]
            assert session.owed or held, f"{client} is never read again"
        else:
            assert not self.exchange.draining, f"{client} goes on in a drain"
            assert session.owed < LIMITS.client or session.ended, f"{client} is read from, whatever it is owed"

    def check_leases(self) -> None:
        leases = self.exchange.leases
        assert leases.pinned == len(self.world.pinned)
        assert len(leases.of) + leases.pinned <= LIMITS.leases
        assert all(lane in leases.of for lane in self.upstreams if lane.exclusive), "a connection that nobody owns"
        assert all(upstream.state.clean for lane, upstream in self.upstreams.items() if not lane.exclusive)
        idle = [lease for pool in leases._idle.values() for lease in pool]
        for lane, lease in leases.of.items():
            assert lease.lane is lane
            assert not lease.dead
            assert (lease in idle) == (lease.session is None and lane.link is not None)
            if lease.session is not None:
                self.check_lent(lease, lease.session)
            elif lane.link is not None:
                assert lease in leases._idle[lane.identity]
                self.check_idle(lease)
        self.check_queue(idle)
        for client in self.clients:
            if client.here:
                self.check_state(client)

    def check_lent(self, lease: Lease, session: Session) -> None:
        assert session.lease is lease
        if session.state is SessionState.BORROWING:
            assert lease.stream is None
            assert lease.lane.link is None or lease.lane.owed == 1, "connected, and nothing happens"
            return
        assert session.owed or not lease.clean, f"{lease!r} is not given back"
        upstream = self.upstreams[lease.lane]
        quiet = not (upstream.owes or lease.lane.unsent or session.owed or self.world.client_of[session].got)
        if quiet:
            assert not upstream.state.clean, f"{lease!r} is needed no longer"

    def check_idle(self, lease: Lease) -> None:
        """Whoever borrows it next finds it as if it had been dialled for them."""
        upstream = self.upstreams[lease.lane]
        assert upstream.state == State(lease.lane.identity, lease.name)
        assert lease.clean
        assert (lease.stream, lease.blocking) == (None, 0)
        assert (lease.lane.owed, lease.lane.unsent, upstream.owes, upstream.begun) == (0, [], False, b"")
        assert upstream.received == upstream.replied

    def check_queue(self, idle: list[Lease]) -> None:
        leases = self.exchange.leases
        queue = [session for session, _ in leases._queue if session.state is SessionState.BORROWING]
        waiting = [
            client.session
            for client in self.clients
            if client.session.state is SessionState.BORROWING and client.session.lease is None
        ]
        assert Counter(queue) == Counter(waiting)
        assert not (self.exchange.paused and idle), "idle leases outlast a pause"
        if queue and not self.exchange.paused:
            assert not idle, "an idle lease, and somebody waits"
            assert len(leases.of) + leases.pinned == LIMITS.leases

    def check_state(self, client: Client) -> None:
        """What a client's connection is in the middle of, it is on the connection that is lent, and on no other."""
        session = client.session
        if not client.state.clean:
            # A transaction that rode as a whole has its EXEC in flight.
            assert session.lease is not None or client.awaits(b"EXEC"), f"{client} lost {client.state}"
        if session.lease is not None and session.state is not _S.BORROWING and client.due is None and not client.got:
            state = self.upstreams[session.lease.lane].state
            assert state._replace(identity=session.lease.home) == client.state
            assert session.lease.home == session.lease.lane.identity or session.owed

    # --- what holds in the end ---

    def teardown(self) -> None:
        if self.sound:
            self.come_to_rest()
            for client in self.clients:
                client.to_say += twins.canonical([b"GET", client.token()]) if client.here else b""
            self.come_to_rest()

    def come_to_rest(self) -> None:
        """Everybody says what there is to say; afterwards nothing is owed and nobody is stuck (I3)."""
        if self.exchange.paused:
            self.come_to_a_halt()
            self.resumes()
        for _ in range(200):
            for client in self.clients:
                client.comes_to_an_end()
                client.sends(10**9)
            self.round()
            for upstream in self.blocked():
                upstream.unblock(element=True)
            self.check()
            if not self.is_busy():
                break
        for lane in self.lanes:
            assert not lane.owed, f"{lane!r} still owes"
        assert not any(client.held for client in self.clients)
        assert not self.world.pinned
        for client in self.clients:
            if client.here:
                assert not self.exchange.draining
                assert client.session.state is SessionState.FLOWING, f"{client} is stuck"
                lacking = (client.to_say, client.due, client.got, list(client.messages))
                assert lacking == (b"", None, b"", []), f"{client} lacks a reply"

    def come_to_a_halt(self) -> None:
        """A pause: what has been begun ends, but for what its client keeps open."""
        for _ in range(200):
            for client in self.clients:
                client.comes_to_an_end()
                if client.session.state is _S.LEASED:
                    client.sends(10**9)
            self.round()
            self.check()
            if not self.exchange.unfinished().ends:
                break
        left = self.exchange.unfinished()
        assert not left.in_flight, f"{left}"
        assert not left.in_transaction, f"{left}"

    def is_busy(self) -> bool:
        talking = any(
            client.to_say or client.due or not client.state.clean or client.session.state is not _S.FLOWING
            for client in self.clients
            if client.here
        )
        streaming = any(upstream.owes for upstream in self.upstreams.values())
        return talking or streaming or bool(self.world.pinned) or any(lane.owed for lane in self.lanes)


_S = SessionState


def _session_of(caller: object) -> Session | None:
    """A place in the FIFO is the session's own, or stands for one of its requests, or is of nobody."""
    if isinstance(caller, Large):
        return caller.session if caller._size else None  # withdrawn: a PING is in its place
    return caller if isinstance(caller, Session) else getattr(caller, "session", None)


Proxy.TestCase.settings = settings(
    max_examples=500, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestProxy = pytest.mark.timeout(600)(Proxy.TestCase)  # it takes that long to make a failure short


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


def test_replies_written_before_a_pin() -> None:
    proxy = Proxy()
    proxy.says(who=0, what=[[b"CLIENT", b"GETNAME"], [b"GET"]], inline=False, size=EVERYTHING)
    proxy.says_last(who=0, what=twins.canonical([b"MONITOR"]), behind=[[b"GET"]], size=EVERYTHING)
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


def both_leases_block(proxy: Proxy) -> None:
    """Clients 0 and 1 have the two leases there are."""
    for who in (0, 1):
        proxy.says_one_thing(who=who, name=[b"BLPOP"])
    proxy.passes_a_moment()
    assert len(proxy.exchange.leases.of) == LIMITS.leases


def test_what_a_session_sent_behind_goes_on_when_it_is_lent_a_lease_later() -> None:
    proxy = Proxy()
    both_leases_block(proxy)
    proxy.says(who=2, what=[[b"WATCH", b"k"], [b"ECHO"]], inline=False, size=EVERYTHING)
    proxy.unblocks(which=0, element=True)
    proxy.passes_a_moment()
    proxy.passes_a_moment()
    proxy.teardown()


def test_a_throttled_session_waits_for_one_lane_only() -> None:
    """All replies come in one chunk: the lane counts as full until they are with their callers."""
    proxy = Proxy()
    proxy.passes_a_moment()
    for who in (0, 1):
        proxy.says(who=who, what=[[b"GET"]] * LIMITS.client, inline=False, size=EVERYTHING)
    proxy.flushes(later=1e-6)
    proxy.says(who=2, what=[[b"GET"], [b"WATCH", b"k"]], inline=False, size=EVERYTHING)
    proxy.flushes(later=2e-3)
    proxy.replies(which=0, size=EVERYTHING)
    proxy.teardown()


def test_a_lease_is_hung_up_in_the_middle_of_a_short_reply() -> None:
    """The first reply finds the client's socket broken, so the connection goes before the next has been looked at."""
    proxy = Proxy()
    proxy.passes_a_moment()
    proxy.says(who=0, what=[[b"WATCH", b"k"], [b"GET"]], inline=False, size=EVERYTHING)
    proxy.dials(which=1, far=False)
    proxy.flushes(later=1e-6)
    proxy.breaks(who=0)
    proxy.replies(which=1, size=7)
    proxy.teardown()


def test_a_lease_is_hung_up_in_the_middle_of_a_reply_that_is_passed_on() -> None:
    proxy = Proxy()
    proxy.passes_a_moment()
    proxy.says(who=0, what=[[b"WATCH", b"k"], [b"GETRANGE"], [b"GET"]], inline=False, size=EVERYTHING)
    proxy.dials(which=1, far=False)
    proxy.flushes(later=1e-6)
    proxy.replies(which=1, size=17_000)
    proxy.breaks(who=0)
    proxy.replies(which=1, size=EVERYTHING)
    proxy.teardown()


def test_behind_what_can_no_longer_block_nothing_more_is_read() -> None:
    proxy = Proxy()
    said = [[b"ECHO"], [b"wait", b"1"], [b"ECHO"], [b"SUBSCRIBE", b"a"]]
    proxy.says(who=0, what=said, inline=False, size=EVERYTHING)
    proxy.passes_a_moment()
    proxy.replies_one_by_one(which=1)
    proxy.teardown()


def test_a_drain_still_lends_for_what_was_accepted() -> None:
    proxy = Proxy()
    client = proxy.clients[0]
    proxy.says(who=0, what=[[b"GET"], [b"MULTI"]], inline=False, size=EVERYTHING)
    proxy.drains(sure=5)
    while client.here:
        proxy.passes_a_moment()
    assert client.answered == 2
    proxy.teardown()


def test_a_drain_lends_nothing_to_block_on() -> None:
    proxy = Proxy()
    client = proxy.clients[0]
    proxy.says(who=0, what=[[b"GET"], [b"BLPOP", b"k", b"0"]], inline=False, size=EVERYTHING)
    proxy.drains(sure=5)
    while client.here:
        proxy.passes_a_moment()
    assert client.answered == 1
    assert not any(lane.exclusive for lane in proxy.world.opened)
    proxy.teardown()


def test_a_client_that_blocks_and_leaves_is_hung_up_on() -> None:
    proxy = Proxy()
    both_leases_block(proxy)
    blocked = [upstream for upstream in proxy.upstreams.values() if upstream.blocked is not None]
    proxy.departs(who=0)
    proxy.ends_its_input(who=0)  # the next of those who are here
    assert not [upstream for upstream in blocked if upstream.lane in proxy.upstreams]
    assert not proxy.exchange.leases.of
    proxy.teardown()


def test_a_lease_that_is_no_more_leaves_room_for_those_who_wait() -> None:
    """Left in the middle of something, lost, taken for good, given back."""
    proxy = Proxy()
    both_leases_block(proxy)
    for _ in range(2):
        proxy.connects()
    for who in (2, 3, 4):
        proxy.says_one_thing(who=who, name=[b"CLIENT", b"SETNAME", b"n1"])
        proxy.passes_a_moment()
        proxy.says_one_thing(who=who, name=[b"WATCH", b"k"])
    waiting = [client.session for client in proxy.clients[2:]]
    proxy.departs(who=0)
    assert waiting[0].lease is not None
    assert waiting[1].lease is None
    proxy.loses(which=1)  # client 1 goes with it
    assert waiting[1].lease is not None
    proxy.passes_a_moment()
    proxy.passes_a_moment()
    proxy.says_one_thing(who=1, name=[b"SELECT", b"1"])  # in the middle of something: it keeps its lease, which counts
    assert waiting[1].state is SessionState.PINNED
    assert waiting[2].lease is None
    proxy.departs(who=1)
    assert waiting[2].lease is not None
    proxy.teardown()


def test_a_transaction_that_opens_in_the_chunk_that_ends_its_session() -> None:
    """The reply to EXEC finds the client's socket broken, when that to MULTI has left the FIFO already."""
    proxy = Proxy()
    proxy.says(who=0, what=[[b"EXEC"], [b"MULTI"]], inline=False, size=EVERYTHING)
    proxy.breaks(who=0)
    for _ in range(3):
        proxy.passes_a_moment()
    assert not proxy.clients[0].here
    assert not proxy.exchange.leases.of
    proxy.teardown()


def test_a_pinned_client_has_its_own_name() -> None:
    proxy = Proxy()
    proxy.says(who=0, what=[[b"MULTI"], [b"CLIENT", b"GETNAME"]], inline=False, size=EVERYTHING)
    proxy.passes_a_moment()
    proxy.passes_a_moment()
    proxy.teardown()
