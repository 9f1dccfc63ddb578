"""The text of /metrics: what Prometheus scrapes.

Everything is computed from one look at the server when it is asked for. Labels have few values, known beforehand: no
keys, values, user names or addresses.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.openmetrics import exposition as openmetrics

from coalesce.admin.figures import SHARED_KINDS
from coalesce.admin.process import this_process
from coalesce.build import build_info
from coalesce.core.lane import LaneState
from coalesce.server import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from prometheus_client.core import Metric

    from coalesce.admin.figures import Figures
    from coalesce.core.histogram import Histogram

# Buckets, as powers of two: 1 to 8192 commands, 16 us to 16.8 s. All else is in the first or the last.
_COMMANDS = range(14)
_MICROSECONDS = range(4, 25)
_OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_LANE_STATES = [LaneState.DIALLING, LaneState.READY, LaneState.FAILING]

# What each one is, and when to worry. (Those of the process have the names and texts of all of Prometheus's clients.)
_HELP = {
    "build_info": "Always 1; the labels say which coalesce runs.",
    "clients": (
        "Clients that are connected: shared (on lanes), leased (with a connection of its own for now), waiting (for "
        "a lease), pinned (with one for good), greeting (TLS handshake). Near clients_limit, new ones are soon refused."
    ),
    "clients_limit": "Clients that there may be: --max-clients, or fewer where the system allows fewer descriptors.",
    "clients_accepted": (
        "Clients that were let in. If it grows with the commands, the application does not keep its connections."
    ),
    "clients_refused": "Clients refused as there were clients_limit already: any is one too many.",
    "clients_closed": (
        "Clients closed by coalesce, not by themselves: outbox (left its replies unread), memory (held most when all "
        "held too much), silence (nothing heard from its host), lost_upstream (had a request in flight on a connection "
        "that was lost, or one of its own), fault (of coalesce's own: report it)."
    ),
    "clients_memory_bytes": (
        "Bytes held for all clients together: requests and unread replies. Near the limit, somebody is soon closed."
    ),
    "clients_memory_limit_bytes": "Bytes beyond which the client that holds most is closed (--clients-memory).",
    "lanes": (
        "Upstream connections that clients share, one for each user, database and protocol version (kind shared), and "
        "perhaps one more for values of 128 KiB and more (kind large): dialling (requests wait), ready, failing (there "
        "is none, and requests are refused)."
    ),
    "lanes_limit": "Users, databases and protocol versions that share connections; others' clients get one each.",
    "leases": (
        "Upstream connections for one client each: dialling, lent (a transaction, what blocks, a subscription), idle "
        "(kept for the next client), pinned (for as long as its client stays). Near leases_limit, clients soon wait."
    ),
    "leases_waiting": "Clients that wait for a lease. If it stays above 0, they get an error after --upstream-wait.",
    "leases_limit": "Leases that there may be at a time (--max-leases).",
    "dials": (
        "Attempts to connect to the upstream: connected, refused (its no to credentials or database), failed (all "
        "else). Failed ones that go on are an outage; refused ones, wrong credentials of a client's or coalesce's own."
    ),
    "lane_losses": (
        "Shared connections lost, and with them the clients that had a request in flight: closed or reset (by the "
        "upstream or the network), silent (nothing heard from its host), desync (replies did not match requests: "
        "report it), fault (of coalesce's own: report it), replaced (by one to another upstream: nobody is closed), "
        "other."
    ),
    "upstream_sent_bytes": "Bytes sent on all upstream connections, before TLS.",
    "upstream_received_bytes": "Bytes received on all upstream connections, after TLS.",
    "commands": (
        "Commands of clients that have ended: delivered (answered), swallowed (the client had left), failed (lost with "
        "the connection: whether it ran is not known), refused (never sent, and answered by an error of coalesce's). "
        "Failed and refused are what clients notice. The connection: shared, shared for large values, or leased."
    ),
    "own_commands": "Commands that no client asked for: PINGs, on idle connections, and behind scripts and the like.",
    "requests_unsent": (
        "Requests read and not sent yet. If it stays high, the upstream, the network or coalesce's one core is at its "
        "limit; compare queue_wait_seconds with upstream_round_trip_seconds."
    ),
    "requests_in_flight": "Requests sent and not answered yet, those that block among them.",
    "batch_commands": (
        "Commands in a batch, which is one write on a shared connection: the more, the more is saved. Near 1 under "
        "load, coalesce saves nothing: clients are few, or pipeline already."
    ),
    "upstream_round_trip_seconds": (
        "Seconds from a batch's leaving to its first reply: the upstream's and the network's part of the latency."
    ),
    "queue_wait_seconds": (
        "Seconds from a batch's first request to its leaving: coalesce's part of the latency. If it stays far above "
        "the round trip, coalesce lacks CPU."
    ),
    "protocol_errors": (
        "What was not RESP: of a client (it was closed; a stranger, most likely), or of the upstream (any: it is no "
        "Redis, or something between alters its replies)."
    ),
    "faults": "Faults of coalesce's own; its log has what followed and the traceback. Report any.",
    "log_lines_dropped": "Lines of the log that are lost: who reads standard error is too slow, or its disk is full.",
    "paused": "1 while clients wait, from coalesce pause to coalesce resume. If for long, somebody has forgotten it.",
    "draining": "1 from when it was told to end, as long as clients are served for --sigterm-delay, too.",
}


class Metrics:
    """What /metrics says of what `look` sees."""

    def __init__(self, look: Callable[[], Figures]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Collector(look))

    def exposed(self, accept: str) -> tuple[bytes, str]:
        """In OpenMetrics if the header names that: the text, and its content type.

        (The library's own choice reads versions, too: it raises where one is no number, and says that it has any.)
        """
        if "application/openmetrics-text" in accept:
            return openmetrics.generate_latest(self._registry), _OPENMETRICS  # type: ignore[no-untyped-call]
        return exposition.generate_latest(self._registry), _TEXT


class _Collector:
    def __init__(self, look: Callable[[], Figures]) -> None:
        self._look = look
        self._build = build_info()

    def collect(self) -> Iterator[Metric]:
        figures = self._look()
        build = self._build
        labels = (build.version, build.commit or "", build.python)
        yield _gauge("build_info", build._fields, {labels: 1})
        yield from _clients(figures)
        yield from _connections(figures)
        yield from _commands(figures)
        yield from _troubles(figures)
        yield from _process()


def _clients(figures: Figures) -> Iterator[Metric]:
    yield _gauge("clients", ("state",), _by_one(figures.clients))
    yield _gauge("clients_limit", (), {(): figures.clients_limit})
    yield _counter("clients_accepted", (), {(): figures.clients_accepted})
    yield _counter("clients_refused", (), {(): figures.clients_refused})
    yield _counter("clients_closed", ("reason",), _by_one(figures.clients_closed))
    yield _gauge("clients_memory_bytes", (), {(): figures.clients_memory})
    yield _gauge("clients_memory_limit_bytes", (), {(): figures.clients_memory_limit})


def _connections(figures: Figures) -> Iterator[Metric]:
    lanes: dict[tuple[str, ...], float] = {
        (kind.value, state.name.lower()): 0 for kind in SHARED_KINDS for state in _LANE_STATES
    }
    for lane in figures.lanes:
        lanes[lane.kind.value, lane.state] = lanes.get((lane.kind.value, lane.state), 0) + 1
    yield _gauge("lanes", ("kind", "state"), lanes)
    yield _gauge("lanes_limit", (), {(): figures.lanes_limit})
    yield _gauge("leases", ("state",), _by_one(figures.leases))
    yield _gauge("leases_waiting", (), {(): figures.leases_waiting})
    yield _gauge("leases_limit", (), {(): figures.leases_limit})
    yield _counter("dials", ("outcome",), _by_one(figures.dials))
    yield _counter("lane_losses", ("reason",), _by_one(figures.lane_losses))
    yield _counter("upstream_sent_bytes", (), {(): figures.sent})
    yield _counter("upstream_received_bytes", (), {(): figures.received})


def _commands(figures: Figures) -> Iterator[Metric]:
    outcomes: dict[tuple[str, ...], float] = {
        (connection, outcome): count
        for connection, found in figures.outcomes.items()
        for outcome, count in found._asdict().items()
    }
    yield _counter("commands", ("connection", "outcome"), outcomes)
    yield _counter("own_commands", (), {(): figures.own_commands})
    yield _gauge("requests_unsent", (), {(): figures.unsent})
    yield _gauge("requests_in_flight", (), {(): figures.in_flight})
    sizes = figures.batch_commands
    family = _histogram("batch_commands")
    family.add_metric((), _buckets(sizes, _COMMANDS, 1), sizes.total + sum(sizes.counts))
    yield family
    for name, histogram in (
        ("upstream_round_trip_seconds", figures.round_trips),
        ("queue_wait_seconds", figures.queue_waits),
    ):
        family = _histogram(name)
        family.add_metric((), _buckets(histogram, _MICROSECONDS, 1e-6), histogram.total * 1e-6)
        yield family


def _troubles(figures: Figures) -> Iterator[Metric]:
    yield _counter("protocol_errors", ("side",), _by_one(figures.protocol_errors))
    yield _counter("faults", (), {(): figures.faults})
    yield _counter("log_lines_dropped", (), {(): figures.log_lines_dropped})
    yield _gauge("paused", (), {(): figures.paused})
    yield _gauge("draining", (), {(): figures.state is State.DRAINING})


def _process() -> Iterator[Metric]:
    """By the names that they have with all of Prometheus's clients."""
    process = this_process()
    if process is None:
        return
    yield CounterMetricFamily("process_cpu_seconds", "CPU time, user and system.", process.cpu)
    for name, what, value in (
        ("start_time_seconds", "When it was started, since 1970.", process.started),
        ("virtual_memory_bytes", "Virtual memory.", process.virtual),
        ("resident_memory_bytes", "Resident memory.", process.resident),
        ("open_fds", "Open file descriptors.", process.open_descriptors),
        ("max_fds", "File descriptors that it may have.", process.descriptors_limit),
    ):
        if value is not None:
            yield GaugeMetricFamily(f"process_{name}", what, value)


def _by_one(counts: Mapping[str, int]) -> dict[tuple[str, ...], int]:
    return {(name,): count for name, count in counts.items()}


def _gauge(name: str, labels: Iterable[str], values: Mapping[tuple[str, ...], float]) -> Metric:
    return _filled(GaugeMetricFamily(f"coalesce_{name}", _HELP[name], labels=tuple(labels)), values)


def _counter(name: str, labels: Iterable[str], values: Mapping[tuple[str, ...], float]) -> Metric:
    return _filled(CounterMetricFamily(f"coalesce_{name}", _HELP[name], labels=tuple(labels)), values)


def _histogram(name: str) -> HistogramMetricFamily:
    return HistogramMetricFamily(f"coalesce_{name}", _HELP[name])


def _filled(
    family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[tuple[str, ...], float]
) -> GaugeMetricFamily | CounterMetricFamily:
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def _buckets(histogram: Histogram, bits: range, unit: float) -> Sequence[tuple[str, float]]:
    """Those for these powers of two, times the unit."""
    below = list(accumulate(histogram.counts))
    return [(repr(float(f"{2**each * unit:.6g}")), below[each]) for each in bits] + [("+Inf", below[-1])]
