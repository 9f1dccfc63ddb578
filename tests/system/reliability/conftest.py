"""The faults are coalesce's to bear, whichever server it is: one is enough, and the suite has to stay short."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.system.versions import NEWEST

if TYPE_CHECKING:
    from tests.system.processes import Executable


@pytest.fixture(scope="session", params=[NEWEST], ids=str)
def executable(request: pytest.FixtureRequest) -> Executable:
    return request.param
