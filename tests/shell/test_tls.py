"""TLS sockets that do not block, on socket pairs: what they leave behind, what they take, how they end."""

from __future__ import annotations

import math
import socket
import ssl
from contextlib import closing, contextmanager, suppress
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import trio

from coalesce import greeting, tls
from coalesce.bytestream import ByteStream
from coalesce.config import Config, parse_upstream
from coalesce.core.exchange import Exchange
from coalesce.core.identity import Identity
from coalesce.downstream import Clients
from coalesce.greeting import Greetings
from coalesce.poller import Poller
from coalesce.tls import CertificateError, Certificates, TlsSocket
from tests.core.twins import canonical
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


def test_a_request_of_many_arguments_leaves_nothing_behind_either(pair) -> None:
    """It is read in small pieces, and nothing more comes that would tell of what was left."""
    near, far = pair
    identity = Identity(None, None, 0, 2)
    exchange = Exchange(identity, lambda _: None)
    request = canonical([b"MGET", *([b"key"] * 3000)])
    with closing(Poller()) as poller:
        clients = Clients(exchange, poller, 10, RECORD, lambda *_: None)
        clients.welcome(near)
        for at in range(0, len(request), RECORD):
            far.send(request[at : at + RECORD])
            poller.drain(exchange.flush)
        assert b"".join(exchange.lane(identity).unsent) == request
        clients.close_all()


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


def test_who_says_too_little_is_closed_in_time_and_not_reset(own: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    with greeted(own) as (greetings, poller, sock, _):
        sock.sendall(b"\x16\x03\x01")
        turn(poller)
        monkeypatch.setattr(greeting, "monotonic", lambda: math.inf)
        greetings.expire()
        assert len(greetings) == 0
        assert sock.recv(100) == b""


def records(message: bytes, size: int, *, kind: int = 22) -> bytes:
    """A message of TLS in records of so many bytes."""
    pieces = (message[at : at + size] for at in range(0, len(message), size))
    return b"".join(b"%c\x03\x01" % kind + len(piece).to_bytes(2) + piece for piece in pieces)


def hello(length: int = 131_000) -> bytes:
    return b"\x01" + length.to_bytes(3) + b"\x03\x03" + bytes(length - 2)


# A group that no client offers a key of at first: the server asks for another ClientHello.
UNUSUAL = "secp384r1"


@contextmanager
def greeted(
    own: Pair, group: str | None = None
) -> Iterator[tuple[Greetings, Poller, socket.socket, list[socket.socket]]]:
    """Greetings of one client, over TCP; the poller, the client's socket, and who is done."""
    done: list[socket.socket] = []
    with closing(Poller()) as poller, socket.create_server(("127.0.0.1", 0)) as server:
        certificates = listener(own)
        if group is not None:
            certificates.latest().set_ecdh_curve(group)
        greetings = Greetings(certificates, poller, done.append, timeout=10.0)
        with socket.create_connection(server.getsockname()) as sock:
            sock.settimeout(5)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            accepted, _ = server.accept()
            accepted.setblocking(False)
            greetings.begin(accepted)
            yield greetings, poller, sock, done
            greetings.close_all()
        for each in done:
            each.close()


def turn(poller: Poller) -> None:
    poller.drain(lambda _: None)


@pytest.mark.parametrize("size", [1, 100, 8 * 1024])
def test_a_hello_in_pieces_is_refused_without_a_look_at_all_of_it(
    own: Pair, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    """OpenSSL would go through all records in one step."""
    with greeted(own) as (greetings, poller, sock, _):
        sock.sendall(records(hello()[: size * 50], size))
        turn(poller)
        assert len(greetings) == 0
    assert "in many pieces" in caplog.text


def test_a_second_hello_in_pieces_is_refused(own: Pair, authority: Authority) -> None:
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        client(authority).wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="127.0.0.1").do_handshake()
    with greeted(own, UNUSUAL) as (greetings, poller, sock, _):
        sock.sendall(outgoing.read())
        turn(poller)
        assert len(greetings) == 1
        assert sock.recv(RECORD)[5] == 2  # a ServerHello: HelloRetryRequest
        sock.sendall(records(b"\x01", 1, kind=20) + records(hello()[:50], 1))
        turn(poller)
        assert len(greetings) == 0


@pytest.mark.parametrize(
    ("version", "group"),
    [(ssl.TLSVersion.TLSv1_2, None), (ssl.TLSVersion.TLSv1_3, None), (ssl.TLSVersion.TLSv1_3, UNUSUAL)],
)
def test_a_handshake_that_comes_in_drips(
    own: Pair, authority: Authority, version: ssl.TLSVersion, group: str | None
) -> None:
    """... and what follows it in the same write stays for the client's first read."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = client(authority)
    context.maximum_version = version
    tls_client = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with greeted(own, group) as (_, poller, sock, done):
        while not done:
            try:
                tls_client.do_handshake()
                tls_client.write(b"PING\r\n")
            except ssl.SSLWantReadError:
                pass
            said = outgoing.read()
            for begin, end in pairwise([*range(12), *range(12, len(said), 100), len(said)] if said else []):
                sock.sendall(said[begin:end])
                turn(poller)
            sock.setblocking(False)
            with suppress(BlockingIOError):
                incoming.write(sock.recv(RECORD))
            sock.settimeout(5)
        if version is ssl.TLSVersion.TLSv1_3:
            assert done[0].recv(RECORD) == b"PING\r\n"
        assert done[0].getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1


@pytest.mark.parametrize("said", [b"PING\r\n", b"*1\r\n$4\r\nPING\r\n", b"GET / HTTP/1.1\r\n\r\n"])
def test_who_speaks_no_tls_is_closed_at_once(own: Pair, said: bytes) -> None:
    with greeted(own) as (greetings, poller, sock, _):
        sock.sendall(said)
        turn(poller)
        assert len(greetings) == 0


@pytest.mark.parametrize("said", [b"", b"P", b"\x16\x03\x01", records(hello(), RECORD)[:100]])
def test_who_hangs_up_in_the_middle_of_a_hello_is_closed_at_once(
    own: Pair, said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with greeted(own) as (greetings, poller, sock, _):
        sock.sendall(said)
        turn(poller)
        assert len(greetings) == 1
        sock.shutdown(socket.SHUT_WR)
        turn(poller)
        assert len(greetings) == 0
    assert not caplog.records


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
