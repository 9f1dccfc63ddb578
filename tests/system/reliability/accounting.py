"""Exactly-once, by bookkeeping: clients that count, and what each may conclude from every reply."""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.system.processes import eventually
from tests.system.wire import Wire, pack

if TYPE_CHECKING:
    from tests.system.wire import Address

SHARED = "shared"
# What says that a request was not run.
UNAVAILABLE = b"-ERR coalesce: upstream unavailable: "
NOT_RUN = (UNAVAILABLE, b"-LOADING ", b"-EXECABORT ", b"-ERR EXEC without MULTI", b"-ERR max number of clients reached")
# ... to a user. Who needs a connection of its own when its password is not right any more is told so.
FORBIDDEN = (b"-NOPERM ", b"-WRONGPASS ")
CLOSED = (EOFError, ConnectionError)


class BooksError(AssertionError):
    """A client was told what can't be, or the books do not balance."""


@dataclass
class Entry:
    """One client's book of one counter."""

    sent: int = 0
    refused: int = 0
    acknowledged: int = 0

    @property
    def unknown(self) -> int:
        return self.sent - self.refused - self.acknowledged


@dataclass
class Verdict:
    """What a run came to."""

    sent: int = 0
    acknowledged: int = 0
    refused: int = 0
    unacknowledged: int = 0  # run, and nobody was told
    connections: int = 0
    closed: int = 0  # before the client was done

    def __str__(self) -> str:
        return (
            f"{self.sent} increments sent, {self.acknowledged} acknowledged, {self.refused} refused, "
            f"{self.unacknowledged} run without an acknowledgement; {self.connections} connections, {self.closed} lost"
        )


