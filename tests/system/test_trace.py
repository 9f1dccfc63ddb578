"""What --trace prints of a real run is a transcript: it can be played, and has nothing in it that is hidden."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.transcripts.core_player import CorePlayer
from tests.transcripts.notation import parse
from tests.transcripts.socket_player import SocketPlayer

from .processes import running_coalesce
from .versions import NEWEST
from .wire import pack

if TYPE_CHECKING:
    from .processes import Executable


@pytest.fixture(scope="session", params=[NEWEST], ids=str)
def executable(request: pytest.FixtureRequest) -> Executable:
    """What is printed is what coalesce was told, whichever server it is."""
    return request.param


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


@pytest.fixture
def traced(upstream, capfd):
    """What is printed of that conversation, with these flags."""

    def traced(*flags: str) -> list[str]:
        with upstream.connect() as control:
            control.ask("FLUSHALL")
        with running_coalesce(upstream.url, *flags) as coalesce:
            converse(coalesce)
            coalesce.stop()
        return capfd.readouterr().out.splitlines()

    return traced


async def test_what_is_printed_can_be_played(traced):
    lines = traced("--trace-values")
    (transcript,) = parse("\n".join(["== a real run", *lines]))
    CorePlayer(transcript, lambda data: [data]).play()
    CorePlayer(transcript, lambda data: [bytes((byte,)) for byte in data]).play()
    await SocketPlayer(transcript, lambda data: [data]).play()


def test_keys_and_values_are_hidden(traced):
    lines = traced("--trace")
    assert lines[:4] == ["c1 >> SET <5> <7>", "u0 << SET <5> <7>", "u0 >> +OK", "c1 << +OK"]
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
