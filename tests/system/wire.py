"""One client's socket, and where a reply ends. Plain and slow on purpose: an oracle, not the product's twin."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from typing import Self

Address = tuple[str, int] | str

DEADLINE = 10.0  # seconds for one step; a sound step takes milliseconds, so this ends hangs alone

LINES = b"+-:_,#("
BULKS = b"$!="
AGGREGATES = b"*~>"
PAIRS = b"%|"


def pack(*arguments: str | bytes | int) -> bytes:
    """One request as clients write it: an array of bulk strings."""
    encoded = [argument if isinstance(argument, bytes) else str(argument).encode() for argument in arguments]
    return b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%b\r\n" % (len(item), item) for item in encoded)


def bulk(value: str | bytes) -> bytes:
    """A bulk string reply."""
    encoded = value if isinstance(value, bytes) else value.encode()
    return b"$%d\r\n%b\r\n" % (len(encoded), encoded)


def reply_end(data: bytes | bytearray, start: int = 0) -> int | None:
    """Where the reply that begins at `start` ends, None while it is incomplete (RESP2 and RESP3).

    An attribute (`|`) belongs to the reply after it; a push (`>`) counts as a reply of its own.
    """
    line_end = data.find(b"\r\n", start)
    if line_end < 0:
        return None
    kind, after = data[start], line_end + 2
    if kind in LINES:
        return after
    count = int(data[start + 1 : line_end])
    if kind in BULKS:
        end = after + count + 2 if count >= 0 else after  # $-1 is null and has no second line
        return end if end <= len(data) else None
    if kind not in AGGREGATES + PAIRS:
        raise ValueError(f"no reply begins with {bytes(data[start : start + 40])!r}")
    items = count * 2 if kind in PAIRS else count
    if kind == ord("|"):
        items += 1
    for _ in range(items):
        item_end = reply_end(data, after)
        if item_end is None:
            return None
        after = item_end
    return after


def split_replies(data: bytes | bytearray) -> tuple[list[bytes], bytes]:
    """Every complete reply, and the bytes of the one that has only begun."""
    replies, start = [], 0
    while start < len(data):
        end = reply_end(data, start)
        if end is None:
            break
        replies.append(bytes(data[start:end]))
        start = end
    return replies, bytes(data[start:])


class Wire:
    """A client made of a blocking socket; every step has a deadline and raises TimeoutError past it."""

    def __init__(self, address: Address, receive_buffer: int | None = None) -> None:
        """A small `receive_buffer` (bytes) has the peer's kernel refuse more, soon after this client stops reading."""
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.socket.settimeout(DEADLINE)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.received = bytearray()
        try:
            self.socket.connect(address)
        except OSError:
            self.socket.close()
            raise
        if family == socket.AF_INET:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def send_unless_closed(self, data: bytes) -> None:
        """For bad input: the peer may close in the middle of it, and what it had to say is still to be read."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(data)

    def half_close(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def ask(self, *arguments: str | bytes | int) -> bytes:
        """Write one request, wait for its reply: what a client does that doesn't pipeline."""
        self.send(pack(*arguments))
        return self.reply()

    def reply(self) -> bytes:
        """The next complete reply, raw."""
        until = time.monotonic() + DEADLINE
        while (end := reply_end(self.received)) is None:
            if time.monotonic() > until:
                raise TimeoutError(f"no complete reply, only {bytes(self.received[:200])!r}")
            self._receive()
        reply = bytes(self.received[:end])
        del self.received[:end]
        return reply

    def replies(self, count: int) -> list[bytes]:
        """The next `count` replies; scans each once, so it does for ten thousand of them."""
        replies: list[bytes] = []
        while True:
            more, rest = split_replies(self.received)
            replies += more
            self.received[:] = rest
            if len(replies) >= count:
                break
            self._receive()
        self.received[:0] = b"".join(replies[count:])
        return replies[:count]

    def rest(self) -> bytes:
        """Everything up to the peer's close, be it a FIN or a reset."""
        until = time.monotonic() + DEADLINE
        while time.monotonic() < until:
            try:
                data = self.socket.recv(1 << 20)
            except ConnectionResetError:
                data = b""
            if not data:
                return self._take()
            self.received += data
        raise TimeoutError("the peer goes on and on")

    def look(self) -> tuple[bytes, bool]:
        """What has arrived until now, without waiting; and whether the peer has closed."""
        self.socket.setblocking(False)
        closed = False
        try:
            while data := self.socket.recv(1 << 20):
                self.received += data
            closed = True
        except BlockingIOError:
            pass
        except ConnectionResetError:
            closed = True
        self.socket.settimeout(DEADLINE)
        return self._take(), closed

    def _receive(self) -> None:
        data = self.socket.recv(1 << 20)
        if not data:
            raise EOFError(f"closed after {bytes(self.received[:200])!r}")
        self.received += data

    def _take(self) -> bytes:
        taken = bytes(self.received)
        self.received.clear()
        return taken


class TlsWire(Wire):
    """A client over TLS. Its handshake is over when it has been made; it raises OSError when that fails."""

    def __init__(self, address: Address, context: ssl.SSLContext, name: str = "127.0.0.1") -> None:
        super().__init__(address)
        self.socket = context.wrap_socket(self.socket, server_hostname=name)

    def half_close(self) -> None:
        """By a FIN alone: Python's TLS has no way to send a close_notify and read on."""
        super(ssl.SSLSocket, self.socket).shutdown(socket.SHUT_WR)

    def certificate(self) -> bytes:
        """The peer's, in DER."""
        assert isinstance(self.socket, ssl.SSLSocket)
        found = self.socket.getpeercert(binary_form=True)
        assert found is not None
        return found
