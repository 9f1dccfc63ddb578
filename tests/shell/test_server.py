"""What a server makes of its configuration and of the system, without running."""

from __future__ import annotations

import resource

import pytest

from coalesce.config import Config, parse_upstream
from coalesce.core.ledger import Totals
from coalesce.server import Server, Summary

UPSTREAM = parse_upstream("127.0.0.1:1")


@pytest.mark.parametrize(
    ("hard", "wanted", "needed", "allowed"),
    [
        (1 << 20, (10_000, 1_000, 128), 11_320, 10_000),
        (1 << 20, (20_000, 20_000, 1_000), 42_064, 20_000),
        (resource.RLIM_INFINITY, (20_000, 20_000, 1_000), 42_064, 20_000),
        (12_000, (10_000, 3_000, 128), 12_000, 9_000),
        (1_024, (10_000, 1_000, 128), 1_024, 768),
    ],
)
def test_descriptors_are_there_for_all_leases_and_lanes(
    monkeypatch: pytest.MonkeyPatch, hard: int, wanted: tuple[int, int, int], needed: int, allowed: int
) -> None:
    """A client that would take one of theirs is refused, where a system allows fewer than all of them together."""
    clients, leases, lanes = wanted
    limits = [(256, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: limits.append(both))
    server = Server(Config(UPSTREAM, max_clients=clients, max_leases=leases, max_lanes=lanes))
    server.poller.close()
    assert limits[-1] == (needed, hard)
    assert server.clients.limit == allowed


def test_the_closing_line_can_count_to_one() -> None:
    one = Summary(Totals(1, 1, 1, 1, 0), Totals(1, 1, 1, 1, 0), 1, 1, clean=True)
    text = "served 1 command in 1 batch (mean 1.0, largest 1), 1 connection, 1 lane; 1 command on 1 lease"
    assert str(one) == f"{text}; 1 fault of its own"
    none = Summary(Totals(0, 0, 0, 0, 0), Totals(2, 2, 2, 2, 0), 2, 2, clean=False)
    text = "served 0 commands in 0 batches (mean 0.0, largest 0), 2 connections, 0 lanes; 2 commands on 2 leases"
    assert str(none) == f"{text}; 2 faults of its own; the drain was cut short"
