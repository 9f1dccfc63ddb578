"""The books when packets vanish for so long that coalesce gives connections up, and the upstream still has them."""

from __future__ import annotations

import time

import pytest

from tests.system.processes import eventually, running_coalesce

from .accounting import Load
from .namespaces import impossible, network, server_at
from .stage import FORGETS_NOTHING

pytestmark = pytest.mark.skipif(bool(impossible()), reason=f"no namespaces here: {impossible()}")

SILENCE = 1.0  # seconds: --upstream-silence
CLIENTS = 20


def test_nothing_runs_twice(executable):
    """All had a request in flight, so all are closed; what they ask for next waits, or is refused."""
    with (
        network() as between,
        server_at(executable, between.there, *FORGETS_NOTHING, within=between.name) as upstream,
        running_coalesce(
            upstream.url, "--upstream-silence", str(SILENCE), "--upstream-wait", "0.2", "--connect-timeout", "0.3"
        ) as coalesce,
    ):
        # Not `exact`: what was sent into the silence may arrive when it ends, behind what was sent later.
        load = Load([coalesce.address, coalesce.unix_path], CLIENTS, exact=False)
        load.start()
        between.drop()
        begun = time.monotonic()
        eventually(lambda: all(client.closed for client in load.all))
        assert time.monotonic() - begun < 2 * SILENCE + 0.5  # (the half second is the machine's)
        load.be_refused()
        between.heal()
        load.go_on(3)
        load.finish()
        with upstream.connect() as control:
            verdict = load.balance(control)
    assert verdict.closed >= CLIENTS
    assert verdict.refused > 0
