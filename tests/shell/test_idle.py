"""A connection that nobody uses any more is closed after a while, with a clock of the test's own."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, cast

import hiredis
import trio
import trio.testing

from coalesce.core.exchange import Exchange
from coalesce.core.identity import Identity
from coalesce.core.session import SessionState
from coalesce.dial import Dialled, Dialler
from coalesce.poller import Poller
from coalesce.upstream import _IDLE, Keeper
from tests.core.fakes import RecordingPeer
from tests.core.twins import canonical

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from coalesce.core.lane import Lane

BASE = Identity(None, None, 0, 2)
NOTHING = b"*-1\r\n"  # to BLPOP


class Upstream:
    """Dials, and serves what has been dialled. Knows ECHO and BLPOP, and takes whatever else."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.dialled = 0
        self.standing = 0

    async def dial_patiently(self, identity: Identity, name: bytes) -> Dialled:
        del identity, name
        self.dialled += 1
        near, far = socket.socketpair()
        near.setblocking(False)
        self._nursery.start_soon(self._serve, trio.socket.from_stdlib_socket(far))
        return Dialled(near, 0.0, True, None, "", None, False, False)

    async def _serve(self, sock: trio.socket.SocketType) -> None:
        self.standing += 1
        reader = hiredis.Reader()
        with sock:
            while data := await sock.recv(1 << 16):
                reader.feed(data)
                while request := reader.gets():
                    match request:
                        case [b"ECHO", text]:
                            await sock.send(b"$%d\r\n%b\r\n" % (len(text), text))
                        case [b"BLPOP", *_]:
                            await sock.send(NOTHING)
                        case _:
                            await sock.send(b"+OK\r\n")
        self.standing -= 1


@contextlib.asynccontextmanager
async def exchange_and_upstream() -> AsyncIterator[tuple[Exchange, Upstream]]:
    async with trio.open_nursery() as nursery:
        upstream = Upstream(nursery)
        poller = Poller()

        def open_lane(lane: Lane) -> None:
            if lane.exclusive:
                nursery.start_soon(keeper.keep, lane)

        exchange = Exchange(BASE, open_lane)
        keeper = Keeper(exchange, poller, cast("Dialler", upstream), 1.0)
        nursery.start_soon(poller.run, exchange.flush)
        yield exchange, upstream
        nursery.cancel_scope.cancel()
    poller.close()


async def settled() -> None:
    """All have done what they can at this time; more than one turn, as sockets lie between them."""
    for _ in range(10):
        await trio.testing.wait_all_tasks_blocked()


async def test_a_lease_that_nobody_uses_is_closed_after_a_while(mock_clock: trio.testing.MockClock) -> None:
    """Once between two looks is enough to keep it."""
    async with exchange_and_upstream() as (exchange, upstream):
        peer = RecordingPeer()
        session = exchange.connect(peer)

        async def block() -> None:
            exchange.receive(session, canonical([b"BLPOP", b"k", b"1"]))
            exchange.flush(0.0)
            await settled()
            assert (peer.written, session.state) == (NOTHING, SessionState.FLOWING)
            peer.written = b""

        async def pass_time(looks: float) -> int:
            """How many connections stand afterwards."""
            mock_clock.jump(looks * _IDLE)
            await settled()
            assert len(exchange.leases.of) == upstream.standing
            return upstream.standing

        await block()
        assert await pass_time(0.9) == 1
        await block()
        assert await pass_time(0.2) == 1  # looked at, and it had been used
        assert await pass_time(0.8) == 1
        await block()
        assert await pass_time(0.2) == 1
        assert upstream.dialled == 1
        assert await pass_time(0.8) == 1
        assert await pass_time(0.2) == 0
        await block()
        assert upstream.dialled == 2
