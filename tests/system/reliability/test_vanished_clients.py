"""A client's host vanishes, its packets with it: what was the client's alone is there for others in time.

And who is merely slow stays, however long nothing of his own gets through.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.system.processes import eventually, running_server
from tests.system.wire import bulk, pack

from . import faults
from .namespaces import Network, coalesce_at, impossible, network

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.system.processes import Coalesce, RedisServer
    from tests.system.wire import Wire

pytestmark = pytest.mark.skipif(bool(impossible()), reason=f"no namespaces here: {impossible()}")

SILENCE = 0.8  # seconds: --client-silence
# Keepalive knows whole seconds, one until the first probe and one until it is missed; a look comes before, one after.
NOTICED_WITHIN = 2.0 + 2 * SILENCE / 8 + 1.0
OK = b"+OK\r\n"
LARGE = "v" * 1_000_000


@pytest.fixture
def between() -> Iterator[Network]:
    with network() as between:
        yield between


@pytest.fixture
def upstream(executable) -> Iterator[RedisServer]:
    with running_server(executable) as server:
        yield server


@pytest.fixture
def coalesce(between, upstream) -> Iterator[Coalesce]:
    with coalesce_at(between.here, upstream.url, "--client-silence", str(SILENCE)) as coalesce:
        yield coalesce


def connections(upstream: RedisServer, pattern: str) -> int:
    """How many lines of CLIENT LIST have it in them."""
    with upstream.connect() as control:
        return len(re.findall(pattern, control.ask("CLIENT", "LIST").decode()))


# What is idle at the end, on a connection of its own, and how that is to be found in CLIENT LIST.
IDLE = {
    "blocked": ([("BLPOP", "queue", 0)], " cmd=blpop"),
    "transaction": ([("MULTI",)], " multi=0"),
    "subscriber": ([("SUBSCRIBE", "news")], " sub=1"),
    "pinned": ([("MONITOR",)], " cmd=monitor"),
}


@pytest.mark.parametrize(("requests", "trace"), IDLE.values(), ids=IDLE)
def test_an_idle_client_that_vanishes_gives_back_what_it_has(between, upstream, coalesce, requests, trace):
    """Nothing is sent to it: its kernel is asked whether it is there."""
    with between.connect(coalesce.address) as client:
        for request in requests:
            client.send(pack(*request))
        eventually(lambda: connections(upstream, trace) == 1)
        between.drop()
        eventually(lambda: connections(upstream, trace) == 0, NOTICED_WITHIN)
        with upstream.connect() as producer:
            assert producer.ask("RPUSH", "queue", "x") == b":1\r\n"
            assert producer.ask("LRANGE", "queue", 0, -1) == b"*1\r\n" + bulk("x")


def has_left(coalesce: Coalesce) -> bool:
    return bool(re.search(r"clients closed, as nothing was heard from their hosts for 0.8 s: 1\n", coalesce.stderr))


# Whoever is sent something without asking: on a lease, on a pin.
TOLD = {"subscriber": (("SUBSCRIBE", "news"), " sub=1"), "pinned": (("MONITOR",), " cmd=monitor")}


@pytest.mark.parametrize(("request_", "trace"), TOLD.values(), ids=TOLD)
def test_a_client_that_vanishes_is_noticed_by_what_it_does_not_acknowledge(
    between, upstream, coalesce, request_, trace
):
    """The kernel would repeat it for a quarter of an hour, and asks nothing meanwhile."""
    with between.connect(coalesce.address) as client, upstream.connect() as control:
        client.send(pack(*request_))
        eventually(lambda: connections(upstream, trace) == 1)
        between.drop()
        assert control.ask("PUBLISH", "news", "x").startswith(b":")
        eventually(lambda: has_left(coalesce), NOTICED_WITHIN)
        eventually(lambda: connections(upstream, trace) == 0)


def ask_for_much(client: Wire) -> None:
    """More than fits in the kernels' buffers, and nothing of it is read."""
    assert client.ask("SET", "large", LARGE) == OK
    client.send(pack("GET", "large") * 8)


def test_a_client_that_vanishes_with_replies_unread_is_closed(between, coalesce):
    with between.connect(coalesce.address, receive_buffer=4096) as client:
        ask_for_much(client)
        faults.last(SILENCE / 2)  # its window is full
        between.drop()
        eventually(lambda: has_left(coalesce), NOTICED_WITHIN)


def test_a_client_that_does_not_read_for_long_is_left_alone(between, coalesce):
    """Its window is full for longer than a silence may last, and its kernel says so whenever it is asked."""
    with between.connect(coalesce.address, receive_buffer=4096) as client:
        ask_for_much(client)
        faults.last(2.5 * SILENCE)
        assert client.replies(8) == [bulk(LARGE)] * 8
        assert not has_left(coalesce)


def test_a_silence_that_ends_in_time_closes_no_client(between, upstream):
    with (
        coalesce_at(between.here, upstream.url, "--client-silence", "4") as coalesce,
        between.connect(coalesce.address) as client,
        between.connect(coalesce.address) as blocked,
    ):
        assert client.ask("INCR", "n") == b":1\r\n"
        blocked.send(pack("BLPOP", "queue", 0))
        between.drop()
        client.send(pack("INCR", "n"))
        faults.last(0.6)
        between.heal()
        assert client.reply() == b":2\r\n"
        assert client.ask("RPUSH", "queue", "x") == b":1\r\n"
        assert blocked.reply() == b"*2\r\n" + bulk("queue") + bulk("x")
