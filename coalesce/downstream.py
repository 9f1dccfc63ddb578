"""The shared clients: their sockets, what is read from them, and what could not be sent to them yet.

No task and no `async` in here, but for the life of a listener: everything happens in `on_ready`, called by the poller,
and in the methods that the core calls (`coalesce.core.session.Peer`).
"""

from __future__ import annotations

import errno
import logging
import select
import socket
import struct
import sys
from collections import deque
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

import trio

from coalesce.config import TcpAddress
from coalesce.core.containment import contained
from coalesce.core.errors import MAX_CLIENTS
from coalesce.greeting import Greetings
from coalesce.keepalive import keep_alive, keep_place
from coalesce.listening import close_listener
from coalesce.memory import Memory
from coalesce.poller import END_OF_INPUT, ERROR, HANG_UP, READABLE, WRITABLE
from coalesce.pulse import Pulse
from coalesce.tally import Closed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from coalesce.core.exchange import Exchange
    from coalesce.core.lane import Lane
    from coalesce.core.resp import RequestReader
    from coalesce.core.session import Session
    from coalesce.faults import Told
    from coalesce.poller import Poller
    from coalesce.tls import Certificates, TlsSocket

log = logging.getLogger("coalesce")

# Bytes of one recv. Redis reads as much; a chunk has to hold many requests of a client that pipelines, and no more.
_CHUNK = 16 * 1024
# ... while a request of thousands of arguments arrives: each takes 2 us of everybody's time. (With TLS it is a record.)
_SMALL_CHUNK = 2 * 1024
# ... while a large value arrives.
_LARGE_CHUNK = 256 * 1024
# Replies up to this size share a piece of the outbox. Bytes.
_PIECE = 64 * 1024
# Bytes of an outbox that are sent before others get a turn.
_TURN = 256 * 1024
# Clients accepted before others get a turn. Redis 8: max-new-connections-per-cycle 10. But here each takes 25 us, and
# 100 more to be closed again: in a storm of them others would wait for milliseconds.
_ACCEPTS = 2
# Seconds without accepting after an error, such as no descriptor being left.
_PAUSE = 0.1
# Seconds in which clients are accepted, and none in vain, until the trouble is over.
_WORKS_AGAIN = 1.0
# What follows a fault of ours.
_CLOSED = "the client is closed"
# Of a unix socket's other end: `struct ucred`.
_CREDENTIALS = struct.Struct("iII")


