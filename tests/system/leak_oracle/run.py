"""What the clients of one run share: where they connect, what they may expect, the weather, and the books."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.system.processes import RedisServer
    from tests.system.wire import Address, Wire

DATABASES = (0, 1, 2)
USERS = ("u1", "u2")  # each may only touch keys that begin with its name, and the shared queues
PASSWORD = "secret"  # noqa: S105 (of a server that lives for a test)
SHARED_KEYS = "shared:"
LUA_ERROR = "return redis.error_reply(ARGV[1])"


class WrongReplyError(AssertionError):
    """A client was told what it had no business to hear, or lost its connection for no reason."""


class LeftBehindError(AssertionError):
    """A connection of somebody who has left is in the middle of something for ever."""


class LostElementError(AssertionError):
    """The books do not balance: an element of a shared queue is nowhere, or twice."""


class WrongFigureError(AssertionError):
    """What coalesce tells of itself can't be."""


@dataclass
class Weather:
    """`mark` grows when a fault begins that closes connections, and again when all those are closed and coalesce serves
    once more; so it is odd in foul weather. A kill takes what the upstream held, too; a cut does not.

    A fault that only takes time (a stop, a silence, a delay) changes no weather: it excuses nothing.
    """

    mark: int = 0
    last_kill: int = -1  # the mark while it lasted

    @property
    def fair(self) -> bool:
        return self.mark % 2 == 0

    def was_fair_since(self, mark: int) -> bool:
        return mark == self.mark and mark % 2 == 0

    def was_killed_since(self, mark: int) -> bool:
        return self.last_kill >= mark


@dataclass
class Tally:
    """What a run did."""

    replies: int = 0
    clients: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    closed_by_a_fault: int = 0
    refused_by_coalesce: int = 0
    messages: int = 0
    handed_to_the_departed: int = 0
    pauses: int = 0
    departures: Counter[str] = field(default_factory=Counter)
    stories: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        faults = ", ".join(f"{count} {kind}" for kind, count in sorted(self.faults.items())) or "no faults"
        departures = ", ".join(f"{count} {kind}" for kind, count in sorted(self.departures.items()))
        stories = ", ".join(f"{count} {kind}" for kind, count in sorted(self.stories.items()))
        return (
            f"{self.replies} replies and {self.messages} messages checked, {self.clients} clients; {faults} "
            f"({self.closed_by_a_fault} clients closed, {self.refused_by_coalesce} requests refused), "
            f"{self.handed_to_the_departed} elements handed to clients that had left; {self.pauses} pauses\n"
            f"  {self.departures.total()} departures: {departures}\n  {self.stories.total()} stories: {stories}"
        )


@dataclass(frozen=True)
class Texts:
    """Errors in the words of this server."""

    error: bytes  # LUA_ERROR's, with @@ for the argument
    arity: bytes
    aborted: bytes
    no_multi: bytes
    syntax: bytes
    forbidden: dict[str, bytes]  # by user: for a key that is not its own
    forbidden_in_transaction: dict[str, bytes]
    wrong_password: bytes = b""


def texts_of(upstream: RedisServer) -> Texts:
    """Asks the server itself."""
    with upstream.connect() as wire:
        error = wire.ask("EVAL", LUA_ERROR, 0, "@@")
        no_multi = wire.ask("EXEC")
        syntax = wire.ask("CLIENT", "TRACKING", "PERHAPS")
        assert wire.ask("MULTI") == b"+OK\r\n"
        arity = wire.ask("GET")
        aborted = wire.ask("EXEC")
        wrong_password = wire.ask("AUTH", USERS[0], f"not {PASSWORD}")
    forbidden, in_transaction = {}, {}
    for user in USERS:
        with upstream.connect() as wire:
            assert wire.ask("AUTH", user, PASSWORD) == b"+OK\r\n"
            forbidden[user] = wire.ask("GET", "not yours")
            assert wire.ask("MULTI") == b"+OK\r\n"
            in_transaction[user] = wire.ask("GET", "not yours")
    found = Texts(error, arity, aborted, no_multi, syntax, forbidden, in_transaction, wrong_password)
    for text in (
        error,
        arity,
        aborted,
        no_multi,
        syntax,
        wrong_password,
        *forbidden.values(),
        *in_transaction.values(),
    ):
        assert text.startswith(b"-"), text
    return found


def server_options() -> list[str]:
    """What the upstream has to be started with, since a kill takes all else: its users."""
    return [
        word
        for user in USERS
        for word in ("--user", user, "on", f">{PASSWORD}", f"~{user}:*", f"~{SHARED_KEYS}*", "&*", "+@all")
    ]


