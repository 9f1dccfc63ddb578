"""One shared upstream connection of one identity, as a FIFO of replies owed.

        enqueue                take_batch                    receive
    ----------------> unsent ----------------> in flight ----------------> the caller's `write`
                        |                          |
                        | answer_unsent            | lose
                        v                          v
                  an error reply            the client is closed

    I1  replies belong to the requests in flight, in order        I4  an entry leaves the FIFO only with its reply
    I2  request bytes and FIFO entry are appended together        I5  any doubt fails the whole lane (Desync)

The lane knows bytes and callers, no sockets and no clock: time is handed in, in seconds.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Protocol

from coalesce.core.containment import contained
from coalesce.core.errors import Desync, UpstreamError
from coalesce.core.ledger import Kind, Ledger
from coalesce.core.resp import CRLF, SHORT_LENGTHS, Passage, pack, skip_elements, unpack

if TYPE_CHECKING:
    from collections.abc import Callable

    from coalesce.core.held import Large
    from coalesce.core.identity import Identity
    from coalesce.core.session import Session

# A batch of this many requests leaves even while another is in flight. An upstream's CPU time a command: 0.55 us with
# batches of 32, 0.45 with 64, 0.37 with 128. Behind 64 there is little left to win, and the upstream would stand idle.
FULL_BATCH = 64
# While one batch is in flight, the next is held for this long at the most (seconds). By then the upstream is busy with
# something slow, and could have had the next batch at hand.
HOLD_AT_MOST = 1e-3
# Bytes of requests that may wait for connections, on all lanes together; from there on nobody who rides one of these
# lanes is read, as when too many requests are owed.
UNSENT_LIMIT = 64 * 1024 * 1024
# Requests of a batch before AUTH, with nothing else in flight. An upstream closes a connection that has not
# authenticated when its replies exceed the static reply buffer, which is 1 KiB after some idle seconds (Redis 7.0:
# `clientsCronResizeOutputBuffer`, CVE-2025-21605); the longest -NOAUTH has 200 bytes.
UNAUTHENTICATED_BATCH = 4
# A reply of at least this size whose end has not arrived is passed on as it comes; a smaller one waits for its end,
# which saves its caller a wake-up. Bytes.
STREAM_FROM = 16 * 1024

# Requests and replies from this size on have a lane of their own, so that small ones do not wait behind them: bytes. An
# upstream writes 64 KiB of each connection in turn, so what is shorter holds up nobody there for more than two turns.
LARGE = 128 * 1024

# What an upstream says that is not, or not at the moment, the one that should be there: after a failover, the next
# connection to the same name may lead to the one that is.
_TURNED_AWAY = (b"-READONLY", b"-LOADING", b"-MASTERDOWN")

_PING = pack([b"PING"])


class Caller(Protocol):
    """What the FIFO holds: a session, or whoever asked in its stead."""

    owed: int

    @property
    def session(self) -> Session | None:
        """Whose request it is; None: ours."""

    def write(self, data: bytes, /) -> None:
        """Takes whole replies, or the first piece of one over STREAM_FROM. `owed` has been counted down before.

        What goes wrong with a caller is the caller's own trouble: raises nothing but our faults.
        """

    def write_more(self, data: bytes, /) -> None:
        """Takes the next piece of a reply that `write` got the first piece of. The last piece comes this way too."""

    def lost(self) -> None:
        """The upstream connection is gone with a request of this caller in flight on it."""

    def fail(self, fault: Exception, /) -> None:
        """A fault of ours while this caller was told something: see containment.py."""


class Ours:
    """A place in the FIFO for a request of our own. Counts itself as soon as it is answered."""

    __slots__ = ("lane", "owed")
    session = None

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.owed = 0
        lane.own += 1

    def count(self) -> None:
        """To be called by whatever takes the reply, each time."""
        self.lane.ledger.own += not self.owed

    def fail(self, fault: Exception) -> None:
        """Nobody's: the connection's, then."""
        raise fault


class Link(Protocol):
    """A lane's upstream connection, as the core sees it. No method may raise."""

    def send(self, batch: bytes, /) -> None:
        """Sends all of it. While it can't, the lane's `send` is None."""

    def hang_up(self) -> None:
        """Closes at once. The lane has been lost afterwards."""

    def fail(self, fault: Exception, /) -> None:
        """The same, for a fault of ours."""


