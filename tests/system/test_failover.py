"""A failover behind a stable name: the next connection leads to the new primary, the old one is a replica now."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING

import pytest

from .processes import closing_line, eventually, free_port, running_coalesce, running_server
from .reliability.relay import Relay
from .versions import OLDEST_AND_NEWEST
from .wire import bulk, pack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .processes import Coalesce, Executable, RedisServer

OK = b"+OK\r\n"
LARGE = b"x" * 300_000


class Name:
    """What the upstream is called, and the two servers that it leads to in turn."""

    def __init__(self, relay: Relay, primary: RedisServer, replica: RedisServer) -> None:
        self.relay, self.primary, self.replica = relay, primary, replica

    def fail_over(self, *, follow: bool = True) -> None:
        """The replica is the primary now. Old connections still lead to the old one, which is its replica, or tries."""
        with self.replica.connect() as new, self.primary.connect() as old:
            assert new.ask("REPLICAOF", "NO", "ONE") == OK
            self.relay.target = ("127.0.0.1", self.replica.port)
            assert old.ask("REPLICAOF", "127.0.0.1", self.replica.port if follow else 1).startswith(b"+OK")


@pytest.fixture(params=OLDEST_AND_NEWEST, ids=str)
def executable(request: pytest.FixtureRequest) -> Executable:
    return request.param


@pytest.fixture
def name(executable: Executable) -> Iterator[Name]:
    with contextlib.ExitStack() as stack:
        primary = stack.enter_context(running_server(executable, "--repl-diskless-sync-delay", "0"))
        replica = stack.enter_context(running_server(executable, "--replicaof", "127.0.0.1", str(primary.port)))
        control = stack.enter_context(primary.connect())
        assert eventually(lambda: b"state=online" in control.ask("INFO", "replication"))
        yield Name(stack.enter_context(Relay(("127.0.0.1", primary.port))), primary, replica)


@pytest.fixture
def coalesce(name: Name) -> Iterator[Coalesce]:
    with running_coalesce(name.relay.url) as coalesce:
        yield coalesce


def test_the_next_command_reaches_the_new_primary(name, coalesce):
    with coalesce.connect() as client, coalesce.connect() as idle, coalesce.connect() as other:
        assert client.ask("SET", "k", "before") == OK
        assert idle.ask("GET", "k") == bulk("before")
        assert other.ask("SELECT", 1) == other.ask("SET", "k", "elsewhere") == OK
        name.fail_over()
        assert client.ask("SET", "k", "after").startswith(b"-READONLY")  # it is told what was said
        assert client.ask("SET", "k", "after") == OK
        assert idle.ask("GET", "k") == bulk("after")
        assert other.ask("SET", "k", "after").startswith(b"-READONLY")  # each lane finds out for itself
        assert other.ask("SET", "k", "after") == OK
        with name.replica.connect() as control:
            assert control.ask("GET", "k") == bulk("after")


def test_spare_connections_lead_to_the_old_primary_and_are_not_used(name, coalesce):
    """A refused AUTH leaves one for the next dial."""
    with name.primary.connect() as old, name.replica.connect() as new:
        for control in (old, new):
            assert control.ask("ACL", "SETUSER", "ada", "on", ">pw", "~*", "+@all") == OK
    with coalesce.connect() as client, coalesce.connect() as stranger:
        assert client.ask("AUTH", "ada", "pw") == client.ask("SET", "k", "before") == OK
        for number in range(3):
            assert stranger.ask("AUTH", "ada", f"wrong{number}").startswith(b"-WRONGPASS")
        name.fail_over()
        assert client.ask("SET", "k", "after").startswith(b"-READONLY")
        assert client.ask("SET", "k", "after") == OK


def test_a_look_elsewhere_that_takes_long_holds_up_nobody(name, coalesce):
    """The name leads to somebody who accepts and says nothing, and the upstream is well."""
    with (
        socket.create_server(("127.0.0.1", 0)) as mute,
        coalesce.connect() as client,
        coalesce.connect() as neighbour,
    ):
        assert client.ask("PING") == neighbour.ask("PING") == b"+PONG\r\n"
        name.relay.target = mute.getsockname()
        assert client.ask("EVAL", "return redis.error_reply('READONLY so it says')", 0).startswith(b"-READONLY")
        begun = time.monotonic()
        assert neighbour.ask("PING") == b"+PONG\r\n"
        assert time.monotonic() - begun < 2.5  # --connect-timeout is 5


def test_a_connection_that_was_lent_is_not_lent_again(name, coalesce):
    with coalesce.connect() as client, coalesce.connect() as other:
        for each in (client, other):  # two connections that wait to be lent
            assert each.ask("WATCH", "k") == OK
        for each in (client, other):
            assert each.ask("UNWATCH") == OK
        name.fail_over()
        client.send(pack("WATCH", "k") + pack("MULTI") + pack("SET", "k", "v") + pack("EXEC"))
        assert [reply[:9] for reply in client.replies(4)] == [OK, OK, b"-READONLY", b"-EXECABOR"]
        assert client.ask("SET", "k", "v").startswith(b"-READONLY")
        assert client.ask("SET", "k", "v") == OK
        for each in (client, other):
            each.send(pack("WATCH", "k") + pack("MULTI") + pack("SET", "k", "v") + pack("EXEC"))
            assert each.replies(4) == [OK, OK, b"+QUEUED\r\n", b"*1\r\n+OK\r\n"]


def test_nobody_comes_back_to_the_old_primary(name, coalesce):
    """A client's small and large values have a connection each, and it is lent a third: none leads back. What the old
    primary lacks, here because it does not follow the new one, is there for whoever was told +OK.
    """
    with coalesce.connect() as client, coalesce.connect() as waiting:
        assert client.ask("SET", "big", LARGE) == OK
        for _ in range(3):
            assert client.ask("GET", "big") == bulk(LARGE)
        assert waiting.ask("WATCH", "k") == waiting.ask("UNWATCH") == OK
        with name.replica.connect() as replica:
            assert eventually(lambda: replica.ask("EXISTS", "big") == b":1\r\n")
        name.fail_over(follow=False)
        assert client.ask("SET", "k", "after").startswith(b"-READONLY")
        for number in range(30):
            assert client.ask("SET", "k", number) == OK
            assert client.ask("GET", "big") == bulk(LARGE)
            assert client.ask("GET", "k") == bulk(str(number))
            client.send(pack("WATCH", "k") + pack("MULTI") + pack("GET", "k") + pack("EXEC"))
            assert client.replies(4)[3] == b"*1\r\n" + bulk(str(number))
            for _ in range(number % 3 * 10):
                assert client.ask("PING") == b"+PONG\r\n"


@pytest.mark.parametrize("protocol", [2, 3])
def test_who_only_reads_on_the_lane_reads_what_it_wrote_elsewhere(name, coalesce, protocol):
    """The lane is never told -READONLY. But a connection that is dialled now leads to the new primary, and on that a
    transaction is run, or what blocks, or what is large: it is seen by whoever was told that it was.
    """
    with coalesce.connect() as client, coalesce.connect() as other:
        for each in (client, other):
            assert each.ask("HELLO", protocol)[:1] in b"*%"
            assert each.ask("SET", "k", "before") == OK
        name.fail_over(follow=False)
        assert client.ask("GET", "k") == bulk("before")
        assert client.ask("WATCH", "k") == OK
        assert client.ask("MULTI") == OK
        assert client.ask("SET", "k", "after") == b"+QUEUED\r\n"
        assert client.ask("EXEC") == b"*1\r\n+OK\r\n"
        assert client.ask("GET", "k") == other.ask("GET", "k") == bulk("after")
        assert client.ask("SET", "k", "now") == OK
        code, stderr = coalesce.stop()
        assert code == 0
        assert stderr.count("going on with a new connection") == 1


def test_who_only_reads_on_the_lane_reads_what_it_wrote_after_a_connection_was_lent_again(name, coalesce):
    """It led to the old primary, which refused the first transaction: so the second has another."""
    with coalesce.connect() as client:
        assert client.ask("SET", "k", "before") == client.ask("WATCH", "k") == client.ask("UNWATCH") == OK
        name.fail_over(follow=False)
        for value in ("refused", "after"):
            client.send(pack("WATCH", "k") + pack("MULTI") + pack("SET", "k", value) + pack("EXEC"))
            last = client.replies(4)[3]
        assert last == b"*1\r\n+OK\r\n"
        assert client.ask("GET", "k") == bulk("after")


def test_who_only_reads_on_the_lane_follows_when_the_old_primary_is_late(name, coalesce):
    """The connection that is lent was dialled when both still were primaries."""
    with coalesce.connect() as client, name.replica.connect() as new:
        assert client.ask("SET", "k", "before") == OK
        assert new.ask("REPLICAOF", "NO", "ONE") == OK
        name.relay.target = ("127.0.0.1", name.replica.port)

        def writes_and_reads() -> bool:
            client.send(pack("WATCH", "k") + pack("MULTI") + pack("SET", "k", "after") + pack("EXEC"))
            assert client.replies(4)[3] == b"*1\r\n+OK\r\n"
            return client.ask("GET", "k") == bulk("after")

        assert not writes_and_reads()  # nobody can know yet
        name.fail_over(follow=False)
        eventually(writes_and_reads)


def test_who_only_reads_on_the_lane_reads_what_is_large(name, coalesce):
    with coalesce.connect() as client:
        assert client.ask("SET", "k", "before") == OK
        name.fail_over(follow=False)
        assert client.ask("SET", "big", LARGE) == OK
        for _ in range(40):
            assert client.ask("STRLEN", "big") == b":%d\r\n" % len(LARGE)


def test_what_is_large_was_turned_away(name, coalesce):
    with coalesce.connect() as client:
        for _ in range(3):
            assert client.ask("SET", "big", LARGE) == OK
        name.fail_over(follow=False)
        assert client.ask("SET", "big", LARGE).startswith(b"-READONLY")
        assert client.ask("SET", "big", LARGE + b"x") == OK
        for _ in range(30):
            assert client.ask("STRLEN", "big") == b":%d\r\n" % (len(LARGE) + 1)


def test_nobody_comes_back_to_the_old_primary_when_a_connection_was_lost(name, coalesce):
    with coalesce.connect() as client, name.primary.connect() as old, name.replica.connect() as new:
        assert client.ask("SET", "big", LARGE) == OK
        for _ in range(3):
            assert client.ask("GET", "big") == bulk(LARGE)
        for _ in range(30):
            assert client.ask("ECHO", "x") == bulk("x")
        assert client.ask("TYPE", "big") == b"+string\r\n"
        assert eventually(lambda: new.ask("GET", "big") == bulk(LARGE))
        name.fail_over(follow=False)
        (usual,) = [
            line.partition(b"addr=")[2].split(b" ")[0]
            for line in old.ask("CLIENT", "LIST").split(b"\n")
            if b" name=coalesce " in line and b" cmd=type " in line
        ]
        assert old.ask("CLIENT", "KILL", usual) == OK
        assert eventually(lambda: b" name=coalesce " in new.ask("CLIENT", "LIST"))
        for number in range(10):
            assert client.ask("SET", "k", number) == OK
            assert client.ask("GET", "big") == bulk(LARGE)
            assert client.ask("GET", "k") == bulk(str(number))


def test_nobody_is_closed_under_load(name, coalesce):
    """Replies that are owed come first, and what has not left goes to the new primary, once."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(coalesce.connect()) for _ in range(30)]
        counted = dict.fromkeys(clients, 0)
        turned_away = 0
        for turn in range(60):
            if turn == 20:
                name.fail_over()
            for client in clients:
                client.send(pack("INCR", "n") * 5)
            for client in clients:
                for reply in client.replies(5):
                    counted[client] += reply.startswith(b":")
                    turned_away += reply.startswith(b"-READONLY")
        assert turned_away
        assert all(counted.values())
        with name.replica.connect() as control:
            assert control.ask("GET", "n") == bulk(str(sum(counted.values())))
        code, stderr = coalesce.stop()
        assert code == 0
        assert stderr.count("the upstream turned requests away") == 1


