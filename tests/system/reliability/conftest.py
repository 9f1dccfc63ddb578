"""The faults are coalesce's to bear, whichever server it is: one is enough, and the suite has to stay short."""

from __future__ import annotations

import pytest

from tests.system.processes import Executable, executables

NEWEST = max((found for found in executables() if "valkey" not in found.name), key=lambda found: found.version)


@pytest.fixture(scope="session", params=[NEWEST], ids=str)
def executable(request: pytest.FixtureRequest) -> Executable:
    return request.param
