"""The command line, and the order in which things are measured."""

import json
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from . import report
from .bars import BARS, Results, Round
from .errors import BenchError
from .load import Sampler, trial
from .machine import Neighbours, facts, raise_descriptor_limit
from .measure import idle_client_bytes, measure, start, visiting
from .scenarios import DESCRIPTORS_FOR_MANY, IDLE_CLIENTS, MANY, MEMORY, SCENARIOS, START, STARTS, TWO_HUNDRED, Scenario
from .targets import ALL_TARGETS, COALESCE_SCRAPED, DIRECT, REPOSITORY, TARGETS, Rig, Target, missing, rig

# The number of commands of a run, by the names of scenario and target.
Lengths = Mapping[tuple[str, str], int]


@click.command()
@click.option("--rounds", type=click.IntRange(1), help="How often everything is measured [5; 1 if --quick].")
@click.option("--seconds", type=click.FloatRange(0.3), help="How long one run should take [0.6; 0.4 if --quick].")
@click.option("--quick", is_flag=True, help="To see whether a change went wrong, not to quote.")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice([*(scenario.name for scenario in SCENARIOS), MEMORY, START]),
    help="These scenarios alone: by the number of clients, and how many commands each pipelines. May be repeated.",
)
@click.option(
    "--target",
    multiple=True,
    type=click.Choice([target.name for target in ALL_TARGETS]),
    help="These targets alone. May be repeated.",
)
@click.option(
    "--modern", is_flag=True, help="Clients begin with HELLO 3 and SELECT 1 (but twemproxy's: it has neither)."
)
@click.option("--json", "json_path", type=click.Path(dir_okay=False, writable=True), help="Write all figures here too.")
def main(  # noqa: PLR0913, PLR0917 - one for each flag
    rounds: int | None,
    seconds: float | None,
    quick: bool,
    only: tuple[str, ...],
    target: tuple[str, ...],
    modern: bool,
    json_path: str | None,
) -> None:
    """Measure what a command costs: directly, through coalesce, and through twemproxy and haproxy if installed."""
    signal.signal(signal.SIGTERM, _leave)
    began = time.monotonic()
    try:
        machine = facts()
        click.echo(report.facts_table(machine))
        neighbours = Neighbours()
        results = _measure_all(
            _scenarios(only),
            _targets(target),
            rounds=rounds or (1 if quick else 5),
            seconds=seconds or (0.4 if quick else 0.6),
            memory=not only or MEMORY in only,
            starts=not only or START in only,
            modern=modern,
        )
    except BenchError as error:
        raise click.ClickException(str(error)) from error
    machine["others took"] = f"{neighbours.share():.0%} of all cores meanwhile"
    judgements = [bar.judge(results) for bar in BARS]
    if any(results.rounds):
        click.echo(f"others took      {machine['others took']}: the more, the less throughput and latencies mean")
        click.echo(f"\nmedians of {len(results.rounds)} round(s), GET and SET of 64 bytes\n")
        click.echo(report.figures_table(results))
    if results.idle_client_bytes:
        click.echo(f"\n{IDLE_CLIENTS:,} idle clients\n\n{report.memory_table(results)}")
    click.echo(f"\n{report.bars_table(judgements)}\n\n{report.conclusion(judgements)}")
    _say(f"took {time.monotonic() - began:.0f} s")
    if json_path:
        Path(json_path).write_text(json.dumps(report.as_json(machine, results, judgements), indent=2) + "\n")


def _measure_all(  # noqa: PLR0913 - one for each flag
    scenarios: Sequence[Scenario],
    targets: Sequence[Target],
    *,
    rounds: int,
    seconds: float,
    memory: bool,
    starts: bool,
    modern: bool,
) -> Results:
    results = Results()
    limit = raise_descriptor_limit()
    if limit < DESCRIPTORS_FOR_MANY:
        _say(f"no {IDLE_CLIENTS:,} clients: the limit of file descriptors (ulimit -Hn) is {limit}")
        scenarios, memory = [scenario for scenario in scenarios if scenario is not MANY], False
    with (
        tempfile.TemporaryDirectory(prefix="coalesce-bench-") as directory,
        rig(Path(directory)) as ground,
        Sampler(ground.upstream_port, ground.upstream.pid) as sampler,
    ):
        if memory:
            for target in targets:
                if target in TARGETS and target is not DIRECT:
                    _say(f"memory of {IDLE_CLIENTS:,} idle clients: {target.name}")
                    results.idle_client_bytes[target.name] = idle_client_bytes(ground, target, IDLE_CLIENTS)
        if starts and COALESCE_SCRAPED in targets:
            _say(f"{STARTS} starts")
            results.starts = [start(ground) for _ in range(STARTS)]
        lengths = _lengths(ground, scenarios, targets, seconds, modern=modern)
        for number in range(rounds):
            found: Round = {}
            results.rounds.append(found)
            for scenario in scenarios:
                _say(f"round {number + 1} of {rounds}: {scenario.name} clients")
                for target in _rotated([it for it in scenario.targets if it in targets], number):
                    key = scenario.name, target.name
                    greets = modern and target.modern
                    found[key] = measure(ground, sampler, scenario, target, lengths[key], greets)
    return results


def _lengths(
    ground: Rig, scenarios: Sequence[Scenario], targets: Sequence[Target], seconds: float, *, modern: bool
) -> Lengths:
    """How many commands come to `seconds`: a fast target needs a multiple of a slow one's for an equally long run.

    The trial runs for it are the warm-up too, of the machine and of the keys.
    """
    lengths: dict[tuple[str, str], int] = {}
    for target in targets:
        _say(f"warm-up: {target.name}")
        for scenario in scenarios:
            if target not in scenario.targets:
                continue
            with visiting(ground, scenario, target) as visit:
                # Connecting 5,000 clients takes seconds, and with 200 the rate is much the same.
                shape = TWO_HUNDRED if scenario is MANY else scenario
                per_second = trial(visit.address, shape, greets=modern and target.modern)
            lengths[scenario.name, target.name] = max(
                round(per_second * seconds * scenario.lasting), scenario.least_commands
            )
    return lengths


def _scenarios(only: Sequence[str]) -> list[Scenario]:
    return [scenario for scenario in SCENARIOS if not only or scenario.name in only]


def _targets(names: Sequence[str]) -> list[Target]:
    """Those asked for; else all but the ones that are not installed."""
    if not (REPOSITORY / "coalesce" / "__main__.py").exists() and (not names or any("coalesce" in it for it in names)):
        raise BenchError("there is no coalesce/__main__.py to measure; --target names what to measure without it")
    chosen = [target for target in ALL_TARGETS if not names or target.name in names]
    for target in chosen:
        if why := missing(target):
            _say(f"{target.name} takes no part: {why}")
    return [target for target in chosen if not missing(target)]


def _rotated(targets: Sequence[Target], by: int) -> list[Target]:
    start = by % len(targets) if targets else 0
    return [*targets[start:], *targets[:start]]


def _say(progress: str) -> None:
    click.echo(progress, err=True)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    """As Ctrl-C does: unwind, so that everything started is ended."""
    sys.exit(128 + number)


if __name__ == "__main__":
    main(prog_name="python -m tests.bench")
