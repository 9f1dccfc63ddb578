"""Sessions x lanes: routes, moves, leases, departs, loses, drains. The facade that the shell and the tests drive.

A request's way, and a reply's:

    Client.on_ready -> Exchange.receive -> lane.unsent        ...  Exchange.flush -> Lane.take_batch -> lane.send
    Connection.on_ready -> Exchange.replies -> Lane.receive -> session.write = Client.write

The usual request takes nothing but that way. Every other one goes through `_receive_slowly` and `_dispatch`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import coalesce.core.errors as replies
from coalesce.core.commands import RIDES, Need, need_of
from coalesce.core.errors import ClientError, unavailable
from coalesce.core.lane import UNSENT_LIMIT, Lane, LaneState, Limits
from coalesce.core.resp import ARRAY_HEADERS, CRLF, LargeRequestError, RequestReader, pack, pack_tuple
from coalesce.core.session import Session, SessionState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from coalesce.core.lane import Identity
    from coalesce.core.session import Peer

# The name of our connections, in the upstream's CLIENT LIST.
CONNECTION_NAME = b"coalesce"

_DATABASE = re.compile(rb"0|[1-9][0-9]{0,8}")
_NAME = re.compile(rb"[!-~]*")  # Redis: validateClientName


class _Move(NamedTuple):
    identity: Identity
    name: bytes | None
    request: bytes


class Exchange:
    """All sessions and lanes of one upstream.

    `open_lane` is called with each new lane and starts to connect it; `connected`, `replies`, `lose`, `fail` and
    `refuse` tell what became of it.
    """

    def __init__(self, base: Identity, open_lane: Callable[[Lane], None], limits: Limits = Limits()) -> None:  # noqa: B008
        self.base = base
        self.limits = limits
        self.lanes: dict[Identity, Lane] = {}
        self.dirty: list[Lane] = []  # the lanes with unsent requests
        self.draining = False
        self.swallowed = 0
        self._open_lane = open_lane
        self._retired = [0, 0, 0]  # commands, batches, largest of lanes that are no more
        self._numbers = 0
        self.lane(base)

    def lane(self, identity: Identity) -> Lane:
        """The lane of an identity, new if there was none."""
        lane = self.lanes.get(identity)
        if lane is None:
            lane = self.lanes[identity] = Lane(self._numbers, identity, self.limits)
            self._numbers += 1
            self._open_lane(lane)
        return lane

    @property
    def sessions(self) -> Iterator[Session]:
        """All that are neither leased nor gone."""
        for lane in list(self.lanes.values()):
            yield from list(lane.sessions)

    def totals(self) -> tuple[int, int, int]:
        """Commands, batches, and the largest batch, so far."""
        lanes = self.lanes.values()
        commands, batches, largest = self._retired
        return (
            commands + sum(lane.commands for lane in lanes),
            batches + sum(lane.batches for lane in lanes),
            max([largest, *(lane.largest for lane in lanes)]),
        )

    # --- clients ---

    def connect(self, peer: Peer) -> Session:
        """A new session, with the identity of a fresh connection."""
        lane = self.lane(self.base)
        session = Session(self, lane, peer)
        lane.sessions.add(session)
        return session

    def receive(self, session: Session, data: bytes) -> None:
        """HOT. Takes what a client sent; every whole request in it is on its way or waits its turn afterwards.

        Plain twin: `tests/core/twins.py`. Benchmark: `tests/bench/hot.py`.
        """
        if session.flowing:
            parts = data.split(CRLF)
            count = ARRAY_HEADERS.get(parts[0])
            if count is not None and len(parts) == 2 * count + 2:
                arguments = parts[2::2]
                if arguments[0] in RIDES:
                    request = pack_tuple(tuple(arguments))
                    if request == data:  # exactly one canonical request: see resp.py
                        lane = session.lane
                        if not lane.unsent:
                            self.dirty.append(lane)
                        lane.unsent.append(request)
                        lane.callers.append(session)
                        session.owed += 1
                        if lane.full or session.owed >= self.limits.client:
                            self._throttle(session)
                        return
            taken = self._ride(session, parts, data)
            if taken == len(data):
                return
            data = data[taken:]
        self._receive_slowly(session, data)

    def _ride(self, session: Session, parts: list[bytes], data: bytes) -> int:
        """Puts the requests at the start of `data` (cut at its line ends: `parts`) on the session's lane.

        Takes canonical requests of stateless commands, up to the first that is not; returns the bytes taken.
        """
        packed = []
        at = 0
        last = len(parts) - 1
        while at < last:
            count = ARRAY_HEADERS.get(parts[at])
            if count is None:
                break
            end = at + 1 + 2 * count
            if end > last:
                break
            arguments = parts[at + 2 : end : 2]
            if arguments[0] not in RIDES:
                break
            packed.append(pack_tuple(tuple(arguments)))
            at = end
        requests = b"".join(packed)
        if not packed or not data.startswith(requests):
            return 0
        lane = session.lane
        if not lane.unsent:
            self.dirty.append(lane)
        lane.unsent.append(requests)
        lane.callers.extend([session] * len(packed))
        session.owed += len(packed)
        if lane.full or session.owed >= self.limits.client:
            self._throttle(session)
        return len(requests)

    def _receive_slowly(self, session: Session, data: bytes) -> None:
        reader = session.reader
        if reader is None:
            reader = session.reader = RequestReader(session.lane.bulk_limit)
            reader.feed(data)
        else:
            # One request was cut in two. Behind it the quick way is open again, tried once a chunk.
            reader.feed(data)
            self._take_requests(session, reader, 1)
            if session.state is SessionState.FLOWING and session.lane.authenticated:
                rest = reader.take() if not reader.in_request else b""
                reader.feed(rest[self._ride(session, rest.split(CRLF), rest) :])
        self._advance(session)

    def _advance(self, session: Session) -> None:
        """Dispatches the requests that have been read, as long as the session flows."""
        reader = session.reader
        if reader is not None:
            self._take_requests(session, reader, None)
        if session.state is SessionState.FLOWING:
            if reader is not None and reader.empty:
                session.reader = None
            session.rewire()
            if self.draining:
                self._end(session, b"")

    def _take_requests(self, session: Session, reader: RequestReader, most: int | None) -> None:
        taken = 0
        while session.state is SessionState.FLOWING and taken != most:
            try:
                arguments = reader.next_request(session.lane.authenticated)
            except ClientError as problem:
                self._end(session, problem.reply)
                return
            except LargeRequestError:
                self._settle(session, [])  # what the reader holds starts with it
                return
            if arguments is None:
                return
            self._dispatch(session, arguments)
            taken += 1
            if session.lane.full or session.owed >= self.limits.client:
                self._throttle(session)

    def _dispatch(self, session: Session, arguments: list[bytes]) -> None:
        match need_of(arguments):
            case Need.RIDE:
                self._enqueue(session.lane, pack(arguments), session)
            case Need.CLIENT_STATE:
                self._dispatch_client_state(session, arguments)
            case Need.QUIT:
                self._end(session, replies.OK)
            case Need.CLOSE if session.lane.authenticated:
                self._end(session, b"")
            case _:  # (before AUTH, versions differ in what they say to RESET and POST: each says it itself)
                self._settle(session, arguments)

    def _enqueue(self, lane: Lane, request: bytes, caller: Session | Rewritten | Moving) -> None:
        if not lane.unsent:
            self.dirty.append(lane)
        lane.enqueue(request, caller)

    def _dispatch_client_state(self, session: Session, arguments: list[bytes]) -> None:
        """What the upstream holds for a connection, we hold for a session.

        The upstream is asked all the same, in a form that changes nothing for others: so the reply keeps its place
        among the others, and it is the upstream that refuses what this user may not do.
        """
        subcommand = arguments[1].upper()
        request = arguments
        rewrite: Callable[[bytes], bytes] | None = None
        if subcommand == b"SETNAME" and len(arguments) == 3 and _NAME.fullmatch(arguments[2]):
            request = [*arguments[:2], CONNECTION_NAME]
            rewrite = _Renaming(session, arguments[2])
        elif subcommand == b"GETNAME" and len(arguments) == 2:
            rewrite = _Naming(session)
        elif subcommand == b"MAINT_NOTIFICATIONS":
            # Where it is known, it would send pushes down the lane. Saying no is what servers without it do.
            request = [*arguments[:2], b"OFF"]
            rewrite = _refuse_notifications
        lane = session.lane
        if rewrite is None:  # a wrong form, which the upstream refuses
            self._enqueue(lane, pack(request), session)
        else:
            session.owed += 1
            self._enqueue(lane, pack(request), Rewritten(session, rewrite))

    def answered(self, session: Session) -> None:
        """A session whose replies are looked at was given one."""
        if session.throttled and session.owed <= self.limits.client // 2 and not session.lane.full:
            self._resume(session)
        if session.owed:
            return
        if session.state is SessionState.SETTLING:
            self._settled(session)
            self._advance(session)
        elif session.state is SessionState.ENDING:
            self._close(session)

    def _throttle(self, session: Session) -> None:
        """Stops reading from a session. What has been read of it already, a chunk at the most, still takes its way."""
        if session.throttled or session.state is not SessionState.FLOWING:
            return
        session.throttled = True
        session.lane.waiting.add(session)
        session.rewire()

    def _resume(self, session: Session) -> None:
        session.throttled = False
        session.lane.waiting.discard(session)
        session.rewire()

    def end_of_input(self, session: Session) -> None:
        """The client sends no more, and may still read: it gets what it is owed, then the connection closes."""
        if session.state is not SessionState.FLOWING:
            return  # it is not being read from: the end will still be there when it is
        self._end(session, b"")

    def _end(self, session: Session, last_words: bytes) -> None:
        session.last_words = last_words
        session.become(SessionState.ENDING)
        if not session.owed:
            self._close(session)

    def _close(self, session: Session) -> None:
        if session.last_words:
            session.peer.write(session.last_words)
        self.depart(session)

    def depart(self, session: Session) -> None:
        """The session is over. What it is still owed will be swallowed, its places in FIFOs stay (I4)."""
        if session.state in {SessionState.GONE, SessionState.LEASED}:
            return
        session.lane.sessions.discard(session)
        session.lane.waiting.discard(session)
        session.become(SessionState.GONE)
        session.reader = None
        session.peer.close()

    def swallow(self, data: bytes) -> None:
        """Takes the place of `Session.write` once the client has left."""
        del data
        self.swallowed += 1

    # --- a session moves: to another lane, or to a connection of its own ---

    def _settle(self, session: Session, arguments: list[bytes]) -> None:
        """The request waits until nothing is owed (I6): a session has unanswered requests on one connection only."""
        session.waiting = arguments
        session.become(SessionState.SETTLING)
        if not session.owed:
            self._settled(session)

    def _settled(self, session: Session) -> None:
        arguments = session.waiting or []
        session.waiting = None
        need = need_of(arguments) if arguments else Need.LEASE
        if need is Need.RESET and len(arguments) == 1 and session.lane.authenticated:
            session.name = b""
            self._ride_on(session, self.lane(self.base))
            session.become(SessionState.FLOWING)
            session.peer.write(replies.RESET)  # last, as the client may turn out to have left
            return
        move = _move_of(session.lane, arguments) if need is Need.IDENTITY else None
        if move is not None and move.identity not in self.lanes and len(self.lanes) >= self.limits.lanes:
            move = None  # the upstream has other clients too
        if move is None:
            self._lease(session, arguments)
            return
        lane = self.lane(move.identity)
        session.become(SessionState.MOVING)
        session.owed += 1
        self._enqueue(lane, move.request, Moving(self, session, lane, move.name))

    def _ride_on(self, session: Session, lane: Lane) -> None:
        if session.throttled:
            self._resume(session)  # nothing is owed to one that moves
        session.lane.sessions.discard(session)
        session.lane = lane
        lane.sessions.add(session)

    def moved(self, session: Session, lane: Lane | None) -> None:
        """The upstream has answered the request that a MOVING session waits for; `lane` when it said yes."""
        if session.state is not SessionState.MOVING:
            return  # it left in the meantime
        if lane is not None:
            self._ride_on(session, lane)
        session.become(SessionState.FLOWING)
        self._advance(session)

    def _lease(self, session: Session, arguments: list[bytes]) -> None:
        reader, session.reader = session.reader, None
        pending = (pack(arguments) if arguments else b"") + (reader.pending if reader else b"")
        session.lane.sessions.discard(session)
        session.lane.waiting.discard(session)
        session.become(SessionState.LEASED)
        session.peer.lease(session.lane.identity, session.name, pending)

    # --- upstream ---

    def connected(self, lane: Lane, send: Callable[[bytes], None], round_trip: float) -> None:
        """A lane's connection stands: handshake done, nothing owed. `round_trip` in seconds, of the handshake."""
        lane.connected(send, round_trip)
        for session in lane.sessions:
            session.rewire()

    def flush(self, now: float) -> None:
        """Lets every batch leave that may. To be called after each round of reading, before waiting."""
        held = []
        while self.dirty:
            lane = self.dirty.pop()
            if lane.state is LaneState.FAILING:
                # Whoever is answered may ask for more, here or elsewhere: then that lane is dirty again.
                self._answer_unsent(lane, unavailable(lane.why_failing))
                continue
            if lane.callers and lane.send is not None and lane.may_flush(now):
                lane.send(lane.take_batch(now))
            if lane.callers:
                held.append(lane)
            if lane.owed >= lane.limit or (lane.send is None and sum(map(len, lane.unsent)) > UNSENT_LIMIT):
                lane.full = True
        self.dirty = held

    def replies(self, lane: Lane, data: bytes, now: float) -> None:
        """Hands replies to their callers. Raises UpstreamError, after which the lane has to be lost."""
        lane.receive(data, now)
        if lane.full:
            self._relieve(lane)

    def lose(self, lane: Lane) -> None:
        """A lane's connection is gone. Clients with a request in flight on it go with it, all others stay."""
        lane.lose()
        self._relieve(lane)

    def fail(self, lane: Lane, why: str) -> None:
        """A lane could not be connected for as long as requests may wait."""
        lane.fail(why)
        self._answer_unsent(lane, unavailable(why))

    def refuse(self, lane: Lane, reply: bytes) -> None:
        """The upstream refused a lane's identity, with this reply: it goes to whoever asked to move there.

        Sessions that were there already, before a reconnect, are closed: with a connection of their own they would
        have to authenticate anew, and be told.
        """
        lane.become(LaneState.CLOSED)
        self._forget(lane)
        for session in list(lane.sessions):
            self.depart(session)
        self._answer_unsent(lane, reply)

    def retire(self, lane: Lane) -> None:
        """Nobody rides this lane, and nothing is owed on it."""
        lane.become(LaneState.CLOSED)
        self._forget(lane)

    def _forget(self, lane: Lane) -> None:
        del self.lanes[lane.identity]
        commands, batches, largest = self._retired
        self._retired = [commands + lane.commands, batches + lane.batches, max(largest, lane.largest)]

    def _answer_unsent(self, lane: Lane, reply: bytes) -> None:
        lane.answer_unsent(reply)
        self._relieve(lane)

    def _relieve(self, lane: Lane) -> None:
        """Reads again from those who waited for a full lane, once half of it is free."""
        if lane.owed > lane.limit // 2:
            return
        lane.full = False
        for session in list(lane.waiting):
            if session.owed <= self.limits.client // 2:
                self._resume(session)

    def drain(self) -> None:
        """Every session ends as soon as it is owed nothing."""
        self.draining = True
        for session in self.sessions:
            if session.state is SessionState.FLOWING:
                self._end(session, b"")


