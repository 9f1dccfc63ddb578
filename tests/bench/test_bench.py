"""The parts of the benchmark that parse or judge: a slip there would not crash but lie."""

import pytest

from .bars import BARS, Results, Round
from .errors import BenchError
from .load import Sample, parse_report, steady_part
from .measure import Measurement, Start
from .scenarios import SCENARIOS
from .targets import parse_closing_line

ROW = '"SET","104712.04","0.252","0.080","0.247","0.303","0.543","2.103"\n'
TITLES = '"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms",'
TITLES += '"p95_latency_ms","p99_latency_ms","max_latency_ms"\n'


def test_report_of_redis_benchmark() -> None:
    assert parse_report(TITLES + ROW) == pytest.approx((104712.04, 247, 543))


@pytest.mark.parametrize("text", ["", TITLES, '"SET","104712.04"\n', TITLES + ROW + ROW])
def test_report_that_is_not_one_row(text: str) -> None:
    with pytest.raises(BenchError):
        parse_report(text)


@pytest.mark.parametrize(
    ("output", "mean"),
    [
        ("served 123456 commands in 4567 batches (mean 27.0, largest 112), 210 connections", 123456 / 4567),
        ("12:00:01 INFO served 1 command in 1 batch (mean 1.0, largest 1), 1 connection\n", 1),
        ("served 0 commands in 0 batches (mean 0.0, largest 0), 0 connections", 0),
        ("listening on 127.0.0.1:6380", None),
    ],
)
def test_closing_line(output: str, mean: float | None) -> None:
    assert parse_closing_line(output) == mean


def at(commands: int) -> Sample:
    """1 us of the upstream and 2 us of the proxy for each command."""
    return Sample(commands, commands * 1000, commands * 2000)


def test_steady_part_leaves_out_both_ends() -> None:
    samples = [at(500 + done) for done in (0, 0, 90, 110, 400, 880, 910, 1000)]
    assert steady_part(samples, 1000) == (at(610), at(1380))


@pytest.mark.parametrize("progress", [(0, 1000), (0, 500, 1000), (0, 500, 600, 1000), (0, 0, 0, 0)])
def test_no_steady_part(progress: tuple[int, ...]) -> None:
    with pytest.raises(BenchError):
        steady_part([at(done) for done in progress], 1000)


def a_round(costs: dict[str, float]) -> Round:
    """Every visit costs 1 us and does 1 command a second, unless `costs` says otherwise of its target."""
    return {
        (scenario.name, target.name): Measurement(cost, cost, cost, cost, cost, mean_batch=None)
        for scenario in SCENARIOS
        for target in scenario.targets
        for cost in [costs.get(target.name, 1.0)]
    }


def test_ratios_are_taken_within_a_round() -> None:
    # The machine is three times slower in the second round, and a neighbour disturbs the third.
    rounds = [
        a_round({"coalesce-tcp": 1.1, "twemproxy": 1.0}),
        a_round({"coalesce-tcp": 3.3, "twemproxy": 3.0}),
        a_round({"coalesce-tcp": 9.0, "twemproxy": 1.0}),
    ]
    judgement = BARS[0].judge(Results(rounds))
    assert judgement.values == pytest.approx((1.1, 1.1, 9.0))
    assert judgement.verdict == "met"


def test_every_bar_can_be_judged() -> None:
    costs = {"coalesce-tcp": 10.0, "coalesce-unix": 10.0, "coalesce-scraped": 10.4}
    starts = [Start(seconds=0.4, resident_bytes=40_000_000), *[Start(seconds=0.6, resident_bytes=46_000_000)] * 2]
    slow = Results([a_round(costs)], {"coalesce-tcp": 4096.0}, starts)
    assert [bar.judge(slow).verdict for bar in BARS] == [
        *("MISSED", "MISSED"),  # proxy CPU, 50 and 200 clients
        "MISSED",  # upstream CPU: less is better, and direct over coalesce is 0.1
        *("met", "met"),  # throughput: 10 a second against 1
        *("MISSED", "MISSED"),  # p50
        "MISSED",  # proxy CPU, pipelined
        "MISSED",  # memory: 4 KB
        "met",  # 5,000 clients cost what 50 do
        "met",  # TLS: 1 over 10
        *("MISSED", "MISSED"),  # scraped, 50 and 200 clients: 10.4 over 10
        *("MISSED", "MISSED"),  # two of three starts: 0.6 s, 46 MB
    ]


def test_what_was_not_measured_is_not_judged() -> None:
    assert {bar.judge(Results([{}])).verdict for bar in BARS} == {"not measured"}
