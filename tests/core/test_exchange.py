"""Cases of `Exchange` that were found the hard way, each as it was found."""

from __future__ import annotations

import itertools
import weakref

import pytest

from coalesce.core.errors import Desync, bulk, no_lane, no_lease
from coalesce.core.exchange import HELD_LIMIT, Exchange
from coalesce.core.identity import Identity
from coalesce.core.lane import LARGE, UNAUTHENTICATED_BATCH, UNSENT_LIMIT, Lane, Limits
from coalesce.core.ledger import Kind, Outcomes
from coalesce.core.resp import ARGUMENTS_OF_A_LANE, unpack
from coalesce.core.session import Session, SessionState

from .fakes import RecordingLink, RecordingPeer
from .twins import canonical, read_requests

BASE = Identity(None, None, 0, 2)
# Bytes of a value: what is large is the affair of a connection for good.
NOT_LARGE = LARGE - 1024
GET = canonical([b"GET", b"k"])
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


def test_a_lane_is_asked_for_its_role_while_another_connection_is_dialled_and_then_once_in_a_while() -> None:
    """One question at a time: behind a script that loops there may be a thousand dials."""
    opened: list[Lane] = []
    exchange = Exchange(BASE, opened.append)
    lane = exchange.lane(BASE)
    lane.primary = True
    link = RecordingLink(exchange, lane)
    exchange.connected(lane, link, 0.0)
    hello = canonical([b"HELLO", b"2"])

    def borrows(now: float) -> None:
        exchange.flush(now)
        exchange.receive(exchange.connect(RecordingPeer()), canonical([b"WATCH", b"k"]))
        exchange.flush(now)

    borrows(10.0)
    borrows(10.0)
    assert link.batches == [hello]
    exchange.replies(lane, b"*2\r\n$4\r\nrole\r\n$6\r\nmaster\r\n", 10.0)
    assert not lane.turned_away
    for leased in opened[1:]:
        exchange.connected(leased, RecordingLink(exchange, leased), 0.0)
    exchange.flush(10.0)
    for session in list(lane.sessions):
        exchange.replies(session.lane, b"+OK\r\n", 10.0)
        exchange.receive(session, canonical([b"UNWATCH"]))
        exchange.flush(10.0)
        exchange.replies(session.lane, b"+OK\r\n", 10.0)
    borrows(10.9)
    assert link.batches == [hello]
    borrows(11.0)
    assert link.batches == [hello, hello]
    exchange.replies(lane, b"*4\r\n$4\r\nmode\r\n$1\r\nx\r\n$4\r\nrole\r\n$7\r\nreplica\r\n", 11.0)
    assert lane.turned_away


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


def test_those_who_come_ask_and_leave_keep_to_twice_the_limit_of_a_lane() -> None:
    """What they asked for stays: each that came would add to it."""
    exchange = Exchange(BASE, lambda _: None, Limits(client=10, lane=20, hold_below=0))
    lane = exchange.lane(BASE)
    peers = []
    for _ in range(100):
        peer = RecordingPeer()
        session = exchange.connect(peer)
        if peer.reading:
            exchange.receive(session, PING * 5)
            exchange.depart(session)
            exchange.flush(0.0)
        else:
            peers.append((session, peer))
    assert lane.owed == 40
    assert len(peers) == 92
    link = RecordingLink(exchange, lane)
    exchange.connected(lane, link, 0.0)
    exchange.flush(0.0)
    exchange.replies(lane, b"+PONG\r\n" * 40, 0.0)
    assert all(peer.reading for _, peer in peers)
    exchange.receive(peers[0][0], PING)
    exchange.flush(0.0)
    exchange.replies(lane, b"+PONG\r\n", 0.0)
    assert peers[0][1].written == b"+PONG\r\n"


