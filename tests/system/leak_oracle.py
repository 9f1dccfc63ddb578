"""The leak oracle: no reply ever reaches the wrong client.

    python -m tests.system.leak_oracle --replies 1000000 [--seed N] [--kill-every SECONDS]

Many clients write and read values that only they can know, in pipelines of random length cut at random places, and
check every byte that comes back. They depart at random moments (idle, in the middle of a request, with requests in
flight, in the middle of a reply; by a FIN or a reset) and others take their places at once, while the upstream is
killed and started again. One wrong byte ends the run.

What may be different because of a kill, and only then:
- a client with requests in flight is closed, as is one whose upstream connection was its own (after MULTI);
- a value from before the kill is gone, so its reader gets either the value or null, never anything else;
- a reply is an error of coalesce's (the upstream stayed away) or -LOADING.
`Weather` tells whether that excuse holds. A client that is closed in fair weather counts as a failure too.
"""

from __future__ import annotations

import argparse
import random
import re
import socket
import struct
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from .processes import executables, running_coalesce, running_server
from .wire import bulk, pack, split_replies

if TYPE_CHECKING:
    from .processes import Coalesce, Executable, RedisServer

PATIENCE = 30  # seconds that a client waits for a batch's replies, kills included, before it says that they are lost
AUTHORED = re.compile(rb"-(?:[A-Z]+ [^\r\n]*coalesce|LOADING)[^\r\n]*\r\n")
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, zero seconds
LUA_ERROR = "return redis.error_reply(ARGV[1])"
LUA_NESTED = "return {ARGV[1], {ARGV[2], {}}}"


class WrongReplyError(AssertionError):
    """A client was told what it had no business to hear, or lost its connection for no reason."""


@dataclass
class Weather:
    """`mark` grows when a kill begins and again when coalesce serves once more; so it is odd in foul weather."""

    mark: int = 0

    def was_fair_since(self, mark: int) -> bool:
        return mark == self.mark and mark % 2 == 0


@dataclass
class Tally:
    """What a run did."""

    replies: int = 0
    clients: int = 0
    kills: int = 0
    closed_by_a_kill: int = 0
    refused_by_coalesce: int = 0
    departures: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        departures = ", ".join(f"{count} {kind}" for kind, count in sorted(self.departures.items()))
        return (
            f"{self.replies} replies checked, {self.clients} clients, "
            f"{self.departures.total()} departures ({departures}), {self.kills} kills "
            f"({self.closed_by_a_kill} clients closed, {self.refused_by_coalesce} requests refused)"
        )


@dataclass
class Run:
    """What the clients of one run share."""

    coalesce: Coalesce
    error_template: bytes
    target: int
    tally: Tally = field(default_factory=Tally)
    weather: Weather = field(default_factory=Weather)


@dataclass(slots=True)
class Exchange:
    """One request, the reply it must get, and those it may get when a kill came after the weather's mark `written`."""

    request: bytes
    reply: bytes
    after_a_kill: tuple[bytes, ...] = ()
    written: int = 0


