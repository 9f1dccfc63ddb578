"""Packets that vanish: neither side is told anything.

A silence that ends in time costs nothing but time. One that stays is noticed by the kernel, and `NOTICED_WITHIN`
(seconds) is what coalesce promises for that; what is merely slow is never taken for it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.system.admin import ADMIN, metrics
from tests.system.processes import eventually, running_coalesce
from tests.system.wire import bulk, pack

from . import faults
from .accounting import Load
from .namespaces import Network, impossible, network, server_at
from .stage import FORGETS_NOTHING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.system.processes import Coalesce, RedisServer
    from tests.system.wire import Wire

pytestmark = pytest.mark.skipif(bool(impossible()), reason=f"no namespaces here: {impossible()}")

SILENCE = 1.2  # seconds: --upstream-silence
# As long again for the PING of an idle lane, and for the looks.
NOTICED_WITHIN = 2 * SILENCE + 1.0
OK = b"+OK\r\n"


@pytest.fixture
def between() -> Iterator[Network]:
    with network() as between:
        yield between


@pytest.fixture
def upstream(executable, between) -> Iterator[RedisServer]:
    with server_at(executable, between.there, *FORGETS_NOTHING, within=between.name) as server:
        yield server


def test_a_silence_that_ends_in_time_loses_nothing_and_closes_nobody(between, upstream):
    """In time is before the kernel repeats what it sent for the last time that counts: 2.4 s after it was sent."""
    with running_coalesce(upstream.url, "--upstream-silence", "3") as coalesce:
        load = Load([coalesce.address, coalesce.unix_path], clients=20)
        load.start()
        between.drop()
        faults.last(0.6)
        between.heal()
        load.go_on()
        load.finish()
    with upstream.connect() as control:
        verdict = load.balance(control)
    assert (verdict.unacknowledged, verdict.refused, verdict.closed) == (0, 0, 0)


def test_an_upstream_that_is_merely_slow_is_not_taken_for_a_silent_one(upstream):
    """It answers nothing for a while, but its kernel does, also when its window is full.

    TCP_USER_TIMEOUT would: behind something slow, more is sent than the upstream's kernel takes. And who is blocked for
    longer than nothing is said has a connection that is idle, not dead.
    """
    value = "v" * 4_000_000
    with contextlib.ExitStack() as stack:
        silence = ("--upstream-silence", str(SILENCE))
        quick, full = (stack.enter_context(running_coalesce(upstream.url, *silence)) for _ in range(2))
        client, behind = (stack.enter_context(quick.connect()) for _ in range(2))
        clients = [stack.enter_context(full.connect()) for _ in range(8)]
        assert client.ask("INCR", "n") == b":1\r\n"
        for each in clients:
            assert each.ask("PING") == b"+PONG\r\n"
        blocked = stack.enter_context(quick.connect())
        blocked.send(pack("BLPOP", "queue", 0))
        with upstream.connect() as control:
            eventually(lambda: b"blocked_clients:1" in control.ask("INFO", "clients"))

        def all_send() -> None:
            client.send(pack("PING"))
            behind.send(pack("INCR", "n"))
            for number, each in enumerate(clients):
                each.send(pack("SET", f"k{number}", value))

        sender = threading.Thread(target=all_send)
        stopped_at = time.monotonic()
        sender.start()
        faults.stop_process(upstream.process, 2.5 * SILENCE)
        assert (client.reply(), behind.reply()) == (b"+PONG\r\n", b":2\r\n")
        assert time.monotonic() - stopped_at >= 2.5 * SILENCE
        assert [each.reply() for each in clients] == [OK] * len(clients)
        sender.join()
        assert client.ask("RPUSH", "queue", "x") == b":1\r\n"
        assert blocked.reply() == b"*2\r\n" + bulk("queue") + bulk("x")


def test_a_new_connection_into_silence_ends_in_time(between, upstream):
    """Requests wait as long as they may, then are told; nothing hangs for what the kernel would take (two minutes)."""
    with (
        running_coalesce(upstream.url, "--upstream-wait", "0.5", "--connect-timeout", "1") as coalesce,
        coalesce.connect() as client,
    ):
        assert client.ask("PING") == b"+PONG\r\n"
        with upstream.connect() as control:
            assert control.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes").startswith(b":")
            # That cut may be dropped along with the rest: what is sent then waits in a dead connection.
            eventually(lambda: "connection lost" in coalesce.stderr)
        between.drop()
        begun = time.monotonic()
        with coalesce.connect() as stranger:  # whether or not the lane had come back before
            stranger.send(pack("SELECT", 7))
            assert stranger.reply().startswith(b"-ERR coalesce: upstream unavailable: ")
            assert time.monotonic() - begun < 4
        between.heal()

        def moves() -> bool:
            with coalesce.connect() as late:
                return late.ask("SELECT", 7) == OK

        eventually(moves)


# Who has a connection of his own, and how coalesce comes to notice that its other end is gone: by what the client sends
# and nobody acknowledges, or, while nothing is said, by the kernel's asking.
OWN = {"pinned": ("MONITOR",), "subscriber": ("SUBSCRIBE", "news"), "blocked": ("BLPOP", "queue", 0)}


def have_own(coalesce: Coalesce, stack: contextlib.ExitStack) -> dict[str, Wire]:
    """A client of each kind, which has been told what there is to be told."""
    clients = {kind: stack.enter_context(coalesce.connect()) for kind in OWN}
    for kind, client in clients.items():
        client.send(pack(*OWN[kind]))
        if kind != "blocked":
            assert client.reply()
    return clients


def closed_by(client: Wire, until: float) -> bytes:
    """What it is told until it is closed. Raises TimeoutError when it isn't by then."""
    told = b""
    while True:
        client.socket.settimeout(max(0.001, until - time.monotonic()))
        if not (data := client.socket.recv(1000)):
            return told
        told += data


