"""One visit of a scenario to a target, and the memory of idle clients."""

import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

from .accounting import CpuClock, resident_bytes
from .address import Address, ask
from .errors import BenchError
from .load import COMMANDS, Load, Run, Sampler, drive, lone_latencies
from .processes import one_core
from .scenarios import Scenario
from .scrape import Scraper
from .targets import Rig, Target, Visit, coalesce_with_admin, mean_batch


@contextmanager
def visiting(rig: Rig, scenario: Scenario, target: Target) -> Iterator[Visit]:
    """A fresh instance of the target, placed as the scenario wants it."""
    with (
        one_core(rig.upstream.pid) if scenario.one_core else nullcontext(),
        target.start(rig) as visit,
    ):
        yield visit


@dataclass(frozen=True)
class Measurement:
    """What one visit found; GET and SET together."""

    upstream_cpu_us: float
    proxy_cpu_us: float | None
    per_second: float
    p50_us: float
    p99_us: float
    mean_batch: float | None


def measure(  # noqa: PLR0913, PLR0917 - what, where, how much
    rig: Rig, sampler: Sampler, scenario: Scenario, target: Target, count: int, greets: bool
) -> Measurement:
    """`count` of each command."""
    with visiting(rig, scenario, target) as visit:
        clock = CpuClock(visit.proxy.pid) if visit.proxy else None
        runs = [drive(Load(visit.address, scenario, command, count, greets), sampler, clock) for command in COMMANDS]
        latencies = [(run.p50_us, run.p99_us) for run in runs]
        if scenario.one_core:
            latencies = [
                _p50_and_p99(lone_latencies(visit.address, command, count // 2, greets=greets)) for command in COMMANDS
            ]
    return Measurement(
        upstream_cpu_us=_per_command_us(runs, sum(run.upstream_ns for run in runs)),
        proxy_cpu_us=_per_command_us(runs, sum(run.proxy_ns for run in runs)) if visit.proxy else None,
        per_second=statistics.harmonic_mean(run.per_second for run in runs),  # equally many commands of each
        p50_us=statistics.mean(p50 for p50, _ in latencies),
        p99_us=statistics.mean(p99 for _, p99 in latencies),
        mean_batch=mean_batch(visit.proxy) if visit.proxy and target.batches else None,
    )


def idle_client_bytes(rig: Rig, target: Target, clients: int) -> float:
    """Resident memory (bytes) that a proxy grows by for each client that has sent one PING and stays connected.

    A fresh process, but not a cold one: a first client has already been served, so what a proxy sets up once (its
    connection to the upstream, modules loaded late) is not divided among the clients.
    """
    with target.start(rig) as visit, ExitStack() as connections:
        if visit.proxy is None:
            raise BenchError(f"{target.name} has no proxy")
        connections.enter_context(_greeted(visit.address))
        before = resident_bytes(visit.proxy.pid)
        for _ in range(clients):
            connections.enter_context(_greeted(visit.address))
        return (resident_bytes(visit.proxy.pid) - before) / clients


@dataclass(frozen=True)
class Start:
    """One start of coalesce, with its admin, beside an upstream that runs."""

    seconds: float  # from before the process is created to the first reply, of the upstream, at a client
    resident_bytes: int  # when that client has left, and somebody has looked at /metrics and /status


def start(rig: Rig) -> Start:
    began = time.monotonic()
    with coalesce_with_admin(rig) as visit:
        seconds = time.monotonic() - began
        assert visit.proxy is not None
        assert visit.admin is not None
        scraper = Scraper(visit.admin)
        scraper.ask()
        scraper.ask()
        scraper.close()
        return Start(seconds, resident_bytes(visit.proxy.pid))


def _greeted(address: Address) -> socket.socket:
    """A client that has had its first reply."""
    connection = address.connect()
    pong = ask(connection, b"*1\r\n$4\r\nPING\r\n", 7)
    if pong != b"+PONG\r\n":
        raise BenchError(f"a PING was answered with {pong!r}")
    return connection


def _p50_and_p99(latencies: list[float]) -> tuple[float, float]:
    return latencies[len(latencies) // 2], latencies[len(latencies) * 99 // 100]


def _per_command_us(runs: list[Run], nanoseconds: int) -> float:
    return nanoseconds / 1000 / sum(run.commands for run in runs)