class Client:
    """One client from connect to departure. Its number is in all that it writes, so no two share a secret."""

    def __init__(self, run: Run, chance: random.Random) -> None:
        self.run, self.chance = run, chance
        run.tally.clients += 1
        self.number = run.tally.clients
        self.serial = 0
        self.kept: list[tuple[str, bytes, int]] = []  # key, its value as a reply, the weather's mark when it was sent
        self.resp3 = chance.random() < 0.4
        self.database = chance.choice((0, 0, 0, 1, 2))
        self.name = f"name-{self.number}-{chance.getrandbits(64):x}"
        self.null = b"_\r\n" if self.resp3 else b"$-1\r\n"
        self.lease_mark: int | None = None  # since when it has an upstream connection of its own
        self.received = bytearray()
        self.replies_checked = 0
        self.batch: list[Exchange] = []
        self.batch_mark = 0

    # What it says

    def secret(self) -> str:
        """A value that nobody wrote before, mostly short, at times longer than a read of coalesce's."""
        self.serial += 1
        length = self.chance.choice((0, 0, 0, 10, 100)) if self.chance.random() < 0.995 else 100_000
        return f"{self.number}.{self.serial}.{self.chance.getrandbits(64):x}" + "s" * length

    def opening(self) -> list[Exchange]:
        """All that clients of today say at once, before their first command."""
        exchanges = []
        if self.resp3:
            exchanges.append(Exchange(pack("HELLO", 3), b""))  # compared by `_matches`: it holds the connection's id
        if self.database:
            exchanges.append(Exchange(pack("SELECT", self.database), b"+OK\r\n"))
        exchanges.append(Exchange(pack("CLIENT", "SETNAME", self.name), b"+OK\r\n"))
        return exchanges

    def next_batch(self) -> list[Exchange]:
        length = 1 if self.chance.random() < 0.4 else self.chance.randrange(1, 25)
        batch: list[Exchange] = []
        for _ in range(length):
            batch += self.exchanges()
        return batch

    def exchanges(self) -> list[Exchange]:
        """The next thing to say."""
        if not self.kept:
            return [self.set()]
        if self.chance.random() < 0.0015:
            return self.transaction()
        sayings = (self.set, self.get, self.mget, self.echo, self.nested_array, self.error, self.get_name)
        return [self.chance.choices(sayings, weights=(25, 35, 6, 20, 4, 4, 6))[0]()]

    def echo(self) -> Exchange:
        secret = self.secret()
        return Exchange(pack("ECHO", secret), bulk(secret))

    def nested_array(self) -> Exchange:
        first, second = self.secret(), self.secret()
        reply = b"*2\r\n" + bulk(first) + b"*2\r\n" + bulk(second) + b"*0\r\n"
        return Exchange(pack("EVAL", LUA_NESTED, 0, first, second), reply)

    def error(self) -> Exchange:
        self.serial += 1
        text = f"{self.number}.{self.serial}"
        return Exchange(pack("EVAL", LUA_ERROR, 0, text), self.run.error_template.replace(b"@@", text.encode()))

    def get_name(self) -> Exchange:
        return Exchange(pack("CLIENT", "GETNAME"), bulk(self.name))

    def set(self) -> Exchange:
        key, value = f"k{self.number}:{self.serial}", self.secret()
        self.kept.append((key, bulk(value), self.run.weather.mark))
        del self.kept[:-50]
        return Exchange(pack("SET", key, value), b"+OK\r\n")

    def get(self) -> Exchange:
        key, value, mark = self.chance.choice(self.kept)
        return Exchange(pack("GET", key), value, (self.null,), mark)

    def mget(self) -> Exchange:
        (key, value, mark), (other, others_value, others_mark) = self.chance.choices(self.kept, k=2)
        head, null = b"*2\r\n", self.null
        lost = (head + null + null, head + value + null, head + null + others_value)
        return Exchange(pack("MGET", key, other), head + value + others_value, lost, min(mark, others_mark))

    def transaction(self) -> list[Exchange]:
        """Moves the client to an upstream connection of its own."""
        key, value, mark = self.chance.choice(self.kept)
        if self.lease_mark is None:
            self.lease_mark = self.run.weather.mark
        return [
            Exchange(pack("MULTI"), b"+OK\r\n"),
            Exchange(pack("GET", key), b"+QUEUED\r\n"),
            Exchange(pack("EXEC"), b"*1\r\n" + value, (b"*1\r\n" + self.null,), mark),
        ]

    # How it lives

    async def live(self) -> None:
        """From connect to departure, or until a kill closes it."""
        where = self.chance.choice((self.run.coalesce.address, self.run.coalesce.unix_path))
        family = trio.socket.AF_UNIX if isinstance(where, str) else trio.socket.AF_INET
        with trio.socket.socket(family) as self.socket:
            await self.socket.connect(where)
            if not await self.converse(self.opening()):
                return
            while self.run.tally.replies < self.run.target:
                if self.chance.random() < 0.12:
                    await self.depart()
                    return
                if not await self.converse(self.next_batch()):
                    return

    async def converse(self, batch: list[Exchange]) -> bool:
        """Writes a batch and checks all of its replies; False when a kill has closed the connection."""
        self.begin(batch)
        requests = b"".join(exchange.request for exchange in batch)
        if not await self.send(requests):
            return self.excused()
        while not self.checked():
            if not await self.receive():
                return self.excused()
        if self.lease_mark is not None:
            self.lease_mark = self.run.weather.mark
        return True

    def begin(self, batch: list[Exchange]) -> None:
        self.batch, self.batch_mark = batch, self.run.weather.mark
        self.expected = b"".join(exchange.reply for exchange in batch)
        self.replies_checked = 0

    async def depart(self) -> None:
        """Leaves at some moment of a batch's life; what it has received until then is checked all the same."""
        moment = self.chance.choice(("idle", "mid-request", "in flight", "mid-reply"))
        batch = self.next_batch()
        self.begin(batch)
        requests = b"".join(exchange.request for exchange in batch)
        alive = True
        if moment == "mid-request":
            alive = await self.send(requests[: self.chance.randrange(1, len(requests))])
        elif moment in ("in flight", "mid-reply"):
            alive = await self.send(requests)
        if alive and moment == "mid-reply":
            alive = await self.receive(self.chance.randrange(1, len(self.expected) + 1))
            self.checked()
        if not alive:
            self.excused()
            return
        reset = self.chance.random() < 0.5
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.run.tally.departures[f"{moment} ({'reset' if reset else 'close'})"] += 1

    async def send(self, data: bytes) -> bool:
        """Writes, often in pieces; False when the connection is closed."""
        cuts = sorted(self.chance.randrange(len(data)) for _ in range(self.chance.choice((0, 0, 0, 1, 1, 2, 5))))
        with trio.fail_after(PATIENCE):
            try:
                for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
                    piece = data[start:end]
                    while piece:
                        piece = piece[await self.socket.send(piece) :]
                    await trio.lowlevel.checkpoint()
            except (BrokenPipeError, ConnectionResetError):
                return False
        return True

    async def receive(self, at_most: int = 65_536) -> bool:
        """Adds to what was received; False when the connection is closed."""
        with trio.move_on_after(PATIENCE) as scope:
            try:
                data = await self.socket.recv(at_most)
            except ConnectionResetError:
                data = b""
        if scope.cancelled_caught:
            raise self.wrong("no reply", self.batch[self.replies_checked].reply, bytes(self.received))
        self.received += data
        return bool(data)

    def excused(self) -> bool:
        """The connection is closed: counts it when a kill is the reason, WrongReplyError when there was none."""
        since = self.batch_mark if self.lease_mark is None else min(self.lease_mark, self.batch_mark)
        if self.run.weather.was_fair_since(since):
            raise self.wrong("closed for no reason", self.batch[self.replies_checked].reply, bytes(self.received))
        self.run.tally.closed_by_a_kill += 1
        return False

    # What it hears

    def checked(self) -> bool:
        """Whether all replies are in; WrongReplyError on the first byte that isn't what it must be."""
        if self.replies_checked == 0 and self.batch[0].reply:
            if self.received == self.expected:  # nearly always
                self.count(len(self.batch))
                self.received.clear()
                return True
            if self.expected.startswith(self.received):
                return False
        return self._checked_one_by_one()

    def count(self, replies: int) -> None:
        self.run.tally.replies += replies
        self.replies_checked += replies

    def _checked_one_by_one(self) -> bool:
        replies, rest = split_replies(self.received)
        for reply in replies:
            del self.received[: len(reply)]
            if self.replies_checked == len(self.batch):
                raise self.wrong("one reply too many", b"", reply)
            exchange = self.batch[self.replies_checked]
            if not self._matches(exchange, reply):
                raise self.wrong("wrong reply", exchange.reply, reply)
            self.count(1)
        if rest and self.replies_checked == len(self.batch):
            raise self.wrong("one reply too many", b"", rest)
        return self.replies_checked == len(self.batch)

    def _matches(self, exchange: Exchange, reply: bytes) -> bool:
        if not exchange.reply:
            if reply.startswith(b"%7\r\n$6\r\nserver\r\n") and b"$5\r\nproto\r\n:3\r\n" in reply:
                return True
        elif reply == exchange.reply:
            return True
        if self.run.weather.mark == 0:
            return False
        if reply in exchange.after_a_kill and not self.run.weather.was_fair_since(exchange.written):
            return True
        if not self.run.weather.was_fair_since(self.batch_mark) and AUTHORED.fullmatch(reply):
            self.run.tally.refused_by_coalesce += 1
            return True
        return False

    def wrong(self, what: str, expected: bytes, got: bytes) -> WrongReplyError:
        """The failure, with all that it takes to understand it: who, when, and the whole batch."""
        protocol = 3 if self.resp3 else 2
        place = "shared" if self.lease_mark is None else "leased"
        lines = [
            f"{what}: client {self.number} (database {self.database}, RESP{protocol}, {place})",
            f"  request {self.replies_checked + 1} of {len(self.batch)}",
            f"  weather {self.run.weather.mark}, {self.batch_mark} when the batch began",
            f"  expected  {expected[:300]!r}",
            f"  got       {got[:300]!r}",
            f"  behind it {bytes(self.received[:300])!r}",
        ]
        for position, exchange in enumerate(self.batch):
            mark = "  -> " if position == self.replies_checked else "     "
            lines.append(f"{mark}{exchange.request[:120]!r} -- {exchange.reply[:60]!r}")
        return WrongReplyError("\n".join(lines))


