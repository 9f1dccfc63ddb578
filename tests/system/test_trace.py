"""What --trace prints of a real run is a transcript: it can be played, and has nothing in it that is hidden."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import hiredis
import pytest

from tests.transcripts.core_player import CorePlayer
from tests.transcripts.notation import parse
from tests.transcripts.socket_player import SocketPlayer

from .admin import ADMIN, post
from .processes import DEADLINE, running_coalesce
from .versions import NEWEST
from .wire import pack

if TYPE_CHECKING:
    from collections.abc import Callable

    from .processes import Executable


@pytest.fixture(scope="session", params=[NEWEST], ids=str)
def executable(request: pytest.FixtureRequest) -> Executable:
    """What is printed is what coalesce was told, whichever server it is."""
    return request.param


def say_too_much(listener: socket.socket) -> None:
    """An upstream that takes the handshake, and gives the first GET two replies and a half."""

    def serve(sock: socket.socket) -> None:
        with sock, suppress(OSError):
            sock.settimeout(DEADLINE)
            reader = hiredis.Reader()
            while data := sock.recv(4096):
                reader.feed(data)
                while request := reader.gets():
                    if request[0] == b"GET":
                        sock.sendall(b"$1\r\nv\r\n+one too many\r\n$5\r\nha")
                    else:
                        sock.sendall(b"+PONG\r\n" if request[0] == b"PING" else b"-ERR unknown command\r\n")

    with suppress(OSError):  # until it is closed
        while True:
            threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()


def converse(coalesce) -> None:
    with coalesce.connect() as first:
        assert first.ask("SET", "a-key", "a value") == b"+OK\r\n"
        with coalesce.connect() as second:
            assert second.ask("GET", "a-key") == b"$7\r\na value\r\n"
            assert second.ask("SELECT", 3) == b"+OK\r\n"
            second.send(pack("SET", "k", b"\r\n'\"\xff ") + pack("GET", "k") + pack("MGET", "k", "none", ""))
            assert len(second.replies(3)) == 3
            assert second.ask("LPUSH", "k", "1").startswith(b"-WRONGTYPE")
        first.send(b"GET a-key\r\n")
        assert first.reply() == b"$7\r\na value\r\n"
        big = "v" * 10_000
        assert first.ask("SET", "big", big) == b"+OK\r\n"
        assert first.ask("GET", "big").endswith(b"v\r\n")
        assert first.ask("INCR", "n") == b":1\r\n"
        first.send(pack("QUIT"))
        first.rest()


def borrow(coalesce) -> None:
    """With connections of their own, for a while and for good."""
    with coalesce.connect() as first, coalesce.connect() as second:
        assert first.ask("SET", "n", "1") == b"+OK\r\n"
        assert first.ask("WATCH", "n") == b"+OK\r\n"
        assert first.ask("MULTI") == b"+OK\r\n"
        assert first.ask("INCR", "n") == b"+QUEUED\r\n"
        assert second.ask("GET", "n") == b"$1\r\n1\r\n"
        assert first.ask("EXEC") == b"*1\r\n:2\r\n"
        assert second.ask("CLIENT", "SETNAME", "second") == b"+OK\r\n"
        assert second.ask("BLPOP", "list", "0.01") in {b"*-1\r\n", b"$-1\r\n"}
        first.send(pack("MULTI") + pack("INCR", "n") + pack("EXEC") + pack("GET", "n"))
        assert first.replies(4)[-1] == b"$1\r\n3\r\n"
        with coalesce.connect() as third:
            third.send(pack("SUBSCRIBE", "news"))
            assert third.reply().startswith(b"*3")
            assert first.ask("PUBLISH", "news", "a message") == b":1\r\n"
            assert third.reply().endswith(b"a message\r\n")
            third.send(pack("UNSUBSCRIBE", "news"))
            assert third.reply().startswith(b"*3")
            assert third.ask("GET", "n") == b"$1\r\n3\r\n"
        first.send(pack("QUIT"))
        first.rest()
        second.send(pack("QUIT"))
        second.rest()


def pin(coalesce) -> None:
    with coalesce.connect() as first:
        assert first.ask("PING") == b"+PONG\r\n"  # so that u0 stands, as it does for the players
        assert first.ask("CLIENT", "REPLY", "ON") == b"+OK\r\n"
        assert first.ask("SET", "k", "a secret") == b"+OK\r\n"
        first.send(pack("GET", "k") + pack("GET", "none"))
        assert first.replies(2) == [b"$8\r\na secret\r\n", b"$-1\r\n"]
        first.send(pack("QUIT"))
        first.rest()


def hold(coalesce) -> None:
    with coalesce.connect() as first, coalesce.connect() as second:
        assert first.ask("SET", "k", "v") == b"+OK\r\n"
        assert post(coalesce, "/pause").status == 200
        first.send(pack("GET", "k"))
        assert post(coalesce, "/pause").status == 200  # says nothing
        assert post(coalesce, "/resume").status == 200
        assert first.reply() == b"$1\r\nv\r\n"
        assert second.ask("INCR", "n") == b":1\r\n"
        for wire in (first, second):
            wire.send(pack("QUIT"))
            wire.rest()


def go_wrong(coalesce) -> None:
    """What is refused, and a connection that is proved clean, by a HELLO that is refused, before it is lent again."""
    with coalesce.connect() as first, coalesce.connect() as second:
        assert first.ask("PING") == b"+PONG\r\n"  # so that u0 stands, as it does for the players
        for _ in range(2):
            assert first.ask("WATCH", "k") == b"+OK\r\n"
            assert first.ask("EVAL", "return 1", 0) == b":1\r\n"
            assert first.ask("UNWATCH") == b"+OK\r\n"
        assert second.ask("SELECT", 99) == b"-ERR DB index is out of range\r\n"
        second.send(b"*2\r\n$4\r\nECHO\r\n$536870913\r\n")
        assert second.rest() == b"-ERR Protocol error: invalid bulk length\r\n"


@pytest.fixture
def traced(upstream, capfd):
    """What is printed of a conversation, with these flags."""

    def traced(*flags: str, talk: Callable = converse) -> list[str]:
        with upstream.connect() as control:
            control.ask("FLUSHALL")
        with running_coalesce(upstream.url, *ADMIN, *flags) as coalesce:
            talk(coalesce)
            coalesce.stop()
        return capfd.readouterr().out.splitlines()

    return traced


@pytest.mark.parametrize("talk", [converse, borrow, pin, hold, go_wrong])
async def test_what_is_printed_can_be_played(traced, talk):
    lines = traced("--trace-values", talk=talk)
    (transcript,) = parse("\n".join(lines))
    CorePlayer(transcript, lambda data: [data]).play()
    if talk is converse:
        CorePlayer(transcript, lambda data: [bytes((byte,)) for byte in data]).play()
    await SocketPlayer(transcript, lambda data: [data]).play()


def test_what_a_pinned_client_says_is_printed(traced):
    lines = traced("--trace-values", talk=pin)
    at = lines.index("c1 pinned u1")
    for line in ("c1 >> GET k", "u1 << GET k", "u1 >> $8 a secret", "c1 << $8 a secret", "c1 closed"):
        assert line in lines[at:]
    hidden = traced("--trace", talk=pin)
    assert "u1 >> $<8>" in hidden
    assert "secret" not in "\n".join(hidden)


async def test_a_desync_can_be_played(capfd):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        upstream = threading.Thread(target=say_too_much, args=(listener,), daemon=True)
        upstream.start()
        with running_coalesce(f"127.0.0.1:{listener.getsockname()[1]}", "--trace-values") as coalesce:
            with coalesce.connect() as client:
                client.send(pack("GET", "k"))
                client.rest()
            coalesce.end()
        listener.shutdown(socket.SHUT_RDWR)
        upstream.join(DEADLINE)
    lines = capfd.readouterr().out.splitlines()
    lost = lines.index("u0 closed")
    assert lines[lost - 2 : lost] == ["u0 >> b'$1\\r\\nv\\r\\n+one too many\\r\\n'", "u0 >> b'$5\\r\\nha'"]
    (transcript,) = parse("\n".join(lines))
    CorePlayer(transcript, lambda data: [data]).play()
    await SocketPlayer(transcript, lambda data: [data]).play()


def test_keys_and_values_are_hidden(traced):
    lines = traced("--trace")
    assert lines[0] == "== traced"
    assert lines[1].startswith("options whole=1")
    said = [line for line in lines[2:] if not line.startswith("options ")]
    assert said[:4] == ["c1 >> SET <5> <7>", "u0 << SET <5> <7>", "u0 >> +OK", "c1 << +OK"]
    text = "\n".join(lines)
    assert "u1 connects - db=3 resp2" in lines
    assert "c2 << -WRONGTYPE <" in text
    assert "c1 << $<10000>" in lines
    for secret in ("a-key", "value", "vvv", "big"):
        assert secret not in text


def test_credentials_are_hidden_whatever_is_asked_for(upstream, capfd):
    with upstream.connect() as control:
        control.ask("ACL", "SETUSER", "ada", "on", ">ada-secret", "~*", "+@all")
    with running_coalesce(upstream.url, "--trace-values") as coalesce, coalesce.connect() as client:
        assert client.ask("AUTH", "ada", "ada-secret") == b"+OK\r\n"
        client.ask("HELLO", 3, "AUTH", "ada", "ada-secret")
        client.ask("AUTH", "ada", "ada-secret-too")
        client.send(b"AUTH ada ada-secret\r\n")
        client.reply()
        client.ask("ACL", "SETUSER", "ada", ">ada-secret")
        client.ask("SET", "shown", "x")
    said = capfd.readouterr().out
    assert "c1 >> AUTH <hidden> <hidden>\n" in said
    assert "<hidden>:<hidden> db=0 resp2\n" in said
    assert "c1 >> SET shown x\n" in said
    assert "secret" not in said
