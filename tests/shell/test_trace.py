"""The tracer by itself: credentials in every form that a request has, and what is no RESP at all."""

from __future__ import annotations

import random

import pytest

from coalesce.trace import Tracer
from tests.system.wire import bulk, pack

SECRET = b"S3CRETPW"
NOT_CANONICAL = b"*4\r\n$6\r\nCONFIGxx$3\r\nSETxx$11\r\nrequirepassxx$8\r\nS3CRETPWxx"
REQUESTS = [
    pack("AUTH", SECRET),
    pack("HELLO", 3, "AUTH", "ada", SECRET),
    pack("CONFIG", "SET", "maxmemory", "1", "requirepass", SECRET),
    pack("ACL", "SETUSER", "ada", b">" + SECRET),
    pack("MIGRATE", "host", 1, "", 0, 9, "AUTH", SECRET, "KEYS", "k"),
    pack("MIGRATE", "host", 1, "", 0, 9, "AUTH2", "ada", SECRET, "KEYS", "k"),
    pack("SENTINEL", "SET", "primary", "auth-pass", SECRET),
    pack("SENTINEL", "CONFIG", "SET", "sentinel-pass", SECRET),
    b"AUTH S3CRETPW\r\n",
    b" auth ada S3CRETPW\n",
    b'"AUTH" S3CRETPW\r\n',
    b"'auth' 'S3CRETPW'\r\n",
    b'"\\x41UTH" "S3CRETPW"\r\n',
    b'"PING"\r\nAUTH S3CRETPW\r\n',
    b"\x00\nAUTH S3CRETPW\r\n",
    b"AUTH " + b" " * 20_000 + b"S3CRETPW\r\n",
    b"hello 3 auth ada S3CRETPW\r\n",
    b'config set "requirepass" S3CRETPW\r\n',
    NOT_CANONICAL,
    b"*2\r\n$4\r\nAUTHxx$8\r\nS3CRETPWxx",
    b"*2\r\n$4\r\nAUTH\r\n:1\r\nS3CRETPW\r\n",
    b"*1\r\n*2\r\n$04\r\nAUTH\r\n$8\r\nS3CRETPW\r\n",
]
REPLIES = [
    b"*2\r\n" + bulk("requirepass") + bulk(SECRET),
    b"%1\r\n" + bulk("masterauth") + bulk(SECRET),
    b"*2\r\n" + bulk("tls-key-file-pass") + bulk(SECRET),
    b"-ERR Error in ACL SETUSER modifier 'S3CRETPW': Syntax error\r\n",
]


def traced(pieces: list[bytes], *, requests: bool, values: bool = True) -> str:
    lines: list[str] = []
    tracer = Tracer(lines.append, values=values)
    for piece in pieces:
        tracer.heard("c1", piece, requests=requests, sent=not requests)
    return "\n".join(lines)


@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize("request_", REQUESTS, ids=lambda said: repr(said[:40]))
def test_credentials_in_a_request(request_, values):
    """Whole, byte by byte, and with another request behind."""
    assert b"S3CRETPW" in request_
    for pieces in ([request_], [bytes([byte]) for byte in request_], [request_ + pack("PING")]):
        assert "S3CRETPW" not in traced(pieces, requests=True, values=values)


@pytest.mark.parametrize("reply", REPLIES, ids=lambda said: repr(said[:40]))
def test_credentials_in_a_reply(reply):
    for pieces in ([reply], [bytes([byte]) for byte in reply]):
        assert "S3CRETPW" not in traced(pieces, requests=False)


def test_hashes_of_passwords_in_a_reply():
    hashed = "#" + "0123456789abcdef" * 4
    assert hashed not in traced([b"*1\r\n" + bulk(f"user ada on {hashed} ~* +@all")], requests=False)
    assert hashed[1:] not in traced([b"*2\r\n" + bulk("passwords") + b"*1\r\n" + bulk(hashed[1:])], requests=False)


TOKENS = [
    b"*1\r\n", b"*2\r\n", b"*-1\r\n", b"$4\r\nAUTH\r\n", b"$-1\r\n", b"$5\r\nab", b"$\r\n", b"*\r\n", b"+x\r\n", b"-",
    b"%1\r\n", b"|1\r\n", b">2\r\n", b"_\r\n", b"#t\r\n", b":1\r\n", b"\0", b"=5\r\n", b"(1\r\n", b"PING\r\n", b"\r",
    b"\n", b"\r\n", b" ", b'"', b"\xff", b"$99999999999999999999\r\n", b"*99999999\r\n", b"AUTH ",
]  # fmt: skip


@pytest.mark.parametrize("requests", [False, True])
def test_what_is_no_resp_harms_nobody(requests):
    """It neither raises nor goes on for ever."""
    chance = random.Random(1)
    for _ in range(5000):
        data = b"".join(chance.choice(TOKENS) for _ in range(chance.randint(1, 12)))
        cut = chance.randint(0, len(data))
        traced([data[:cut], data[cut:]], requests=requests, values=chance.random() < 0.5)