class Rewritten:
    """A place in the FIFO for a request that was sent in another form: the reply is `rewrite(reply)`."""

    __slots__ = ("_parts", "_rewrite", "_session", "owed")

    def __init__(self, session: Session, rewrite: Callable[[bytes], bytes]) -> None:
        self._session = session
        self._rewrite = rewrite
        self._parts = b""
        self.owed = 0

    def write(self, data: bytes) -> None:
        self._parts += data
        if not self.owed:
            self._session.owed -= 1
            self._session.write(self._rewrite(self._parts))

    write_more = write

    def lost(self) -> None:
        self._session.lost()


class Moving:
    """A place in the FIFO of a new lane, for the request that asks to move there."""

    __slots__ = ("_exchange", "_lane", "_name", "_said_yes", "_session", "owed")

    def __init__(self, exchange: Exchange, session: Session, lane: Lane, name: bytes | None) -> None:
        self._exchange = exchange
        self._session = session
        self._lane = lane
        self._name = name
        self._said_yes = False
        self.owed = 0

    def write(self, data: bytes) -> None:
        self._said_yes = not data.startswith(b"-")
        session = self._session
        session.owed -= not self.owed
        session.write(data)
        self._look()

    def write_more(self, data: bytes) -> None:
        session = self._session
        session.owed -= not self.owed
        session.write_more(data)
        self._look()

    def _look(self) -> None:
        if self.owed:
            return
        session = self._session
        if self._said_yes and self._name is not None:
            session.name = self._name
        self._exchange.moved(session, self._lane if self._said_yes else None)

    def lost(self) -> None:
        self._session.lost()


