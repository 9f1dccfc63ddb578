"""How values are spread, in buckets whose bounds are powers of two: to find the bucket is to ask for a bit length.

A bucket's bound is twice the one before, so a quantile is right within a factor of two, at worst. That is what tells a
round trip of 100 us from one of 10 ms, or a batch of 3 from one of 30, and it costs a tenth of a microsecond.
"""

from __future__ import annotations

# Of the largest value, and a spare one.
_BITS = 65


class Histogram:
    """Of integers from 0 on. Bucket `n` has those below 2^n that are in none before."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * _BITS
        self.total = 0

    def observe(self, value: int) -> None:
        """One more. (A negative one, of a clock that was read in the wrong order, is none.)"""
        if value < 0:  # noqa: PLR1730 (max() takes twice as long)
            value = 0
        self.counts[value.bit_length()] += 1
        self.total += value


def quantile(counts: list[int], part: float) -> float | None:
    """Below which `part` of the values lie, taken as spread evenly within a bucket; None: there are no values."""
    wanted = part * sum(counts)
    if not wanted:
        return None
    below = 0
    for bits, count in enumerate(counts):
        if count and below + count >= wanted:
            bound: int = 2**bits
            lowest = bound // 2 if bits else 0
            return lowest + (bound - lowest) * (wanted - below) / count
        below += count
    return None
