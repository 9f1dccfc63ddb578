"""Random sequences: the same for the same seed and the same server program."""

from __future__ import annotations

import hashlib
import random
import re
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from tests.system.differences import (
    crashes_at_function_flush,
    drops_auth_errors,
    ignores_bad_input_behind_blocking,
    marks_writes_only,
    may_fail_to_authenticate,
)

from . import words
from .compare import parse
from .steps import Step, packed

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.system.processes import Executable

    from .compare import Reply
    from .steps import Request

T = TypeVar("T")

PLACE = re.compile(rb"<([a-z]+)>")


def _templates(text: str) -> list[bytes]:
    return [line.encode() for line in text.strip().splitlines()]


TEMPLATES = {
    kind: [_templates(text) for text in texts]
    for kind, texts in {
        "data": (words.STRINGS, words.STRINGS, words.HASHES, words.LISTS, words.SETS, words.ZSETS, words.STREAMS,
                 words.KEYSPACE, words.SCRIPTS, words.SERVER),
        "identity": (words.IDENTITY,),
        "client": (words.CLIENT,),
        "channels": (words.CHANNELS,),
        "blocking": (words.BLOCKING,),
        "tracking": (words.TRACKING,),
        "replies_off": (words.REPLIES_OFF,),
    }.items()
}  # fmt: skip
NEWER = _templates(words.NEWER)
TRANSACTIONS = _templates(words.TRANSACTIONS)
# A change to these may have them block for long, or break the server or its users.
NOT_DAMAGED = {b"ACL", b"CONFIG", b"SPOP", b"SCRIPT", b"FUNCTION", b"SORT", b"CLIENT", b"WAIT", b"WAITAOF", b"SCAN"} | {
    template.split()[0] for template in TEMPLATES["blocking"][0]
}


class Command(NamedTuple):
    """What the server says of a command: a negative arity is the least, keys are at first, first + step, ... last."""

    name: bytes
    arity: int
    first: int
    last: int
    step: int


def commands_of(reply: bytes) -> list[Command]:
    """From the reply to COMMAND: all that may be said without harm, ordered by name."""
    found = []
    table = parse(reply)[0].content
    assert isinstance(table, tuple)
    for entry in table:
        name, arity, _, first, last, step = (_scalar(item) for item in _items(entry)[:6])
        if name.upper() not in words.EXCLUDED:
            found.append(Command(name.upper(), int(arity), int(first), int(last), int(step)))
    return sorted(found)


def _items(reply: Reply) -> tuple[Reply, ...]:
    assert isinstance(reply.content, tuple)
    return reply.content


def _scalar(reply: Reply) -> bytes:
    return reply.content if isinstance(reply.content, bytes) else b""


class Habits(NamedTuple):
    """What a connection is up to, by weight; drawn at random for each. Those of the first kinds stay shared."""

    data: int
    generic: int
    identity: int
    client: int
    odd: int
    transactions: int = 0
    channels: int = 0
    blocking: int = 0
    tracking: int = 0
    replies_off: int = 0


HABITS = (
    Habits(20, 0, 1, 0, 0),
    Habits(20, 0, 3, 0, 1),
    Habits(12, 2, 3, 1, 1),
    Habits(12, 0, 2, 1, 0, transactions=8),
    Habits(6, 1, 1, 0, 0, channels=8),
    Habits(6, 0, 1, 0, 0, blocking=6, transactions=1),
    Habits(10, 1, 2, 1, 0, tracking=3, transactions=2),
    Habits(10, 2, 1, 1, 1, replies_off=2),
    Habits(12, 4, 2, 2, 2, 3, 3, 2, 1),  # not CLIENT REPLY: in a transaction, EXEC's array gets too short
)


def _closes_without_a_word(request: Request) -> bool:
    return packed(request).upper().startswith((b"POST", b"HOST:"))


