"""The shell's synchronous half, on socket pairs and with a poller that the test drives: no trio, no upstream."""

from __future__ import annotations

import errno
import logging
import os
import re
import socket
import struct
from contextlib import ExitStack, closing, suppress
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from coalesce import downstream, listening, tls
from coalesce.config import Config, TcpAddress, UnixAddress, parse_upstream
from coalesce.core.exchange import Exchange
from coalesce.core.identity import Identity
from coalesce.core.session import SessionState
from coalesce.downstream import Clients
from coalesce.listening import close_listener, open_listeners
from coalesce.poller import READABLE, Poller
from tests.core.fakes import RecordingLink
from tests.system.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BASE = Identity(None, None, 0, 2)
LARGE = 4 * 1024 * 1024


class OwnFaultError(Exception):
    """What nobody thought of."""


def no_pin(*arguments: object) -> None:
    raise AssertionError(arguments)


def test_a_client_that_is_over_is_not_read_from_while_its_outbox_lasts() -> None:
    """Its upstream was lost while replies waited for it: what it still sends must not pile up, nor its end spin."""
    exchange = Exchange(BASE, lambda _: None)
    lane = exchange.lane(BASE)
    exchange.connected(lane, RecordingLink(exchange, lane), 0.0)
    ours, theirs = socket.socketpair()
    with closing(Poller()) as poller, theirs:
        theirs.settimeout(5)
        clients = Clients(exchange, poller, 10, 10 * LARGE, no_pin)
        clients.welcome(ours)
        (session,) = exchange.sessions
        theirs.sendall(b"GET large\r\nPING\r\n")
        poller.drain(exchange.flush)
        reply = b"$%d\r\n%b\r\n" % (LARGE, bytes(LARGE))
        exchange.replies(lane, reply, 0.0)
        exchange.lose(lane)
        assert session.state is SessionState.GONE
        assert clients.shared == 1  # its outbox is not empty
        theirs.sendall(b"PING\r\n" * 100)
        poller.drain(exchange.flush)
        assert session.reader is None
        theirs.shutdown(socket.SHUT_WR)
        received = bytearray()
        with suppress(ConnectionResetError):  # a socket that is closed with something unread in it says so
            while chunk := theirs.recv(1 << 20):
                received += chunk
                poller.drain(exchange.flush)
        assert received == reply
        assert clients.shared == 0


def test_the_log_says_which_client_read_too_little(caplog: pytest.LogCaptureFixture) -> None:
    exchange = Exchange(BASE, lambda _: None)
    pairs = [socket.socketpair() for _ in range(3)]
    with closing(Poller()) as poller:
        clients = Clients(exchange, poller, 10, LARGE, no_pin)
        for ours, _ in pairs:
            clients.welcome(ours)
        deaf = next(client for client in clients if client.sock is pairs[1][0])
        for _ in range(2):  # the first is always taken, and more of it is kept than may be
            deaf.write(bytes(2 * LARGE))
        (said,) = (record.getMessage() for record in caplog.records)
        name = f"client c2 (unix, pid {os.getpid()}, uid {os.getuid()})"
        assert re.fullmatch(rf"{re.escape(name)} is closed: it left \d+ bytes of replies unread .*", said)
        assert pairs[1][0].fileno() == -1
        assert clients.shared == 2
        clients.close_all()
    for _, theirs in pairs:
        theirs.close()


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        return server.accept()[0], theirs


