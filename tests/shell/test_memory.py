"""The bound over all clients together: what counts, and who goes. Real sockets; the upstream is the test."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack, closing, suppress
from typing import TYPE_CHECKING, ClassVar

import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coalesce.core.exchange import Exchange
from coalesce.core.identity import Identity
from coalesce.core.resp import pack
from coalesce.downstream import Client, Clients
from coalesce.memory import Memory
from coalesce.pin import Pin
from coalesce.poller import READABLE, Poller
from tests.core.fakes import RecordingLink

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from coalesce.core.lane import Lane

BASE = Identity(None, None, 0, 2)
MB = 1024 * 1024
VALUE = b"x" * MB
GET = pack([b"GET", b"k"])
SET = pack([b"SET", b"k", VALUE])


class Stage:
    """Clients of a coalesce whose upstream takes everything, and says what the test says."""

    def __init__(self, limit: int, stack: ExitStack) -> None:
        self._stack = stack
        self.poller = stack.enter_context(closing(Poller()))
        self.lanes: list[Lane] = []
        self.exchange = Exchange(BASE, self.lanes.append)
        self.memory = Memory(limit, self.poller)
        self.clients = Clients(self.exchange, self.poller, 100, 100 * MB, self._pin, memory=self.memory)
        stack.callback(self.clients.close_all)
        self.of: list[tuple[Client, socket.socket]] = []
        self.pinned: list[socket.socket] = []
        self.connect()

    def _pin(self, name: str, sock: socket.socket, unsent: bytes, lane: Lane, pending: bytes) -> None:
        del name, unsent, lane, pending
        self.pinned.append(self._stack.enter_context(sock))

    def connect(self) -> None:
        """Every lane that was opened has a connection; what is outdated, another one, as soon as it owes nothing."""
        for lane in self.lanes:
            if lane.outdated and lane.link is not None and not lane.in_flight:
                self.exchange.replaced(lane)
            if lane.link is None:
                lane.outdated = False
                self.exchange.connected(lane, RecordingLink(self.exchange, lane), 0.0)

    def add(self) -> tuple[Client, socket.socket]:
        ours, theirs = socket.socketpair()
        self._stack.enter_context(theirs)
        theirs.setblocking(False)
        before = set(self.clients)
        self.clients.welcome(ours)
        (client,) = set(self.clients) - before
        self.of.append((client, theirs))
        return client, theirs

    def some(self, number: int) -> tuple[Client, socket.socket]:
        return self.of[number % len(self.of)]

    def round(self) -> None:
        self.poller.drain(self.exchange.flush)

    def send(self, client: Client, theirs: socket.socket, data: bytes) -> None:
        """As much of it as is read: of one that has said what is no request, nothing more is."""
        while data and client._flags & READABLE:
            with suppress(BlockingIOError):
                data = data[theirs.send(data) :]
            self.round()

    def reply(self, reply: bytes) -> None:
        """To each request in flight."""
        for lane in self.lanes:
            if lane.link is not None and lane.in_flight:
                self.exchange.replies(lane, reply * len(lane.in_flight), 0.0)
        self.exchange.flush(0.0)

    def check(self) -> None:
        """The total is the sum, of those who are here and those who left."""
        held = 0
        for client, _ in self.of:
            outbox = sum(map(len, client._outbox or ())) - client._head_sent
            assert client._outbox_size == outbox
            held += outbox + client.session.told
        assert self.memory.total == held
        assert self.memory.total == sum(self.memory._held.values())


def comes(stage: Stage, number: int) -> None:
    del number
    stage.add()


def says(stage: Stage, number: int) -> None:
    client, theirs = stage.some(number)
    if client.sock is not None and client._reading:
        stage.send(client, theirs, GET * 3 + SET)


def begins(stage: Stage, number: int) -> None:
    stage.some(number)[1].send(SET[:100_000])


def reads(stage: Stage, number: int) -> None:
    stage.some(number)[1].recv(1 << 20)


def leaves(stage: Stage, number: int) -> None:
    stage.some(number)[1].close()


def is_answered(stage: Stage, number: int) -> None:
    stage.reply(b"+OK\r\n" if number % 2 else b"$%d\r\n%b\r\n" % (MB, VALUE))


def is_lost(stage: Stage, number: int) -> None:
    stage.exchange.lose(stage.lanes[number % len(stage.lanes)])


def is_evicted(stage: Stage, number: int) -> None:
    stage.some(number)[0].evict("a lot")


steps = st.tuples(
    st.sampled_from([comes, says, begins, reads, leaves, is_answered, is_lost, is_evicted]), st.integers(0, 5)
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(steps, max_size=40))
def test_the_total_is_the_sum(script: list[tuple[Callable[[Stage, int], None], int]]) -> None:
    """At all times; and nothing, when all have left."""
    with ExitStack() as stack:
        stage = Stage(1 << 40, stack)
        stage.add()
        for step, number in script:
            with suppress(OSError):  # it may have left, or been closed
                step(stage, number)
            stage.check()
            stage.connect()
            stage.round()
            stage.check()
        for client, theirs in stage.of:
            theirs.close()
            if client.sock is not None:
                client.give_up()
        while any(lane.owed for lane in stage.lanes):
            stage.connect()
            stage.reply(b"+OK\r\n")
            stage.check()
        assert stage.memory.total == 0


def test_who_holds_most_goes(caplog: pytest.LogCaptureFixture) -> None:
    """No more of them than have to. The others go on."""
    begun = 4 + 2 * 56  # what the arguments of a SET take that are there already
    with ExitStack() as stack:
        stage = Stage(6 * MB + 3 * begun - 1, stack)
        for share in (1, 3, 2):
            stage.send(*stage.add(), pack([b"SET", b"k", VALUE * 4])[: share * MB])
        assert [client.sock is None for client, _ in stage.of] == [False, True, False]
        assert stage.memory.total == 3 * MB + 2 * begun
        (line,) = [record.getMessage() for record in caplog.records]
        assert line == (
            f"client c2 (unix, pid {os.getpid()}, uid {os.getuid()}) is closed: "
            f"it held {3 * MB + begun} bytes, the most, and all clients {6 * MB + 3 * begun} "
            f"(clients-memory: {6 * MB + 3 * begun - 1})"
        )


def test_what_fits_exactly_stays() -> None:
    with ExitStack() as stack:
        stage = Stage(6 * MB + 3 * (4 + 2 * 56), stack)
        for share in (1, 3, 2):
            stage.send(*stage.add(), pack([b"SET", b"k", VALUE * 4])[: share * MB])
        assert stage.clients.shared == 3


def test_what_is_on_its_way_costs_nobody_else_more_than_once(caplog: pytest.LogCaptureFixture) -> None:
    """It can't be given back. Who left it is not closed again and again, and who comes next has the rest."""
    with ExitStack() as stack:
        stage = Stage(2 * MB, stack)
        client, theirs = stage.add()
        stage.send(client, theirs, SET)
        stage.connect()
        stage.exchange.flush(0.0)
        assert stage.lanes[-1].in_flight
        client.give_up()
        assert stage.memory.total == len(SET)
        other, small = stage.add()
        stage.send(other, small, SET[: MB // 2])
        with suppress(BrokenPipeError):
            stage.send(*stage.add(), SET[: 3 * MB // 4])
        assert [it.sock is None for it, _ in stage.of] == [True, False, True]
        stage.reply(b"+OK\r\n")
        stage.send(other, small, SET[MB // 2 :])
        stage.connect()
        stage.exchange.flush(0.0)
        stage.reply(b"+OK\r\n")
        assert small.recv(100) == b"+OK\r\n"
        assert stage.memory.total == 0
        assert len(caplog.records) == 1


class Name(str):
    """Whom the log is told of."""

    __slots__ = ()
    ids: ClassVar[dict[str, str]] = {}


async def test_a_pin_counts_until_all_has_been_sent() -> None:
    with closing(Poller()) as poller, ExitStack() as stack:
        memory = Memory(10 * MB, poller)
        (client, theirs), (upstream, server) = socket.socketpair(), socket.socketpair()
        for sock in (client, theirs, upstream, server):
            in_hand(sock, stack)
        pin = Pin(Name("c1"), client, VALUE, upstream, VALUE * 2, memory)
        assert memory.total == 3 * MB
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pin.run)
                await read(theirs, MB)
                await trio.testing.wait_all_tasks_blocked()
                assert memory.total == 2 * MB
                await read(server, 2 * MB)
                await trio.testing.wait_all_tasks_blocked()
                assert memory.total == 0
                pin.give_up()


async def test_a_pin_that_holds_most_goes(caplog: pytest.LogCaptureFixture) -> None:
    with closing(Poller()) as poller, ExitStack() as stack:
        memory = Memory(4 * MB, poller)
        pairs = [socket.socketpair() for _ in range(4)]
        for sock in (sock for pair in pairs for sock in pair):
            in_hand(sock, stack)
        pins = [
            Pin(Name(f"c{number}"), pairs[2 * number][0], VALUE * (2 + number), pairs[2 * number + 1][0], b"", memory)
            for number in range(2)
        ]
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                for pin in pins:
                    nursery.start_soon(pin.run)
                await trio.testing.wait_all_tasks_blocked()
                memory.relieve()
                await trio.testing.wait_all_tasks_blocked()
                assert pairs[2][0].fileno() == -1
                assert memory.total == 2 * MB
                await read(pairs[0][1], 2 * MB)
                nursery.cancel_scope.cancel()
        assert memory.total == 0
        assert [record.getMessage()[:19] for record in caplog.records] == ["c1 is closed: it he"]


def in_hand(sock: socket.socket, stack: ExitStack) -> None:
    sock.setblocking(False)
    stack.enter_context(sock)


async def read(sock: socket.socket, size: int) -> None:
    """So many bytes."""
    while size:
        await trio.lowlevel.wait_readable(sock)
        size -= len(sock.recv(size))


class Holding:
    """Whoever holds something."""

    def evict(self, why: str) -> None:
        raise AssertionError(why)


def test_what_is_held_no_longer_is_returned_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is worth it, and for a hundredth of the time at the most: nobody is served meanwhile."""
    now = 0.0
    returned: list[float] = []

    def trim() -> None:
        nonlocal now
        returned.append(now)
        now += 0.065

    monkeypatch.setattr("coalesce.memory._trim", trim)
    monkeypatch.setattr("coalesce.memory.perf_counter", lambda: now)
    with closing(Poller()) as poller:
        memory = Memory(100 * MB, poller)
        one, other = Holding(), Holding()
        memory.hold(one, 9 * MB)
        memory.hold(other, 10 * MB)
        memory.return_to_system()
        memory.hold(one, 0)
        memory.return_to_system()  # less than half
        assert returned == []
        memory.hold(other, 0)
        memory.return_to_system()
        assert returned == [0.0]
        for _ in range(100):
            now += 0.25
            memory.hold(one, 20 * MB)
            memory.hold(one, 0)
            memory.return_to_system()
        assert 0.065 * len(returned) <= 0.011 * now
        assert len(returned) >= 4
        memory.hold(one, 7 * MB)
        memory.hold(one, 0)
        now += 10
        before = len(returned)
        memory.return_to_system()  # what the loop left
        memory.hold(one, 7 * MB)
        memory.hold(one, 0)
        now += 10
        memory.return_to_system()  # not worth it
        assert len(returned) - before <= 1