class Counting:
    """One client: connects again whenever it is closed, until it is told to stop sending.

    `exact`: a request in doubt has been run by the time of the next connection's first reply, or never will be (the
    upstream that had it is dead).
    """

    def __init__(self, number: int, place: Address, load: Load) -> None:
        self.own = f"counter{number}"
        self.books: defaultdict[str, Entry] = defaultdict(Entry)
        self.connections = self.closed = 0
        self.writing = threading.Lock()  # held from the look at `stopping` until the write is done
        self._place = place
        self._load = load
        self._chance = random.Random(f"{load.seed}-{number}")
        self._resp3 = number % 4 == 3  # they ride another lane
        self._user = ["", *load.users][number // 2 % (1 + len(load.users))]
        self._last = self._excess = 0
        self._slack = 0  # by how much the own counter may be ahead of its last reply
        self._seen_shared = 0
        self.thread = threading.Thread(target=self._run, name=self.own, daemon=True)

    def _run(self) -> None:
        try:
            while not self._load.stopping.is_set():
                with Wire(self._place) as wire:
                    wire.socket.settimeout(self._load.patience)
                    self.connections += 1
                    self._slack = self.books[self.own].unknown - self._excess
                    self._seen_shared = 0
                    try:
                        self._converse(wire)
                    except CLOSED:
                        self.closed += 1
                    if wire.received:
                        self._wrong(f"a cut reply: {bytes(wire.received)!r}")
        except BaseException as problem:  # noqa: BLE001 (whatever it is, the run has failed; `Load.finish` raises it)
            self._load.problems.append(problem)

    def _converse(self, wire: Wire) -> None:
        opening = self._opening()
        if opening and not self._send(wire, opening, []):
            return
        if opening and (opened := wire.reply()).startswith(b"-"):
            self._expect_refusal(opened)
            return
        while True:
            kind = self._chance.random()
            if kind < 0.6:
                going_on = self._pipeline(wire, [self.own])
            elif kind < 0.8:
                keys = [self._chance.choice([self.own, SHARED]) for _ in range(self._chance.randint(2, 20))]
                going_on = self._pipeline(wire, keys)
            elif kind < 0.95:
                going_on = self._transaction(wire)
            else:
                going_on = self._leased_transaction(wire)
            if not going_on:
                return

    def _opening(self) -> bytes:
        """Who has a user tries its passwords in turn, one for each connection."""
        passwords = self._load.users.get(self._user, [""])
        who = ("AUTH", self._user, passwords[self.connections % len(passwords)]) if self._user else ()
        if self._resp3:
            return pack("HELLO", 3, *who)
        return pack(*who) if who else b""

    def _pipeline(self, wire: Wire, keys: list[str]) -> bool:
        if not self._send(wire, b"".join(pack("INCR", key) for key in keys), keys):
            return False
        for key in keys:
            self._enter(key, wire.reply())
        return True

    def _transaction(self, wire: Wire) -> bool:
        """In one write: it rides."""
        keys = [self.own, SHARED]
        requests = [pack("MULTI"), *(pack("INCR", key) for key in keys), pack("EXEC")]
        if not self._send(wire, b"".join(requests), keys):
            return False
        replies = [wire.reply() for _ in requests]
        self._enter_transaction(keys, replies)
        return True

    def _leased_transaction(self, wire: Wire) -> bool:
        """Step by step: a connection is lent for it."""
        if not self._send(wire, pack("MULTI"), []):
            return False
        opened = wire.reply()
        if opened != b"+OK\r\n":
            self._expect_refusal(opened)
            return True
        keys = [self.own, SHARED]
        requests = [*(pack("INCR", key) for key in keys), pack("EXEC")]
        if not self._send(wire, b"".join(requests), keys):
            return False
        self._enter_transaction(keys, [opened, *(wire.reply() for _ in requests)])
        return True

    def _send(self, wire: Wire, data: bytes, keys: list[str]) -> bool:
        """Writes, unless nothing is to be sent any more. Whoever is closed may still have replies to read."""
        with self.writing:
            if self._load.stopping.is_set():
                return False
            for key in keys:
                self.books[key].sent += 1
            wire.send_unless_closed(data)
        return True

    def _enter_transaction(self, keys: list[str], replies: list[bytes]) -> None:
        *_, executed = replies
        if executed.startswith(b"*%d\r\n" % len(keys)):
            results = executed.split(b"\r\n")[1:-1]
            for key, result in zip(keys, results, strict=True):
                self._enter(key, result + b"\r\n")
            return
        # A transaction that never began; what was in it may have been run by itself, and then it was answered so.
        self._expect_refusal(executed)
        for key, reply in zip(keys, replies[1:-1], strict=True):
            if reply.startswith(b":"):
                self._load.torn += 1
                self._enter(key, reply)
            elif reply == b"+QUEUED\r\n":
                self.books[key].refused += 1
            else:
                self._refuse(key, reply)

    def _enter(self, key: str, reply: bytes) -> None:
        if not reply.startswith(b":"):
            self._refuse(key, reply)
            return
        value = int(reply[1:])
        if key == self.own:
            self._follow(value)
        else:
            if value <= self._seen_shared:
                self._wrong(f"{key} went from {self._seen_shared} to {value}")
            self._seen_shared = value
        self.books[key].acknowledged += 1

    def _follow(self, value: int) -> None:
        """The own counter: one more than last time, and as many as were in doubt when the connection was new."""
        ahead = value - self._last - 1
        if not 0 <= ahead <= self._slack:
            self._wrong(f"went from {self._last} to {value}, with {self._slack} requests in doubt")
        self._last = value
        self._excess += ahead
        self._slack = 0 if self._load.exact else self._slack - ahead

    def _refuse(self, key: str, reply: bytes) -> None:
        self._expect_refusal(reply)
        self.books[key].refused += 1

    def _expect_refusal(self, reply: bytes) -> None:
        if not (reply.startswith(NOT_RUN) or (self._user and reply.startswith(FORBIDDEN))):
            self._wrong(f"was told {reply!r}")

    def _wrong(self, what: str) -> None:
        raise BooksError(f"{self.own}: {what}")


@dataclass
class Load:
    """All clients of a run, at `places` in turn."""

    places: list[Address]
    clients: int = 50
    seed: int = 1
    exact: bool = True
    patience: float = 10.0  # seconds for one reply
    users: dict[str, list[str]] = field(default_factory=dict)  # with their passwords, one of which is right
    torn: int = 0  # transactions whose MULTI was refused and whose commands were run all the same
    problems: list[BaseException] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.all = [Counting(number, self.places[number % len(self.places)], self) for number in range(self.clients)]

    def start(self) -> None:
        for client in self.all:
            client.thread.start()
        self.go_on()

    @property
    def connections(self) -> int:
        return sum(client.connections for client in self.all)

    @property
    def closed(self) -> int:
        return sum(client.closed for client in self.all)

    def acknowledged(self) -> list[int]:
        """Of each client."""
        return [sum(entry.acknowledged for entry in list(client.books.values())) for client in self.all]

    def go_on(self, replies: int = 1, deadline: float = 15.0) -> None:
        """When this returns, each client has got so many acknowledgements more: so everybody is served."""
        before = self.acknowledged()

        def served() -> bool:
            self.check()
            return all(now >= then + replies for now, then in zip(self.acknowledged(), before, strict=True))

        eventually(served, deadline)

    def be_refused(self, times: int = 1, deadline: float = 15.0) -> None:
        """When this returns, so many requests more have been refused."""
        before = self.refused()

        def enough() -> bool:
            self.check()
            return self.refused() >= before + times

        eventually(enough, deadline)

    def refused(self) -> int:
        return sum(entry.refused for client in self.all for entry in list(client.books.values()))

    def check(self) -> None:
        """Raises the first thing that went wrong."""
        if self.problems:
            raise self.problems[0]

    def stop_sending(self) -> None:
        """When this returns, nobody writes any more; what was sent may still be answered."""
        self.stopping.set()
        for client in self.all:
            with client.writing:
                pass

    def finish(self) -> None:
        """When this returns, everybody has got all replies or was closed. Raises what went wrong."""
        self.stop_sending()
        for client in self.all:
            if client.thread.ident is not None:
                client.thread.join(self.patience + 5)
                assert not client.thread.is_alive(), client.own
        self.check()

    def balance(self, control: Wire) -> Verdict:
        """Compares the books with the counters that `control` can read. Raises BooksError."""
        totals: defaultdict[str, Entry] = defaultdict(Entry)
        verdict = Verdict()
        for client in self.all:
            verdict.connections += client.connections
            verdict.closed += client.closed
            for key, entry in client.books.items():
                total = totals[key]
                total.sent += entry.sent
                total.refused += entry.refused
                total.acknowledged += entry.acknowledged
        for key, total in totals.items():
            reply = control.ask("GET", key)
            value = 0 if reply == b"$-1\r\n" else int(reply.split()[1])
            if not total.acknowledged <= value <= total.sent - total.refused:
                raise BooksError(f"{key} is {value}: {total}")
            verdict.sent += total.sent
            verdict.refused += total.refused
            verdict.acknowledged += total.acknowledged
            verdict.unacknowledged += value - total.acknowledged
        return verdict
