"""Connections of their own: lent to one session until their state is known to be clean again.

    borrow            a lease is free,             the last reply,
                      connected, named             and clean
    ------> queue ----------------------> lent ------------------> idle ----> lent again, or closed after a while
                                           |  |
                                           |  +-- for good: pinned (the client leaves the core)
                                           +-- in doubt: the session left in the middle of something: closed

A leased connection is a lane with one session on it: the same FIFO, the same way of requests and replies. What makes
it clean is that nothing is owed on it, no transaction is open, no key is watched, no channel subscribed to. Each of
these may be refused, so it is the upstream's replies that count, never the requests.

What ends or releases others runs in any database, and is lent a connection to the first one: behind a script that loops
no other could be selected on a new connection, not even to end it. Nothing else of the session goes there.

Where replies do not pair with requests (subscriptions), or may turn out not to (what pins), the connection's bytes go
to a stream in place of the FIFO: see stream.py.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import coalesce.core.errors as replies
from coalesce.core.commands import BLOCKING, TRANSACTIONAL, Need, may_have_no_reply, need_of, runs_in_any_database
from coalesce.core.containment import contained
from coalesce.core.held import weigh
from coalesce.core.lane import Lane, LaneState, Ours
from coalesce.core.ledger import Kind
from coalesce.core.resp import pack
from coalesce.core.session import SessionState

if TYPE_CHECKING:
    from coalesce.core.exchange import Exchange
    from coalesce.core.identity import Identity
    from coalesce.core.session import Session
    from coalesce.core.stream import Subscriber, Verdict


# What EXEC is answered when Redis drops the transaction: `execCommandAbort`, and where a cluster redirects it
# (`processCommand`: `discardTransaction`).
_DISCARDED = (b"-EXECABORT", b"-MOVED", b"-ASK", b"-TRYAGAIN", b"-CROSSSLOT", b"-CLUSTERDOWN")

# Sessions that wait for a lease, from which on it is looked who of them has left.
_TIDY_AT = 64


class Lease:
    """A lane with room for one session."""

    __slots__ = ("_watching", "asking", "blocking", "dead", "held", "home", "in_doubt", "in_transaction", "lane",
                 "marks", "name", "session", "stream", "unproven", "used", "waits")  # fmt: skip

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.session: Session | None = None  # None: idle
        self.home = lane.identity  # of the session; another one for what runs in any database
        self.stream: Subscriber | Verdict | None = None  # what takes the upstream's bytes in place of the FIFO
        self.blocking = 0  # requests under way that may block
        self.waits = 0  # ... those of them that are WAIT,
        self.marks = 0  # ... and the requests of our own that go before it: see wait.py
        self.held = 0  # bytes of large requests of its session
        self.asking = False  # ASKING, for the next request
        self.name: bytes | None = b""  # of the client that had it last; None: in doubt
        self.dead = False  # never to be lent again
        self.used = False  # since somebody looked whether it still is
        self.in_transaction = False
        self.unproven = False  # a reply may have been more than one: see fence.py
        self.in_doubt = False  # a fault of ours: what has been noted here may not be all
        self._watching = False

    def __repr__(self) -> str:
        state = "dead" if self.dead else "lent" if self.session else "idle"
        return f"<Lease u{self.lane.number} {state}{'' if self.clean else ' unclean'}>"

    @property
    def clean(self) -> bool:
        """Whether the connection is as it was when it was dialled, once nothing is owed on it."""
        in_use = self.in_transaction or self._watching or self.asking or self.in_doubt
        return not in_use and (self.stream is None or self.stream.over)

    @property
    def is_at_home(self) -> bool:
        """Whether it is in the database of its session, too."""
        return self.home == self.lane.identity

    def unblocked(self) -> None:
        """A request that might have blocked is answered: behind what may take for ever, the client was read from."""
        self.blocking -= 1
        if self.session is not None and not self.blocking:
            self.session.rewire()

    def replied(self, name: bytes, beginning: bytes) -> None:
        """What the upstream said to a transactional request, or how it began."""
        if name == b"EXEC":
            # "EXEC without MULTI" and the like change nothing.
            if not beginning.startswith(b"-") or beginning.startswith(_DISCARDED):
                self.in_transaction = self._watching = False
        elif beginning.startswith(b"+OK"):  # not +QUEUED
            if name == b"MULTI":
                self.in_transaction = True
            elif name == b"WATCH":
                self._watching = True
            elif name == b"UNWATCH":
                self._watching = False
            elif name == b"DISCARD":
                self.in_transaction = self._watching = False


class Witness:
    """A place in the FIFO of a leased lane for a request whose reply tells something about the connection."""

    __slots__ = ("_blocks", "_held", "_lease", "_name", "owed", "session")

    def __init__(self, session: Session, lease: Lease, name: bytes, held: int) -> None:
        self.session = session
        self._lease = lease
        self._name = name
        self._blocks = name in BLOCKING
        self._held = held  # bytes, until it is answered, as for `Large`
        self.owed = 0
        session.owed += 1
        lease.blocking += self._blocks
        lease.held += held

    def write(self, data: bytes) -> None:
        if self._held:
            self._lease.held -= self._held
            weigh(self.session)
        if self._name in TRANSACTIONAL:
            self._lease.replied(self._name, data)
        self._count()
        self.session.write(data)

    def write_more(self, data: bytes) -> None:
        self._count()
        self.session.write_more(data)

    def _count(self) -> None:
        if not self.owed:
            self.session.owed -= 1
            if self._blocks:
                self._lease.unblocked()

    def lost(self) -> None:
        self.session.lost()

    def fail(self, fault: Exception) -> None:
        self.session.fail(fault)


class _Naming(Ours):
    """A place in the FIFO of a lease that is about to be lent, for our own HELLO .. SETNAME."""

    __slots__ = ("_lease", "_leases")

    def __init__(self, leases: Leases, lease: Lease) -> None:
        super().__init__(lease.lane)
        self._leases = leases
        self._lease = lease

    def write(self, data: bytes) -> None:
        """Whether it was refused (by an upstream that is busy, say) or not, it can be lent."""
        self.count()
        if data.startswith(b"-"):
            self._lease.name = None
        self._leases.named(self._lease)

    write_more = write

    def lost(self) -> None:
        """The session that waits is told by `Leases.lost`."""


class LeaseFigures(NamedTuple):
    """How all leases stand."""

    dialling: int
    lent: int
    idle: int
    queue: int  # sessions that wait for one that is free
    waiting: int  # ... or that theirs can be used
    borrowers: int  # sessions that use theirs


class Leases:
    """All leases of an exchange: those lent, those idle, and the sessions that wait for one."""

    def __init__(self, exchange: Exchange, limit: int) -> None:
        self.limit = limit
        self.of: dict[Lane, Lease] = {}
        self.pinned = 0  # leases whose clients have left the core with them
        self._exchange = exchange
        self._idle: dict[Identity, list[Lease]] = {}
        self._queue: deque[tuple[Session, float]] = deque()  # ... and since when
        self._tidy_at = _TIDY_AT  # its length

    def figures(self) -> LeaseFigures:
        """How they stand."""
        dialling = [lease for lease in self.of if lease.link is None]
        sessions = [lease.session for lease in self.of.values() if lease.session is not None]
        queue = sum(session.state is SessionState.BORROWING for session, _ in self._queue)
        borrowing = sum(session.state is SessionState.BORROWING for session in sessions)
        idle = sum(map(len, self._idle.values()))
        lent = len(self.of) - len(dialling) - idle
        return LeaseFigures(len(dialling), lent, idle, queue, queue + borrowing, len(sessions) - borrowing)

    @property
    def queued(self) -> list[Session]:
        """Those that wait for a lease that is free."""
        return [session for session, _ in self._queue if session.state is SessionState.BORROWING]

    # --- lending ---

    def borrow(self, session: Session, arguments: list[bytes]) -> None:
        """Gets the session a lease, now or when there is one; the request (empty: what its reader holds) goes there."""
        session.waiting = arguments
        session.become(SessionState.BORROWING)
        self._queue.append((session, self._exchange.now))
        if len(self._queue) >= self._tidy_at:  # many come and leave behind one who waits
            self._queue = deque(each for each in self._queue if each[0].state is SessionState.BORROWING)
            self._tidy_at = max(_TIDY_AT, 2 * len(self._queue))
        self.serve()
        if session.state is SessionState.BORROWING and session.lease is None and not self._exchange.paused:
            what = f"waits for a connection of its own: all {self.limit} are taken (--max-leases)"
            self._exchange.say_limit(session, what)

    def serve(self) -> None:
        """Lends to those who wait, in the order in which they came, as long as there is something to lend."""
        while self._queue and not self._exchange.paused:
            session, _ = self._queue[0]
            if session.state is SessionState.BORROWING:
                with contained(session):  # then it has left
                    if not self._lend(session):
                        return
            else:
                self._queue.popleft()  # it has left

    def _lend(self, session: Session) -> bool:
        """Whether there was something to lend to the first in the queue."""
        home = session.lane.identity
        anywhere = session.waiting and runs_in_any_database(session.waiting)
        lease = self._find(home._replace(database=0) if anywhere else home)
        if lease is None:
            return False
        self._queue.popleft()
        lease.session = session
        lease.home = home
        self._exchange.ask_role(home, at_once=lease.lane.link is None)
        lease.used = True
        session.lease = lease
        self._prepare(lease, session)
        return True

    def _find(self, identity: Identity) -> Lease | None:
        idle = self._idle.get(identity)
        if idle:
            return idle.pop()  # the one used last: so those that are not needed grow old
        if len(self.of) + self.pinned >= self.limit:
            other = next((leases[0] for leases in self._idle.values() if leases), None)
            if other is None:
                return None
            self._hang_up(other)  # one of another identity
        lane = self._exchange.open_exclusive_lane(identity)
        lease = self.of[lane] = Lease(lane)
        return lease

    def _prepare(self, lease: Lease, session: Session) -> None:
        """Nothing is sent before the connection stands, is known to owe nothing, and has the client's name."""
        if lease.lane.link is None:
            return
        if lease.unproven:
            self._exchange.fence(lease.lane, lambda: self._proven(lease))
        elif lease.name != session.name:
            lease.name = session.name
            # By HELLO, which no user can be forbidden, CLIENT SETNAME can; it changes nothing else.
            protocol = b"%d" % lease.lane.identity.protocol
            request = pack([b"HELLO", protocol, b"SETNAME", session.name])
            self._exchange.enqueue(lease.lane, request, _Naming(self, lease))
        else:
            self.named(lease)

    def _proven(self, lease: Lease) -> None:
        lease.unproven = False
        if lease.session is not None:
            self._prepare(lease, lease.session)

    def connected(self, lane: Lane) -> None:
        """The connection stands. Whoever wanted it may have left."""
        lease = self.of[lane]
        if lane.outdated and lane.link is not None:
            lane.link.hang_up()  # whoever waits for it waits for the next
        elif lease.session is None:
            self._returned(lease)
        else:
            self._prepare(lease, lease.session)

    def named(self, lease: Lease) -> None:
        """The connection has the name of the client that it is lent to."""
        session = lease.session
        if session is not None:
            arguments, session.waiting = session.waiting or [], None
            self._exchange.lent(session, lease, arguments)

    # --- giving back ---

    def give_back(self, session: Session) -> None:
        """The session goes on without its lease, which is reused only when it is clean."""
        lease, session.lease = session.lease, None
        assert lease is not None
        lease.session = None
        lease.held = 0
        lease.lane.waiting.discard(session)
        if lease.dead:
            return
        # What the session is owed may have left the FIFO, and not have been looked at: in the chunk that ended it.
        if lease.clean and not lease.lane.owed and not session.owed:
            lease.stream = None
            if lease.lane.link is not None:  # else it is still being dialled, and will be of use to another
                self._returned(lease)
        else:
            self._hang_up(lease)
            self.serve()

    def _returned(self, lease: Lease) -> None:
        """A clean lease is idle, or goes to whoever has waited longest; unless its upstream is the wrong one."""
        if lease.lane.turned_away or lease.lane.outdated:
            self._hang_up(lease)
        elif not lease.dead:
            self._idle.setdefault(lease.lane.identity, []).append(lease)
        self.serve()

    def renew(self, identity: Identity | None = None, *, dialled: bool = True) -> None:
        """Nobody of an identity is lent what is connected now, nor what is being `dialled`; those who have a lease keep
        it.
        """
        for lease in list(self.of.values()):
            of_it = identity is None or lease.lane.identity in {identity, identity._replace(database=0)}
            if of_it and (dialled or lease.lane.link is not None):
                lease.lane.outdated = True
        for lease in [lease for leases in self._idle.values() for lease in leases if lease.lane.outdated]:
            self._hang_up(lease)

    def call_in(self) -> None:
        """A pause: nothing that is connected now, or being dialled, is lent any more. Those who have a lease keep it;
        those who were about to get one wait again, before all others, and their requests have not left.
        """
        waiting: list[Session] = []
        for lease in list(self.of.values()):
            lease.lane.outdated = True
            session = lease.session
            if session is not None and session.state is not SessionState.BORROWING:
                continue
            if session is not None:
                session.lease = lease.session = None
                waiting.append(session)
            if lease.lane.link is not None:
                self._hang_up(lease)
        self._queue.extendleft((session, self._exchange.now) for session in reversed(waiting))

    def wait_anew(self, now: float) -> None:
        """The pause is over, and did not count."""
        self._queue = deque((session, now) for session, _ in self._queue)
        self.serve()

    def pin(self, lease: Lease) -> None:
        """The lease is the client's for good: it counts until `unpin`."""
        self._bury(lease)
        self.pinned += 1

    def unpin(self) -> None:
        """The connection of a pinned client is gone."""
        self.pinned -= 1
        self.serve()

    # --- ends ---

    def failed(self, lane: Lane, reply: bytes) -> None:
        """The connection could not be dialled; the reply is for whoever needed it. The session goes on."""
        lane.become(LaneState.CLOSED)
        lease = self.of[lane]
        self._bury(lease)
        session = lease.session
        if session is not None:
            session.lease = None
            with contained(session):
                self._refuse(session, reply)
        self.serve()

    def lost(self, lane: Lane) -> None:
        """The connection is gone."""
        lease = self.of.get(lane)
        if lease is None:
            return
        self._bury(lease)
        session = lease.session
        if session is not None and session.state is SessionState.BORROWING:
            session.lease = None
            self._queue.appendleft((session, self._exchange.now))  # its request has not left
        elif session is not None:
            with contained(session):
                self._exchange.depart_lost(session)  # with nothing in flight, perhaps, but with a transaction open
        self.serve()

    def is_idle(self, lane: Lane) -> bool:
        """Whether nobody has used a lease since the last call; then it is buried, and its connection to be closed."""
        lease = self.of[lane]
        if lease.session is None and not lease.used:
            self._bury(lease)
            return True
        lease.used = lease.session is not None
        return False

    def expire(self, now: float, patience: float) -> None:
        """Refuses the sessions that have waited for a lease for longer than `patience` seconds."""
        while self._queue:
            session, since = self._queue[0]
            if session.state is SessionState.BORROWING:
                if since + patience > now:
                    return
                self._queue.popleft()
                with contained(session):
                    self._refuse(session, replies.no_lease(self.limit))
            else:
                self._queue.popleft()

    def _refuse(self, session: Session, reply: bytes) -> None:
        arguments, session.waiting = session.waiting, None
        self._exchange.ledgers[Kind.LEASED].refused += 1
        need = need_of(arguments) if arguments else None
        goes_on = {Need.RIDE, Need.BORROW, Need.SUBSCRIBE, Need.WAIT, Need.PIN}
        if need in goes_on and not may_have_no_reply(arguments or []):
            session.become(SessionState.FLOWING)
            self._exchange.resume(session)  # nothing is owed to it
            session.peer.write(reply)
            self._exchange.advance(session)
        else:
            # What is behind it would run without the transaction, in another database, or as somebody else; or can't
            # be told from a request that was never read whole; or its replies would stand where others are expected.
            session.peer.write(reply)
            self._exchange.depart(session)

    def _hang_up(self, lease: Lease) -> None:
        """Closes a leased connection, whatever is going on there."""
        self._bury(lease)
        lease.session = None
        if lease.lane.link is not None:
            lease.lane.link.hang_up()
        lease.lane.drop_unsent()

    def _bury(self, lease: Lease) -> None:
        """The lease is never lent again."""
        lease.dead = True
        del self.of[lease.lane]
        idle = self._idle.get(lease.lane.identity, [])
        if lease in idle:
            idle.remove(lease)
        if not idle:
            self._idle.pop(lease.lane.identity, None)
