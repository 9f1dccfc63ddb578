"""Whether the upstream's host is still there: what is slow is left alone, what is silent is given up.

A host that died, or a path that drops everything, says nothing, and TCP by itself goes on trying for a quarter of an
hour. What tells a dead host from a slow command is the acknowledgement of its kernel, so that is what is looked at
(`tcp_info`), for as long as something is unacknowledged. When nothing is, idle lanes are PINGed.

Whoever stood still himself (SIGSTOP, a host without CPU) has heard nothing either: such time does not count.

Not TCP_USER_TIMEOUT: it also ends a connection whose window has been full for that long, though the peer acknowledges
every probe (measured, Linux 6.18: after 3.5 s at 3 s), and behind a slow script the window of a lane does fill up.
"""

from __future__ import annotations

import logging
import socket
import struct
from time import perf_counter
from typing import TYPE_CHECKING

import trio

from coalesce.core.containment import contained

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from coalesce.core.exchange import Exchange
    from coalesce.pin import Pin
    from coalesce.upstream import Connection

log = logging.getLogger("coalesce")

# Looks at each connection within the time after which it is given up.
_LOOKS = 8
# `struct tcp_info` of <linux/tcp.h>: probes sent to a full window and not answered; segments that are not acknowledged,
# milliseconds since the last acknowledgement.
_TCP_INFO_SIZE = 104
_PROBES_AT = 3
_UNACKNOWLEDGED_AT = 24
_LAST_ACKNOWLEDGEMENT_AT = 56


def keep_alive(sock: socket.socket, silence: float) -> None:
    """Has the kernel find out in about `silence` seconds that nobody is there, while nothing is sent."""
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, round(silence / 2)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, round(silence / 6)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


class Stopwatch:
    """Seconds in which somebody looked, at least every `step` seconds or so.

    Of a longer time between two looks the rest does not count: this process stood still, or had its hands full.
    """

    def __init__(self, step: float) -> None:
        self._most = 2 * step
        self._time = 0.0
        self._looked = perf_counter()

    def look(self) -> float:
        """The time now."""
        now = perf_counter()
        self._time += min(now - self._looked, self._most)
        self._looked = now
        return self._time


class Pulse:
    """When the peer's host was last known to be there."""

    __slots__ = ("_heard", "_sock")

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._heard: float | None = None  # None: nobody has looked

    def silent_for(self, now: float) -> float:
        """Seconds since something was sent to which there has been no sign of life; 0 if there is no such thing.

        `now` is always the same stopwatch's.
        """
        if self._sock.family == socket.AF_UNIX:
            return 0.0
        info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
        (unacknowledged,) = struct.unpack_from("=I", info, _UNACKNOWLEDGED_AT)
        if self._heard is None or not (unacknowledged or info[_PROBES_AT]):
            self._heard = now
            return 0.0
        (since,) = struct.unpack_from("=I", info, _LAST_ACKNOWLEDGEMENT_AT)
        self._heard = max(self._heard, now - since / 1000)
        return now - self._heard


async def watch(
    exchange: Exchange, connections: Callable[[], Iterable[Connection]], pins: set[Pin], silence: float
) -> None:
    """Gives up connections whose peer's host has been silent for so many seconds, and PINGs idle lanes as often."""
    why = f"nothing heard from the upstream's host for {silence:g} s"
    step = silence / _LOOKS
    stopwatch = Stopwatch(step)
    while True:
        await trio.sleep(step)
        now = stopwatch.look()
        for connection in list(connections()):
            with contained(connection):
                if connection.pulse.silent_for(now) > silence:
                    connection.lose(why)
        for pin in list(pins):
            if pin.pulse.silent_for(now) > silence:
                log.warning("%s is closed: %s", pin.name, why)
                pin.give_up()
        now = perf_counter()
        exchange.keep_alive(now, silence)
        exchange.flush(now)
