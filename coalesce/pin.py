"""A pinned client: a connection of its own for good, two tasks, ordinary trio.

The bytes pass as they are, in both directions. Whatever a client does here, it does to nobody else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    import socket

_CHUNK = 64 * 1024


class Pin:
    """One client with its own upstream connection. Owns both sockets."""

    def __init__(self, client: socket.socket, unsent: bytes, upstream: socket.socket, pending: bytes) -> None:
        self._client = _stream(client)
        self._unsent = unsent  # replies that the client did not take yet
        self._upstream = _stream(upstream)
        self._pending = pending  # requests that the upstream did not get yet
        self._input = trio.CancelScope()

    async def run(self) -> None:
        """Serves the client until either side ends."""
        async with self._client, self._upstream, trio.open_nursery() as nursery:
            nursery.start_soon(self._forward_requests)
            try:
                await self._client.send_all(self._unsent)
                await self._pass(self._upstream, self._client)
            except trio.BrokenResourceError:
                pass  # the client left
            # Without replies to come there is nothing left to do for this client.
            nursery.cancel_scope.cancel()

    async def _forward_requests(self) -> None:
        try:
            await self._upstream.send_all(self._pending)
            self._pending = b""
            with self._input:
                await self._pass(self._client, self._upstream)
            # The upstream sees that no more is sent: it answers what it has, gives up what blocks, and closes.
            await self._upstream.send_eof()
        except trio.BrokenResourceError:
            return

    async def _pass(self, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        try:
            while data := await source.receive_some(_CHUNK):
                await sink.send_all(data)
        except trio.BrokenResourceError:
            return

    def drain(self) -> None:
        """Goes on as if the client had sent no more."""
        self._input.cancel()


def _stream(sock: socket.socket) -> trio.SocketStream:
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))
