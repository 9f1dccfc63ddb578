"""Commands that end, hold up or release what others wait for: answered while the lane of their own identity is busy.

With what: a script or a function that loops for ever, a write that CLIENT PAUSE holds up, and behind either of these
more than the lane takes. What they are answered is what the upstream says to a client of its own at that moment.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

import pytest

from .processes import DEADLINE, eventually, running_coalesce, running_server
from .wire import bulk, pack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .processes import Coalesce, Executable, RedisServer
    from .wire import Wire

OK = b"+OK\r\n"
PONG = b"+PONG\r\n"
LOOP = "while true do end"
LIBRARY = f"#!lua name=spin\nredis.register_function('spin', function() {LOOP} end)"
SOON = "5"  # milliseconds that a script runs until it can be ended
FOR_EVER = "600000"  # milliseconds
NO_MORE = 0.2  # seconds without a byte taken, after which a client is not read from
# Nothing comes of these; they are answered at once, whatever the upstream is busy with. The last two run in the
# database of whoever asks.
OF_NO_EFFECT = ["CLIENT KILL ID 999999999", "CLIENT UNBLOCK 999999999", "CLIENT PAUSE x", "FAILOVER ABORT",
                "FUNCTION KILL", "REPLICAOF nosuch", "SHUTDOWN NOSUCH", "DEBUG SLEEP 0",
                "MODULE UNLOAD nosuch"]  # fmt: skip
# A database that is not the one of a fresh connection has to be selected on it: which is refused behind a script.
DATABASES = [0, 3]


@pytest.fixture(params=[2, 3], ids=["resp2", "resp3"])
def protocol(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(scope="module")
def module_upstream(executable: Executable) -> Iterator[RedisServer]:
    """In place of the usual one."""
    with running_server(executable, "--lua-time-limit", SOON) as server:
        if executable.version >= (7,):
            with server.connect() as direct:
                assert direct.ask("FUNCTION", "LOAD", LIBRARY) == bulk("spin")
        yield server


@pytest.fixture(scope="module")
def module_coalesce(module_upstream: RedisServer) -> Iterator[Coalesce]:
    """The same, with lanes that are soon full."""
    with running_coalesce(module_upstream.url, "--lane-limit", "100") as coalesce:
        yield coalesce
        assert coalesce.stop()[0] == 0


class Riders:
    """Clients of one identity, who ride its lane."""

    def __init__(self, coalesce: Coalesce, protocol: int, database: int, stack: contextlib.ExitStack) -> None:
        self._coalesce, self._protocol, self._database, self._stack = coalesce, protocol, database, stack

    def join(self) -> Wire:
        wire = self._stack.enter_context(self._coalesce.connect())
        assert b"-" not in wire.ask("HELLO", self._protocol)[:1]
        assert wire.ask("SELECT", self._database) == OK
        assert wire.ask("PING") == PONG
        return wire


@contextlib.contextmanager
def riders(coalesce: Coalesce, protocol: int, database: int = 0) -> Iterator[Riders]:
    with contextlib.ExitStack() as stack:
        yield Riders(coalesce, protocol, database, stack)


@contextlib.contextmanager
def spinning(wire: Wire, kind: str, direct: Wire) -> Iterator[None]:
    """From here on the upstream runs it, and can be told to end it."""
    wire.send(pack("EVAL", LOOP, 0) if kind == "SCRIPT" else pack("FCALL", "spin", 0))
    eventually(lambda: direct.ask("PING").startswith(b"-BUSY"))
    try:
        yield
    finally:
        direct.ask(kind, "KILL")


@contextlib.contextmanager
def writes_held_up(wire: Wire, direct: Wire) -> Iterator[None]:
    """From here on a write stands on the lane that has not been run, until the pause ends."""
    assert direct.ask("CLIENT", "PAUSE", FOR_EVER, "WRITE") == OK
    try:
        wire.send(pack("SET", "k", "v"))
        eventually(lambda: re.search(rb"name=coalesce .*flags=b", direct.ask("CLIENT", "LIST")))
        yield
    finally:
        direct.ask("CLIENT", "UNPAUSE")


def fill(wire: Wire) -> None:
    """From here on the lane takes no more: it has as much unsent as it may have, and who asks for more is not read."""
    requests = pack("SET", "filler", "x" * 100_000) * 10
    wire.socket.settimeout(NO_MORE)
    with contextlib.suppress(TimeoutError):
        while True:
            wire.socket.send(requests)
    wire.socket.settimeout(DEADLINE)


def told_directly(upstream: RedisServer, protocol: int, request: str) -> bytes:
    with upstream.connect() as wire:
        assert b"-" not in wire.ask("HELLO", protocol)[:1]
        return wire.ask(*request.split())


def kinds(executable: Executable) -> list[tuple[str, str]]:
    """What may loop there, and what does not at that moment."""
    both = [("SCRIPT", "FUNCTION"), ("FUNCTION", "SCRIPT")]
    return both if executable.version >= (7,) else both[:1]


@pytest.mark.parametrize("database", DATABASES)
@pytest.mark.parametrize("full", [False, True], ids=["", "full"])
def test_what_loops_is_ended(coalesce, upstream, protocol, database, full):
    """By whoever shares the lane with it; and nobody is closed."""
    for kind, other in kinds(upstream.executable):
        with upstream.connect() as direct, riders(coalesce, protocol, database) as lane:
            looping, waiting, operator, greedy = (lane.join() for _ in range(4))
            with spinning(looping, kind, direct):
                waiting.send(pack("PING"))
                if full:
                    fill(greedy)
                assert operator.ask(other, "KILL") == told_directly(upstream, protocol, f"{other} KILL")
                assert waiting.look() == (b"", False)
                assert operator.ask(kind, "KILL") == OK
                assert looping.reply().startswith(b"-")
                assert waiting.reply() == PONG
                assert operator.ask("PING") == looping.ask("PING") == PONG


@pytest.mark.parametrize("database", DATABASES)
def test_who_ended_what_loops_is_in_the_database_that_it_selected(coalesce, upstream, protocol, database):
    with upstream.connect() as direct, riders(coalesce, protocol, database) as lane:
        looping, operator = lane.join(), lane.join()
        assert operator.ask("SET", "where", database) == OK
        with spinning(looping, "SCRIPT", direct):
            assert operator.ask("SCRIPT", "KILL") == OK
            assert looping.reply().startswith(b"-")
        where = bulk(str(database))
        assert operator.ask("GET", "where") == where
        operator.send(pack("SCRIPT", "KILL") + pack("GET", "where"))
        operator.send(pack("WATCH", "where") + pack("SCRIPT", "KILL") + pack("GET", "where") + pack("UNWATCH"))
        operator.send(pack("SCRIPT", "KILL") + pack("MULTI") + pack("GET", "where") + pack("EXEC"))
        not_busy = told_directly(upstream, protocol, "SCRIPT KILL")
        assert operator.replies(6) == [not_busy, where, OK, not_busy, where, OK]
        assert operator.replies(4) == [not_busy, OK, b"+QUEUED\r\n", b"*1\r\n" + where]


@pytest.mark.parametrize("database", DATABASES)
def test_what_is_said_while_something_loops(coalesce, upstream, protocol, database):
    with upstream.connect() as direct, riders(coalesce, protocol, database) as lane:
        looping, operator = lane.join(), lane.join()
        with spinning(looping, "SCRIPT", direct):
            for request in OF_NO_EFFECT[: -2 if database else None]:
                assert operator.ask(*request.split()) == told_directly(upstream, protocol, request), request
        assert looping.reply().startswith(b"-")


@pytest.mark.parametrize("full", [False, True], ids=["", "full"])
def test_what_is_said_while_writes_are_held_up(coalesce, upstream, protocol, full):
    """And the pause is ended by whoever shares the lane with a write that it holds up."""
    with upstream.connect() as direct, riders(coalesce, protocol) as lane:
        writer, operator, greedy = lane.join(), lane.join(), lane.join()
        with writes_held_up(writer, direct):
            if full:
                fill(greedy)
            for request in OF_NO_EFFECT:
                assert operator.ask(*request.split()) == told_directly(upstream, protocol, request), request
            assert operator.ask("CLIENT", "PAUSE", FOR_EVER, "WRITE") == OK
            assert writer.look() == (b"", False)
            assert operator.ask("CLIENT", "UNPAUSE") == OK
            assert writer.reply() == OK


@pytest.mark.parametrize("full", [False, True], ids=["", "full"])
def test_clients_are_unblocked_and_killed_while_writes_are_held_up(coalesce, upstream, protocol, full):
    with upstream.connect() as direct, riders(coalesce, protocol) as lane:
        writer, blocked, operator, idle, greedy = (lane.join() for _ in range(5))
        assert blocked.ask("CLIENT", "SETNAME", "blocked") == OK
        blocked.send(pack("BLPOP", "nothing", 0))
        eventually(lambda: re.search(rb"name=blocked .*flags=b", direct.ask("CLIENT", "LIST")))
        with writes_held_up(writer, direct):
            if full:
                fill(greedy)
            connections = direct.ask("CLIENT", "LIST")
            number = re.search(rb"id=(\d+) .*name=blocked ", connections)
            lanes = re.search(rb"id=(\d+) .*name=coalesce .*flags=b", connections)
            assert number
            assert lanes
            assert operator.ask("CLIENT", "UNBLOCK", number[1], "ERROR") == b":1\r\n"
            assert blocked.reply().startswith(b"-UNBLOCKED")
            assert writer.look() == (b"", False)
            assert operator.ask("CLIENT", "KILL", "ID", lanes[1]) == b":1\r\n"
            assert writer.rest() == b""
            assert operator.ask("CLIENT", "UNPAUSE") == OK
            assert idle.ask("PING") == blocked.ask("PING") == PONG


@pytest.mark.parametrize("database", DATABASES)
def test_the_upstream_is_ended_while_something_loops(executable, protocol, database):
    with (
        running_server(executable, "--lua-time-limit", SOON) as upstream,
        running_coalesce(upstream.url) as coalesce,
        upstream.connect() as direct,
        riders(coalesce, protocol, database) as lane,
    ):
        looping, operator = lane.join(), lane.join()
        looping.send(pack("EVAL", f"redis.call('SET', 'k', 'v') {LOOP}", 0))
        eventually(lambda: direct.ask("PING").startswith(b"-BUSY"))
        assert operator.ask("SCRIPT", "KILL").startswith(b"-UNKILLABLE")
        operator.send(pack("SHUTDOWN", "NOSAVE"))
        assert operator.rest() == b""
        assert looping.rest() == b""
        assert upstream.process is not None
        upstream.process.wait(DEADLINE)


@pytest.mark.parametrize(("protocol", "full"), [(2, False), (3, True)], ids=["resp2", "resp3-full"])
def test_a_failover_while_writes_are_held_up(executable, protocol, full):
    """Whose write was held up is told that the upstream is a replica by now."""
    with (
        running_server(executable, "--repl-diskless-sync-delay", "0") as primary,
        running_server(executable, "--replicaof", "127.0.0.1", str(primary.port)) as replica,
        primary.connect() as direct,
        replica.connect() as new,
        running_coalesce(primary.url, "--lane-limit", "100") as coalesce,
        riders(coalesce, protocol) as lane,
    ):
        # (The replica has to have something of the primary, or Valkey 9 gives the failover up.)
        assert direct.ask("SET", "before", "x") == OK
        assert direct.ask("WAIT", 1, 0) == b":1\r\n"
        writer, operator, greedy = lane.join(), lane.join(), lane.join()
        with writes_held_up(writer, direct):
            if full:
                fill(greedy)
            assert operator.ask("FAILOVER", "TO", "127.0.0.1", replica.port) == OK
            eventually(lambda: b"role:master" in new.ask("INFO", "replication"))
            assert operator.ask("CLIENT", "UNPAUSE") == OK  # (the pause from before outlasts it)
            assert writer.reply().startswith(b"-READONLY")
            assert new.ask("EXISTS", "k") == b":0\r\n"
