"""Where a target listens, and how to speak to it."""

import socket
import ssl
import struct
from dataclasses import dataclass
from pathlib import Path

from .errors import BenchError

_TIMEOUT_SECONDS = 10


@dataclass(frozen=True)
class Tcp:
    """A port on loopback."""

    port: int

    def arguments(self) -> list[str]:
        """As redis-benchmark takes it."""
        return ["-h", "127.0.0.1", "-p", str(self.port)]

    def connect(self) -> socket.socket:
        connection = _connected(socket.socket(), ("127.0.0.1", self.port))
        # As every Redis client does; else Nagle's algorithm would be what is measured.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


@dataclass(frozen=True)
class Unix:
    """A unix socket."""

    path: Path

    def arguments(self) -> list[str]:
        return ["-s", str(self.path)]

    def connect(self) -> socket.socket:
        return _connected(socket.socket(socket.AF_UNIX), str(self.path))


@dataclass(frozen=True)
class Tls:
    """A port on loopback that speaks TLS, with a certificate of the authority in the file."""

    port: int
    authority: Path

    def arguments(self) -> list[str]:
        return [*Tcp(self.port).arguments(), "--tls", "--cacert", str(self.authority)]

    def connect(self) -> socket.socket:
        context = ssl.create_default_context(cafile=str(self.authority))
        return context.wrap_socket(Tcp(self.port).connect(), server_hostname="127.0.0.1")


Address = Tcp | Unix | Tls


def _connected(connection: socket.socket, to: tuple[str, int] | str) -> socket.socket:
    """A blocking socket whose deadline is the kernel's: with `settimeout` Python would poll before each recv."""
    deadline = struct.pack("ll", _TIMEOUT_SECONDS, 0)  # a timeval
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, deadline)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, deadline)  # for connect as well
    try:
        connection.connect(to)
    except OSError:
        connection.close()
        raise
    return connection


def ask(connection: socket.socket, request: bytes, reply_length: int) -> bytes:
    """Sends one request and returns its reply, whose length the caller knows. BenchError if it does not come whole."""
    try:
        connection.sendall(request)
        reply = connection.recv(reply_length)
        while len(reply) < reply_length:
            more = connection.recv(reply_length - len(reply))
            if not more:
                raise BenchError(f"{request!r} was answered with {reply!r} and a closed connection")
            reply += more
    except OSError as error:
        raise BenchError(f"{request!r} was not answered: {error}") from error
    return reply


def answers(address: Address) -> bool:
    """Whether a request gets through to the upstream and its reply back. GET: some proxies answer PING themselves."""
    try:
        with address.connect() as connection:
            return ask(connection, b"*2\r\n$3\r\nGET\r\n$13\r\nbench:nothing\r\n", 5) == b"$-1\r\n"
    except (OSError, BenchError):
        return False
