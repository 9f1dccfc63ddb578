"""WAIT with a real replica that stands still: nobody may be told that what he wrote has been replicated."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

import pytest

from .processes import RedisServer, eventually, running_coalesce, running_server
from .wire import pack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .processes import Coalesce, Executable
    from .wire import Wire

NO_TIME = "50"  # milliseconds that WAIT waits for a replica that stands still


class Pair:
    """An upstream with one replica, which can be made to stand still."""

    def __init__(self, upstream: RedisServer, replica: RedisServer) -> None:
        self.upstream = upstream
        self._replica = replica
        eventually(self._is_online)

    def _is_online(self) -> bool:
        with self.upstream.connect() as wire:
            return b"state=online" in wire.ask("INFO", "replication")

    @contextlib.contextmanager
    def stands_still(self) -> Iterator[None]:
        assert self._replica.process is not None
        pid = self._replica.process.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def pair(executable: Executable) -> Iterator[Pair]:
    with (
        running_server(executable, "--repl-diskless-sync-delay", "0") as upstream,
        running_server(executable, "--replicaof", "127.0.0.1", str(upstream.port)) as replica,
    ):
        yield Pair(upstream, replica)


@pytest.fixture(scope="module")
def proxy(pair: Pair) -> Iterator[Coalesce]:
    with running_coalesce(pair.upstream.url) as coalesce:
        yield coalesce


def write(wire: Wire) -> None:
    assert wire.ask("INCR", "written") > b":0"


def test_a_fresh_connection_promises_too_much(pair: Pair) -> None:
    """What all of this is for."""
    with pair.stands_still(), pair.upstream.connect() as writer, pair.upstream.connect() as other:
        write(writer)
        assert other.ask("WAIT", "1", NO_TIME) == b":1\r\n"
        assert writer.ask("WAIT", "1", NO_TIME) == b":0\r\n"


def test_what_was_replicated_and_what_was_not(pair: Pair, proxy: Coalesce) -> None:
    with proxy.connect() as wire:
        write(wire)
        assert wire.ask("WAIT", "1", "0") == b":1\r\n"
        with pair.stands_still():
            write(wire)
            assert wire.ask("WAIT", "1", NO_TIME) == b":0\r\n"
        assert wire.ask("WAIT", "1", "0") == b":1\r\n"


def test_neighbours(pair: Pair, proxy: Coalesce) -> None:
    """Both wrote on the same lane; that one has waited does not answer the other."""
    with proxy.connect() as one, proxy.connect() as other, pair.stands_still():
        write(one)
        write(other)
        assert one.ask("WAIT", "1", NO_TIME) == b":0\r\n"
        assert other.ask("WAIT", "1", NO_TIME) == b":0\r\n"


def test_behind_a_transaction(pair: Pair, proxy: Coalesce) -> None:
    """The writes of a transaction with WATCH went down a connection that somebody else may have by now."""
    with proxy.connect() as one, proxy.connect() as other, pair.stands_still():
        assert one.ask("WATCH", "written") == b"+OK\r\n"
        assert one.ask("MULTI") == b"+OK\r\n"
        assert one.ask("INCR", "written") == b"+QUEUED\r\n"
        assert one.ask("EXEC").startswith(b"*1\r\n:")
        assert other.ask("WATCH", "written") == b"+OK\r\n"
        assert one.ask("WAIT", "1", NO_TIME) == b":0\r\n"


def test_while_watching(pair: Pair, proxy: Coalesce) -> None:
    with proxy.connect() as wire, pair.stands_still():
        write(wire)
        assert wire.ask("WATCH", "written") == b"+OK\r\n"
        assert wire.ask("WAIT", "1", NO_TIME) == b":0\r\n"
        assert wire.ask("MULTI") == b"+OK\r\n"
        assert wire.ask("EXEC") == b"*0\r\n"


def test_behind_a_lost_connection(pair: Pair, proxy: Coalesce) -> None:
    """The client was idle, and did not notice that the connection which carried its writes is another one."""
    with proxy.connect() as wire, pair.upstream.connect() as direct, pair.stands_still():
        write(wire)
        direct.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert wire.ask("WAIT", "1", NO_TIME) == b":0\r\n"


def test_nobody_else_waits(pair: Pair, proxy: Coalesce) -> None:
    with proxy.connect() as one, proxy.connect() as other:
        with pair.stands_still():
            write(one)
            one.send(pack("WAIT", "1", "0"))
            assert other.ask("PING") == b"+PONG\r\n"
        assert one.reply() == b":1\r\n"


def test_the_mark_disturbs_nobody(pair: Pair, proxy: Coalesce) -> None:
    """SWAPDB aborts transactions that watch keys of what is swapped: not when nothing is."""
    with proxy.connect() as wire, pair.upstream.connect() as other:
        assert other.ask("WATCH", "written") == b"+OK\r\n"
        assert wire.ask("WAIT", "1", "0") == b":1\r\n"
        assert other.ask("MULTI") == b"+OK\r\n"
        assert other.ask("EXEC") == b"*0\r\n"


def test_who_may_not_move_the_mark_is_told(pair: Pair, proxy: Coalesce, executable: Executable) -> None:
    """Since 7.2 only what is replicated moves it."""
    with pair.upstream.connect() as direct:
        rules = ["reset", "on", ">pw", "~*", "+@all", "-swapdb"]
        assert direct.ask("ACL", "SETUSER", "careful", *rules) == b"+OK\r\n"
    with proxy.connect() as wire:
        assert wire.ask("AUTH", "careful", "pw") == b"+OK\r\n"
        with pair.stands_still():
            write(wire)
            answer = wire.ask("WAIT", "1", NO_TIME)
        if executable.version < (7, 2):
            assert answer == b":0\r\n"
        else:
            assert answer.startswith(b"-ERR coalesce: can't tell what has been replicated")
        assert wire.ask("WAIT", "one", "0") == b"-ERR value is not an integer or out of range\r\n"


def test_waitaof(executable: Executable) -> None:
    if executable.version < (7, 2):
        pytest.skip("WAITAOF is from Redis 7.2 on")
    with (
        running_server(executable, "--appendonly", "yes", "--appendfsync", "no") as upstream,
        running_coalesce(upstream.url) as coalesce,
        coalesce.connect() as wire,
        upstream.connect() as other,
    ):
        write(wire)
        assert other.ask("WAITAOF", "1", "0", NO_TIME) == b"*2\r\n:1\r\n:0\r\n"  # it has written nothing
        assert wire.ask("WAITAOF", "1", "0", NO_TIME) == b"*2\r\n:0\r\n:0\r\n"
        assert other.ask("CONFIG", "SET", "appendfsync", "always") == b"+OK\r\n"
        write(wire)
        assert wire.ask("WAITAOF", "1", "0", "0") == b"*2\r\n:1\r\n:0\r\n"
