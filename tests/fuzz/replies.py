"""What an upstream says, into `Lane.receive`, against `twins.deliver`: the same to the same callers, or a Desync.

The head of an input: how many requests are in flight, and whose. A step: a chunk (its first byte means nothing).
"""

from __future__ import annotations

import sys

from coalesce.core.errors import UpstreamError
from coalesce.core.lane import STREAM_FROM, Lane, Limits
from tests.core import twins
from tests.core.fakes import Caller, Taking
from tests.core.model import BASE

from .script import LONGEST, expanded, steps_of

NO_LIMITS = Limits(lane=10**9, client=10**9)
# The twin recurses into each level of an aggregate, and in LONGEST bytes there is room for very many.
DEEP = 4 * LONGEST
MOST_FED = 50_000  # bytes: the twin begins anew with each chunk


def play(script: bytes) -> None:
    """AssertionError, or whatever is raised, where the lane and its twin differ."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(DEEP)
    try:
        _play(script)
    finally:
        sys.setrecursionlimit(before)


def _play(script: bytes) -> None:
    if len(script) < 3:
        return
    count, pattern = script[0] % 32, script[1]
    fifo = ["abc"[(pattern >> number % 7) % 3] for number in range(count)]
    callers = {name: Caller() for name in "abc"}
    lane = Lane(0, BASE, NO_LIMITS)
    lane.connected(Taking(), 0.0)
    for name in fifo:
        lane.enqueue(b"*1\r\n$4\r\nPING\r\n", callers[name])
    lane.take_batch(0.0)
    fed = b""
    # What the twin knows at once, the lane may know only at the end of the line, or of a short value.
    chunks = [expanded(step.data) for step in steps_of(script[2:])]
    for chunk in [*filter(None, chunks), b"\r\n", b"\r\n" * 600]:
        if len(fed) + len(chunk) > MOST_FED and chunk.strip():
            continue
        fed += chunk
        try:
            lane.receive(chunk)
        except UpstreamError:
            assert _sound(fed, fifo) is None, "a Desync, and nothing is wrong"
            _check_nobody_has_anothers(fed, fifo, lane, callers)
            return
        sound = _sound(fed, fifo)
        if sound is not None:
            _check_delivery(fed, sound, fifo, lane, callers)
    assert _sound(fed, fifo) is not None, "something is wrong, and no Desync"


def _sound(fed: bytes, fifo: list[str]) -> dict[str, bytes] | None:
    """Who gets what; None where a RESP server would not have said this."""
    try:
        return twins.deliver(fed, fifo)
    except twins.NoReply:
        return None


def _check_delivery(fed: bytes, due: dict[str, bytes], fifo: list[str], lane: Lane, callers: dict[str, Caller]) -> None:
    """Every whole reply is where it belongs; the head may have a part of the next, if that is a large one."""
    whole, beginning = twins.split_replies(fed)
    assert len(lane.in_flight) == len(fifo) - len(whole)
    for name, caller in callers.items():
        mine = due.get(name, b"")
        assert caller.owed == fifo[len(whole) :].count(name)
        assert caller.got.startswith(mine)
        assert not caller.was_lost
        part = caller.got[len(mine) :]
        assert not part or (name == fifo[len(whole)] and beginning.startswith(part) and len(beginning) >= STREAM_FROM)


def _check_nobody_has_anothers(fed: bytes, fifo: list[str], lane: Lane, callers: dict[str, Caller]) -> None:
    """Nobody has a byte behind what was theirs, and whoever has not all of it has been told, or will be."""
    whole, beginning = _before_the_doubt(fed)
    own = dict.fromkeys(callers, b"")
    for name, reply in zip(fifo, whole, strict=False):
        own[name] += reply
    head = fifo[len(whole)] if len(whole) < len(fifo) else None
    for name, caller in callers.items():
        most = own[name] + (beginning if name == head else b"")
        assert most.startswith(caller.got), f"{name} got what is another's"
        assert own[name] == caller.got[: len(own[name])] or caller.was_lost or caller in lane.in_flight


def _before_the_doubt(fed: bytes) -> tuple[list[bytes], bytes]:
    """The replies before the one that is none, and all that follows them."""
    whole: list[bytes] = []
    rest = fed
    while rest:
        try:
            size = twins._reply_size(rest)
        except (twins.NoReply, twins.Incomplete):
            break
        whole.append(rest[:size])
        rest = rest[size:]
    return whole, rest