class Client:
    """A client that shares lanes: its socket, and the outbox of what the socket would not take. `number` and `origin`
    (where it comes from) are for logs.

    Owns the socket until `pin` hands it on.
    """

    __slots__ = ("_clients", "_closing", "_deaf", "_flags", "_head_sent", "_heeds_end", "_held_by_core", "_holds",
                 "_outbox", "_outbox_size", "_parked", "_pulse", "_reading", "_recv", "_send", "number", "origin",
                 "session", "sock")  # fmt: skip

    def __init__(self, clients: Clients, sock: socket.socket, origin: str) -> None:
        self._clients = clients
        self.number = clients.accepted + 1
        self.origin = origin
        self.sock: socket.socket | None = sock
        self._recv = sock.recv
        self._send = sock.send
        self._outbox: deque[bytes | bytearray] | None = None  # None: all was sent
        self._outbox_size = 0  # bytes
        self._head_sent = 0  # bytes of its first piece
        self._held_by_core = 0  # bytes
        self._closing = False
        self._reading = True
        self._heeds_end = False
        self._parked = False  # not in the poller, until it is to be read
        self._deaf = False  # the other end is closed: what is written to it is lost
        self._pulse = Pulse(sock)
        self._holds = False  # more than its place, when it was last looked at
        self._flags = READABLE
        clients.poller.add(sock, self, READABLE)
        try:
            self.session: Session = clients.exchange.connect(self)
        except BaseException:
            clients.poller.remove(sock)
            raise

    def __str__(self) -> str:
        return f"client c{self.number} ({self.origin})"

    @property
    def ids(self) -> dict[str, str]:
        """For the log: both ends."""
        return {"client": f"c{self.number}", "address": self.origin} | self.session.lane.ids

    # --- called by the poller ---

    def on_ready(self, flags: int) -> None:
        """HOT. One recv; what it brought is on the lane afterwards, or waits its turn."""
        if flags & READABLE and self._flags & READABLE:  # not an event from before somebody stopped the reading
            session = self.session
            try:
                reader = session.reader
                data = self._recv(_CHUNK if reader is None else _chunk(reader))
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._break()
                return
            if data:
                self._clients.exchange.receive(session, data)
            else:
                self._clients.exchange.end_of_input(session)
        elif flags & (ERROR | HANG_UP):
            self._park()
            return
        elif flags & END_OF_INPUT & self._flags:
            self._heeds_end = False  # it is told of as long as it is not read
            self._watch()
            self._clients.exchange.end_in_sight(self.session)
        if flags & WRITABLE:
            self._send_outbox()

    def fail(self, fault: Exception) -> None:
        """A fault of ours while this client was served: it is closed, and its upstream connection too if it has one."""
        faults = self._clients.poller.faults
        faults.say(self, fault, _CLOSED)
        self._clients.poller.tally.closed[Closed.FAULT] += 1
        self._drop_outbox()
        with faults.contained(str(self), "while it was closed"):
            self._clients.exchange.depart_in_doubt(self.session)
        with faults.contained(str(self), "while it was closed"):
            self._shut()

    def _park(self) -> None:
        """The other end has been closed: nothing can be written to it any more.

        What it sent is run all the same, as Redis would have run it before it wrote the first reply: what has been read
        of it, and what is still to be read of it when that is wanted again. Until then nobody could stop the poller
        from telling of the close.
        """
        if self._heeds_end:
            self._clients.exchange.end_in_sight(self.session)
        if self.sock is None:
            return
        if not self._parked:
            self._clients.poller.remove(self.sock)
        self._parked = self._deaf = True
        self._drop_outbox()
        if self._closing:
            self._shut()
        else:
            self._watch()

    # --- called by the core (Peer) ---

    def write(self, data: bytes) -> None:
        """HOT. Sends, and keeps what the socket does not take."""
        if self._outbox is None:
            if self._deaf:
                return
            try:
                sent = self._send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                self._park()
                return
            if sent == len(data):
                return
            self._outbox = deque()
            self._keep(data[sent:])
        elif self._outbox_size > self._clients.outbox_limit:
            self._clients.poller.tally.closed[Closed.OUTBOX] += 1
            size, limit = self._outbox_size, self._clients.outbox_limit
            what = "%s is closed: it left %d bytes of replies unread (--outbox-limit %d)"
            log.warning(what, self, size, limit, extra=self.ids)
            self._break()
        else:
            self._keep(data)

    def write_more(self, data: bytes) -> None:
        if self._outbox is None:
            self.write(data)
        else:
            self._keep(data)

    def read(self, wanted: bool, end: bool) -> None:
        self._reading = wanted
        self._heeds_end = end
        self._watch()

    def close(self) -> None:
        if self._outbox is not None:
            self._closing = True
            self._reading = self._heeds_end = False
            self._watch()
        else:
            self._shut()

    def hold(self, size: int) -> None:
        self._held_by_core = size
        self._count()

    def pin(self, lane: Lane, pending: bytes) -> None:
        """Leaves the poller. What is still in the outbox goes first."""
        sock = self.sock
        assert sock is not None
        if not self._parked:
            self._clients.poller.remove(sock)
        self.sock = None
        self._clients.forget(self)
        unsent = b"".join(self._outbox or ())[self._head_sent :]
        self._drop_outbox()
        keep_alive(sock, self._clients.silence)
        self._clients.start_pin(self, sock, unsent, lane, pending)

    # --- called by whoever watches (liveness.py) ---

    def silent_for(self, now: float) -> float:
        """As `Pulse.silent_for`. Afterwards the kernel looks after it as what it holds demands."""
        sock = self.sock
        if sock is None:
            return 0.0
        holds = self._heeds_end or self.session.lease is not None
        if holds != self._holds:
            self._holds = holds
            keep_alive(sock, self._clients.silence) if holds else keep_place(sock)
        return self._pulse.silent_for(now)

    # --- own ---

    def give_up(self) -> None:
        """Closes at once, whatever is owed."""
        self._break()

    def evict(self, what: str) -> None:
        """As `Holder`. What is large of its requests, and has not left, is not run."""
        if self.sock is not None:
            log.warning("%s is closed: %s", self, what, extra=self.ids)
            self._clients.poller.tally.closed[Closed.MEMORY] += 1
            self._break()
        self._clients.exchange.withdraw(self.session)

    def _count(self) -> None:
        self._clients.memory.hold(self, self._held_by_core + self._outbox_size)

    def _drop_outbox(self) -> None:
        self._outbox = None
        self._outbox_size = self._head_sent = 0
        self._count()

    def _keep(self, data: bytes) -> None:
        outbox = self._outbox
        assert outbox is not None
        if len(data) >= _PIECE:
            outbox.append(data)
        elif outbox and isinstance(outbox[-1], bytearray) and len(outbox[-1]) < _PIECE:
            outbox[-1] += data  # an object for each small reply would take more room than the reply
        else:
            outbox.append(bytearray(data))
        self._outbox_size += len(data)
        self._count()
        self._watch()

    def _send_outbox(self) -> None:
        outbox = self._outbox
        if outbox is None or self.sock is None:
            return
        try:
            turn = _TURN
            while outbox:
                sent = self._send(memoryview(outbox[0])[self._head_sent :][:turn])
                self._outbox_size -= sent
                self._head_sent += sent
                turn -= sent
                if self._head_sent < len(outbox[0]):
                    break
                self._head_sent = 0
                outbox.popleft()
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self._park()
            return
        self._count()
        if outbox:
            self._watch()
            return
        self._outbox = None
        if self._closing:
            self._shut()
        else:
            self._watch()

    def _watch(self) -> None:
        """A client that does not read is not read from, once its outbox is half full.

        Not at once: there are clients that write all of a long pipeline before they read the first reply.
        """
        if self.sock is None:
            return
        flags = END_OF_INPUT if self._heeds_end else 0
        if self._reading and self._outbox_size <= self._clients.outbox_limit // 2:
            flags = READABLE
        if self._outbox is not None:
            flags |= WRITABLE
        if self._parked:
            if self._reading:  # its end as well
                self._parked = False
                self._flags = READABLE
                self._clients.poller.add(self.sock, self, READABLE)
        elif flags != self._flags:
            self._flags = flags
            self._clients.poller.change(self.sock, flags)

    def _break(self) -> None:
        """The connection is of no more use."""
        self._drop_outbox()
        self._clients.exchange.depart(self.session)
        self._shut()

    def _shut(self) -> None:
        sock, self.sock = self.sock, None
        if sock is not None:
            if self._parked:
                self._clients.poller.close_removed(sock, at_leisure=True)
            else:
                self._clients.poller.remove_and_close(sock, at_leisure=True)
            self._clients.forget(self)


