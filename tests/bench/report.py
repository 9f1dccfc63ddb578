"""Results as text tables, and as JSON."""

import dataclasses
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence

from .bars import Figure, Judgement, Results
from .scenarios import SCENARIOS, Scenario

_COLUMNS: tuple[tuple[str, str, Figure], ...] = (
    ("upstream CPU us/cmd", ".2f", lambda it: it.upstream_cpu_us),
    ("proxy CPU us/cmd", ".2f", lambda it: it.proxy_cpu_us),
    ("commands/s", ",.0f", lambda it: it.per_second),
    ("p50 us", ",.0f", lambda it: it.p50_us),
    ("p99 us", ",.0f", lambda it: it.p99_us),
    ("mean batch", ".1f", lambda it: it.mean_batch),
)


def facts_table(facts: Mapping[str, str]) -> str:
    width = max(map(len, facts))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in facts.items())


def figures_table(results: Results) -> str:
    """Medians over the rounds, one line for each scenario and target."""
    lines = [
        [_described(scenario), target.name, *_medians(results, scenario.name, target.name)]
        for scenario in SCENARIOS
        for target in scenario.targets
        if results.of(scenario.name, target.name)
    ]
    return _table(["clients", "target", *(title for title, _, _ in _COLUMNS)], lines, left=2)


def memory_table(results: Results) -> str:
    lines = [[name, f"{size / 1024:.2f}"] for name, size in results.idle_client_bytes.items()]
    return _table(["target", "KB resident per idle client"], lines, left=1)


def bars_table(judgements: Iterable[Judgement]) -> str:
    lines = [[it.bar.what, f"{it.bar.bound} {it.bar.limit:g}", *_found(it), it.verdict] for it in judgements]
    return _table(["what", "bar", "median", "of the rounds", "verdict"], lines, left=2)


def conclusion(judgements: Sequence[Judgement]) -> str:
    """What to read if only one line is read."""
    by_verdict = {
        verdict: [it.bar.what for it in judgements if it.verdict == verdict]
        for verdict in ("met", "MISSED", "not measured")
    }
    counts = f"{len(by_verdict['met'])} met, {len(by_verdict['MISSED'])} MISSED"
    counts += f", {len(by_verdict['not measured'])} not measured" if by_verdict["not measured"] else ""
    return "\n".join([f"bars: {counts}", *(f"MISSED: {what}" for what in by_verdict["MISSED"])])


def as_json(facts: Mapping[str, str], results: Results, judgements: Iterable[Judgement]) -> dict[str, object]:
    """Every figure of every round: medians can be had from these, not these from medians."""
    return {
        "machine": dict(facts),
        "rounds": [
            [
                {"scenario": scenario, "target": target} | dataclasses.asdict(found)
                for (scenario, target), found in visits.items()
            ]
            for visits in results.rounds
        ],
        "idle_client_bytes": results.idle_client_bytes,
        "starts": [dataclasses.asdict(each) for each in results.starts],
        "bars": [
            {"what": it.bar.what, "bound": it.bar.bound, "limit": it.bar.limit}
            | {"values": it.values, "median": it.median, "verdict": it.verdict}
            for it in judgements
        ],
    }


def _described(scenario: Scenario) -> str:
    described = f"{scenario.clients:,}"
    described += f" x {scenario.pipeline} pipelined" if scenario.pipeline > 1 else ""
    described += f", {scenario.lasting:g} times as long" if scenario.lasting > 1 else ""
    return described + (", one core" if scenario.one_core else "")


def _medians(results: Results, scenario: str, target: str) -> Iterator[str]:
    for _, layout, figure in _COLUMNS:
        values = [value for it in results.of(scenario, target) if (value := figure(it)) is not None]
        yield format(statistics.median(values), layout) if values else "-"


def _found(judgement: Judgement) -> tuple[str, str]:
    if judgement.median is None:
        return "-", "-"
    return f"{judgement.median:.3f}", f"{min(judgement.values):.3f} .. {max(judgement.values):.3f}"


def _table(titles: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> str:
    """Columns as wide as they need to be; the first `left` of them are words and stand to the left."""
    widths = [max(map(len, column)) for column in zip(titles, *lines, strict=True)]

    def laid_out(cells: Sequence[str]) -> str:
        aligned = (
            cell.ljust(width) if at < left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(aligned).rstrip()

    return "\n".join([laid_out(titles), laid_out(["-" * width for width in widths]), *map(laid_out, lines)])
