"""How a conversation ends, other than by a loss: the client says no more, or quits; or coalesce drains.

    end_of_input   it sends no more and may still read: what it is owed is answered, and what blocks is given up
    end_in_sight   the same, while more than we keep of what it sent has not been received yet
    last_words     it broke the protocol: what it is owed is answered, and then that is said
    drain          each session ends as soon as it is owed nothing

Each of them comes to `Exchange.end` or `depart`, or leaves the word to the upstream (`leased.pin`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coalesce.core import leased
from coalesce.core.commands import is_endless, may_block
from coalesce.core.containment import contained
from coalesce.core.held import weigh
from coalesce.core.session import TAKING, SessionState
from coalesce.core.stream import Subscriber

if TYPE_CHECKING:
    from coalesce.core.exchange import Exchange
    from coalesce.core.session import Session


def end_of_input(exchange: Exchange, session: Session) -> None:
    """As `Exchange.end_of_input`."""
    if session.reading:  # otherwise the end will still be there when it is read from
        session.ended = True
        session.rewire()
        look_at_end(exchange, session)


def end_in_sight(exchange: Exchange, session: Session) -> None:
    """As `Exchange.end_in_sight`."""
    if session.state is SessionState.SETTLING and session.lease is None:
        if session.waits_to_block:  # what is before it is run and answered
            session.waiting = None
            exchange.end(session, b"")
            weigh(session)
    elif (session.lease is not None and session.lease.blocking) or may_block(session.waiting):
        exchange.depart(session)


def look_at_end(exchange: Exchange, session: Session) -> None:
    """What becomes of a session whose client sends no more, once nothing of what it sent is left."""
    lease = session.lease
    stream = lease.stream if lease is not None else None
    if session.state is SessionState.LEASED and isinstance(stream, Subscriber) and stream.waits:
        exchange.settle(session, None)  # a reply to a request of ours is still to come
    elif session.state in {SessionState.LEASED, SessionState.PINNING} and stream is not None:
        leased.pin(exchange, session, None)  # the upstream is told that it ends, and decides
    elif session.state in {SessionState.LEASED, SessionState.SETTLING} and lease is not None and lease.blocking:
        # The same: what can be answered at once is, and the rest is given up, or an element would be popped for
        # nobody. A WAIT that has not been answered with the requests of ours before it can't be answered at once.
        if not lease.waits:
            leased.pin(exchange, session, session.waiting)
        elif not lease.marks:
            exchange.depart(session)
    elif session.state is SessionState.BORROWING and exchange.paused and may_block(session.waiting):
        # Who waits for a job comes back again and again while there is a pause. Afterwards each of these requests
        # would take one, and be there no more.
        exchange.depart(session)
    elif session.state in TAKING and not _has_more(session):
        exchange.end(session, b"")


def last_words(exchange: Exchange, session: Session, reply: bytes) -> None:
    """As `Exchange.end`; behind what may take for ever the upstream reads the same, and says it itself."""
    lease = session.lease
    if lease is not None and (lease.stream is not None or lease.blocking):
        exchange.settle(session, [])
    else:
        exchange.end(session, reply)


def drain(exchange: Exchange) -> None:
    """As `Exchange.drain`."""
    exchange.draining = True
    for session in exchange.sessions:
        with contained(session):
            _drain_session(exchange, session)


def _drain_session(exchange: Exchange, session: Session) -> None:
    lease = session.lease
    waits_for_ever = session.state is SessionState.BORROWING and is_endless(session.waiting)
    if waits_for_ever or (lease is not None and (lease.blocking or isinstance(lease.stream, Subscriber))):
        exchange.depart(session)
    elif session.state is SessionState.PINNING:
        leased.pin(exchange, session, None)  # the upstream is told that no more comes, and decides
    elif session.state in TAKING and not _has_more(session):
        exchange.end(session, b"")


def go_on_draining(exchange: Exchange, session: Session) -> None:
    """While coalesce drains, of a session more has been taken than was there when it began."""
    if session.state in TAKING:
        if session.lease is not None and session.lease.blocking:
            exchange.depart(session)
        elif not _has_more(session):
            exchange.end(session, b"")


def _has_more(session: Session) -> bool:
    """Whether some of what it sent may be requests that are still to be taken, once it is resumed."""
    return session.throttled and session.reader is not None
