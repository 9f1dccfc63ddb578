"""The poller and the tasks beside it."""

from __future__ import annotations

import socket
from contextlib import closing

import trio

from coalesce.poller import READABLE, Poller


class Starter:
    """A member that has a task started when it is ready, and finds out whether that has begun when it is again."""

    def __init__(self, poller: Poller, nursery: trio.Nursery) -> None:
        self._poller = poller
        self._nursery = nursery
        self._begun = True
        self.rounds = 0
        self.late = 0

    def on_ready(self, flags: int) -> None:
        assert flags == READABLE
        if not self._begun:
            self.late += 1
        self._begun = False
        self.rounds += 1
        if self.rounds == 100:
            self._nursery.cancel_scope.cancel()
        self._nursery.start_soon(self._begin)
        self._poller.end_turn()

    async def _begin(self) -> None:
        self._begun = True


async def test_a_task_that_is_given_something_to_do_begins_before_the_poller_goes_on() -> None:
    """Or it would wait while the poller lingers, though nothing else goes on."""
    near, far = socket.socketpair()
    with near, far, trio.fail_after(5):
        far.send(b"never read, so always ready")
        poller = Poller()
        with closing(poller):
            async with trio.open_nursery() as nursery:
                starter = Starter(poller, nursery)
                poller.add(near, starter, READABLE)
                await poller.run(lambda _now: None)
            poller.remove(near)
    assert starter.rounds >= 100
    assert not starter.late