class Limits(NamedTuple):
    """Of an exchange and its lanes. The reasons for all but the last are in `config.py`."""

    lane: int = 10_000  # requests owed on a lane from which on none of its sessions is read
    client: int = 1_024  # requests owed to a session from which on it is not read
    lanes: int = 128  # a session of one more identity gets a connection of its own
    leases: int = 1_000  # connections lent to one session each
    # Seconds. Holding the next batch while one is in flight made batches 2.5 times longer at equal p50, and costs up to
    # a round trip. So it is done where that is about as short as a wake-up (loopback, same rack), and nowhere else.
    hold_below: float = 300e-6


class LaneState(enum.Enum):
    """How a lane stands with its upstream connection."""

    DIALLING = enum.auto()  # requests wait
    READY = enum.auto()  # requests flow
    FAILING = enum.auto()  # dialling for longer than requests may wait: they get an error at once
    CLOSED = enum.auto()  # its identity was refused, or nobody needs it any more


_TRANSITIONS = {
    LaneState.DIALLING: {LaneState.READY, LaneState.FAILING, LaneState.CLOSED},
    LaneState.READY: {LaneState.DIALLING, LaneState.CLOSED},
    LaneState.FAILING: {LaneState.READY, LaneState.DIALLING, LaneState.CLOSED},  # DIALLING: a pause
    LaneState.CLOSED: set(),
}


