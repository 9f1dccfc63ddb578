"""A soak: hours of full load and churn on one coalesce, and whether it is then what it was in the beginning.

    python -m tests.system.soak --minutes 30 [--clients 60] [--idle 40] [--most-growth 20] [--seed N] [--server NAME]

The load is the leak oracle's (`tests/system/leak_oracle`), so every reply is checked too: lives short and long,
pipelines, transactions, pops that block, subscriptions, large values, other users and databases, wrong passwords. Idle
clients stand beside it, which ask for something at the end only. Every few seconds a line tells what coalesce holds.

It fails when memory goes on growing (the slope of its private bytes, by least squares over the second half, when all
that is kept for reuse has been filled; that of resident memory is told, too), and when descriptors or threads are more
in the end, with all clients gone, than in the beginning.
"""

from __future__ import annotations

import argparse
import itertools
import random
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import trio

from .leak_oracle.oracle import end_after, keep_a_place_taken
from .leak_oracle.run import Run, server_options, texts_of
from .leak_oracle.speaker import Speaker
from .processes import eventually, executables, running_coalesce, running_server

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .processes import Coalesce, Executable, RedisServer

# A slope is no growth until it has made so much of it: an allocator's steps are of this size. MB.
NOISE = 2.0
# Seconds that coalesce keeps connections that nobody uses any more, and some to spare: `_IDLE` in upstream.py, twice.
UNTIL_CLOSED = 150.0


class GrowthError(AssertionError):
    """Something is more than it was, or than it may be."""


class Sample(NamedTuple):
    """What a coalesce holds at a moment."""

    at: float  # seconds since the beginning
    resident: float  # MB
    private: float  # MB: what would be free without it
    descriptors: int
    threads: int
    upstream: int  # of the descriptors: connections to the upstream
    replies: int  # checked until now

    @property
    def own(self) -> int:
        """Descriptors but for those connections, which may be kept for others to come."""
        return self.descriptors - self.upstream

    def since(self, before: Sample) -> str:
        rate = (self.replies - before.replies) / max(1e-9, self.at - before.at)
        return (
            f"{self.at:6.0f} s: {self.resident:6.1f} MB resident, {self.private:6.1f} private, {self.descriptors} "
            f"descriptors, {self.upstream} of them to the upstream, {self.threads} threads, {rate:.0f} replies a second"
        )


@dataclass(frozen=True)
class Plan:
    """What the command line says."""

    minutes: float
    seed: int
    clients: int = 60
    idle: int = 40
    every: float = 5.0  # seconds between samples
    most_growth: float = 20.0  # MB an hour: a leak of 100 bytes for each of the clients that come in a second


@dataclass
class Outcome:
    samples: list[Sample]
    slope: float  # of private memory, MB an hour
    resident_slope: float
    replies: int
    clients: int

    def __str__(self) -> str:
        private = _course([sample.private for sample in self.samples])
        resident = _course([sample.resident for sample in self.samples])
        return (
            f"{self.replies} replies, {self.clients} clients\n"
            f"private:  {private}; {self.slope:+.2f} MB an hour over the second half\n"
            f"resident: {resident}; {self.resident_slope:+.2f} MB an hour over the second half"
        )


def _course(sizes: list[float]) -> str:
    return f"{sizes[0]:.1f} MB at first, {max(sizes):.1f} at the most, {sizes[-1]:.1f} in the end"


def look(coalesce: Coalesce, upstream: RedisServer, begin: float, replies: int) -> Sample:
    """Of a coalesce that is the only one to have connections there, but for this one."""
    directory = Path(f"/proc/{coalesce.pid}")
    memory = dict(re.findall(r"(\w+): +(\d+) kB", (directory / "smaps_rollup").read_text()))
    private = int(memory["Private_Clean"]) + int(memory["Private_Dirty"])
    status = re.search(r"Threads:\s+(\d+)", (directory / "status").read_text())
    assert status is not None
    with upstream.connect() as wire:
        connected = re.search(rb"connected_clients:(\d+)", wire.ask("INFO", "clients"))
        assert connected is not None
        descriptors = len(list((directory / "fd").iterdir()))
    return Sample(
        time.monotonic() - begin, int(memory["Rss"]) / 1024, private / 1024, descriptors, int(status[1]),
        int(connected[1]) - 1, replies,
    )  # fmt: skip


def slope_of(samples: Sequence[Sample], *, resident: bool = False) -> float:
    """Of private or of resident memory, by least squares: MB an hour."""
    times = [sample.at / 3600 for sample in samples]
    sizes = [sample.resident if resident else sample.private for sample in samples]
    middle, size = sum(times) / len(times), sum(sizes) / len(sizes)
    spread = sum((at - middle) ** 2 for at in times)
    return sum((at - middle) * (each - size) for at, each in zip(times, sizes, strict=True)) / spread


