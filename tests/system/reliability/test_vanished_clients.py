"""A client's host vanishes, its packets with it: what was the client's alone is there for others in time.

And who is merely slow stays, however long nothing of his own gets through.
"""

from __future__ import annotations

import contextlib
import re
import time
from typing import TYPE_CHECKING

import pytest

from tests.system.admin import ADMIN, metrics
from tests.system.processes import eventually, running_server
from tests.system.wire import Wire, bulk, pack

from . import faults
from .namespaces import Network, coalesce_at, impossible, network

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.system.processes import Coalesce, RedisServer

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


# What is idle at the end, on a connection of its own, and how that is to be found in CLIENT LIST.
IDLE = {
    "blocked": (("BLPOP", "queue", 0), " cmd=blpop"),
    "transaction": (("MULTI",), " multi=0"),
    "subscriber": (("SUBSCRIBE", "news"), " sub=1"),
    "pinned": (("CLIENT", "ID"), " cmd=client|id"),  # (and nothing that the others do is told to it)
}
# Whoever is sent something without asking: on a lease, on a pin.
TOLD = {"subscriber": IDLE["subscriber"], "pinned": (("MONITOR",), " cmd=monitor")}


def present(upstream: RedisServer, kinds: dict[str, tuple[tuple, str]]) -> list[str]:
    """Which of them have a connection there."""
    with upstream.connect() as control:
        listed = control.ask("CLIENT", "LIST").decode()
    return [kind for kind, (_, trace) in kinds.items() if trace in listed]


def closed(coalesce: Coalesce) -> int:
    """How many clients it says that it has closed for their silence: not those that their kernel was asked about."""
    said = re.findall(r"clients closed, as nothing was heard from their hosts for 0.8 s: (\d+)\n", coalesce.stderr)
    return sum(map(int, said))


def ask_for_much(client: Wire) -> None:
    """More than fits in the kernels' buffers, and nothing of it is read."""
    assert client.ask("SET", "large", LARGE) == OK
    client.send(pack("GET", "large") * 8)


def test_clients_that_vanish_give_back_what_they_have(executable, between, upstream):
    """All kinds at once. Some are idle on a connection of their own: their kernel is asked whether it is there.

    Others are noticed by what they do not acknowledge: the kernel would repeat it for a quarter of an hour, and asks
    nothing meanwhile. They have an upstream and a coalesce to themselves, and who has replies unread has another one.
    And whoever is there and merely does not read is left alone, though his window is full for longer than a silence may
    last: his kernel says so whenever it is asked.
    """
    with contextlib.ExitStack() as stack:
        talkative = stack.enter_context(running_server(executable))
        silence = ("--client-silence", str(SILENCE), *ADMIN)
        where = {"idle": upstream.url, "told": talkative.url, "unread": upstream.url}
        at = {kind: stack.enter_context(coalesce_at(between.here, url, *silence)) for kind, url in where.items()}
        present_one = stack.enter_context(Wire(at["idle"].address, receive_buffer=4096))
        absent_one = stack.enter_context(between.connect(at["unread"].address, receive_buffer=4096))
        for client in (present_one, absent_one):
            ask_for_much(client)
        begun = time.monotonic()
        for kinds, coalesce, server in ((IDLE, at["idle"], upstream), (TOLD, at["told"], talkative)):
            for request, _ in kinds.values():
                stack.enter_context(between.connect(coalesce.address)).send(pack(*request))
            eventually(lambda kinds=kinds, server=server: present(server, kinds) == [*kinds])
        faults.last(SILENCE / 2)  # the window of who has not read is full
        between.drop()
        noticed_by = time.monotonic() + NOTICED_WITHIN
        with talkative.connect() as control:
            assert control.ask("PUBLISH", "news", "x").startswith(b":")

        def outcome() -> dict[str, object]:
            """What is left of whom, and how many each coalesce has closed for their silence."""
            left = {"idle": present(upstream, IDLE), "told": present(talkative, TOLD)}
            return {"left": left, "closed": {kind: closed(coalesce) for kind, coalesce in at.items()}}

        all_gone = {"left": {"idle": [], "told": []}, "closed": {"idle": 0, "told": len(TOLD), "unread": 1}}
        with contextlib.suppress(TimeoutError):
            eventually(lambda: outcome() == all_gone, noticed_by - time.monotonic())
        assert outcome() == all_gone
        counted = {kind: metrics(coalesce)["clients_closed_total silence"] for kind, coalesce in at.items()}
        assert counted == all_gone["closed"]
        with upstream.connect() as producer:
            assert producer.ask("RPUSH", "queue", "x") == b":1\r\n"
            assert producer.ask("LRANGE", "queue", 0, -1) == b"*1\r\n" + bulk("x")
        faults.last(max(0.0, begun + 2.5 * SILENCE - time.monotonic()))
        assert present_one.replies(8) == [bulk(LARGE)] * 8
        assert closed(at["idle"]) == 0


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
