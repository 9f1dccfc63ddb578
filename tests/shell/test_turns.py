"""The turns of dials, with a clock of the test's own and no socket."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, cast

import trio
import trio.testing

from coalesce.config import Config, parse_upstream
from coalesce.core.identity import Identity
from coalesce.dial import DialError, Dialled, Dialler

if TYPE_CHECKING:
    import socket

    import pytest

BASE = Identity(None, None, 0, 2)
PATIENCE = 1.0
DIALS = 5  # a second


class Socket:
    """Of a connection that nothing is done with."""

    family = 1  # AF_UNIX: has no keepalive


class Upstream(Dialler):
    """One whose attempts take no time, and fail while it is down."""

    def __init__(self) -> None:
        super().__init__(Config(parse_upstream("127.0.0.1:1"), max_dials=DIALS, upstream_wait=PATIENCE))
        self.down = False
        self.silent = False
        self.dialled: list[float] = []  # when

    async def _attempt(self, identity: Identity, name: bytes, stage: object, *, ask: bool) -> Dialled:
        del identity, name, stage, ask
        self.dialled.append(trio.current_time())
        if self.silent:
            await trio.sleep_forever()
        if self.down:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        return Dialled(cast("socket.socket", Socket()), 0.0, True, None, "", None, False, False)


async def ask_for_leases(upstream: Upstream, count: int, problems: list[str]) -> None:
    """Returns when each has been dialled or given up."""

    async def ask_for_one() -> None:
        try:
            await upstream.dial_patiently(BASE, b"")
        except DialError as problem:
            problems.append(str(problem))

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(ask_for_one)


async def test_nobody_waits_for_a_turn_for_longer_than_requests_may(autojump_clock: trio.testing.MockClock) -> None:
    """And who gets none is told what is really wrong."""
    upstream = Upstream()
    upstream.down = True
    problems: list[str] = []
    begin = autojump_clock.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_for_leases, upstream, 400, problems)
        await trio.testing.wait_all_tasks_blocked()
        try:
            await upstream.dial(BASE, b"")
        except DialError as problem:
            problems.append(str(problem))
        assert autojump_clock.current_time() - begin <= PATIENCE + 1e-6
    assert autojump_clock.current_time() - begin <= PATIENCE + 1e-6
    assert problems == ["Connection refused"] * 401
    assert 100 <= len(upstream.dialled) <= 100 + PATIENCE * DIALS + 1


async def test_turns_that_nobody_waited_for_are_others(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    upstream = Upstream()
    problems: list[str] = []
    await ask_for_leases(upstream, 400, problems)
    assert problems == ["too many connections wanted at once (--max-dials)"] * (400 - len(upstream.dialled))
    assert caplog.text.count("--max-dials") == 1
    assert "attempts" not in caplog.text
    begin = autojump_clock.current_time()
    for _ in range(DIALS):
        await upstream.dial(BASE, b"")
    assert autojump_clock.current_time() - begin <= 1 + 1 / DIALS


async def test_an_attempt_that_is_cut_short_hides_nothing(autojump_clock: trio.testing.MockClock) -> None:
    upstream = Upstream()
    upstream.down = True
    problems = []
    for _ in range(2):
        try:
            await upstream.dial(BASE, b"", ends=autojump_clock.current_time() + 0.1)
        except DialError as problem:
            problems.append(str(problem))
        upstream.silent = True
    upstream.silent = upstream.down = False
    await upstream.dial(BASE, b"")
    upstream.silent = True
    try:
        await upstream.dial(BASE, b"", ends=autojump_clock.current_time() + 0.1)
    except DialError as problem:
        problems.append(str(problem))
    assert problems == ["Connection refused", "Connection refused", "no answer to the attempt to connect"]
