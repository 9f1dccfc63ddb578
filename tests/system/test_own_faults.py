"""Faults of coalesce itself, put there by the test: each ends what it happened to, is said once, and no more ends."""

from __future__ import annotations

import os
import re
import signal
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from coalesce import server
from coalesce.config import Config, TcpAddress, Upstream, parse_address
from coalesce.connection import Connection
from coalesce.core import ends
from coalesce.core.exchange import Exchange
from coalesce.core.lane import LARGE, Lane
from coalesce.core.lease import Leases
from coalesce.dial import Dialler
from coalesce.downstream import Client as SharedClient
from coalesce.downstream import Clients
from coalesce.greeting import Greetings
from coalesce.pin import Pin
from coalesce.pulse import Pulse
from coalesce.server import Server
from coalesce.tally import Closed, Lost

from .certificates import Authority
from .versions import OLDEST_AND_NEWEST
from .wire import bulk, pack

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from .processes import Executable, RedisServer


@pytest.fixture(scope="session", params=OLDEST_AND_NEWEST, ids=str)
def executable(request: pytest.FixtureRequest) -> Executable:
    """Whose faults they are, they would be before any server."""
    return request.param


PONG = b"+PONG\r\n"
DEADLINE = 10.0
CLOSED = "a fault in coalesce, the client is closed"


class OwnFaultError(Exception):
    """What nobody thought of."""


class Served:
    """coalesce in this process, where the test can reach into it. `summary` is what its closing line says."""

    def __init__(self, address: TcpAddress, server: Server, stack: AsyncExitStack) -> None:
        self._address = address
        self.server = server
        self._stack = stack
        self.summary = ""

    async def connect(self) -> Client:
        stream = await trio.open_tcp_stream(self._address.host, self._address.port)
        return Client(await self._stack.enter_async_context(stream))


@asynccontextmanager
async def serving(upstream: RedisServer, **settings: object) -> AsyncIterator[Served]:
    """Drained in the end by a signal, with the clients of the test still there."""
    config = Config(Upstream(parse_address(upstream.url)), listen=(TcpAddress("127.0.0.1", 0),), **settings)
    with trio.fail_after(DEADLINE):
        async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
            summaries = []

            server = Server(config)

            async def serve(task_status: trio.TaskStatus[list[TcpAddress]]) -> None:
                summaries.append(await server.serve(task_status=task_status))

            (address,) = await nursery.start(serve)
            served = Served(address, server, stack)
            yield served
            os.kill(os.getpid(), signal.SIGTERM)
        served.summary = str(summaries[0])


class Client:
    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        host, port = stream.socket.getsockname()
        self.address = f"{host}:{port}"

    async def send(self, *arguments: str) -> None:
        await self._stream.send_all(pack(*arguments))

    async def ask(self, *arguments: str) -> bytes:
        if arguments:
            await self.send(*arguments)
        return bytes(await self._stream.receive_some())

    async def is_closed(self, *last: str) -> bool:
        """Whether the last request gets no reply, but the end."""
        try:
            return await self.ask(*last) == b""
        except trio.BrokenResourceError:  # reset, as something it sent had not been read
            return True


class Faulty:
    """Raises in place of a method of `owner`, where `when` says so of its arguments; only so many `times`."""

    def __init__(self, monkeypatch, owner: object, name: str, when, times: int = 1 << 30) -> None:
        original = getattr(owner, name)
        self.raised = trio.Event()

        def faulty(*arguments):
            nonlocal times
            if times and when(*arguments):
                times -= 1
                self.raised.set()
                raise OwnFaultError
            return original(*arguments)

        monkeypatch.setattr(owner, name, faulty)


def always(*_) -> bool:
    return True


def in_argument(text: bytes):
    return lambda *arguments: any(text in it for it in arguments if isinstance(it, bytes))


def faults(caplog) -> list[str]:
    """What was said of faults, without where the clients come from."""
    said = [record.getMessage() for record in caplog.records if record.exc_info]
    return [re.sub(r"^(client c\d+) \(127\.0\.0\.1:\d+\)", r"\1", line) for line in said]


