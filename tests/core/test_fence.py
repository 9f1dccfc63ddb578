"""Requests whose reply may be more than one, and what then comes of them (core/fence.py)."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from coalesce.core.errors import Desync, bulk
from coalesce.core.exchange import Exchange
from coalesce.core.identity import Identity
from coalesce.core.lane import Lane, LaneState, Limits

from .fakes import RecordingLink, RecordingPeer
from .twins import canonical

if TYPE_CHECKING:
    from coalesce.core.session import Session

BASE = Identity(None, None, 0, 2)
OTHER = Identity(None, None, 1, 2)
EVAL = canonical([b"EVAL", b"return 1", b"0"])
GET = canonical([b"GET", b"k"])
WATCH, UNWATCH = canonical([b"WATCH", b"k"]), canonical([b"UNWATCH"])
BLOCK = canonical([b"MULTI"]), canonical([b"EVAL", b"x", b"0"]), canonical([b"EXEC"])
OK = b"+OK\r\n"
FORGED = b"-ERR a\r\n+forged\r\n"


def fence(number: int) -> bytes:
    return canonical([b"PING", b"secret %d" % number])


def proof(number: int) -> bytes:
    return bulk(b"secret %d" % number)


def lent_fence(number: int) -> bytes:
    """On a connection that is lent."""
    return canonical([b"HELLO", b"2", b"secret %d" % number])


def lent_proof(number: int) -> bytes:
    return b"-ERR Syntax error in HELLO option 'secret %d'\r\n" % number


class House:
    """An exchange and its connections, which stand as soon as they are wanted."""

    def __init__(self) -> None:
        self.lanes: list[Lane] = []
        self.links: dict[Lane, RecordingLink] = {}
        secrets = itertools.count(1)
        limits = Limits(hold_below=0)
        self.exchange = Exchange(BASE, self.lanes.append, limits, lambda: b"secret %d" % next(secrets))
        self._go_on()

    def client(self) -> tuple[Session, RecordingPeer]:
        peer = RecordingPeer()
        return self.exchange.connect(peer), peer

    def says(self, session: Session, data: bytes) -> None:
        self.exchange.receive(session, data)
        self._go_on()

    def replies(self, data: bytes, number: int = 0) -> None:
        """On the connection of a lane. In doubt it is lost, as in the shell."""
        lane = self.lanes[number]
        try:
            self.exchange.replies(lane, data, 0.0)
        except Desync:
            self.exchange.lose(lane)
        self._go_on()

    def sent(self, number: int = 0) -> bytes:
        """On the connection of a lane that it has now, or had at last."""
        return b"".join(self.links[self.lanes[number]].batches)

    def _go_on(self) -> None:
        for lane in self.lanes:
            if lane.state is LaneState.DIALLING:
                self.links[lane] = RecordingLink(self.exchange, lane)
                self.exchange.connected(lane, self.links[lane], 0.0)
        self.exchange.flush(0.0)


@pytest.mark.parametrize(
    ("said", "sent", "replied", "heard"),
    [
        (EVAL, EVAL + fence(1), b":1\r\n" + proof(1), b":1\r\n"),
        (GET + EVAL + GET, GET + EVAL + fence(1) + GET, b"+a\r\n:1\r\n" + proof(1) + b"+b\r\n", b"+a\r\n:1\r\n+b\r\n"),
        (EVAL * 2, EVAL + fence(1) + EVAL + fence(2), b":1\r\n" + proof(1) + b":2\r\n" + proof(2), b":1\r\n:2\r\n"),
        (
            b"".join(BLOCK),
            b"".join(BLOCK) + fence(1),
            OK + b"+QUEUED\r\n*1\r\n:1\r\n" + proof(1),
            OK + b"+QUEUED\r\n*1\r\n:1\r\n",
        ),
        (GET, GET, b"+a\r\n", b"+a\r\n"),
        (
            canonical([b"eval", b"x", b"0"]),
            canonical([b"eval", b"x", b"0"]) + fence(1),
            b":1\r\n" + proof(1),
            b":1\r\n",
        ),
    ],
    ids=["a script", "among others", "two", "in a transaction", "none", "in small letters"],
)
@pytest.mark.parametrize("size", [10**9, 7, 1])
def test_a_fence_stands_behind_what_may_have_more_than_one_reply(said, sent, replied, heard, size):
    house = House()
    session, peer = house.client()
    for at in range(0, len(said), size):
        house.says(session, said[at : at + size])
    if size < len(said) and said.startswith(BLOCK[0]):
        assert not house.sent(), "in pieces a transaction takes a connection of its own"
        return
    assert house.sent() == sent
    for at in range(0, len(replied), size):
        house.replies(replied[at : at + size])
    assert peer.written == heard
    assert not peer.closed


@pytest.mark.parametrize(
    "request_",
    [[b"SCRIPT", b"LOAD", b"x"], [b"function", b"list", b"x"], [b"FCALL", b"f", b"0"], [b"JSON.GET", b"k"]],
    ids=str,
)
def test_so_it_does_behind_others_like_it(request_):
    house = House()
    session, _ = house.client()
    house.says(session, canonical(request_))
    assert house.sent() == canonical(request_) + fence(1)


@pytest.mark.parametrize("size", [10**9, 20, 1])
def test_what_was_made_up_for_the_neighbours_reaches_none(size):
    house = House()
    first, evil, *others = (house.client() for _ in range(5))
    house.says(first[0], GET)
    house.says(evil[0], EVAL)
    for other, _ in others:
        house.says(other, GET)
    replied = b"+first\r\n" + FORGED + proof(1) + b"+a\r\n+b\r\n+c\r\n"
    while replied and house.links[house.lanes[0]].batches:
        house.replies(replied[:size])
        replied = replied[size:]
        if first[1].written and any(peer.closed for _, peer in others):
            break
    assert (first[1].written, first[1].closed) == (b"+first\r\n", False)
    assert evil[1].written == b"-ERR a\r\n"
    assert [(peer.written, peer.closed) for _, peer in others] == [(b"", True)] * 3
    assert house.exchange.apart == {BASE}


def broken() -> House:
    """A house where somebody has broken a fence on the base lane; all its connections stand anew."""
    house = House()
    session, _ = house.client()
    house.says(session, EVAL)
    house.replies(FORGED)
    assert house.exchange.apart == {BASE}
    return house


@pytest.mark.parametrize("said", [EVAL, b"".join(BLOCK)], ids=["a script", "a transaction with one"])
def test_then_scripts_take_connections_of_their_own(said):
    house = broken()
    session, peer = house.client()
    house.says(session, said)
    assert not house.sent()
    assert house.sent(1).startswith(said[: len(BLOCK[0])] if said != EVAL else EVAL)
    assert not peer.closed


def test_then_transactions_without_scripts_do_so_too():
    """A user who may not PING would break a fence with each."""
    house = broken()
    session, _ = house.client()
    house.says(session, b"".join([BLOCK[0], GET, BLOCK[2]]))
    assert not house.sent()
    assert house.sent(1) == b"".join([BLOCK[0], GET, BLOCK[2]])


def test_of_transactions_without_scripts_the_first_on_a_connection_is_fenced():
    house = House()
    session, peer = house.client()
    block = b"".join([BLOCK[0], GET, BLOCK[2]])
    answer = OK + b"+QUEUED\r\n*1\r\n$-1\r\n"
    house.says(session, block)
    house.replies(answer + proof(1))
    house.says(session, block)
    house.replies(answer)
    assert house.sent() == block + fence(1) + block
    house.exchange.lose(house.lanes[0])
    house.says(session, block)
    assert house.sent() == block + fence(2)
    assert peer.written == answer * 2


def test_then_other_identities_go_on_as_before():
    house = broken()
    session, _ = house.client()
    house.says(session, canonical([b"SELECT", b"1"]))
    house.replies(OK, 1)
    house.says(session, EVAL)
    assert house.lanes[1].identity == OTHER
    assert house.sent(1) == canonical([b"SELECT", b"1"]) + EVAL + fence(2)


@pytest.mark.parametrize("late", [False, True])
def test_a_lease_on_which_there_were_more_replies_is_lent_to_nobody(late):
    """The rest may come in the same chunk, or when the lease is on its way to somebody else."""
    house = broken()
    evil, evil_peer = house.client()
    house.says(evil, EVAL)
    first, second = FORGED[:8], FORGED[8:]
    house.replies(first if late else FORGED, 1)
    assert evil_peer.written in {first, b""}
    victim, peer = house.client()
    house.says(victim, WATCH)
    if late:
        assert house.sent(1) == EVAL + lent_fence(2)
        house.replies(second + lent_proof(2), 1)
    assert len(house.lanes) == 3
    assert house.sent(2) == WATCH
    house.replies(OK, 2)
    assert (peer.written, peer.closed) == (OK, False)


def test_a_lease_on_which_there_were_not_is_lent_on():
    house = broken()
    for turn in range(2, 5):
        session, peer = house.client()
        house.says(session, EVAL)
        if turn > 2:
            house.replies(lent_proof(turn - 1), 1)
        house.replies(b":1\r\n", 1)
        assert (peer.written, peer.closed) == (b":1\r\n", False)
    assert house.sent(1) == EVAL + lent_fence(2) + EVAL + lent_fence(3) + EVAL
    assert len(house.lanes) == 2


def test_what_would_pin_and_is_refused_leaves_a_lease_in_doubt():
    """A command that nobody here knows may say anything."""
    house = House()
    session, _ = house.client()
    house.says(session, canonical([b"UNHEARD-OF"]))
    house.replies(b"-ERR unknown command\r\n", 1)
    house.says(session, WATCH)
    assert house.sent(1) == canonical([b"UNHEARD-OF"]) + lent_fence(1)
    house.replies(lent_proof(1), 1)
    assert house.sent(1) == canonical([b"UNHEARD-OF"]) + lent_fence(1) + WATCH


def test_a_transaction_without_an_end_is_nobody_elses():
    """`rename-command EXEC` leaves it open: the neighbour's request would be queued."""
    house = House()
    session, _ = house.client()
    neighbour, peer = house.client()
    house.says(session, b"".join([BLOCK[0], GET, BLOCK[2]]))
    house.says(neighbour, GET)
    house.replies(OK + b"+QUEUED\r\n-ERR unknown command 'EXEC', with args beginning with: \r\n" + b"+QUEUED\r\n" * 2)
    assert (peer.written, peer.closed) == (b"", True)