def second_half(samples: Sequence[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.at >= samples[-1].at / 2]


def judge(samples: Sequence[Sample], most_growth: float) -> float:
    """The slope over the second half. Raises GrowthError."""
    latter = second_half(samples)
    slope = slope_of(latter)
    grown = slope * (latter[-1].at - latter[0].at) / 3600
    if slope > most_growth and grown > NOISE:
        raise GrowthError(f"memory grows by {slope:.1f} MB an hour, by {grown:.1f} MB until now: {samples[-1]}")
    return slope


def same_again(before: Sample, after: Sample) -> bool:
    return after.own <= before.own and after.threads <= before.threads


async def stay_idle(run: Run, seed: str) -> None:
    """A client that says nothing until the end, and is still who it was then."""
    speaker = Speaker(run, random.Random(seed))
    speaker.database = speaker.chance.choice((0, 1))
    await speaker.connect()
    await speaker.converse([*speaker.opening(), speaker.echo()])
    while not run.over:  # noqa: ASYNC110
        await trio.sleep(0.1)  # (that the load is over is a count, not an event)
    await speaker.converse([speaker.echo()])
    speaker.socket.close()


async def sample_now_and_then(
    run: Run, coalesce: Coalesce, upstream: RedisServer, samples: list[Sample], every: float
) -> None:
    begin = time.monotonic()
    while True:
        samples.append(await trio.to_thread.run_sync(look, coalesce, upstream, begin, run.tally.replies))
        if len(samples) % 6 == 0:
            print(samples[-1].since(samples[-6]), flush=True)
        await trio.sleep(every)


async def load(run: Run, coalesce: Coalesce, upstream: RedisServer, plan: Plan, samples: list[Sample]) -> None:
    async with trio.open_nursery() as around:
        around.start_soon(sample_now_and_then, run, coalesce, upstream, samples, plan.every)
        around.start_soon(end_after, run, plan.minutes * 60)
        async with trio.open_nursery() as places:
            for place in range(plan.clients):
                places.start_soon(keep_a_place_taken, run, f"{plan.seed}/{place}")
            for place in range(plan.idle):
                places.start_soon(stay_idle, run, f"{plan.seed}/idle {place}")
        around.cancel_scope.cancel()


def soak(executable: Executable, plan: Plan, *, until_closed: float = 0.0) -> Outcome:
    """GrowthError when it is not, in the end, as in the beginning; WrongReplyError and the like as the leak oracle.

    `until_closed`: seconds that connections to the upstream get to be fewer than three; 0: they may stay.
    """
    begin = time.monotonic()
    with running_server(executable, *server_options()) as upstream, running_coalesce(upstream.url) as coalesce:
        run = Run((coalesce.address, coalesce.unix_path), upstream.unix_path, texts_of(upstream), sys.maxsize)
        with coalesce.connect() as wire:  # what is imported late, is imported then
            assert wire.ask("BLPOP", "nobody's", "0.01") == b"*-1\r\n"
        eventually(lambda: look(coalesce, upstream, begin, 0).own <= fewest(coalesce, upstream, begin))
        before = look(coalesce, upstream, begin, 0)
        samples: list[Sample] = []
        trio.run(load, run, coalesce, upstream, plan, samples, strict_exception_groups=True)
        try:
            eventually(lambda: same_again(before, look(coalesce, upstream, begin, 0)))
        except TimeoutError:
            after = look(coalesce, upstream, begin, 0)
            raise GrowthError(f"all clients have left, and it is not as before:\n{before}\n{after}") from None
        if until_closed:
            print(f"the load is over; waiting up to {until_closed:.0f} s for unused connections to close", flush=True)
            eventually(lambda: look(coalesce, upstream, begin, 0).upstream <= before.upstream, until_closed)
        print(look(coalesce, upstream, begin, run.tally.replies).since(samples[-1]))
        slope = judge(samples, plan.most_growth)
        code, stderr = coalesce.stop()
        assert code == 0, stderr
    resident_slope = slope_of(second_half(samples), resident=True)
    return Outcome(samples, slope, resident_slope, run.tally.replies, run.tally.clients)


def fewest(coalesce: Coalesce, upstream: RedisServer, begin: float) -> int:
    """The descriptors of a coalesce that nobody is connected to, as far as some looks tell."""
    return min(look(coalesce, upstream, begin, 0).own for _ in itertools.repeat(None, 5))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.system.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--clients", type=int, default=60)
    parser.add_argument("--idle", type=int, default=40)
    parser.add_argument("--every", type=float, default=5.0, metavar="SECONDS", help="between samples")
    parser.add_argument("--most-growth", type=float, default=20.0, metavar="MB", help="an hour, in the second half")
    parser.add_argument("--server", choices=[str(each) for each in executables()], default=str(executables()[-1]))
    settings = vars(parser.parse_args())
    server = settings.pop("server")
    executable = next(each for each in executables() if str(each) == server)
    print(f"{executable}, {settings}", flush=True)
    print(soak(executable, Plan(**settings), until_closed=UNTIL_CLOSED))
    return 0


if __name__ == "__main__":
    sys.exit(main())