class _Renaming:
    __slots__ = ("_name", "_session")

    def __init__(self, session: Session, name: bytes) -> None:
        self._session = session
        self._name = name

    def __call__(self, reply: bytes) -> bytes:
        if reply == replies.OK:
            self._session.name = self._name
        return reply


class _Naming:
    __slots__ = ("_session",)

    def __init__(self, session: Session) -> None:
        self._session = session

    def __call__(self, reply: bytes) -> bytes:
        if reply.startswith(b"-"):
            return reply
        if self._session.name:
            return replies.bulk(self._session.name)
        return replies.NO_NAME_RESP3 if self._session.lane.identity.protocol == 3 else replies.NO_NAME_RESP2


def _refuse_notifications(reply: bytes) -> bytes:
    return reply if reply.startswith(b"-") else replies.NO_MAINT_NOTIFICATIONS


def _move_of(lane: Lane, arguments: list[bytes]) -> _Move | None:  # noqa: PLR0911 (a form a case)
    """Where AUTH, SELECT or HELLO would take a session; None for a form that is not known to the letter.

    Such a form may change half of what it says (HELLO 3 SETNAME name AUTH user wrong does name the connection before
    it is refused), so it gets a connection of its own to do it on.
    """
    identity = lane.identity
    match [arguments[0].upper(), *arguments[1:]]:
        case [b"SELECT", database] if _DATABASE.fullmatch(database):
            return _Move(identity._replace(database=int(database)), None, pack(arguments))
        case [b"AUTH", password]:
            return _Move(identity._replace(username=None, password=password), None, pack(arguments))
        case [b"AUTH", username, password]:
            return _Move(identity._replace(username=username, password=password), None, pack(arguments))
        case [b"HELLO", (b"2" | b"3") as protocol, *options]:
            identity = identity._replace(protocol=int(protocol))
            request = [arguments[0], protocol]
            name = None
            while options:
                match [options[0].upper(), *options[1:]]:
                    case [b"AUTH", username, password, *rest]:
                        identity = identity._replace(username=username, password=password)
                        request += options[:3]
                    case [b"SETNAME", asked, *rest] if _NAME.fullmatch(asked) and not rest:
                        name = asked
                        request += [options[0], CONNECTION_NAME]
                    case _:
                        return None
                options = rest
            if name is not None and identity.password is None and not lane.authenticated:
                return None  # refused for want of AUTH, and named all the same
            return _Move(identity, name, pack(request))
    return None