async def keep_a_place_taken(run: Run, seed: str) -> None:
    """One client after the other, until enough replies were checked."""
    chance = random.Random(seed)
    while run.tally.replies < run.target:
        await Client(run, chance).live()


async def kill_now_and_then(run: Run, upstream: RedisServer, every: float) -> None:
    while True:
        await trio.sleep(every)
        run.weather.mark += 1
        upstream.kill()
        await trio.to_thread.run_sync(upstream.start)
        while not await trio.to_thread.run_sync(serves, run.coalesce):
            await trio.lowlevel.checkpoint()
        run.tally.kills += 1
        run.weather.mark += 1


def serves(coalesce: Coalesce) -> bool:
    """Whether a new client gets its PONG; one that came at the wrong moment is closed instead."""
    try:
        with coalesce.connect() as wire:
            return wire.ask("PING") == b"+PONG\r\n"
    except (EOFError, ConnectionError):
        return False


async def report_progress(run: Run) -> None:
    while True:
        await trio.sleep(10)
        print(run.tally, flush=True)


async def let_them_talk(run: Run, upstream: RedisServer, clients: int, seed: int, kill_every: float) -> None:
    async with trio.open_nursery() as around:
        around.start_soon(report_progress, run)
        if kill_every:
            around.start_soon(kill_now_and_then, run, upstream, kill_every)
        async with trio.open_nursery() as places:
            for place in range(clients):
                places.start_soon(keep_a_place_taken, run, f"{seed}/{place}")
        around.cancel_scope.cancel()


