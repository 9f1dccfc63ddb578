"""Cases of `Exchange` that were found the hard way, each as it was found."""

from __future__ import annotations

from coalesce.core.errors import bulk
from coalesce.core.exchange import Exchange
from coalesce.core.identity import Identity
from coalesce.core.lane import UNAUTHENTICATED_BATCH, UNSENT_LIMIT, Lane, Limits
from coalesce.core.resp import unpack
from coalesce.core.session import SessionState

from .fakes import RecordingLink, RecordingPeer
from .twins import canonical

BASE = Identity(None, None, 0, 2)


def test_the_end_of_input_of_a_session_that_is_gone() -> None:
    """One round may bring both the loss of the lane and the client's end of input."""
    exchange = Exchange(BASE, lambda _: None)
    lane = exchange.lane(BASE)
    exchange.connected(lane, RecordingLink(exchange, lane), 0.0)
    session = exchange.connect(RecordingPeer())
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
    peer = RecordingPeer()
    session = exchange.connect(peer)
    request = canonical([b"SET", b"k", b"x" * (UNSENT_LIMIT // 8)])
    for _ in range(9):
        assert peer.reading
        exchange.receive(session, request)
        exchange.flush(0.0)
    exchange.receive(session, canonical([b"PING"]))
    assert not peer.reading
    exchange.connected(lane, RecordingLink(exchange, lane), 0.0)
    exchange.flush(0.0)
    exchange.replies(lane, b"+OK\r\n" * 9 + b"+PONG\r\n", 0.0)
    assert peer.reading


def test_a_subscriber_that_turns_out_to_have_left_when_it_is_pinned() -> None:
    """Its connection is closed: a subscription on one that nobody has would be counted, and delivered, for ever."""
    opened: list[Lane] = []
    exchange = Exchange(BASE, opened.append)
    peer = RecordingPeer()
    session = exchange.connect(peer)
    exchange.receive(session, canonical([b"SUBSCRIBE", b"a"]))
    lane = opened[-1]
    link = RecordingLink(exchange, lane)
    exchange.connected(lane, link, 0.0)
    exchange.flush(0.0)
    exchange.replies(lane, bulk(b"secret") + b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n*3\r\n$7\r\nmess", 0.0)
    peer.breaks_with = lambda: exchange.depart(session)
    exchange.end_of_input(session)
    assert peer.closed
    assert peer.pinned is None
    assert lane.link is None


def test_a_subscriber_that_was_stopped_is_read_from_again() -> None:
    """Its requests have no places in the FIFO, so that it is any reply that shows that they have been sent."""
    opened: list[Lane] = []
    exchange = Exchange(BASE, opened.append)
    peer = RecordingPeer()
    session = exchange.connect(peer)
    exchange.receive(session, canonical([b"SUBSCRIBE", b"a"]))
    lane = opened[-1]
    exchange.connected(lane, RecordingLink(exchange, lane), 0.0)
    exchange.flush(0.0)
    exchange.replies(lane, bulk(b"secret") + b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n", 0.0)
    send, lane.send = lane.send, None  # the socket is full
    for _ in range(2):
        exchange.receive(session, canonical([b"PING", b"x" * UNSENT_LIMIT]))
        exchange.flush(0.0)
    assert not peer.reading
    lane.send = send
    exchange.flush(0.0)
    exchange.replies(lane, b"*2\r\n$4\r\npong\r\n" + bulk(b"x"), 0.0)
    assert peer.reading


def test_requests_of_before_a_loss_on_a_connection_that_wants_a_password() -> None:
    """They took the quick way, many in a piece, and are now sent a few at a time: bytes and places go together."""
    exchange = Exchange(BASE, lambda _: None, Limits(hold_below=0))
    lane = exchange.lane(BASE)
    peers = [RecordingPeer(), RecordingPeer()]
    for number, peer in enumerate(peers):
        session = exchange.connect(peer)
        exchange.receive(session, b"".join(canonical([b"GET", b"%d-%d" % (number, key)]) for key in range(6)))
    lane.authenticated = False
    link = RecordingLink(exchange, lane)
    exchange.connected(lane, link, 0.0)
    sent = 0
    while sent < 12:
        exchange.flush(0.0)
        requests = unpack(link.batches[-1])
        assert len(requests) == UNAUTHENTICATED_BATCH
        sent += len(requests)
        exchange.replies(lane, b"".join(bulk(request.split(b"\r\n")[4]) for request in requests), 0.0)
    for number, peer in enumerate(peers):
        assert peer.written == b"".join(bulk(b"%d-%d" % (number, key)) for key in range(6))
