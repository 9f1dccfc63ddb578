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

from tests.system.processes import eventually, running_coalesce
from tests.system.wire import bulk, pack

from . import faults
from .accounting import Load
from .namespaces import Network, impossible, network, server_at
from .stage import FORGETS_NOTHING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.system.processes import Coalesce, RedisServer

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


@pytest.fixture
def coalesce(upstream) -> Iterator[Coalesce]:
    with running_coalesce(upstream.url, "--upstream-silence", str(SILENCE)) as coalesce:
        yield coalesce


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


def test_an_upstream_that_is_merely_slow_is_not_taken_for_a_silent_one(upstream, coalesce):
    """It answers nothing for two seconds, but its kernel does."""
    with coalesce.connect() as client, coalesce.connect() as behind:
        client.send(pack("INCR", "n"))
        assert client.reply() == b":1\r\n"
        stopped_at = time.monotonic()
        client.send(pack("PING"))
        behind.send(pack("INCR", "n"))
        faults.stop_process(upstream.process, 2.0)
        assert client.reply() == b"+PONG\r\n"
        assert behind.reply() == b":2\r\n"
        assert time.monotonic() - stopped_at >= 2.0


def test_an_upstream_whose_window_is_full_is_not_taken_for_a_silent_one(upstream, coalesce):
    """TCP_USER_TIMEOUT would: behind something slow, more is sent than the upstream's kernel takes."""
    value = "v" * 4_000_000
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(coalesce.connect()) for _ in range(8)]
        for client in clients:
            assert client.ask("PING") == b"+PONG\r\n"

        def all_send() -> None:
            for number, client in enumerate(clients):
                client.send(pack("SET", f"k{number}", value))

        sender = threading.Thread(target=all_send)
        sender.start()
        faults.stop_process(upstream.process, 2.5 * SILENCE)
        assert [client.reply() for client in clients] == [OK] * len(clients)
        sender.join()


def test_a_blocked_client_waits_through_silence_of_its_own_making(upstream, coalesce):
    """BLPOP for longer than nothing is said: the connection is idle, not dead."""
    with coalesce.connect() as blocked, coalesce.connect() as other:
        blocked.send(pack("BLPOP", "queue", 0))
        with upstream.connect() as control:
            eventually(lambda: b"blocked_clients:1" in control.ask("INFO", "clients"))
        faults.last(1.0)
        assert other.ask("RPUSH", "queue", "x") == b":1\r\n"
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


def test_a_lasting_silence_is_noticed(between, coalesce):
    """Who has a request in flight is closed, who has none stays; new requests are told that nobody is there."""
    with coalesce.connect() as busy, coalesce.connect() as idle:
        assert idle.ask("INCR", "n") == b":1\r\n"
        assert busy.ask("INCR", "m") == b":1\r\n"
        between.drop()
        begun = time.monotonic()
        busy.socket.settimeout(NOTICED_WITHIN + 5)
        busy.send(pack("INCR", "m"))
        eventually(lambda: busy.socket.recv(1) == b"", NOTICED_WITHIN + 5)
        assert time.monotonic() - begun < NOTICED_WITHIN + 3
        between.heal()
        assert idle.ask("INCR", "n") == b":2\r\n"


def test_a_lasting_silence_is_noticed_while_all_are_idle(between, coalesce):
    """So the first one to ask finds a connection that works, or one being made."""
    with coalesce.connect() as idle:
        assert idle.ask("INCR", "n") == b":1\r\n"
        between.drop()
        eventually(lambda: "connection lost" in coalesce.stderr, NOTICED_WITHIN + 5)
        between.heal()
        assert idle.ask("INCR", "n") == b":2\r\n"


# Who has a connection of his own, and how coalesce comes to notice that its other end is gone: by what the client sends
# and nobody acknowledges, or, while nothing is said, by the kernel's asking.
OWN = {"pinned": ("MONITOR",), "subscriber": ("SUBSCRIBE", "news"), "blocked": ("BLPOP", "queue", 0)}


@pytest.mark.parametrize("says", [False, True], ids=["idle", "speaking"])
@pytest.mark.parametrize("request_", OWN.values(), ids=OWN)
def test_a_lasting_silence_is_noticed_for_a_connection_of_ones_own(between, upstream, coalesce, request_, says):
    with coalesce.connect() as client, upstream.connect() as control:
        client.send(pack(*request_))
        command = f" cmd={request_[0].lower()}".encode()
        eventually(lambda: command in control.ask("CLIENT", "LIST"))
        if request_[0] != "BLPOP":
            assert client.reply()
        between.drop()
        if says:
            client.send(pack("PING"))
        client.socket.settimeout(NOTICED_WITHIN)
        assert client.socket.recv(1000) == b""