def check(caplog, coalesce: Served, *lines: str) -> None:
    """These faults were said, each once, and as many are in the closing line. Who was closed for one is counted."""
    tally = coalesce.server.poller.tally
    assert tally.closed[Closed.FAULT] == sum(line.endswith(CLOSED) for line in lines)
    lost = [line for line in lines if line.startswith("lane ") and line.endswith("the connection is closed")]
    assert tally.lost[Lost.FAULT] == len(lost)
    assert faults(caplog) == list(lines)
    assert re.findall(r"(\d+) faults? of its own", coalesce.summary) == [str(len(lines))]
    assert "cut short" not in coalesce.summary


async def test_while_a_client_is_served(upstream, monkeypatch, caplog):
    Faulty(monkeypatch, Exchange, "receive", in_argument(b"BOOM"))
    async with serving(upstream) as coalesce:
        neighbour, guilty = await coalesce.connect(), await coalesce.connect()
        assert await neighbour.ask("PING") == await guilty.ask("PING") == PONG
        assert await guilty.is_closed("ECHO", "BOOM")
        assert await neighbour.ask("PING") == PONG
        assert await (await coalesce.connect()).ask("PING") == PONG
    check(caplog, coalesce, f"client c2: {CLOSED}")


async def test_two_faults_are_two(upstream, monkeypatch, caplog):
    Faulty(monkeypatch, Exchange, "receive", in_argument(b"BOOM"))
    async with serving(upstream) as coalesce:
        for _ in range(2):
            assert await (await coalesce.connect()).is_closed("ECHO", "BOOM")
    check(caplog, coalesce, f"client c1: {CLOSED}", f"client c2: {CLOSED}")


async def test_and_again_while_the_client_is_closed(upstream, monkeypatch, caplog):
    Faulty(monkeypatch, Exchange, "receive", in_argument(b"BOOM"))
    Faulty(monkeypatch, Exchange, "depart", always, 1)
    async with serving(upstream) as coalesce:
        neighbour, guilty = await coalesce.connect(), await coalesce.connect()
        assert await neighbour.ask("PING") == await guilty.ask("PING") == PONG
        assert await guilty.is_closed("ECHO", "BOOM")
        assert await neighbour.ask("PING") == PONG
    check(caplog, coalesce, f"client c2: {CLOSED}", "client c2: a fault in coalesce, while it was closed")


async def test_while_a_client_in_a_transaction_is_served(upstream, monkeypatch, caplog):
    """Its connection goes with it: nobody else is lent one whose state is in doubt."""
    Faulty(monkeypatch, Exchange, "receive", in_argument(b"BOOM"))
    async with serving(upstream) as coalesce:
        guilty, neighbour = await coalesce.connect(), await coalesce.connect()
        assert await guilty.ask("MULTI") == b"+OK\r\n"
        assert await guilty.is_closed("ECHO", "BOOM")
        assert await neighbour.ask("WATCH", "k") == b"+OK\r\n"
        assert await neighbour.ask("GET", "k") == b"$-1\r\n"
    check(caplog, coalesce, f"client c1: {CLOSED}")


async def test_while_replies_are_handed_out(upstream, monkeypatch, caplog):
    Faulty(monkeypatch, Lane, "receive", in_argument(b"BOOM"))
    async with serving(upstream) as coalesce:
        neighbour, guilty = await coalesce.connect(), await coalesce.connect()
        assert await neighbour.ask("PING") == PONG
        assert await guilty.is_closed("ECHO", "BOOM")
        assert await neighbour.ask("PING") == PONG  # on the next connection
    check(caplog, coalesce, "lane u0: a fault in coalesce, the connection is closed")