def _chunk(reader: RequestReader) -> int:
    """Bytes. No more than the value at hand: what follows may be a hundred thousand small ones."""
    return _SMALL_CHUNK if reader.crowded else min(max(_CHUNK, reader.wanted), _LARGE_CHUNK)


class Clients:
    """All clients: their listeners and their number. `start_pin` gets a client that keeps a connection of its own:
    itself (for logs), its socket, what it was still to be sent, the lane whose connection it is, and what that was
    still to be sent; it owns them from there on. With `certificates`, those that come over TCP speak TLS. `silence`:
    seconds after which those that hold something others could have are given up when their host is not there any more.
    """

    def __init__(  # noqa: PLR0913, PLR0917 (whom they speak to, and the limits)
        self,
        exchange: Exchange,
        poller: Poller,
        max_clients: int,
        outbox_limit: int,
        start_pin: Callable[[Told, socket.socket, bytes, Lane, bytes], None],
        certificates: Certificates | None = None,
        handshake_timeout: float = 5.0,
        silence: float = 30.0,
        memory: Memory | None = None,
    ) -> None:
        self.exchange = exchange
        self.memory = Memory(sys.maxsize, poller) if memory is None else memory
        self.poller = poller
        self.outbox_limit = outbox_limit
        self.silence = silence
        self.start_pin = start_pin
        self.client = Client  # what is made for each: a tracer has another
        self.pinned = 0  # counted by whoever runs them
        self.accepted = 0
        self.left = trio.lowlevel.ParkingLot()  # who waits here is woken when a client has left
        self.limit = max_clients
        self._shared: set[Client] = set()
        self._listeners: list[Listener] = []
        self._accepting = True
        self._make_room_from = 0.0
        self._greetings = (
            None if certificates is None else Greetings(certificates, poller, self._take_greeted, handshake_timeout)
        )

    def forget(self, client: Client) -> None:
        self._shared.discard(client)
        self.left.unpark_all()

    def expire(self) -> None:
        """Closes who takes too long to become a client."""
        if self._greetings is not None:
            self._greetings.expire()

    def take_no_more(self) -> None:
        """From here on nobody becomes a client, also who has been accepted or greeted in the same moment."""
        self._accepting = False
        for listener in self._listeners:
            listener.rest()

    def read_last(self) -> None:
        """Takes what clients have sent up to now: the last look before a drain. Who is not yet a client is closed."""
        if self._greetings is not None:
            self._greetings.close_all()
        for client in list(self._shared):
            if client.session.flowing:
                with contained(client):
                    client.on_ready(READABLE)

    def __iter__(self) -> Iterator[Client]:
        """Those that share lanes or have a lease."""
        return iter(self._shared)

    @property
    def shared(self) -> int:
        return len(self._shared)

    @property
    def greeting(self) -> int:
        """Those in the TLS handshake."""
        return len(self._greetings or ())

    def close_all(self) -> None:
        """Closes every shared client, whatever it is owed."""
        if self._greetings is not None:
            self._greetings.close_all()
        for client in list(self._shared):
            with contained(client):
                client.give_up()

    async def accept(self, sock: socket.socket) -> None:
        """Accepts until cancelled. Closes the listener at the end, and removes the file of a unix socket."""
        listener = Listener(self, sock)
        self._listeners.append(listener)
        try:
            while self._accepting:
                listener.listen()
                await listener.in_trouble()
                await trio.sleep(_PAUSE)
        finally:
            self._listeners.remove(listener)
            listener.rest()
            close_listener(sock)

    def welcome(self, sock: socket.socket, where: Any = None) -> None:
        """Takes a new client, or refuses it as Redis does. `where`: its address, as `accept` says it."""
        try:
            self._welcome(sock, _origin(sock, where))
        except Exception as fault:  # noqa: BLE001 (ours, whatever it is)
            self._fail(sock, fault)

    def _fail(self, sock: socket.socket, fault: Exception) -> None:
        """A fault of ours before there was a client with this socket."""
        self.accepted += 1
        self.poller.faults.say(f"client c{self.accepted}", fault, _CLOSED)
        self.poller.tally.closed[Closed.FAULT] += 1
        sock.close()

    def _welcome(self, sock: socket.socket, origin: str) -> None:
        if not self._accepting:
            sock.close()
            return
        sock.setblocking(False)
        greetings = None if sock.family == socket.AF_UNIX else self._greetings
        if self._full and self.exchange.paused:
            self._make_room()
        if self._full:
            self.poller.tally.clients_refused += 1
            what = "a client (%s) is refused: there are %d already (--max-clients)"
            log.warning(what, origin, self.limit, extra={"address": origin})
            if greetings is None:  # else it could not read it; Redis says nothing either
                with suppress(OSError):
                    sock.send(MAX_CLIENTS)
            sock.close()
            return
        try:
            if greetings is not None:
                greetings.begin(sock, origin)
                return
        except OSError as problem:
            _turn_away(sock, origin, problem)
            return
        self._take(sock, origin)

    @property
    def _full(self) -> bool:
        return len(self._shared) + self.greeting + self.pinned >= self.limit

    def _make_room(self) -> None:
        """Closes those who have left, or say no more, in a pause.

        Who does not wait for its end comes back, again and again. Nobody is answered meanwhile, and whoever has closed
        can't be told from one who only sends no more, so they keep their places: until somebody else needs these.
        """
        now = monotonic()
        if now < self._make_room_from:
            return
        self._make_room_from = now + _PAUSE
        by_descriptor = {client.sock.fileno(): client for client in self._shared if client.sock is not None}
        gone = select.poll()
        for descriptor in by_descriptor:
            gone.register(descriptor, select.POLLRDHUP)
        for descriptor, _ in gone.poll(0):
            client = by_descriptor[descriptor]
            with contained(client):
                client.give_up()

    def _take_greeted(self, sock: TlsSocket) -> None:
        self._take(sock, sock.origin)

    def _take(self, sock: socket.socket, origin: str) -> None:
        """Owns the socket from here on; must not raise."""
        if not self._accepting:
            sock.close()
            return
        try:
            self._shared.add(self.client(self, sock, origin))
        except OSError as problem:
            _turn_away(sock, origin, problem)
            return
        except Exception as fault:  # noqa: BLE001 (ours, whatever it is)
            self._fail(sock, fault)
            return
        self.accepted += 1


