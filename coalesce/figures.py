"""What there is to be seen of a running coalesce: one look at it, in plain values, for metrics.py and status.py.

Nothing in here says what a client sent.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coalesce.core.histogram import Histogram
from coalesce.core.lane import LaneState
from coalesce.core.ledger import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from coalesce.config import Upstream
    from coalesce.core.lane import Lane
    from coalesce.core.ledger import Outcomes

# Where batches form: on a lease there is one session, which may block for as long as it likes.
SHARED_KINDS = (Kind.SHARED, Kind.LARGE)


class State(enum.Enum):
    """What a server does."""

    STARTING = "starting"
    SERVING = "serving"
    PAUSED = "paused"
    DRAINING = "draining"


@dataclass(frozen=True)
class LaneFigures:
    """One lane. (There may be a thousand leases: they are not looked at one by one.)"""

    number: int
    kind: Kind
    state: str
    user: str | None  # None: it has not authenticated
    database: int
    protocol: int
    sessions: int
    unsent: int
    in_flight: int
    commands: int
    batches: int
    round_trip: float | None  # seconds
    connections: int
    why: str | None  # it is failing


@dataclass(frozen=True)
class Figures:
    """One look."""

    state: State
    uptime: float  # seconds
    upstream: Upstream
    software: str | None  # None: not known yet
    listen: list[str]
    clients: dict[str, int]  # by state
    clients_limit: int
    clients_accepted: int
    clients_refused: int
    clients_closed: dict[str, int]  # by reason
    clients_memory: int  # bytes
    clients_memory_limit: int
    leases: dict[str, int]  # by state
    leases_waiting: int  # sessions
    leases_limit: int
    lanes: list[LaneFigures]  # shared ones
    lanes_limit: int
    outcomes: dict[str, Outcomes]  # of commands, by kind of connection
    own_commands: int
    unsent: int  # requests, on leases, too
    in_flight: int
    batches: int
    batch_commands: Histogram  # commands but one
    round_trips: Histogram  # microseconds
    queue_waits: Histogram  # microseconds
    sent: int  # bytes
    received: int
    lane_losses: dict[str, int]  # by reason
    dials: dict[str, int]  # by outcome
    protocol_errors: dict[str, int]  # by side
    faults: int
    log_lines_dropped: int

    @property
    def commands(self) -> int:
        """That clients sent, and that have ended."""
        return sum(map(sum, self.outcomes.values()))


def lane_figures(lane: Lane, own_user: bytes | None) -> LaneFigures:
    """`own_user`: whom coalesce itself authenticates as."""
    identity = lane.identity
    username = own_user if identity.password is None else identity.username
    return LaneFigures(
        number=lane.number,
        kind=lane.kind,
        state=lane.state.name.lower(),
        user=(username or b"default").decode(errors="replace") if lane.authenticated else None,
        database=identity.database,
        protocol=identity.protocol,
        sessions=len(lane.sessions),
        unsent=len(lane.callers) + len(lane.first),
        in_flight=len(lane.in_flight),
        commands=lane.commands,
        batches=lane.batches,
        round_trip=lane.round_trip,
        connections=lane.connections,
        why=lane.why_failing if lane.state is LaneState.FAILING else None,
    )


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """All in one, which is the asker's own."""
    whole = Histogram()
    for histogram in histograms:
        whole.counts = [one + other for one, other in zip(whole.counts, histogram.counts, strict=True)]
        whole.total += histogram.total
    return whole