class Left:
    """Notes when so many requests have left from now on."""

    def __init__(self, monkeypatch, count: int) -> None:
        take_batch = Lane.take_batch
        self.all = trio.Event()
        before = None

        def noting(lane, now):
            nonlocal before
            before = lane.commands if before is None else before
            batch = take_batch(lane, now)
            if lane.commands - before >= count:
                self.all.set()
            return batch

        monkeypatch.setattr(Lane, "take_batch", noting)


@contextmanager
def paused(upstream: RedisServer) -> Iterator[None]:
    """What is written meanwhile is answered in the end, so in few chunks."""
    with upstream.connect() as control:
        assert control.ask("CLIENT", "PAUSE", "60000", "WRITE") == b"+OK\r\n"
        try:
            yield
        finally:
            assert control.ask("CLIENT", "UNPAUSE") == b"+OK\r\n"


@pytest.mark.parametrize("size", [4, LARGE // 2])
async def test_while_one_client_is_handed_its_reply(upstream, monkeypatch, caplog, size):
    """Those whose replies come with it, before and behind, get theirs, and keep their connection."""
    Faulty(monkeypatch, SharedClient, "write", in_argument(b"BOOM"))
    async with serving(upstream) as coalesce:
        clients = [await coalesce.connect() for _ in range(9)]
        for client in clients:
            assert await client.ask("SET", client.address, client.address) == b"+OK\r\n"
        guilty = clients.pop(4)
        assert await guilty.ask("SET", "k", "BOOM" * (size // 4)) == b"+OK\r\n"
        left = Left(monkeypatch, 9)
        with paused(upstream):
            for client in clients[:4]:
                await client.send("GETSET", client.address, "x")
            await guilty.send("GETSET", "k", "x")
            for client in clients[4:]:
                await client.send("GETSET", client.address, "x")
            await left.all.wait()
        for client in clients:
            assert await client.ask() == bulk(client.address)
        assert await guilty.is_closed()
        for client in clients:
            assert await client.ask("ECHO", client.address) == bulk(client.address)
    check(caplog, coalesce, f"client c5: {CLOSED}")
    assert "connection lost" not in caplog.text


async def test_while_a_client_is_told_that_the_upstream_is_away(fresh_upstream, monkeypatch, caplog):
    Faulty(monkeypatch, SharedClient, "write", in_argument(b"-ERR coalesce"), 1)
    async with serving(fresh_upstream, upstream_wait=0.1) as coalesce:
        guilty, neighbour = await coalesce.connect(), await coalesce.connect()
        assert await guilty.ask("PING") == await neighbour.ask("PING") == PONG
        fresh_upstream.kill()
        assert await guilty.is_closed("PING")
        assert (await neighbour.ask("PING")).startswith(b"-ERR coalesce")
        assert (await neighbour.ask("PING")).startswith(b"-ERR coalesce")
    check(caplog, coalesce, f"client c1: {CLOSED}")


async def test_while_a_lane_without_a_connection_is_served(fresh_upstream, monkeypatch, caplog):
    """Who waits for it is closed, everybody else is served."""
    async with serving(fresh_upstream, upstream_wait=0.1) as coalesce:
        guilty, neighbour = await coalesce.connect(), await coalesce.connect()
        assert await guilty.ask("PING") == await neighbour.ask("PING") == PONG
        fresh_upstream.kill()
        assert (await neighbour.ask("PING")).startswith(b"-ERR coalesce")
        Faulty(monkeypatch, Exchange, "_answer_unsent", always, 1)
        assert await guilty.is_closed("PING")
        assert (await neighbour.ask("PING")).startswith(b"-ERR coalesce")
    check(caplog, coalesce, "lane u0: a fault in coalesce, who waits for it is closed")


async def test_while_one_of_those_in_flight_is_told_of_a_loss(fresh_upstream, monkeypatch, caplog):
    """The others are told all the same."""
    Faulty(monkeypatch, Exchange, "depart", always, 1)
    async with serving(fresh_upstream) as coalesce:
        clients = [await coalesce.connect() for _ in range(3)]
        for client in clients:
            assert await client.ask("PING") == PONG
        left = Left(monkeypatch, len(clients))
        with fresh_upstream.connect() as control:
            assert control.ask("CLIENT", "PAUSE", "60000") == b"+OK\r\n"
        for client in clients:
            await client.send("INCR", "k")
        await left.all.wait()
        fresh_upstream.kill()
        for client in clients:
            assert await client.is_closed()
    check(caplog, coalesce, f"client c1: {CLOSED}")


async def test_while_a_batch_leaves(upstream, monkeypatch, caplog):
    take_batch = Lane.take_batch

    def faulty(lane, now):
        batch = take_batch(lane, now)
        if b"BOOM" in batch:
            raise OwnFaultError
        return batch

    monkeypatch.setattr(Lane, "take_batch", faulty)
    async with serving(upstream) as coalesce:
        neighbour, guilty = await coalesce.connect(), await coalesce.connect()
        assert await neighbour.ask("PING") == PONG
        assert await guilty.is_closed("ECHO", "BOOM")  # its request may have left, for all that is known
        assert await neighbour.ask("PING") == PONG
    check(caplog, coalesce, "lane u0: a fault in coalesce, the connection is closed")


async def test_while_a_lane_is_connected(upstream, monkeypatch, caplog):
    connected = Exchange.connected

    def faulty(exchange, lane, link, round_trip):
        connected(exchange, lane, link, round_trip)
        if lane.identity.database == 5 and not faults(caplog):
            raise OwnFaultError

    monkeypatch.setattr(Exchange, "connected", faulty)
    async with serving(upstream) as coalesce:
        neighbour, guilty = await coalesce.connect(), await coalesce.connect()
        assert await neighbour.ask("PING") == PONG
        assert await guilty.ask("SELECT", "5") == b"+OK\r\n"  # it had not left, and goes with the next connection
        assert await guilty.ask("ECHO", "5") == bulk("5")
        assert await neighbour.ask("PING") == PONG
    check(caplog, coalesce, "lane u1: a fault in coalesce, the connection is closed")


async def test_while_a_connection_is_lent(upstream, monkeypatch, caplog):
    Faulty(monkeypatch, Leases, "_prepare", always, 1)
    async with serving(upstream) as coalesce:
        neighbour, guilty = await coalesce.connect(), await coalesce.connect()
        assert await guilty.is_closed("BLPOP", "list", "0.01")
        assert await neighbour.ask("BLPOP", "list", "0.01") in {b"*-1\r\n", b"_\r\n"}
    check(caplog, coalesce, f"client c2: {CLOSED}")


async def test_while_a_pinned_client_is_served(upstream, monkeypatch, caplog):
    async def faulty(*_):
        raise OwnFaultError

    async with serving(upstream) as coalesce:
        neighbour, guilty = await coalesce.connect(), await coalesce.connect()
        assert await neighbour.ask("PING") == PONG
        monkeypatch.setattr(Pin, "_pass", faulty)
        assert await guilty.ask("CLIENT", "TRACKING", "ON") == b"+OK\r\n"
        assert await guilty.is_closed()
        assert await neighbour.ask("PING") == PONG
    check(caplog, coalesce, f"client c2, pinned to u1: {CLOSED}")


@pytest.mark.parametrize(
    "what", [(Connection, "release"), (Pin, "__init__"), (Server, "_run_pin")], ids=lambda it: it[1]
)
async def test_while_a_client_is_pinned(upstream, monkeypatch, caplog, what):
    """Both its connections are closed, and its place and its lease are for somebody else."""
    async with serving(upstream, max_clients=2, max_leases=1) as coalesce:
        neighbour, guilty = await coalesce.connect(), await coalesce.connect()
        assert await neighbour.ask("PING") == PONG
        Faulty(monkeypatch, *what, always, 1)
        assert await guilty.ask("CLIENT", "TRACKING", "ON") == b"+OK\r\n"
        assert await guilty.is_closed()
        with upstream.connect() as control:
            while b" flags=t " in control.ask("CLIENT", "LIST"):
                assert await neighbour.ask("PING") == PONG
        late = await coalesce.connect()
        assert await late.ask("CLIENT", "TRACKING", "ON") == b"+OK\r\n"
        assert await late.ask("PING") == await neighbour.ask("PING") == PONG
    check(caplog, coalesce, f"client c2, pinned to u1: {CLOSED}")


async def test_while_it_is_looked_who_has_waited_for_too_long(upstream, monkeypatch, caplog):
    monkeypatch.setattr(server, "_AFTER_A_FAULT", 0.01)
    fault = Faulty(monkeypatch, Leases, "expire", always, 1)
    async with serving(upstream, max_leases=1, upstream_wait=0.5) as coalesce:
        blocked, waits = await coalesce.connect(), await coalesce.connect()
        await fault.raised.wait()
        assert await blocked.ask("SUBSCRIBE", "channel")
        assert (await waits.ask("BLPOP", "list", "0")).startswith(b"-ERR coalesce")  # it is looked again
        assert await waits.ask("PING") == PONG
    check(caplog, coalesce, "task expire: a fault in coalesce, it begins anew")


async def test_while_one_is_refused_a_connection_of_its_own(upstream, monkeypatch, caplog):
    Faulty(monkeypatch, Leases, "_refuse", always, 1)
    async with serving(upstream, max_leases=1, upstream_wait=0.3) as coalesce:
        first, guilty, neighbour = [await coalesce.connect() for _ in range(3)]
        assert await first.ask("SUBSCRIBE", "channel")
        await guilty.send("BLPOP", "list", "0")
        await neighbour.send("BLPOP", "list", "0")
        assert await guilty.is_closed()
        assert (await neighbour.ask()).startswith(b"-ERR coalesce")
    check(caplog, coalesce, f"client c2: {CLOSED}")


async def test_while_spare_connections_are_looked_at(upstream, monkeypatch, caplog):
    monkeypatch.setattr(server, "_AFTER_A_FAULT", 0.01)
    fault = Faulty(monkeypatch, Dialler, "expire", always, 2)
    async with serving(upstream) as coalesce:
        client = await coalesce.connect()
        await fault.raised.wait()
        while len(faults(caplog)) < 2:
            assert await client.ask("PING") == PONG
    check(caplog, coalesce, *["task expire: a fault in coalesce, it begins anew"] * 2)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ((Pulse, "silent_for"), "lane u0: a fault in coalesce, the connection is closed"),
        ((Exchange, "keep_alive"), "task watch: a fault in coalesce, it begins anew"),
    ],
    ids=["silent_for", "keep_alive"],
)
async def test_while_it_is_looked_whether_the_upstream_is_there(upstream, monkeypatch, caplog, what, said):
    monkeypatch.setattr(server, "_AFTER_A_FAULT", 0.01)
    fault = Faulty(monkeypatch, *what, always, 1)
    async with serving(upstream, upstream_silence=0.5) as coalesce:
        client = await coalesce.connect()
        await fault.raised.wait()
        assert await client.ask("PING") == PONG
    check(caplog, coalesce, said)


async def test_in_the_poller_itself(upstream, monkeypatch, caplog):
    monkeypatch.setattr(server, "_AFTER_A_FAULT", 0.01)
    async with serving(upstream) as coalesce:
        client = await coalesce.connect()
        assert await client.ask("PING") == PONG
        Faulty(monkeypatch, Exchange, "receive", always, 1)
        Faulty(monkeypatch, SharedClient, "fail", always, 1)
        await client.send("PING")
        assert await (await coalesce.connect()).ask("PING") == PONG
    check(caplog, coalesce, "task serve_sockets: a fault in coalesce, it begins anew")


@pytest.mark.parametrize("what", [(SharedClient, "__init__"), (Clients, "_welcome")], ids=["made", "welcomed"])
async def test_while_a_client_is_accepted(upstream, monkeypatch, caplog, what):
    async with serving(upstream) as coalesce:
        neighbour = await coalesce.connect()
        assert await neighbour.ask("PING") == PONG
        Faulty(monkeypatch, *what, always, 1)
        assert await (await coalesce.connect()).is_closed()
        assert await (await coalesce.connect()).ask("PING") == PONG
        assert await neighbour.ask("PING") == PONG
    check(caplog, coalesce, f"client c2: {CLOSED}")
    assert "3 connections" in coalesce.summary


async def test_while_a_client_joins_the_others(upstream, monkeypatch, caplog):
    """Its socket is in the poller already, and leaves that again."""
    async with serving(upstream) as coalesce:
        Faulty(monkeypatch, Exchange, "connect", always, 1)
        assert await (await coalesce.connect()).is_closed()
        assert await (await coalesce.connect()).ask("PING") == PONG
    check(caplog, coalesce, f"client c1: {CLOSED}")


async def test_in_a_listener(upstream, monkeypatch, caplog):
    welcome = Clients.welcome

    def faulty(clients, sock, where):
        if not faults(caplog):
            sock.close()
            raise OwnFaultError
        welcome(clients, sock, where)

    async with serving(upstream) as coalesce:
        monkeypatch.setattr(Clients, "welcome", faulty)
        assert await (await coalesce.connect()).is_closed()
        assert await (await coalesce.connect()).ask("PING") == PONG
    address = coalesce._address
    check(caplog, coalesce, f"listener {address}: a fault in coalesce, accepting goes on after a pause")


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"), "ours")


async def test_in_a_tls_handshake(upstream, authority, monkeypatch, caplog):
    own = authority.issue()
    Faulty(monkeypatch, Greetings, "may_step", always, 1)
    async with serving(upstream, tls_cert=str(own.certificate), tls_key=str(own.key)) as coalesce:
        guilty = await coalesce.connect()
        assert await guilty.is_closed("PING")
        stream = trio.SSLStream((await coalesce.connect())._stream, authority.trusting(), server_hostname="127.0.0.1")
        await stream.send_all(pack("PING"))
        assert await stream.receive_some() == PONG
    check(caplog, coalesce, f"TLS handshake with {guilty.address}: a fault in coalesce, it is given up")


async def test_while_a_tls_client_becomes_one(upstream, authority, monkeypatch, caplog):
    """Its handshake is over, so it is the client that is closed."""
    own = authority.issue()
    async with serving(upstream, tls_cert=str(own.certificate), tls_key=str(own.key)) as coalesce:
        Faulty(monkeypatch, Exchange, "connect", always, 1)
        for number in range(2):
            plain = (await coalesce.connect())._stream
            stream = trio.SSLStream(plain, authority.trusting(), server_hostname="127.0.0.1", https_compatible=True)
            await stream.send_all(pack("PING"))
            assert await stream.receive_some() == (PONG if number else b"")
    check(caplog, coalesce, f"client c1: {CLOSED}")


async def test_while_a_drain_ends_one_client(upstream, monkeypatch, caplog):
    """The drain goes on, and everybody else gets what is owed."""
    async with serving(upstream) as coalesce:
        for _ in range(3):
            assert await (await coalesce.connect()).ask("PING") == PONG
        Faulty(monkeypatch, ends, "_drain_session", always, 1)
    assert len(faults(caplog)) == 1
    assert re.fullmatch(rf"client c\d: {CLOSED}", faults(caplog)[0])
    check(caplog, coalesce, *faults(caplog))


@pytest.mark.parametrize("what", [(Clients, "read_last"), (Exchange, "drain")], ids=lambda it: it[1])
async def test_while_a_drain_begins(upstream, monkeypatch, caplog, what):
    monkeypatch.setattr(server, "_EXPIRE_EVERY", 0.05)
    async with serving(upstream, drain_timeout=0.5) as coalesce:
        assert await (await coalesce.connect()).ask("PING") == PONG
        Faulty(monkeypatch, *what, always, 1)
    assert faults(caplog) == ["drain: a fault in coalesce, it goes on"]
    assert "1 fault of its own" in coalesce.summary