class Unsaid:
    """What a server answers otherwise than coalesce in its place, and so is not said to it: see `differences.py`."""

    def __init__(self, executable: Executable) -> None:
        self._executable = executable
        self._in_transactions: set[int] = set()  # connections
        self._without_swapdb: set[int] = set()

    def removed(self, connection: int, requests: list[Request], *, first: bool) -> list[Request]:
        """Without that; `first`: no reply of this connection can be on its way when these requests are read."""
        kept: list[Request] = []
        for request in requests:
            first_of_all = first and not kept and connection not in self._in_transactions
            self._look(connection, request)
            if not self._is_unsaid(connection, request, first=first_of_all):
                kept.append(request)
        return kept

    def _look(self, connection: int, request: Request) -> None:
        arguments = request.split() if isinstance(request, bytes) else request
        name = arguments[0].upper() if arguments else b""
        if name == b"MULTI":
            self._in_transactions.add(connection)
        if name in {b"EXEC", b"DISCARD", b"RESET"}:
            self._in_transactions.discard(connection)
        if b"bob" in arguments:
            self._without_swapdb.add(connection)

    def _is_unsaid(self, connection: int, request: Request, *, first: bool) -> bool:
        if isinstance(request, bytes):
            return request in words.MALFORMED and not first and ignores_bad_input_behind_blocking(self._executable)
        match [request[0].upper(), *request[1:]]:
            case [b"WAIT" | b"WAITAOF", *_]:
                return connection in self._without_swapdb and marks_writes_only(self._executable)
            case [b"FCALL" | b"FCALL_RO", _, b"0", *_]:  # the library's functions take a key
                return crashes_at_function_flush(self._executable)
            case _:
                return not first and may_fail_to_authenticate(request) and drops_auth_errors(self._executable)


