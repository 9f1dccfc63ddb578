"""Sessions x lanes: routes, departs, loses. The facade that the shell and the tests drive.

A request's way, and a reply's:

    Client.on_ready -> Exchange.receive -> lane.unsent        ...  Exchange.flush -> Lane.take_batch -> lane.send
    Connection.on_ready -> Exchange.replies -> Lane.receive -> session.write = Client.write

The usual request takes nothing but that way. Every other one goes through `_receive_slowly` and `_dispatch`; one that
needs another connection waits in `settle` until nothing is owed (I6), and `_settled` says where it goes from there:

    moves.py    to the lane of another identity        leased.py   to a connection of its own (lent by lease.py)
    large.py    to the lane for what is large          ends.py     nowhere: the conversation ends

These are functions of an exchange and a session, called from here; what they need of it is public.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import coalesce.core.errors as replies
from coalesce.core import ends, large, leased, moves, own, pause
from coalesce.core.client_state import Rewritten, shared_form
from coalesce.core.commands import RIDES, RIDES_FENCED, Need, is_fenced, need_of
from coalesce.core.containment import contained
from coalesce.core.errors import ClientError, unavailable
from coalesce.core.fence import Fence, hello, ping
from coalesce.core.held import weigh
from coalesce.core.lane import LARGE, UNSENT_LIMIT, Lane, LaneState, Limits
from coalesce.core.lease import Lease, Leases
from coalesce.core.ledger import Kind, Ledger, Outcomes, Totals
from coalesce.core.resp import ARRAY_HEADERS, BULK_LIMIT, CRLF, LargeRequestError, RequestReader, pack, pack_tuple
from coalesce.core.session import TAKING, Session, SessionState
from coalesce.core.stream import Subscriber

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from coalesce.core.identity import Identity
    from coalesce.core.lane import Caller, Link
    from coalesce.core.pause import Unfinished
    from coalesce.core.session import Peer

_MULTI = frozenset((b"MULTI", b"multi"))
_EXEC = frozenset((b"EXEC", b"exec"))
_EXEC_REQUESTS = frozenset(pack([name]) for name in _EXEC)
# What a session needs a connection of its own for, where it has none.
_BORROWING = frozenset((Need.BORROW, Need.TRANSACTION, Need.ASKING, Need.SUBSCRIBE, Need.WAIT, Need.PIN))

_HOLDING = frozenset((SessionState.SETTLING, SessionState.BORROWING, SessionState.PINNING))
_DEFAULTS = Limits()
# Bytes of requests kept for a session that waits behind what may block. (Redis: client-query-buffer-limit, 1 GB.)
HELD_LIMIT = 1024 * 1024
# Bytes of requests that name a client. What is longer goes to a connection of its own: in here it would be kept for as
# long as the client, and count as nobody's.
_LONG_NAME = 1024
# Bytes from which on a request counts as its session's own where the lane is full: thousands may each say one more.
_COUNTED = 16 * 1024


def _raise(lane: Lane, fault: Exception) -> None:
    del lane
    raise fault


def _ignore(session: Session, what: str) -> None:
    del session, what


class Exchange:
    """All sessions and lanes of one upstream.

    `open_lane` is called with each new lane and starts to connect it; `connected`, `replies`, `lose`, `fail`, `refuse`
    and `lease_failed` tell what became of it. `secret` gives what no client can guess. With a
    `judge` of passwords, clients have to authenticate to coalesce: see door.py. `say_fault` is told of a fault of ours
    on a lane without a connection (one with a connection has its link told); `say_limit` of a session that a limit
    keeps from what it wants, and why. `clock` is read once a batch.
    """

    def __init__(  # noqa: PLR0913, PLR0917 (what it can't know by itself)
        self,
        base: Identity,
        open_lane: Callable[[Lane], None],
        limits: Limits = _DEFAULTS,
        secret: Callable[[], bytes] = lambda: b"secret",
        judge: Callable[[bytes], bool] | None = None,
        say_fault: Callable[[Lane, Exception], None] = _raise,
        clock: Callable[[], float] = lambda: 0.0,
        say_limit: Callable[[Session, str], None] = _ignore,
    ) -> None:
        self.base = base
        self.limits = limits
        self.lanes: dict[Identity, Lane] = {}
        self.large_lanes: dict[Identity, Lane] = {}  # of the same identities, where there is a need
        self.dirty: list[Lane] = []  # the lanes with unsent requests
        self.draining = False
        self.paused = False
        self.leases = Leases(self, limits.leases)
        self.now = 0.0  # of the last flush
        self.protocol_errors = 0  # of clients
        self.clients_lost = 0  # closed with an upstream connection
        self.bulk_limit = BULK_LIMIT  # of the upstream
        self.apart: set[Identity] = set()  # whose replies were not one each: see fence.py
        self._clock = clock
        self.secret = secret
        self.judge = judge
        self._open_lane = open_lane
        self._say_fault = say_fault
        self.say_limit = say_limit
        self._retired = {False: Totals(), True: Totals()}  # of lanes that are no more: shared ones, leases
        self.ledgers = {kind: Ledger() for kind in Kind}
        self._numbers = 0
        self._moves_left = False  # by sessions that are gone
        self._handing_out: Lane | None = None  # whose replies are being handed out: not to be pinned before all are
        self.lane(base)

    def lane(self, identity: Identity) -> Lane:
        """The lane of an identity, new if there was none."""
        lane = self.lanes.get(identity)
        if lane is None:
            lane = self.lanes[identity] = self._new_lane(identity)
        return lane

    def large_lane(self, identity: Identity) -> Lane:
        """The lane of an identity for what is large, new if there was none."""
        lane = self.large_lanes.get(identity)
        if lane is None:
            lane = self.large_lanes[identity] = self._new_lane(identity, large=True)
        return lane

    def is_base(self, lane: Lane) -> bool:
        """Whether it is the lane that is always there."""
        return lane is self.lanes.get(self.base)

    def open_exclusive_lane(self, identity: Identity) -> Lane:
        """A new lane for one session at a time: see lease.py."""
        return self._new_lane(identity, exclusive=True)

    def _new_lane(self, identity: Identity, *, exclusive: bool = False, large: bool = False) -> Lane:
        kind = Kind.LEASED if exclusive else Kind.LARGE if large else Kind.SHARED
        lane = Lane(
            self._numbers, identity, self.limits, exclusive=exclusive, large=large, ledger=self.ledgers[kind]
        )
        self._numbers += 1
        self._open_lane(lane)
        return lane

    @property
    def sessions(self) -> Iterator[Session]:
        """All that are neither pinned nor gone."""
        for lane in self.shared_lanes:
            yield from list(lane.sessions)

    def totals(self, *, exclusive: bool) -> Totals:
        """What leases have carried so far, or shared lanes."""
        total = self._retired[exclusive]
        lanes = self.leases.of if exclusive else self.shared_lanes
        for lane in lanes:
            total = total.and_(lane)
        return total

    @property
    def shared_lanes(self) -> list[Lane]:
        """Those for what is large among them."""
        return [*self.lanes.values(), *self.large_lanes.values()]

    @property
    def all_lanes(self) -> list[Lane]:
        """Shared ones, those for what is large, and leases; not those of pinned clients."""
        return [*self.shared_lanes, *self.leases.of]

    def outcomes(self) -> dict[Kind, Outcomes]:
        """What became of the commands so far."""
        in_flight = dict.fromkeys(Kind, 0)
        for lane in self.all_lanes:
            in_flight[lane.kind] += len(lane.in_flight)
        return {kind: ledger.outcomes(in_flight[kind]) for kind, ledger in self.ledgers.items()}

    def count_swallowed(self, replies: int) -> None:
        """A session that has left was given so many replies (if by a lane: else they are counted there already)."""
        if self._handing_out is not None:
            self._handing_out.ledger.swallowed += replies

    # --- clients ---

    def connect(self, peer: Peer) -> Session:
        """A new session, with the identity of a fresh connection."""
        lane = self.lane(self.base)
        session = Session(self, lane, peer, locked=self.judge is not None)
        lane.sessions.add(session)
        if not session.locked:
            self.bound(session)
        return session

    def bound(self, session: Session) -> None:
        """Does not read a newcomer to its lane for the while, where that overflows."""
        if session.lane.full and self._overflows(session.lane):
            self._throttle(session)

    def _overflows(self, lane: Lane) -> bool:
        """Whether a full lane has so much that not even newcomers are read: many have come, asked and left.

        Usually they are, as one of them may have come to end what all others wait for (SCRIPT KILL).
        """
        return lane.owed >= 2 * lane.limit or lane.unsent_weight() >= 2 * UNSENT_LIMIT

    def receive(self, session: Session, data: bytes) -> None:
        """HOT. Takes what a client sent; every whole request in it is on its way or waits its turn afterwards.

        Plain twin: `tests/core/twins.py`. Benchmark: `tests/bench/hot.py`.
        """
        if session.flowing:
            parts = data.split(CRLF)
            count = ARRAY_HEADERS.get(parts[0])
            if count is not None and len(parts) == 2 * count + 2:
                arguments = parts[2::2]
                if arguments[0] in RIDES:
                    request = pack_tuple(tuple(arguments))
                    if request == data:  # exactly one canonical request: see resp.py
                        lane = session.lane
                        if not lane.unsent:
                            self.dirty.append(lane)
                            lane.unsent_since = self._clock()
                        lane.unsent.append(request)
                        lane.callers.append(session)
                        session.owed += 1
                        if lane.full or session.owed >= self.limits.client:
                            self._throttle(session)
                        return
            taken = self._ride(session, parts, data)
            if taken == len(data):
                return
            data = data[taken:]
        self._receive_slowly(session, data)

    def _ride(self, session: Session, parts: list[bytes], data: bytes) -> int:  # noqa: C901, PLR0912 (hot: flat)
        """Puts the requests at the start of `data` (cut at its line ends: `parts`) on the session's lane.

        Takes canonical requests of stateless commands, up to the first that is not; returns the bytes taken. A whole
        transaction of such commands is one of them: it is sent without anything between, and EXEC ends it whether it
        is run, aborted or refused (Redis: `rejectCommand` discards it), which the fence behind it proves.
        """
        packed: list[bytes] = []
        fences: list[int] = []  # how many requests are before each
        block = -1  # where a transaction begins whose end has not been seen,
        fenced = False  # ... and whether a fence has to go behind it
        at = 0
        last = len(parts) - 1
        while at < last:
            count = ARRAY_HEADERS.get(parts[at])
            if count is None:
                break
            end = at + 1 + 2 * count
            if end > last:
                break
            arguments = parts[at + 2 : end : 2]
            name = arguments[0]
            if name not in RIDES:
                if session.lane.identity in self.apart:
                    break
                if name in _MULTI and count == 1 and block < 0:
                    block, fenced = len(packed), not session.lane.ends_transactions
                elif name in _EXEC and count == 1 and block >= 0:
                    block = -1
                    if fenced:
                        fences.append(len(packed) + 1)
                elif name in RIDES_FENCED:
                    fenced = True
                    if block < 0:
                        fences.append(len(packed) + 1)
                else:
                    break
            packed.append(pack_tuple(tuple(arguments)))
            at = end
        if block >= 0:
            del packed[block:]
        requests = b"".join(packed)
        if not packed or not data.startswith(requests):
            return 0
        lane = session.lane
        if not lane.unsent:
            self.dirty.append(lane)
            lane.unsent_since = self._clock()
        if fences:
            self._fence_off(session, packed, fences)
        else:
            lane.unsent.append(requests)
            lane.callers.extend([session] * len(packed))
        session.owed += len(packed)
        if lane.full or session.owed >= self.limits.client:
            self._throttle(session)
        return len(requests)

    def _fence_off(self, session: Session, packed: list[bytes], fences: list[int]) -> None:
        lane = session.lane
        start = 0
        for end in fences:
            lane.unsent.append(b"".join(packed[start:end]))
            lane.callers.extend([session] * (end - start))
            self.fence(lane)
            lane.ends_transactions |= packed[end - 1] in _EXEC_REQUESTS
            start = end
        if start < len(packed):
            lane.unsent.append(b"".join(packed[start:]))
            lane.callers.extend([session] * (len(packed) - start))

    def _receive_slowly(self, session: Session, data: bytes) -> None:
        reader = session.reader
        if reader is None:
            reader = session.reader = RequestReader(self.bulk_limit)
            reader.feed(data)
        else:
            # One request was cut in two. Behind it the quick way is open again, tried once a chunk.
            reader.feed(data)
            self._take_requests(session, reader, 1)
            # (On the lane for what is large a request stands by itself, and so could not be told from a transaction.)
            free = session.lane.authenticated and not session.lane.large and not session.locked
            if session.state is SessionState.FLOWING and free:
                rest = reader.take() if not reader.in_request else b""
                reader.feed(rest[self._ride(session, rest.split(CRLF), rest) :])
        if _holds_enough(session):
            self._throttle(session)
        self.advance(session)

    def advance(self, session: Session) -> None:
        """Dispatches the requests that have been read, as long as the session is read from.

        It does not end before all are: what is left when it is throttled is taken when it is resumed.
        """
        reader = session.reader
        if reader is not None:
            self._take_requests(session, reader, None)
        if reader is not None and reader.empty and session.reader is reader:
            session.reader = None
        if session.state is SessionState.FLOWING:
            session.rewire()
        if self.draining:
            ends.go_on_draining(self, session)
        if session.ended and (session.lease is None or session.lease.lane is not self._handing_out):
            ends.look_at_end(self, session)
        weigh(session)

    def _take_requests(self, session: Session, reader: RequestReader, most: int | None) -> None:
        taken = 0
        while session.state in TAKING and not session.throttled and taken != most:
            if session.locked:
                if not moves.take_locked(self, session, reader):
                    return
                continue
            try:
                arguments = reader.next_request(session.lane.authenticated)
            except ClientError as problem:
                self.protocol_errors += 1
                ends.last_words(self, session, problem.reply)
                return
            except LargeRequestError:
                self.settle(session, [])  # what the reader holds starts with it
                return
            if arguments is None:
                return
            self._dispatch(session, arguments)
            taken += 1
            if session.lane.owed >= session.lane.limit:
                session.lane.full = True
            if session.lane.full or session.owed >= self.limits.client:
                self._throttle(session)

    def need_of(self, session: Session, arguments: list[bytes]) -> Need:
        """As `need_of`; but who has broken a fence takes a connection of its own for what needs one."""
        need = need_of(arguments)
        if need is Need.RIDE and session.lane.identity in self.apart and is_fenced(arguments):
            return Need.BORROW
        return need

    def _dispatch(self, session: Session, arguments: list[bytes]) -> None:
        need = self.need_of(session, arguments)
        lease = session.lease
        if lease is not None and not lease.is_at_home:
            self.settle(session, arguments)  # it is lent for one request, and in another database
            return
        if lease is not None and self.paused and session.owed and lease.stream is None and need in leased.GOES_ON:
            self.settle(session, arguments)  # who sends on and on might never give it back
            return
        if lease is not None:
            leased.dispatch(self, session, lease, arguments, need)
            return
        match need:
            case Need.RIDE:
                self._dispatch_riding(session, arguments)
            case Need.CLIENT_STATE if sum(map(len, arguments)) < _LONG_NAME:
                form = shared_form(session, arguments)
                if form is None:
                    self.enqueue(session.lane, pack(arguments), session)
                else:
                    self.enqueue(session.lane, pack(form.arguments), Rewritten(session, form.rewrite))
            case Need.QUIT:
                self.end(session, replies.OK)
            case Need.CLOSE if session.lane.authenticated:
                self.end(session, b"")
            case _:  # (before AUTH, versions differ in what they say to RESET and POST: each says it itself)
                self.settle(session, arguments)

    def _dispatch_riding(self, session: Session, arguments: list[bytes]) -> None:
        size = sum(map(len, arguments))
        if size < (_COUNTED if session.lane.full else LARGE):
            self.enqueue(session.lane, pack(arguments), session)
        elif size < LARGE or large.ride(self, session):
            large.enqueue(self, session, pack(arguments))
        else:
            self.settle(session, arguments)
            return
        if is_fenced(arguments) and session.lane.authenticated:
            self.fence(session.lane)

    def enqueue(self, lane: Lane, request: bytes, caller: Caller) -> None:
        """The request leaves with the next flush (I2)."""
        if not lane.unsent:
            self.dirty.append(lane)
            lane.unsent_since = self._clock()
        lane.enqueue(request, caller)

    def enqueue_first(self, lane: Lane, request: bytes, caller: Caller) -> None:
        """The same for a request that has to begin a batch: see `Lane.enqueue_first`."""
        if not lane.has_unsent:
            self.dirty.append(lane)
            lane.unsent_since = self._clock()
        lane.enqueue_first(request, caller)

    def fence(self, lane: Lane, passed: Callable[[], None] | None = None) -> None:
        """Asks for proof that what is before has one reply each: see fence.py."""
        secret = self.secret()
        request, answer = hello(secret, lane.identity.protocol) if lane.exclusive else ping(secret)
        self.enqueue(lane, request, Fence(lane, answer, lambda: self.apart.add(lane.identity), passed))

    def _fence_unsent(self, lane: Lane) -> None:
        """The first of the transactions that have not left proves anew that EXEC is known: they counted on another
        connection's proof, or on one that turned out to be none.
        """
        if not any(name in piece for piece in lane.unsent for name in _EXEC):
            return
        requests, callers = lane.part(), lane.callers
        end = next((at for at, request in enumerate(requests, 1) if request in _EXEC_REQUESTS), 0)
        if end:
            lane.unsent, lane.callers = requests[:end], callers[:end]
            self.fence(lane)
            lane.unsent += requests[end:]
            lane.callers += callers[end:]
            lane.weigh_anew()
            lane.ends_transactions = True

    def send(self, lane: Lane, request: bytes) -> None:
        """The same on a lane that has a stream in place of its FIFO."""
        if not lane.unsent:
            self.dirty.append(lane)
            lane.unsent_since = self._clock()
        lane.unsent.append(request)
        if len(lane.unsent) >= self.limits.client:
            lane.full = True  # until something comes: what it is is not counted

    def answered(self, session: Session) -> None:
        """A session whose replies are looked at was given one."""
        goes_on = session.throttled and session.owed <= self.limits.client // 2 and not session.lane.full
        if goes_on:
            self.resume(session)
        if session.large and session.state is SessionState.FLOWING:
            large.look_at_size(session)
        if not session.owed:
            if session.state is SessionState.FLOWING:
                large.change_lane(self, session)
            elif session.state in {SessionState.LEASED, SessionState.PINNING}:
                if session.lease is not None and session.lease.clean:
                    leased.flow_again(self, session)
                    goes_on = True
            elif session.state is SessionState.SETTLING:
                self._settled(session)
                goes_on = True
            elif session.state is SessionState.ENDING:
                self._close(session)
        if goes_on:
            self.advance(session)

    def _throttle(self, session: Session) -> None:
        """Stops reading from a session. Of what has been read already, a chunk at the most still takes its way."""
        if session.throttled or not (session.reading or session.state in TAKING):
            return
        session.throttled = True
        session.lane.waiting.add(session)
        session.rewire()

    def resume(self, session: Session) -> None:
        """Reads again from a session, if it was stopped. What has been read already is for `advance` to take."""
        session.throttled = False
        session.lane.waiting.discard(session)
        session.rewire()

    def end_of_input(self, session: Session) -> None:
        """The client sends no more, all that it sent has been received, and it may still read.

        It gets what it is owed, then the connection closes.
        """
        ends.end_of_input(self, session)

    def end_in_sight(self, session: Session) -> None:
        """The client sends no more, and more of what it sent than we keep has not been received yet.

        That will be received in its time. But what blocks is given up: or an element might be popped for nobody.
        """
        ends.end_in_sight(self, session)

    def drain(self) -> None:
        """Every session ends as soon as it is owed nothing; what may go on for ever is ended."""
        ends.drain(self)

    def end(self, session: Session, last_words: bytes) -> None:
        """The session is over as soon as nothing is owed to it. (Empty: without a word.)"""
        session.last_words = last_words
        session.become(SessionState.ENDING)
        if not session.owed:
            self._close(session)

    def _close(self, session: Session) -> None:
        if session.last_words:
            session.peer.write(session.last_words)
        self.depart(session)

    def depart(self, session: Session) -> None:
        """The session is over. What it is still owed will be swallowed, its places in FIFOs stay (I4)."""
        if session.state in {SessionState.GONE, SessionState.PINNED}:
            return
        session.lane.waiting.discard(session)
        self._moves_left |= session.state is SessionState.MOVING
        session.become(SessionState.GONE)
        session.reader = session.waiting = None
        session.peer.close()
        self.leave_home(session)
        if session.lease is not None:
            self.leases.give_back(session)
        weigh(session)

    def withdraw(self, session: Session) -> None:
        """Of a session that is over, what is large and has not left gives way: see held.py."""
        large.withdraw(self, session)

    def depart_lost(self, session: Session) -> None:
        """As `depart`, for want of the upstream."""
        self.clients_lost += session.state not in {SessionState.GONE, SessionState.PINNED}
        self.depart(session)

    def depart_in_doubt(self, session: Session) -> None:
        """As `depart`, after a fault of ours: nobody else gets the connection that it was lent."""
        if session.lease is not None:
            session.lease.in_doubt = session.lease.lane.link is not None
        self.depart(session)

    def leave_home(self, session: Session) -> None:
        """Its home, the lane that it rides, or rode before it was lent another, counts it no longer."""
        identity = session.lane.identity if session.lease is None else session.lease.home
        for lanes in (self.lanes, self.large_lanes):
            home = lanes.get(identity)
            if home is not None:
                home.sessions.discard(session)

    # --- a session moves: to another lane, or to a connection of its own ---

    def settle(self, session: Session, arguments: list[bytes] | None) -> None:
        """The request waits until nothing is owed (I6): a session has unanswered requests on one connection only.

        An empty one: what the reader holds, which no shared connection may see. None: there is no request, only the
        question whether the lease is needed any longer.
        """
        session.waiting = arguments
        session.become(SessionState.SETTLING)
        lease = session.lease
        if lease is not None and isinstance(lease.stream, Subscriber):
            lease.stream.ask()
        if not session.owed:
            self._settled(session)

    def _settled(self, session: Session) -> None:  # noqa: C901 (where to, each in its turn)
        arguments, session.waiting = session.waiting, None
        lease = session.lease
        if lease is not None and arguments is None and not lease.clean:
            session.become(SessionState.LEASED)
            return
        need = self.need_of(session, arguments) if arguments else Need.PIN
        if lease is not None and lease.clean:
            leased.flow_again(self, session)
            if arguments:
                self._dispatch(session, arguments)
            elif arguments is not None:
                self.settle(session, arguments)
        elif need is Need.RESET and len(arguments or ()) == 1 and moves.may_reset(self, session):
            moves.reset(self, session)
        elif lease is not None and need is Need.WAIT and lease.stream is None and not lease.in_transaction:
            session.become(SessionState.LEASED)
            leased.dispatch(self, session, lease, arguments or [], need)
        elif lease is not None and need in leased.GOES_ON and lease.stream is None and lease.is_at_home:
            session.become(SessionState.LEASED)  # it waited for a pause's sake
            leased.dispatch(self, session, lease, arguments or [], need)
        elif lease is not None:
            leased.pin(self, session, arguments)  # in a transaction: what it means is only known when that has ended
        elif need in _BORROWING:
            leased.borrow(self, session, arguments or [])
        elif need is Need.RIDE:  # a large one
            session.become(SessionState.FLOWING)
            self._dispatch(session, arguments or [])
        else:
            moves.begin(self, session, arguments or [], need)

    def ride_on(self, session: Session, lane: Lane) -> None:
        if session.throttled:
            self.resume(session)  # nothing is owed to one that moves
        session.lane.sessions.discard(session)
        session.lane = lane
        lane.sessions.add(session)

    # --- connections of their own ---

    def lent(self, session: Session, lease: Lease, arguments: list[bytes]) -> None:
        """A session has got a lease, connected and under its name; nothing is owed on it. Sends what it was for."""
        leased.lent(self, session, lease, arguments)

    def accepted(self, session: Session) -> None:
        """The upstream took the request that pins, or one whose end can't be told."""
        leased.accepted(self, session)

    def unsubscribed(self, session: Session) -> None:
        """A subscriber is subscribed to nothing, as far as can be seen: is its lease needed any longer?"""
        if session.state is SessionState.LEASED:
            self.settle(session, None)

    def lease_failed(self, lane: Lane, reply: bytes) -> None:
        """A leased connection could not be dialled; the reply is for whoever needed it."""
        self.leases.failed(lane, reply)

    def lease_is_idle(self, lane: Lane) -> bool:
        """Whether nobody has used a lease since the last call; then its connection is to be closed."""
        if not self.leases.is_idle(lane):
            return False
        lane.become(LaneState.CLOSED)
        self.count_out(lane)
        return True

    def expire(self, now: float, patience: float) -> None:
        """Refuses the sessions that have waited for a lease for longer than `patience` seconds; nobody while paused."""
        if not self.paused:
            self.leases.expire(now, patience)

    # --- upstream ---

    def connected(self, lane: Lane, link: Link, round_trip: float) -> None:
        """A lane's connection stands: handshake done, nothing owed. `round_trip` in seconds, of the handshake."""
        lane.connected(link, round_trip, self.now)
        if lane.exclusive:
            self.leases.connected(lane)
        elif lane.large:
            lane.outdated |= self.lane(lane.identity).state is not LaneState.READY
        elif lane.connections > 1:
            self._outdate(lane.identity)
        else:
            self._first_connected(lane)
        for session in list(lane.sessions):
            with contained(session):
                session.rewire()

    def _first_connected(self, lane: Lane) -> None:
        if moves.may_stay(self, lane):
            self.leases.renew(lane.identity, dialled=False)  # an older connection may lead elsewhere
        else:
            self._refuse(lane, replies.no_lane(self.limits.lanes))

    def ask_role(self, identity: Identity, *, at_once: bool) -> None:
        """A session is about to use another connection of this identity; `at_once`: one that is dialled now.

        It may lead to the new primary after a failover. Who is told +OK there has to find it on the lane, too, which is
        never told -READONLY if it is only read from. So the upstream of the lane is asked whether it is a replica now,
        while the other is dialled, which takes longer.
        """
        lane = self.lanes.get(identity)
        if lane is not None and own.may_ask_role(lane, self.now, at_once=at_once):
            self.enqueue(lane, *own.role(lane, self.now))

    def keep_alive(self, now: float, idle: float) -> None:
        """Has every lane say something that has not for `idle` seconds: or it is closed (`timeout`), or dead unseen.

        Not while paused: what is lost then is noticed, or replaced, in any case.
        """
        if self.paused:
            return
        for lane in self.shared_lanes:
            if lane.idle_for(now) >= idle:
                self.enqueue(lane, *own.still_there(lane))

    @property
    def links(self) -> Iterator[Link]:
        """The connections that stand."""
        for lane in self.all_lanes:
            if lane.link is not None:
                yield lane.link

    def replaced(self, lane: Lane) -> None:
        """A lane's connection is to be followed by one to another upstream; nobody has anything in flight on it."""
        outdated = lane.outdated
        self.lose(lane)
        if not lane.large and not outdated:  # else the leases are no older than what follows
            self.leases.renew()

    def _outdate(self, identity: Identity) -> None:
        """The lane of an identity has a new connection: what it has besides may lead to another upstream.

        After a failover that would be the old primary, which lacks what the new one has said +OK to. So what is for
        large values sends no more, until it is dialled anew, and the leases are not lent again.
        """
        other = self.large_lanes.get(identity)
        if other is not None:
            other.outdated = True
        self.leases.renew(identity)

    def flush(self, now: float) -> None:
        """Lets every batch leave that may. To be called after each round of reading, before waiting."""
        self.now = now
        held: list[Lane] = []
        while self.dirty:
            lane = self.dirty.pop()
            try:
                self._flush_lane(lane, now, held)
            except Exception as fault:  # noqa: BLE001 (ours, whatever it is)
                self._fail_lane(lane, fault)
                if lane.has_unsent:
                    held.append(lane)  # for its next connection
        self.dirty = list(dict.fromkeys(held))
        if held:
            self._bound_unsent()

    def _bound_unsent(self) -> None:
        busy = [lane for lane in self.dirty if self.paused or lane.outdated or lane.send is None or lane.large]
        if sum(lane.unsent_weight() for lane in busy) > UNSENT_LIMIT:
            for lane in busy:
                lane.full = True

    def _fail_lane(self, lane: Lane, fault: Exception) -> None:
        """A fault of ours while a lane was served: it loses its connection, or whoever waits for it to have one."""
        if lane.link is not None:
            lane.link.fail(fault)
            return
        self._say_fault(lane, fault)
        lane.lose_unsent()
        self._relieve(lane)

    def _flush_lane(self, lane: Lane, now: float, held: list[Lane]) -> None:
        if self.paused and not lane.exclusive:
            if lane.has_unsent:
                held.append(lane)
            lane.full |= lane.owed >= lane.limit
            return
        if lane.state is LaneState.FAILING:
            # Whoever is answered may ask for more, here or elsewhere: then that lane is dirty again.
            self._answer_unsent(lane, unavailable(lane.why_failing))
            return
        if lane.has_unsent and lane.send is not None and lane.may_flush(now):
            lane.send(lane.take_batch(now))
        if lane.has_unsent:
            held.append(lane)
        if lane.owed >= lane.limit:
            lane.full = True

    def replies(self, lane: Lane, data: bytes, now: float) -> None:
        """Hands replies to their callers. Raises UpstreamError, after which the lane has to be lost."""
        lease = self.leases.of[lane] if lane.exclusive else None
        if lease is not None and lease.stream is not None:
            lease.stream.receive(data)
        else:
            self._handing_out = lane
            try:
                lane.receive(data)
            finally:
                self._handing_out = None
            if lane.timing:
                lane.time(now)
            if lane.had_large:
                large.have_had(self, lane)
        if lease is not None and lease.session is not None and lease.session.ended:
            ends.look_at_end(self, lease.session)
        if lane.full:
            self._relieve(lane)

    def lose(self, lane: Lane) -> None:
        """A lane's connection is gone. Clients with a request in flight on it go with it, all others stay."""
        proven = lane.ends_transactions
        if lane.exclusive:
            lane.drop_unsent()
        lane.lose()
        if lane.exclusive:
            lane.become(LaneState.CLOSED)
            self.count_out(lane)
            self.leases.lost(lane)
        else:
            if proven:
                self._fence_unsent(lane)
            self._relieve(lane)

    def fail(self, lane: Lane, why: str) -> None:
        """A lane could not be connected for as long as requests may wait."""
        lane.fail(why)
        if lane.large:
            large.go_on_without(self, lane)
        else:
            self._answer_unsent(lane, unavailable(why))

    def refuse(self, lane: Lane, reply: bytes) -> None:
        """The upstream refused a lane's identity, with this reply: it goes to whoever asked to move there.

        Sessions that were there already, before a reconnect, are closed: with a connection of their own they would
        have to authenticate anew, and be told. But without a lane for what is large they go on.
        """
        if lane.large:
            if lane.state is LaneState.DIALLING:
                self.fail(lane, "refused")
            return
        other = self.large_lanes.get(lane.identity)
        if other is not None:
            self._refuse(other, reply)
        self._refuse(lane, reply)

    def _refuse(self, lane: Lane, reply: bytes) -> None:
        if lane.link is not None:
            lane.link.hang_up()
        lane.become(LaneState.CLOSED)
        lane.outdated = True
        self._forget(lane)
        for session in list(lane.sessions):
            with contained(session):
                self.depart_lost(session)
        self._answer_unsent(lane, reply)

    def retire(self, lane: Lane) -> None:
        """Nobody rides this lane, and nothing is owed on it."""
        lane.become(LaneState.CLOSED)
        self._forget(lane)

    def _forget(self, lane: Lane) -> None:
        del (self.large_lanes if lane.large else self.lanes)[lane.identity]
        self.count_out(lane)
        if not lane.large:
            self.apart.discard(lane.identity)  # nobody has it any more
            self.leases.renew(lane.identity)  # the next lane may lead elsewhere

    def count_out(self, lane: Lane) -> None:
        self._retired[lane.exclusive] = self._retired[lane.exclusive].and_(lane)

    def _answer_unsent(self, lane: Lane, reply: bytes) -> None:
        lane.answer_unsent(reply)
        self._relieve(lane)

    def _relieve(self, lane: Lane) -> None:
        """Reads again from those who waited for a full lane, once half of it is free."""
        if lane.owed > lane.limit // 2 or lane.unsent_weight() > UNSENT_LIMIT // 2:
            return
        lane.full = False
        for session in list(lane.waiting):
            if lane.full:
                return  # of what the first of them had sent already
            if session.owed <= self.limits.client // 2 and not _holds_enough(session):
                with contained(session):
                    self.resume(session)
                    self.advance(session)

    # --- pause: see pause.py ---

    def pause(self) -> None:
        """Holds what has not left, until `go_on`. What has is answered.

        Requests wait for as long as it takes, in their order, and within the limits there are. No connection is lent.
        A session that was lent one keeps it until its transaction is over, or what blocks is answered.
        """
        pause.pause(self)

    def go_on(self, now: float) -> None:
        """Everything goes on, on new connections: the old ones may lead to an upstream that has been replaced.

        No shared lane sends before it is connected anew. To be called at a time when whoever keeps the lanes hears of
        it: those that are `outdated` are to be `replaced` as soon as nobody has anything in flight on them.
        """
        pause.go_on(self, now)

    def forget_moves(self) -> None:
        """To be called now and then: in a pause, whoever has left while it waited to move is asked for no more.

        Nothing follows from its request; and who loses patience comes back, and asks again, as long as the pause lasts.
        Lanes that nobody else has ever needed are over with it.
        """
        if self.paused and self._moves_left:
            self._moves_left = False
            moves.forget(self)
            for lane in self.shared_lanes:
                if lane.full and not lane.owed:  # else it will be, with a reply
                    self._relieve(lane)

    def unfinished(self) -> Unfinished:
        """What is still going on upstream."""
        return pause.unfinished(self)


def _holds_enough(session: Session) -> bool:
    """Whether no more is kept for it until what it waits for has come."""
    return session.state in _HOLDING and session.reader is not None and session.reader.held > HELD_LIMIT
