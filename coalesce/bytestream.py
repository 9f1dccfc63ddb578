"""An async view of a socket that does not block, plain or TLS: for whoever has a task of his own."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from coalesce.tls import TlsSocket

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

_CHUNK = 64 * 1024


class ByteStream:
    """Owns the socket, until whoever takes `sock` does. One task may receive while another sends."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    async def receive_some(self) -> bytes:
        """What is there, once something is; b"" at the end. Raises OSError."""
        await trio.lowlevel.checkpoint()  # a source that is never empty must leave the others their turn
        while True:
            try:
                return self.sock.recv(_CHUNK)
            except (BlockingIOError, InterruptedError):
                await trio.lowlevel.wait_readable(self.sock)

    async def send_all(self, data: bytes) -> None:
        """Raises OSError. Who is cancelled meanwhile can't know how much has left."""
        await trio.lowlevel.checkpoint()
        rest = memoryview(data)
        while rest:
            with suppress(BlockingIOError, InterruptedError):
                rest = rest[self.sock.send(rest) :]
            if rest:
                await trio.lowlevel.wait_writable(self.sock)

    def send_eof(self) -> None:
        """Says that no more is sent; what the peer sends can still be received. Raises OSError."""
        if isinstance(self.sock, TlsSocket):
            self.sock.end_output()
        else:
            self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """No task may be waiting for it any more."""
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