def test_a_replica_for_good_is_not_dialled_for_each_refusal(name):
    """Somebody reads from it, and writes in vain."""
    with (
        running_coalesce(name.replica.url) as coalesce,
        coalesce.connect() as client,
        name.replica.connect() as control,
    ):
        assert control.ask("CONFIG", "RESETSTAT") == OK
        for _ in range(500):
            assert client.ask("SET", "k", "v").startswith(b"-READONLY")
        assert client.ask("GET", "k") == b"$-1\r\n"
        stats = control.ask("INFO", "stats")
        assert int(stats.partition(b"total_connections_received:")[2].split(b"\r\n")[0]) <= 3
        code, stderr = coalesce.stop()
        assert code == 0
        assert closing_line(stderr).commands >= 501


def test_a_replica_that_lost_its_primary_is_left(name: Name) -> None:
    """-MASTERDOWN: it was behind the name, and serves nothing stale; the name leads to the primary then."""
    primary = name.relay.target
    name.relay.target = ("127.0.0.1", name.replica.port)
    with (
        name.primary.connect() as writer,
        name.replica.connect() as control,
        running_coalesce(name.relay.url) as coalesce,
        coalesce.connect() as client,
        coalesce.connect() as idle,
    ):
        assert writer.ask("SET", "k", "v") == OK
        assert client.ask("PING") == idle.ask("PING") == b"+PONG\r\n"
        assert control.ask("CONFIG", "SET", "replica-serve-stale-data", "no") == OK
        assert control.ask("REPLICAOF", "127.0.0.1", free_port()).startswith(b"+OK")
        name.relay.target = primary
        assert client.ask("GET", "k").startswith(b"-MASTERDOWN")  # it is told what was said
        assert client.ask("GET", "k") == idle.ask("GET", "k") == bulk("v")


