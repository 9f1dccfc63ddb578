"""The text of /metrics: what Prometheus scrapes.

Everything is computed from one look at the server when it is asked for. Labels have few values, known beforehand: no
keys, values, user names or addresses.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder

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
_LANE_STATES = [LaneState.DIALLING, LaneState.READY, LaneState.FAILING]


class Metrics:
    """What /metrics says of what `look` sees."""

    def __init__(self, look: Callable[[], Figures]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Collector(look))

    def exposed(self, accept: str) -> tuple[bytes, str]:
        """In the best of the forms that the header allows: the text, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class _Collector:
    def __init__(self, look: Callable[[], Figures]) -> None:
        self._look = look
        self._build = build_info()

    def collect(self) -> Iterator[Metric]:
        figures = self._look()
        build = self._build
        labels = (build.version, build.commit or "", build.python)
        yield _gauge("build_info", "What runs.", build._fields, {labels: 1})
        yield from _clients(figures)
        yield from _connections(figures)
        yield from _commands(figures)
        yield from _troubles(figures)
        yield from _process()


def _clients(figures: Figures) -> Iterator[Metric]:
    yield _gauge("clients", "Clients.", ("state",), _by_one(figures.clients))
    yield _gauge("clients_limit", "Clients beyond that are refused.", (), {(): figures.clients_limit})
    yield _counter("clients_accepted", "Clients that were let in.", (), {(): figures.clients_accepted})
    yield _counter("clients_refused", "Clients refused for being too many.", (), {(): figures.clients_refused})
    yield _counter("clients_closed", "Clients closed by coalesce.", ("reason",), _by_one(figures.clients_closed))
    yield _gauge("clients_memory_bytes", "Held for all clients together.", (), {(): figures.clients_memory})
    yield _gauge(
        "clients_memory_limit_bytes", "Beyond it, those that hold most are closed.", (),
        {(): figures.clients_memory_limit},
    )  # fmt: skip


def _connections(figures: Figures) -> Iterator[Metric]:
    lanes: dict[tuple[str, ...], float] = {
        (kind.value, state.name.lower()): 0 for kind in SHARED_KINDS for state in _LANE_STATES
    }
    for lane in figures.lanes:
        lanes[lane.kind.value, lane.state] = lanes.get((lane.kind.value, lane.state), 0) + 1
    yield _gauge("lanes", "Shared upstream connections.", ("kind", "state"), lanes)
    yield _gauge("lanes_limit", "Identities beyond that get a connection each.", (), {(): figures.lanes_limit})
    yield _gauge("leases", "Upstream connections for one client each.", ("state",), _by_one(figures.leases))
    yield _gauge("leases_waiting", "Clients that wait for a free lease.", (), {(): figures.leases_waiting})
    yield _gauge("leases_limit", "Leases at a time.", (), {(): figures.leases_limit})
    yield _counter("dials", "Attempts to connect to the upstream.", ("outcome",), _by_one(figures.dials))
    yield _counter("lane_losses", "Shared connections lost.", ("reason",), _by_one(figures.lane_losses))
    yield _counter("upstream_sent_bytes", "Sent on all upstream connections.", (), {(): figures.sent})
    yield _counter("upstream_received_bytes", "Received on all upstream connections.", (), {(): figures.received})


def _commands(figures: Figures) -> Iterator[Metric]:
    outcomes: dict[tuple[str, ...], float] = {
        (connection, outcome): count
        for connection, found in figures.outcomes.items()
        for outcome, count in found._asdict().items()
    }
    yield _counter(
        "commands", "Commands of clients that have ended, by what became of them.", ("connection", "outcome"), outcomes
    )
    yield _counter("own_commands", "Commands of coalesce's own.", (), {(): figures.own_commands})
    yield _gauge("requests_unsent", "Requests read and not sent yet.", (), {(): figures.unsent})
    yield _gauge("requests_in_flight", "Requests sent and not answered yet.", (), {(): figures.in_flight})
    sizes = figures.batch_commands
    family = HistogramMetricFamily("coalesce_batch_commands", "Commands in a batch.")
    family.add_metric((), _buckets(sizes, _COMMANDS, 1), sizes.total + sum(sizes.counts))
    yield family
    for name, what, histogram in (
        ("upstream_round_trip_seconds", "From a batch's leaving to its first reply.", figures.round_trips),
        ("queue_wait_seconds", "From a batch's first request to its leaving.", figures.queue_waits),
    ):
        family = HistogramMetricFamily(f"coalesce_{name}", what)
        family.add_metric((), _buckets(histogram, _MICROSECONDS, 1e-6), histogram.total * 1e-6)
        yield family


def _troubles(figures: Figures) -> Iterator[Metric]:
    yield _counter("protocol_errors", "What was not RESP.", ("side",), _by_one(figures.protocol_errors))
    yield _counter("faults", "Faults of coalesce's own.", (), {(): figures.faults})
    yield _counter("log_lines_dropped", "Lines of the log that nobody read.", (), {(): figures.log_lines_dropped})
    yield _gauge("paused", "Whether commands are held.", (), {(): figures.state is State.PAUSED})
    yield _gauge("draining", "Whether it is about to end.", (), {(): figures.state is State.DRAINING})


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


def _gauge(name: str, what: str, labels: Iterable[str], values: Mapping[tuple[str, ...], float]) -> Metric:
    return _filled(GaugeMetricFamily(f"coalesce_{name}", what, labels=tuple(labels)), values)


def _counter(name: str, what: str, labels: Iterable[str], values: Mapping[tuple[str, ...], float]) -> Metric:
    return _filled(CounterMetricFamily(f"coalesce_{name}", what, labels=tuple(labels)), values)


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
