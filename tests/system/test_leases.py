"""Connections that are lent: how many it takes, who gets the next one, and in which state they come back.

    python -m tests.system.test_leases --transactions 10000

counts the connections of as many transactions; a shorter version is in the tests.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from .processes import eventually, executables, running_coalesce, running_server
from .versions import with_oldest_and_newest
from .wire import Wire, bulk, pack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .processes import Coalesce, RedisServer

OK = b"+OK\r\n"
QUEUED = b"+QUEUED\r\n"
CLIENTS = 50
WAIT = 0.3  # seconds that an impatient one waits, who is one more than there are leases
LONG = 0.5  # ... and that others have, who get theirs at once


def connections_made(wire: Wire) -> int:
    """By everybody, since the server started."""
    found = re.search(rb"total_connections_received:(\d+)", wire.ask("INFO", "stats"))
    assert found
    return int(found[1])


def client_list(wire: Wire) -> list[dict[str, str]]:
    """What the upstream has for connections, but for the one that asks."""
    own = wire.ask("CLIENT", "ID").decode()[1:].strip()
    lines = wire.ask("CLIENT", "LIST").decode().splitlines()
    facts = [dict(fact.partition("=")[::2] for fact in line.split()) for line in lines if line.startswith("id=")]
    return [each for each in facts if each["id"] != own]


def leases(wire: Wire) -> list[dict[str, str]]:
    return [each for each in client_list(wire) if each["name"] != "coalesce"]


def transact(wire: Wire, key: str, times: int) -> None:
    """Transactions step by step, each of which has to find the last one's value."""
    for number in range(times):
        assert wire.ask("WATCH", key) == OK
        assert wire.ask("GET", key) == (bulk(str(number)) if number else b"$-1\r\n")
        assert wire.ask("MULTI") == OK
        assert wire.ask("INCR", key) == QUEUED
        assert wire.ask("EXEC") == b"*1\r\n:%d\r\n" % (number + 1)


def most_connections(upstream: RedisServer, coalesce: Coalesce, transactions: int) -> int:
    """How many connections it took coalesce to do so many transactions for all clients at once."""
    with upstream.connect() as direct, ThreadPoolExecutor(CLIENTS) as threads:
        before = connections_made(direct)
        start = threading.Barrier(CLIENTS, timeout=10)

        def work(number: int) -> None:
            with coalesce.connect() as wire:
                start.wait()
                transact(wire, f"key{number}", transactions // CLIENTS)

        for done in [threads.submit(work, number) for number in range(CLIENTS)]:
            done.result()
        return connections_made(direct) - before


def test_transactions_take_no_more_connections_than_run_at_once(fresh_upstream: RedisServer) -> None:
    """The one lane was connected before the count began."""
    with running_coalesce(fresh_upstream.url) as coalesce, coalesce.connect() as first:
        assert first.ask("PING") == b"+PONG\r\n"
        assert most_connections(fresh_upstream, coalesce, 2_000) <= CLIENTS


def test_one_after_the_other_shares_one_connection(fresh_upstream: RedisServer) -> None:
    """Sessions, not only transactions."""
    with running_coalesce(fresh_upstream.url) as coalesce, fresh_upstream.connect() as direct:
        with coalesce.connect() as first:
            assert first.ask("PING") == b"+PONG\r\n"
        before = connections_made(direct)
        for number in range(10):
            with coalesce.connect() as wire:
                assert wire.ask("CLIENT", "SETNAME", f"client-{number}") == OK
                transact(wire, f"key{number}", 2)
                assert wire.ask("BLPOP", "nothing", "0.01") == b"*-1\r\n"
        assert connections_made(direct) - before == 1


@pytest.fixture
def crowded(fresh_upstream: RedisServer) -> Iterator[Coalesce]:
    """Two leases, and time to wait for one."""
    with running_coalesce(fresh_upstream.url, "--max-leases", "2", "--upstream-wait", str(LONG)) as coalesce:
        yield coalesce


@pytest.fixture
def impatient(fresh_upstream: RedisServer) -> Iterator[Coalesce]:
    """Two leases, and hardly any time to wait for one."""
    with running_coalesce(fresh_upstream.url, "--max-leases", "2", "--upstream-wait", str(WAIT)) as coalesce:
        yield coalesce


# The queue for a lease is coalesce's, and the server knows nothing of it, whatever its version.


@contextlib.contextmanager
def blocked(coalesce: Coalesce, upstream: RedisServer, *keys: str) -> Iterator[list[Wire]]:
    """Clients known to be blocked, each at its key."""
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(coalesce.connect()) for _ in keys]
        for wire, key in zip(wires, keys, strict=True):
            wire.send(pack("BLPOP", key, 0))
        direct = stack.enter_context(upstream.connect())
        eventually(lambda: len(flagged_blocked(direct)) == len(keys))
        yield wires


def flagged_blocked(direct: Wire) -> list[dict[str, str]]:
    return [each for each in client_list(direct) if "b" in each["flags"]]


