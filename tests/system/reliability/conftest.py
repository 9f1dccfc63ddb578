"""The faults are coalesce's to bear, whichever server it is: one is enough, and the suite has to stay short."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.system.processes import running_coalesce
from tests.system.versions import NEWEST

from .relay import Relay

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.system.processes import Coalesce, Executable, RedisServer


@pytest.fixture(scope="session", params=[NEWEST], ids=str)
def executable(request: pytest.FixtureRequest) -> Executable:
    return request.param


@pytest.fixture
def relay(upstream: RedisServer) -> Iterator[Relay]:
    """It leads to the test's upstream."""
    with Relay(upstream.address) as relay:
        yield relay


@pytest.fixture
def coalesce(relay: Relay) -> Iterator[Coalesce]:
    """Reaches the upstream by the relay. As many clients as a test likes have databases, and so lanes, of their own.

    They dial all at once: on a busy machine, who is cut again and again may wait for longer than by default.
    """
    patience = ("--upstream-wait", "20", "--connect-timeout", "20")
    with running_coalesce(relay.url, "--max-lanes", "4096", "--max-dials", "100000", *patience) as coalesce:
        yield coalesce
