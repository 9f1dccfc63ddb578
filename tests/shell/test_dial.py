"""When dials happen: how many at a time, and how long after one that failed. On a clock that only waiting moves."""

from __future__ import annotations

import random
from contextlib import closing

import pytest
import trio

from coalesce.config import Config, TcpAddress, Upstream
from coalesce.core.identity import Identity
from coalesce.dial import DialError, Dialled, Dialler, pause

BASE = Identity(None, None, 0, 2)
NOWHERE = Upstream(TcpAddress("127.0.0.1", 1))
BURST = 100


class Futile(Dialler):
    """No attempt comes to anything; each is noted."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.attempts: list[float] = []

    async def _dial(self, identity: Identity, name: bytes, *, ask: bool, ends: float) -> Dialled:
        del identity, name, ask, ends
        await trio.lowlevel.checkpoint()
        self.attempts.append(trio.current_time())
        raise DialError("nobody there")


async def dials_in_vain(dialler: Dialler) -> None:
    with pytest.raises(DialError):
        await dialler.dial(BASE, b"")


def most_in(attempts: list[float], seconds: float) -> int:
    """The most that fell into any stretch of time so long."""
    return max(sum(start <= when <= start + seconds for when in attempts) for start in attempts)


async def test_no_more_dials_than_the_burst_and_the_rate_allow(autojump_clock):
    """500 lanes and leases that are lost at once: a hundred come back at once, the rest at 20 a second."""
    del autojump_clock
    with closing(Futile(Config(NOWHERE, max_dials=20, upstream_wait=3600))) as dialler:
        async with trio.open_nursery() as nursery:
            for _ in range(500):
                nursery.start_soon(dials_in_vain, dialler)
        assert len(dialler.attempts) == 500
        assert dialler.attempts == sorted(dialler.attempts)
        for seconds in (0.0, 0.1, 1.0, 5.0):
            assert BURST - 1 <= most_in(dialler.attempts, seconds) <= BURST + 20 * seconds + 1
        assert dialler.attempts[-1] - dialler.attempts[0] == pytest.approx(400 / 20, abs=0.2)


async def test_a_burst_is_saved_up_again_and_no_more_than_that(autojump_clock):
    del autojump_clock
    with closing(Futile(Config(NOWHERE, max_dials=20, upstream_wait=3600))) as dialler:
        for quiet in (0.0, 2.0, 3600.0):
            await trio.sleep(quiet)
            start = trio.current_time()
            async with trio.open_nursery() as nursery:
                for _ in range(200):
                    nursery.start_soon(dials_in_vain, dialler)
            at_once = sum(when == start for when in dialler.attempts)
            assert abs(at_once - {0.0: BURST, 2.0: 40, 3600.0: BURST}[quiet]) <= 1


async def test_a_dial_that_is_patient_waits_longer_each_time_and_ends(autojump_clock, monkeypatch):
    """Retries of one lease: at once, then after pauses that double, within the time that requests may wait."""
    del autojump_clock
    monkeypatch.setattr("coalesce.dial.pause", lambda attempt: pause(attempt, lambda low, high: (low + high) / 2))
    with closing(Futile(Config(NOWHERE, upstream_wait=5.0))) as dialler:
        with pytest.raises(DialError):
            await dialler.dial_patiently(BASE, b"")
        gaps = [later - earlier for earlier, later in zip(dialler.attempts, dialler.attempts[1:], strict=False)]
        assert gaps == pytest.approx([0.0375, 0.075, 0.15, 0.3, 0.6, 0.75, 0.75, 0.75, 0.75, 0.75], abs=1e-3)


@pytest.mark.parametrize(
    ("attempt", "longest"),
    [(1, 0.05), (2, 0.1), (3, 0.2), (4, 0.4), (5, 0.8), (6, 1.0), (7, 1.0), (100, 1.0), (1100, 1.0), (10**9, 1.0)],
)
def test_a_pause_doubles_up_to_a_second_and_is_spread_over_its_second_half(attempt, longest):
    assert pause(attempt, lambda _, high: high) == longest
    assert pause(attempt, lambda low, _: low) == longest / 2
    seeded = random.Random(1)
    drawn = [pause(attempt, seeded.uniform) for _ in range(1000)]
    assert longest / 2 <= min(drawn) < 0.51 * longest
    assert 0.99 * longest < max(drawn) <= longest
    assert len(set(drawn)) > 990
    assert len({pause(attempt) for _ in range(100)}) > 90, "by chance, too, when nobody says by which"


def test_the_first_attempt_waits_for_nothing():
    assert pause(0) == 0
