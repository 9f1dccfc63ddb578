"""The nursery tree, signals, drain.

serve
+- Poller.run            all shared sockets, clients' and lanes'
+- keep                  one for each lane: dial, wait for its loss, dial again
+- Clients.accept        one for each listening socket; ends first when draining
+- Pin.run               one for each client with a connection of its own for good
+- expire                refuses those who wait for a lease for too long
+- watch                 gives up connections whose upstream's host is silent
+- watch_clients         gives up clients whose host is silent
+- signals               here

Those that serve everybody (`Poller.run`, `expire`, `watch`, `watch_clients`) begin anew after a fault of ours.
"""

from __future__ import annotations

import enum
import logging
import math
import resource
import secrets
import signal
from contextlib import ExitStack, closing
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import trio

from coalesce.config import TcpAddress
from coalesce.connection import Connection
from coalesce.core.errors import unavailable
from coalesce.core.exchange import Exchange
from coalesce.core.identity import CONNECTION_NAME, Identity
from coalesce.core.lane import Lane, LaneState, Limits
from coalesce.dial import DialError, Dialler, NotLetInError, Refused, TlsError, pause
from coalesce.downstream import Client, Clients
from coalesce.listening import close_listener, is_loopback, is_of_this_host, open_listeners
from coalesce.liveness import watch, watch_clients
from coalesce.logs import trace
from coalesce.memory import Memory
from coalesce.passwords import ClientPasswords, PasswordFileError
from coalesce.pin import Pin, Pinned
from coalesce.poller import Poller
from coalesce.tally import Closed, Lost
from coalesce.tls import CertificateError, listener_certificates
from coalesce.upstream import Keeper

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from coalesce.config import Address, Config
    from coalesce.core.ledger import Totals
    from coalesce.core.pause import Unfinished
    from coalesce.core.session import Session
    from coalesce.dial import Dialled
    from coalesce.faults import Told

log = logging.getLogger("coalesce")

# Descriptors for what is neither a client nor a lane nor a lease: listeners, spare connections, files, the log.
_OTHER_DESCRIPTORS = 64
# Seconds between two looks at who has waited for a lease for too long.
_EXPIRE_EVERY = 0.25
# Seconds by which such a look is late only if this process stood still (SIGSTOP, say).
_STOOD_STILL = 0.5
# Seconds until a lane that failed by a fault of ours is dialled again.
_AFTER_A_FAULT = 1.0
# Seconds between two looks whether what was begun before a pause is finished.
_LOOK_AGAIN = 5e-3


class State(enum.Enum):
    """What a server does."""

    STARTING = "starting"
    SERVING = "serving"
    PAUSED = "paused"
    DRAINING = "draining"


class StartError(Exception):
    """What keeps coalesce from starting, in one line for its user."""


class UnreachableError(StartError):
    """The upstream can't be reached, which may pass. `why`: without its address."""

    def __init__(self, address: Address, why: str) -> None:
        super().__init__(f"can't reach upstream {address}: {why}")
        self.why = why


@dataclass
class Summary:
    """What a run did. `clean`: everything owed was delivered."""

    shared: Totals
    leased: Totals
    connections: int
    faults: int
    clean: bool

    def __str__(self) -> str:
        lanes, commands, batches, largest, own = self.shared
        mean = (commands + own) / batches if batches else 0
        faults = f"; {_times(self.faults, 'fault')} of its own" if self.faults else ""
        return (
            f"served {_times(commands, 'command')} in {_times(batches, 'batch', 'batches')} "
            f"(mean {mean:.1f}, largest {largest}), {_times(self.connections, 'connection')}, {_times(lanes, 'lane')}; "
            f"{_times(self.leased.commands, 'command')} on {_times(self.leased.lanes, 'lease')}"
            f"{faults}{'' if self.clean else '; the drain was cut short'}"
        )


