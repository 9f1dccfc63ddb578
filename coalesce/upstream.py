"""How lanes are kept connected: each has one task, `Keeper.keep`, which dials, waits for the loss, and dials again.

What happens on a connection in between needs no task: see connection.py.
"""

from __future__ import annotations

import logging
import math
from contextlib import contextmanager, suppress
from time import perf_counter
from typing import TYPE_CHECKING

import trio

from coalesce.connection import Connection
from coalesce.core.errors import unavailable
from coalesce.core.identity import CONNECTION_NAME
from coalesce.core.lane import LaneState
from coalesce.dial import DialError, Refused, pause

if TYPE_CHECKING:
    from collections.abc import Iterator

    from coalesce.core.exchange import Exchange
    from coalesce.core.identity import Identity
    from coalesce.core.lane import Lane
    from coalesce.dial import Dialled, Dialler
    from coalesce.poller import Poller

log = logging.getLogger("coalesce")

# Seconds that a connection has to live for its loss to be the first failure, not the next.
_LIVED = 1.0
# Seconds without a session after which a lane is closed. Short jobs of one identity follow each other within it.
_IDLE = 60.0
# Seconds that requests wait for a look elsewhere: for a new connection in the same region, with TLS.
_HELD_AT_MOST = 0.25
# Seconds until a lane for large values whose identity is refused is dialled again, times two for each refusal in a row.
_REFUSED = 1.0
_REFUSED_AT_MOST = 60.0
# Seconds between two looks for another upstream while this one turns requests away, doubled each time.
_FIRST_LOOK = 1.0
_LAST_LOOK = 30.0
# To AUTH with a password alone, since 6.0.
_NO_PASSWORD_WANTED = b"-ERR AUTH <password> called without any password configured"


