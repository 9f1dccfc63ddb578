"""Plays a transcript against the pure core, with bytes cut wherever the player's `cut` says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coalesce.core.errors import UpstreamError
from coalesce.core.exchange import Exchange
from coalesce.core.identity import Identity
from coalesce.core.lane import Lane, LaneState, Limits
from coalesce.trace import show_identity as identity
from tests.transcripts.notation import DOOR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.transcripts.notation import Step, Transcript

Cut = "Callable[[bytes], Iterable[bytes]]"


def judge(password: bytes) -> bool:
    """Of the doors of transcripts."""
    return password == DOOR


class CoreClient:
    """A `Peer` that keeps what it is given."""

    def __init__(self, exchange: Exchange) -> None:
        self.received = b""
        self.closed = False
        self.reading = True
        self.heeds_end = False
        self.unread: list[bytes] = []  # b"" is the end of input
        self.pinned: tuple[Lane, bytes] | None = None
        self._exchange = exchange
        self.session = exchange.connect(self)

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.received += data

    write_more = write

    def read(self, wanted: bool, end: bool) -> None:
        self.reading = wanted
        self.heeds_end = end

    def close(self) -> None:
        self.closed = True

    def fail(self, fault: Exception) -> None:
        raise fault

    def hold(self, size: int) -> None:
        """That is the matter of test_properties.py."""

    def pin(self, lane: Lane, pending: bytes) -> None:
        self.pinned = lane, pending + b"".join(self.unread)
        self.unread.clear()
        self.reading = False

    def feed(self) -> None:
        """Reads on as far as the session wants to."""
        while self.unread and self.reading and not self.closed:
            data = self.unread.pop(0)
            if data:
                self._exchange.receive(self.session, data)
            else:
                self._exchange.end_of_input(self.session)
                if self.pinned is None:
                    self.unread.append(b"")  # it does not go away
        if self.unread[-1:] == [b""] and self.heeds_end:
            self._exchange.end_in_sight(self.session)


class CoreLink:
    """A lane's connection (`Link`): what is sent is kept for the player."""

    def __init__(self, player: CorePlayer, who: str) -> None:
        self._player = player
        self._who = who

    def send(self, batch: bytes) -> None:
        self._player.sent(self._who, batch)

    def hang_up(self) -> None:
        self._player.hung_up(self._who)


class CorePlayer:
    def __init__(self, transcript: Transcript, cut: Callable[[bytes], Iterable[bytes]]) -> None:
        self._transcript = transcript
        self._cut = cut
        self._lanes: list[Lane] = []
        self._sent: dict[str, bytes] = {}
        self._clients: dict[str, CoreClient] = {}
        self._pins: dict[str, CoreClient] = {}
        self._outdated: set[Lane] = set()  # since the end of a pause
        options = transcript.options
        limits = Limits(
            lane=options.get("lane_limit", 10_000),
            client=options.get("client_limit", 1_024),
            lanes=options.get("max_lanes", 128),
            leases=options.get("max_leases", 1_000),
            hold_below=0,
        )
        self._exchange = Exchange(
            Identity(None, None, 0, 2), self._lanes.append, limits, judge=judge if options.get("locked") else None
        )
        self._connect("u0", authenticated=not options.get("unauthenticated"))

    def play(self) -> None:
        for step in self._transcript.steps:
            try:
                self._play(step)
            except AssertionError as problem:
                raise AssertionError(f"{self._transcript.name}: {step.line}: {problem}") from problem
            self._settle()
        left = {who: client.received for who, client in self._clients.items() if client.received}
        left |= {who: data for who, data in self._sent.items() if data}
        assert not left, f"{self._transcript.name}: received and not written down: {left}"

    def _play(self, step: Step) -> None:  # noqa: C901, PLR0912 (a step a case)
        match step.who[0], step.verb:
            case "c", ">>":
                client = self._client(step.who)
                pins = [connection for connection, pinned in self._pins.items() if pinned is client]
                if pins:
                    self._sent[pins[0]] += step.data
                else:
                    client.unread += self._cut(step.data)
            case "c", "<<":
                client = self._clients[step.who]
                client.received = _without(client.received, step.data)
            case "c", "ends":
                self._client(step.who).unread.append(b"")
            case "c", "departs":
                self._exchange.depart(self._clients.pop(step.who).session)
            case "c", "closed":
                assert self._clients[step.who].closed
            case "c", "pinned":
                self._pinned(step)
            case _, ">>" if step.who in self._pins:
                self._pins[step.who].received += step.data
            case "u", "<<":
                self._sent[step.who] = _without(self._sent[step.who], step.data)
            case "u", ">>":
                self._reply(step)
            case "u", "connects":
                lane = self._connect(step.who, authenticated=True)
                assert not step.rest or identity(*lane.identity) == step.rest
            case "u", "refuses":
                self._exchange.refuse(self._lane(step.who), step.data)
            case "u", "closed":
                lane = self._lane(step.who)
                assert lane.state is LaneState.CLOSED or lane.link is None
            case "u", "lost" if step.who in self._pins:
                self._pins.pop(step.who).closed = True
            case "u", "lost":
                self._exchange.lose(self._lane(step.who))
            case "a", "pauses":
                self._exchange.pause()
            case "a", "resumes":
                self._outdated = {lane for lane in self._exchange.shared_lanes if lane.link is not None}
                self._exchange.go_on(0.0)
            case _:
                raise ValueError(step.line)

    def _client(self, who: str) -> CoreClient:
        if who not in self._clients:
            self._clients[who] = CoreClient(self._exchange)
        return self._clients[who]

    def _lane(self, who: str) -> Lane:
        return self._lanes[int(who[1:])]

    def _connect(self, who: str, *, authenticated: bool) -> Lane:
        lane = self._lane(who)
        lane.outdated &= lane.exclusive
        lane.authenticated = authenticated
        lane.primary = bool(self._transcript.options.get("primary"))
        self._sent[who] = b""
        self._exchange.connected(lane, CoreLink(self, who), round_trip=0.0)
        return lane

    def sent(self, who: str, data: bytes) -> None:
        self._sent[who] += data

    def hung_up(self, who: str) -> None:
        self._exchange.lose(self._lane(who))

    def _pinned(self, step: Step) -> None:
        client = self._clients[step.who]
        assert client.pinned is not None
        lane, pending = client.pinned
        connection = f"u{lane.number}"
        assert connection == step.rest
        self._sent[connection] += pending
        self._pins[connection] = client

    def _reply(self, step: Step) -> None:
        lane = self._lane(step.who)
        try:
            for chunk in self._cut(step.data):
                if lane.state is LaneState.READY:
                    self._exchange.replies(lane, chunk, 0.0)
                else:
                    for client in self._clients.values():
                        if client.pinned is not None and client.pinned[0] is lane:
                            client.received += chunk
        except UpstreamError:
            self._exchange.lose(lane)

    def _settle(self) -> None:
        for client in list(self._clients.values()):
            client.feed()
        for lane in [lane for lane in self._outdated if not lane.is_waited_for]:
            self._outdated.discard(lane)
            if lane.link is not None:
                self._exchange.replaced(lane)
        self._exchange.flush(0.0)


def _without(received: bytes, expected: bytes) -> bytes:
    assert received.startswith(expected), f"expected {expected!r}, got {received!r}"
    return received[len(expected) :]
