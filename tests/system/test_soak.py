"""The soak for a few seconds, and that growth is found; a long one is `python -m tests.system.soak`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .processes import eventually, running_coalesce, running_server
from .soak import GrowthError, Plan, Sample, judge, look, same_again, slope_of, soak
from .versions import NEWEST

if TYPE_CHECKING:
    from collections.abc import Callable

    from .processes import Executable


@pytest.fixture
def executable() -> Executable:
    """What is counted is ours, whichever server it is."""
    return NEWEST


def test_what_is_held_is_given_back(executable: Executable) -> None:
    """Descriptors and threads; of memory, within seconds, only that it has no other order of magnitude."""
    outcome = soak(executable, Plan(0.07, seed=1, clients=30, idle=20, every=0.25, most_growth=60_000))
    assert outcome.replies > 1_000
    assert outcome.clients > 30
    assert max(sample.own for sample in outcome.samples) >= 50  # or nothing was looked at
    assert max(sample.private for sample in outcome.samples) < outcome.samples[0].private + 64


def test_a_client_that_stays_is_seen(executable: Executable) -> None:
    with running_server(executable) as upstream, running_coalesce(upstream.url) as coalesce:
        with coalesce.connect() as one, coalesce.connect() as other:
            assert one.ask("PING") == other.ask("PING") == b"+PONG\r\n"
            both = look(coalesce, upstream, 0.0, 0)
        before = eventually(lambda: _undercut(both, look(coalesce, upstream, 0.0, 0)))
        with coalesce.connect() as wire:
            assert wire.ask("PING") == b"+PONG\r\n"
            assert not same_again(before, look(coalesce, upstream, 0.0, 0))
        eventually(lambda: same_again(before, look(coalesce, upstream, 0.0, 0)))


def _undercut(both: Sample, now: Sample) -> Sample | None:
    """The sample without two clients."""
    return now if now.own == both.own - 2 else None


def samples(*, private_by_minute: Callable[[int], float]) -> list[Sample]:
    return [Sample(60.0 * minute, 0.0, private_by_minute(minute), 10, 1, 1, 0) for minute in range(60)]


def test_a_slope() -> None:
    assert slope_of(samples(private_by_minute=lambda minute: 30 + minute)) == pytest.approx(60)
    assert slope_of(samples(private_by_minute=lambda _: 30)) == pytest.approx(0)


def test_growth_is_found() -> None:
    with pytest.raises(GrowthError, match=r"grows by 60\.0 MB an hour"):
        judge(samples(private_by_minute=lambda minute: 30 + minute), 20)


def test_growth_that_ends_is_none() -> None:
    assert judge(samples(private_by_minute=lambda minute: 30 + min(minute, 25)), 20) == pytest.approx(0)


def test_a_step_of_the_allocator_is_no_growth() -> None:
    assert judge(samples(private_by_minute=lambda minute: 30 + (minute > 45)), 1) > 1