class Keeper:
    """Keeps lanes connected, each in a task of its own. `patience`: seconds that requests wait for a lost upstream."""

    def __init__(self, exchange: Exchange, poller: Poller, dialler: Dialler, patience: float) -> None:
        self._exchange = exchange
        self._poller = poller
        self._dialler = dialler
        self._patience = patience
        self.connection = Connection  # what is made for each: a tracer has another
        self._resumed_at = -math.inf
        self._resumed = trio.lowlevel.ParkingLot()  # those who wait for an attempt's turn, or for a pause to end
        self._dials: set[trio.CancelScope] = set()  # of shared lanes,
        self._dials_to_lend: set[trio.CancelScope] = set()  # ... and of leases
        self._held: dict[Lane, trio.Event] = {}  # those that wait for a pause to end before they are dialled
        self._homes = trio.lowlevel.ParkingLot()  # those who wait for news of the lane that theirs is to stand beside

    async def keep(self, lane: Lane) -> None:  # noqa: C901, PLR0912, PLR0915 (a dial, and each of its outcomes)
        """Keeps a lane connected, until its identity is refused or nobody rides it any more."""
        if lane.exclusive:
            await self._keep_lease(lane)
            return
        since = trio.current_time()
        attempt = refusals = 0
        looks = _Looks()
        following: Dialled | None = None  # a connection that stands already
        while await self._may_dial(lane):
            # An upstream that wants AUTH can be asked for its limit only by those who have it.
            ask = lane.identity == self._exchange.base or not self._exchange.lane(self._exchange.base).authenticated
            # Requests wait; the first attempt has its time all the same.
            hurry = attempt > 0 and lane.state is LaneState.DIALLING
            try:
                with self._poller.others_in_a_hurry():
                    dialled = following or await self._dial(lane, ask, self._patience_ends(since) if hurry else None)
            except Refused as refusal:
                if lane.over:  # meanwhile, in a pause
                    return
                if self._exchange.paused and lane.connections:
                    why = "refused"  # whoever is to come back may not be ready: the pause is for that, too
                elif lane.large:
                    refusals += 1
                    await self._go_without(lane, refusal.reply, refusals)
                    why = "refused"
                elif not self._exchange.is_base(lane):
                    log.debug("%s: refused", lane, extra=lane.ids)  # the reply may repeat the password
                    self._exchange.refuse(lane, refusal.reply)
                    self._homes.unpark_all()
                    self._exchange.flush(perf_counter())
                    return
                else:
                    why = str(refusal)
                    self._dialler.report(why)
            except DialError as problem:
                why = str(problem)
            else:
                if dialled is None:
                    continue
                turned_away = lane.large and self._exchange.lane(lane.identity).turned_away
                if lane.over or lane.outdated or turned_away:  # meanwhile
                    dialled.sock.close()
                    following = None
                    continue
                connected_at = trio.current_time()
                refusals = 0
                following = await self._attend(lane, dialled, looks)
                if lane.state is LaneState.CLOSED:
                    return
                since = trio.current_time()
                if following is not None or lane.outdated:
                    continue
                attempt = 0 if since > connected_at + _LIVED else attempt + 1
                # Who accepts only to hang up is not dialled a thousand times a second.
                await self._rest(trio.current_time() + pause(attempt))
                continue
            attempt += 1
            with self._poller.others_in_a_hurry():
                await self._back_off(lane, attempt, since, why)
            if lane.state is LaneState.FAILING and not self._is_ridden(lane):
                self._exchange.retire(lane)
                self._homes.unpark_all()
                return

    def pause(self) -> None:
        """A pause has begun. What is being dialled to be lent is nobody's any more: see `Leases.call_in`."""
        for dial in self._dials_to_lend:
            dial.cancel()

    def go_on(self) -> None:
        """A pause is over: every lane is dialled anew, at once, and requests have waited for no time at all."""
        self._resumed_at = trio.current_time()
        for dial in self._dials:
            dial.cancel()  # it may have begun before an upstream came that can be reached
        for link in self._exchange.links:
            if isinstance(link, Connection):
                link.news.set()
        self._resumed.unpark_all()
        for held in self._held.values():
            held.set()
        self._homes.unpark_all()

    def tidy(self) -> None:
        """To be called now and then, as nobody is told of those who leave.

        In a pause, ends what is kept for lanes that nobody waits for any more. After it, a connection that is to be
        replaced may have been waited for by them alone.
        """
        self._exchange.forget_moves()
        for lane, held in self._held.items():
            if lane.over:
                held.set()
        for lane in self._exchange.shared_lanes:
            if lane.outdated and isinstance(lane.link, Connection):
                lane.link.news.set()

    async def _dial(self, lane: Lane, ask: bool, ends: float | None) -> Dialled | None:
        """One attempt for a shared lane, as `Dialler.dial`. None: a pause has ended meanwhile."""
        with trio.CancelScope() as dial:
            self._dials.add(dial)
            try:
                return await self._dialler.dial(lane.identity, CONNECTION_NAME, ask=ask, ends=ends)
            finally:
                self._dials.discard(dial)
        return None

    def _patience_ends(self, since: float) -> float:
        """Until when requests wait that could have left until then. A pause does not count."""
        return math.inf if self._exchange.paused else max(since, self._resumed_at) + self._patience

    async def _rest(self, until: float) -> None:
        """Waits, though not beyond the end of a pause."""
        with trio.move_on_at(until):
            await self._resumed.park()

    async def _go_without(self, lane: Lane, reply: bytes, refusals: int) -> None:
        """The identity of a lane for large values is refused. Waits before that is asked again.

        The password may be another now: whoever is in stays in. But each refusal is in the upstream's ACL LOG.
        """
        self._exchange.refuse(lane, reply)
        self._exchange.flush(perf_counter())
        await self._rest(trio.current_time() + min(_REFUSED * 2.0**refusals, _REFUSED_AT_MOST))

    async def _may_dial(self, lane: Lane) -> bool:
        """A lane for large values waits until the usual one of its identity stands, beside which it is to be.

        While paused, only the lane that is always there is dialled: the upstream may not know the others' users yet.
        False: the lane is over.
        """
        while self._exchange.paused and not self._exchange.is_base(lane) and not lane.over:
            held = self._held[lane] = trio.Event()
            try:
                await held.wait()
            finally:
                del self._held[lane]
        if lane.over:
            return False
        if not lane.large:
            lane.outdated = False
            return True
        while lane.state is not LaneState.CLOSED:
            home = self._exchange.lane(lane.identity)
            if home.state is LaneState.READY and not (home.turned_away or home.outdated or self._exchange.paused):
                lane.outdated = False
                self._exchange.ask_role(lane.identity, at_once=True)
                self._exchange.flush(perf_counter())
                return True
            if home.state is LaneState.FAILING and lane.state is LaneState.DIALLING:
                self._exchange.fail(lane, home.why_failing)
                self._exchange.flush(perf_counter())
            if lane.state is LaneState.FAILING and not self._is_ridden(lane):
                self._exchange.retire(lane)
                return False
            await self._homes.park()
        return False

    async def _keep_lease(self, lane: Lane) -> None:
        """A leased connection: dialled once, for somebody who waits, and kept until it is lost or nobody borrows it."""
        dialled: Dialled | None = None
        reply = unavailable("paused")  # to nobody
        try:
            with self._poller.others_in_a_hurry(), self._until_a_pause():
                dialled = await self._dial_again(lane.identity)
        except Refused as refusal:
            reply = refusal.reply
        except DialError as problem:
            reply = unavailable(str(problem))
        if dialled is not None:
            await self._attend(lane, dialled)
            return
        self._exchange.lease_failed(lane, reply)
        self._exchange.flush(perf_counter())

    @contextmanager
    def _until_a_pause(self) -> Iterator[None]:
        with trio.CancelScope() as dial:
            if self._exchange.paused:  # it has begun before this
                dial.cancel()
            self._dials_to_lend.add(dial)
            try:
                yield
            finally:
                self._dials_to_lend.discard(dial)

    async def _dial_again(self, identity: Identity) -> Dialled:
        """A connection for a session that has long been let in. Raises as `dial_patiently`.

        Where `AUTH password` was taken then, and the default user wants none any more, that user is let in with any.
        """
        try:
            return await self._dialler.dial_patiently(identity, b"")
        except Refused as refusal:
            if identity.username is None and refusal.reply.startswith(_NO_PASSWORD_WANTED):
                return await self._dialler.dial_patiently(identity._replace(username=b"default"), b"")
            raise

    async def _back_off(self, lane: Lane, attempt: int, since: float, why: str) -> None:
        """Waits before the next attempt; requests that have waited for as long as they may are answered meanwhile."""
        wake = trio.current_time() + pause(attempt)
        patience_ends = self._patience_ends(since)
        if lane.state is LaneState.DIALLING and patience_ends <= wake:
            await self._rest(patience_ends)
            if lane.outdated:
                return  # a pause has ended
            if lane.state is LaneState.DIALLING and not self._exchange.paused:
                self._exchange.fail(lane, why)
                self._homes.unpark_all()
                self._exchange.flush(perf_counter())
        await self._rest(wake)

    async def _attend(self, lane: Lane, dialled: Dialled, looks: _Looks | None = None) -> Dialled | None:
        """Lets a lane use its new connection until that is lost, or nobody needs the lane any more: it is closed then.

        Returns the connection that is to follow, if there is one already.
        """
        lane.authenticated = dialled.authenticated
        if dialled.bulk_limit is not None:
            self._exchange.bulk_limit = dialled.bulk_limit
        lane.version = dialled.version
        lane.primary = dialled.primary
        connection = self.connection(dialled.sock, lane, self._exchange, self._poller)
        try:
            self._exchange.connected(lane, connection, dialled.round_trip)
            self._exchange.flush(perf_counter())
            self._tell_the_large_one(lane)
            while True:
                with trio.move_on_after(_IDLE) as idle:
                    await connection.news.wait()
                if await self._is_over(connection, lane):
                    return None
                if idle.cancelled_caught:
                    if self._is_needed_no_longer(lane):
                        return None
                    continue
                connection.news = trio.Event()
                if looks is None:
                    continue  # a lease that was turned away is not lent again
                if looks.may_look():
                    following = await self._look_elsewhere(connection, lane)
                    looks.looked()
                    if connection.lost.is_set():
                        connection.report()
                        return following
                lane.turned_away = False
                self._homes.unpark_all()
        finally:
            if not connection.lost.is_set():
                connection.close()

    def _is_needed_no_longer(self, lane: Lane) -> bool:
        """Whether nobody has used a lane for a while; it is closed then."""
        if lane.exclusive:
            return self._exchange.lease_is_idle(lane)
        if lane.sessions or lane.owed or (not lane.large and self._is_ridden(lane)):
            return False
        self._exchange.retire(lane)
        return True

    def _is_ridden(self, lane: Lane) -> bool:
        """Whether a lane has to stay: also the usual one as long as there is one beside it, and a failing one, which is
        remembered as such, as long as there are sessions that would ask for another.
        """
        if lane.large:
            return bool(lane.sessions or self._exchange.lane(lane.identity).sessions)
        beside = lane.identity in self._exchange.large_lanes
        return bool(lane.sessions) or beside or self._exchange.is_base(lane)

    def _tell_the_large_one(self, lane: Lane) -> None:
        """A lane has a new connection; the one beside it, for large values, is to have one, too."""
        if lane.large or lane.exclusive:
            return
        for large in self._beside(lane):
            large.news.set()
        self._homes.unpark_all()

    def _beside(self, lane: Lane) -> list[Connection]:
        """The connection for what is large of the same identity, if there is one."""
        large = self._exchange.large_lanes.get(lane.identity)
        return [large.link] if large is not None and isinstance(large.link, Connection) else []

    async def _is_over(self, connection: Connection, lane: Lane) -> bool:
        """Whether a connection is lost. One that is outdated is closed, once nobody has anything in flight on it."""
        if lane.outdated and not lane.exclusive:
            connection.hold()
            await connection.emptied()
            if not connection.lost.is_set():
                connection.end()
        if connection.lost.is_set():
            connection.report()
        return connection.lost.is_set()

    async def _have_the_usual_one_look(self, connection: Connection, lane: Lane) -> None:
        """A lane for large values was turned away. The usual one looks elsewhere, and it follows."""
        home = self._exchange.lane(lane.identity)
        if not isinstance(home.link, Connection):
            return  # it does already
        home.turned_away = True
        home.link.news.set()
        connection.hold()
        with trio.move_on_after(_HELD_AT_MOST):
            while not lane.outdated and not connection.lost.is_set():
                connection.news = trio.Event()
                await connection.news.wait()
        connection.go_on()
        connection.news.set()
        self._exchange.flush(perf_counter())

    async def _look_elsewhere(self, connection: Connection, lane: Lane) -> Dialled | None:
        """The upstream said that it is the wrong one, or not ready: dials, and returns what is to follow.

        None when nobody else is there: the upstream is a replica for good, or the failover is not through. Requests
        wait meanwhile, so that the next one reaches the new primary.
        """
        if lane.large:
            await self._have_the_usual_one_look(connection, lane)
            return None
        self._dialler.close()  # its spare connections lead to where this one does
        dialled: Dialled | None = None
        held = [connection, *self._beside(lane)]
        for each in held:
            each.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._let_go, held)
            with suppress(Refused, DialError), self._poller.others_in_a_hurry():
                dialled = await self._dial(lane, False, None)
            nursery.cancel_scope.cancel()
        if dialled is not None and dialled.replica:
            dialled.sock.close()
            dialled = None
        if dialled is None:
            for each in held:
                each.go_on()
            self._exchange.flush(perf_counter())
            return None
        connection.hold()
        try:
            with self._poller.others_in_a_hurry():
                await connection.emptied()
        except BaseException:
            dialled.sock.close()
            raise
        if lane.outdated or self._exchange.paused:  # what was dialled before a pause has ended is not gone on with
            dialled.sock.close()
            for each in held:
                each.go_on()
            connection.news.set()
            return None
        if not connection.lost.is_set():
            log.info("%s: the upstream turned requests away; going on with a new connection", lane, extra=lane.ids)
            connection.end()
        return dialled

    async def _let_go(self, held: list[Connection]) -> None:
        """Who rides a lane waits for a look elsewhere, but not for one that takes long."""
        await trio.sleep(_HELD_AT_MOST)
        for connection in held:
            connection.go_on()
        self._exchange.flush(perf_counter())


class _Looks:
    """How often it is looked whether another upstream is there: some replicas are meant to be written to in vain."""

    def __init__(self) -> None:
        self._next = 0.0
        self._pause = _FIRST_LOOK

    def may_look(self) -> bool:
        now = trio.current_time()
        if now > self._next + _LAST_LOOK:
            self._pause = _FIRST_LOOK
        return now >= self._next

    def looked(self) -> None:
        self._next = trio.current_time() + self._pause
        self._pause = min(2 * self._pause, _LAST_LOOK)
