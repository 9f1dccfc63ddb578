"""One client's conversation: its state, its identity (that of its lane), what it is owed.

            +-------------- the upstream answered, or the lease is clean again -----------+
            v                                                                             |
        FLOWING --- a request that changes more than data ---> SETTLING --+--> MOVING ----+   AUTH, HELLO, SELECT
            |         (waits until nothing is owed, I6)             ^     +--> BORROWING -+   until there is a lease
            |                                                       |               v     |
            |                                                       +------------ LEASED -+   a connection of its own
            |                                                                       v     |
            |  end of input, QUIT, protocol error, drain            +--------- PINNING ---+   ... perhaps for good
            +-----------------------> ENDING (from LEASED, too;     v
                                         |   from SETTLING         PINNED                     ... for good
                                         |   in a pause)
                                         | nothing is owed
                                         v
                                       GONE    (from any state but PINNED: the client left, the upstream was lost)

Read from, while it is not throttled, is a FLOWING or LEASED session, and one that waits for what may never come (a
verdict, a lease, the end of what blocks). What the core knows of the client is its `Peer`; what the FIFO of a lane
knows of the session is `owed`, `write` and `lost`. `write` is the client's own, and is exchanged for another when
somebody has to look at each reply (see `Session.rewire`), so that the hot path has no branch.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Protocol

from coalesce.core.commands import may_block

if TYPE_CHECKING:
    from coalesce.core.exchange import Exchange
    from coalesce.core.lane import Lane
    from coalesce.core.lease import Lease
    from coalesce.core.resp import RequestReader


class Peer(Protocol):
    """The client as the core sees it. No method raises anything but faults of ours, and `fail` not even these."""

    def write(self, data: bytes, /) -> None:
        """Sends, or keeps until it can be sent. Never waits."""

    def write_more(self, data: bytes, /) -> None:
        """The same, for the next piece of a reply that has been begun: it can't be refused any more."""

    def read(self, wanted: bool, end: bool, /) -> None:
        """Whether to go on reading; if not, whether its end is to be told all the same."""

    def close(self) -> None:
        """Closes, once all that was written has been sent."""

    def fail(self, fault: Exception, /) -> None:
        """A fault of ours while this client was served: says so, and closes at once. The session departs with it."""

    def hold(self, size: int, /) -> None:
        """The core now holds so many bytes for this client, and goes on to say so after it has left: see held.py."""

    def pin(self, lane: Lane, pending: bytes, /) -> None:
        """Goes on for good with the connection of this lane, which is over; `pending`: requests that were not sent.

        No session speaks for the client any more.
        """


class SessionState(enum.Enum):
    """See the picture above."""

    FLOWING = enum.auto()
    SETTLING = enum.auto()
    MOVING = enum.auto()
    BORROWING = enum.auto()
    LEASED = enum.auto()
    PINNING = enum.auto()
    PINNED = enum.auto()
    ENDING = enum.auto()
    GONE = enum.auto()


_S = SessionState
_TRANSITIONS = {
    _S.FLOWING: {_S.SETTLING, _S.ENDING, _S.GONE},
    _S.SETTLING: {_S.FLOWING, _S.MOVING, _S.BORROWING, _S.LEASED, _S.PINNED, _S.ENDING, _S.GONE},
    _S.MOVING: {_S.FLOWING, _S.GONE},
    _S.BORROWING: {_S.LEASED, _S.FLOWING, _S.GONE},
    _S.LEASED: {_S.FLOWING, _S.SETTLING, _S.PINNING, _S.PINNED, _S.ENDING, _S.GONE},
    _S.PINNING: {_S.FLOWING, _S.PINNED, _S.GONE},
    _S.PINNED: set(),
    _S.ENDING: {_S.GONE},
    _S.GONE: set(),
}


def _nobody(data: bytes) -> None:
    """Nothing is left to swallow."""
    del data


_WAITING = frozenset((_S.SETTLING, _S.LEASED, _S.ENDING))
# Requests are taken.
TAKING = frozenset((_S.FLOWING, _S.LEASED))