def _times(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _is_loopback(listener: TcpAddress) -> bool:
    """Raises StartError."""
    try:
        return is_loopback(listener)
    except OSError as problem:
        raise StartError(f"can't listen on {listener}: {problem.strerror or problem}") from None


async def dial_first(dialler: Dialler, address: Address, identity: Identity, name: bytes) -> Dialled:
    """One attempt, by whoever says to coalesce's user what is wrong. Raises StartError."""
    try:
        return await dialler.try_once(identity, name)
    except Refused as refusal:
        raise StartError(f"upstream {address} refused: {refusal}") from None
    except NotLetInError as problem:
        raise StartError(f"upstream {address}: {problem}") from None
    except TlsError as problem:
        raise StartError(f"can't reach upstream {address}: {problem}") from None
    except DialError as problem:
        raise UnreachableError(address, str(problem)) from None


def _say_limit(session: Session, what: str) -> None:
    client = session.peer
    ids = client.ids if isinstance(client, Client) else None
    log.warning("%s %s", client, what, extra=ids)


_PLAIN = Exchange, Client, Connection, Pin


def _traced(config: Config) -> tuple[type[Exchange], type[Client], type[Connection], type[Pin]]:
    from coalesce.trace import Tracer, heading, traced  # noqa: PLC0415 (for those who want it)

    for line in heading(config):
        trace(line)
    return traced(Tracer(trace, values=config.trace_values))


def _secret() -> bytes:
    return secrets.token_hex(16).encode()


class Server:
    """One run. Everything it starts ends with `serve`."""

    def __init__(self, config: Config, secret: Callable[[], bytes] = _secret) -> None:
        """Raises StartError."""
        self.config = config
        upstream = config.upstream
        try:
            self.poller = Poller()  # (who shares the thread with it says so: `others_in_a_hurry`)
            self._dialler = Dialler(config, self.poller.tally)
            certificates = listener_certificates(config)
            judge = None if config.client_password_file is None else ClientPasswords(config.client_password_file)
        except (CertificateError, PasswordFileError) as problem:
            raise StartError(str(problem)) from None
        self.faults = self.poller.faults
        self._nursery: trio.Nursery | None = None
        self._new_lanes: list[Lane] = []
        self._pins: set[Pin] = set()
        self.started = False
        self._leaving = False  # it drains, or will before long
        self._draining = False
        self._end = trio.Event()  # asked for by other means than a signal
        self.software: str | None = None
        self.addresses: list[Address] = []
        self.began = perf_counter()
        base = Identity(None, None, upstream.database, 2)
        limits = Limits(config.lane_limit, config.client_limit, config.max_lanes, config.max_leases, config.hold_below)
        exchange, client, connection, self._pin = _traced(config) if config.trace or config.trace_values else _PLAIN
        self.exchange = exchange(
            base, self._open_lane, limits, secret, judge, self._say_fault, perf_counter, _say_limit
        )
        # (An identity has a lane, and another for what is large.)
        max_clients = allowed_clients(config.max_clients, config.max_leases + 2 * config.max_lanes + _OTHER_DESCRIPTORS)
        self.memory = Memory(config.clients_memory, self.poller)
        self._keeper = Keeper(self.exchange, self.poller, self._dialler, config.upstream_wait)
        self.clients = Clients(
            self.exchange,
            self.poller,
            max_clients,
            config.outbox_limit,
            self._start_pin,
            certificates,
            config.connect_timeout,
            config.client_silence,
            self.memory,
        )
        self.clients.client, self._keeper.connection = client, connection

    async def serve(self, task_status: trio.TaskStatus[list[Address]] = trio.TASK_STATUS_IGNORED) -> Summary:
        """Runs until a signal has been seen and what is owed has been delivered. Raises StartError.

        Has started, with the addresses listened on, when clients can connect.
        """
        self._look_at_listeners()
        with closing(self.poller), closing(self._dialler):
            self.software = await self._look_at_upstream()
            # (Nothing was begun that would have to be finished.)
            clean = True if self.software is None else await self._serve(task_status)
        shared, leased = (self.exchange.totals(exclusive=exclusive) for exclusive in (False, True))
        return Summary(shared, leased, self.clients.accepted, self.faults.count, clean)

    async def _serve(self, task_status: trio.TaskStatus[list[Address]]) -> bool:
        """Whether all that was owed was delivered."""
        listeners, self.addresses = self._listen()
        where = ", ".join(map(str, self.addresses))
        clean = False
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._for_ever, self._serve_sockets)
                nursery.start_soon(self._for_ever, self._expire)
                nursery.start_soon(self._for_ever, self._watch)
                nursery.start_soon(self._for_ever, self._watch_clients)
                for lane in self._new_lanes:
                    self._open_lane(lane)
                accepting = trio.CancelScope()
                nursery.start_soon(self._accept, listeners, accepting)
                log.info("listening on %s; upstream %s (%s)", where, self.config.upstream.address, self.software)
                self.started = True
                task_status.started(self.addresses)
                try:
                    await self._until_the_end(signals)
                    accepting.cancel()
                    self.clients.take_no_more()  # the tasks that accept may not be the next to run
                    clean = await self._drain(signals)
                finally:
                    self.clients.close_all()
                nursery.cancel_scope.cancel()
        return clean

    def end(self) -> None:
        """Drains and ends, as after SIGTERM."""
        self._end.set()

    @property
    def state(self) -> State:
        """What it does."""
        if not self.started:
            return State.STARTING
        if self._leaving:
            return State.DRAINING
        return State.PAUSED if self.paused else State.SERVING

    @property
    def paused(self) -> bool:
        return self.exchange.paused

    async def pause(self, patience: float) -> Unfinished | None:
        """Holds all that is asked from here on, until `resume`, and waits until what has been begun is finished.

        What can't be, or is not in time, is returned; the pause goes on. None: it was taken back meanwhile, or could
        not be, as coalesce ends.
        """
        if self._leaving or self._end.is_set():
            return None
        if not self.exchange.paused:
            log.info("paused: commands are held until coalesce resume (POST /resume)")
        self.exchange.pause()
        self._keeper.pause()
        self.exchange.flush(perf_counter())
        with trio.move_on_after(patience):
            while self.exchange.paused and self.exchange.unfinished().ends:  # noqa: ASYNC110 (nobody else is to look)
                await trio.sleep(_LOOK_AGAIN)
        return self.exchange.unfinished() if self.exchange.paused else None

    def resume(self) -> None:
        """Everything goes on, on new connections to the upstream."""
        if not self.exchange.paused:
            return
        log.info("resumed")
        self._dialler.close()  # its spare connections lead to where the others did
        self.exchange.go_on(perf_counter())
        self._keeper.go_on()
        self.exchange.flush(perf_counter())

    def why_not_started(self) -> str | None:
        """Why no client is accepted yet; None: some were."""
        if self.started:
            return None
        lane = self.exchange.lane(self.exchange.base)
        return f"starting: no upstream yet: {lane.why_failing}" if lane.state is LaneState.FAILING else "starting"

    def why_not_ready(self) -> str | None:
        """Why no client should come here; None: it should."""
        return "draining" if self._leaving else self.why_not_started()

    def why_no_upstream(self) -> str | None:
        """Why the upstream can't be used, as the connection that is always kept tells; None: it can."""
        lane = self.exchange.lane(self.exchange.base)
        return None if lane.state is LaneState.READY else f"no connection to the upstream: {lane.state.name.lower()}"

    async def _until_the_end(self, signals: AsyncIterator[int]) -> None:
        async with trio.open_nursery() as nursery:

            async def end_on_signal() -> None:
                if await anext(signals) == signal.SIGTERM and self.config.sigterm_delay and self.started:
                    await self._go_on_for_a_while(signals)
                self._end.set()

            nursery.start_soon(end_on_signal)
            await self._end.wait()
            nursery.cancel_scope.cancel()

    async def _go_on_for_a_while(self, signals: AsyncIterator[int]) -> None:
        """Until the application has ended, which was told to at the same time; nobody new is to be sent here.

        Not until no client is left: one may have a connection for each thing that it asks.
        """
        delay = self.config.sigterm_delay
        how = "held, or after coalesce resume served," if self.paused else "served"
        log.info("SIGTERM: clients are %s for %g s more; another signal drains at once", how, delay)
        self._leaving = True
        with trio.move_on_after(delay):
            await anext(signals)

    def _look_at_listeners(self) -> None:
        """Redis's protected mode, translated: what clients do not have, strangers on the network do not get.

        That is what coalesce authenticates with upstream, and access itself: nobody but this host reaches an upstream
        on loopback or on a unix socket.
        """
        config = self.config
        upstream = config.upstream
        if config.unprotected or config.tls_client_ca is not None or config.client_password_file is not None:
            return
        open_to_strangers = [each for each in config.listen if isinstance(each, TcpAddress) and not _is_loopback(each)]
        if not open_to_strangers:
            return
        if upstream.password is not None or config.upstream_password_file is not None:
            what = "coalesce has credentials for the upstream"
        elif config.upstream_cert is not None:
            what = "coalesce has a certificate for the upstream"
        elif is_of_this_host(upstream.address):
            what = "nobody but this host reaches the upstream itself"
        else:
            return
        raise StartError(
            f"{what}, and whoever reaches {open_to_strangers[0]} could use it: have clients authenticate "
            "(--client-password-file or --tls-client-ca), listen on loopback or a unix socket, or say --unprotected"
        )

    async def _look_at_upstream(self) -> str | None:
        """Dials before anything else: whoever starts coalesce wants to know at once when that can't work.

        Returns what the upstream is; None when it was to end before that was known. Raises StartError.
        """
        dialled: Dialled | None = None
        trouble: StartError | None = None
        # (SIGINT stays what it is: nothing is interrupted that would have to be drained.)
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:

                async def give_up_when_told() -> None:
                    await self._until_the_end(signals)
                    nursery.cancel_scope.cancel()

                nursery.start_soon(give_up_when_told)
                try:
                    dialled = await self._dial_until_it_works()
                except StartError as problem:
                    trouble = problem
                nursery.cancel_scope.cancel()
        if trouble is not None:
            raise trouble
        if dialled is None:
            log.info("told to end before the upstream was reached")
            return None
        dialled.sock.close()
        lane = self.exchange.lane(self.exchange.base)
        lane.authenticated = dialled.authenticated
        if lane.state is LaneState.FAILING:
            lane.become(LaneState.DIALLING)  # who comes before it is connected waits, as at any other start
        return dialled.software

    async def _dial_until_it_works(self) -> Dialled:
        """Once at least, and then for as long as the start may take. Raises StartError.

        Meanwhile, the lane that is always there is failing: for probes, metrics and the status page.
        """
        patience = self.config.start_timeout
        lane = self.exchange.lane(self.exchange.base)
        ends = trio.current_time() + patience
        attempt = 0
        problem: UnreachableError | None = None
        while True:
            # The first attempt has its time, also where there is none for another.
            with trio.move_on_at(ends if attempt else math.inf):
                try:
                    return await dial_first(
                        self._dialler, self.config.upstream.address, self.exchange.base, CONNECTION_NAME
                    )
                except UnreachableError as found:
                    problem = found
            assert problem is not None
            attempt += 1
            if patience:
                if problem.why != lane.why_failing:
                    log.warning("%s; trying until %g s are over (--start-timeout)", problem, patience)
                if lane.state is LaneState.DIALLING and not self.exchange.paused:
                    self.exchange.fail(lane, problem.why)
                lane.why_failing = problem.why
            with trio.move_on_at(ends):
                await trio.sleep(pause(attempt))
            if trio.current_time() >= ends:
                raise StartError(f"{problem}; tried for {patience:g} s (--start-timeout)") if patience else problem

    def _listen(self) -> tuple[list[socket.socket], list[Address]]:
        listeners: list[socket.socket] = []
        addresses: list[Address] = []
        for address in self.config.listen:
            try:
                opened, really = open_listeners(address, self.config.socket_mode, self.config.client_silence)
            except OSError as problem:
                for sock in listeners:
                    close_listener(sock)
                raise StartError(f"can't listen on {address}: {problem.strerror or problem}") from None
            listeners += opened
            addresses.append(really)
        return listeners, addresses

    async def _accept(self, listeners: list[socket.socket], accepting: trio.CancelScope) -> None:
        with accepting:
            async with trio.open_nursery() as nursery:
                for sock in listeners:
                    nursery.start_soon(self.clients.accept, sock)

    def _open_lane(self, lane: Lane) -> None:
        if self._nursery is None:
            self._new_lanes.append(lane)  # the base lane, made before anything runs
        else:
            self._nursery.start_soon(self._keep, lane)
            self.poller.end_turn()

    async def _keep(self, lane: Lane) -> None:
        """Our own faults fail the lane, and nothing else."""
        while lane.state is not LaneState.CLOSED:
            try:
                await self._keeper.keep(lane)
            except Exception as fault:  # noqa: BLE001 (ours, whatever it is)
                self._fail(lane, fault)
                await trio.sleep(_AFTER_A_FAULT)
            else:
                return

    def _fail(self, lane: Lane, fault: Exception) -> None:
        self.faults.say(lane, fault, "the connection is closed")
        with self.faults.contained(lane, "while the connection was closed"):
            if lane.link is not None:
                if not lane.exclusive:
                    self.poller.tally.lost[Lost.FAULT] += 1
                self.exchange.lose(lane)
            elif lane.exclusive and lane.state is not LaneState.CLOSED:
                self.exchange.lease_failed(lane, unavailable("a fault in coalesce"))
        self.exchange.flush(perf_counter())

    def _say_fault(self, lane: Lane, fault: Exception) -> None:
        self.faults.say(lane, fault, "who waits for it is closed")

    async def _for_ever(self, task: Callable[[], Awaitable[None]]) -> None:
        """A task that serves everybody, and begins anew after a fault of ours."""
        while True:
            with self.faults.contained(f"task {task.__name__.strip('_')}", "it begins anew"):
                await task()
            await trio.sleep(_AFTER_A_FAULT)

    async def _serve_sockets(self) -> None:
        await self.poller.run(self.exchange.flush)

    async def _watch(self) -> None:
        await watch(self.exchange, self._connections, self._pins, self.config.upstream_silence)

    async def _watch_clients(self) -> None:
        await watch_clients(self.clients, self._pins, self.config.client_silence)

    def _start_pin(self, client: Told, sock: socket.socket, unsent: bytes, lane: Lane, pending: bytes) -> None:
        """Owns the client and the lane's connection from here on; must not raise: no session speaks for them."""
        assert self._nursery is not None
        assert isinstance(lane.link, Connection)
        self.clients.pinned += 1
        pinned = Pinned(client, lane)
        with self.faults.contained(pinned, "the client is closed"), ExitStack() as undo:
            undo.callback(self.poller.tally.closed.update, [Closed.FAULT])
            undo.callback(self._unpin)
            undo.callback(self.poller.close_removed, sock)
            undo.callback(lane.link.discard)
            upstream, rest = lane.link.release()
            undo.callback(self.poller.close_removed, upstream)
            pin = self._pin(pinned, sock, unsent, upstream, rest + pending, self.memory, self.poller.tally)
            undo.callback(pin.close)
            if self._draining:
                pin.drain()
            self._nursery.start_soon(self._run_pin, pin)
            undo.pop_all()
            self._pins.add(pin)
            self.poller.end_turn()

    async def _run_pin(self, pin: Pin) -> None:
        try:
            with self.poller.others_in_a_hurry():
                await pin.run()
        except Exception as fault:  # noqa: BLE001 (ours, whatever it is)
            self.faults.say(pin, fault, "the client is closed")
            self.poller.tally.closed[Closed.FAULT] += 1
        finally:
            self._pins.discard(pin)
            self._unpin()
            self.exchange.flush(perf_counter())

    def _unpin(self) -> None:
        """The place of a pinned client, and its lease, are for somebody else."""
        self.clients.pinned -= 1
        self.clients.left.unpark_all()
        self.exchange.leases.unpin()

    def _connections(self) -> Iterator[Connection]:
        return (link for link in self.exchange.links if isinstance(link, Connection))

    async def _expire(self) -> None:
        patience = self.config.upstream_wait
        looked = perf_counter()
        not_before = looked
        while True:
            await trio.sleep(_EXPIRE_EVERY)
            now = perf_counter()
            if now > looked + _EXPIRE_EVERY + _STOOD_STILL:
                not_before = now + patience  # what they wait for has not been looked at either
            looked = now
            self._dialler.expire()
            self.memory.relieve()  # of what was kept outside of the poller's rounds
            self.memory.return_to_system()
            self._keeper.tidy()
            if now >= not_before:
                self.clients.expire()
                self.exchange.expire(now, patience)
            self.exchange.flush(now)

    async def _drain(self, signals: AsyncIterator[int]) -> bool:
        """Finishes what is owed. False when the deadline or a second signal came first."""
        log.info("draining; clients: %d, of them pinned: %d", self.clients.shared + len(self._pins), len(self._pins))
        self._leaving = self._draining = True
        with self.faults.contained("drain", "it goes on"):
            self.resume()  # what has been read is to be answered
        with self.faults.contained("drain", "it goes on"):
            self.clients.read_last()
        with self.faults.contained("drain", "it goes on"):
            self.exchange.drain()
        self.exchange.flush(perf_counter())
        for pin in list(self._pins):
            pin.drain()
        finished = False
        async with trio.open_nursery() as nursery:

            async def stop_on_signal() -> None:
                await anext(signals)
                nursery.cancel_scope.cancel()

            nursery.start_soon(stop_on_signal)
            with trio.move_on_after(self.config.drain_timeout):
                while self.clients.shared or self.clients.pinned:
                    await self.clients.left.park()
                finished = True
            nursery.cancel_scope.cancel()
        return finished


def allowed_clients(wanted: int, spare: int) -> int:
    """How many clients the process may have, after raising its limit of descriptors as far as it goes.

    `spare` are for other things than clients; where there are few in all, those get a quarter.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + spare
    if hard != resource.RLIM_INFINITY:
        needed = min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    allowed = min(wanted, needed - min(spare, needed // 4))
    if allowed < wanted:
        log.warning("%d clients at most, not %d: the system allows %d descriptors", allowed, wanted, hard)
    return max(1, allowed)
