"""coalesce itself stands still (SIGSTOP, a frozen container, a host without CPU): its timers blame nobody for that."""

from __future__ import annotations

import contextlib
from signal import SIGCONT, SIGSTOP
from typing import TYPE_CHECKING

import pytest

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


@pytest.mark.parametrize("request_", [("MULTI",), ("SELECT", 3)], ids=["lease", "lane"])
def test_a_connection_under_way_is_not_late_because_of_a_pause(executable, request_):
    """The upstream answers while nobody looks, well within its time."""
    with (
        running_server(executable) as upstream,
        Relay(upstream.address) as relay,
        running_coalesce(relay.url, *TIMERS) as coalesce,
        coalesce.connect() as client,
    ):
        assert client.ask("PING") == b"+PONG\r\n"
        before = len(relay.links)
        relay.fall_silent()
        client.send(pack(*request_))
        eventually(lambda: len(relay.links) > before)
        with stopped(coalesce):
            relay.speak()
            faults.last(PAUSE)
        assert client.reply() == b"+OK\r\n"


def test_who_waits_for_a_lease_is_not_refused_because_of_a_pause(executable):
    """The one there is becomes free while nobody looks."""
    with (
        running_server(executable) as upstream,
        running_coalesce(upstream.url, *TIMERS, "--max-leases", "1") as coalesce,
        coalesce.connect() as holder,
        coalesce.connect() as waiter,
    ):
        assert holder.ask("MULTI") == b"+OK\r\n"
        waiter.send(pack("MULTI"))
        assert holder.ask("PING") == b"+QUEUED\r\n"  # behind it: so the MULTI has been read
        with stopped(coalesce):
            holder.send(pack("EXEC"))
            faults.last(PAUSE)
        assert waiter.reply() == b"+OK\r\n"