def _origin(sock: socket.socket, where: Any) -> str:
    """Where a client comes from, for the log."""
    if sock.family == socket.AF_UNIX:
        pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        return f"unix, pid {pid}, uid {uid}"
    return str(TcpAddress(*where[:2])) if where else "from nowhere"


def _turn_away(sock: socket.socket, origin: str, problem: OSError) -> None:
    """Closes it, and says why, unless it had left already: anybody can connect and reset, as often as he likes."""
    if not (isinstance(problem, ConnectionError) or problem.errno == errno.ENOTCONN):
        log.warning("a client (%s) could not be taken: %s", origin, problem.strerror, extra={"address": origin})
    sock.close()


class Listener:
    """A listening socket in the poller."""

    def __init__(self, clients: Clients, sock: socket.socket) -> None:
        self._clients = clients
        self._sock = sock
        self._listening = False
        self.failed = trio.Event()  # the process is out of descriptors, or of memory
        self._failures = 0  # of this outage
        self._since = 0.0  # the first of them
        self._works = False  # somebody was accepted after the last of them

    def listen(self) -> None:
        """Accepts clients until something fails; then it rests."""
        self.failed = trio.Event()
        self._clients.poller.add(self._sock, self, READABLE)
        self._listening = True

    def rest(self) -> None:
        """Accepts nobody."""
        if self._listening:
            self._listening = False
            self._clients.poller.remove(self._sock)

    def on_ready(self, flags: int) -> None:
        """Accepts who waits."""
        del flags
        try:
            for _ in range(_ACCEPTS):
                sock, where = self._sock.accept()
                self._works = True
                self._clients.welcome(sock, where)
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as problem:
            # Out of descriptors or memory, or one of the network's errors that accept(2) passes on.
            if not self._failures:
                log.warning("%s: can't accept clients for the moment: %s", self, problem.strerror or problem)
                self._since = trio.current_time()
            self._failures += 1
            self._stop()

    def _stop(self) -> None:
        """Rests at once: who waits is still to be accepted, and would be told of, and tried, in each round."""
        self.rest()
        self.failed.set()
        self._clients.poller.end_turn()

    async def in_trouble(self) -> None:
        """Waits until nobody can be accepted. That is said once, and once that it is over, however often it is tried.

        (Not as soon as one is accepted again: he may have taken the only descriptor that was left.)
        """
        while self._failures:
            self._works = False
            with trio.move_on_after(_WORKS_AGAIN):
                await self.failed.wait()
                return
            if self._works:
                lasted = trio.current_time() - self._since
                log.info("%s: accepting clients again, after %.1f s (attempts: %d)", self, lasted, self._failures)
                self._failures = 0
        await self.failed.wait()

    def __str__(self) -> str:
        name = self._sock.getsockname()
        return f"listener {name if isinstance(name, str) else TcpAddress(*name[:2])}"

    def fail(self, fault: Exception) -> None:
        """Accepts again after a pause."""
        self._clients.poller.faults.say(str(self), fault, "accepting goes on after a pause")
        self._stop()