def run_oracle(executable: Executable, replies: int, *, seed: int, kill_every: float, clients: int = 100) -> Tally:
    """Starts all that it takes and returns once `replies` were checked; an exception group of WrongReplyError else."""
    with running_server(executable) as upstream, running_coalesce(upstream.url) as coalesce:
        with upstream.connect() as wire:
            template = wire.ask("EVAL", LUA_ERROR, 0, "@@")
        run = Run(coalesce, template, replies)
        trio.run(let_them_talk, run, upstream, clients, seed, kill_every, strict_exception_groups=True)
        code, stderr = coalesce.stop()
        assert code == 0, stderr
    return run.tally


def main() -> int:
    parser = argparse.ArgumentParser(description="No reply ever reaches the wrong client: try to prove it wrong.")
    parser.add_argument("--replies", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--kill-every", type=float, default=5.0, metavar="SECONDS", help="0: never")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--server", choices=[str(each) for each in executables()], default=str(executables()[-1]))
    chosen = parser.parse_args()
    executable = next(each for each in executables() if str(each) == chosen.server)
    print(f"{executable}, seed {chosen.seed}", flush=True)
    begin = time.monotonic()
    try:
        tally = run_oracle(
            executable, chosen.replies, seed=chosen.seed, kill_every=chosen.kill_every, clients=chosen.clients
        )
    except* WrongReplyError as wrong:
        for each in wrong.exceptions:
            print(f"LEAK or loss: {each!r}", file=sys.stderr)
        raise
    print(f"{tally}\nnot one wrong reply, {time.monotonic() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