@pytest.mark.parametrize("others", [b"", GET + EVAL], ids=["alone", "among others"])
def test_nor_is_one_that_had_not_left_when_that_turned_out(others):
    """It counted on the proof of a connection that is no more."""
    house = House()
    lane = house.lanes[0]
    block = b"".join([BLOCK[0], GET, BLOCK[2]])
    house.says(house.client()[0], block)
    lane.send = None  # the socket takes no more
    house.says(house.client()[0], others + block + GET + block)
    house.replies(OK + b"+QUEUED\r\n-ERR unknown command 'EXEC', with args beginning with: \r\n+QUEUED\r\n")
    scripts = others.count(EVAL)
    assert house.sent() == others + fence(2) * scripts + block + fence(2 + scripts) + GET + block
    neighbour, peer = house.client()
    house.says(neighbour, GET)
    house.replies((b"$-1\r\n:1\r\n" + proof(2)) * scripts + OK + b"+QUEUED\r\n-ERR unknown command\r\n")
    house.replies(b"+QUEUED\r\n" * 2)
    assert (peer.written, peer.closed) == (b"", True)


def test_a_transaction_that_had_not_left_proves_anew_that_it_ends():
    """The next connection may lead to another upstream."""
    house = House()
    lane = house.lanes[0]
    block = b"".join([BLOCK[0], GET, BLOCK[2]])
    answer = OK + b"+QUEUED\r\n*1\r\n$-1\r\n"
    session, peer = house.client()
    house.says(session, block)
    house.replies(answer + proof(1))
    lane.send = None  # the socket takes no more
    house.says(session, block + GET)
    house.exchange.lose(lane)
    house.says(session, block)
    assert house.sent() == block + fence(2) + GET + block
    house.replies(answer + proof(2) + b"$-1\r\n" + answer)
    assert (peer.written, peer.closed) == (answer * 2 + b"$-1\r\n" + answer, False)


def test_requests_that_never_left_are_answered_and_their_fences_forgotten():
    house = House()
    lane = house.lanes[0]
    house.exchange.lose(lane)
    (session, peer) = house.client()
    house.exchange.receive(session, EVAL + GET)
    house.exchange.fail(lane, "nobody there")
    house.exchange.flush(0.0)
    assert peer.written.count(b"\r\n") == 2
    assert not house.exchange.apart
    assert not peer.closed
