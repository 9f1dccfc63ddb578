"""A realistic mix: clients that begin as client libraries of today do, and use a little of everything.

    python -m tests.system.mix [--clients 200] [--rounds 200]

Prints how much of it rode shared connections. Every reply is checked. Most clients share one identity; a few use
another database, RESP2, or a user of their own.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from .processes import ClosingLine, closing_line, executables, running_coalesce, running_server
from .wire import bulk, pack, split_replies

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .processes import Coalesce, RedisServer

DEADLINE = 120.0  # seconds for all of it
SCRIPT = "return redis.call('INCRBY', KEYS[1], ARGV[1])"
# Of a hundred rounds of a client.
TRANSACTIONS = 10  # in one piece, as client libraries send them
WATCHED = 1  # ... and with WATCH, step by step
BLOCKING = 1
SUBSCRIPTIONS = 1

Request = tuple[str | bytes | int, ...]


@dataclass(frozen=True)
class Kind:
    """How a client begins, and whom that makes it."""

    protocol: int = 3
    database: int = 0
    user: str = ""

    def greeting(self) -> list[Request]:
        """All in one write: what redis-py 8, node-redis 6 and ioredis 6 have in common."""
        auth = ("AUTH", self.user, "secret") if self.user else ()
        requests: list[Request] = [
            ("HELLO", self.protocol, *auth),
            ("CLIENT", "SETINFO", "LIB-NAME", "mix"),
            ("CLIENT", "SETINFO", "LIB-VER", "1.0"),
            ("CLIENT", "MAINT_NOTIFICATIONS", "ON", "moving-endpoint-type", "internal-ip"),
        ]
        if self.database:
            requests.append(("SELECT", self.database))
        return requests


USUAL = Kind()
UNUSUAL = (Kind(database=1), Kind(protocol=2), Kind(user="alice"))
KINDS = (USUAL, *UNUSUAL)


@dataclass
class Counts:
    """What clients have sent, of what can ride and what can't."""

    stateless: int = 0
    others: int = 0
    wrong: list[str] = field(default_factory=list)


