"""The connection to the upstream is cut after every byte: of the replies, of the requests.

For each offset two clients get a database of their own, so a lane and a connection through the relay of their own; both
have their requests in flight, then the relay cuts that connection after so many bytes. A client has then got whole
replies of its own and nothing else, in order, and is closed unless it has got all; of a large reply that had begun it
may have got the beginning.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from tests.system.processes import running_server
from tests.system.wire import Wire, pack, split_replies

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.system.processes import Coalesce, RedisServer

    from .relay import Link, Relay

STREAM_FROM = 16 * 1024  # coalesce.core.lane: from there on, a reply is passed on as it comes
LARGE = 20_000
BOTH_WAYS = pytest.mark.parametrize("by_reset", [False, True], ids=["FIN", "reset"])
NESTED = "return {ARGV[1], {1, {'two', {ARGV[1]}}}, {}}"


def requests_of(who: str) -> list[bytes]:
    """Replies of every kind: simple, integer, bulk, null, error, array, nested, a map in RESP3, a transaction's.

    Bob, the neighbour on the lane, asks for less: it is the time of one offset that counts.
    """
    key = f"k:{who}"
    if who == "bob":
        return [pack("ECHO", who), pack("SET", key, who)]
    return [
        pack("SET", key, f"v:{who}"),
        pack("GET", key),
        pack("GET", f"{who} has none"),
        pack("LPUSH", key, "x"),
        pack("MGET", key, "none", key),
        pack("EVAL", NESTED, 0, who),
        pack("HSET", f"h:{who}", "a", who, "b", "2"),
        pack("HGETALL", f"h:{who}"),
        pack("MULTI"),
        pack("ECHO", who),
        pack("EXEC"),
    ]


@pytest.fixture(scope="module")
def upstream(executable) -> Iterator[RedisServer]:
    with running_server(executable, "--databases", "4096", "--maxclients", "20000") as server:
        yield server


def replies_of(upstream: RedisServer, who: str, *, resp3: bool) -> list[bytes]:
    """What they are without a proxy."""
    with upstream.connect() as wire:
        if resp3:
            assert wire.ask("HELLO", 3).startswith(b"%")
        wire.send(b"".join(requests_of(who)))
        replies = wire.replies(len(requests_of(who)))
        assert wire.ask("FLUSHDB") == b"+OK\r\n"
        return replies


@contextlib.contextmanager
def pair(coalesce: Coalesce, relay: Relay, database: int, *, resp3: bool) -> Iterator[tuple[Wire, Wire, Link]]:
    """Two clients on one lane, with nothing owed on its connection, and that connection."""
    with coalesce.connect() as one, Wire(coalesce.unix_path) as other:
        for wire in (one, other):
            if resp3:
                assert wire.ask("HELLO", 3).startswith(b"%")
            assert wire.ask("SELECT", database) == b"+OK\r\n"
        yield one, other, relay.link(database)


@pytest.mark.parametrize("resp3", [False, True], ids=["RESP2-FIN", "RESP3-reset"])
def test_after_every_byte_of_the_replies(upstream, relay, coalesce, resp3):
    expected = {who: replies_of(upstream, who, resp3=resp3) for who in ("ada", "bob")}
    total = sum(len(b"".join(replies)) for replies in expected.values())
    first = 1 + 1024 * resp3
    interrupted = 0
    relay.by_reset = resp3
    for offset in range(total):
        with pair(coalesce, relay, first + offset, resp3=resp3) as (ada, bob, link):
            link.replies.left = offset
            for who, wire in (("ada", ada), ("bob", bob)):
                wire.send(b"".join(requests_of(who)))
            missing = 0
            for who, wire in (("ada", ada), ("bob", bob)):
                got = whole_replies_then_closed(wire, expected[who])
                assert got == expected[who][: len(got)], (who, offset)
                missing += len(expected[who]) - len(got)
            interrupted += missing > 0
    # All but those that came between the two: then the second client's requests waited for the next connection.
    assert interrupted >= total - 2
    # All that were cut have been noticed: the first of these databases serves again.
    with pair(coalesce, relay, first, resp3=resp3) as (ada, _, _):
        assert ada.ask("PING") == b"+PONG\r\n"


def whole_replies_then_closed(wire: Wire, expected: list[bytes]) -> list[bytes]:
    """All that were expected, or what there is until the close; a reply that is cut short is a failure."""
    data = b""
    with contextlib.suppress(EOFError, ConnectionError):
        return wire.replies(len(expected))
    data = bytes(wire.received)
    replies, incomplete = split_replies(data)
    assert incomplete == b""
    return replies


@BOTH_WAYS
def test_within_a_large_reply(upstream, relay, coalesce, by_reset):
    """Around its beginning, its end, and the size from which on it is passed on as it comes; and here and there."""
    value = (bytes(range(256)) * (LARGE // 256 + 1))[:LARGE]
    reply = b"$%d\r\n%b\r\n" % (LARGE, value)
    whole = len(reply)
    offsets = {*range(12), *range(STREAM_FROM - 4, STREAM_FROM + 12), *range(whole - 4, whole + 8)}
    offsets |= set(range(0, whole, 499))
    relay.by_reset = by_reset
    for number, offset in enumerate(sorted(offsets)):
        database = 2200 + number + 100 * by_reset
        with upstream.connect() as control:
            assert control.ask("SELECT", database) == b"+OK\r\n"
            assert control.ask("SET", "big", value) == b"+OK\r\n"
        with pair(coalesce, relay, database, resp3=False) as (ada, bob, link):
            link.replies.left = offset
            ada.send(pack("GET", "big") + pack("PING") + pack("ECHO", "ada"))
            got = ada.rest()
            expected = reply + b"+PONG\r\n" + b"$3\r\nada\r\n"
            assert expected.startswith(got), offset
            replies, incomplete = split_replies(got)
            if offset < whole:
                assert replies == []
                assert incomplete == b"" or offset >= STREAM_FROM, (offset, len(incomplete))
            else:
                assert (len(replies), incomplete) == (1 + (offset >= whole + 7), b""), offset
            assert bob.look() == (b"", False)  # nothing of its own was in flight


@BOTH_WAYS
def test_after_every_byte_of_the_requests(upstream, relay, coalesce, by_reset):
    """The upstream has run the requests that reached it whole, each once, though coalesce connects again."""
    requests = [
        pack("INCR", "n"),
        pack("SET", "k", "v"),
        pack("INCR", "n"),
        pack("APPEND", "a", "x"),
        pack("INCR", "n"),
    ]
    total = len(b"".join(requests))
    relay.by_reset = by_reset
    first = 3000 + 500 * by_reset
    for offset in range(total):
        database = first + offset
        reached = len([1 for end in range(1, len(requests) + 1) if len(b"".join(requests[:end])) <= offset])
        with pair(coalesce, relay, database, resp3=False) as (ada, bob, link):
            link.requests.left = offset
            ada.send(b"".join(requests))
            replies, incomplete = split_replies(ada.rest())
            assert incomplete == b""
            assert replies == [b":1\r\n", b"+OK\r\n", b":2\r\n", b":1\r\n", b":3\r\n"][: len(replies)]
            assert len(replies) <= reached
            assert bob.look() == (b"", False)
    for offset in range(total):
        reached = len([1 for end in range(1, len(requests) + 1) if len(b"".join(requests[:end])) <= offset])
        with upstream.connect() as control:
            assert control.ask("SELECT", first + offset) == b"+OK\r\n"
            counted = control.ask("GET", "n")
            run = (0 if counted == b"$-1\r\n" else int(counted.split()[1])) + sum(
                control.ask("EXISTS", key) == b":1\r\n" for key in ("k", "a")
            )
            assert run == reached, offset
