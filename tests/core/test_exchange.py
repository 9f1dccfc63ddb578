"""Cases of `Exchange` that were found the hard way, each as it was found."""

from __future__ import annotations

import itertools

from coalesce.core.errors import bulk
from coalesce.core.exchange import Exchange
from coalesce.core.identity import Identity
from coalesce.core.lane import UNAUTHENTICATED_BATCH, UNSENT_LIMIT, Lane, Limits
from coalesce.core.resp import unpack
from coalesce.core.session import Session, SessionState

from .fakes import RecordingLink, RecordingPeer
from .twins import canonical

BASE = Identity(None, None, 0, 2)
SUBSCRIBED = b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n"
UNSUBSCRIBED = b"*3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:0\r\n"


def borrower(*arguments: bytes) -> tuple[Exchange, RecordingPeer, Session, Lane, RecordingLink]:
    """A session whose first request needs a connection of its own, which it has got."""
    opened: list[Lane] = []
    secrets = itertools.count(1)
    exchange = Exchange(BASE, opened.append, secret=lambda: b"secret %d" % next(secrets))
    peer = RecordingPeer()
    session = exchange.connect(peer)
    exchange.receive(session, canonical(list(arguments)))
    lane = opened[-1]
    link = RecordingLink(exchange, lane)
    exchange.connected(lane, link, 0.0)
    exchange.flush(0.0)
    return exchange, peer, session, lane, link


def subscriber() -> tuple[Exchange, RecordingPeer, Session, Lane, RecordingLink]:
    return borrower(b"SUBSCRIBE", b"a")


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
    exchange, peer, session, lane, _ = subscriber()
    exchange.replies(lane, bulk(b"secret 1") + SUBSCRIBED + b"*3\r\n$7\r\nmess", 0.0)
    peer.breaks_with = lambda: exchange.depart(session)
    exchange.end_of_input(session)
    assert peer.closed
    assert peer.pinned is None
    assert lane.link is None


def test_a_subscriber_that_was_stopped_is_read_from_again() -> None:
    """Its requests have no places in the FIFO, so that it is any reply that shows that they have been sent."""
    exchange, peer, session, lane, _ = subscriber()
    exchange.replies(lane, bulk(b"secret 1") + SUBSCRIBED, 0.0)
    send, lane.send = lane.send, None  # the socket is full
    for _ in range(2):
        exchange.receive(session, canonical([b"PING", b"x" * UNSENT_LIMIT]))
        exchange.flush(0.0)
    assert not peer.reading
    lane.send = send
    exchange.flush(0.0)
    exchange.replies(lane, b"*2\r\n$4\r\npong\r\n" + bulk(b"x"), 0.0)
    assert peer.reading


def test_the_secret_is_never_the_same() -> None:
    """MONITOR shows the PINGs that have been: who knew the next could end a subscription with a message."""
    exchange, peer, session, lane, link = subscriber()
    assert link.batches == [b"*2\r\n$4\r\nPING\r\n" + bulk(b"secret 1") + canonical([b"SUBSCRIBE", b"a"])]
    exchange.replies(lane, bulk(b"secret 1") + SUBSCRIBED, 0.0)
    exchange.receive(session, canonical([b"UNSUBSCRIBE", b"a"]))
    exchange.flush(0.0)
    exchange.replies(lane, UNSUBSCRIBED, 0.0)
    exchange.flush(0.0)
    assert link.batches[-1] == b"*2\r\n$4\r\nPING\r\n" + bulk(b"secret 2")
    assert session.state is SessionState.SETTLING
    exchange.replies(lane, bulk(b"secret 2"), 0.0)
    assert session.state is SessionState.FLOWING
    assert peer.written == SUBSCRIBED + UNSUBSCRIBED


def test_the_name_of_a_channel_without_end_is_not_waited_for() -> None:
    """Its confirmation is looked at whole, and looking again with each chunk would take the square of its length."""
    exchange, peer, _, lane, _ = subscriber()
    exchange.replies(lane, bulk(b"secret 1"), 0.0)
    size = 512 * 1024 * 1024
    chunks = [b"*3\r\n$9\r\nsubscribe\r\n$%d\r\n" % size, *[b"x" * 65_536] * 32]
    given = 0
    while peer.pinned is None:
        exchange.replies(lane, chunks[given], 0.0)
        given += 1
    assert 1024 * 1024 <= len(peer.written) < 1024 * 1024 + 2 * 65_536
    assert peer.written == b"".join(chunks[:given])


def test_replconf_ack_has_no_reply_to_wait_for() -> None:
    _, peer, session, lane, link = borrower(b"REPLCONF", b"ACK", b"0")
    assert session.state is SessionState.PINNED
    assert peer.pinned == (lane, canonical([b"REPLCONF", b"ACK", b"0"]))
    assert not link.batches


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
