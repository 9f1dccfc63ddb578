"""What a server makes of its configuration and of the system, without running."""

from __future__ import annotations

import resource

import pytest

from coalesce.config import Config, parse_upstream
from coalesce.server import Server

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
    assert server._clients.limit == allowed
