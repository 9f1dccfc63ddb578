"""A leased client: a connection of its own, two tasks, ordinary trio.

The bytes pass as they are, in both directions. Whatever a client does here, it does to nobody else.
"""

from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING

import trio

from coalesce.core.commands import BLOCKING
from coalesce.core.errors import ClientError, unavailable
from coalesce.core.resp import LargeRequestError, RequestReader
from coalesce.upstream import Refused, UnavailableError, dial_patiently

if TYPE_CHECKING:
    from coalesce.config import Config
    from coalesce.core.lane import Identity

log = logging.getLogger("coalesce")

_CHUNK = 64 * 1024


class Lease:
    """One client with its own upstream connection. Owns the client's socket."""

    def __init__(self, sock: socket.socket, identity: Identity, name: bytes, pending: bytes, unsent: bytes) -> None:
        self._client = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._identity = identity
        self._name = name
        self._pending = pending  # requests that were read and not forwarded
        self._unsent = unsent  # replies that the client did not take yet
        self._upstream: trio.SocketStream | None = None
        self._input = trio.CancelScope()

    async def run(self, config: Config) -> None:
        """Serves the client until either side ends."""
        async with self._client:
            try:
                if self._unsent:
                    await self._client.send_all(self._unsent)
                reply = await self._dial(config)
                if reply is not None:
                    await self._client.send_all(reply)
                    return
                if self._has_left_a_blocking_request():
                    assert self._upstream is not None
                    await self._upstream.aclose()
                    return
            except trio.BrokenResourceError:
                return  # the client left
            assert self._upstream is not None
            async with self._upstream, trio.open_nursery() as nursery:
                nursery.start_soon(self._forward_requests, self._upstream)
                await self._pass(self._upstream, self._client)
                # Without replies to come there is nothing left to do for this client.
                nursery.cancel_scope.cancel()

    async def _dial(self, config: Config) -> bytes | None:
        """Connects; the reply for the client when that can't be done."""
        # CLIENT SETNAME refuses nothing that the session's name could be.
        try:
            dialled = await dial_patiently(config, self._identity, self._name)
        except Refused as refusal:
            return refusal.reply
        except UnavailableError as problem:
            return unavailable(str(problem))
        self._upstream = trio.SocketStream(trio.socket.from_stdlib_socket(dialled.sock))
        return None

    def _has_left_a_blocking_request(self) -> bool:
        """Whether the client has left while we dialled, and what it asked for would now pop an element for nobody."""
        reader = RequestReader()
        reader.feed(self._pending)
        try:
            request = reader.next_request(authenticated=True)
        except (ClientError, LargeRequestError):
            return False  # the upstream says what is wrong with it
        return request is not None and request[0].upper() in BLOCKING and self._client_is_gone()

    def _client_is_gone(self) -> bool:
        with socket.socket(fileno=os.dup(self._client.socket.fileno())) as look:
            try:
                return not look.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except OSError:
                return True

    async def _forward_requests(self, upstream: trio.SocketStream) -> None:
        pending, self._pending = self._pending, b""
        try:
            await upstream.send_all(pending)
            with self._input:
                await self._pass(self._client, upstream)
            # The upstream sees that no more is sent: it answers what it has, gives up what blocks, and closes.
            await upstream.send_eof()
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
