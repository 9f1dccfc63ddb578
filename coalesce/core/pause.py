"""A pause: what has not left is held, what has is finished, so that the upstream can be swapped meanwhile.

pause       nothing leaves on a shared lane, nobody is lent a connection; nobody is told that there is none
unfinished  what is still going on upstream: the swap waits until nothing of it is left that ends by itself
go_on       everything leaves again, on new connections
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from coalesce.core.containment import contained
from coalesce.core.ends import look_at_end
from coalesce.core.lane import LaneState
from coalesce.core.session import SessionState
from coalesce.core.stream import Subscriber

if TYPE_CHECKING:
    from coalesce.core.exchange import Exchange


class Unfinished(NamedTuple):
    """What was begun before a pause, and has not ended."""

    in_flight: int = 0  # requests; of what blocks or is subscribed, none
    in_transaction: int = 0  # sessions; those that watch keys, too
    blocked: int = 0
    subscribed: int = 0
    pinned: int = 0

    @property
    def ends(self) -> bool:
        """Whether there is something that ends by itself, or when its client has said the rest."""
        return bool(self.in_flight or self.in_transaction)


def pause(exchange: Exchange) -> None:
    """As `Exchange.pause`."""
    if exchange.paused:
        return
    exchange.paused = True
    for lane in exchange.shared_lanes:
        if lane.state is LaneState.FAILING:
            lane.become(LaneState.DIALLING)  # its requests wait as all others do
    for session in exchange.sessions:
        if session.state is SessionState.SETTLING:
            with contained(session):
                session.rewire()  # its client's end may matter now
    exchange.leases.call_in()
    for session in exchange.leases.queued:
        if session.ended:
            with contained(session):
                look_at_end(exchange, session)


def go_on(exchange: Exchange, now: float) -> None:
    """As `Exchange.go_on`."""
    if not exchange.paused:
        return
    exchange.paused = False
    exchange.now = now
    for lane in exchange.shared_lanes:
        lane.outdated = True
    exchange.leases.wait_anew(now)


def unfinished(exchange: Exchange) -> Unfinished:
    """What is still going on upstream."""
    in_flight = sum(len(lane.in_flight) for lane in exchange.shared_lanes)
    in_transaction = blocked = subscribed = 0
    for lease in exchange.leases.of.values():
        if isinstance(lease.stream, Subscriber):
            subscribed += 1
        elif lease.blocking and not lease.in_transaction:
            blocked += 1
        elif lease.session is not None and not lease.clean and lease.stream is None:
            in_transaction += 1
        elif lease.stream is not None:  # a verdict
            in_flight += 1
        else:
            in_flight += len(lease.lane.in_flight) + len(lease.lane.callers)
    return Unfinished(in_flight, in_transaction, blocked, subscribed, exchange.leases.pinned)
