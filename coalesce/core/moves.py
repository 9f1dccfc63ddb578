"""A session moves: AUTH, HELLO, SELECT and RESET, and through the door (see door.py).

    SETTLING --> begin --+--> the reply is ours: the session stays
                         +--> a connection of its own: a form that is not known to the letter, or a lane too many
                         +--> set_out --> MOVING, the request on the lane where it leads to --> moved, if it said yes

Nothing is owed to a session that moves (I6). The upstream judges the request each time, on a connection where it
changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import coalesce.core.errors as replies
from coalesce.core import leased
from coalesce.core.commands import Need, need_of
from coalesce.core.door import answer_locked, knock
from coalesce.core.errors import ClientError
from coalesce.core.identity import Move, move_of
from coalesce.core.ledger import Kind
from coalesce.core.resp import LargeRequestError
from coalesce.core.session import SessionState

if TYPE_CHECKING:
    from coalesce.core.exchange import Exchange
    from coalesce.core.identity import Identity
    from coalesce.core.lane import Caller, Lane
    from coalesce.core.resp import RequestReader
    from coalesce.core.session import Session

# Bytes of requests that say who a client is. What is longer goes to a connection of its own: in here it would be kept
# for as long as the lane, and count as nobody's. (A token of a cloud's has up to 4 KB.)
_LONG_CREDENTIALS = 16 * 1024
_LANES_IN_USE = "%d users, databases and protocol versions are in use (--max-lanes)"


def take_locked(exchange: Exchange, session: Session, reader: RequestReader) -> bool:
    """Takes requests of a locked session, up to the one that changes its state. False when more bytes are needed.

    What is said to them is said in one go: nobody could take a write for each of thousands in a chunk.
    """
    assert exchange.judge is not None
    assert not session.owed
    said: list[bytes] = []
    answer: Move | bytes | None = None
    while not isinstance(answer, Move):
        try:
            arguments = reader.next_request(authenticated=False)
        except ClientError as problem:
            exchange.protocol_errors += 1
            exchange.end(session, b"".join(said) + problem.reply)
            return False
        except LargeRequestError:
            reader.skip()
            arguments = [b""]  # Redis takes it, and says no to it
        if arguments is None:
            break
        is_quit = need_of(arguments) is Need.QUIT
        answer = replies.OK if is_quit else answer_locked(session.lane.identity, arguments, exchange.judge)
        if isinstance(answer, bytes):
            said.append(answer)
        if is_quit or answer is None:
            exchange.end(session, b"".join(said))
            return False
    if said:
        session.peer.write(b"".join(said))
    if not isinstance(answer, Move) or session.state is not SessionState.FLOWING:
        return False
    session.become(SessionState.SETTLING)
    _set_out(exchange, session, answer)
    return True


def may_reset(exchange: Exchange, session: Session) -> bool:
    """(To those whom it has not let in, the upstream says itself what RESET does.)"""
    return session.lane.authenticated or exchange.judge is not None


def reset(exchange: Exchange, session: Session) -> None:
    """As a fresh connection, but for what has been read of it."""
    if session.lease is not None:
        leased.give_back(exchange, session)
    session.name = b""
    session.locked = exchange.judge is not None
    exchange.ride_on(session, exchange.lane(exchange.base))
    session.become(SessionState.FLOWING)
    session.peer.write(replies.RESET)  # last, as the client may turn out to have left


def begin(exchange: Exchange, session: Session, arguments: list[bytes], need: Need) -> None:
    """A request that would change what a session runs as, of one to which nothing is owed: moves, or borrows."""
    move = None
    if need is Need.IDENTITY and sum(map(len, arguments)) < _LONG_CREDENTIALS:
        if exchange.judge is not None and arguments[0].upper() != b"SELECT":
            answer = knock(session.lane.identity, False, arguments, exchange.judge)
            if isinstance(answer, bytes):
                session.become(SessionState.FLOWING)
                session.peer.write(answer)
                return
            if answer is not None:
                _set_out(exchange, session, answer)
                return
        move = move_of(session.lane.identity, session.lane.authenticated, arguments)
    one_too_many = move is not None and _is_one_too_many(exchange, move.identity)
    if one_too_many:
        exchange.say_limit(session, f"takes a connection of its own: {_LANES_IN_USE % exchange.limits.lanes}")
    if move is None or one_too_many:
        leased.borrow(exchange, session, arguments)
    else:
        _set_out(exchange, session, move)


def _is_one_too_many(exchange: Exchange, identity: Identity) -> bool:
    """The upstream has other clients too."""
    return identity not in exchange.lanes and _lanes_that_count(exchange) >= exchange.limits.lanes


def _lanes_that_count(exchange: Exchange) -> int:
    """Where strangers get a lane for each password that they guess, only those that have once been connected."""
    if exchange.judge is None:
        return len(exchange.lanes)
    return sum(lane.connections > 0 for lane in exchange.lanes.values())


def _set_out(exchange: Exchange, session: Session, move: Move) -> None:
    """A session to which nothing is owed moves, if the upstream says yes."""
    if move.identity.password is not None and _is_one_too_many(exchange, move.identity):
        # Through the door nobody gets a connection of his own: until the upstream has said yes, it would be ours.
        exchange.say_limit(session, f"is refused: {_LANES_IN_USE % exchange.limits.lanes}")
        session.become(SessionState.FLOWING)
        exchange.ledgers[Kind.SHARED].refused += 1
        session.peer.write(replies.no_lane(exchange.limits.lanes))
        if not session.locked:
            exchange.depart(session)  # what is behind it would run as somebody else
        return
    lane = exchange.lane(move.identity)
    if not move.request:
        session.locked = False
        exchange.ride_on(session, lane)
        session.become(SessionState.FLOWING)
        exchange.bound(session)
        session.peer.write(replies.OK)  # last, as the client may turn out to have left
        return
    session.become(SessionState.MOVING)
    caller = Moving(exchange, session, lane, move.name)
    if move.authenticates:
        exchange.enqueue_first(lane, move.request, caller)
    else:
        exchange.enqueue(lane, move.request, caller)


def _moved(exchange: Exchange, session: Session, lane: Lane | None) -> None:
    """The upstream has answered the request that a MOVING session waits for; `lane` when it said yes."""
    if session.state is not SessionState.MOVING:
        return  # it left in the meantime
    if lane is not None:
        session.locked = False
        exchange.ride_on(session, lane)
    session.become(SessionState.FLOWING)
    exchange.advance(session)


def forget(exchange: Exchange) -> None:
    """As `Exchange.forget_moves`."""
    for lane in list(exchange.lanes.values()):
        unsent = [*(caller for _, caller in lane.first), *lane.callers]
        gone: set[Caller] = {caller for caller in unsent if isinstance(caller, Moving) and caller.session.gone}
        if gone:
            lane.take_back(gone)
        is_needed = lane.owed or lane.sessions or lane.connections or lane.identity in exchange.large_lanes
        if not (is_needed or exchange.is_base(lane)):
            exchange.retire(lane)


def may_stay(exchange: Exchange, lane: Lane) -> bool:
    """Whether a lane that has been connected for the first time is not one too many."""
    if exchange.judge is None or lane.identity.password is None:
        return True
    if _lanes_that_count(exchange) <= exchange.limits.lanes:
        return True
    for session in [caller.session for _, caller in lane.first if isinstance(caller, Moving)]:
        exchange.say_limit(session, f"is refused: {_LANES_IN_USE % exchange.limits.lanes}")
    return False


class Moving:
    """A place in the FIFO of a new lane, for the request that asks to move there."""

    __slots__ = ("_exchange", "_is_ours", "_lane", "_name", "_said_yes", "owed", "session")

    def __init__(self, exchange: Exchange, session: Session, lane: Lane, name: bytes | None) -> None:
        self._exchange = exchange
        self.session = session
        self._lane = lane
        self._name = name
        self._said_yes = False
        self._is_ours = False
        self.owed = 0
        session.owed += 1

    def write(self, data: bytes) -> None:
        self._said_yes = not data.startswith(b"-")
        self._is_ours = data.startswith(replies.OURS)
        session = self.session
        session.owed -= not self.owed
        session.write(data)
        self._look()

    def write_more(self, data: bytes) -> None:
        session = self.session
        session.owed -= not self.owed
        session.write_more(data)
        self._look()

    def _look(self) -> None:
        if self.owed:
            return
        session = self.session
        if self._is_ours:
            # The upstream has not been asked. What is behind it would run in another database, or as somebody else.
            self._exchange.depart_lost(session)
            return
        if self._said_yes and self._name is not None:
            session.name = self._name
        _moved(self._exchange, session, self._lane if self._said_yes else None)

    def lost(self) -> None:
        self.session.lost()

    def fail(self, fault: Exception) -> None:
        self.session.fail(fault)
