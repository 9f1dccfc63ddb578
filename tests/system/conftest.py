"""Which processes a test gets. Every test runs once for every server program found on the machine.

`upstream` and `coalesce` last for a module (starting them for every test would take most of the suite's time) and are
emptied before each test; `fresh_upstream` is for tests that kill it or count its connections.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .processes import Coalesce, Executable, RedisServer, executables, running_coalesce, running_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .forge import Ended, Forge, Said


@pytest.fixture(scope="session", params=executables(), ids=str)
def executable(request: pytest.FixtureRequest) -> Executable:
    return request.param


@pytest.fixture(scope="module")
def module_upstream(executable: Executable) -> Iterator[RedisServer]:
    with running_server(executable) as server:
        yield server


@pytest.fixture(scope="module")
def module_coalesce(module_upstream: RedisServer) -> Iterator[Coalesce]:
    """A coalesce in front of the module's upstream; it has to drain cleanly when the module's tests are done."""
    with running_coalesce(module_upstream.url) as coalesce:
        yield coalesce
        code, stderr = coalesce.stop()
        assert code == 0, stderr


@pytest.fixture
def upstream(module_upstream: RedisServer) -> RedisServer:
    """The module's upstream, with no keys or scripts of an earlier test."""
    with module_upstream.connect() as wire:
        assert wire.ask("FLUSHALL") == b"+OK\r\n"
        assert wire.ask("SCRIPT", "FLUSH") == b"+OK\r\n"
    return module_upstream


@pytest.fixture
def coalesce(module_coalesce: Coalesce, upstream: RedisServer) -> Coalesce:
    """The module's coalesce, before an upstream that has been emptied."""
    del upstream
    return module_coalesce


@pytest.fixture
def fresh_upstream(executable: Executable) -> Iterator[RedisServer]:
    with running_server(executable) as server:
        yield server


@pytest.fixture
def run_to_exit(forged: Forge) -> Callable[..., Ended]:
    return forged.run_to_exit


@pytest.fixture
def ask(forged: Forge) -> Callable[..., Said]:
    return forged.ask
