"""What there is to be seen of a running coalesce: one look at it, in plain values, for metrics.py and status.py.

Nothing in here says what a client sent.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from coalesce.core.histogram import Histogram
from coalesce.core.lane import LaneState
from coalesce.core.ledger import Kind
from coalesce.logs import dropped
from coalesce.tally import Closed, Dial, Lost, Side

if TYPE_CHECKING:
    from collections.abc import Iterable

    from coalesce.config import Upstream
    from coalesce.core.lane import Lane
    from coalesce.core.ledger import Outcomes
    from coalesce.server import Server, State

# Where batches form: on a lease there is one session, which may block for as long as it likes.
SHARED_KINDS = (Kind.SHARED, Kind.LARGE)


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
    paused: bool  # also while it drains, for as long as --sigterm-delay lasts
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


def look(server: Server) -> Figures:
    """All that there is to be seen of it, as of now."""
    exchange, clients, leases = server.exchange, server.clients, server.exchange.leases
    lent = leases.figures()
    lanes = exchange.all_lanes
    in_flight = sum(len(lane.in_flight) for lane in lanes)
    tally = server.poller.tally
    closed = tally.closed + Counter({Closed.LOST_UPSTREAM: exchange.clients_lost})
    broken = tally.protocol_errors + Counter({Side.CLIENT: exchange.protocol_errors})
    return Figures(
        state=server.state,
        paused=server.paused,
        uptime=perf_counter() - server.began,
        upstream=server.config.upstream,
        software=server.software,
        listen=[str(address) for address in server.addresses],
        clients={
            "shared": clients.shared - lent.borrowers - lent.waiting,
            "leased": lent.borrowers,
            "waiting": lent.waiting,
            "pinned": clients.pinned,
            "greeting": clients.greeting,
        },
        clients_limit=clients.limit,
        clients_accepted=clients.accepted,
        clients_refused=tally.clients_refused,
        clients_closed={reason.value: closed[reason] for reason in Closed},
        clients_memory=server.memory.total,
        clients_memory_limit=server.memory.limit,
        leases={"dialling": lent.dialling, "lent": lent.lent, "idle": lent.idle, "pinned": leases.pinned},
        leases_waiting=lent.queue,
        leases_limit=leases.limit,
        lanes=[_lane_figures(lane, server.config.upstream.username) for lane in lanes if not lane.exclusive],
        lanes_limit=server.config.max_lanes,
        outcomes={kind.value: outcomes for kind, outcomes in exchange.outcomes().items()},
        own_commands=sum(ledger.own for ledger in exchange.ledgers.values()),
        unsent=sum(lane.owed for lane in lanes) - in_flight,
        in_flight=in_flight,
        batches=sum(exchange.ledgers[kind].batches for kind in SHARED_KINDS),
        batch_commands=_merged(exchange.ledgers[kind].sizes for kind in SHARED_KINDS),
        round_trips=_merged(exchange.ledgers[kind].round_trips for kind in SHARED_KINDS),
        queue_waits=_merged(exchange.ledgers[kind].waits for kind in SHARED_KINDS),
        sent=tally.sent,
        received=tally.received,
        lane_losses={reason.value: tally.lost[reason] for reason in Lost},
        dials={outcome.value: tally.dials[outcome] for outcome in Dial},
        protocol_errors={side.value: broken[side] for side in Side},
        faults=server.faults.count,
        log_lines_dropped=dropped(),
    )


def _lane_figures(lane: Lane, own_user: bytes | None) -> LaneFigures:
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


def _merged(histograms: Iterable[Histogram]) -> Histogram:
    """All in one, which is the asker's own."""
    whole = Histogram()
    for histogram in histograms:
        whole.counts = [one + other for one, other in zip(whole.counts, histogram.counts, strict=True)]
        whole.total += histogram.total
    return whole