class Client:
    """One client: connects, greets, and goes through its rounds."""

    def __init__(self, address: tuple[str, int], kind: Kind, number: int, digest: bytes, counts: Counts) -> None:
        self._address = address
        self._kind = kind
        self._counts = counts
        self._digest = digest
        self._random = random.Random(number)
        self._name = f"{kind.user}:{number}"
        self._written = 0
        self._stream: trio.SocketStream
        self._received = b""

    async def run(self, rounds: int) -> None:
        self._stream = await trio.open_tcp_stream(*self._address)
        async with self._stream:
            greeting = self._kind.greeting()
            await self._send(greeting)
            replies = await self._replies(len(greeting))
            self._counts.stateless += 3  # all but HELLO and SELECT, which change who it is
            self._expect(replies[0][:1], b"%" if self._kind.protocol == 3 else b"*")
            acts = [self._transaction] * TRANSACTIONS + [self._watch] * WATCHED
            acts += [self._block] * BLOCKING + [self._subscribe] * SUBSCRIPTIONS
            acts += [self._ordinary] * (100 - len(acts))
            for _ in range(rounds):
                await self._random.choice(acts)()

    async def _ordinary(self) -> None:
        """A few commands, one after the other."""
        self._written += 1
        value = b"%d of %b" % (self._written, self._name.encode())
        hash_reply = b"%1\r\n" if self._kind.protocol == 3 else b"*2\r\n"
        await self._ask(("SET", self._key("s"), value), b"+OK\r\n")
        await self._ask(("GET", self._key("s")), bulk(value))
        await self._ask(("HSET", self._key("h"), "f", value), b":%d\r\n" % (self._written == 1))
        await self._ask(("HGETALL", self._key("h")), hash_reply + bulk("f") + bulk(value))
        await self._ask(("ZADD", self._key("z"), self._written, "m"), b":%d\r\n" % (self._written == 1))
        await self._ask(("EVALSHA", self._digest, 1, self._key("n"), 2), b":%d\r\n" % (2 * self._written))

    async def _transaction(self) -> None:
        requests: list[Request] = [("MULTI",), ("SET", self._key("t"), "1"), ("INCR", self._key("t")), ("EXEC",)]
        await self._send(requests)
        self._counts.stateless += len(requests)
        expected = [b"+OK\r\n", b"+QUEUED\r\n", b"+QUEUED\r\n", b"*2\r\n+OK\r\n:2\r\n"]
        self._expect(await self._replies(4), expected)

    async def _watch(self) -> None:
        self._counts.others += 4
        for request, reply in (
            (("WATCH", self._key("w")), b"+OK\r\n"),
            (("MULTI",), b"+OK\r\n"),
            (("SET", self._key("w"), "1"), b"+QUEUED\r\n"),
            (("EXEC",), b"*1\r\n+OK\r\n"),
        ):
            await self._send([request])
            self._expect(await self._replies(1), [reply])

    async def _block(self) -> None:
        """There is an element already, or there will be none."""
        self._counts.others += 1
        if self._random.random() < 0.5:
            await self._ask(("RPUSH", self._key("q"), "x"), b":1\r\n")
            await self._send([("BLPOP", self._key("q"), 0)])
            self._expect(await self._replies(1), [b"*2\r\n" + bulk(self._key("q")) + bulk("x")])
        else:
            await self._send([("BLPOP", self._key("q"), "0.01")])
            self._expect(await self._replies(1), [b"_\r\n" if self._kind.protocol == 3 else b"*-1\r\n"])

    async def _subscribe(self) -> None:
        self._counts.others += 2
        kind = b">3\r\n" if self._kind.protocol == 3 else b"*3\r\n"
        channel = self._key("c")
        for name, count in (("subscribe", 1), ("unsubscribe", 0)):
            await self._send([(name.upper(), channel)])
            self._expect(await self._replies(1), [kind + bulk(name) + bulk(channel) + b":%d\r\n" % count])

    def _key(self, what: str) -> str:
        return f"{self._name}:{self._kind.protocol}:{what}"

    async def _ask(self, request: Request, reply: bytes) -> None:
        self._counts.stateless += 1
        await self._send([request])
        self._expect(await self._replies(1), [reply])

    async def _send(self, requests: Sequence[Request]) -> None:
        await self._stream.send_all(b"".join(pack(*request) for request in requests))

    async def _replies(self, count: int) -> list[bytes]:
        replies: list[bytes] = []
        while len(replies) < count:
            chunk = await self._stream.receive_some()
            if not chunk:
                raise ConnectionError(f"{self._name} was closed after {self._received!r}")
            whole, self._received = split_replies(self._received + chunk)
            replies += whole
        return replies

    def _expect(self, got: object, wanted: object) -> None:
        if got != wanted:
            self._counts.wrong.append(f"{self._name} got {got!r} in place of {wanted!r}")


def run(server: RedisServer, coalesce: Coalesce, clients: int, rounds: int) -> Counts:
    """The mix, to its end."""
    counts = Counts()
    with server.connect() as wire:
        assert wire.ask("ACL", "SETUSER", "alice", "on", ">secret", "~alice:*", "&*", "+@all") == b"+OK\r\n"
        digest = wire.ask("SCRIPT", "LOAD", SCRIPT).split(b"\r\n")[1]

    async def everybody() -> None:
        with trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:
                for number in range(clients):
                    kind = UNUSUAL[number % 3] if number % 10 == 0 else USUAL
                    nursery.start_soon(Client(coalesce.address, kind, number, digest, counts).run, rounds)

    trio.run(everybody)
    return counts


def report(counts: Counts, said: ClosingLine) -> str:
    return (
        f"stateless commands sent: {counts.stateless}; carried by {said.lanes} lanes: {said.commands} "
        f"in batches of {said.mean} (mean)\n"
        f"other commands sent: {counts.others}; carried by {said.leases} leases: {said.leased_commands}\n"
        f"wrong replies: {len(counts.wrong)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=200)
    arguments = parser.parse_args()
    with running_server(executables()[-1]) as server, running_coalesce(server.url) as coalesce:
        counts = run(server, coalesce, arguments.clients, arguments.rounds)
        said = closing_line(coalesce.stop()[1])
    print(report(counts, said))
    for wrong in counts.wrong[:10]:
        print(wrong)
    raise SystemExit(bool(counts.wrong))


if __name__ == "__main__":
    main()
