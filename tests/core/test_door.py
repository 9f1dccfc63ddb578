"""Clients that have to authenticate to coalesce: whatever they send before, and however it is cut, stays here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from coalesce.core.commands import row_of
from coalesce.core.door import knock
from coalesce.core.errors import NO_AUTH, OK, WRONG_PASSWORD
from coalesce.core.exchange import Exchange
from coalesce.core.identity import Identity, Move
from coalesce.core.session import SessionState

from .fakes import RecordingLink, RecordingPeer
from .twins import canonical

if TYPE_CHECKING:
    from coalesce.core.lane import Lane

BASE = Identity(None, None, 3, 2)
RIGHT = b"sesame"
NAMES = [b"GET", b"get", b"MULTI", b"EXEC", b"BLPOP", b"SUBSCRIBE", b"MONITOR", b"SELECT", b"RESET", b"HELLO", b"AUTH",
         b"CLIENT", b"WAIT", b"XREAD", b"EVAL", b"NONE", b"ASKING", b"SHUTDOWN"]  # fmt: skip
WORDS = [b"default", b"wrong", b"AUTH", b"SETNAME", b"2", b"3", b"x", b"", b"a b", b"SETNAME", b"y" * 17000]
# (Another user than `default` is for the upstream to judge.)
STRANGERS = (
    st.lists(st.sampled_from(WORDS), max_size=12)
    .flatmap(lambda words: st.sampled_from(NAMES).map(lambda name: [name, *words]))
    .filter(lambda request: not isinstance(knock_of(request), Move))
)


class Piece(bytes):
    """What a client sends, and not all of it in a report: hypothesis takes a long one for a mistake."""

    def __repr__(self) -> str:
        return f"{bytes(self[:200])!r} ({len(self)} bytes)"


PIECES = st.one_of(
    STRANGERS.map(canonical),
    STRANGERS.filter(lambda request: b"" not in request and b"a b" not in request).map(
        lambda request: b" ".join(request) + b"\r\n"
    ),
).map(Piece)


def judge(password: bytes) -> bool:
    return password == RIGHT


def knock_of(request: list[bytes]) -> Move | bytes | None:
    return knock(BASE, True, request, judge) if request[0] in {b"AUTH", b"HELLO"} else None


class House:
    """An exchange with a door, its base lane connected, and a client at it."""

    def __init__(self) -> None:
        self.opened: list[Lane] = []
        self.exchange = Exchange(BASE, self.opened.append, judge=judge)
        lane = self.opened[0]
        self.link = RecordingLink(self.exchange, lane)
        self.exchange.connected(lane, self.link, 0.0)
        self.peer = RecordingPeer()
        self.session = self.exchange.connect(self.peer)

    def receive(self, data: bytes) -> None:
        self.exchange.receive(self.session, data)
        self.exchange.flush(0.0)

    @property
    def untouched(self) -> bool:
        return len(self.opened) == 1 and not self.link.batches and not self.exchange.leases.of


@given(st.lists(PIECES, max_size=20), st.lists(st.integers(1, 40), max_size=200))
def test_nothing_of_a_locked_session_gets_anywhere(pieces, cuts):
    house = House()
    data = b"".join(pieces)
    for cut in [*cuts, len(data)]:
        if house.session.state is SessionState.GONE:
            break
        chunk, data = data[:cut], data[cut:]
        if chunk:
            house.receive(chunk)
            assert house.session.state is SessionState.GONE or (house.session.locked and not house.session.flowing)
    assert house.untouched
    assert OK not in house.peer.written


@given(st.lists(PIECES, max_size=5), st.integers(1, 100))
def test_what_comes_after_the_right_password_goes_upstream_and_nothing_else(pieces, size):
    house = House()
    data = b"".join(pieces) + canonical([b"AUTH", RIGHT]) + canonical([b"GET", b"mine"])
    for start in range(0, len(data), size):
        if house.session.state is not SessionState.GONE:
            house.receive(data[start : start + size])
    if house.session.state is SessionState.FLOWING and not house.session.locked:
        assert b"".join(house.link.batches) == canonical([b"GET", b"mine"])
        assert house.peer.written.endswith(OK)
    else:
        assert house.untouched


def test_every_name_is_refused():
    for name in NAMES:
        if name in {b"HELLO", b"AUTH", b"RESET"}:
            continue
        house = House()
        house.receive(canonical([name, b"x", b"y"]))
        assert house.peer.written == NO_AUTH, (name, row_of(name))
        assert house.untouched


def test_a_session_that_is_in_takes_the_quick_way_and_a_reset_one_does_not():
    house = House()
    house.receive(canonical([b"AUTH", b"default", RIGHT]))
    assert house.session.flowing
    house.receive(canonical([b"GET", b"k"]) + canonical([b"RESET"]) + canonical([b"GET", b"l"]))
    assert house.link.batches == [canonical([b"GET", b"k"])]
    house.exchange.replies(house.opened[0], b"$-1\r\n", 0.0)
    assert house.peer.written == OK + b"$-1\r\n+RESET\r\n" + NO_AUTH
    assert house.session.locked
    assert not house.session.flowing


def test_a_client_that_is_gone_when_it_is_told():
    house = House()
    house.peer.breaks_with = lambda: house.exchange.depart(house.session)
    house.receive(canonical([b"PING"]) + canonical([b"AUTH", RIGHT]) + canonical([b"PING"]))
    assert house.session.state is SessionState.GONE
    assert house.untouched


def test_coalesces_passwords_do_not_travel():
    for request in ([b"AUTH", RIGHT], [b"AUTH", b"default", RIGHT], [b"HELLO", b"3", b"AUTH", b"default", RIGHT],
                    [b"HELLO", b"3", b"AUTH", b"ada", b"x", b"AUTH", b"default", RIGHT]):  # fmt: skip
        for identity in (BASE, Identity(b"ada", b"secret", 3, 3)):
            for locked in (True, False):
                move = knock(identity, locked, request, judge)
                assert isinstance(move, Move)
                assert move.identity == (None, None, 3, 3 if request[0] == b"HELLO" else identity.protocol)
                assert RIGHT not in move.request
    assert knock(BASE, False, [b"AUTH", b"default", b"wrong"], judge) == WRONG_PASSWORD
