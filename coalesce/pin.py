"""A pinned client: a connection of its own for good, two tasks, ordinary trio.

The bytes pass as they are, in both directions. Whatever a client does here, it does to nobody else.
"""

from __future__ import annotations

import logging
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import trio

from coalesce.bytestream import ByteStream
from coalesce.pulse import Pulse
from coalesce.tally import Closed, Tally

if TYPE_CHECKING:
    import socket

    from coalesce.core.lane import Lane
    from coalesce.faults import Told
    from coalesce.memory import Memory

log = logging.getLogger("coalesce")


class Pinned:
    """Who it is about, for the log: a client, and the lane that was lent to it for good."""

    def __init__(self, client: Told, lane: Lane) -> None:
        self._name = f"{client}, pinned to u{lane.number}"
        self.ids = client.ids | lane.ids

    def __str__(self) -> str:
        return self._name


class Pin:
    """One client with its own upstream connection. Owns both sockets. `pinned` is for logs."""

    def __init__(  # noqa: PLR0913, PLR0917 (two ends, and what has not reached them)
        self,
        pinned: Told,
        client: socket.socket,
        unsent: bytes,
        upstream: socket.socket,
        pending: bytes,
        memory: Memory,
        tally: Tally | None = None,
    ) -> None:
        self._pinned = pinned
        self._client = ByteStream(client)
        self._unsent = unsent  # replies that the client did not take yet
        self._upstream = ByteStream(upstream)
        self._pending = pending  # requests that the upstream did not get yet
        self._input = trio.CancelScope()
        self._all = trio.CancelScope()
        self.pulse = Pulse(upstream)
        self.client_pulse = Pulse(client)
        self._memory = memory
        self.tally = Tally() if tally is None else tally
        self._count()

    def __str__(self) -> str:
        return str(self._pinned)

    @property
    def ids(self) -> dict[str, str]:
        return self._pinned.ids

    async def run(self) -> None:
        """Serves the client until either side ends."""
        with self._client, self._upstream, closing(self), self._all:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._forward_requests)
                with suppress(OSError):  # either side left
                    await self._client.send_all(self._unsent)
                    self._unsent = b""
                    self._count()
                    await self._pass(self._upstream, self._client)
                # Without replies to come there is nothing left to do for this client.
                nursery.cancel_scope.cancel()

    async def _forward_requests(self) -> None:
        with suppress(OSError):
            self.tally.sent += len(self._pending)
            await self._upstream.send_all(self._pending)
            self._pending = b""
            self._count()
            with self._input:
                await self._pass(self._client, self._upstream)
            # The upstream sees that no more is sent: it answers what it has, gives up what blocks, and closes.
            self._upstream.send_eof()

    async def _pass(self, source: ByteStream, sink: ByteStream) -> None:
        with suppress(OSError):
            while data := await source.receive_some():
                self.took(data, from_upstream=source is self._upstream)
                await sink.send_all(data)
        self.over(from_upstream=source is self._upstream)

    def took(self, data: bytes, *, from_upstream: bool) -> None:
        """Bytes from one side are about to go to the other."""
        if from_upstream:
            self.tally.received += len(data)
        else:
            self.tally.sent += len(data)

    def over(self, *, from_upstream: bool) -> None:
        """One side says no more, or takes no more of the other: a tracer wants to know."""

    def give_up(self) -> None:
        """Closes both sides at once."""
        self._all.cancel()

    def evict(self, what: str) -> None:
        """As `Holder`."""
        log.warning("%s is closed: %s", self, what, extra=self.ids)
        self.tally.closed[Closed.MEMORY] += 1
        self.give_up()
        self.close()

    def close(self) -> None:
        """Holds nothing any more."""
        self._unsent = self._pending = b""
        self._count()

    def _count(self) -> None:
        """(What has been sent of either is kept until all has.)"""
        self._memory.hold(self, len(self._unsent) + len(self._pending))

    def drain(self) -> None:
        """Goes on as if the client had sent no more."""
        self._input.cancel()
