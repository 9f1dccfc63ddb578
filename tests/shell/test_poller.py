"""The poller: what it does beside what is ready, and the tasks beside it."""

from __future__ import annotations

import socket
import statistics
from contextlib import closing
from time import perf_counter

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


class Leaver:
    """A member that ends, and many others with it, when it is ready."""

    def __init__(self, poller: Poller, leaving: list[socket.socket]) -> None:
        self._poller = poller
        self._leaving = leaving

    def on_ready(self, flags: int) -> None:
        del flags
        for sock in self._leaving:
            self._poller.remove_and_close(sock, at_leisure=True)

    def fail(self, fault: Exception) -> None:
        raise fault


class Bystander:
    """A member that is always ready, and counts in each round how many have been closed since the one before."""

    def __init__(self, leaving: list[socket.socket]) -> None:
        self._leaving = leaving
        self._closed = 0
        self.most = 0

    def on_ready(self, flags: int) -> None:
        del flags
        closed = sum(sock.fileno() < 0 for sock in self._leaving)
        self.most = max(self.most, closed - self._closed)
        self._closed = closed

    def fail(self, fault: Exception) -> None:
        raise fault


def test_who_leaves_with_many_others_is_closed_little_by_little() -> None:
    """Others are served between; and nobody waits in the poller while some are still to be closed."""
    leaving = [sock for _ in range(100) for sock in socket.socketpair()]
    bystander = Bystander(leaving)
    near, far = socket.socketpair()
    with near, far, closing(Poller()) as poller:
        far.send(b"never read, so always ready")
        leaver = Leaver(poller, leaving)
        for sock in leaving:
            poller.add(sock, leaver, READABLE)
        poller.add(near, bystander, READABLE)
        leaving[0].send(b"come")
        while any(sock.fileno() >= 0 for sock in leaving):
            poller.drain(lambda _now: None)
        assert 0 < bystander.most <= 3
        poller.remove(near)


async def test_all_are_closed_before_the_poller_waits() -> None:
    leaving = [sock for _ in range(100) for sock in socket.socketpair()]
    with trio.fail_after(5), closing(Poller()) as poller:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(poller.run, lambda _now: None)
            leaver = Leaver(poller, leaving)
            for sock in leaving:
                poller.add(sock, leaver, READABLE)
            leaving[0].send(b"come")
            while any(sock.fileno() >= 0 for sock in leaving):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()


class Ender:
    """A member that ends others and gives a task something to do, once."""

    def __init__(self, poller: Poller, nursery: trio.Nursery, leaving: list[socket.socket]) -> None:
        self._poller = poller
        self._nursery = nursery
        self._leaving = leaving
        self.took: float | None = None

    def on_ready(self, flags: int) -> None:
        del flags
        for sock in self._leaving:
            self._poller.remove_and_close(sock, at_leisure=True)
        self._nursery.start_soon(self._work, perf_counter())
        self._poller.end_turn()

    def fail(self, fault: Exception) -> None:
        raise fault

    async def _work(self, given: float) -> None:
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        self.took = perf_counter() - given
        self._nursery.cancel_scope.cancel()


async def test_a_task_goes_on_before_the_poller_lingers_though_some_are_still_to_be_closed() -> None:
    """Whichever of the two trio lets go first. (In ten of them each is, and one that lingers takes 10 ms.)"""
    took = []
    for _ in range(10):
        leaving = [sock for _ in range(3) for sock in socket.socketpair()]
        with trio.fail_after(5), closing(Poller()) as poller:
            async with trio.open_nursery() as nursery:
                ender = Ender(poller, nursery, leaving)
                for sock in leaving:
                    poller.add(sock, ender, READABLE)
                leaving[0].send(b"come")
                await poller.run(lambda _now: None)
        assert ender.took is not None
        took.append(ender.took)
    assert statistics.median(took) < 5e-3
    assert sum(each > 8e-3 for each in took) <= 1
