"""Cases of `Exchange` that were found the hard way, each as it was found."""

from __future__ import annotations

from coalesce.core.exchange import Exchange
from coalesce.core.lane import UNSENT_LIMIT, Identity, Limits
from coalesce.core.session import SessionState

from .fakes import RecordingPeer
from .twins import canonical

BASE = Identity(None, None, 0, 2)


def test_the_end_of_input_of_a_session_that_is_gone() -> None:
    """One round may bring both the loss of the lane and the client's end of input."""
    exchange = Exchange(BASE, lambda _: None)
    lane = exchange.lane(BASE)
    exchange.connected(lane, lambda _: None, 0.0)
    session = exchange.connect(RecordingPeer(BASE))
    exchange.receive(session, canonical([b"PING"]))
    exchange.flush(0.0)
    exchange.lose(lane)
    assert session.state is SessionState.GONE
    exchange.end_of_input(session)
    assert session.state is SessionState.GONE


def test_large_requests_that_wait_for_a_connection_stop_the_reading() -> None:
    """Memory is bounded in bytes while nothing can be sent; who was stopped goes on once it has been."""
    exchange = Exchange(BASE, lambda _: None, Limits(hold_below=0))
    lane = exchange.lane(BASE)
    peer = RecordingPeer(BASE)
    session = exchange.connect(peer)
    request = canonical([b"SET", b"k", b"x" * (UNSENT_LIMIT // 8)])
    for _ in range(9):
        assert peer.reading
        exchange.receive(session, request)
        exchange.flush(0.0)
    exchange.receive(session, canonical([b"PING"]))
    assert not peer.reading
    exchange.connected(lane, lambda _: None, 0.0)
    exchange.flush(0.0)
    exchange.replies(lane, b"+OK\r\n" * 9 + b"+PONG\r\n", 0.0)
    assert peer.reading
