"""All shared sockets, clients' and lanes', in one level-triggered epoll, whose own fd a single trio task awaits.

A trio task for each client costs 18 to 23 us a command, most of it waking up; the nested epoll pays one wake-up for all
that is ready. The lanes are in here too, rather than awaited by tasks of their own: measured with 50 clients, the proxy
takes 7.2 us a command this way and 9.9 with a task for each lane, because replies then come with the next requests in
one wake-up.

Linux only, and the only place that is: a kqueue would take the place of this class.
"""

from __future__ import annotations

import select
from collections import deque
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

import trio

from coalesce.faults import Faults
from coalesce.tally import Tally

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT
ERROR = select.EPOLLERR
HANG_UP = select.EPOLLHUP  # both ways
END_OF_INPUT = select.EPOLLRDHUP  # for those that are not read from

# Sockets served between two looks at the limits of a lane. With at most 16 KiB from each, a round takes 4 MiB at most.
_MOST_EVENTS = 256
# A round with fewer events than this has emptied the well.
_FEW_EVENTS = 3
# Seconds for which requests are gathered while the well is not empty, and then what there is leaves. Measured with 50
# and 200 clients: batches of 20 to 30, against 12 to 15 when each round ended with a flush; p50 the same or shorter.
_GATHER = 200e-6
# Seconds after which other tasks get a turn, however much is ready; and when little goes on and none is in a hurry.
_TURN = 1e-3
_LONG_TURN = 10e-3
# Seconds that a poll lingers for what comes next, when little goes on. Going back to trio and coming again takes 16 us,
# half of what a lone command costs. Longer than the kernel's tick (1 to 10 ms), before which a timer has to be set in
# the hardware, for each poll, and taken out again: with 1 ms a lone command took 66 us of CPU, with 10 ms 43 (p50 119
# and 87 us, twemproxy 75 to 79). Under load it would make batches shorter, hence "little": events in a millisecond, 2
# for a lone command.
_LINGER = 10e-3
_LITTLE = 64
_WINDOW = 1e-3
# Clients closed in a round, and the part of those that wait for it when there are many more: 100 us each.
_CLOSES = 2
_CLOSES_OF_MANY = 1 / 64


class Member(Protocol):
    """What stands behind a socket in the poller."""

    def on_ready(self, flags: int, /) -> None:
        """The socket is readable, writable or broken. Must take what is there without waiting."""

    def fail(self, fault: Exception, /) -> None:
        """`on_ready` raised, which is a fault of ours. Says so, and ends this member and nothing else.

        Must not raise.
        """


