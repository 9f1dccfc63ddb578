"""Histograms against a list that is sorted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coalesce.core.histogram import Histogram, quantile

values = st.lists(st.one_of(st.integers(0, 70), st.integers(0, 2**62)), min_size=1, max_size=50)


@given(values)
def test_each_value_is_in_the_bucket_that_its_bound_says(observed: list[int]) -> None:
    histogram = Histogram()
    for value in observed:
        histogram.observe(value)
    for bits in range(63):
        assert sum(histogram.counts[: bits + 1]) == sum(value < 2**bits for value in observed)
    assert histogram.total == sum(observed)


@given(values, st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_is_in_the_bucket_of_the_true_one(observed: list[int], part: float) -> None:
    histogram = Histogram()
    for value in observed:
        histogram.observe(value)
    rank = next(rank for rank in range(1, len(observed) + 1) if rank >= part * len(observed))
    true = sorted(observed)[rank - 1]
    found = quantile(histogram.counts, part)
    assert found is not None
    assert 2 ** true.bit_length() // 2 <= found <= 2 ** true.bit_length()


def test_nothing_has_no_quantile() -> None:
    assert quantile(Histogram().counts, 0.5) is None


def test_what_was_before_its_beginning_took_no_time() -> None:
    histogram = Histogram()
    histogram.observe(-5)
    assert (histogram.counts[0], histogram.total) == (1, 0)
