"""Cuts after every byte where a client is not among others: in the handshake, and on a connection of its own.

What a client may see is the same as on a shared connection (`test_cuts.py`): whole replies and messages of its own, in
order, and then the close. On a pin, the last one may have begun, as it would without a proxy.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.system.processes import running_server
from tests.system.wire import Wire, bulk, pack, split_replies

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.system.processes import RedisServer

OK = b"+OK\r\n"
QUEUED = b"+QUEUED\r\n"


@pytest.fixture(scope="module")
def upstream(executable) -> Iterator[RedisServer]:
    ada = ["--user", "ada", "on", ">secret", "~*", "&*", "+@all"]
    with running_server(executable, "--databases", "1024", *ada) as server:
        yield server


def let_in(wire: Wire, *, resp3: bool) -> None:
    """As ada."""
    if resp3:
        assert wire.ask("HELLO", 3, "AUTH", "ada", "secret").startswith(b"%")
    else:
        assert wire.ask("AUTH", "ada", "secret") == OK


@pytest.mark.parametrize("by_reset", [False, True], ids=["FIN", "reset"])
@pytest.mark.parametrize("resp3", [False, True], ids=["RESP2", "RESP3"])
def test_after_every_byte_of_the_handshake(relay, coalesce, resp3, by_reset):
    """Nothing of a client's was in flight: it waits for the next attempt, and is in the right place then.

    Each client moves to a database of its own, all at once. A connection that is cut is followed by another, which may
    be cut as well, until there has been one for each byte. The last bytes are the reply to the move itself: whoever
    had that in flight is closed, and has got nothing.
    """
    relay.by_reset = by_reset
    with coalesce.connect() as first:
        let_in(first, resp3=resp3)
        assert first.ask("SELECT", 1) == OK
        total = relay.link(1).replies.passed
    assert total > len(OK)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Wire(coalesce.unix_path)) for _ in range(total)]
        for wire in clients:
            let_in(wire, resp3=resp3)
        relay.cuts_to_come = list(range(total))
        for number, wire in enumerate(clients):
            wire.send(pack("SELECT", 2 + number))
        moved = [moves(wire) for wire in clients]
        assert relay.cuts_to_come == []
        assert total - len(OK) <= sum(moved) < total
        there = [(number, wire) for number, wire in enumerate(clients) if moved[number]]
        for number, wire in there:
            wire.send(pack("ACL", "WHOAMI") + pack("SET", "k", number) + pack("GET", "k"))
        for number, wire in there:
            assert wire.replies(3) == [bulk("ada"), OK, bulk(str(number))]


def moves(wire: Wire) -> bool:
    try:
        assert wire.reply() == OK
    except (EOFError, ConnectionError):
        assert wire.received == b""
        return False
    return True


@dataclass
class Conversation:
    """On a connection of its own, once `opening` has been answered."""

    resp3: bool
    opening: list[bytes]
    requests: list[bytes]
    replies: list[bytes]
    others: list[bytes]  # what somebody else asks meanwhile, past coalesce
    pushes: list[bytes]  # what comes of that, before, among or behind the replies
    pinned: bool = False  # its bytes are passed on as they come, so that a reply may have begun


def message(kind: bytes, channel: str, payload: str) -> bytes:
    return kind + b"3\r\n" + bulk("message") + bulk(channel) + bulk(payload)


def confirmation(kind: bytes, verb: str, channel: str, count: int) -> bytes:
    return kind + b"3\r\n" + bulk(verb) + bulk(channel) + b":%d\r\n" % count


def subscriber(*, resp3: bool) -> Conversation:
    kind = b">" if resp3 else b"*"
    return Conversation(
        resp3,
        [pack("SUBSCRIBE", "news")],
        [pack("SUBSCRIBE", "b"), pack("PSUBSCRIBE", "c*"), pack("UNSUBSCRIBE", "b")],
        [
            confirmation(kind, "subscribe", "b", 2),
            confirmation(kind, "psubscribe", "c*", 3),
            confirmation(kind, "unsubscribe", "b", 2),
        ],
        [pack("PUBLISH", "news", "one"), pack("PUBLISH", "news", "two")],
        [message(kind, "news", "one"), message(kind, "news", "two")],
    )


INVALIDATION = b">2\r\n" + bulk("invalidate") + b"*1\r\n" + bulk("k")
CONVERSATIONS = {
    "transaction": Conversation(
        False,
        [pack("WATCH", "k")],
        [pack("GET", "k"), pack("MULTI"), pack("ECHO", "x"), pack("GET", "k"), pack("EXEC")],
        [bulk("v"), OK, QUEUED, QUEUED, b"*2\r\n" + bulk("x") + bulk("v")],
        [],
        [],
    ),
    "pop": Conversation(
        False,
        [pack("WATCH", "k")],
        [pack("BLPOP", "queue", 0), pack("BLMOVE", "queue", "queue", "LEFT", "RIGHT", 0)],
        [b"*2\r\n" + bulk("queue") + bulk("a"), bulk("b")],
        [],
        [],
    ),
    "subscriber-RESP2": subscriber(resp3=False),
    "subscriber-RESP3": subscriber(resp3=True),
    "tracking": Conversation(
        True,
        [pack("CLIENT", "TRACKING", "ON"), pack("GET", "k")],
        [pack("ECHO", "x"), pack("CLIENT", "GETNAME")],
        [bulk("x"), b"_\r\n"],
        [pack("SET", "k", "w")],
        [INVALIDATION],
        pinned=True,
    ),
}


@pytest.mark.parametrize("conversation", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_after_every_byte_on_a_connection_of_its_own(upstream, relay, coalesce, conversation):
    """By a FIN and by a reset in turn. A neighbour on the shared connection notices nothing."""
    total = len(b"".join(conversation.replies + conversation.pushes))
    with upstream.connect() as control, coalesce.connect() as neighbour:
        assert neighbour.ask("ECHO", "neighbour") == bulk("neighbour")
        for offset in range(total):
            assert control.ask("SET", "k", "v") == OK
            assert control.ask("DEL", "queue").startswith(b":")
            assert control.ask("RPUSH", "queue", "a", "b", "c") == b":3\r\n"
            relay.by_reset = offset % 2 == 1
            before = [*relay.links]
            with coalesce.connect() as client:
                if conversation.resp3:
                    assert client.ask("HELLO", 3).startswith(b"%")
                client.send(b"".join(conversation.opening))
                client.replies(len(conversation.opening))
                link = relay.links[-1]
                link.replies.left = offset
                client.send(b"".join(conversation.requests))
                for request in conversation.others:
                    control.send(request)
                    control.reply()
                got, incomplete = split_replies(client.rest())  # raises unless it is closed
            assert link not in before
            assert incomplete == b"" or conversation.pinned, offset
            pushes = [each for each in got if each in conversation.pushes]
            replies = [each for each in got if each not in conversation.pushes]
            assert pushes == conversation.pushes[: len(pushes)], offset
            assert replies == conversation.replies[: len(replies)], offset
            due = [*conversation.pushes[len(pushes) :][:1], *conversation.replies[len(replies) :][:1]]
            assert any(each.startswith(incomplete) for each in due), offset
            assert len(b"".join(got) + incomplete) <= offset
        assert neighbour.ask("ECHO", "neighbour") == bulk("neighbour")
