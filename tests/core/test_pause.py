"""Cases of a pause: who leaves in one leaves nothing behind."""

from __future__ import annotations

import pytest

from coalesce.core.exchange import Exchange
from coalesce.core.identity import Identity
from coalesce.core.lane import Lane, LaneState, Limits
from coalesce.core.ledger import Kind

from .fakes import RecordingLink, RecordingPeer
from .twins import canonical

BASE = Identity(None, None, 0, 2)
SELECT = canonical([b"SELECT", b"1"])
HELLO = canonical([b"HELLO", b"3", b"AUTH", b"default", b"sesame"])


class Paused:
    """An exchange in a pause, whose base lane is connected."""

    def __init__(self, *, locked: bool = False, limits: Limits = Limits()) -> None:  # noqa: B008 (immutable)
        self.opened: list[Lane] = []
        judge = (lambda password: password == b"sesame") if locked else None
        self.exchange = Exchange(BASE, self.opened.append, limits, judge=judge)
        self.connects(self.opened[0])
        self.exchange.pause()

    def connects(self, lane: Lane) -> RecordingLink:
        lane.outdated = False
        link = RecordingLink(self.exchange, lane)
        self.exchange.connected(lane, link, 0.0)
        self.exchange.flush(0.0)
        return link

    def comes_and_leaves(self, request: bytes) -> None:
        session = self.exchange.connect(RecordingPeer())
        self.exchange.receive(session, request)
        self.exchange.flush(0.0)
        self.exchange.depart(session)

    def stays(self, request: bytes) -> RecordingPeer:
        peer = RecordingPeer()
        self.exchange.receive(self.exchange.connect(peer), request)
        self.exchange.flush(0.0)
        return peer


@pytest.mark.parametrize(("locked", "request_"), [(False, SELECT), (True, HELLO)])
def test_who_would_have_moved_and_has_left_is_asked_for_no_more(locked: bool, request_: bytes) -> None:
    """Those who come again and again, as they lose patience, would add to it for as long as the pause lasts."""
    paused = Paused(locked=locked)
    patient = paused.stays(request_)
    for _ in range(1000):
        paused.comes_and_leaves(request_)
    paused.exchange.forget_moves()
    lane = paused.opened[1]
    assert lane.owed == 1
    assert paused.exchange.outcomes()[Kind.SHARED].swallowed == 1000
    other = paused.stays(request_)
    paused.exchange.go_on(0.0)
    link = paused.connects(lane)
    assert b"".join(link.batches).count(b"\r\n1\r\n" if not locked else b"\r\n3\r\n") == 2
    paused.exchange.replies(lane, b"+OK\r\n", 0.0)
    paused.exchange.flush(0.0)
    paused.exchange.replies(lane, b"+OK\r\n", 0.0)
    assert patient.written == other.written == b"+OK\r\n"


def test_no_lane_is_left_of_those_who_guessed_passwords_and_left() -> None:
    paused = Paused(locked=True)
    patient = paused.stays(canonical([b"AUTH", b"ada", b"her own"]))
    for guess in range(1000):
        paused.comes_and_leaves(canonical([b"AUTH", b"ada", b"%d" % guess]))
    paused.exchange.forget_moves()
    assert len(paused.exchange.lanes) == 2
    assert [lane.state for lane in paused.opened[2:]] == [LaneState.CLOSED] * 1000
    paused.exchange.go_on(0.0)
    paused.connects(paused.opened[1])
    paused.exchange.replies(paused.opened[1], b"+OK\r\n", 0.0)
    assert patient.written == b"+OK\r\n"


def test_no_lane_is_left_that_failed_when_the_pause_began() -> None:
    """Who waited for it was told so, and is closed."""
    paused = Paused()
    paused.exchange.go_on(0.0)
    asked = paused.stays(SELECT)
    paused.exchange.fail(paused.opened[1], "nobody there")
    assert asked.closed
    paused.exchange.pause()
    paused.exchange.forget_moves()
    assert list(paused.exchange.lanes.values()) == [paused.opened[0]]


def test_the_lane_that_is_always_there_stays_also_before_it_was_connected() -> None:
    opened: list[Lane] = []
    exchange = Exchange(BASE, opened.append)
    exchange.pause()
    session = exchange.connect(RecordingPeer())
    exchange.receive(session, canonical([b"SELECT", b"0"]))
    exchange.depart(session)
    exchange.forget_moves()
    assert not opened[0].owed
    assert exchange.is_base(opened[0])


def test_what_others_asked_of_the_same_lane_keeps_its_order() -> None:
    paused = Paused()
    paused.exchange.go_on(0.0)
    paused.exchange.replaced(paused.opened[0])
    paused.connects(paused.opened[0])
    rider = paused.stays(SELECT)
    paused.connects(paused.opened[1])
    paused.exchange.replies(paused.opened[1], b"+OK\r\n", 0.0)
    paused.exchange.pause()
    (session,) = paused.opened[1].sessions
    paused.exchange.receive(session, canonical([b"GET", b"a"]) + canonical([b"GET", b"b"]))
    paused.comes_and_leaves(SELECT)
    paused.exchange.receive(session, canonical([b"GET", b"c"]))
    paused.exchange.forget_moves()
    paused.exchange.go_on(0.0)
    paused.exchange.replaced(paused.opened[1])
    link = paused.connects(paused.opened[1])
    assert link.batches == [b"".join(canonical([b"GET", key]) for key in (b"a", b"b", b"c"))]
    paused.exchange.replies(paused.opened[1], b"$1\r\nA\r\n$1\r\nB\r\n$1\r\nC\r\n", 0.0)
    assert rider.written == b"+OK\r\n$1\r\nA\r\n$1\r\nB\r\n$1\r\nC\r\n"


def test_those_whom_the_door_lets_in_keep_to_twice_the_limit_of_a_lane() -> None:
    """As those who need not authenticate: many come, ask and leave while nothing can be sent."""
    paused = Paused(locked=True, limits=Limits(client=10, lane=20, hold_below=0))
    for _ in range(100):
        paused.comes_and_leaves(canonical([b"AUTH", b"sesame"]) + canonical([b"PING"]) * 5)
    assert paused.opened[0].owed == 40
    patient = paused.stays(canonical([b"AUTH", b"sesame"]) + canonical([b"PING"]))
    assert patient.written == b"+OK\r\n"
    assert not patient.reading
    paused.exchange.go_on(0.0)
    paused.exchange.replaced(paused.opened[0])
    paused.connects(paused.opened[0])
    paused.exchange.replies(paused.opened[0], b"+PONG\r\n" * 40, 0.0)
    paused.exchange.flush(0.0)
    paused.exchange.replies(paused.opened[0], b"+PONG\r\n", 0.0)
    assert patient.written == b"+OK\r\n+PONG\r\n"


def test_who_waited_for_a_lane_that_was_full_of_those_who_left_is_read_again() -> None:
    """No reply will come there that could see to it."""
    paused = Paused(limits=Limits(client=10, lane=20, hold_below=0))
    for _ in range(41):
        paused.comes_and_leaves(canonical([b"SELECT", b"0"]))
    patient = RecordingPeer()
    session = paused.exchange.connect(patient)
    assert not patient.reading
    paused.exchange.forget_moves()
    assert patient.reading
    paused.exchange.receive(session, canonical([b"PING"]))
    paused.exchange.go_on(0.0)
    paused.exchange.replaced(paused.opened[0])
    paused.connects(paused.opened[0])
    paused.exchange.replies(paused.opened[0], b"+PONG\r\n", 0.0)
    assert patient.written == b"+PONG\r\n"
