"""Whether the other side's host is still there: what is slow is left alone, what is silent is given up.

A host that died, or a path that drops everything, says nothing, and TCP by itself goes on trying for a quarter of an
hour. What tells a dead host from a slow command is the acknowledgement of its kernel, so that is what is looked at
(`pulse.py`), for as long as something is unacknowledged. When nothing is, idle lanes are PINGed, and the kernel's
keepalive looks after leases, pins and clients: after `silence` seconds where something is held that others could have
(an upstream connection, or an element that a BLPOP would pop for nobody), after ten minutes, as Redis does, where it is
no more than a client's place.

A silence of less than three seconds leaves the kernel no time to ask twice: a single lost packet can look like one.

Whoever stood still himself (SIGSTOP, a host without CPU) has heard nothing either: such time does not count.

Not TCP_USER_TIMEOUT: it also ends a connection whose window has been full for that long, though the peer acknowledges
every probe (measured, Linux 6.18: after 3.5 s at 3 s). Behind a slow script the window of a lane does fill up, and so
does that of a client that reads slowly.
"""

from __future__ import annotations

import logging
from time import perf_counter
from typing import TYPE_CHECKING

import trio

from coalesce.core.containment import contained
from coalesce.tally import Closed, Lost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from coalesce.connection import Connection
    from coalesce.core.exchange import Exchange
    from coalesce.downstream import Clients
    from coalesce.pin import Pin

log = logging.getLogger("coalesce")

# Looks at each connection within the time after which it is given up.
_LOOKS = 8
# Clients looked at before others get a turn: each takes 2 us.
_AT_ONCE = 256


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
                    connection.lose(why, Lost.SILENT)
        for pin in list(pins):
            if pin.pulse.silent_for(now) > silence:
                log.warning("%s is closed: %s", pin, why, extra=pin.ids)
                pin.tally.closed[Closed.LOST_UPSTREAM] += 1
                pin.give_up()
        now = perf_counter()
        exchange.keep_alive(now, silence)
        exchange.flush(now)


async def watch_clients(clients: Clients, pins: set[Pin], silence: float) -> None:
    """Gives up clients whose host has been silent for so many seconds. Looks at each several times within them."""
    step = silence / _LOOKS
    stopwatch = Stopwatch(step)
    while True:
        await trio.sleep(step)
        now = stopwatch.look()
        silent = 0
        for number, client in enumerate(list(clients)):
            if number % _AT_ONCE == _AT_ONCE - 1:
                await trio.lowlevel.checkpoint()
                now = stopwatch.look()
            if client.silent_for(now) > silence:
                client.give_up()
                silent += 1
        for pin in list(pins):
            if pin.client_pulse.silent_for(now) > silence:
                pin.give_up()
                silent += 1
        if silent:
            clients.poller.tally.closed[Closed.SILENCE] += silent
            log.warning("clients closed, as nothing was heard from their hosts for %g s: %d", silence, silent)
            clients.exchange.flush(perf_counter())  # others wait for the connections that these had
