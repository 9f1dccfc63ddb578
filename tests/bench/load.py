"""One run of redis-benchmark, and what the processes behind it spent meanwhile.

A run also connects its clients and lets them go. That costs as much as some dozen commands a client, and says nothing
about the cost of a command; so CPU is not taken over the run but over its steady part. The upstream is asked every
50 ms how many commands it has processed, and the steady part reaches from the first answer above 10 % of the run to the
last one below 90 %.
"""

import csv
import io
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from .accounting import CpuClock
from .address import Address, Tcp, ask
from .errors import BenchError
from .scenarios import Scenario
from .targets import redis_benchmark

VALUE_BYTES = 64
KEYS = 10_000
COMMANDS = ("set", "get")
# How clients of today begin: HELLO 3 and a database of their own.
GREETING = ("-3", "--dbnum", "1")
_GREETING_REQUESTS = b"*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n", b"*2\r\n$6\r\nSELECT\r\n$1\r\n1\r\n"

_RUN_SECONDS = 60.0
# An INFO costs the upstream about 30 us: at 20 a second less than 1 % of what it spends, even behind coalesce.
_SAMPLE_SECONDS = 0.05
_STEADY = (0.1, 0.9)
# With less than this share of the run in it the steady part is a few samples long, and a sample's delay counts.
_LEAST_SHARE = 0.25
_PROCESSED = re.compile(rb"total_commands_processed:(\d+)")


@dataclass(frozen=True)
class Sample:
    """How far a run is, and the CPU time (ns since their start) of those who serve it."""

    commands: int
    upstream_ns: int
    proxy_ns: int


class Sampler:
    """Takes samples over a connection of its own to the upstream. Its own commands are not counted."""

    def __init__(self, upstream_port: int, upstream_pid: int) -> None:
        self._connection = Tcp(upstream_port).connect()
        self._replies = self._connection.makefile("rb")
        self._clock = CpuClock(upstream_pid)
        self._asked = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._replies.close()
        self._connection.close()

    def take(self, proxy: CpuClock | None) -> Sample:
        commands = self._commands_processed()
        return Sample(commands, self._clock.nanoseconds(), proxy.nanoseconds() if proxy else 0)

    def _commands_processed(self) -> int:
        try:
            self._connection.sendall(b"INFO stats\r\n")
            length = int(self._replies.readline()[1:])
            found = _PROCESSED.search(self._replies.read(length + 2))
        except (OSError, ValueError) as error:
            raise BenchError("the upstream does not answer; did something end it?") from error
        if found is None:
            raise BenchError("the upstream's INFO has no total_commands_processed")
        self._asked += 1
        return int(found[1]) - self._asked


@dataclass(frozen=True)
class Run:
    """One command, one shape of load. CPU is of the steady part (`commands` of it), the rest is redis-benchmark's."""

    commands: int
    upstream_ns: int
    proxy_ns: int
    per_second: float
    p50_us: float
    p99_us: float


def steady_part(samples: Sequence[Sample], commands: int) -> tuple[Sample, Sample]:
    """The first and the last sample of the steady part of a run of so many commands; `samples[0]` is from before it.

    Raises BenchError if too little of the run lies between them.
    """
    begin, end = (samples[0].commands + share * commands for share in _STEADY)
    within = [sample for sample in samples if begin <= sample.commands <= end]
    if not within or within[-1].commands - within[0].commands < _LEAST_SHARE * commands:
        processed = samples[-1].commands - samples[0].commands
        raise BenchError(
            f"no steady part in a run of {commands} commands, of which the upstream saw {processed} in "
            f"{len(samples)} samples: commands did not arrive there, or --seconds is too short"
        )
    return within[0], within[-1]


def parse_report(text: str) -> tuple[float, float, float]:
    """Commands per second, p50 and p99 in us, of the one row of `redis-benchmark --csv`."""
    try:
        (row,) = csv.DictReader(io.StringIO(text))
        milliseconds = float(row["p50_latency_ms"]), float(row["p99_latency_ms"])
        return float(row["rps"]), milliseconds[0] * 1000, milliseconds[1] * 1000
    except (KeyError, ValueError) as error:
        raise BenchError(f"redis-benchmark (6.2 or later is needed) printed no such row: {text!r}") from error