def test_those_who_leave_large_requests_behind_keep_to_twice_their_bytes() -> None:
    exchange = Exchange(BASE, lambda _: None)
    for left in range(17):
        peer = RecordingPeer()
        session = exchange.connect(peer)
        assert peer.reading == (left < 16)
        exchange.receive(session, canonical([b"SET", b"k", b"x" * (UNSENT_LIMIT // 8)]))
        exchange.depart(session)
        exchange.flush(0.0)


def test_who_comes_to_end_what_all_others_wait_for_is_heard() -> None:
    """By a connection of its own."""
    opened: list[Lane] = []
    exchange = Exchange(BASE, opened.append, Limits(lane=2, hold_below=0))
    lane = exchange.lane(BASE)
    exchange.connected(lane, RecordingLink(exchange, lane), 0.0)
    exchange.receive(exchange.connect(RecordingPeer()), PING * 3)
    exchange.flush(0.0)
    assert lane.full
    kill = canonical([b"SCRIPT", b"KILL"])
    peer = RecordingPeer()
    session = exchange.connect(peer)
    assert peer.reading
    exchange.receive(session, kill)
    lease = opened[-1]
    link = RecordingLink(exchange, lease)
    exchange.connected(lease, link, 0.0)
    exchange.flush(0.0)
    assert link.batches == [kill]


def test_who_waits_for_a_full_lane_goes_on_after_a_fault_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The requests that filled it are lost with those who sent them, and no reply will come."""
    said: list[Exception] = []
    exchange = Exchange(BASE, lambda _: None, Limits(lane=2), say_fault=lambda _, fault: said.append(fault))
    lane = exchange.lane(BASE)
    first, second = RecordingPeer(), RecordingPeer()
    exchange.receive(exchange.connect(first), PING * 4)
    exchange.flush(0.0)
    session = exchange.connect(second)
    assert not second.reading
    with monkeypatch.context() as patch:
        patch.setattr(exchange, "_flush_lane", None)
        exchange.flush(0.0)
    assert len(said) == 1
    assert (first.closed, second.closed, second.reading) == (True, False, True)
    exchange.receive(session, PING)
    exchange.connected(lane, RecordingLink(exchange, lane), 0.0)
    exchange.flush(0.0)
    exchange.replies(lane, b"+PONG\r\n", 0.0)
    assert second.written == b"+PONG\r\n"


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
    for _ in range(UNSENT_LIMIT // NOT_LARGE + 2):
        exchange.receive(session, canonical([b"PING", b"x" * NOT_LARGE]))
        exchange.flush(0.0)
    assert not peer.reading
    lane.send = send
    exchange.flush(0.0)
    exchange.replies(lane, b"*2\r\n$4\r\npong\r\n" + bulk(b"x"), 0.0)
    assert peer.reading


@pytest.mark.parametrize("refused", [True, False])
def test_who_rides_the_lane_for_what_is_large_when_that_fails_goes_on_beside_the_others(refused: bool) -> None:
    """With what waits for it, in order; and so whoever comes next."""
    pair = Pair()
    peer = RecordingPeer()
    session, neighbour = pair.exchange.connect(peer), pair.exchange.connect(RecordingPeer())
    pair.says(session, SET)
    pair.replies(True, b"+OK\r\n")
    small, large = pair.lanes
    pair.exchange.lose(large)
    pair.says(session, SET + GET)
    if refused:
        pair.exchange.refuse(large, b"-WRONGPASS\r\n")
    else:
        pair.exchange.fail(large, "outage")
    pair.exchange.flush(0.0)
    assert session.lane is small
    assert b"".join(pair.links[False].batches) == SET + GET
    pair.replies(False, b"+OK\r\n" + bulk(VALUE))
    assert peer.written == b"+OK\r\n" * 2 + bulk(VALUE)
    pair.says(neighbour, SET)
    assert pair.links[False].batches[-1] == SET
    assert pair.exchange.large_lanes == {BASE: large}, "it is remembered"


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


def test_a_lease_that_only_a_subscriber_had_is_counted() -> None:
    exchange, _, session, _, _ = subscriber()
    assert exchange.totals(exclusive=True).lanes == 1
    exchange.depart(session)
    assert exchange.totals(exclusive=True).lanes == 1


def test_what_no_client_asked_for_is_counted_apart() -> None:
    opened: list[Lane] = []
    exchange = Exchange(BASE, opened.append)
    lane = opened[0]
    exchange.connected(lane, RecordingLink(exchange, lane), 0.0)
    for idle in (1.0, 2.0):
        exchange.keep_alive(idle, 1.0)
        exchange.flush(idle)
        exchange.replies(lane, b"+PONG\r\n", idle)
    lanes, commands, batches, largest, own = exchange.totals(exclusive=False)
    assert (lanes, commands, batches, largest, own) == (1, 0, 2, 1, 2)


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


def test_a_long_line_to_a_subscriber_is_passed_on_as_it_comes() -> None:
    """What is kept is looked at again with each chunk."""
    exchange, peer, _, lane, _ = subscriber()
    exchange.replies(lane, bulk(b"secret 1") + SUBSCRIBED, 0.0)
    for chunk in (b"-", *[b"x" * 20_000] * 10):
        before = peer.written
        exchange.replies(lane, chunk, 0.0)
        assert chunk == b"-" or peer.written[len(before) :].endswith(chunk)
    exchange.replies(lane, b"\r", 0.0)
    exchange.replies(lane, b"\n+next\r\n+la", 0.0)
    assert peer.written == SUBSCRIBED + b"-" + b"x" * 200_000 + b"\r\n+next\r\n"


def test_a_long_refusal_of_what_pins_is_not_waited_for() -> None:
    exchange, peer, session, lane, _ = borrower(b"CLIENT", b"TRACKING", b"ON")
    refusal = b"-ERR " + b"x" * 20_000
    exchange.replies(lane, refusal[:100], 0.0)
    assert session.state is SessionState.PINNING
    exchange.replies(lane, refusal[100:], 0.0)
    assert session.state is SessionState.PINNED
    assert peer.written == refusal


def test_what_answers_our_ping_is_not_waited_for_without_end() -> None:
    exchange, _, _, lane, _ = subscriber()
    exchange.replies(lane, b"-" + b"x" * 10_000, 0.0)
    with pytest.raises(Desync):
        exchange.replies(lane, b"x" * 10_000, 0.0)


def test_replconf_ack_has_no_reply_to_wait_for() -> None:
    _, peer, session, lane, link = borrower(b"REPLCONF", b"ACK", b"0")
    assert session.state is SessionState.PINNED
    assert peer.pinned == (lane, canonical([b"REPLCONF", b"ACK", b"0"]))
    assert not link.batches


class Answering(RecordingLink):
    """An upstream that answers each request with its number, when it is told to."""

    def __init__(self, exchange: Exchange, lane: Lane) -> None:
        super().__init__(exchange, lane)
        self.lane = lane
        self.most = 0  # requests of one batch
        self.answered = 0

    def answers(self) -> None:
        """What it has been sent."""
        count = sum(len(unpack(batch)) for batch in self.batches)
        self.batches.clear()
        self.most = max(self.most, count)
        replies = b"".join(b":%d\r\n" % (self.answered + number) for number in range(count))
        self.answered += count
        self._exchange.replies(self.lane, replies, 0.0)
        self._exchange.flush(0.0)


LITTLE = Limits(client=10, lane=25, hold_below=0)


BORROWS = canonical([b"FLUSHALL"])
BLOCKS_AND_MOVES = canonical([b"BLPOP", b"k", b"1"]) + canonical([b"SELECT", b"0"])


@pytest.mark.parametrize(
    ("first", "how"),
    [
        (BLOCKS_AND_MOVES, "goes on"), (BORROWS, "goes on"), (BORROWS, "ends"), (BORROWS, "drains"),
        (BORROWS, "drains later"),
    ],
)  # fmt: skip
def test_what_was_held_keeps_to_the_limits(first: bytes, how: str) -> None:
    """A client may have sent 1 MB behind what it waits for: 200,000 requests, and all others would wait for those."""
    opened: list[Lane] = []
    exchange = Exchange(BASE, opened.append, LITTLE)
    links = [Answering(exchange, exchange.lane(BASE))]
    exchange.connected(links[0].lane, links[0], 0.0)
    peers = [RecordingPeer() for _ in range(5)]
    for peer in peers:
        session = exchange.connect(peer)
        exchange.receive(session, first + b"GET\n" * 200)
        if how == "ends":
            exchange.end_of_input(session)
    if how == "drains":
        exchange.drain()
    links += [Answering(exchange, lane) for lane in opened[1:]]
    for link in links[1:]:
        exchange.connected(link.lane, link, 0.0)
    exchange.flush(0.0)
    if how == "drains later":
        exchange.drain()
    for _ in range(200):
        for link in links:
            if link.lane.link is not None:
                link.answers()
    assert [peer.written.count(b"\r\n") for peer in peers] == [200 + len(unpack(first))] * 5
    assert max(link.most for link in links) <= LITTLE.lane + LITTLE.client
    assert [peer.closed for peer in peers] == [how != "goes on"] * 5


def test_what_was_held_for_a_subscriber_keeps_to_the_limits() -> None:
    opened: list[Lane] = []
    exchange = Exchange(BASE, opened.append, LITTLE)
    peer = RecordingPeer()
    session = exchange.connect(peer)
    exchange.receive(session, canonical([b"SUBSCRIBE", b"a"]) + b"PING\n" * 200)
    link = Answering(exchange, opened[-1])
    exchange.connected(opened[-1], link, 0.0)
    exchange.flush(0.0)
    exchange.replies(link.lane, bulk(b"secret") + SUBSCRIBED, 0.0)
    for _ in range(100):
        exchange.flush(0.0)
        link.answers()
    assert peer.written == SUBSCRIBED + b"".join(b":%d\r\n" % number for number in range(link.answered))
    assert link.answered >= 200
    assert link.most <= 3 * LITTLE.client


SKIP = [b"CLIENT", b"REPLY", b"SKIP"]


@pytest.mark.parametrize(
    ("request_", "closed"),
    [(SKIP, True), ([b"client", b"reply", b"OFF"], True), ([b"REPLCONF", b"ACK", b"0"], True), ([b"MONITOR"], False)],
)
def test_a_refused_request_that_has_no_reply_is_not_given_one(request_: list[bytes], closed: bool) -> None:
    """An error would stand where the next reply is expected, and each reply after it where the one behind it is."""
    exchange = Exchange(BASE, lambda _: None, Limits(leases=0))
    lane = exchange.lane(BASE)
    link = RecordingLink(exchange, lane)
    exchange.connected(lane, link, 0.0)
    peer = RecordingPeer()
    session = exchange.connect(peer)
    exchange.receive(session, canonical(request_) + canonical([b"GET", b"a"]))
    exchange.expire(now=5.1, patience=5.0)
    exchange.flush(5.1)
    assert peer.written == no_lease(0)
    assert peer.closed == closed
    assert link.batches == ([] if closed else [canonical([b"GET", b"a"])])


def test_who_waits_for_a_lease_and_has_said_enough_is_not_read_whatever_becomes_of_the_lane() -> None:
    """It had been full in the meantime, and so it is again and again."""
    exchange, _, _, lease, _ = borrower(b"BLPOP", b"k", b"0")
    exchange.leases.limit = 1
    lane = exchange.lane(BASE)
    exchange.connected(lane, RecordingLink(exchange, lane), 0.0)
    neighbour = exchange.connect(RecordingPeer())
    peer = RecordingPeer()
    session = exchange.connect(peer)
    exchange.receive(session, canonical([b"BLPOP", b"k", b"0"]))
    exchange.receive(session, canonical([b"ECHO", b"x" * HELD_LIMIT]))
    assert not peer.reading
    lane.limit = 4
    exchange.receive(neighbour, PING * 4)
    exchange.flush(0.0)
    assert lane.full
    exchange.replies(lane, b"+PONG\r\n" * 4, 0.0)
    assert not lane.full
    assert not peer.reading
    exchange.replies(lease, b"*-1\r\n", 0.0)
    (lease,) = exchange.leases.of
    exchange.connected(lease, RecordingLink(exchange, lease), 0.0)
    assert peer.reading


def test_those_who_left_while_they_waited_for_a_lease_leave_nothing_behind() -> None:
    """One who waits on, however long he may, stands before them all."""
    exchange, _, _, lane, _ = borrower(b"BLPOP", b"k", b"0")
    exchange.leases.limit = 1
    block = canonical([b"BLPOP", b"k", b"0"])
    waiting = RecordingPeer()
    exchange.receive(exchange.connect(waiting), block)
    left = []
    for _ in range(1000):
        peer = RecordingPeer()
        left.append(weakref.ref(peer))
        session = exchange.connect(peer)
        exchange.receive(session, block)
        exchange.depart(session)
    del peer, session
    assert sum(peer() is not None for peer in left) < 100
    exchange.replies(lane, b"*-1\r\n", 0.0)
    exchange.flush(0.0)
    exchange.replies(lane, b"*-1\r\n", 0.0)
    assert waiting.written == b"*-1\r\n"


def test_a_fault_while_a_batch_is_put_together_loses_nobody() -> None:
    """Whoever is in it is told, as when the connection is lost."""
    exchange = Exchange(BASE, lambda _: None)
    lane = exchange.lane(BASE)
    link = RecordingLink(exchange, lane)
    link.fail = lambda _: exchange.lose(lane)  # type: ignore[method-assign]
    exchange.connected(lane, link, 0.0)
    peers = [RecordingPeer(), RecordingPeer()]
    for peer in peers:
        exchange.receive(exchange.connect(peer), PING)
    lane.unsent[1] = None  # type: ignore[call-overload]  # a fault, as when memory is short
    exchange.flush(0.0)
    assert all(peer.closed for peer in peers)
    assert lane.owed == 0


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


def test_so_are_more_arguments_than_an_array_may_have_there() -> None:
    """A line holds as many, and is packed as an array."""
    exchange = Exchange(BASE, lambda _: None, Limits(hold_below=0))
    lane = exchange.lane(BASE)
    peer, neighbour = RecordingPeer(), RecordingPeer()
    exchange.receive(exchange.connect(neighbour), PING * 2)
    session = exchange.connect(peer)
    line = b"DEL" + b" k" * (ARGUMENTS_OF_A_LANE + 1) + b"\r\n"
    exchange.receive(session, line[:60000])
    exchange.receive(session, line[60000:])
    lane.authenticated = False
    link = RecordingLink(exchange, lane)
    exchange.connected(lane, link, 0.0)
    exchange.flush(0.0)
    assert link.batches == [PING * 2 + canonical([b"DEL"] + [b"k"] * (ARGUMENTS_OF_A_LANE + 1))]
    exchange.replies(lane, b"-NOAUTH\r\n" * 3, 0.0)
    assert (peer.written, neighbour.written) == (b"-NOAUTH\r\n", b"-NOAUTH\r\n" * 2)


def test_a_half_closed_client_keeps_the_core_until_its_replies_have_been_handed_out() -> None:
    """What blocks is dispatched when one of them makes room: pinned at that moment, the rest would be lost."""
    opened: list[Lane] = []
    exchange = Exchange(BASE, opened.append, Limits(client=4, hold_below=0))
    peer = RecordingPeer()
    session = exchange.connect(peer)
    asked = [request for turn in range(6) for request in ([b"WATCH", b"k"], [b"ECHO", b"%d" % turn])]
    exchange.receive(session, b"".join(map(canonical, [*asked, [b"BLPOP", b"k", b"0"], [b"ECHO", b"end"]])))
    exchange.end_of_input(session)
    lane = opened[-1]
    link = RecordingLink(exchange, lane)
    exchange.connected(lane, link, 0.0)
    answered = 0
    while peer.pinned is None:
        exchange.flush(0.0)
        sent = read_requests(b"".join(link.batches)).requests[answered:]
        replies = [b"+OK\r\n" if name == b"WATCH" else bulk(word) for name, word, *_ in sent if name != b"BLPOP"]
        assert replies
        answered += len(replies)
        exchange.replies(lane, b"".join(replies), 0.0)
    assert peer.written == b"".join(b"+OK\r\n" + bulk(b"%d" % turn) for turn in range(6))


# --- what is large has a lane of its own ---

VALUE = b"x" * LARGE
SET = canonical([b"SET", b"large", VALUE])
GET = canonical([b"GET", b"large"])
PING = canonical([b"PING"])


def say(exchange: Exchange, session: Session, data: bytes) -> None:
    """In chunks, as the shell reads it."""
    for at in range(0, len(data), 16384):
        exchange.receive(session, data[at : at + 16384])
        exchange.flush(0.0)


class Pair:
    """An exchange of one identity with both its lanes connected; `links` are theirs."""

    def __init__(self) -> None:
        self.exchange = Exchange(BASE, lambda _: None, Limits(hold_below=0))
        self.lanes = [self.exchange.lane(BASE), self.exchange.large_lane(BASE)]
        self.links = [RecordingLink(self.exchange, lane) for lane in self.lanes]
        for lane, link in zip(self.lanes, self.links, strict=True):
            self.exchange.connected(lane, link, 0.0)

    def says(self, session: Session, data: bytes) -> None:
        say(self.exchange, session, data)

    def replies(self, large: bool, data: bytes) -> None:
        """As it comes: in chunks."""
        for at in range(0, len(data), 65536):
            self.exchange.replies(self.lanes[large], data[at : at + 65536], 0.0)
        self.exchange.flush(0.0)


def test_a_large_request_is_sent_where_it_holds_up_nothing_small() -> None:
    pair = Pair()
    session = pair.exchange.connect(RecordingPeer())
    pair.says(session, SET)
    assert [link.batches for link in pair.links] == [[], [SET]]


def test_a_large_request_waits_until_nothing_is_owed_on_the_other_lane() -> None:
    """I6: its replies could overtake those of before."""
    pair = Pair()
    peer = RecordingPeer()
    session = pair.exchange.connect(peer)
    pair.says(session, PING + SET + PING)
    assert [link.batches for link in pair.links] == [[PING], []]
    pair.replies(False, b"+PONG\r\n")
    assert [link.batches for link in pair.links] == [[PING], [SET]]
    pair.replies(True, b"+OK\r\n")
    assert pair.links[True].batches == [SET, PING]
    pair.replies(True, b"+PONG\r\n")
    assert peer.written == b"+PONG\r\n+OK\r\n+PONG\r\n"


def test_who_was_given_a_large_reply_rides_there_until_it_is_given_small_ones() -> None:
    pair = Pair()
    peer = RecordingPeer()
    session = pair.exchange.connect(peer)
    pair.says(session, GET)
    pair.replies(False, bulk(VALUE))
    pair.says(session, GET)
    pair.replies(True, bulk(VALUE))
    assert peer.written == bulk(VALUE) * 2
    turns = 0
    while session.lane.large:
        pair.says(session, PING)
        pair.replies(True, b"+PONG\r\n")
        turns += 1
    assert 1 < turns < 100
    assert session.flowing
    pair.says(session, PING)
    assert pair.links[False].batches == [GET, PING]


def test_a_reply_in_many_pieces_is_one_reply() -> None:
    pair = Pair()
    session = pair.exchange.connect(RecordingPeer())
    pair.says(session, SET)
    pair.replies(True, b"+OK\r\n")
    pair.says(session, GET)
    reply = bulk(b"x" * (LARGE // 2))
    for at in range(0, len(reply), 1460):  # as it comes over a network
        pair.exchange.replies(pair.lanes[True], reply[at : at + 1460], 0.0)
    assert session.lane.large


def test_a_reply_of_many_elements_is_a_crowd_until_a_large_one_comes() -> None:
    """The shell reads less at once of it."""
    pair = Pair()
    lane = pair.lanes[False]
    peer = RecordingPeer()
    session = pair.exchange.connect(peer)
    pair.says(session, canonical([b"LRANGE", b"k", b"0", b"-1"]))
    elements = bulk(b"x") * 5000
    assert not lane.crowded
    pair.replies(False, b"*5002\r\n" + elements)
    assert lane.crowded
    pair.replies(False, bulk(VALUE)[:100])
    assert not lane.crowded
    pair.replies(False, bulk(VALUE)[100:])
    assert lane.crowded
    pair.replies(False, bulk(b"y"))
    assert not lane.crowded
    assert peer.written == b"*5002\r\n" + elements + bulk(VALUE) + bulk(b"y")


def test_who_pipelines_changes_once_nothing_is_owed() -> None:
    pair = Pair()
    session = pair.exchange.connect(RecordingPeer())
    pair.says(session, GET * 2)
    pair.replies(False, bulk(VALUE))
    assert not session.lane.large
    pair.replies(False, bulk(b"small"))
    assert session.lane.large


class Faulty(RecordingLink):
    """Its first batch is a fault of ours."""

    def send(self, batch: bytes) -> None:
        raise RuntimeError(len(batch))

    def fail(self, fault: Exception) -> None:
        assert isinstance(fault, RuntimeError)
        self.hang_up()


def test_what_had_not_left_when_a_batch_was_a_fault_leaves_by_the_next_connection() -> None:
    pair = Pair()
    lane = pair.lanes[True]
    lane.send = Faulty(pair.exchange, lane).send
    lane.link = Faulty(pair.exchange, lane)
    peers = [RecordingPeer() for _ in range(3)]
    sessions = [pair.exchange.connect(peer) for peer in peers]
    for session in sessions:
        for at in range(0, len(SET), 16384):
            pair.exchange.receive(session, SET[at : at + 16384])
    pair.exchange.flush(0.0)
    assert [peer.closed for peer in peers] == [True, False, False]
    link = RecordingLink(pair.exchange, lane)
    pair.exchange.connected(lane, link, 0.0)
    pair.exchange.flush(0.0)
    assert link.batches == [SET]


def test_who_was_stopped_on_the_lane_for_what_is_large_goes_on_without_it() -> None:
    """With what it had sent already, which nobody would look at again."""
    pair = Pair()
    lane = pair.lanes[True]
    pair.exchange.lose(lane)
    peer = RecordingPeer()
    session = pair.exchange.connect(peer)
    many = canonical([b"SET", b"large", b"x" * (UNSENT_LIMIT // 2)])
    pair.says(session, many)
    pair.says(session, many)
    pair.says(session, many + PING)
    assert session.throttled
    pair.exchange.fail(lane, "refused")
    pair.exchange.flush(0.0)
    sent = b"".join(pair.links[False].batches)
    assert sent == many * 3 + PING


def test_one_large_request_is_in_flight_at_a_time() -> None:
    """An upstream would run all that it has been sent in one go."""
    pair = Pair()
    sessions = [pair.exchange.connect(RecordingPeer()) for _ in range(3)]
    for session in sessions:
        pair.says(session, SET)
    for sent in (1, 2, 3):
        assert pair.links[True].batches == [SET] * sent
        pair.replies(True, b"+OK\r\n")


class Weighed(bytes):
    """A request that counts how often its length is asked for."""

    asked = 0

    def __len__(self) -> int:
        Weighed.asked += 1
        return super().__len__()


@pytest.mark.parametrize("busy", [False, True])
def test_what_waits_is_weighed_once(busy: bool) -> None:
    """Not in every flush: that is everybody's, and thousands of requests may wait for what is large."""
    pair = Pair()
    lane = pair.lanes[True]
    if busy:
        lane.send = None
    peer = RecordingPeer()
    session = pair.exchange.connect(peer)
    Weighed.asked = 0
    for _ in range(100):
        pair.exchange.enqueue(lane, Weighed(PING), session)
    for _ in range(100):
        pair.exchange.flush(0.0)
        if not busy:
            pair.exchange.replies(lane, b"+PONG\r\n", 0.0)
    assert 100 <= Weighed.asked <= 300
    assert pair.links[True].batches == ([] if busy else [PING] * 100)
    assert session.owed == (100 if busy else 0)


def test_what_is_large_waits_for_a_connection_for_it() -> None:
    """An upstream with a low `client-query-buffer-limit` closes what it is sent on: that would close the neighbours."""
    opened: list[Lane] = []
    exchange = Exchange(BASE, opened.append)
    lane = exchange.lane(BASE)
    link = RecordingLink(exchange, lane)
    exchange.connected(lane, link, 0.0)
    peer = RecordingPeer()
    session = exchange.connect(peer)
    say(exchange, session, PING + SET + PING)
    assert link.batches == [PING]
    exchange.replies(lane, b"+PONG\r\n", 0.0)
    exchange.flush(0.0)
    assert link.batches == [PING]
    large_link = RecordingLink(exchange, opened[1])
    exchange.connected(opened[1], large_link, 0.0)
    for reply in (b"+OK\r\n", b"+PONG\r\n"):
        exchange.flush(0.0)
        exchange.replies(opened[1], reply, 0.0)
    assert large_link.batches == [SET, PING]
    assert peer.written == b"+PONG\r\n+OK\r\n+PONG\r\n"


def test_a_session_counts_on_one_lane_whatever_it_is_lent() -> None:
    pair = Pair()
    opened: list[Lane] = []
    pair.exchange._open_lane = opened.append
    session = pair.exchange.connect(RecordingPeer())
    pair.says(session, SET)
    pair.replies(True, b"+OK\r\n")
    pair.says(session, canonical([b"WATCH", b"k"]))
    pair.exchange.connected(opened[0], RecordingLink(pair.exchange, opened[0]), 0.0)
    pair.exchange.flush(0.0)
    pair.exchange.replies(opened[0], b"+OK\r\n", 0.0)
    pair.says(session, canonical([b"UNWATCH"]))
    pair.exchange.replies(opened[0], b"+OK\r\n", 0.0)
    assert [lane.sessions for lane in pair.lanes] == [{session}, set()]
    pair.exchange.depart(session)
    assert [lane.sessions for lane in pair.lanes] == [set(), set()]


def test_a_new_connection_of_the_usual_lane_is_followed_by_one_for_what_is_large() -> None:
    """It may lead to another upstream: what was sent there must not be looked for on the old one."""
    pair = Pair()
    session = pair.exchange.connect(RecordingPeer())
    pair.says(session, SET)
    pair.exchange.lose(pair.lanes[False])
    pair.exchange.connected(pair.lanes[False], RecordingLink(pair.exchange, pair.lanes[False]), 0.0)
    assert pair.lanes[True].outdated
    pair.replies(True, b"+OK\r\n")
    pair.says(session, GET)
    assert pair.links[True].batches == [SET]
    assert session.lane is pair.lanes[False]


def test_a_lease_that_is_being_dialled_when_the_upstream_is_another() -> None:
    opened: list[Lane] = []
    exchange = Exchange(BASE, opened.append)
    exchange.connected(opened[0], RecordingLink(exchange, opened[0]), 0.0)
    session = exchange.connect(RecordingPeer())
    exchange.receive(session, canonical([b"WATCH", b"k"]))
    exchange.replaced(opened[0])
    link = RecordingLink(exchange, opened[1])
    exchange.connected(opened[1], link, 0.0)
    exchange.flush(0.0)
    assert not link.batches
    link = RecordingLink(exchange, opened[2])
    exchange.connected(opened[2], link, 0.0)
    exchange.flush(0.0)
    assert link.batches == [canonical([b"WATCH", b"k"])]


def test_a_lease_in_the_first_database_when_the_upstream_of_another_one_is_another() -> None:
    """Nobody may ride there, and so nobody else would tell that an upstream was meant that is no more."""
    opened: list[Lane] = []
    exchange = Exchange(BASE._replace(database=1), opened.append)
    home = opened[0]
    exchange.connected(home, RecordingLink(exchange, home), 0.0)
    peer = RecordingPeer()
    session = exchange.connect(peer)
    unpause = canonical([b"CLIENT", b"UNPAUSE"])
    for number in (1, 2):
        exchange.receive(session, unpause)
        assert len(opened) == 1 + number
        assert opened[number].identity == BASE
        link = RecordingLink(exchange, opened[number])
        exchange.connected(opened[number], link, 0.0)
        exchange.flush(0.0)
        assert link.batches == [unpause]
        exchange.replies(opened[number], b"+OK\r\n", 0.0)
        assert peer.written == b"+OK\r\n" * number
        exchange.lose(home)
        exchange.connected(home, RecordingLink(exchange, home), 0.0)


# --- the door ---


def test_strangers_do_not_take_the_lanes_of_those_who_may_come_in() -> None:
    """Each guess has a lane until it is refused; only one that has been connected counts."""
    opened: list[Lane] = []
    exchange = Exchange(BASE, opened.append, Limits(lanes=2), judge=lambda password: password == b"sesame")
    exchange.connected(opened[0], RecordingLink(exchange, opened[0]), 0.0)

    def asks(*arguments: bytes) -> tuple[RecordingPeer, Session]:
        peer = RecordingPeer()
        session = exchange.connect(peer)
        exchange.receive(session, canonical(list(arguments)))
        exchange.flush(0.0)
        return peer, session

    strangers = [asks(b"AUTH", b"u%d" % number, b"wrong")[0] for number in range(5)]
    ada, eve = asks(b"AUTH", b"ada", b"pw"), asks(b"AUTH", b"eve", b"pw")
    assert [peer.written for peer in (*strangers, ada[0], eve[0])] == [b""] * 7
    for lane, reply in ((opened[6], b"+OK\r\n"), (opened[7], b"")):
        exchange.connected(lane, RecordingLink(exchange, lane), 0.0)
        exchange.flush(0.0)
        if reply:
            exchange.replies(lane, reply, 0.0)
    assert ada[0].written == b"+OK\r\n"
    assert eve[0].written == no_lane(2)
    assert asks(b"AUTH", b"bob", b"pw")[0].written == no_lane(2)
    friend, session = asks(b"HELLO", b"3", b"AUTH", b"default", b"sesame")
    exchange.connected(opened[-1], RecordingLink(exchange, opened[-1]), 0.0)
    exchange.flush(0.0)
    exchange.replies(opened[-1], b"%0\r\n", 0.0)
    assert friend.written == b"%0\r\n"
    assert not session.locked


def test_what_a_batch_tells_of_itself() -> None:
    """How long its first request waited, how many it had, and when its first reply came, replies to others aside."""
    times = iter((10.0, 20.0))
    opened: list[Lane] = []
    exchange = Exchange(BASE, opened.append, clock=lambda: next(times))
    lane = opened[0]
    exchange.connected(lane, RecordingLink(exchange, lane), 1.0)
    session = exchange.connect(RecordingPeer())
    ledger = exchange.ledgers[Kind.SHARED]
    exchange.receive(session, GET * 3)
    exchange.receive(session, GET)
    exchange.flush(10.25)
    exchange.replies(lane, b"+a\r\n", 10.75)
    exchange.receive(session, GET)
    exchange.flush(20.0)  # timed, behind three replies
    exchange.replies(lane, b"+b\r\n+c\r\n", 21.0)
    assert ledger.round_trips.total == 500_000
    exchange.replies(lane, b"+d\r\n", 22.0)
    exchange.replies(lane, b"+e\r\n", 23.0)
    assert (sum(ledger.sizes.counts), ledger.sizes.total) == (2, 3 + 0)
    assert ledger.waits.total == 250_000
    assert (sum(ledger.round_trips.counts), ledger.round_trips.total) == (2, 500_000 + 3_000_000)


def test_who_had_left_who_is_closed_and_who_is_told() -> None:
    """Each request, sent or not, is in the books as what became of it."""
    exchange, lane, sessions = three_sessions()
    exchange.keep_alive(0.0, 0.0)
    exchange.receive(sessions[0], GET * 2)
    exchange.receive(sessions[1], GET)
    exchange.flush(0.0)
    exchange.receive(sessions[0], GET * 3)  # unsent, as is what follows
    exchange.receive(sessions[2], GET)
    exchange.depart(sessions[0])
    exchange.lose(lane)
    assert exchange.outcomes()[Kind.SHARED] == Outcomes(delivered=0, swallowed=2, failed=1, refused=0)
    exchange.fail(lane, "away")
    assert exchange.outcomes()[Kind.SHARED] == Outcomes(delivered=0, swallowed=5, failed=1, refused=1)


def test_a_reply_to_one_who_has_left_is_not_delivered() -> None:
    exchange, lane, sessions = three_sessions()
    for session in sessions:
        exchange.receive(session, GET * 2)
    exchange.flush(0.0)
    exchange.replies(lane, b"+a\r\n", 0.0)
    exchange.depart(sessions[0])
    exchange.replies(lane, b"+b\r\n+c\r\n", 0.0)
    exchange.depart(sessions[2])
    exchange.replies(lane, b"+d\r\n+e\r\n$20000\r\n" + b"x" * 17_000, 0.0)
    exchange.replies(lane, b"x" * 3000 + b"\r\n", 0.0)
    assert exchange.outcomes()[Kind.SHARED] == Outcomes(delivered=3, swallowed=3, failed=0, refused=0)


def test_replies_that_were_taken_and_not_written_are_not_delivered() -> None:
    """Those beside what breaks the protocol: they were aligned as far as can be seen, and that is not far enough."""
    exchange, lane, sessions = three_sessions()
    exchange.receive(sessions[0], GET * 3)
    exchange.receive(sessions[1], GET)
    exchange.flush(0.0)
    with pytest.raises(Desync):
        exchange.replies(lane, b"+a\r\n:2\r\n?\r\n", 0.0)
    exchange.lose(lane)
    assert exchange.outcomes()[Kind.SHARED] == Outcomes(delivered=0, swallowed=0, failed=4, refused=0)


def test_the_requests_of_a_lease_that_is_lost() -> None:
    """In flight or unsent: their client is closed. Of one who blocks, and leaves, they are swallowed."""
    exchange, _, session, lane, _ = borrower(b"WATCH", b"k")
    exchange.replies(lane, b"+OK\r\n", 0.0)
    exchange.receive(session, GET)
    exchange.flush(0.0)
    exchange.receive(session, GET)
    exchange.lose(lane)
    assert exchange.outcomes()[Kind.LEASED] == Outcomes(delivered=1, swallowed=0, failed=2, refused=0)
    exchange, _, session, lane, _ = borrower(b"BLPOP", b"k", b"0")
    exchange.depart(session)
    assert exchange.outcomes()[Kind.LEASED] == Outcomes(delivered=0, swallowed=1, failed=0, refused=0)


def three_sessions() -> tuple[Exchange, Lane, list[Session]]:
    opened: list[Lane] = []
    exchange = Exchange(BASE, opened.append)
    lane = opened[0]
    exchange.connected(lane, RecordingLink(exchange, lane), 0.0)
    return exchange, lane, [exchange.connect(RecordingPeer()) for _ in range(3)]
