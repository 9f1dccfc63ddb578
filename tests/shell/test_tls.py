"""TLS sockets that do not block, on socket pairs: what they leave behind, what they take, how they end."""

from __future__ import annotations

import socket
import ssl
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
import trio

from coalesce import greeting, tls
from coalesce.bytestream import ByteStream
from coalesce.config import Config, parse_upstream
from coalesce.greeting import Greetings
from coalesce.poller import Poller
from coalesce.tls import CertificateError, Certificates, TlsSocket
from tests.system.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.system.certificates import Pair

RECORD = 16 * 1024
UPSTREAM = parse_upstream("rediss://127.0.0.1")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"), "ours")


@pytest.fixture(scope="module")
def own(authority: Authority) -> Pair:
    return authority.issue()


def listener(own: Pair) -> Certificates:
    config = Config(UPSTREAM, tls_cert=str(own.certificate), tls_key=str(own.key))
    certificates = tls.listener_certificates(config)
    assert certificates is not None
    return certificates


def client(authority: Authority) -> ssl.SSLContext:
    certificates = tls.upstream_certificates(Config(UPSTREAM, upstream_ca=str(authority.file)))
    assert certificates is not None
    return certificates.latest()


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda it: it.name)
def pair(authority: Authority, own: Pair, request: pytest.FixtureRequest) -> Iterator[tuple[TlsSocket, TlsSocket]]:
    """Both ends of a connection, after the handshake."""
    plain = socket.socketpair()
    context = client(authority)
    context.maximum_version = request.param
    near = tls.wrap(listener(own).latest(), plain[0])
    far = tls.wrap(context, plain[1], server_hostname="127.0.0.1")
    near.setblocking(False)
    far.setblocking(False)
    waiting = [near, far]
    while waiting:
        for end in list(waiting):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(end)
    with pytest.raises(BlockingIOError):  # takes the session tickets of TLS 1.3
        far.recv(RECORD)
    with closing(near), closing(far):
        yield near, far


def test_a_read_of_a_record_leaves_nothing_behind(pair) -> None:
    near, far = pair
    for size in (1, 2, RECORD - 1, RECORD, RECORD + 1, 100_000):
        data = bytes(range(256)) * (size // 256 + 1)
        assert far.send(data[:size]) == size
        received = b""
        while len(received) < size:
            received += near.recv(RECORD)
            assert near.pending() == 0
        assert received == data[:size]
        with pytest.raises(BlockingIOError):
            near.recv(RECORD)


def test_a_write_that_was_cut_short_goes_on_with_the_same_bytes(pair) -> None:
    """And with more behind them, from another object: how the outbox and a batch's rest do it."""
    near, far = pair
    data = bytes(range(251)) * 40_000
    sent, received = 0, b""
    refused = 0
    while sent < len(data):
        try:
            sent += near.send(bytearray(data[sent : sent + 50_000 + refused]))
        except BlockingIOError:
            refused += 1
            received += far.recv(RECORD)
    near.close()
    while chunk := far.recv(RECORD):
        received += chunk
    assert refused
    assert received == data


def test_one_write_is_bounded(pair) -> None:
    near, far = pair
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 24)
    assert near.send(bytes(1 << 22)) <= 1 << 18
    assert far.recv(RECORD)


@pytest.mark.parametrize("end", ["close", "end_output"])
def test_an_end_with_a_close_notify_or_without(pair, end) -> None:
    near, far = pair
    assert far.send(b"last words") == 10
    getattr(far, end)()
    assert near.recv(RECORD) == b"last words"
    assert near.recv(RECORD) == b""
    assert near.recv(RECORD) == b""
    if end == "end_output":
        assert near.send(b"in reply") == 8
        assert far.recv(RECORD) == b"in reply"


def test_what_is_no_record_is_an_error(pair) -> None:
    near, far = pair
    with socket.socket(fileno=socket.dup(far.fileno())) as raw:
        raw.send(b"GET / HTTP/1.0\r\n\r\n")
    with pytest.raises(ssl.SSLError):
        near.recv(RECORD)


async def test_a_stream_passes_more_than_the_sockets_hold(pair) -> None:
    near, far = (ByteStream(end) for end in pair)
    data = bytes(range(253)) * 20_000
    received = b""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.send_all, data)
            while len(received) < len(data):
                received += await far.receive_some()
        assert received == data
        far.send_eof()
        assert await near.receive_some() == b""
        await near.send_all(b"in reply")
        assert await far.receive_some() == b"in reply"


def test_who_says_nothing_is_closed_in_time(own: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(greeting, "monotonic", lambda: now)
    plain = socket.socketpair()
    with closing(Poller()) as poller, plain[1]:
        greetings = Greetings(listener(own), poller, socket.socket.close, timeout=10.0)
        greetings.begin(plain[0])
        now = 109.9
        greetings.expire()
        assert len(greetings) == 1
        now = 110.0
        greetings.expire()
        assert len(greetings) == 0
        plain[1].settimeout(5)
        assert plain[1].recv(100) == b""


def test_files_are_read_again_when_they_change_and_not_before(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("one")
    read: list[str] = []

    def make() -> ssl.SSLContext:
        read.append(file.read_text())
        if read[-1] == "half":
            raise CertificateError("half written")
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    certificates = Certificates(make, (str(file),))
    first = certificates.latest()
    assert certificates.latest() is first
    file.write_text("half")
    assert certificates.latest() is first
    assert certificates.latest() is first
    file.write_text("two!")
    second = certificates.latest()
    assert second is not first
    assert certificates.latest() is second
    assert read == ["one", "half", "two!"]