class Session:
    """One client's conversation. Whoever connects it owns it; lanes only refer to it."""

    __slots__ = ("_exchange", "ended", "flowing", "held", "lane", "large", "last_words",
                 "lease", "left_owed", "locked", "name", "owed", "peer", "reader", "small", "state",
                 "throttled", "told", "waiting", "write")  # fmt: skip

    def __init__(self, exchange: Exchange, lane: Lane, peer: Peer, *, locked: bool = False) -> None:
        self._exchange = exchange
        self.lane = lane
        self.peer = peer
        self.state = SessionState.FLOWING
        self.owed = 0  # replies
        self.left_owed = 0  # ... when it left, or when the last of them was swallowed
        self.write = peer.write
        self.locked = locked  # has to authenticate to coalesce first: see door.py
        self.flowing = True  # a chunk may take the short way: see `rewire`
        self.ended = False  # the client sends no more
        self.throttled = False  # too much is owed, to this session or on its lane: not read for the while
        self.reader: RequestReader | None = None  # holds what was read and not yet taken as a request
        self.waiting: list[bytes] | None = None  # the request that waits while SETTLING or BORROWING
        self.last_words = b""  # what is written between the last reply and the close
        self.large = False  # moves large values: is to ride the lane for these, as soon as it is owed nothing
        self.small = 0  # replies in a row that were not large, while it does
        self.name = b""  # CLIENT SETNAME
        self.held = 0  # bytes of its large requests on shared lanes
        self.told = 0  # bytes that its peer knows of: see held.py
        self.lease: Lease | None = None  # whose lane is this session's, while LEASED
        self.rewire()

    def __repr__(self) -> str:
        locked = " locked" if self.locked else ""
        return f"<Session {self.state.name.lower()}{locked} u{self.lane.number} owed={self.owed}>"

    def become(self, state: SessionState) -> None:
        """The one place where the state changes. Reading and `write` follow it."""
        if state not in _TRANSITIONS[self.state]:
            raise AssertionError(f"{self!r} can't become {state}")
        self.state = state
        if state is SessionState.GONE:
            self.left_owed = self.owed
        self.rewire()

    @property
    def reading(self) -> bool:
        """Whether the state is one in which the client is read from, unless it is throttled.

        Behind what may take for ever, a client goes on sending, and would come to a halt if nobody took it; and its
        end has to be seen.
        """
        if self.ended or self.state is SessionState.ENDING:
            return False
        return self.state in TAKING or self._may_go_on_for_ever

    @property
    def _may_go_on_for_ever(self) -> bool:
        """Whether something is waited for that has to end with the client: or an element is popped for nobody."""
        if self.state in {SessionState.PINNING, SessionState.BORROWING}:
            return True
        lease = self.lease
        return self.state in _WAITING and lease is not None and (lease.blocking > 0 or lease.stream is not None)

    @property
    def waits_to_block(self) -> bool:
        """Whether it is only for a pause that its request does not block yet, behind others that wait for its end."""
        settling = self.state is SessionState.SETTLING and self.lease is None
        return settling and self._exchange.paused and may_block(self.waiting)

    def rewire(self) -> None:
        """Makes `write`, `flowing` and the client's reading follow from the state."""
        read = self.reading and not self.throttled
        usual = self.state is SessionState.FLOWING and not self.large and not self.lane.large
        self.flowing = usual and self.reader is None and self.lane.authenticated and not self.locked
        if self.state is SessionState.GONE:
            # (No more is written where nothing is owed; then it is not to refer to itself, and goes at once.)
            self.write = self.swallow if self.owed else _nobody
            return
        self.write = self.peer.write if read and usual else self._write_and_look
        if self.state is not SessionState.PINNED:
            self.peer.read(read, not self.ended and (self._may_go_on_for_ever or self.waits_to_block))

    def write_more(self, data: bytes) -> None:
        if self.state is SessionState.GONE:
            self.swallow(data)
            return
        self.peer.write_more(data)
        if self.write != self.peer.write:
            self._exchange.answered(self)

    def _write_and_look(self, data: bytes) -> None:
        self.peer.write(data)
        self.small += 1  # or it turns out to be large: then it begins anew
        self._exchange.answered(self)

    @property
    def session(self) -> Session:
        """As of any caller: whose request it is."""
        return self

    @property
    def gone(self) -> bool:
        return self.state is SessionState.GONE

    def swallow(self, data: bytes) -> None:
        """Takes the place of `write` once the client has left."""
        del data
        self._exchange.count_swallowed(self.left_owed - self.owed)
        self.left_owed = self.owed
        if not self.owed:
            self.write = _nobody

    def lost(self) -> None:
        """A request of this session was in flight on a connection that is gone: so is the client's (I7)."""
        self._exchange.depart_lost(self)

    def fail(self, fault: Exception) -> None:
        self.peer.fail(fault)
