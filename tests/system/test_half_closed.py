"""Clients that stop sending before they have read, or leave at once: what they sent is run and answered."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from .processes import eventually, running_coalesce, running_server
from .versions import with_oldest_and_newest
from .wire import Wire, bulk, pack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .processes import Coalesce, Executable, RedisServer

FILL = pack("DEL", "q", "a", "s") + pack("RPUSH", "q", "job") + pack("XADD", "s", "1-1", "f", "v")
LATER = pack("RPUSH", "empty", "later")
# What is said first, read by the client, and then what is said just before the end.
LAST_WORDS = {
    "a pop that has its element": (b"", pack("BLPOP", "q", 0)),
    "... among others": (b"", pack("SET", "a", 1) + pack("BLPOP", "q", 0) + pack("GET", "a")),
    "... after WATCH": (pack("WATCH", "w"), pack("SET", "a", 1) + pack("BLPOP", "q", 0)),
    "a pop that has none": (b"", pack("SET", "a", 1) + pack("BLPOP", "empty", 0)),
    "... after WATCH in one piece": (b"", pack("WATCH", "w") + pack("BLPOP", "empty", 0)),
    "... and a move": (b"", pack("BLPOP", "q", 0) + pack("SELECT", 1) + pack("SET", "b", 1)),
    "... and the end": (b"", pack("BLPOP", "q", 0) + pack("QUIT")),
    "a stream with an entry": (b"", pack("XREAD", "BLOCK", 0, "STREAMS", "s", 0)),
    "a WAIT that waits for nobody": (pack("SET", "a", 1), pack("WAIT", 0, 0) + pack("GET", "a")),
    "a subscriber who blocks": (b"", pack("SUBSCRIBE", "c") + pack("BLPOP", "q", 1) + pack("PING")),
    "a transaction": (b"", pack("MULTI") + pack("INCR", "a") + pack("BLPOP", "q", 0) + pack("EXEC")),
    "another database": (b"", pack("SELECT", 1) + pack("SET", "b", 1) + pack("SELECT", 0) + pack("GET", "a")),
}


@pytest.fixture(scope="module")
def pair(executable: Executable) -> Iterator[tuple[RedisServer, RedisServer, Coalesce]]:
    with (
        running_server(executable) as direct,
        running_server(executable) as behind,
        running_coalesce(behind.url) as coalesce,
    ):
        yield direct, behind, coalesce


@pytest.mark.parametrize("name", LAST_WORDS)
def test_last_words_are_answered_as_directly(pair, name):
    first, last = LAST_WORDS[name]
    heard, left = [], []
    direct, behind, coalesce = pair
    for server, address in ((direct, direct.unix_path), (behind, coalesce.unix_path)):
        for _ in range(2):  # the second time there is a connection to be lent
            with server.connect() as control, Wire(address) as client:
                control.send(FILL)
                control.replies(3)
                client.send(first)
                told = client.replies(len(first) and 1)
                client.send(last)
                client.half_close()
                told.append(client.rest())
                heard.append(told)
                control.send(LATER + pack("LPOP", "empty") + pack("LLEN", "q") + pack("MGET", "a", "b"))
                left.append(control.replies(4))
    assert heard[2:] == heard[:2]
    assert left[2:] == left[:2]


@pytest.mark.parametrize(
    "move",
    [
        pack("SELECT", 1),
        pack("HELLO", 3),
        pack("SELECT", 1) + pack("SET", "a", 1) + pack("SELECT", 0),
        pack("WATCH", "k"),
    ],
    ids=["SELECT", "HELLO", "there and back", "WATCH"],
)
def test_who_moves_writes_and_leaves_has_written(pair, move):
    """On a unix socket the other end is gone at once, and not only half of it."""
    direct, behind, coalesce = pair
    for server, address in ((direct, direct.unix_path), (behind, coalesce.unix_path)):
        with server.connect() as control:
            control.send(pack("FLUSHALL"))
            control.reply()
            with Wire(address) as client:
                client.send(move + pack("RPUSH", "jobs", "job"))

            def pushed(control: Wire = control) -> bool:
                return b":1\r\n" in [control.ask("SELECT", each) and control.ask("LLEN", "jobs") for each in (0, 1)]

            assert eventually(pushed), address


@with_oldest_and_newest
def test_who_is_refused_a_lease_is_read_from_again(executable):
    """It had sent more than is kept for a client that waits. No server knows of that."""
    large = "v" * 3_000_000
    with (
        running_server(executable) as server,
        running_coalesce(server.url, "--max-leases", "1", "--upstream-wait", "0.5") as coalesce,
        coalesce.connect() as holder,
        coalesce.connect() as client,
    ):
        assert holder.ask("WATCH", "k") == b"+OK\r\n"
        client.send(pack("SCRIPT", "KILL") + pack("SET", "large", large) + pack("PING"))
        refused, *rest = client.replies(3)
        assert refused == b"-ERR coalesce: all 1 leases are taken (max-leases)\r\n"
        assert rest == [b"+OK\r\n", b"+PONG\r\n"]


@with_oldest_and_newest
def test_what_waits_unread_behind_a_lease_is_not_dropped(executable):
    """More than is kept: the rest is in the sockets, and with it the client's end, which is not yet the end."""
    count = 53_000
    with (
        running_server(executable) as server,
        running_coalesce(server.url, "--max-leases", "1") as coalesce,
        coalesce.connect() as holder,
        coalesce.connect() as client,
    ):
        assert holder.ask("WATCH", "k") == b"+OK\r\n"
        client.send(pack("WATCH", "z") + pack("INCR", "n") * count)
        client.half_close()
        assert holder.ask("UNWATCH") == b"+OK\r\n"
        assert client.rest() == b"+OK\r\n" + b"".join(b":%d\r\n" % (number + 1) for number in range(count))


def test_a_name_that_could_not_be_given_is_given_next_time(executable):
    with (
        running_server(executable) as server,
        running_coalesce(server.url) as coalesce,
        server.connect() as control,
        contextlib.ExitStack() as stack,
    ):
        alice, bob, busy = (stack.enter_context(coalesce.connect()) for _ in range(3))
        for client, name in ((alice, "alice"), (bob, "bob")):
            assert client.ask("CLIENT", "SETNAME", name) == b"+OK\r\n"
        assert [alice.ask("WATCH", "k"), alice.ask("UNWATCH")] == [b"+OK\r\n"] * 2
        assert control.ask("CONFIG", "SET", "lua-time-limit", 10) == b"+OK\r\n"
        assert busy.ask("SELECT", 1) == b"+OK\r\n"
        busy.send(pack("EVAL", "while true do end", 0))
        assert eventually(lambda: control.ask("PING").startswith(b"-BUSY"))
        assert [bob.ask("WATCH", "k"), bob.ask("UNWATCH")] == [b"+OK\r\n"] * 2  # which are allowed, and SETNAME is not
        assert control.ask("SCRIPT", "KILL") == b"+OK\r\n"
        assert eventually(lambda: control.ask("PING") == b"+PONG\r\n")
        assert bob.ask("WATCH", "k") == b"+OK\r\n"
        assert b" name=bob " in bob.ask("CLIENT", "LIST")
        assert b" name=alice " not in bob.ask("CLIENT", "LIST")
        assert bob.ask("CLIENT", "GETNAME") == bulk("bob")