def test_a_lasting_silence_is_noticed(between, upstream):
    """By each kind of connection on its own, all at the same time: every coalesce has other ones.

    Who has a request in flight on a lane is closed, and who has none stays: so the first one to ask finds a connection
    that works, or one being made, also when the lane was idle. Who has a connection of his own is closed with it.
    """
    with contextlib.ExitStack() as stack:
        silence = ("--upstream-silence", str(SILENCE), *ADMIN)
        lane, idle_lane, speaking, silent = (
            stack.enter_context(running_coalesce(upstream.url, *silence)) for _ in range(4)
        )
        busy, idle, sleeper = (stack.enter_context(each.connect()) for each in (lane, lane, idle_lane))
        for number, client in enumerate((busy, idle, sleeper), 1):
            assert client.ask("INCR", "n") == b":%d\r\n" % number
        speakers, idlers = have_own(speaking, stack), have_own(silent, stack)
        with upstream.connect() as control:
            eventually(lambda: control.ask("CLIENT", "LIST").count(b" cmd=blpop ") == 2)
        between.drop()
        begun = time.monotonic()
        busy.send(pack("INCR", "m"))
        for client in speakers.values():
            client.send(pack("PING"))
        closed = [("busy", busy, NOTICED_WITHIN + 3)]
        closed += [(f"{kind}, speaking", client, NOTICED_WITHIN) for kind, client in speakers.items()]
        closed += [(f"{kind}, idle", client, NOTICED_WITHIN) for kind, client in idlers.items()]
        for kind, client, within in sorted(closed, key=lambda each: each[2]):
            try:
                told = closed_by(client, begun + within)
            except TimeoutError:
                pytest.fail(f"{kind}: not closed in {within} s")
            assert not told or kind.startswith("pinned"), kind  # (MONITOR tells what all others do before)
        eventually(lambda: "connection lost" in idle_lane.stderr, NOTICED_WITHIN + 5)
        for coalesce in (lane, idle_lane):
            assert metrics(coalesce)["lane_losses_total silent"] == 1
        between.heal()
        assert idle.ask("INCR", "n") == b":4\r\n"
        assert sleeper.ask("INCR", "n") == b":5\r\n"