class Generator:
    """One sequence."""

    def __init__(
        self, seed: int, commands: list[Command], dumps: list[bytes], executable: Executable, *, locked: bool
    ) -> None:
        self.chance = random.Random(seed)
        self.commands, self.dumps, self.unsaid, self.locked = commands, dumps, Unsaid(executable), locked
        names = {command.name for command in commands}
        newer = [template for template in NEWER if template.split()[0] in names]
        self.templates = TEMPLATES | {"data": [*TEMPLATES["data"], *filter(None, [newer])]}
        self.ends_by_itself = False  # what blocks: see `words.BLOCKING`
        self.waits = False
        self.endless = False  # somebody may be blocked until somebody else ends it
        self._fill: dict[bytes, Callable[[], bytes]] = {
            b"k": lambda: self._any(self._any(list(words.KEYS.values()))),
            b"v": self._value,
            b"n": lambda: self._any((b"1", b"2", b"5", *words.NUMBERS[:5])),
            b"i": lambda: self._any((b"0", b"1", b"2", b"3", b"-1", b"-2")),
            b"bad": lambda: self._any(words.NUMBERS[5:]),
            b"f": lambda: self._any((b"f1", b"f2", b"f3", b"n")),
            b"m": lambda: self._any((b"a", b"b", b"c", b"m1", b"m2", b"a\r\nb")),
            b"r": lambda: self._any((b"1", b"2", b"2.5", b"-1", b"inf", b"abc")),
            b"ch": lambda: self._any((b"c1", b"c2", b"d1")),
            b"pat": lambda: self._any((b"c*", b"*1", b"__key*__:*")),
            b"db": lambda: self._any((b"0", b"0", b"1", b"9", b"99")),
            b"id": lambda: self._any((b"1-1", b"1-2", b"2-1", b"3-*", b"5", b"0-0", b"9-9")),
            b"gr": lambda: self._any((b"g1", b"g1", b"g2")),
            b"co": lambda: self._any((b"me", b"you")),
            b"name": lambda: self._any((b"n1", b"n2", b"two words", b"")),
            b"to": lambda: self._any((b"0.01", b"0.02")) if self.ends_by_itself else b"0",
            b"ms": lambda: self._any((b"5", b"20")) if self.ends_by_itself else b"0",
            b"lua": lambda: self._any(words.LUA),
            b"sha": lambda: hashlib.sha1(self._any(words.LUA), usedforsecurity=False).hexdigest().encode(),
            b"library": lambda: words.LIBRARY,
            b"dump": lambda: self._any((*self.dumps, b"", b"junk")),
        }

    def sequence(self) -> list[Step]:
        """Five to thirty steps of two to five connections."""
        connections = self.chance.randrange(2, 6)
        habits = [self._any(HABITS) for _ in range(connections)]
        by_themselves = [self._flip(0.5) for _ in range(connections)]
        steps: list[Step] = []
        begun: dict[int, tuple[bytes, bool]] = {}  # what a connection has still to write of its last request, `waits`
        if self.locked:
            steps += [Step(number, (self._login(),)) for number in range(connections) if self._flip(0.9)]
        for _ in range(self.chance.randrange(5, 31)):
            number = self.chance.randrange(connections)
            self.ends_by_itself, self.waits = by_themselves[number], False
            one_at_a_time = self.endless
            requests = self._pipeline(habits[number])
            if one_at_a_time:
                # Who is served in the midst of a pipeline may go on in the midst of it, or behind it: that is open.
                del requests[(number not in begun) :]
            requests = self.unsaid.removed(number, requests, first=not one_at_a_time and number not in begun)
            if number in begun:
                rest, waits = begun.pop(number)
                if any(_closes_without_a_word(request) for request in requests):
                    requests = []
                requests.insert(0, rest)
                self.waits = self.waits or waits
            elif self._flip(0.04) and requests:
                last = packed(requests.pop())
                cut = self.chance.randrange(1, len(last)) if len(last) > 1 else len(last)
                requests.append(last[:cut])
                begun[number] = last[cut:], self.waits
            step = Step(number, tuple(requests), waits=self.waits)
            steps.append(Step(number, step.requests, self._cuts(step.data), step.waits))
        steps += [Step(number, (rest,), waits=waits) for number, (rest, waits) in begun.items() if rest]
        steps += [Step(number, ((b"QUIT",),)) for number in range(connections) if self._flip(0.2)]
        return steps

    # --- one step ---

    def _login(self) -> tuple[bytes, ...]:
        login = (b"AUTH~sesame", b"AUTH~fuzz~fuzz-pw", b"HELLO~3~AUTH~fuzz~fuzz-pw", b"HELLO~2~AUTH~default~sesame")
        return tuple(self._any(login).split(b"~"))

    def _pipeline(self, habits: Habits) -> list[Request]:
        length = self._any((1, 1, 1, 2, 3, 4, 5, self.chance.randrange(6, 40)))
        requests: list[Request] = []
        while len(requests) < length:
            requests += self._requests(self.chance.choices(Habits._fields, habits)[0])
        if habits.replies_off:
            # A server closes when its last words are written: after CLIENT REPLY OFF only if some others are, too.
            requests = [request for request in requests if request not in words.MALFORMED] or [(b"PING",)]
        # What closes without a word takes replies with it that the server has not written yet.
        alone = [request for request in requests if _closes_without_a_word(request)]
        if self.locked:
            # A server that wants a password ends who has none and is owed more than its first buffer holds, of 1 KiB
            # after a while; which depends on when that was, and RESET is how to have no password any more.
            alone += [request for request in requests if isinstance(request, tuple) and request[0].upper() == b"RESET"]
            del requests[8:]
        return alone[:1] or requests

    def _requests(self, kind: str) -> list[Request]:
        if kind == "transactions":
            return self._transaction()
        if kind == "blocking":
            self.waits = self.waits or self.ends_by_itself
            self.endless = self.endless or not self.ends_by_itself
        if kind == "generic":
            return [self._generic()]
        if kind == "odd":
            return [self._odd()]
        request = self._from(self._any(self.templates[kind]))
        return [self._damaged(request) if kind in {"data", "identity"} else request]

    def _transaction(self) -> list[Request]:
        """A whole one, or any part of one in any order."""
        if self._flip(0.5):
            return [self._from(TRANSACTIONS)]
        requests: list[Request] = [self._from([b"WATCH <k>+"])] if self._flip(0.3) else []
        requests.append((b"MULTI",))
        inside = self.chance.choices(("data", "generic", "identity", "client", "channels", "blocking", "transactions"),
                                     (30, 3, 3, 2, 2, 2, 1), k=self.chance.randrange(6))  # fmt: skip
        for kind in inside:
            requests += [self._from(TRANSACTIONS)] if kind == "transactions" else self._requests(kind)
        requests.append((b"EXEC",) if self._flip(0.8) else (b"DISCARD",))
        return requests

    def _odd(self) -> Request:
        draw = self.chance.random()
        if draw < 0.4:
            return self._any(words.INLINE)
        if draw < 0.45:
            return self._any(words.MALFORMED)
        return (self._any(words.UNKNOWN), *(self._value() for _ in range(self.chance.randrange(3))))

    def _generic(self) -> tuple[bytes, ...]:
        """Any command of the server, with as many arguments as it takes (or nearly), keys where keys have to be."""
        command = self._any(self.commands)
        least = abs(command.arity)
        count = least + (self.chance.randrange(3) if command.arity < 0 or self._flip(0.1) else 0) - self._flip(0.05)
        last = command.last if command.last >= 0 else count + command.last
        keys = range(command.first, last + 1, command.step) if command.first and command.step else range(0)
        arguments = [self._key() if at in keys else self._anything() for at in range(1, count)]
        return (self._spelt(command.name), *arguments)

    def _anything(self) -> bytes:
        return self._any((self._value(), self._any(words.NUMBERS), self._any((b"1", b"2", b"3")), self._key()))

    def _key(self) -> bytes:
        return self._fill[b"k"]()

    def _damaged(self, request: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """Now and then with an argument more, or less, or another one."""
        if request[0].upper() in NOT_DAMAGED or self._flip(0.94) or b"BLOCK" in request:
            return request
        arguments = list(request)
        at = self.chance.randrange(1, len(arguments) + 1)
        change = self.chance.randrange(3)
        if change == 0:
            del arguments[at:]
        elif change == 1:
            arguments.insert(at, self._any(words.VALUES))
        else:
            arguments[at : at + 1] = [self._any(words.NUMBERS)]
        return tuple(arguments)

    def _cuts(self, data: bytes) -> tuple[int, ...]:
        draw = self.chance.random()
        if draw < 0.75 or len(data) < 2:
            return ()
        if draw < 0.8 and len(data) <= 200:
            return tuple(range(1, len(data)))
        return tuple(sorted({self.chance.randrange(1, len(data)) for _ in range(self.chance.randrange(1, 5))}))

    # --- one request ---

    def _from(self, templates: list[bytes]) -> tuple[bytes, ...]:
        arguments: list[bytes] = []
        for word in self._any(templates).split(b" "):
            repeated = word.endswith(b"+") and len(word) > 1
            choice = self._any((word[:-1] if repeated else word).split(b"|"))
            times = self.chance.randrange(1, 4) if repeated else 1
            for part in choice.split(b"~") * times if choice else ():
                arguments += self._filled(part)
        return (self._spelt(arguments[0]), *arguments[1:])

    def _filled(self, part: bytes) -> list[bytes]:
        if part == b"<c>":  # a number of keys, of which the template has one
            return [b"1"]
        if part == b"<nk>":
            return self._any(([b"0"], [b"1", self._key()], [b"1", self._key(), self._value()], [b"2", b"s1"]))
        return [PLACE.sub(lambda place: self._place(place[1]), part)]

    def _place(self, name: bytes) -> bytes:
        if name in words.KEYS:
            return self._any(words.KEYS[name]) if self._flip(0.8) else self._key()
        return self._fill[name]()

    def _value(self) -> bytes:
        if self._flip(0.985):
            return self._any(words.VALUES)
        unit = self.chance.randbytes(self.chance.randrange(1, 9))
        return unit * (self.chance.choice((2_000, 5_000, 40_000, 100_000)) // len(unit))

    def _spelt(self, name: bytes) -> bytes:
        return name if self._flip(0.8) else self._any((name.lower(), name.title(), name.swapcase()))

    def _any(self, choices: tuple[T, ...] | list[T]) -> T:
        return self.chance.choice(choices)

    def _flip(self, probability: float) -> bool:
        return self.chance.random() < probability