@pytest.mark.parametrize("leave", [socket.socket.close, reset], ids=["closes", "resets"])
@pytest.mark.parametrize("pair", [socket.socketpair, tcp_pair], ids=["unix", "tcp"])
@pytest.mark.parametrize("noticed", ["by the write", "by the poller"])
def test_what_was_read_of_a_client_that_left_is_run(pair, leave, noticed) -> None:
    """A server that it was connected to directly would have run it all before it wrote the first reply."""
    exchange = Exchange(BASE, lambda _: None)
    base = exchange.lane(BASE)
    links = {base: RecordingLink(exchange, base)}
    exchange.connected(base, links[base], 0.0)
    ours, theirs = pair()
    with closing(Poller()) as poller:
        clients = Clients(exchange, poller, 10, LARGE, no_pin)
        clients.welcome(ours)
        theirs.sendall(b"SELECT 1\r\nSET a 1\r\nSELECT 0\r\nRPUSH jobs job\r\n")
        poller.drain(exchange.flush)
        lane = exchange.lane(BASE._replace(database=1))
        links[lane] = RecordingLink(exchange, lane)
        exchange.connected(lane, links[lane], 0.0)
        exchange.flush(0.0)
        leave(theirs)
        if noticed == "by the poller":
            poller.drain(exchange.flush)
        for _ in range(2):
            exchange.replies(lane, b"+OK\r\n", 0.0)
            exchange.flush(0.0)
        exchange.replies(base, b"+OK\r\n", 0.0) if base.in_flight else None
        poller.drain(exchange.flush)
        exchange.flush(0.0)
        assert b"".join(links[lane].batches).endswith(b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\n1\r\n")
        assert b"RPUSH" in b"".join(links[base].batches)
        exchange.replies(base, b":1\r\n", 0.0)
        poller.drain(exchange.flush)
        assert clients.shared == 0


class Closer:
    """Closes another member's socket in the middle of a round, and adds a new one."""

    def __init__(self, poller: Poller) -> None:
        self.poller = poller
        self.victim: socket.socket | None = None
        self.added: list[socket.socket] = []
        self.told = 0

    def on_ready(self, flags: int) -> None:
        assert flags & READABLE
        self.told += 1
        if self.victim is not None:
            victim, self.victim = self.victim, None
            self.poller.remove_and_close(victim)
            self.added += socket.socketpair()
            self.poller.add(self.added[0], self, READABLE)


def test_a_descriptor_is_not_used_again_within_a_round() -> None:
    """The second of two events of a round belongs to a socket that the first one closed."""
    pairs = [socket.socketpair() for _ in range(2)]
    with closing(Poller()) as poller:
        closer = Closer(poller)
        for ours, theirs in pairs:
            poller.add(ours, closer, READABLE)
            theirs.send(b"x")
        closer.victim = pairs[1][0]
        number = closer.victim.fileno()
        poller.drain(lambda _: None)
        assert closer.added[0].fileno() != number
        assert pairs[1][0].fileno() == -1, "closed at the end of the round"
        for sock in [*closer.added, pairs[0][0], pairs[0][1], pairs[1][1]]:
            sock.close()


class Telling:
    """In the middle of a round, tells a client something; and it turns out to have left."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        self.added: list[socket.socket] = []

    def on_ready(self, flags: int) -> None:
        assert flags & READABLE
        if not self.added:
            self._tell()
            self.added = [sock for _ in range(50) for sock in socket.socketpair()]

    def fail(self, fault: Exception) -> None:
        raise fault


def test_nor_is_that_of_a_client_that_turns_out_to_have_left() -> None:
    """An event of the round may still be there to tell that it was closed, and must not meet another client."""
    exchange = Exchange(BASE, lambda _: None)
    others, (ours, theirs) = socket.socketpair(), socket.socketpair()
    with closing(Poller()) as poller:
        clients = Clients(exchange, poller, 10, LARGE, no_pin)
        clients.welcome(ours)
        (client,) = clients._shared
        number = ours.fileno()

        def tell() -> None:
            client.read(wanted=False, end=False)
            client.write(b"+OK\r\n")
            exchange.depart(client.session)

        telling = Telling(tell)
        poller.add(others[0], telling, READABLE)
        others[1].send(b"x")
        theirs.close()
        poller.drain(exchange.flush)
        assert number not in {sock.fileno() for sock in telling.added}
        assert ours.fileno() == -1, "closed at the end of the round"
        poller.remove(others[0])
        for sock in [*others, *telling.added]:
            sock.close()


def test_of_many_small_values_little_is_read_at_once() -> None:
    """Larger chunks are for large values: a thousand small arguments in one take 2 ms of everybody."""
    exchange = Exchange(BASE, lambda _: None)
    ours, theirs = socket.socketpair()
    with closing(Poller()) as poller, theirs:
        clients = Clients(exchange, poller, 10, LARGE, no_pin)
        clients.welcome(ours)
        (session,) = exchange.sessions
        (client,) = clients._shared
        theirs.sendall(b"*9000\r\n$4\r\nMGET\r\n$1\r\n")
        client.on_ready(READABLE)
        assert session.reader is not None
        before = session.reader.held
        theirs.sendall(b"k\r\n" + b"$1\r\nk\r\n" * 8000)
        client.on_ready(READABLE)
        assert session.reader.held - before == 2 * 1024
        client.give_up()


# Who is not taken


async def test_nobody_is_accepted_any_more_before_the_listeners_are_closed() -> None:
    """The tasks that accept end some time after they have been told to, and a round of the poller may come first."""
    exchange = Exchange(BASE, lambda _: None)
    (sock,), address = open_listeners(TcpAddress("127.0.0.1", 0))
    assert isinstance(address, TcpAddress)
    with closing(Poller()) as poller:
        clients = Clients(exchange, poller, 10, LARGE, no_pin)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(clients.accept, sock)
            await trio.testing.wait_all_tasks_blocked()
            with socket.create_connection((address.host, address.port)) as early:
                poller.drain(exchange.flush)
                assert clients.shared == 1
                clients.take_no_more()
                with socket.create_connection((address.host, address.port)):
                    poller.drain(exchange.flush)
                    accepted, _ = sock.accept()
                    clients.welcome(accepted)
                    assert clients.accepted == clients.shared == 1
                    assert accepted.fileno() == -1
                early.sendall(b"GET k\r\n")
                poller.drain(exchange.flush)
                assert exchange.lane(BASE).unsent
                clients.close_all()
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("problem", [OSError(errno.EMFILE, "Too many open files"), OwnFaultError()], ids=repr)
async def test_what_fails_is_not_tried_again_at_once(
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
    problem: Exception,
) -> None:
    """Who waits to be accepted goes on to be told of, in each round of the poller."""
    del autojump_clock
    caplog.set_level(logging.INFO)
    exchange = Exchange(BASE, lambda _: None)
    (sock,), address = open_listeners(TcpAddress("127.0.0.1", 0))
    assert isinstance(address, TcpAddress)
    tried = 0
    accept = socket.socket.accept

    def failing(listener: socket.socket) -> tuple[socket.socket, tuple[str, int]]:
        nonlocal tried
        tried += 1
        if tried <= 2:
            raise problem
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", failing)
    with closing(Poller()) as poller, socket.create_connection((address.host, address.port)) as client:
        clients = Clients(exchange, poller, 10, LARGE, no_pin)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(clients.accept, sock)
            for times in (1, 2):
                await trio.sleep(1)
                for _ in range(3):
                    poller.drain(exchange.flush)
                assert tried == times
            await trio.sleep(1)
            poller.drain(exchange.flush)
            assert clients.shared == 1
            client.sendall(b"GET k\r\n")
            poller.drain(exchange.flush)
            assert exchange.lane(BASE).unsent
            await trio.sleep(1)  # it is said that it is over
            said = [record.getMessage() for record in caplog.records]
            clients.close_all()
            nursery.cancel_scope.cancel()
    where = f"listener 127.0.0.1:{address.port}"
    if isinstance(problem, OSError):
        assert said == [
            f"{where}: can't accept clients for the moment: Too many open files",
            f"{where}: accepting clients again, after 2.1 s (attempts: 2)",
        ]
    else:
        assert said == [f"{where}: a fault in coalesce, accepting goes on after a pause"] * 2


@pytest.mark.parametrize("says", [b"", b"PING\r\n"])
@pytest.mark.parametrize("with_tls", [True, False])
def test_who_resets_before_he_is_accepted_is_no_line_in_the_log(
    says: bytes, with_tls: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificates = None
    if with_tls:
        own = Authority(tmp_path, "ours").issue()
        upstream = parse_upstream("127.0.0.1:1")
        config = Config(upstream, tls_cert=str(own.certificate), tls_key=str(own.key))
        certificates = tls.listener_certificates(config)
    exchange = Exchange(BASE, lambda _: None)
    (sock,), _ = open_listeners(TcpAddress("127.0.0.1", 0))
    with closing(Poller()) as poller, sock:
        clients = Clients(exchange, poller, 10, LARGE, no_pin, certificates)
        client = socket.create_connection(sock.getsockname())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(says)
        client.close()
        accepted, _ = sock.accept()
        clients.welcome(accepted)
        poller.drain(exchange.flush)
        assert accepted.fileno() == -1
        assert clients.shared == 0
        assert not caplog.records


# Names


def test_a_port_that_is_taken_on_another_address_of_the_name_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system picks one that is free on the first."""
    local = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, 0)) for host in ("127.0.0.1", "127.0.0.2")]
    monkeypatch.setattr(listening, "_resolve", lambda _: local)
    with ExitStack() as stack:
        taken: list[int] = []
        bind = socket.socket.bind

        def bind_late(sock: socket.socket, address: tuple[str, int]) -> None:
            if address[0] == "127.0.0.2" and len(taken) < 2:
                taken.append(address[1])
                stack.enter_context(socket.create_server(address))
            bind(sock, address)

        monkeypatch.setattr(downstream.socket.socket, "bind", bind_late)
        opened, really = open_listeners(TcpAddress("somewhere", 0))
        for sock in opened:
            stack.enter_context(sock)
        assert isinstance(really, TcpAddress)
        assert [sock.getsockname() for sock in opened] == [(where[0], really.port) for *_, where in local]
        assert really.port not in taken
        assert len(taken) == 2


# Files of unix sockets


def test_the_file_of_a_listener_goes_with_it(tmp_path: Path) -> None:
    place = tmp_path / "s"
    (sock,), _ = open_listeners(UnixAddress(str(place)))
    close_listener(sock)
    assert not place.exists()


def test_the_file_of_a_successor_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = tmp_path / "s"
    (sock,), _ = open_listeners(UnixAddress(str(place)))
    place.unlink()
    (successor,), _ = open_listeners(UnixAddress(str(place)))
    close_listener(sock)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(place))
    close_listener(successor)
    assert not place.exists()
    assert not caplog.records


def test_a_file_that_cannot_be_removed_is_a_line_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What follows at the end of a run has to follow all the same."""
    directory = tmp_path / "d"
    directory.mkdir()
    (sock,), _ = open_listeners(UnixAddress(str(directory / "s")))
    directory.rename(tmp_path / "elsewhere")
    directory.write_text("a file in its place")
    close_listener(sock)
    assert sock.fileno() == -1
    assert [record.getMessage() for record in caplog.records] == [f"can't remove {directory}/s: Not a directory"]