@with_oldest_and_newest
def test_one_client_too_many_is_told(impatient: Coalesce, fresh_upstream: RedisServer) -> None:
    with blocked(impatient, fresh_upstream, "a", "b") as (first, _), impatient.connect() as third:
        began = time.monotonic()
        assert third.ask("BLPOP", "c", 0) == b"-ERR coalesce: all 2 leases are taken (max-leases)\r\n"
        assert WAIT <= time.monotonic() - began < WAIT + 5
        assert third.ask("RPUSH", "a", "x") == b":1\r\n"  # it goes on
        assert first.reply() == b"*2\r\n" + bulk("a") + bulk("x")
        assert third.ask("BLPOP", "c", "0.01") == b"*-1\r\n"  # ... and gets the place that has become free


@with_oldest_and_newest
def test_nobody_else_waits_meanwhile(impatient: Coalesce, fresh_upstream: RedisServer) -> None:
    with blocked(impatient, fresh_upstream, "a", "b"), impatient.connect() as third, impatient.connect() as rider:
        third.send(pack("SCRIPT", "KILL") + pack("PING") + pack("WATCH", "k") + pack("SET", "k", "v"))
        assert rider.ask("PING") == b"+PONG\r\n"
        assert third.reply().startswith(b"-ERR coalesce: all 2 leases")
        assert third.reply() == b"+PONG\r\n"
        assert third.rest().startswith(b"-ERR coalesce: all 2 leases")  # and is closed: who watches is not to write


@with_oldest_and_newest
def test_a_blocked_client_that_leaves_frees_its_place_at_once(crowded: Coalesce, fresh_upstream: RedisServer) -> None:
    """At once: who asks next would be told of no place otherwise."""
    with blocked(crowded, fresh_upstream, "a", "b") as (first, _), crowded.connect() as third:
        third.send(pack("BLPOP", "c", "0.01"))
        first.close()
        assert third.reply() == b"*-1\r\n"
        with fresh_upstream.connect() as direct:
            eventually(lambda: len(flagged_blocked(direct)) == 1)
            assert direct.ask("RPUSH", "a", "x") == b":1\r\n"
            assert direct.ask("LRANGE", "a", 0, -1) == b"*1\r\n" + bulk("x")


@with_oldest_and_newest
def test_who_leaves_the_queue_takes_no_place(crowded: Coalesce, fresh_upstream: RedisServer) -> None:
    with blocked(crowded, fresh_upstream, "a", "b") as (first, _), crowded.connect() as last:
        with crowded.connect() as third:
            third.send(pack("BLPOP", "c", 0))
        last.send(pack("BLPOP", "d", "0.01"))
        first.close()
        assert last.reply() == b"*-1\r\n"


@with_oldest_and_newest
def test_leases_of_other_identities_make_room(crowded: Coalesce) -> None:
    with contextlib.ExitStack() as stack:
        for database in range(6):
            wire = stack.enter_context(crowded.connect())
            assert wire.ask("SELECT", database) == OK
            transact(wire, "key", 2)


def test_a_subscriber_gives_its_connection_back(coalesce: Coalesce, upstream: RedisServer) -> None:
    with coalesce.connect() as one, coalesce.connect() as other, upstream.connect() as direct:
        assert one.ask("CLIENT", "SETNAME", "one") == OK
        assert one.ask("SUBSCRIBE", "c") == b"*3\r\n" + bulk("subscribe") + bulk("c") + b":1\r\n"
        (lease,) = [each for each in leases(direct) if each["name"] == "one"]
        assert lease["sub"] == "1"
        assert one.ask("UNSUBSCRIBE", "c") == b"*3\r\n" + bulk("unsubscribe") + bulk("c") + b":0\r\n"
        assert one.ask("PING") == b"+PONG\r\n"  # so it rides, and the lease is idle
        before = connections_made(direct)
        assert other.ask("CLIENT", "SETNAME", "other") == OK
        assert other.ask("WATCH", "k") == OK
        (reused,) = [each for each in client_list(direct) if each["id"] == lease["id"]]
        assert (reused["name"], reused["sub"]) == ("other", "0")
        assert connections_made(direct) == before


@pytest.mark.parametrize("unix", [False, True])
@pytest.mark.parametrize("reset", [False, True])
def test_a_subscriber_that_leaves_leaves_nothing_behind(
    coalesce: Coalesce, upstream: RedisServer, *, unix: bool, reset: bool
) -> None:
    """A unix socket is told at once that its peer has closed, whatever is written to it, even nothing."""
    with Wire(coalesce.unix_path if unix else coalesce.address) as wire, upstream.connect() as direct:
        wire.ask("SUBSCRIBE", "c")
        if reset:
            wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wire.close()
        eventually(lambda: all(each["sub"] == "0" for each in client_list(direct)))


def main() -> None:
    parser = argparse.ArgumentParser(description="How many connections do transactions of 50 clients take?")
    parser.add_argument("--transactions", type=int, default=10_000)
    parser.add_argument("--server", choices=[str(each) for each in executables()], default=str(executables()[-1]))
    chosen = parser.parse_args()
    executable = next(each for each in executables() if str(each) == chosen.server)
    began = time.monotonic()
    with (
        running_server(executable) as upstream,
        running_coalesce(upstream.url) as coalesce,
        coalesce.connect() as first,
    ):
        assert first.ask("PING") == b"+PONG\r\n"
        made = most_connections(upstream, coalesce, chosen.transactions)
    print(
        f"{chosen.transactions} transactions, {CLIENTS} clients: {made} connections, {time.monotonic() - began:.1f} s"
    )
    assert made <= CLIENTS


if __name__ == "__main__":
    main()
