"""What the kernel is told to look after, on both sides; and how long somebody has been silent."""

from __future__ import annotations

import functools
import platform
import socket
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from coalesce.config import Config, TcpAddress, Upstream
from coalesce.core.exchange import Exchange
from coalesce.core.identity import Identity
from coalesce.dial import Dialler
from coalesce.downstream import Clients
from coalesce.keepalive import keep_alive, look_after_clients
from coalesce.listening import open_listeners
from coalesce.liveness import Stopwatch
from coalesce.poller import READABLE, Poller
from tests.core.fakes import RecordingLink

if TYPE_CHECKING:
    from collections.abc import Iterator

BASE = Identity(None, None, 0, 2)
SILENCE = 12.0
TCP_RTO_MAX_MS = 44
TELLS = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2]) >= (6, 15)
AS_REDIS = (1, 300, 100, 3)


def keepalive(sock: socket.socket) -> tuple[int, ...]:
    """On or off; seconds of idleness, seconds between probes, probes."""
    options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    return (
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        *(sock.getsockopt(socket.IPPROTO_TCP, option) for option in options),
    )


def longest_pause(sock: socket.socket) -> float | None:
    """Seconds between two times that the kernel repeats something; None where it can't be told."""
    return sock.getsockopt(socket.IPPROTO_TCP, TCP_RTO_MAX_MS) / 1000 if TELLS else None


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        look_after_clients(listener, SILENCE)
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize("silence", [0.1, 1.2, 2, 2.6, 3, 4, 5, 6, 10, 15, 30, 60, 3600])
def test_keepalive_takes_as_long_as_a_silence_may(pair, silence):
    keep_alive(pair[0], silence)
    on, idle, between, count = keepalive(pair[0])
    assert on
    assert idle >= 1
    assert between >= 1
    assert max(2, silence - 1) <= idle + between * count <= max(2, silence + 1)
    assert count == 3 or silence < 4, "one packet that is lost proves nothing"


def test_what_has_no_host_is_left_alone():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        keep_alive(ours, 10)


class Hand:
    """Where clients are handed to."""

    def __init__(self) -> None:
        self.taken: list[socket.socket] = []

    def __call__(self, name: str, sock: socket.socket, *more: object) -> None:
        del name, more
        self.taken.append(sock)


def test_a_client_is_looked_after_as_what_it_holds_demands(pair):
    """Redis's keepalive for its place; what it has alone, or waits for, is another matter. A look makes the change."""
    ours, theirs = pair
    theirs.settimeout(5)
    exchange = Exchange(BASE, lambda _: None)
    lane = exchange.lane(BASE)
    exchange.connected(lane, RecordingLink(exchange, lane), 0.0)
    hand = Hand()
    with closing(Poller()) as poller:
        clients = Clients(exchange, poller, 10, 1 << 20, hand, silence=SILENCE)
        clients.welcome(ours)
        (client,) = clients
        assert keepalive(ours) == AS_REDIS
        assert longest_pause(ours) in {3.0, None}
        theirs.sendall(b"BLPOP queue 0\r\n")
        client.on_ready(READABLE)  # waits for a lease
        assert client.silent_for(0.0) == 0.0
        assert keepalive(ours) == (1, 6, 2, 3)
        (lease,) = exchange.leases.of
        exchange.connected(lease, RecordingLink(exchange, lease), 0.0)
        exchange.flush(0.0)
        client.silent_for(0.0)
        assert keepalive(ours) == (1, 6, 2, 3)
        exchange.replies(lease, b"*-1\r\n", 0.0)
        assert theirs.recv(100) == b"*-1\r\n"
        client.silent_for(0.0)
        assert keepalive(ours) == AS_REDIS
        theirs.sendall(b"MONITOR\r\n")
        client.on_ready(READABLE)
        exchange.flush(0.0)
        exchange.replies(lease, b"+OK\r\n", 0.0)
        assert hand.taken == [ours]
        assert keepalive(ours) == (1, 6, 2, 3)


async def test_who_comes_before_anybody_accepts_is_looked_after_like_the_others():
    """Clients come back at the moment in which a new coalesce listens, and have its options as they are then."""
    exchange = Exchange(BASE, lambda _: None)
    (sock,), _ = open_listeners(TcpAddress("127.0.0.1", 0))
    with closing(Poller()) as poller, socket.create_connection(sock.getsockname()):
        clients = Clients(exchange, poller, 10, 1 << 20, Hand())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(clients.accept, sock)
            await trio.testing.wait_all_tasks_blocked()
            poller.drain(exchange.flush)
            (client,) = clients
            assert client.sock is not None
            assert client.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert keepalive(client.sock) == AS_REDIS
            clients.close_all()
            nursery.cancel_scope.cancel()


async def answer(stream: trio.SocketStream) -> None:
    """An upstream that knows no command."""
    async with stream:
        async for _ in stream:
            await stream.send_all(b"-ERR unknown command\r\n")


async def test_an_upstream_connection_is_looked_after(nursery):
    listener, *_ = await nursery.start(functools.partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
    config = Config(Upstream(TcpAddress("127.0.0.1", listener.socket.getsockname()[1])), upstream_silence=24.0)
    with trio.fail_after(5), closing(Dialler(config)) as dialler:
        dialled = await dialler.dial(BASE, b"")
    with dialled.sock as sock:
        assert keepalive(sock) == (1, 12, 4, 3)
        assert longest_pause(sock) in {6.0, None}


def test_a_stopwatch_does_not_count_what_was_slept_through(monkeypatch):
    now = 100.0
    monkeypatch.setattr("coalesce.liveness.perf_counter", lambda: now)
    watch = Stopwatch(1.0)
    now += 1.1
    assert watch.look() == pytest.approx(1.1)
    now += 1000.0
    assert watch.look() == pytest.approx(3.1)
    now += 0.5
    assert watch.look() == pytest.approx(3.6)