@dataclass(frozen=True)
class Load:
    """`count` times the same command ("set" or "get") in the shape of `scenario`."""

    address: Address
    scenario: Scenario
    command: str
    count: int
    greets: bool = False

    def argv(self) -> list[str]:
        return [
            *(
                redis_benchmark(),
                *self.address.arguments(),
                *(GREETING if self.greets else ()),
                "--csv",
                "-t",
                self.command,
                "-n",
                str(self.count),
            ),
            *("-c", str(self.scenario.clients), "-P", str(self.scenario.pipeline)),
            *("-d", str(VALUE_BYTES), "-r", str(KEYS)),
        ]


def trial(address: Address, scenario: Scenario, *, greets: bool) -> float:
    """Commands per second of a short SET, unmeasured; it fills the keys that GET will find."""
    command_line = Load(address, scenario, "set", scenario.trial_commands, greets).argv()
    try:
        done = subprocess.run(command_line, capture_output=True, text=True, timeout=_RUN_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise BenchError(_hung(command_line)) from error
    return parse_report(_report(done.returncode, done.stdout, done.stderr))[0]


def drive(load: Load, sampler: Sampler, proxy: CpuClock | None) -> Run:
    """Runs the load to its end. `proxy` is the clock of the process that it passes through, if any."""
    samples = [sampler.take(proxy)]
    command_line = load.argv()
    deadline = time.monotonic() + _RUN_SECONDS
    with subprocess.Popen(command_line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            while process.poll() is None:
                if time.monotonic() > deadline:
                    raise BenchError(_hung(command_line))
                time.sleep(_SAMPLE_SECONDS)
                samples.append(sampler.take(proxy))
            # It has exited, and what it printed fits into the pipes.
            stdout, stderr = process.communicate(timeout=_RUN_SECONDS)
        finally:
            process.kill()
    per_second, p50_us, p99_us = parse_report(_report(process.returncode, stdout, stderr))
    first, last = steady_part(samples, load.count)
    return Run(
        commands=last.commands - first.commands,
        upstream_ns=last.upstream_ns - first.upstream_ns,
        proxy_ns=last.proxy_ns - first.proxy_ns,
        per_second=per_second,
        p50_us=p50_us,
        p99_us=p99_us,
    )


def lone_latencies(address: Address, command: str, count: int, *, greets: bool) -> list[float]:
    """`count` round trips (us, sorted) of a single client that sends one command after the other.

    In place of redis-benchmark's, whose histogram has steps of 8 us: too coarse to compare 34 with 43. A blocking
    socket has no event loop in between, so what is ours in the figure is less than 1 us.
    """
    key, value = b"key:000000000000", b"x" * VALUE_BYTES
    write = b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (len(key), key, VALUE_BYTES, value)
    read = b"*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n" % (len(key), key)
    request, reply_length = (write, 5) if command == "set" else (read, len(b"$64\r\n\r\n") + VALUE_BYTES)
    clock = time.perf_counter_ns
    latencies = []
    with address.connect() as connection:
        if greets:
            hello, select = _GREETING_REQUESTS
            connection.sendall(hello)
            connection.recv(4096)
            ask(connection, select, 5)
        ask(connection, write, 5)
        for _ in range(count):
            before = clock()
            ask(connection, request, reply_length)
            latencies.append((clock() - before) / 1000)
    return sorted(latencies)


def _hung(command_line: Sequence[str]) -> str:
    return f"redis-benchmark was not done after {_RUN_SECONDS:.0f} s: {' '.join(command_line)}"


def _report(returncode: int, stdout: str, stderr: str) -> str:
    if returncode:
        raise BenchError(f"redis-benchmark exited with {returncode}: {stderr.strip() or stdout.strip()}")
    return stdout
