"""A fault while one client is told something ends that client; all others on its lane are told what is theirs."""

from __future__ import annotations

import pytest

from coalesce.core.errors import Desync, bulk, unavailable
from coalesce.core.exchange import Exchange
from coalesce.core.identity import Identity
from coalesce.core.session import SessionState

from .fakes import RecordingLink, RecordingPeer
from .twins import canonical

BASE = Identity(None, None, 0, 2)


class OwnFaultError(Exception):
    """What nobody thought of."""


class FaultyPeer(RecordingPeer):
    """Raises when it is to write, as a client's code might, and ends as a client does."""

    def __init__(self, exchange: Exchange, fault: Exception) -> None:
        super().__init__()
        self._exchange = exchange
        self.fault = fault
        self.session = exchange.connect(self)
        self.failed: list[Exception] = []

    def write(self, data: bytes) -> None:
        del data
        raise self.fault

    write_more = write

    def fail(self, fault: Exception) -> None:
        self.failed.append(fault)
        self._exchange.depart_in_doubt(self.session)


def value(number: int, size: int) -> bytes:
    return bulk(b"%d" % number + b"x" * size)


# Who asks, in order; F and G are faulty.
CALLERS = ["abcFdef", "F", "aaFFbbFFa", "FGaGFb", "abF", "FFFab", "aFGFGb"]


@pytest.mark.parametrize("fault", [OwnFaultError, IndexError, Desync])
@pytest.mark.parametrize("size", [0, 20_000])
@pytest.mark.parametrize("callers", CALLERS)
@pytest.mark.parametrize("pieces", [1, 2, 3, 7])
def test_everybody_else_gets_his_own(fault: type[Exception], size: int, callers: str, pieces: int) -> None:
    """Also of a fault that looks like a desync. Chunks are cut anywhere; large replies are passed on as they come."""
    exchange = Exchange(BASE, lambda _: None)
    lane = exchange.lane(BASE)
    exchange.connected(lane, RecordingLink(exchange, lane), 0.0)
    peers = {name: FaultyPeer(exchange, fault()) if name in "FG" else RecordingPeer() for name in set(callers)}
    sessions = {
        name: peer.session if isinstance(peer, FaultyPeer) else exchange.connect(peer) for name, peer in peers.items()
    }
    gets = dict.fromkeys(callers, b"")
    for number, name in enumerate(callers):
        exchange.receive(sessions[name], canonical([b"GET", b"%d" % number]))
        gets[name] += value(number, size)
    exchange.flush(0.0)
    replies = b"".join(value(number, size) for number in range(len(callers)))
    step = -(-len(replies) // pieces)
    for at in range(0, len(replies), step):
        exchange.replies(lane, replies[at : at + step], 0.0)
    assert not lane.in_flight
    for name, peer in peers.items():
        if isinstance(peer, FaultyPeer):
            assert peer.failed == [peer.fault]
            assert sessions[name].state is SessionState.GONE
        else:
            assert peer.written == gets[name]
            assert sessions[name].owed == 0
    late = RecordingPeer()
    exchange.receive(exchange.connect(late), canonical([b"GET", b"x"]))
    exchange.flush(1.0)
    exchange.replies(lane, value(99, 0), 0.0)
    assert late.written == value(99, 0)


def test_a_surplus_reply_is_a_desync_all_the_same() -> None:
    exchange = Exchange(BASE, lambda _: None)
    lane = exchange.lane(BASE)
    exchange.connected(lane, RecordingLink(exchange, lane), 0.0)
    guilty = FaultyPeer(exchange, IndexError())
    exchange.receive(guilty.session, canonical([b"GET", b"k"]))
    exchange.flush(0.0)
    with pytest.raises(Desync):
        exchange.replies(lane, b"+1\r\n+2\r\n", 0.0)


def test_a_lane_that_can_not_be_connected() -> None:
    """Everybody else is answered."""
    exchange = Exchange(BASE, lambda _: None)
    lane = exchange.lane(BASE)
    before, guilty, behind = RecordingPeer(), FaultyPeer(exchange, OwnFaultError()), RecordingPeer()
    for session in (exchange.connect(before), guilty.session, exchange.connect(behind)):
        exchange.receive(session, canonical([b"GET", b"k"]))
    exchange.fail(lane, "away")
    assert before.written == behind.written == unavailable("away")
    assert guilty.failed == [guilty.fault]


def test_a_fault_of_a_lane_without_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for it is closed, and it is said once; other lanes' batches leave."""
    said = []
    exchange = Exchange(BASE, lambda _: None, say_fault=lambda lane, fault: said.append((lane, fault)))
    faulty, sound = exchange.lane(BASE), exchange.lane(BASE._replace(database=1))
    link = RecordingLink(exchange, sound)
    exchange.connected(sound, link, 0.0)
    exchange.fail(faulty, "away")
    fault = OwnFaultError()

    def raising(*_: object) -> None:
        raise fault

    monkeypatch.setattr(exchange, "_answer_unsent", raising)
    peers = [RecordingPeer(), RecordingPeer()]
    for peer in peers:
        exchange.receive(exchange.connect(peer), canonical([b"GET", b"k"]))
    exchange.enqueue(sound, canonical([b"PING"]), exchange.connect(RecordingPeer()))
    exchange.flush(0.0)
    assert said == [(faulty, fault)]
    assert all(peer.closed for peer in peers)
    assert link.batches == [canonical([b"PING"])]
