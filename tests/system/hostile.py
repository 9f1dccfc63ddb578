"""What one client may do to another: nothing. A neighbour that is watched while somebody misbehaves, and storms.

    python -m tests.system.hostile --seconds 60     storms of connects, directly and through coalesce

A watch compares the neighbour's p99 with what it is when all is calm, coalesce's memory with a bound that the test
works out from the limits of coalesce, and the lanes' connections with those of before.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import select
import socket
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from .processes import ROOT, Coalesce, RedisServer, eventually, executables, running_coalesce, running_server
from .wire import Wire, bulk, pack

if TYPE_CHECKING:
    from collections.abc import Iterator

KB, MB = 1024, 1024 * 1024

# The neighbour's p99 in an attack, over its p99 without: medians of windows, and more windows while it seems too much.
RATIO = 2.0
# Round trips of a window, whose p99 is one figure. A window takes some 15 ms.
_WINDOW = 100
_LEAST_WINDOWS, _MOST_WINDOWS = 3, 40
# Seconds. A p99 below this is the scheduler's: on two cores that others use as well, one slice is some milliseconds.
_NOISE = 0.5e-3
# What is still held after everybody has left: pieces of the heap that are free and not yet worth returning.
KEPT = 12 * MB


def memory(coalesce: Coalesce) -> int:
    """Bytes resident now."""
    rollup = Path(f"/proc/{coalesce.pid}/smaps_rollup").read_text()
    found = re.search(r"Rss:\s+(\d+) kB", rollup)
    assert found, rollup
    return int(found[1]) * KB


def forget_peak(coalesce: Coalesce) -> None:
    """`Coalesce.most_memory` tells the most from here on (proc(5): clear_refs)."""
    Path(f"/proc/{coalesce.pid}/clear_refs").write_text("5")


def lanes(control: Wire) -> set[bytes]:
    """The shared connections, each by the number that the upstream gave it: a new connection has a new one."""
    listed = control.ask("CLIENT", "LIST")
    return set(re.findall(rb"id=(\d+)[^\n]* name=coalesce ", listed))


class Neighbour:
    """A client that asks for one thing after the other, and knows what it has to get."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.wire = Wire(address)
        self._turn = 0

    def window(self) -> float:
        """p99 in seconds."""
        took = []
        for _ in range(_WINDOW // 2):
            self._turn += 1
            value = f"value {self._turn}"
            for request, expected in ((("SET", "neighbour", value), b"+OK\r\n"), (("GET", "neighbour"), bulk(value))):
                began = time.perf_counter()
                reply = self.wire.ask(*request)
                took.append(time.perf_counter() - began)
                assert reply == expected, reply
        return sorted(took)[len(took) * 99 // 100]


class Watch:
    """Looks after a neighbour, the lanes and coalesce's memory. `bound`: bytes that the attackers may take in all.

    `calm` is a coalesce before the same server that nobody attacks. Its neighbour has a window whenever the other has
    one, so what the machine does to both is in both figures.
    """

    def __init__(self, server: RedisServer, coalesce: Coalesce, calm: Coalesce, bound: int) -> None:
        self.coalesce = coalesce
        self._bound = bound
        self._neighbour = Neighbour(coalesce.address)
        self._calm_neighbour = Neighbour(calm.address)
        self._control = server.connect()
        self._neighbour.window()
        self._calm: list[float] = []
        self._during: list[float] = []
        self._lanes = lanes(self._control)
        assert self._lanes
        forget_peak(coalesce)
        self._before = memory(coalesce)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._check_after()
        finally:
            for wire in (self._neighbour.wire, self._calm_neighbour.wire, self._control):
                wire.close()

    @property
    def taken(self) -> int:
        """Bytes of memory that the attack took at the most."""
        return self.coalesce.most_memory() - self._before

    def look(self) -> float:
        """In the middle of the attack: the neighbour is served as ever, and memory is bounded. Its p99."""
        p99 = self._neighbour.window()
        assert self.taken <= self._bound, f"{self.taken / MB:.1f} MB taken, {self._bound / MB:.1f} allowed"
        return p99

    def look_closely(self) -> None:
        """While the attack stands still: the neighbour's p99, too. More windows as long as it seems too long."""
        for turn in range(_MOST_WINDOWS):
            self._during.append(self.look())
            self._calm.append(self._calm_neighbour.window())
            if turn >= _LEAST_WINDOWS and self._ratio() <= RATIO:
                break
        assert self._ratio() <= RATIO, f"p99 {self._figures()}"

    def _ratio(self) -> float:
        return statistics.median(self._during) / max(_NOISE, statistics.median(self._calm))

    def _figures(self) -> str:
        calm, during = (statistics.median(it) * 1e3 if it else 0.0 for it in (self._calm, self._during))
        return f"{during:.2f} ms under attack, {calm:.2f} ms without"

    def _check_after(self) -> None:
        """The attackers have left."""
        taken = self.taken
        self._neighbour.window()
        assert lanes(self._control) >= self._lanes, "a lane's connection was lost"
        assert "connection lost" not in self.coalesce.stderr, self.coalesce.stderr
        assert taken <= self._bound, f"{taken / MB:.1f} MB taken, {self._bound / MB:.1f} allowed"
        eventually(lambda: memory(self.coalesce) - self._before <= KEPT)
        kept = memory(self.coalesce) - self._before
        allowed = f"{self._bound / MB:.1f} allowed"
        print(f"p99 {self._figures()}; {taken / MB:.1f} MB taken ({allowed}), {kept / MB:.1f} MB kept")


@contextlib.contextmanager
def attacked(server: RedisServer, calm: Coalesce, bound: int, *flags: str) -> Iterator[Watch]:
    """A coalesce with flags, and a watch over it."""
    with running_coalesce(server.url, *flags) as coalesce:
        with Watch(server, coalesce, calm, bound) as watch:
            yield watch
        code, stderr = coalesce.stop()
        assert code == 0, stderr


def pour(wire: Wire, data: bytes) -> int:
    """Sends as much as can be sent at once; bytes."""
    wire.socket.setblocking(False)
    sent = 0
    try:
        while sent < len(data):
            sent += wire.socket.send(memoryview(data)[sent:])
    except (BlockingIOError, ConnectionError):
        pass
    wire.socket.settimeout(10)
    return sent


def reset(sock: socket.socket) -> None:
    """Closes without goodbye."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


# --- storms: another process ---


class Storm:
    """Another process that connects, asks for something and leaves, two thousand times a second."""

    def __init__(self, address: tuple[str, int], kind: str) -> None:
        command = [sys.executable, "-m", "tests.system.hostile", "--storm", kind, "--port", str(address[1])]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.count = 0
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "begun\n"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            told, _ = self._process.communicate("", timeout=10)
            self.count = int(told or 0)
        finally:
            self._process.kill()
            self._process.wait(10)


STORMS = {
    "close": "connects and closes",
    "reset": "connects and closes by RST",
    "ask": "asks for something and closes without reading it",
    "ask-reset": "the same, by RST",
}


# A storm's connections between two pauses, and the pause (seconds): 2,000 connections a second at the most.
_GUST, _LULL = 40, 0.02


def storm(kind: str, port: int) -> int:
    """Until stdin ends. How many connections it were.

    It takes no core from the others: a storm comes from another machine.
    """
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    count = 0
    request = pack("GET", "neighbour") * 3
    while not select.select([sys.stdin], [], [], _LULL)[0]:
        for _ in range(_GUST):
            sock = socket.create_connection(("127.0.0.1", port), 10)
            if kind.startswith("ask"):
                sock.sendall(request)
            if kind.endswith("reset"):
                reset(sock)
            else:
                sock.close()
        if not count:
            print("begun", flush=True)
        count += _GUST
    return count


def p99_in_storm(address: tuple[str, int], kind: str, windows: int) -> tuple[float, float, float]:
    """The neighbour's p99 (ms) when calm and in a storm, and the storm's connections a second."""
    neighbour = Neighbour(address)
    neighbour.window()
    calm = statistics.median(neighbour.window() for _ in range(windows))
    began = time.monotonic()
    with Storm(address, kind) as it:
        stormy = statistics.median(neighbour.window() for _ in range(windows))
    neighbour.wire.close()
    return calm * 1e3, stormy * 1e3, it.count / (time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.system.hostile")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--storm", choices=STORMS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.storm:
        print(storm(arguments.storm, arguments.port))
        return
    until = time.monotonic() + arguments.seconds
    with running_server(executables()[-1]) as server, running_coalesce(server.url) as coalesce:
        while time.monotonic() < until:
            for kind, what in STORMS.items():
                for name, address in (("direct", server.address), ("coalesce", coalesce.address)):
                    calm, stormy, rate = p99_in_storm(address, kind, 15)
                    print(f"{what:50} {name:9} p99 {calm:5.2f} ms calm, {stormy:5.2f} ms, {rate:6.0f} a second")


if __name__ == "__main__":
    main()
