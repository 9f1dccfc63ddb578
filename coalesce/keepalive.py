"""What the kernel is told of sockets: when to find out by itself that nobody is there, and how often to ask."""

from __future__ import annotations

import socket
from contextlib import suppress

# <linux/tcp.h>: TCP_RTO_MAX_MS, which Python's socket has no name for.
_TCP_RTO_MAX_MS = 44


def keep_alive(sock: socket.socket, silence: float) -> None:
    """Has the kernel find out in about `silence` seconds, at least two, that nobody is there while nothing is sent."""
    if sock.family == socket.AF_UNIX:
        return
    between = max(1, int(silence / 6))
    count = min(3, max(1, int(silence - 1)))
    _set_keepalive(sock, max(1, round(silence - count * between)), between, count)


def keep_place(sock: socket.socket) -> None:
    """The same for a client that holds nothing but its place. Redis: tcp-keepalive 300, which takes 600 s in all."""
    if sock.family != socket.AF_UNIX:
        _set_keepalive(sock, 300, 100, 3)


def repeat_often(sock: socket.socket, silence: float) -> None:
    """Has the kernel repeat what is not acknowledged, and probe a full window, several times within `silence` seconds.

    On its own it comes to do so every two minutes only: a single probe that got lost would look like a host that did,
    and a vanished host like a window that is still full. (Linux 6.15; older ones can't be told.)
    """
    if sock.family != socket.AF_UNIX:
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_RTO_MAX_MS, round(min(max(1.0, silence / 4), 120.0) * 1000))


def look_after_clients(listener: socket.socket, silence: float) -> None:
    """For all that are accepted from here on: they have a listener's options from their first moment."""
    if listener.family != socket.AF_UNIX:
        # A reply is all there is to send: waiting for more would only make it late.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keep_place(listener)
        repeat_often(listener, silence)


def _set_keepalive(sock: socket.socket, idle: int, between: int, count: int) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, between)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, count)
