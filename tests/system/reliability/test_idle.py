"""Lanes that nobody uses: PINGed as often as a silence may last. And lanes that are lost, all at once."""

from __future__ import annotations

import contextlib
import re

from tests.system.processes import eventually, running_coalesce, running_server

from .relay import Relay

OK = b"+OK\r\n"
BURST, RATE, LANES = 100, 100, 130


def pings(control) -> int:
    found = re.search(rb"cmdstat_ping:calls=(\d+)", control.ask("INFO", "commandstats"))
    return int(found[1]) if found else 0


def test_idle_lanes_are_pinged_as_often_as_a_silence_may_last(executable):
    """Each of them: else the upstream may close it (`timeout`), and what a middle box has forgotten is not noticed."""
    with (
        running_server(executable) as upstream,
        running_coalesce(upstream.url, "--upstream-silence", "0.4") as coalesce,
        upstream.connect() as control,
        coalesce.connect() as client,
    ):
        assert client.ask("SELECT", 3) == OK
        assert control.ask("CONFIG", "RESETSTAT") == OK
        eventually(lambda: pings(control) >= 4, 2.0)
        lines = control.ask("CLIENT", "LIST")
        assert sorted(re.findall(rb" db=(\d+) .* cmd=ping ", lines)) == [b"0", b"3"]


def test_lanes_that_are_lost_at_once_do_not_come_back_as_a_storm(executable):
    """Clients on 130 lanes, and the upstream closes all connections: each dial after the burst has to wait its turn."""
    flags = ("--max-lanes", str(LANES), "--max-dials", str(RATE))
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(running_server(executable, "--databases", str(LANES)))
        relay = stack.enter_context(Relay(upstream.address))
        coalesce = stack.enter_context(running_coalesce(relay.url, *flags))
        clients = [stack.enter_context(coalesce.connect()) for _ in range(LANES)]
        for number, client in enumerate(clients):
            assert client.ask("SELECT", number) == OK
        before = len(relay.begun)
        relay.cut()
        eventually(lambda: len(relay.begun) >= before + LANES)
        for client in clients:
            assert client.ask("PING") == b"+PONG\r\n"
        begun = sorted(relay.begun)
        for first, start in enumerate(begun):
            for number, when in enumerate(begun[first:], 1):
                # A tenth of a second is for whoever accepts late, and so makes a stretch look shorter.
                assert number <= BURST + RATE * (when - start + 0.1) + 1
