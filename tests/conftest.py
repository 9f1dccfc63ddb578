"""For all tests: whatever a test starts, it ends."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from .system.forge import Forge, forge

if TYPE_CHECKING:
    from collections.abc import Iterator

# An example has no deadline of its own: on a busy machine one of a thousand misses it. The test has one.
settings.register_profile("coalesce", deadline=None)
settings.load_profile("coalesce")


def children() -> dict[str, str]:
    """Processes that this one has started and that have not ended: their ids and command lines."""
    found = {}
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended while we looked
            parent = (directory / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid():
                found[directory.name] = (directory / "cmdline").read_text().replace("\0", " ")
    return found


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    """A server that a test forgot would go on after the suite, and nobody would know whose it is."""
    before = children()
    yield
    left = {pid: command for pid, command in children().items() if pid not in before}
    assert left == {}


@pytest.fixture(scope="session", autouse=True)
def forged(nothing_is_left_running: None) -> Iterator[Forge]:
    del nothing_is_left_running
    with forge() as forged:
        yield forged
