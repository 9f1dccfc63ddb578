"""What a session does with its lease: what goes down there, and whether it gives it back or keeps it for good.

    lent --+--> the request, as on any lane; those whose reply tells something about the connection have a `Witness`
           +--> a `Subscriber`, which everything passes                            (stream.py)
           +--> a `Verdict`: kept for good, if the upstream says yes               (stream.py)
           +--> kept for good at once: what comes back can't be told

    LEASED --- owed nothing, and the lease is clean --> give_back --> FLOWING, on its home
           --- else, with a request that has no place on a lease --> pin --> PINNED

Which connection a session is lent, and when, is the matter of lease.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import coalesce.core.errors as replies
from coalesce.core import wait
from coalesce.core.commands import TRANSACTIONAL, Need, is_endless, is_fenced, may_block, may_have_no_reply
from coalesce.core.held import Large, weigh
from coalesce.core.lane import LARGE, LaneState
from coalesce.core.lease import Witness
from coalesce.core.resp import pack
from coalesce.core.session import SessionState
from coalesce.core.stream import Subscriber, Verdict

if TYPE_CHECKING:
    from coalesce.core.exchange import Exchange
    from coalesce.core.lane import Caller
    from coalesce.core.lease import Lease
    from coalesce.core.session import Session

# What goes down a leased connection without a pause between, once it is lent.
GOES_ON = frozenset((Need.RIDE, Need.BORROW, Need.TRANSACTION, Need.ASKING))


def borrow(exchange: Exchange, session: Session, arguments: list[bytes]) -> None:
    """The request (empty: what the reader holds) goes to a connection of its own, once there is one."""
    if exchange.draining and is_endless(arguments):
        exchange.depart(session)
    else:
        exchange.leases.borrow(session, arguments)


def lent(exchange: Exchange, session: Session, lease: Lease, arguments: list[bytes]) -> None:
    """As `Exchange.lent`."""
    if session.throttled:
        exchange.resume(session)  # nothing is owed to it
    session.lane = lease.lane  # (its home lane still counts it)
    session.become(SessionState.LEASED)
    need = exchange.need_of(session, arguments) if arguments else None
    if need in {Need.SUBSCRIBE, Need.PIN, Need.IDENTITY}:
        lease.held = sum(map(len, arguments))
    if need is Need.IDENTITY and (arguments[0].upper() != b"HELLO" or len(arguments) == 2):
        need = Need.PIN  # refused, these change nothing; HELLO with options may have done half of them
    match need:
        case Need.SUBSCRIBE:
            lease.stream = Subscriber(exchange, session, exchange.secret)
            lease.stream.open(pack(arguments))
        case Need.PIN if not may_have_no_reply(arguments) and not exchange.draining:
            lease.stream = Verdict(exchange, session)
            session.owed += 1
            session.become(SessionState.PINNING)
            exchange.send(lease.lane, pack(arguments))
        case Need.BORROW | Need.TRANSACTION | Need.ASKING | Need.WAIT:
            dispatch(exchange, session, lease, arguments, need)
        case _:
            pin(exchange, session, arguments)
            return
    exchange.advance(session)  # what it sent behind may have been read already


def dispatch(exchange: Exchange, session: Session, lease: Lease, arguments: list[bytes], need: Need) -> None:
    """A request of a session that has a lease: goes down there, or waits until nothing is owed (I6)."""
    name = arguments[0].upper()
    blocks = may_block(arguments)
    size = sum(map(len, arguments))
    if lease.stream is not None:
        # (When a large one has left is not known here; a pin has backpressure.)
        if need in {Need.RIDE, Need.BORROW, Need.SUBSCRIBE} and not blocks and size < LARGE:
            exchange.send(lease.lane, pack(arguments))
        else:
            exchange.settle(session, arguments)
    elif need in GOES_ON:
        lease.asking = need is Need.ASKING
        lease.unproven |= is_fenced(arguments)
        caller: Caller = session
        if blocks or name in TRANSACTIONAL:
            caller = Witness(session, lease, name, size if size >= LARGE else 0)
        elif size >= LARGE:
            caller = Large(session, lease, size)
        exchange.enqueue(lease.lane, pack(arguments), caller)
    elif need is Need.WAIT and not session.owed and not lease.in_transaction:
        lease.asking = False
        for request, caller in wait.requests(session, lease, arguments):
            exchange.enqueue(lease.lane, request, caller)
    elif need is Need.QUIT and not lease.blocking:
        exchange.end(session, replies.OK)
    else:
        exchange.settle(session, arguments)


def accepted(exchange: Exchange, session: Session) -> None:
    """As `Exchange.accepted`."""
    if session.state is not SessionState.GONE:
        arguments, session.waiting = session.waiting, None
        pin(exchange, session, arguments)


def pin(exchange: Exchange, session: Session, arguments: list[bytes] | None) -> None:
    """The session's lease is its own for good, and the client leaves the core with it."""
    lease = session.lease
    assert lease is not None
    lane = lease.lane
    rest = lease.stream.rest() if lease.stream is not None else lane.hand_over()
    if rest:
        session.peer.write(rest)
        if session.lease is None:
            return  # the client turned out to have left
    session.lease = session.waiting = None
    reader, session.reader = session.reader, None
    unsent = b"".join(lane.unsent)
    lane.drop_unsent()
    pending = unsent + (pack(arguments) if arguments else b"") + (reader.pending if reader else b"")
    exchange.leases.pin(lease)
    lane.become(LaneState.CLOSED)
    exchange.count_out(lane)
    lane.waiting.discard(session)
    exchange.leave_home(session)
    session.become(SessionState.PINNED)
    weigh(session)
    session.peer.pin(lane, pending)


def flow_again(exchange: Exchange, session: Session) -> None:
    """The session gives its lease back, and flows on the lane of its identity."""
    give_back(exchange, session)
    session.become(SessionState.FLOWING)


def give_back(exchange: Exchange, session: Session) -> None:
    """Afterwards the session rides its home again."""
    if session.throttled:
        exchange.resume(session)
    exchange.leave_home(session)
    session.large = False
    assert session.lease is not None
    home = exchange.lane(session.lease.home)
    exchange.leases.give_back(session)
    session.lane = home
    home.sessions.add(session)
