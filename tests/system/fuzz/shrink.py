"""A failing sequence made shorter, as long as it still fails."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .steps import Request, Step


def shrunk(steps: list[Step], fails: Callable[[list[Step]], bool], seconds: float) -> list[Step]:
    """Fewer steps, fewer requests, no cuts, shorter values: the first smaller one that fails, again and again."""
    until = time.monotonic() + seconds
    smaller = True
    while smaller:
        smaller = False
        for candidate in _smaller(steps):
            if time.monotonic() > until:
                return steps
            if fails(candidate):
                steps, smaller = candidate, True
                break
    return steps


def _smaller(steps: list[Step]) -> Iterator[list[Step]]:
    size = len(steps) // 2
    while size:
        for start in range(0, len(steps), size):
            yield steps[:start] + steps[start + size :]
        size //= 2
    for at, step in enumerate(steps):
        for other in _smaller_step(step):
            yield [*steps[:at], other, *steps[at + 1 :]]


def _smaller_step(step: Step) -> Iterator[Step]:
    if step.waits:
        yield replace(step, waits=False)
    if step.cuts:
        yield replace(step, cuts=())
    if len(step.cuts) > 1:
        for cut in step.cuts:
            yield replace(step, cuts=(cut,))
    size = len(step.requests) // 2
    while size:
        for start in range(0, len(step.requests), size):
            yield replace(step, requests=step.requests[:start] + step.requests[start + size :])
        size //= 2
    for at, request in enumerate(step.requests):
        for other in _smaller_request(request):
            yield replace(step, requests=(*step.requests[:at], other, *step.requests[at + 1 :]))


def _smaller_request(request: Request) -> Iterator[Request]:
    if isinstance(request, bytes):
        return
    for at, argument in enumerate(request[1:], 1):
        if len(argument) > 16:
            yield (*request[:at], argument[: len(argument) // 2], *request[at + 1 :])
    for at in range(len(request) - 1, 0, -1):
        yield request[:at] + request[at + 1 :]
