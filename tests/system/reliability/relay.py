"""A relay between coalesce and its upstream, on loopback: it reorders nothing, but may cut, delay and fall silent.

It runs trio in a thread of its own. Each connection is a `Link` with two `Way`s; a test sets their attributes, which
the relay looks at whenever something arrives.
"""

from __future__ import annotations

import contextlib
import math
import random
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import trio

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_SELECT = re.compile(rb"(?i)select\r\n\$\d+\r\n(\d+)\r\n")
_HANDSHAKE = 200  # bytes: what selects a database begins before
_CHUNK = 64 * 1024
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close sends a reset
_QUEUED = 100_000  # pieces on their way


@dataclass
class Way:
    """One direction of a connection."""

    left: float = math.inf  # bytes that still pass; then the connection is cut
    passed: int = 0
    queued: int = 0  # pieces on their way


@dataclass(eq=False)
class Link:
    """One connection through the relay."""

    begun: float = field(default_factory=time.monotonic)
    database: int = 0  # that it has selected in the handshake
    requests: Way = field(default_factory=Way)
    replies: Way = field(default_factory=Way)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Relay:
    """Listens on `address`; leads to `target`."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.links: list[Link] = []  # those that stand, the newest last
        self.delay = 0.0  # seconds, each way
        self.jitter = (0.0, 0.0)  # seconds more for each piece: from, to
        self.by_reset = False  # how a connection is cut
        self.begun: list[float] = []  # when each connection was
        # The next connections': after so many bytes of replies, the handshake's included.
        self.cuts_to_come: list[int] = []
        self.target = target  # of the next connection
        self._audible = trio.Event()
        self._audible.set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.address: tuple[str, int] = self._listener.getsockname()
        self.url = f"127.0.0.1:{self.address[1]}"
        self._scope = trio.CancelScope()
        self._token: trio.lowlevel.TrioToken | None = None
        self._began = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._run,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._began.wait(5)
        return self

    def __exit__(self, kind: type[BaseException] | None, it: BaseException | None, at: TracebackType | None) -> None:
        self._do(self._scope.cancel)
        self._thread.join(5)

    def link(self, database: int) -> Link:
        """The newest connection of a database."""
        return next(link for link in reversed([*self.links]) if link.database == database)

    def cut(self, links: list[Link] | None = None) -> None:
        """All connections, or these, now."""
        self._do(lambda: [link.scope.cancel() for link in (self.links if links is None else links)])

    def cut_within(self, at_most: int, chance: random.Random) -> None:
        """Each connection, after so many bytes more at the most, of its requests or its replies."""

        def arm() -> None:
            for link in self.links:
                chance.choice((link.requests, link.replies)).left = chance.randrange(at_most + 1)

        self._do(arm)

    def fall_silent(self) -> None:
        """Nothing passes any more, and nothing is closed; new connections are accepted, and as silent."""

        def silence() -> None:
            self._audible = trio.Event()

        self._do(silence)

    def speak(self) -> None:
        """What was held back passes, and everything after it."""
        self._do(self._audible.set)

    def _do(self, act: Callable[[], object]) -> None:
        assert self._token is not None
        trio.from_thread.run_sync(act, trio_token=self._token)

    async def _run(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._began.set()
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._listener))
        with self._scope:
            await trio.serve_listeners(self._serve, [listener])

    async def _serve(self, near: trio.SocketStream) -> None:
        link = Link()
        if self.cuts_to_come:
            link.replies.left = self.cuts_to_come.pop(0)
        self.links.append(link)
        self.begun.append(link.begun)
        try:
            await self._lead(near, link)
        finally:
            await trio.aclose_forcefully(near)
            self.links.remove(link)

    async def _lead(self, near: trio.SocketStream, link: Link) -> None:
        with contextlib.suppress(OSError, trio.BrokenResourceError):
            async with contextlib.AsyncExitStack() as ends:
                streams = [await ends.enter_async_context(near)]
                with link.scope:  # a cut ends an attempt to connect, too: a busy upstream may let that wait for long
                    far = await ends.enter_async_context(await trio.open_tcp_stream(*self.target))
                    streams.append(far)
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._pass, near, far, link, link.requests)
                        nursery.start_soon(self._pass, far, near, link, link.replies)
                if self.by_reset:
                    for stream in streams:
                        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    async def _pass(self, source: trio.SocketStream, sink: trio.SocketStream, link: Link, way: Way) -> None:
        """Ends the link when either side does, or when no more bytes may pass."""
        into, out = trio.open_memory_channel[tuple[float, bytes]](_QUEUED)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._deliver, out, sink, link, way)
            due = 0.0
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                while data := await source.receive_some(_CHUNK):
                    if way is link.requests and way.passed < _HANDSHAKE and (chosen := _SELECT.search(data)):
                        link.database = int(chosen[1])
                    if way.queued or self.delay or self.jitter[1] or not self._audible.is_set():
                        due = max(due, trio.current_time() + self.delay + random.uniform(*self.jitter))
                        way.queued += 1
                        await into.send((due, data))
                    elif not await self._put(data, sink, way):
                        break
            into.close()

    async def _deliver(
        self, out: trio.MemoryReceiveChannel[tuple[float, bytes]], sink: trio.SocketStream, link: Link, way: Way
    ) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for due, data in out:
                if due > trio.current_time():
                    await trio.sleep_until(due)
                await self._audible.wait()
                if not await self._put(data, sink, way):
                    break
                way.queued -= 1
        link.scope.cancel()

    async def _put(self, data: bytes | bytearray, sink: trio.SocketStream, way: Way) -> bool:
        """Passes as many bytes as may pass; whether there may be more.

        That is so by what was allowed before: whoever has received these may change it at once, for those to come.
        """
        piece = data if way.left >= len(data) else data[: int(way.left)]
        way.left -= len(piece)
        way.passed += len(piece)
        there_may_be_more = len(piece) == len(data) and way.left > 0
        await sink.send_all(piece)
        return there_may_be_more
