"""A sequence is a list of steps: what one connection writes, and where the bytes are cut. Plain data, so that a failing
sequence can be printed, made shorter, and pasted into `test_fuzz.py`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from tests.system.wire import pack

Request = tuple[bytes, ...] | bytes  # arguments; or bytes as they are: inline, malformed, or a part of a request


def packed(request: Request) -> bytes:
    return request if isinstance(request, bytes) else pack(*request)


@dataclass(frozen=True)
class Step:
    """One pipeline of one connection. The next step begins when nothing moves any more."""

    connection: int
    requests: tuple[Request, ...]
    cuts: tuple[int, ...] = ()  # the peer has read what comes before a cut when the rest is written
    waits: bool = False  # it may block for a short time, and is over when it no longer does

    @property
    def data(self) -> bytes:
        return b"".join(map(packed, self.requests))

    @property
    def chunks(self) -> list[bytes]:
        data = self.data
        ends = sorted({cut for cut in self.cuts if 0 < cut < len(data)} | {0, len(data)})
        return [data[start:end] for start, end in itertools.pairwise(ends)]

    def __repr__(self) -> str:
        """Can be pasted."""
        requests = "".join(f"{_literal(request)}, " for request in self.requests)
        cuts = f", cuts={self.cuts}" if self.cuts else ""
        waits = ", waits=True" if self.waits else ""
        return f"Step({self.connection}, ({requests.rstrip()}){cuts}{waits})"


def _literal(request: Request) -> str:
    if isinstance(request, bytes):
        return _short(request)
    return f"({', '.join(map(_short, request))}{',' if len(request) == 1 else ''})"


def _short(value: bytes) -> str:
    """A long value that repeats itself, which those of the generator do, as a product."""
    if len(value) > 80:
        for size in range(1, 17):
            times, rest = divmod(len(value), size)
            if value == value[:size] * times + value[:rest]:
                return f"{value[:size]!r} * {times}" + (f" + {value[:rest]!r}" if rest else "")
    return repr(value)