class Poller:
    """Sockets and who is told when one is ready. The owner of a socket removes it before closing it."""

    def __init__(self) -> None:
        self.faults = Faults()  # of whatever is served here,
        self.tally = Tally()  # ... and what happened to it
        self._epoll = select.epoll()
        self._members: dict[int, Member] = {}
        self._in_a_hurry = 0  # other tasks
        self._turn_is_over = False
        self.rounds = 0  # until now: for members whose part in one is limited
        self._in_round = False
        self._at_end: list[Callable[[], None]] = []  # of the round
        self._to_close_at_leisure: deque[socket.socket] = deque()
        self._events = 0  # in this window
        self._window_ends = 0.0
        self._little = True  # ... in the last one

    def add(self, sock: socket.socket, member: Member, flags: int) -> None:
        fd = sock.fileno()
        self._epoll.register(fd, flags)
        self._members[fd] = member

    def change(self, sock: socket.socket, flags: int) -> None:
        """With no flags left, only a broken connection is told of."""
        self._epoll.modify(sock.fileno(), flags)

    def remove(self, sock: socket.socket) -> None:
        fd = sock.fileno()
        del self._members[fd]
        self._epoll.unregister(fd)

    def remove_and_close(self, sock: socket.socket, *, at_leisure: bool = False) -> None:
        """As `remove`, and closes the socket at a safe point."""
        self.remove(sock)
        self.close_removed(sock, at_leisure=at_leisure)

    def close_removed(self, sock: socket.socket, *, at_leisure: bool = False) -> None:
        """Closes a socket that has been removed, at a safe point.

        In the middle of a round that is its end: events of the round may still be waiting for this descriptor, and
        must not meet another socket that was given the same number. `at_leisure`: or the end of one of the next, when
        thousands leave at once and everybody else would wait for as many closes.
        """
        if not self._in_round:
            sock.close()
        elif at_leisure:
            self._to_close_at_leisure.append(sock)
        else:
            self._at_end.append(sock.close)

    def at_end_of_round(self, call: Callable[[], None]) -> None:
        """Has something done when nobody is in the middle of anything: at the end of this round, or of the next."""
        self._at_end.append(call)

    def _end_round(self) -> None:
        for call in self._at_end:  # (more may be added meanwhile)
            call()
        self._at_end.clear()
        waiting = self._to_close_at_leisure
        for _ in range(min(len(waiting), max(_CLOSES, int(len(waiting) * _CLOSES_OF_MANY)))):
            waiting.popleft().close()

    @contextmanager
    def others_in_a_hurry(self) -> Iterator[None]:
        """Within it, other tasks get their turn as soon as no more than a few sockets are ready."""
        self._in_a_hurry += 1
        try:
            yield
        finally:
            self._in_a_hurry -= 1

    def end_turn(self) -> None:
        """Another task has just been given something to do."""
        self._turn_is_over = True

    async def run(self, flush: Callable[[float], None]) -> None:
        """Serves all sockets until cancelled. `flush(now)` is called whenever no more than a few of them are ready."""
        fd = self._epoll.fileno()
        others_first = False
        while True:
            if not self._to_close_at_leisure:
                await trio.lowlevel.wait_readable(fd)
            # Who was given something to do begins with it, and goes on, before anybody here lingers.
            others_first = self.drain(flush, linger=not others_first)
            if others_first:
                await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """To be called when every member has been removed."""
        for sock in self._to_close_at_leisure:
            sock.close()
        self._epoll.close()

    def drain(self, flush: Callable[[float], None], *, linger: bool = True) -> bool:
        """Takes what is ready as long as much is, so that batches grow with the load; what is alone leaves at once.

        True when other tasks are to have a turn, though there is more to do here or they were given something to do.
        """
        poll = self._epoll.poll
        members = self._members
        now = perf_counter()
        may_linger = linger and self._little and not self._in_a_hurry
        turn_ends = now + (_LONG_TURN if may_linger else _TURN)
        gathered = now + _GATHER
        timeout = 0.0
        while True:
            events = poll(timeout, _MOST_EVENTS)
            self._in_round = True
            self.rounds += 1
            for fd, flags in events:
                member = members.get(fd)
                if member is not None:  # None: one of the events before ended it
                    try:
                        member.on_ready(flags)
                    except Exception as fault:  # noqa: BLE001 (ours, whatever it is)
                        member.fail(fault)
            if self._at_end or self._to_close_at_leisure:
                self._end_round()
            self._in_round = False
            now = perf_counter()
            self._count(len(events), now)
            few = len(events) < _FEW_EVENTS
            if few or now > gathered:
                flush(now)
                gathered = now + _GATHER
            if now > turn_ends or self._turn_is_over:
                flush(now)
                given_away, self._turn_is_over = self._turn_is_over, False
                return given_away or bool(self._to_close_at_leisure)
            if few and not self._to_close_at_leisure:
                if not (may_linger and self._little) or (timeout and not events):
                    return False
                timeout = _LINGER
            else:
                timeout = 0.0

    def _count(self, events: int, now: float) -> None:
        self._events += events
        if now > self._window_ends:
            self._little = self._events < _LITTLE
            self._events = 0
            self._window_ends = now + _WINDOW
