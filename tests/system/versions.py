"""Which servers a test runs with where not all that were found would show more. Why not, each says for itself."""

from __future__ import annotations

import pytest

from .processes import executables

_REDIS = sorted((found for found in executables() if found.product == "Redis"), key=lambda found: found.version)
OLDEST, NEWEST = _REDIS[0], _REDIS[-1]
OLDEST_AND_NEWEST = tuple(dict.fromkeys((OLDEST, NEWEST)))  # (which may be the same)

# For one test; a module has an `executable` of its own.
with_newest = pytest.mark.parametrize("executable", [NEWEST], ids=str, indirect=True)
with_oldest_and_newest = pytest.mark.parametrize("executable", OLDEST_AND_NEWEST, ids=str, indirect=True)
