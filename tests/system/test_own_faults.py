"""Faults of coalesce itself, put there by the test: each ends what it happened to, is said once, and no more ends."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from coalesce.config import Config, TcpAddress, Upstream, parse_address
from coalesce.core.exchange import Exchange
from coalesce.core.lane import Lane
from coalesce.pin import Pin
from coalesce.server import Server

from .versions import OLDEST_AND_NEWEST
from .wire import bulk, pack

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from .processes import Executable, RedisServer


@pytest.fixture(scope="session", params=OLDEST_AND_NEWEST, ids=str)
def executable(request: pytest.FixtureRequest) -> Executable:
    """Whose faults they are, they would be before any server."""
    return request.param


PONG = b"+PONG\r\n"
DEADLINE = 10.0


class OwnFaultError(Exception):
    """What nobody thought of."""


@asynccontextmanager
async def serving(upstream: RedisServer) -> AsyncIterator[Callable[[], Awaitable[Client]]]:
    """coalesce in this process, where the test can reach into it; what is given connects a client."""
    config = Config(Upstream(parse_address(upstream.url)), listen=(TcpAddress("127.0.0.1", 0),))
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
            (address,) = await nursery.start(Server(config).serve)

            async def connect() -> Client:
                return Client(await stack.enter_async_context(await trio.open_tcp_stream(address.host, address.port)))

            yield connect
            nursery.cancel_scope.cancel()


class Client:
    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    async def ask(self, *arguments: str) -> bytes:
        if arguments:
            await self._stream.send_all(pack(*arguments))
        return bytes(await self._stream.receive_some())

    async def is_closed(self, *last: str) -> bool:
        """Whether the last request gets no reply, but the end."""
        return await self.ask(*last) == b""


def faults(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.exc_info]


async def test_while_a_client_is_served(upstream, monkeypatch, caplog):
    receive = Exchange.receive

    def faulty(exchange, session, data):
        if b"BOOM" in data:
            raise OwnFaultError
        receive(exchange, session, data)

    monkeypatch.setattr(Exchange, "receive", faulty)
    async with serving(upstream) as connect:
        neighbour, guilty = await connect(), await connect()
        assert await neighbour.ask("PING") == await guilty.ask("PING") == PONG
        assert await guilty.is_closed("ECHO", "BOOM")
        assert await neighbour.ask("PING") == PONG
        assert await (await connect()).ask("PING") == PONG
    assert faults(caplog) == ["client c2: a fault in coalesce, the client is closed"]


async def test_while_replies_are_handed_out(upstream, monkeypatch, caplog):
    receive = Lane.receive

    def faulty(lane, data, now):
        if b"BOOM" in data:
            raise OwnFaultError
        receive(lane, data, now)

    monkeypatch.setattr(Lane, "receive", faulty)
    async with serving(upstream) as connect:
        neighbour, guilty = await connect(), await connect()
        assert await neighbour.ask("PING") == PONG
        assert await guilty.is_closed("ECHO", "BOOM")
        assert await neighbour.ask("PING") == PONG  # on the next connection
    assert faults(caplog) == ["lane u0: a fault in coalesce, the connection is closed"]


async def test_while_a_batch_leaves(upstream, monkeypatch, caplog):
    take_batch = Lane.take_batch

    def faulty(lane, now):
        batch = take_batch(lane, now)
        if b"BOOM" in batch:
            raise OwnFaultError
        return batch

    monkeypatch.setattr(Lane, "take_batch", faulty)
    async with serving(upstream) as connect:
        neighbour, guilty = await connect(), await connect()
        assert await neighbour.ask("PING") == PONG
        assert await guilty.is_closed("ECHO", "BOOM")  # its request may have left, for all that is known
        assert await neighbour.ask("PING") == PONG
    assert faults(caplog) == ["lane u0: a fault in coalesce, the connection is closed"]


async def test_while_a_lane_is_connected(upstream, monkeypatch, caplog):
    connected = Exchange.connected

    def faulty(exchange, lane, link, round_trip):
        connected(exchange, lane, link, round_trip)
        if lane.identity.database == 5 and not faults(caplog):
            raise OwnFaultError

    monkeypatch.setattr(Exchange, "connected", faulty)
    async with serving(upstream) as connect:
        neighbour, guilty = await connect(), await connect()
        assert await neighbour.ask("PING") == PONG
        assert await guilty.ask("SELECT", "5") == b"+OK\r\n"  # it had not left, and goes with the next connection
        assert await guilty.ask("ECHO", "5") == bulk("5")
        assert await neighbour.ask("PING") == PONG
    assert faults(caplog) == ["lane u1: a fault in coalesce"]


async def test_while_a_pinned_client_is_served(upstream, monkeypatch, caplog):
    async def faulty(*_):
        raise OwnFaultError

    async with serving(upstream) as connect:
        neighbour, guilty = await connect(), await connect()
        assert await neighbour.ask("PING") == PONG
        monkeypatch.setattr(Pin, "_pass", faulty)
        assert await guilty.ask("CLIENT", "TRACKING", "ON") == b"+OK\r\n"
        assert await guilty.is_closed()
        assert await neighbour.ask("PING") == PONG
    assert faults(caplog) == ["a fault in coalesce, a pinned client is closed"]
