"""Plays a transcript against the pure core, with bytes cut wherever the player's `cut` says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coalesce.core.errors import UpstreamError
from coalesce.core.exchange import Exchange
from coalesce.core.lane import Identity, Lane, LaneState, Limits
from tests.transcripts.notation import identity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.transcripts.notation import Step, Transcript

Cut = "Callable[[bytes], Iterable[bytes]]"


class CoreClient:
    """A `Peer` that keeps what it is given."""

    def __init__(self, exchange: Exchange) -> None:
        self.received = b""
        self.closed = False
        self.reading = True
        self.unread: list[bytes] = []  # b"" is the end of input
        self.lease_of: tuple[Identity, bytes, bytes] | None = None
        self._exchange = exchange
        self.session = exchange.connect(self)

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.received += data

    write_more = write

    def read(self, wanted: bool) -> None:
        self.reading = wanted

    def close(self) -> None:
        self.closed = True

    def lease(self, identity: Identity, name: bytes, pending: bytes) -> None:
        self.lease_of = (identity, name, pending + b"".join(self.unread))
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


class CorePlayer:
    def __init__(self, transcript: Transcript, cut: Callable[[bytes], Iterable[bytes]]) -> None:
        self._transcript = transcript
        self._cut = cut
        self._lanes: list[Lane] = []
        self._sent: dict[str, bytes] = {}
        self._clients: dict[str, CoreClient] = {}
        self._leases: dict[str, bytes] = {}
        options = transcript.options
        limits = Limits(
            options.get("lane_limit", 10_000), options.get("client_limit", 1_024), options.get("max_lanes", 128), 0
        )
        self._exchange = Exchange(Identity(None, None, 0, 2), self._lanes.append, limits)
        self._connect("u0", authenticated=not options.get("unauthenticated"))

    def play(self) -> None:
        for step in self._transcript.steps:
            try:
                self._play(step)
            except AssertionError as problem:
                raise AssertionError(f"{self._transcript.name}: {step.line}: {problem}") from problem
            self._settle()
        left = {who: client.received for who, client in self._clients.items() if client.received}
        left |= {who: data for who, data in (self._sent | self._leases).items() if data}
        assert not left, f"{self._transcript.name}: received and not written down: {left}"

    def _play(self, step: Step) -> None:  # noqa: C901, PLR0912 (a step a case)
        match step.who[0], step.verb:
            case "c", ">>":
                client = self._client(step.who)
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
            case "c", "leased":
                lease = self._clients[step.who].lease_of
                assert lease is not None
                assert identity(*lease[0]) == step.rest
                self._leases["l" + step.who[1:]] = lease[2]
            case "l", "<<":
                self._leases[step.who] = _without(self._leases[step.who], step.data)
            case "l", ">>":
                self._clients["c" + step.who[1:]].received += step.data
            case "u", "<<":
                self._sent[step.who] = _without(self._sent[step.who], step.data)
            case "u", ">>":
                self._reply(step)
            case "u", "connects":
                lane = self._connect(step.who, authenticated=True)
                assert not step.rest or identity(*lane.identity) == step.rest
            case "u", "refuses":
                self._exchange.refuse(self._lane(step.who), step.data)
            case "u", "lost":
                self._exchange.lose(self._lane(step.who))
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
        lane.authenticated = authenticated
        self._sent[who] = b""

        def send(batch: bytes) -> None:
            self._sent[who] += batch

        self._exchange.connected(lane, send, round_trip=0.0)
        return lane

    def _reply(self, step: Step) -> None:
        lane = self._lane(step.who)
        try:
            for chunk in self._cut(step.data):
                if lane.state is LaneState.READY:
                    self._exchange.replies(lane, chunk, 0.0)
        except UpstreamError:
            self._exchange.lose(lane)

    def _settle(self) -> None:
        for client in list(self._clients.values()):
            client.feed()
        self._exchange.flush(0.0)


def _without(received: bytes, expected: bytes) -> bytes:
    assert received.startswith(expected), f"expected {expected!r}, got {received!r}"
    return received[len(expected) :]
