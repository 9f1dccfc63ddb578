"""How long small requests wait while others move large values: directly, and through coalesce.

    python -m tests.bench.head_of_line            1 minute

20 clients GET 64 bytes, one at a time (redis-benchmark), while 2 clients GET and 2 clients SET values of 10 MB without
a pause. In each round the same load goes to every target, in an order that rotates. A ratio is taken within a round,
and then the median of the rounds.

Those who move the large values take as little of the machine as they can, or they would be what is measured: what they
read is dropped within the kernel (MSG_TRUNC), what they send goes out by sendfile. How much they moved is told as well:
small requests could be made quick by moving nothing large.
"""

import os
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import click

from .accounting import CpuClock, resident_bytes
from .address import Address
from .errors import BenchError
from .load import parse_report
from .machine import Neighbours
from .targets import COALESCE_TCP, COALESCE_UNIX, DIRECT, Rig, Target, redis_benchmark, rig

SMALL_CLIENTS = 20
GETTERS = SETTERS = 2
# p99 of small requests through coalesce, over that of the same load without it.
BAR = 1.5
TARGETS = {target.name: target for target in (DIRECT, COALESCE_TCP, COALESCE_UNIX)}
_SMALL_KEY = b"bench:small"
_LARGE_KEY = b"bench:large"
_PIECE = 1 << 20
_RUN_SECONDS = 120.0


def _request(*arguments: bytes) -> bytes:
    return b"*%d\r\n" % len(arguments) + b"".join(b"$%d\r\n%b\r\n" % (len(it), it) for it in arguments)


class LargeLoad:
    """Clients that move values of `size` bytes as long as the block lasts. `moved` counts them."""

    def __init__(self, address: Address, size: int) -> None:
        self.moved = 0
        self._size = size
        self._over = False
        self._failures: list[Exception] = []
        self._request = os.memfd_create("request")
        with os.fdopen(os.dup(self._request), "wb") as file:
            self._length = file.write(_request(b"SET", _LARGE_KEY, bytes(size)))
        self._connections = [address.connect() for _ in range(GETTERS + SETTERS)]
        self._threads = [
            threading.Thread(target=self._run, args=(self._get if number < GETTERS else self._set, connection))
            for number, connection in enumerate(self._connections)
        ]

    def __enter__(self) -> Self:
        self._set(self._connections[0])
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        for thread in self._threads:
            thread.join(_RUN_SECONDS)
        for connection in self._connections:
            connection.close()
        os.close(self._request)
        if self._failures and kind is None:
            raise BenchError(f"a client with large values failed: {self._failures[0]!r}")

    def _run(self, move: Callable[[socket.socket], None], connection: socket.socket) -> None:
        try:
            while not self._over:
                move(connection)
                self.moved += 1
        except (OSError, BenchError) as problem:
            self._failures.append(problem)

    def _get(self, connection: socket.socket) -> None:
        connection.sendall(_request(b"GET", _LARGE_KEY))
        missing = len(b"$%d\r\n\r\n" % self._size) + self._size
        nowhere = bytearray(_PIECE)
        while missing:
            taken = connection.recv_into(nowhere, min(missing, _PIECE), socket.MSG_TRUNC)
            if not taken:
                raise BenchError("closed in the middle of a large value")
            missing -= taken

    def _set(self, connection: socket.socket) -> None:
        sent = 0
        while sent < self._length:
            sent += os.sendfile(connection.fileno(), self._request, sent, self._length - sent)
        if connection.recv(5) != b"+OK\r\n":
            raise BenchError("a large value could not be set")


@dataclass(frozen=True)
class Visit:
    """What one visit found. `calm` is without the large values."""

    p50_us: float
    p99_us: float
    per_second: float
    calm_p99_us: float
    large_mb_per_second: float
    proxy_cpu: float | None  # cores
    proxy_mb: float | None  # resident, at the end


