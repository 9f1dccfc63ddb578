"""What clients send and what they are sent is nowhere in the log, at its most verbose, whatever goes wrong."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

import pytest

from .processes import ROOT, Coalesce, environment, eventually, short_directory
from .versions import NEWEST
from .wire import pack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .processes import Executable

MARKER = "qjxmark"  # in all that clients send; the upstream repeats it in its errors and its replies

# The same program with faults of its own that have what they were given as their text.
PROGRAM = """
import sys
from coalesce import __main__
from coalesce.core.exchange import Exchange
from coalesce.core.lane import Lane
receive, replies = Exchange.receive, Lane.receive

def faulty_receive(exchange, session, data):
    if b"BREAK-THE-CLIENT" in data:
        raise ValueError(data, session, exchange)
    receive(exchange, session, data)

def faulty_replies(lane, data):
    if b"BREAK-THE-LANE" in data:
        raise KeyError(bytes(data), lane)
    if b"NO-RESP" in data:
        data = b"$qjxmark-in-a-reply\\r\\n" + data
    replies(lane, data)

Exchange.receive, Lane.receive = faulty_receive, faulty_replies
sys.exit(__main__.main())
"""


@pytest.fixture(scope="session", params=[NEWEST], ids=str)
def executable(request: pytest.FixtureRequest) -> Executable:
    """The log is ours, whichever server it is."""
    return request.param


@contextlib.contextmanager
def verbose_coalesce(upstream: str) -> Iterator[Coalesce]:
    with short_directory() as directory:
        flags = ["--upstream", upstream, "--listen", "127.0.0.1:0", "--listen", f"unix://{directory}/c.sock"]
        flags += ["--upstream-wait", "0.2", "--max-leases", "8", "--outbox-limit", "100000", "--log-level", "debug"]
        coalesce = Coalesce([sys.executable, "-c", PROGRAM, *flags], environment(PYTHONPATH=str(ROOT)))
        try:
            yield coalesce
        finally:
            coalesce.end()


def m(what: str) -> str:
    return f"{MARKER}-{what}"


CONVERSATIONS: dict[str, list[bytes]] = {
    "values": [pack("SET", m("key"), m("value")), pack("GET", m("key")), pack("INCR", m("key")), pack("DEL", m("key"))],
    "large values": [pack("SET", m("key"), m("v") * 50_000), pack("GET", m("key"))],
    "inline": [f"SET {m('key')} {m('value')}\r\n".encode(), f"GET '{m('unbalanced')}\r\n".encode()],
    "unknown commands": [pack(m("command"), m("argument")), pack("CLIENT", m("subcommand")), pack("CONFIG", m("x"))],
    "transactions": [
        pack("WATCH", m("key")), pack("MULTI"), pack("SET", m("key"), m("value")), pack(m("unknown")), pack("EXEC"),
        pack("MULTI") + pack("SET", m("key"), m("value")) + pack("EXEC"),
    ],
    "scripts": [
        pack("EVAL", f"return redis.error_reply('{m('error')}' .. KEYS[1] .. ARGV[1])", 1, m("key"), m("argument")),
        pack("EVAL", m("no lua"), 0),
        pack("SCRIPT", "LOAD", f"return '{m('loaded')}'"), pack("EVALSHA", m("sha"), 0),
    ],
    "channels": [pack("PUBLISH", m("channel"), m("x")), pack("SUBSCRIBE", m("channel")), pack("PSUBSCRIBE", m("x"))],
    "names": [
        pack("CLIENT", "SETNAME", m("name")), pack("CLIENT", "GETNAME"),
        pack("CLIENT", "SETINFO", "LIB-NAME", m("lib")),
        pack("HELLO", 3, "SETNAME", m("name")), pack("HELLO", 3, m("option")), pack("CLIENT", "SETNAME", m("bad name")),
    ],
    "credentials": [
        pack("AUTH", m("user"), m("password")), pack("AUTH", m("password")), pack("SELECT", m("database")),
        pack("HELLO", 3, "AUTH", m("user"), m("password")), pack("ACL", "SETUSER", m("user"), f">{m('password')}"),
    ],
    "blocking": [pack("BLPOP", m("key"), "0.01"), pack("XREAD", "BLOCK", "1", "STREAMS", m("key"), "$")],
    "pinned": [pack("CLIENT", "ID"), pack("SET", m("key"), m("value")), pack(m("unknown"))],
}  # fmt: skip
BROKEN = {
    "no length": f"*1\r\n${m('length')}\r\n".encode(),
    "no count": f"*{m('count')}\r\n".encode(),
    "no bulk": f"*1\r\n{m('bulk')}\r\n".encode(),
    "too long": m("line").encode() * 20_000,
    "http": f"POST / HTTP/1.1\r\nHost: {m('host')}\r\n\r\n".encode(),
    "a fault in coalesce": pack("ECHO", m("BREAK-THE-CLIENT")),
    "a fault on the lane": pack("ECHO", m("BREAK-THE-LANE")),
    "a desync": pack("ECHO", m("NO-RESP")),
    "cut short": pack("SET", m("key"), m("value"))[:-5],
}


def test_nothing_that_clients_send_or_are_sent_is_logged(fresh_upstream):
    with verbose_coalesce(fresh_upstream.url) as coalesce, contextlib.ExitStack() as stack:
        for requests in CONVERSATIONS.values():
            with coalesce.connect() as client:
                for request in requests:
                    client.send(request)
                    client.reply()
        for request in BROKEN.values():
            with coalesce.connect() as client:
                client.send_unless_closed(request)
                with contextlib.suppress(OSError):
                    client.half_close()
                client.rest()
            eventually(lambda: serves(coalesce))
        clients = [stack.enter_context(coalesce.connect()) for _ in range(6)]
        for client, wait in zip(clients, ("SUBSCRIBE", "BLPOP", "GET", "MONITOR", "WATCH", "GET"), strict=True):
            client.send(pack(wait, m("key"), *([0] if wait == "BLPOP" else [])) if wait != "MONITOR" else pack(wait))
        eventually(lambda: serves(coalesce))
        fresh_upstream.kill()
        with coalesce.connect() as client:
            client.send(pack("SET", m("unsent"), m("value")) * 3)
            client.half_close()
            client.rest()
        fresh_upstream.start()
        eventually(lambda: serves(coalesce))
        with coalesce.connect() as waiting, coalesce.connect() as greedy:
            waiting.send(pack("BLPOP", m("key"), 0))
            greedy.send((pack("SET", m("big"), m("v") * 10_000) + pack("GET", m("big")) * 50) * 3)
            eventually(lambda: serves(coalesce))
            code, _ = coalesce.stop()
        assert code in {0, 1}
    said = coalesce.stderr
    for sign in ("the client is closed", "a fault in coalesce, the connection", "can't be trusted", "connection lost"):
        assert sign in said, said
    assert MARKER not in said.lower()
    assert "qjx" not in said.lower()


def serves(coalesce: Coalesce) -> bool:
    with coalesce.connect() as client, contextlib.suppress(EOFError, ConnectionError):
        return client.ask("PING", MARKER).startswith(b"$")
    return False