class Lane:
    """A FIFO over one upstream connection. `number` names it in logs and transcripts (`u0`)."""

    def __init__(  # noqa: PLR0913 (what it is for)
        self,
        number: int,
        identity: Identity,
        limits: Limits,
        *,
        exclusive: bool = False,
        large: bool = False,
        ledger: Ledger | None = None,
    ) -> None:
        self.number = number
        self.identity = identity
        self.state = LaneState.DIALLING
        self.limit = limits.lane
        self.exclusive = exclusive  # for one session at a time: see lease.py
        self.large = large  # for sessions that move large values: one request at a time
        self._hold_below = 0 if exclusive else limits.hold_below
        self.full = False
        self.waiting: set[Session] = set()  # those not read for the while
        self.sessions: set[Session] = set()  # those that ride here
        # What the upstream told at the handshake.
        self.authenticated = True
        self.version: tuple[int, ...] | None = None  # of the Redis that it is or is compatible with; None: unknown
        self.primary = False  # it said that it is one
        self.asked = False  # ... and is asked whether it still is,
        self.asked_at = 0.0  # ... or was then
        # Unsent: the pieces of the next batch, and who waits for the replies, one entry a request.
        self.unsent: list[bytes] = []
        self.callers: list[Caller] = []
        self.withdrawable: dict[Large, bytes] = {}  # the large ones among them that others share the lane with
        self.first: deque[tuple[bytes, Caller]] = deque()  # unsent, too: each waits for a batch that it can begin
        self._weighed = 0  # how many pieces of `unsent` have been looked at for their length,
        self._weight = 0  # ... and their bytes
        self.in_flight: deque[Caller] = deque()
        self.link: Link | None = None  # None: not connected
        self.send: Callable[[bytes], None] | None = None  # None: not connected, or still busy with the last batch
        self.why_failing = "not connected yet"
        self.ends_transactions = False  # it has been asked to prove that EXEC is known there: see fence.py
        self.turned_away = False  # the upstream said that it is the wrong one, or not ready
        # It is to be dialled anew, or its identity has a newer connection, perhaps to another upstream. (A lease: is
        # not lent again.)
        self.outdated = False
        self.connections = 0  # so far
        self._round_trip = 0.0  # shortest seen on this connection, seconds
        self._left = 0.0  # when the last batch left
        self.unsent_since = 0.0  # when the first request that has not left came
        self.timing = False  # a batch is under way whose first reply tells the round trip:
        self._timed_from = 0.0  # ... when it left,
        self._timed_behind = 0  # ... and how many requests of this lane had left before
        self._tail = b""  # the beginning of a reply
        self._passage: Passage | None = None  # of the reply that is being passed on as it comes,
        self._passed = 0  # ... and the bytes passed of it
        self.had_large: list[Caller] = []  # those who have been given a large reply; emptied by the exchange
        self.ledger = Ledger() if ledger is None else ledger  # of its kind
        # Counted for the closing line.
        self.commands = 0
        self.own = 0  # ... of them our own
        self.batches = 0
        self.largest = 0

    def __repr__(self) -> str:
        state = self.state.name.lower()
        return f"<Lane u{self.number} {state} unsent={len(self.callers)} in_flight={len(self.in_flight)}>"

    def __str__(self) -> str:
        return f"lane u{self.number}"

    @property
    def ids(self) -> dict[str, str]:
        """For the log."""
        return {"lane": f"u{self.number}"}

    @property
    def kind(self) -> Kind:
        return Kind.LEASED if self.exclusive else Kind.LARGE if self.large else Kind.SHARED

    @property
    def round_trip(self) -> float | None:
        """Seconds, the shortest seen on this connection; None where there is none."""
        return None if self.link is None else self._round_trip

    @property
    def owed(self) -> int:
        return len(self.callers) + len(self.first) + len(self.in_flight)

    @property
    def crowded(self) -> bool:
        """Whether a reply of many elements is being passed on: each takes a microsecond of everybody's time."""
        return self._passage is not None and self._passage.crowded

    @property
    def is_waited_for(self) -> bool:
        """Whether something is in flight that is not our own question, nor of somebody who has left."""
        return any(caller.session is not None and not caller.session.gone for caller in self.in_flight)

    @property
    def has_unsent(self) -> bool:
        return bool(self.unsent or self.first)

    @property
    def over(self) -> bool:
        """Whether it never has a connection again."""
        return self.state is LaneState.CLOSED

    def become(self, state: LaneState) -> None:
        if state not in _TRANSITIONS[self.state]:
            raise AssertionError(f"{self!r} can't become {state}")
        self.state = state

    def enqueue(self, request: bytes, caller: Caller) -> None:
        """The request waits for the next batch (I2). `Exchange.receive`, which is hot, does the same in place."""
        self.unsent.append(request)
        self.callers.append(caller)
        caller.owed += 1

    def enqueue_first(self, request: bytes, caller: Caller) -> None:
        """The request waits until nothing is in flight, and begins the next batch.

        For AUTH: Redis from 7.2 on drops the reply to one that fails, if the connection still has others to be written
        (redis/redis#15640). Behind it, every reply would be the neighbour's.
        """
        self.first.append((request, caller))
        caller.owed += 1

    def part(self) -> list[bytes]:
        """The unsent requests, of which each is a piece by itself afterwards."""
        if len(self.unsent) != len(self.callers):
            self.unsent = unpack(b"".join(self.unsent))
            for large in self.withdrawable:
                self.withdrawable[large] = self.unsent[self.callers.index(large)]
            self.weigh_anew()
        return self.unsent

    def withdraw(self, caller: Large) -> None:
        """A PING leaves in place of this withdrawable request."""
        request = self.withdrawable.pop(caller)
        at = next(index for index, piece in enumerate(self.unsent) if piece is request)
        self.unsent[at] = _PING
        self.weigh_anew()

    def take_back(self, callers: set[Caller]) -> None:
        """The unsent requests of these are not sent. Each has left, and nothing of anybody's depends on it."""
        self.first = deque(each for each in self.first if each[1] not in callers)
        if not callers.isdisjoint(self.callers):
            stay = [each for each in zip(self.part(), self.callers, strict=True) if each[1] not in callers]
            self.unsent, self.callers = [request for request, _ in stay], [caller for _, caller in stay]
            self.weigh_anew()
        self.ledger.withdrawn += len(callers)
        for caller in callers:
            caller.owed -= 1
            with contained(caller):
                caller.lost()

    # --- connection ---

    def connected(self, link: Link, round_trip: float, now: float = 0.0) -> None:
        """A connection of this identity stands, nothing is owed on it. `round_trip` as the handshake measured it."""
        self.become(LaneState.READY)
        self.link = link
        self.send = link.send
        self.turned_away = False
        self.connections += 1
        self._left = now
        self._round_trip = round_trip
        self.timing = False

    def lose(self) -> None:
        """The connection is gone. Whoever had a request in flight on it is told; unsent requests stay (I7)."""
        self.become(LaneState.DIALLING)
        self.link = None
        self.send = None
        self.ends_transactions = False
        self._tail = b""
        self._passage = None
        self._passed = 0
        in_flight, self.in_flight = self.in_flight, deque()
        for caller in in_flight:  # (before the first of them is told, and leaves)
            self._count_lost(caller)
        for caller in in_flight:
            with contained(caller):
                caller.lost()

    def _count_lost(self, caller: Caller) -> None:
        """A request was in flight on a connection that is lost."""
        session = caller.session
        if session is None:
            self.ledger.own += 1
        elif session.gone:
            self.ledger.swallowed += 1
        else:
            self.ledger.failed += 1

    def hand_over(self) -> bytes:
        """The connection goes to somebody who takes the replies as they come; returns what is here of the next.

        (Something is in flight where a client sends no more while it blocks: that counts as swallowed.)
        """
        ours = sum(caller.session is None for caller in self.in_flight)
        self.ledger.own += ours
        self.ledger.swallowed += len(self.in_flight) - ours
        self.in_flight.clear()
        rest, self._tail = self._tail, b""
        return rest

    def fail(self, why: str) -> None:
        """Requests have waited for as long as they may: from now on they get an error, until a connection stands."""
        self.become(LaneState.FAILING)
        self.why_failing = why

    def answer_unsent(self, reply: bytes) -> None:
        """Gives every unsent request this reply in place of the upstream's."""
        callers = self._forget_unsent()
        for caller in callers:
            caller.owed -= 1
            session = caller.session
            if session is not None and not session.gone:
                self.ledger.refused += 1
            elif session is not None:
                self.ledger.withdrawn += 1
            with contained(caller):
                if session is None:
                    caller.lost()
                else:
                    caller.write(reply)

    def lose_unsent(self) -> None:
        """Tells every caller of an unsent request that it is lost."""
        for caller in self.drop_unsent():
            with contained(caller):
                caller.lost()

    def drop_unsent(self) -> list[Caller]:
        """Forgets the requests that never left, of callers that are no more, or are about to be closed."""
        callers = self._forget_unsent()
        for caller in callers:
            session = caller.session
            if session is not None and session.gone:
                self.ledger.withdrawn += 1
            elif session is not None:
                self.ledger.stranded += 1
        return callers

    def take_unsent(self, other: Lane) -> None:
        """The requests that never left go on here, behind those that do already."""
        if not self.unsent:
            self.unsent_since = other.unsent_since
        self.unsent += other.unsent
        self.callers += other.callers
        self.withdrawable |= other.withdrawable
        for caller in other._forget_unsent():
            if isinstance(caller, Ours):
                caller.lane = self

    def _forget_unsent(self) -> list[Caller]:
        callers = [*(caller for _, caller in self.first), *self.callers]
        self.unsent = []
        self.callers = []
        self.withdrawable = {}
        self.first.clear()
        self._weighed = self._weight = 0
        return callers

    # --- requests ---

    def unsent_weight(self) -> int:
        """Bytes of the unsent requests. Only those that came since the last call are looked at."""
        self._weight += sum(map(len, self.unsent[self._weighed :]))
        self._weighed = len(self.unsent)
        return self._weight

    def weigh_anew(self) -> None:
        """Other pieces are unsent than those that were looked at."""
        self._weighed = self._weight = 0

    def idle_for(self, now: float) -> float:
        """Seconds since a batch left, if nothing is owed; else 0."""
        return 0.0 if self.owed or self.link is None else now - self._left

    def may_flush(self, now: float) -> bool:
        """Whether the next batch should leave, or grow while another is in flight. A lone request never waits."""
        if self.outdated and not self.exclusive:
            return False
        if self.large:
            # An upstream runs what has arrived in one go, and everybody else waits meanwhile.
            return not self.in_flight
        if not self.in_flight:
            return True
        return (self.authenticated and not self.first) and (
            len(self.callers) >= FULL_BATCH or self._round_trip >= self._hold_below or now - self._left > HOLD_AT_MOST
        )

    def take_batch(self, now: float) -> bytes:
        """The bytes of the unsent requests, which are in flight from here on: a byte of them may leave (I7)."""
        if self.callers and (self.large or not self.authenticated):
            self.part()  # from before a loss, when they took the quick way
            most = 1 if self.large else UNAUTHENTICATED_BATCH
            weight = self.unsent_weight()
            unsent, callers = self.unsent[:most], self.callers[:most]
            del self.unsent[:most], self.callers[:most]
            self._weighed = len(self.unsent)
            self._weight = weight - sum(map(len, unsent))
            if self.withdrawable:
                self.withdrawable = {it: request for it, request in self.withdrawable.items() if it not in callers}
        else:
            unsent, callers = self.unsent, self.callers
            self.unsent, self.callers = [], []
            if self.withdrawable:
                self.withdrawable = {}
            self._weighed = self._weight = 0
        if self.first:
            request, caller = self.first.popleft()
            unsent, callers = [request, *unsent], [caller, *callers]
        self.in_flight.extend(callers)  # before anything else may fail
        count = len(callers)
        batch = unsent[0] if len(unsent) == 1 else b"".join(unsent)
        self.commands += count
        self.batches += 1
        ledger = self.ledger
        ledger.sent += count
        ledger.batches += 1
        if count > self.largest:  # noqa: PLR1730 (max() and min() take twice as long)
            self.largest = count
        self._left = now
        if count:
            ledger.sizes.observe(count - 1)
            ledger.waits.observe(int((now - self.unsent_since) * 1e6))
            self.unsent_since = now  # of what has not left with it: its true time is not known
            if not self.timing:
                self.timing = True
                self._timed_from = now
                self._timed_behind = self.commands - count
        return batch

    def time(self, now: float) -> None:
        """Replies have been received, while a batch was timed."""
        if self.commands - len(self.in_flight) > self._timed_behind:
            self.timing = False
            took = now - self._timed_from
            if took < self._round_trip:  # noqa: PLR1730 (as above)
                self._round_trip = took
            self.ledger.round_trips.observe(int(took * 1e6))

    # --- replies ---

    def receive(self, data: bytes) -> None:  # noqa: C901, PLR0912, PLR0915 (hot: flat)
        """HOT. Hands each reply to the caller at the head of the FIFO; replies side by side for one go out as one.

        Raises UpstreamError, after which the lane has to be lost; who is owed something is then still in the FIFO.
        Plain twin: `tests/core/twins.py`. Benchmark: `tests/bench/hot.py`.
        """
        if self._tail:
            data = self._tail + data
            self._tail = b""
        if self._passage is not None:
            data = self._pass_on(data, self._passage)
        find = data.find
        next_caller = self.in_flight.popleft
        short = SHORT_LENGTHS.get
        size = len(data)
        caller: Caller | None = None  # whose replies lie between start and position
        owner: Caller | None = None  # of the reply at position; not the same only while the caller is written to
        start = position = 0
        while True:
            try:
                while position < size:
                    end = find(CRLF, position)
                    if end < 0:
                        break
                    kind = data[position]
                    if kind == 36:  # "$"
                        length = short(data[position + 1 : end])
                        if length is None:
                            end = self._end_of_other(data, position)
                            if end < 0:
                                break
                        else:
                            end += length + 4
                            if end > size:
                                break
                            if data[end - 1] != 10 or data[end - 2] != 13:
                                raise Desync("a bulk string without an end")  # noqa: TRY301 (hot: flat)
                    elif kind == 43 or kind == 58:  # "+" ":"  # noqa: PLR1714 (a set costs more)
                        end += 2
                    elif kind == 45:  # "-"
                        end += 2
                        if data.startswith(_TURNED_AWAY, position):
                            self.turned_away = True
                    else:
                        end = self._end_of_other(data, position)
                        if end < 0:
                            break
                    owner = next_caller()
                    if owner is not caller:
                        if caller is not None:
                            caller.write(data[start:position])
                        caller = owner
                        start = position
                    owner.owed -= 1  # not before: to be owed nothing is to have all replies written
                    position = end
                if caller is not None:
                    owner = None
                    caller.write(data[start:position])
                break
            except Exception as problem:
                if owner is caller:
                    if not isinstance(problem, IndexError | UpstreamError):
                        raise
                    if self.link is None:
                        return  # hung up, for want of the one it was lent to
                    # The last caller's replies were aligned as far as can be seen, and that is not far enough.
                    if caller is not None:
                        self._put_back(caller, self._replies_in(data, start, position))
                    why = "a reply that nobody asked for" if isinstance(problem, IndexError) else str(problem)
                    raise Desync(why) from problem
                # A fault of ours, and of nobody but that caller: the next reply has not been handed out, so its owner
                # is the head again.
                assert caller is not None
                if owner is not None:
                    self.in_flight.appendleft(owner)
                faulty, caller, owner = caller, None, None
                start = position
                faulty.fail(problem)
        if position < size and self.link is not None:
            self._keep(data[position:])

    def _end_of_other(self, data: bytes, position: int) -> int:
        end, outstanding, passing = skip_elements(data, position, 1)
        return -1 if outstanding or passing else end

    def _put_back(self, caller: Caller, replies: int) -> None:
        """So many replies were taken, and not written."""
        self.in_flight.extendleft([caller] * replies)
        caller.owed += replies

    def _replies_in(self, data: bytes, start: int, end: int) -> int:
        """How many whole replies lie there."""
        count = 0
        while start < end:
            start = self._end_of_other(data, start)
            count += 1
        return count

    def _keep(self, beginning: bytes) -> None:
        """Keeps the beginning of a reply until more comes, or starts to pass a large one on."""
        if not self.in_flight:
            raise Desync("a reply that nobody asked for")
        if len(beginning) < STREAM_FROM:
            self._tail = beginning
            return
        self._passage = Passage()
        rest = self._pass_on(beginning, self._passage)
        if rest:
            raise Desync("a reply ended twice")

    def _pass_on(self, data: bytes, passage: Passage) -> bytes:
        """Passes on what `data` has of the reply at the head; what lies behind that reply is returned."""
        head = self.in_flight[0]
        position = passage.skip(data)
        if not passage.over:
            self._tail = data[position:]
            if position:
                self._write_piece(head, data[:position])
            return b""
        self._passage = None
        self.in_flight.popleft()
        head.owed -= 1
        self._write_piece(head, data[:position])
        if self._passed >= LARGE:
            self.had_large.append(head)
        self._passed = 0
        return data[position:]

    def _write_piece(self, head: Caller, piece: bytes) -> None:
        begun = self._passed > 0
        self._passed += len(piece)
        with contained(head):
            (head.write_more if begun else head.write)(piece)