def test_a_replica_that_loads_is_left(name: Name) -> None:
    """-LOADING: it gets all data anew, which takes it a while."""
    primary = name.relay.target
    name.relay.target = ("127.0.0.1", name.replica.port)
    with name.primary.connect() as writer, name.replica.connect() as control:
        assert control.ask("REPLICAOF", "NO", "ONE") == OK
        assert control.ask("SET", "only", "here") == OK  # so the two have parted, and only all of it will do
        assert writer.ask("SET", "k", "v") == OK
        assert writer.ask("CONFIG", "SET", "rdbcompression", "no") == OK
        # It looks at what clients say after each 2 MB: five times, 0.2 s apart.
        writer.send(b"".join(pack("SET", f"k{number}", "v" * 100_000) for number in range(100)))
        assert writer.replies(100) == [OK] * 100
        assert control.ask("CONFIG", "SET", "key-load-delay", 10_000) == OK  # microseconds
        with running_coalesce(name.relay.url) as coalesce, coalesce.connect() as client, coalesce.connect() as idle:
            assert client.ask("PING") == idle.ask("PING") == b"+PONG\r\n"
            name.relay.target = primary
            assert control.ask("REPLICAOF", *map(str, primary)).startswith(b"+OK")
            eventually(lambda: client.ask("GET", "only").startswith(b"-LOADING"))
            assert client.ask("GET", "k") == idle.ask("GET", "k") == bulk("v")
            assert control.ask("GET", "k").startswith(b"-LOADING")  # or the test would show nothing
