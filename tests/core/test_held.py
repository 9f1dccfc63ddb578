"""What is held for a client is told to it, and withdrawn with it. Each case by itself; all of them together are in
`test_properties.py`."""

from __future__ import annotations

import pytest

from coalesce.core.exchange import Exchange
from coalesce.core.identity import Identity
from coalesce.core.lane import LARGE, UNSENT_LIMIT, Lane, Limits
from coalesce.core.session import Session, SessionState

from .fakes import RecordingLink, RecordingPeer
from .twins import canonical

BASE = Identity(None, None, 0, 2)
PING = canonical([b"PING"])
GET = canonical([b"GET", b"k"])
VALUE = b"x" * LARGE
SET = canonical([b"SET", b"k", VALUE])


class Stage:
    """An exchange, its lanes in the order in which they were opened, and clients."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.opened: list[Lane] = []
        self.exchange = Exchange(BASE, self.opened.append, limits or Limits())

    def connect(self, number: int) -> RecordingLink:
        lane = self.opened[number]
        link = RecordingLink(self.exchange, lane)
        self.exchange.connected(lane, link, 0.0)
        self.exchange.flush(0.0)
        return link

    def client(self) -> tuple[RecordingPeer, Session]:
        peer = RecordingPeer()
        return peer, self.exchange.connect(peer)

    def sets(self, session: Session) -> None:
        """Something large, which never comes in one read."""
        self.exchange.receive(session, SET[:100])
        self.exchange.receive(session, SET[100:])

    def evict(self, session: Session) -> None:
        self.exchange.depart(session)
        self.exchange.withdraw(session)


def test_what_has_been_read_of_a_request() -> None:
    """Its bytes, and the arguments among them once more, until it is whole."""
    stage = Stage()
    stage.connect(0)
    peer, session = stage.client()
    stage.exchange.receive(session, b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$100\r\nxxx")
    assert peer.held == len(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$100\r\nxxx") + len(b"SETk") + 2 * 56
    stage.exchange.receive(session, b"x" * 97 + b"\r\n")
    assert peer.held == 0


def test_what_waits_until_nothing_is_owed() -> None:
    stage = Stage()
    stage.connect(0)
    peer, session = stage.client()
    stage.exchange.receive(session, GET)
    stage.exchange.receive(session, canonical([b"BLPOP", b"key", b"0"]))
    assert session.state is SessionState.SETTLING
    assert peer.held == len(b"BLPOPkey0")
    stage.exchange.depart(session)
    assert peer.held == 0


def test_a_large_request_until_it_is_answered() -> None:
    stage = Stage()
    stage.connect(0)
    peer, session = stage.client()
    stage.sets(session)
    assert peer.held == len(SET)
    link = stage.connect(1)
    assert link.batches == [SET]
    assert peer.held == len(SET)
    stage.exchange.replies(stage.opened[1], b"+OK\r\n", 0.0)
    assert (peer.held, peer.written) == (0, b"+OK\r\n")


def test_a_large_request_that_is_lost() -> None:
    stage = Stage()
    stage.connect(0)
    peer, session = stage.client()
    stage.sets(session)
    stage.connect(1)
    stage.exchange.lose(stage.opened[1])
    assert (peer.held, peer.closed) == (0, True)


def test_a_large_request_on_a_lease_until_it_is_answered() -> None:
    stage = Stage()
    stage.connect(0)
    peer, session = stage.client()
    stage.exchange.receive(session, canonical([b"WATCH", b"k"]))
    stage.connect(1)
    stage.exchange.replies(stage.opened[1], b"+OK\r\n", 0.0)
    stage.sets(session)
    assert peer.held == len(b"SETk") + LARGE
    stage.exchange.flush(0.0)
    stage.exchange.replies(stage.opened[1], b"+OK\r\n", 0.0)
    assert peer.held == 0
    stage.sets(session)
    stage.exchange.depart(session)
    assert peer.held == 0


def test_a_large_request_that_may_block_on_a_lease_until_it_is_answered() -> None:
    """However many of them there are, one after the other, before the lease is given back."""
    stage = Stage()
    stage.connect(0)
    peer, session = stage.client()
    stage.exchange.receive(session, canonical([b"WATCH", b"k"]))
    stage.connect(1)
    stage.exchange.replies(stage.opened[1], b"+OK\r\n", 0.0)
    for pieces in ([b"*-1\r\n"], [b"*1\r\n$20000\r\n" + b"y" * 20_000, b"\r\n"], [b"-ERR no\r\n"]):
        stage.exchange.receive(session, canonical([b"BLPOP", VALUE, b"1"]))
        stage.exchange.flush(0.0)
        assert peer.held == len(b"BLPOP1") + LARGE
        for piece in pieces:
            stage.exchange.replies(stage.opened[1], piece, 0.0)
            assert peer.held == 0
    stage.exchange.receive(session, canonical([b"BLPOP", VALUE, b"1"]))
    stage.exchange.depart(session)
    assert peer.held == 0


def test_a_subscriber_that_sends_what_is_large_is_pinned() -> None:
    """It is not known when that has left, but where there is backpressure."""
    stage = Stage()
    stage.connect(0)
    peer, session = stage.client()
    stage.exchange.receive(session, canonical([b"HELLO", b"3"]))
    stage.connect(1)
    stage.exchange.replies(stage.opened[1], b"%0\r\n", 0.0)
    stage.exchange.receive(session, canonical([b"SUBSCRIBE", b"c"]))
    lane = stage.opened[2]
    link = stage.connect(2)
    answer = b"$6\r\nsecret\r\n"
    stage.exchange.replies(lane, answer + b">3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n", 0.0)
    stage.sets(session)
    assert peer.held == len(b"SETk") + LARGE + len(b"SUBSCRIBEc")
    stage.exchange.flush(0.0)
    assert link.batches[-1].startswith(b"*2\r\n$4\r\nPING")
    stage.exchange.replies(lane, answer, 0.0)
    assert peer.pinned == (lane, SET)
    assert peer.held == 0


def test_a_long_name_is_kept_by_the_upstream_alone() -> None:
    stage = Stage()
    stage.connect(0)
    peer, session = stage.client()
    request = canonical([b"CLIENT", b"SETNAME", b"x" * 1024])
    stage.exchange.receive(session, request)
    stage.connect(1)
    assert peer.pinned == (stage.opened[1], request)
    assert session.name == b""


@pytest.mark.parametrize("request_", [[b"AUTH", VALUE], [b"HELLO", b"2", b"AUTH", b"default", VALUE]])
def test_no_lane_is_called_by_a_megabyte(request_: list[bytes]) -> None:
    stage = Stage()
    stage.connect(0)
    _, session = stage.client()
    stage.exchange.receive(session, canonical(request_))
    assert list(stage.exchange.lanes) == [BASE]
    assert stage.opened[1].exclusive


# Withdrawn


def unanswered(stage: Stage, lane: Lane) -> None:
    """Answers everybody, and says that nothing is owed any more."""
    while lane.owed:
        stage.exchange.flush(0.0)
        stage.exchange.replies(lane, b"+OK\r\n" * len(lane.in_flight), 0.0)


def test_what_has_not_left_gives_way() -> None:
    """And what others have sent is where it was."""
    stage = Stage()
    stage.connect(0)
    clients = [stage.client() for _ in range(3)]
    for _, session in clients:
        stage.sets(session)
    link = stage.connect(1)
    lane = stage.opened[1]
    assert link.batches == [SET]
    stage.evict(clients[1][1])
    assert clients[1][0].held == 0
    assert sum(map(len, lane.unsent)) == len(SET) + len(PING)
    unanswered(stage, lane)
    assert link.batches == [SET, PING, SET]
    assert [peer.written for peer, _ in clients] == [b"+OK\r\n", b"", b"+OK\r\n"]


def test_what_is_on_its_way_goes_on() -> None:
    """A byte of it may have left (I7); it counts until it is answered."""
    stage = Stage()
    stage.connect(0)
    peer, session = stage.client()
    stage.sets(session)
    stage.connect(1)
    stage.evict(session)
    assert peer.held == len(SET)
    unanswered(stage, stage.opened[1])
    assert (peer.held, peer.written) == (0, b"")


def test_what_has_not_left_gives_way_among_small_ones() -> None:
    """Where there is no lane for what is large. What is in one piece there are several requests."""
    stage = Stage()
    home, large = stage.exchange.lane(BASE), stage.exchange.large_lane(BASE)
    neighbour, other = stage.client()
    peer, session = stage.client()
    stage.exchange.receive(other, GET * 3)
    stage.sets(session)
    assert large.unsent == [SET]
    stage.exchange.fail(large, "no")
    assert not large.withdrawable
    stage.exchange.receive(other, GET * 3)
    assert home.unsent == [GET * 3, SET, GET * 3]
    stage.evict(session)
    assert peer.held == 0
    link = stage.connect(0)
    assert link.batches == [GET * 3 + PING + GET * 3]
    stage.exchange.replies(home, b"+OK\r\n" * 7, 0.0)
    assert (neighbour.written, peer.written) == (b"+OK\r\n" * 6, b"")


def test_what_has_been_cut_anew_gives_way() -> None:
    """An upstream that wants AUTH, all of a sudden, gets a few requests at a time."""
    stage = Stage()
    home, large = stage.exchange.lane(BASE), stage.exchange.large_lane(BASE)
    _, other = stage.client()
    peer, session = stage.client()
    stage.exchange.receive(other, GET * 5)
    stage.exchange.fail(large, "no")
    stage.sets(session)
    home.authenticated = False
    link = stage.connect(0)
    assert link.batches == [GET * 4]
    stage.evict(session)
    assert peer.held == 0
    assert home.unsent == [GET, PING]


# Small requests, which are nobody's


def test_unsent_requests_are_bounded_on_all_lanes_together() -> None:
    """Those who ride a lane that moves on are read all the same."""
    stage = Stage(Limits(client=10**6, lane=10**6, hold_below=0))
    share = 16
    stage.connect(0)
    riders = []
    for number in range(1, share + 1):
        peer, session = stage.client()
        stage.exchange.receive(session, canonical([b"SELECT", b"%d" % number]))
        stage.connect(number)
        stage.exchange.replies(stage.opened[number], b"+OK\r\n", 0.0)
        stage.opened[number].send = None
        riders.append((peer, session))
    request = canonical([b"SET", b"k", b"x" * (LARGE - 1024)])
    for _ in range(UNSENT_LIMIT // share // len(request) + 1):
        assert all(peer.reading for peer, _ in riders)
        for _, session in riders:
            stage.exchange.receive(session, request)
        stage.exchange.flush(0.0)
    neighbour, other = stage.client()
    for _, session in [*riders, (neighbour, other)]:
        stage.exchange.receive(session, GET)
    assert not any(peer.reading for peer, _ in riders)
    assert neighbour.reading
    for lane in stage.opened[1:]:
        assert lane.link is not None
        lane.send = lane.link.send
        unanswered(stage, lane)
    assert all(peer.reading for peer, _ in riders)


def test_the_bound_holds_while_replies_come_one_by_one() -> None:
    """On the lane for what is large each reply would let everybody say more, and one of them leaves."""
    stage = Stage(Limits(client=10**6, lane=10**6))
    stage.connect(0)
    riders = [stage.client() for _ in range(8)]
    for _, session in riders:
        stage.sets(session)
    large = stage.opened[1]
    stage.connect(1)
    request = canonical([b"SET", b"k", b"x" * (LARGE - 1024)])
    share = UNSENT_LIMIT // len(request)
    for _ in range(2 * share // len(riders)):
        for peer, session in riders:
            if peer.reading:
                stage.exchange.receive(session, request)
        stage.exchange.flush(0.0)
        stage.exchange.replies(large, b"+OK\r\n", 0.0)
        stage.exchange.flush(0.0)
    assert large.full
    assert large.unsent_weight() <= UNSENT_LIMIT + len(riders) * len(request)
    while large.in_flight:
        stage.exchange.replies(large, b"+OK\r\n", 0.0)
        stage.exchange.flush(0.0)
    assert not large.full
    assert all(peer.reading for peer, _ in riders)


def test_what_thousands_may_still_say_to_a_full_lane() -> None:
    """Each of them is only stopped by its next request: that counts as its own, unless one read brings it."""
    stage = Stage(Limits(lane=1))
    first = stage.client()[1]
    stage.exchange.receive(first, GET)
    stage.exchange.flush(0.0)
    assert stage.opened[0].full
    value = canonical([b"SET", b"k", b"x" * (LARGE // 2)])
    (greedy, its), (modest, that) = stage.client(), stage.client()
    for session, request in ((its, value), (that, GET)):
        stage.exchange.receive(session, request[:10])
        stage.exchange.receive(session, request[10:])
    assert (greedy.held, modest.held) == (len(value), 0)
    assert its.throttled
    assert that.throttled
    link = stage.connect(0)
    assert link.batches == [GET + value + GET]
    stage.exchange.replies(stage.opened[0], b"$-1\r\n+OK\r\n$-1\r\n", 0.0)
    assert (greedy.written, modest.written) == (b"+OK\r\n", b"$-1\r\n")
    assert (greedy.held, modest.held) == (0, 0)
