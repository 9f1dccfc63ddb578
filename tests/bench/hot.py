"""What the hot functions cost: `python -m tests.bench.hot` prints microseconds per command, medians of several runs.

No upstream and no sockets, so the figures hold for the functions alone; compare them before and after a change, on one
machine and at one time.
"""

from __future__ import annotations

from statistics import median
from timeit import repeat
from typing import TYPE_CHECKING

from coalesce.core.exchange import Exchange
from coalesce.core.identity import Identity
from coalesce.core.lane import Lane, Limits
from coalesce.core.resp import pack

if TYPE_CHECKING:
    from collections.abc import Callable

RUNS = 15
COMMANDS = 20_000  # a run
BATCH = 64  # requests between two flushes, replies in a chunk

BASE = Identity(None, None, 0, 2)
LIMITS = Limits(lane=10**9, client=10**9)
GET = pack([b"GET", b"key:000000001234"])
SET = pack([b"SET", b"key:000000001234", b"x" * 64])
VALUE = b"$64\r\n" + b"x" * 64 + b"\r\n"


class Peer:
    """A client that costs next to nothing."""

    def write(self, data: bytes) -> None:
        """What the socket would do is not the matter here."""

    write_more = write

    def read(self, wanted: bool, end: bool) -> None:
        """It sends when this program says so."""

    def close(self) -> None:
        raise AssertionError("nobody closes in here")

    def fail(self, fault: Exception) -> None:
        raise fault

    def hold(self, size: int) -> None:
        raise AssertionError(f"{size} bytes should have left at once")

    def pin(self, lane: Lane, pending: bytes) -> None:
        raise AssertionError(f"{pending!r} should ride, not be pinned to {lane!r}")


class Link:
    """An upstream that takes everything and says nothing."""

    def send(self, batch: bytes) -> None:
        """Where it goes is not the matter here."""

    def hang_up(self) -> None:
        raise AssertionError("nobody hangs up in here")


def connected_lane(exchange: Exchange) -> Lane:
    lane = exchange.lane(BASE)
    exchange.connected(lane, Link(), 1.0)
    return lane


def requests(data: bytes, count: int) -> Callable[[], None]:
    """Takes `data`, which holds `count` requests, from one session after the other."""
    exchange = Exchange(BASE, lambda _: None, LIMITS)
    lane = connected_lane(exchange)
    sessions = [exchange.connect(Peer()) for _ in range(BATCH)]
    receive = exchange.receive

    def run() -> None:
        for _ in range(COMMANDS // (count * BATCH)):
            for session in sessions:
                receive(session, data)
            exchange.flush(0.0)
            lane.in_flight.clear()
            assert not lane.unsent

    return run


def replies(reply: bytes, run_length: int) -> Callable[[], None]:
    """Hands out chunks of replies, `run_length` side by side for each session."""
    exchange = Exchange(BASE, lambda _: None, LIMITS)
    lane = connected_lane(exchange)
    sessions = [exchange.connect(Peer()) for _ in range(BATCH)]
    owners = [session for session in sessions[: BATCH // run_length] for _ in range(run_length)]
    chunk = reply * BATCH
    receive = lane.receive

    def run() -> None:
        for _ in range(COMMANDS // BATCH):
            lane.in_flight.extend(owners)
            receive(chunk)
        assert not lane.in_flight

    return run


CASES = {
    "Exchange.receive, a lone GET": (requests, GET, 1),
    "Exchange.receive, a lone SET of 64 bytes": (requests, SET, 1),
    "Exchange.receive, 16 pipelined GETs": (requests, GET * 16, 16),
    "Exchange.receive, 16 pipelined SETs": (requests, SET * 16, 16),
    "Lane.receive, 64-byte values": (replies, VALUE, 1),
    "Lane.receive, +OK": (replies, b"+OK\r\n", 1),
    "Lane.receive, 64-byte values, 16 for one caller": (replies, VALUE, 16),
    "Lane.receive, +OK, 16 for one caller": (replies, b"+OK\r\n", 16),
}


def microseconds(run: Callable[[], None], commands: int) -> float:
    return median(repeat(run, number=1, repeat=RUNS)) / commands * 1e6


def main() -> None:
    for name, (case, data, count) in CASES.items():
        per_round = BATCH * count if case is requests else BATCH
        commands = COMMANDS // per_round * per_round
        print(f"{name:50} {microseconds(case(data, count), commands):6.3f} us")


if __name__ == "__main__":
    main()
