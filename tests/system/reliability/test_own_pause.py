"""coalesce itself stands still (SIGSTOP, a frozen container, a host without CPU): its timers blame nobody for that."""

from __future__ import annotations

import contextlib
from signal import SIGCONT, SIGSTOP
from typing import TYPE_CHECKING

from tests.system.processes import eventually, running_coalesce, running_server
from tests.system.wire import pack

from . import faults
from .relay import Relay
from .stage import on_stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.system.processes import Coalesce

PAUSE = 0.9  # seconds
# Shorter than the pause, all of them.
TIMERS = ("--upstream-silence", "0.4", "--upstream-wait", "0.4", "--connect-timeout", "0.4")


def test_nobody_is_closed_after_a_pause_under_load(executable):
    with on_stage(executable, *TIMERS, clients=20) as stage:
        for _ in range(2):
            faults.stop_process(stage.coalesce.process, PAUSE)
            stage.load.go_on()
        verdict = stage.finish()
    assert (verdict.unacknowledged, verdict.refused, verdict.closed) == (0, 0, 0)


@contextlib.contextmanager
def stopped(coalesce: Coalesce) -> Iterator[None]:
    coalesce.signal(SIGSTOP)
    try:
        yield
    finally:
        coalesce.signal(SIGCONT)


def test_nothing_is_late_because_of_a_pause(executable):
    """Nor is anybody refused: not who waits for a connection that is under way, nor who waits for a lease.

    The upstream answers while nobody looks, well within its time; and the one lease becomes free then.
    """
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(running_server(executable))
        relay = stack.enter_context(Relay(upstream.address))
        dialling = stack.enter_context(running_coalesce(relay.url, *TIMERS))
        lending = stack.enter_context(running_coalesce(upstream.url, *TIMERS, "--max-leases", "1"))
        clients = {request: stack.enter_context(dialling.connect()) for request in (("MULTI",), ("SELECT", 3))}
        holder, waiter = (stack.enter_context(lending.connect()) for _ in range(2))
        assert holder.ask("MULTI") == b"+OK\r\n"
        waiter.send(pack("MULTI"))
        assert holder.ask("PING") == b"+QUEUED\r\n"  # behind it: so the MULTI has been read
        for client in clients.values():
            assert client.ask("PING") == b"+PONG\r\n"
        before = len(relay.links)
        relay.fall_silent()
        for request, client in clients.items():
            client.send(pack(*request))
        eventually(lambda: len(relay.links) == before + len(clients))
        with stopped(dialling), stopped(lending):
            relay.speak()
            holder.send(pack("EXEC"))
            faults.last(PAUSE)
        for request, client in clients.items():
            assert client.reply() == b"+OK\r\n", request
        assert waiter.reply() == b"+OK\r\n"
