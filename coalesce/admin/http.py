"""The admin's HTTP: parsed and served by hypercorn, on trio, and bounded here. What is asked, routes.py answers.

Its tasks share the thread with the poller, so what they do is short.
"""

from __future__ import annotations

import logging
import socket
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import hypercorn.config
import trio
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import wrap_app

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from hypercorn.events import Event
    from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope

    from coalesce.admin.routes import Admin

log = logging.getLogger("coalesce.http")
log.setLevel(logging.WARNING)  # hypercorn says where it listens, and so do we

# Milliseconds until a connection whose other end takes nothing is closed, by the kernel: hypercorn would wait for ever.
_NEVER_READS = 5000
# Connections at a time. One more takes the place of the oldest: a probe and a scrape are soon over, who wants hundreds
# is not to keep them out, and descriptors are for clients. (hypercorn closes idle ones after 5 s.)
_CONNECTIONS = 32
# ... that wait to be accepted; and those accepted in a second. Whoever opens thousands keeps out others while he does,
# but not afterwards, and leaves the thread to clients.
_BACKLOG = 64
_ACCEPTED = 100.0
# Requests in a second, of all together: the dearest take 4 ms each.
_ANSWERED = 50.0
# Seconds for which a pace is not kept, after as long without anybody: a page loads several files at once.
_AT_ONCE = 0.5
# Seconds without accepting after an error, such as no descriptor being left. (That is said where clients are accepted.)
_PAUSE = 0.1
# Seconds that a request under way may take once coalesce has ended.
_LAST_REQUEST = 1.0


@asynccontextmanager
async def serving(admin: Admin, listeners: list[socket.socket]) -> AsyncIterator[None]:
    """Within it, the admin answers. Owns the listeners."""
    connections = _Connections(admin)
    raised: Exception | None = None
    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as accepting:
            accepting.start_soon(admin.sample)
            for sock in listeners:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _NEVER_READS)  # of whoever is accepted
                sock.listen(_BACKLOG)
                accepting.start_soon(connections.accept, sock, nursery)
            try:
                yield
            except Exception as problem:  # noqa: BLE001 (raised below, by itself, not as one of a group)
                raised = problem
            accepting.cancel_scope.cancel()
        await connections.end()
        nursery.cancel_scope.cancel()
    if raised is not None:
        raise raised


class _Pace:
    """So many a second, one after the other."""

    def __init__(self, a_second: float) -> None:
        self._takes = 1 / a_second
        self._due = 0.0
        self._turn = trio.Lock()  # who waits longest is next

    async def keep(self) -> None:
        """Returns when it is one's turn."""
        async with self._turn:
            await trio.sleep_until(self._due)
            self._due = max(self._due, trio.current_time() - _AT_ONCE) + self._takes


class _Connections:
    """Who has connected. hypercorn serves each; whom to let in, and the end of all, are decided here.

    (`hypercorn.trio.serve` does both, too. It lets in any number, and waits at its end for those who read nothing.)
    """

    def __init__(self, admin: Admin) -> None:
        self._admin = admin
        self._accepted, self._answered = _Pace(_ACCEPTED), _Pace(_ANSWERED)
        self._app = wrap_app(self._answer, 0, "asgi")
        self._config = hypercorn.config.Config()
        self._config.errorlog = log
        self._config.include_server_header = False
        self._context = WorkerContext(None)
        self._streams: dict[trio.SocketStream, None] = {}  # the oldest first
        self._left = trio.lowlevel.ParkingLot()

    async def accept(self, sock: socket.socket, nursery: trio.Nursery) -> None:
        """Accepts until cancelled; closes the listener then."""
        async with trio.SocketListener(trio.socket.from_stdlib_socket(sock)) as listener:
            while True:
                await self._accepted.keep()
                try:
                    stream = await listener.accept()
                except OSError:
                    await trio.sleep(_PAUSE)
                    continue
                if len(self._streams) >= _CONNECTIONS:
                    self._close(next(iter(self._streams)))
                self._streams[stream] = None
                nursery.start_soon(self._serve, stream)

    async def _answer(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        await self._answered.keep()
        await self._admin.app(scope, receive, send)

    async def _serve(self, stream: trio.SocketStream) -> None:
        try:
            # (Without TLS, a plain stream is what it takes.)
            await _Hypercorn(self._app, self._config, self._context, ConnectionState({}), stream)  # type: ignore[arg-type]
        except Exception as problem:  # noqa: BLE001 (what garbage comes to in hypercorn; our own are caught in `app`)
            logging.getLogger("coalesce").debug("admin: a connection is closed: %s", type(problem).__name__)
        finally:
            self._close(stream)

    def _close(self, stream: trio.SocketStream) -> None:
        """At once, also in the middle of a write; whoever waits for that is told."""
        stream.socket.close()
        self._streams.pop(stream, None)
        self._left.unpark_all()

    async def end(self) -> None:
        """Requests under way may take a moment more."""
        await self._context.terminated.set()
        with trio.move_on_after(_LAST_REQUEST):
            while self._streams:
                await self._left.park()
        for stream in list(self._streams):
            self._close(stream)


class _Hypercorn(TCPServer):
    """One connection of HTTP/1.1.

    HTTP/2 would let each have a hundred requests at a time. Probes, scrapes and browsers speak it with TLS alone.
    """

    async def _read_data(self) -> None:
        self.protocol.protocol._check_protocol = _no_other  # type: ignore[method-assign, union-attr]  # noqa: SLF001 (no other way)
        await super()._read_data()

    async def protocol_send(self, event: Event) -> None:
        """Nothing is sent while the connection is closed, by another task of hypercorn's: that tells all who wait.

        (trio calls that a bug, and hypercorn logs it.)
        """
        with suppress(trio.BusyResourceError):
            await super().protocol_send(event)


async def _no_other(request: object) -> None:
    """What hypercorn would change to, if it was asked for: a server may ignore that."""