@dataclass
class News:
    """A channel that anybody may listen to. Its messages are 1, 2, 3, ..., as counted by the server."""

    asked: int = 0  # so many were asked for: no message has a greater number
    published: int = 0  # ... and this one has been published, as have all before


class Ledger:
    """The shared queues' books: who pushed what, who got it, who left in the middle.

    A kill empties the queues, and so the pages for what was pushed before. What is in doubt at the moment of a kill is
    only held to reach no two clients. A client that a cut closes while it waits counts as one that left.
    """

    def __init__(self) -> None:
        self.held = False  # requests may outlast a kill before they are sent: in a pause
        self.offered: set[str] = set()  # pushed, perhaps
        self.pushed: set[str] = set()  # for sure, and since the last kill
        self.got: dict[str, int] = {}  # by which client
        self.left_blocked: dict[int, str] = {}  # clients that left while waiting, and at which queue

    def forget(self) -> None:
        """A kill begins."""
        self.pushed.clear()
        if not self.held:
            self.left_blocked.clear()

    def take(self, element: str, client: int) -> str | None:
        """Enters that a client got an element; what is wrong with that, if anything."""
        if element not in self.offered:
            return "nobody pushed this element"
        if element in self.got:
            return f"client {self.got[element]} got this element before"
        self.got[element] = client
        return None

    def balance(self, wire: Wire, tally: Tally) -> None:
        """Compares with what is in the upstream once all clients have left. Raises LostElementError."""
        waiting, taken = _queues(wire)
        wrong = [f"{element} is in its queue {count} times" for element, count in waiting.items() if count > 1]
        elsewhere = taken | self.got
        wrong += [
            f"{each} is in its queue, and client {elsewhere[each]} has it" for each in waiting if each in elsewhere
        ]
        popped = 0  # by clients that had left
        moved: Counter[int] = Counter()  # for them
        for element in self.pushed - waiting.keys():
            owner, receiver = taken.get(element), self.got.get(element)
            if owner is None and receiver is None:
                popped += 1
            elif receiver is None and owner is not None and self.left_blocked.get(owner) == MOVE:
                moved[owner] += 1
            elif owner is not None and owner != receiver:
                wrong.append(f"{element} was moved for client {owner}, which waited for it; client {receiver} got it")
        wrong += [
            f"client {each} left once, and {count} were moved for it" for each, count in moved.items() if count > 1
        ]
        left = sum(queue == POP for queue in self.left_blocked.values())
        if popped > left:
            wrong.append(f"{popped} elements are lost, and only {left} clients left while they waited")
        tally.handed_to_the_departed += popped + moved.total()
        if wrong:
            raise LostElementError(
                "\n  ".join([f"{len(wrong)} mistakes in the books of the shared queues", *wrong[:20]])
            )


POP, MOVE = "pop", "move"  # the two queues: what is popped is gone, what is moved tells for whom it was
TAKEN = f"{SHARED_KEYS}taken:"


def _queues(wire: Wire) -> tuple[Counter[str], dict[str, int]]:
    """What is still in the shared queues, and what was moved for which client."""
    waiting: Counter[str] = Counter()
    taken: dict[str, int] = {}
    for database in DATABASES:
        assert wire.ask("SELECT", database) == b"+OK\r\n"
        for key in _strings(wire.ask("KEYS", f"{SHARED_KEYS}*")):
            elements = _strings(wire.ask("LRANGE", key, 0, -1))
            if key.startswith(TAKEN):
                taken |= dict.fromkeys(elements, int(key.removeprefix(TAKEN)))
            else:
                waiting.update(elements)
    return waiting, taken


def _strings(array: bytes) -> list[str]:
    """The elements of an array of short bulk strings without line ends."""
    return [part.decode() for part in array.split(b"\r\n")[2::2]]


@dataclass
class Run:
    """One run: what its clients share."""

    places: tuple[Address, ...]  # where clients connect
    upstream: Address  # past coalesce, for a look at CLIENT LIST
    texts: Texts
    target: int  # replies
    story_share: float = 0.05  # of what clients say
    direct: bool = False  # no coalesce: a kill or a cut closes everybody
    time_is_up: bool = False
    numbers: int = 0  # given to clients and helpers
    tally: Tally = field(default_factory=Tally)
    weather: Weather = field(default_factory=Weather)
    ledger: Ledger = field(default_factory=Ledger)
    news: dict[str, News] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        return self.time_is_up or self.tally.replies >= self.target

    def news_of(self, channel: str) -> News:
        return self.news.setdefault(channel, News())
