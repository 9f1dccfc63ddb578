"""Listening sockets: opened, closed again, and who can reach them. Clients come there, and who asks for figures."""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coalesce.config import TcpAddress, UnixAddress
from coalesce.keepalive import look_after_clients

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coalesce.config import Address

log = logging.getLogger("coalesce")

# Connections that may wait to be accepted. Redis: tcp-backlog 511, which is too few for thousands that reconnect.
_BACKLOG = 4096
# What says that an address is none of this host's: `localhost` is ::1 as well, also where there is no IPv6.
_NOT_OF_THIS_HOST = frozenset((errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT))
# Ports that the system may pick for the first address of a name, until one is free on the others, too.
_PORTS_TRIED = 20


def is_loopback(address: TcpAddress) -> bool:
    """Whether only this host can reach it, by any of its addresses. (A name may get one later.) Raises OSError."""
    return all(ip(where[0]).is_loopback for *_, where in _resolve(address))


def is_of_this_host(address: Address) -> bool:
    """Whether only processes of this host reach an upstream there. (One that has no address is reached by nobody.)"""
    if isinstance(address, UnixAddress):
        return True
    try:
        found = _resolve(address)
    except OSError:
        return False
    # Who connects to 0.0.0.0 or :: connects to loopback.
    return all(ip(where[0]).is_loopback or ip(where[0]).is_unspecified for *_, where in found)


def ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """What it leads to: IPv4, where that is written as IPv6."""
    found = ipaddress.ip_address(text)
    return (found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None) or found


def _resolve(address: TcpAddress) -> Sequence[tuple[int, int, int, str, Any]]:
    return socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)


def open_listeners(
    address: Address, socket_mode: int | None = None, silence: float = 30.0
) -> tuple[list[socket.socket], Address]:
    """The listening sockets of an address, and what it really is (port 0 picks one, for all of them). Raises OSError.

    A name has a socket for each of its addresses: clients that are given the name try all of them, in whatever order,
    and somebody else may come to listen where coalesce does not. `socket_mode` is that of the file of a unix socket,
    `silence` as for `Clients`.
    """
    if isinstance(address, UnixAddress):
        return [_open_unix_listener(address, socket_mode)], address
    attempts = 1 if address.port else _PORTS_TRIED
    while True:
        attempts -= 1
        try:
            opened = _open_tcp_listeners(address, silence)
        except OSError as problem:
            if problem.errno != errno.EADDRINUSE or not attempts:
                raise
        else:
            return opened, TcpAddress(address.host, opened[0].getsockname()[1])


def _open_tcp_listeners(address: TcpAddress, silence: float) -> list[socket.socket]:
    """On one port. An address that this host does not have is passed over, if there is another."""
    port = address.port
    missing: list[OSError] = []
    opened: list[socket.socket] = []
    with ExitStack() as undo:
        for family, kind, protocol, _, (host, _, *more) in dict.fromkeys(_resolve(address)):
            try:
                sock = _open_tcp_listener((family, kind, protocol), (host, port, *more), silence)
            except OSError as problem:
                told = problem if host == address.host else OSError(problem.errno, f"{problem.strerror} ({host})")
                if problem.errno not in _NOT_OF_THIS_HOST:
                    raise told from None
                missing.append(told)
            else:
                opened.append(undo.enter_context(sock))
                port = sock.getsockname()[1]
        if not opened:
            raise missing[0]
        undo.pop_all()
    for each in missing:
        log.info("%s: an address is passed over: %s", address, each.strerror)
    return opened


def _open_tcp_listener(kind: tuple[int, int, int], where: tuple[Any, ...], silence: float) -> socket.socket:
    sock = socket.socket(*kind)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        look_after_clients(sock, silence)  # before the first can come
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def _open_unix_listener(address: UnixAddress, mode: int | None) -> socket.socket:
    sock = _UnixListener(socket.AF_UNIX)
    try:
        try:
            _bind(sock, address.path, mode)
        except OSError as problem:
            if problem.errno != errno.EADDRINUSE or _somebody_listens(address.path):
                raise
            Path(address.path).unlink()  # left behind by a run that was killed
            _bind(sock, address.path, mode)
        sock.file = _file(address.path)
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def _bind(sock: socket.socket, path: str, mode: int | None) -> None:
    """The file has the mode from its first moment: bind(2) takes it from the umask."""
    if mode is None:
        sock.bind(path)
        return
    before = os.umask(0o777 & ~mode)
    try:
        sock.bind(path)
    finally:
        os.umask(before)


def _somebody_listens(path: str) -> bool:
    """Whether the address is in use for real, or not ours to take: nothing but a dead socket is ever removed."""
    if not Path(path).is_socket():
        return True
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
        return True


class _UnixListener(socket.socket):
    """Knows its file, which somebody may have removed, and another process may have made anew."""

    file: tuple[int, int] | None = None


def _file(path: str) -> tuple[int, int]:
    """What is at a path, whatever it is called."""
    found = Path(path).lstat()
    return found.st_dev, found.st_ino


def close_listener(sock: socket.socket) -> None:
    """Removes the file of a unix socket, too, if it is still its own. Must not raise: others depend on what follows."""
    if isinstance(sock, _UnixListener):
        path = sock.getsockname()
        try:
            if _file(path) == sock.file:  # not another's: while the socket is open, no other file has that number
                Path(path).unlink()
        except FileNotFoundError:
            pass
        except OSError as problem:
            log.warning("can't remove %s: %s", path, problem.strerror)
    sock.close()
