"""What is large has a lane of its own, or what is small would wait behind it; a session goes there and comes back.

    FLOWING on its lane --- a large request, or a large reply; then nothing is owed --> FLOWING on the lane for what is
                        <-- _SMALL_AGAIN replies in a row that were not large --------- large, of the same identity

Where that lane fails, what is large goes on beside everything else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coalesce.core.containment import contained
from coalesce.core.held import Large
from coalesce.core.lane import LaneState
from coalesce.core.session import Session, SessionState

if TYPE_CHECKING:
    from coalesce.core.exchange import Exchange
    from coalesce.core.lane import Lane

# Replies in a row that were not large, after which a session leaves the lane for what is large.
_SMALL_AGAIN = 16


def ride(exchange: Exchange, session: Session) -> bool:
    """Whether the session's next request, which is large, may leave now, and not first when nothing is owed."""
    session.large = True
    session.small = 0
    large = exchange.large_lane(session.lane.identity)
    if session.lane.large or large.state is LaneState.FAILING:
        return True
    if session.owed:
        return False
    exchange.ride_on(session, large)  # and wait there for its connection
    session.rewire()
    return True


def enqueue(exchange: Exchange, session: Session, request: bytes) -> None:
    """A large request leaves with the next flush of the session's lane, and can be withdrawn until then."""
    caller = Large(session, session, len(request))
    exchange.enqueue(session.lane, request, caller)
    session.lane.withdrawable[caller] = request


def have_had(exchange: Exchange, lane: Lane) -> None:
    """Large replies were handed out on a lane."""
    callers, lane.had_large = lane.had_large, []
    for caller in callers:
        session = caller.session if isinstance(caller, Large) else caller
        if isinstance(session, Session):
            with contained(session):
                had(exchange, session)


def had(exchange: Exchange, session: Session) -> None:
    """The session was given a large reply: more may follow, but on the other lane."""
    session.small = 0
    if session.state is SessionState.FLOWING:
        session.large = True
        change_lane(exchange, session) if not session.owed else session.rewire()


def look_at_size(session: Session) -> None:
    """A session that moves large values was given a reply."""
    session.large = session.small < _SMALL_AGAIN


def change_lane(exchange: Exchange, session: Session) -> None:
    """A session to which nothing is owed changes to the lane that is for what it moves, where that is connected."""
    identity = session.lane.identity
    lane = exchange.large_lane(identity) if session.large else exchange.lane(identity)
    if lane.large and (lane.state is not LaneState.READY or lane.outdated):
        lane = exchange.lane(identity)
    throttled = session.throttled
    if lane is not session.lane:
        exchange.ride_on(session, lane)
    session.rewire()
    if throttled and not session.throttled:
        exchange.advance(session)


def go_on_without(exchange: Exchange, large: Lane) -> None:
    """What is large goes on beside everything else, with all its unsent requests (nothing is in flight)."""
    home = exchange.lane(large.identity)
    if large.unsent and not home.unsent:
        exchange.dirty.append(home)
    home.take_unsent(large)
    large.full = False
    home.waiting |= large.waiting
    resumed: list[Session] = []
    for session in list(large.sessions):
        if session.lane is large:
            session.lane = home
        large.sessions.discard(session)
        home.sessions.add(session)
        with contained(session):
            if session.throttled and session.owed <= exchange.limits.client // 2:
                exchange.resume(session)
                resumed.append(session)
            session.rewire()
    large.waiting.clear()
    for session in resumed:
        with contained(session):
            exchange.advance(session)


def withdraw(exchange: Exchange, session: Session) -> None:
    """As `Exchange.withdraw`."""
    identity = session.lane.identity
    for lane in (exchange.lanes.get(identity), exchange.large_lanes.get(identity)):
        if lane is not None:
            for caller in [it for it in lane.withdrawable if it.session is session]:
                lane.withdraw(caller)
                caller.release()
