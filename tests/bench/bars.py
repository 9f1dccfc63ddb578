"""The bars that coalesce has to meet, as ratios within one round."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from .measure import Measurement, Start
from .scenarios import (
    FIFTY,
    FIFTY_SCRAPED,
    LONE,
    LONE_ON_ONE_CORE,
    MANY,
    PIPELINED,
    TWO_HUNDRED,
    TWO_HUNDRED_SCRAPED,
    Scenario,
)
from .targets import (
    COALESCE_SCRAPED,
    COALESCE_TCP,
    COALESCE_TLS_UPSTREAM,
    COALESCE_UNIX,
    DIRECT,
    TWEMPROXY,
    Target,
)

# One round: by the names of scenario and target.
Round = dict[tuple[str, str], Measurement]
Figure = Callable[[Measurement], float | None]


@dataclass
class Results:
    """All that was measured; a scenario or a target that did not take part is absent."""

    rounds: list[Round] = field(default_factory=list)
    # By the name of the target.
    idle_client_bytes: dict[str, float] = field(default_factory=dict)
    starts: list[Start] = field(default_factory=list)

    def of(self, scenario: str, target: str) -> list[Measurement]:
        return [found[scenario, target] for found in self.rounds if (scenario, target) in found]


@dataclass(frozen=True)
class Bar:
    """`values` gives one value a round (or a start), and none if what it needs was not measured."""

    what: str
    bound: Literal["at most", "at least"]
    limit: float
    values: Callable[[Results], list[float]]

    def judge(self, results: Results) -> "Judgement":
        return Judgement(self, tuple(self.values(results)))


@dataclass(frozen=True)
class Judgement:
    bar: Bar
    values: tuple[float, ...]

    @property
    def median(self) -> float | None:
        return statistics.median(self.values) if self.values else None

    @property
    def verdict(self) -> Literal["met", "MISSED", "not measured"]:
        if self.median is None:
            return "not measured"
        kept = self.median <= self.bar.limit if self.bar.bound == "at most" else self.median >= self.bar.limit
        return "met" if kept else "MISSED"


def _ratio(
    figure: Figure, over: tuple[Scenario, Target], under: tuple[Scenario, Target]
) -> Callable[[Results], list[float]]:
    """`figure` of the one over that of the other, in each round that has both."""
    upper, lower = ((scenario.name, target.name) for scenario, target in (over, under))

    def values(results: Results) -> list[float]:
        both = [(found[upper], found[lower]) for found in results.rounds if {upper, lower} <= set(found)]
        pairs = [(figure(one), figure(other)) for one, other in both]
        return [one / other for one, other in pairs if one is not None and other]

    return values


def _idle_client_kb(results: Results) -> list[float]:
    found = results.idle_client_bytes.get(COALESCE_TCP.name)
    return [] if found is None else [found / 1024]


def _proxy_cpu(measurement: Measurement) -> float | None:
    return measurement.proxy_cpu_us


def _upstream_cpu(measurement: Measurement) -> float:
    return measurement.upstream_cpu_us


def _per_second(measurement: Measurement) -> float:
    return measurement.per_second


def _p50(measurement: Measurement) -> float:
    return measurement.p50_us


BARS = (
    Bar(
        "proxy CPU per command, 50 clients, over twemproxy's",
        "at most",
        1.15,
        _ratio(_proxy_cpu, over=(FIFTY, COALESCE_TCP), under=(FIFTY, TWEMPROXY)),
    ),
    Bar(
        "proxy CPU per command, 200 clients, over twemproxy's",
        "at most",
        1.15,
        _ratio(_proxy_cpu, over=(TWO_HUNDRED, COALESCE_TCP), under=(TWO_HUNDRED, TWEMPROXY)),
    ),
    Bar(
        "upstream CPU per command, 200 clients, direct over through coalesce",
        "at least",
        5,
        _ratio(_upstream_cpu, over=(TWO_HUNDRED, DIRECT), under=(TWO_HUNDRED, COALESCE_TCP)),
    ),
    Bar(
        "throughput, 200 clients, over direct: TCP",
        "at least",
        0.9,
        _ratio(_per_second, over=(TWO_HUNDRED, COALESCE_TCP), under=(TWO_HUNDRED, DIRECT)),
    ),
    Bar(
        "throughput, 200 clients, over direct: unix socket",
        "at least",
        1.2,
        _ratio(_per_second, over=(TWO_HUNDRED, COALESCE_UNIX), under=(TWO_HUNDRED, DIRECT)),
    ),
    # One bar, looked at twice: the first repeats within some per cent, the second is what a client has.
    Bar(
        "p50, 1 client, over twemproxy's: all on one core",
        "at most",
        1.5,
        _ratio(_p50, over=(LONE_ON_ONE_CORE, COALESCE_TCP), under=(LONE_ON_ONE_CORE, TWEMPROXY)),
    ),
    Bar(
        "p50, 1 client, over twemproxy's: placed by the scheduler",
        "at most",
        1.5,
        _ratio(_p50, over=(LONE, COALESCE_TCP), under=(LONE, TWEMPROXY)),
    ),
    Bar(
        "proxy CPU per command, 50 clients each pipelining 16, over twemproxy's",
        "at most",
        1.5,
        _ratio(_proxy_cpu, over=(PIPELINED, COALESCE_TCP), under=(PIPELINED, TWEMPROXY)),
    ),
    Bar("memory per idle client, 5,000 connected, KB resident", "at most", 3, _idle_client_kb),
    Bar(
        "proxy CPU per command, 5,000 clients over 50",
        "at most",
        1.5,
        _ratio(_proxy_cpu, over=(MANY, COALESCE_TCP), under=(FIFTY, COALESCE_TCP)),
    ),
    Bar(
        "proxy CPU per command, 200 clients, TLS to the upstream over plain",
        "at most",
        1.1,
        _ratio(_proxy_cpu, over=(TWO_HUNDRED, COALESCE_TLS_UPSTREAM), under=(TWO_HUNDRED, COALESCE_TCP)),
    ),
    Bar(
        "proxy CPU per command, 50 clients, admin on and scraped over off",
        "at most",
        1.03,
        _ratio(_proxy_cpu, over=(FIFTY_SCRAPED, COALESCE_SCRAPED), under=(FIFTY_SCRAPED, COALESCE_TCP)),
    ),
    Bar(
        "proxy CPU per command, 200 clients, admin on and scraped over off",
        "at most",
        1.03,
        _ratio(_proxy_cpu, over=(TWO_HUNDRED_SCRAPED, COALESCE_SCRAPED), under=(TWO_HUNDRED_SCRAPED, COALESCE_TCP)),
    ),
    Bar("from the start to a first reply, s", "at most", 0.5, lambda it: [each.seconds for each in it.starts]),
    Bar(
        "memory of an idle coalesce with its admin, MB resident",
        "at most",
        45,
        lambda it: [each.resident_bytes / 1e6 for each in it.starts],
    ),
)