def visit(ground: Rig, target: Target, size: int, seconds: float) -> Visit:
    with target.start(ground) as reached:
        with reached.address.connect() as connection:
            connection.sendall(_request(b"SET", _SMALL_KEY, bytes(64)))
            connection.recv(5)
        per_second, _, _ = _small_load(reached.address, 2_000)
        _, _, calm_p99 = _small_load(reached.address, round(per_second * seconds / 4))
        clock = CpuClock(reached.proxy.pid) if reached.proxy else None
        with LargeLoad(reached.address, size) as large:
            per_second, _, _ = _small_load(reached.address, 500)
            count = max(500, round(per_second * seconds))
            began, moved = time.monotonic(), large.moved
            cpu = clock.nanoseconds() if clock else 0
            per_second, p50, p99 = _small_load(reached.address, count)
            took = time.monotonic() - began
            rate = (large.moved - moved) * size / 1e6 / took
            used = (clock.nanoseconds() - cpu) / 1e9 / took if clock else None
        resident = resident_bytes(reached.proxy.pid) / 1e6 if reached.proxy else None
    return Visit(p50, p99, per_second, calm_p99, rate, used, resident)


def _small_load(address: Address, count: int) -> tuple[float, float, float]:
    """Commands a second, p50 and p99 (us)."""
    command = [redis_benchmark(), *address.arguments(), "--csv", "-c", str(SMALL_CLIENTS), "-n", str(count)]
    try:
        done = subprocess.run(
            [*command, "GET", _SMALL_KEY.decode()], capture_output=True, text=True, timeout=_RUN_SECONDS, check=True
        )
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as problem:
        raise BenchError(f"redis-benchmark failed: {problem}") from problem
    return parse_report(done.stdout)


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.2), default=2.0, show_default=True, help="Of one visit, about.")
@click.option("--size", type=click.IntRange(1), default=10_000_000, show_default=True, help="Bytes of a large value.")
@click.option("--target", multiple=True, type=click.Choice([*TARGETS]), default=[DIRECT.name, COALESCE_TCP.name])
def main(rounds: int, seconds: float, size: int, target: tuple[str, ...]) -> None:
    """How long small requests wait while others move large values: directly, and through coalesce."""
    targets = [TARGETS[name] for name in target]
    visits: dict[str, list[Visit]] = {it.name: [] for it in targets}
    neighbours = Neighbours()
    with tempfile.TemporaryDirectory(prefix="coalesce-bench-") as directory, rig(Path(directory)) as ground:
        for number in range(rounds):
            for it in targets[number % len(targets) :] + targets[: number % len(targets)]:
                found = visit(ground, it, size, seconds)
                visits[it.name].append(found)
                click.echo(f"round {number + 1}  {it.name:14}{_line([found])}")
    click.echo(f"others took {neighbours.share():.0%} of all cores meanwhile\n")
    for name, found in visits.items():
        click.echo(f"median   {name:14}{_line(found)}")
    for name, found in visits.items():
        if name != DIRECT.name and DIRECT.name in visits:
            ratios = [one.p99_us / other.p99_us for one, other in zip(found, visits[DIRECT.name], strict=True)]
            ratio = statistics.median(ratios)
            spread = f"{min(ratios):.2f} .. {max(ratios):.2f}"
            verdict = "met" if ratio <= BAR else "MISSED"
            click.echo(f"p99 of small GETs, {name} over direct: {ratio:.2f} ({spread}), at most {BAR}: {verdict}")


def _line(visits: list[Visit]) -> str:
    def median(figure: Callable[[Visit], float | None]) -> float:
        return statistics.median(value for it in visits if (value := figure(it)) is not None)

    line = f"p50 {median(lambda it: it.p50_us) / 1000:6.2f} ms  p99 {median(lambda it: it.p99_us) / 1000:7.2f} ms"
    line += f"  (calm: {median(lambda it: it.calm_p99_us) / 1000:5.2f} ms)  {median(lambda it: it.per_second):7.0f}/s"
    line += f"  large {median(lambda it: it.large_mb_per_second):6.0f} MB/s"
    if visits[0].proxy_cpu is not None:
        line += f"  proxy {median(lambda it: it.proxy_cpu):4.2f} cores, {median(lambda it: it.proxy_mb):5.0f} MB"
    return line


if __name__ == "__main__":
    main(prog_name="python -m tests.bench.head_of_line")
