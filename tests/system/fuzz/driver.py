"""Two servers, one of them behind coalesce; a sequence is held with both, and both have to say the same.

How it is known that all has been said, in any state (a transaction, a subscription, no replies at all): every thread
that takes part sleeps only when it has nothing to do (in Redis 8, one frees what FLUSHALL leaves behind, and the client
waits for it). So once all sleep, and none has run between two looks, whatever was on its way has arrived, and not one
byte more will come until somebody writes. Blocked commands that end by themselves are the exception: see `Step.waits`.
Unix sockets everywhere: what has been written to one is there for the reader at once.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.system.processes import Executable, RedisServer, running_coalesce, running_server
from tests.system.wire import DEADLINE, Wire, pack, split_replies

from .compare import first_difference

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .steps import Request, Step

SESAME = "sesame"
USERS = {
    "fuzz": "on >fuzz-pw ~* &* +@all",
    "alice": "on >alice-pw ~s* resetchannels &c1 +@all",
    "bob": "on >bob-pw ~* &* +@all -@dangerous -@pubsub",
    "off": "off >off-pw ~* &* +@all",
}
OWN_VALUES = re.compile(rb"\bX[A-Z]+\b|SPOP|EVAL\b|FCALL|RESTORE|SORT", re.IGNORECASE)
TIMED = 3.0  # seconds until a command that blocks for hundredths of a second has to be over


class Stillness:
    """Whether some processes have nothing to do."""

    def __init__(self, pids: list[int]) -> None:
        processes = [Path(f"/proc/{pid}") for pid in pids]
        threads = [thread for process in processes for thread in (process / "task").iterdir()]
        paths = [process / "wchan" for process in processes]
        paths += [thread / name for thread in threads for name in ("stat", "schedstat")]
        self._files = [os.open(path, os.O_RDONLY) for path in paths]
        self._processes = len(pids)
        self._before: list[bytes] = []

    def close(self) -> None:
        for file in self._files:
            os.close(file)

    def now(self) -> bool:
        """All sleep, and none has run since the last look."""
        try:
            seen = [os.pread(file, 512, 0) for file in self._files]
        except ProcessLookupError:
            return True  # it has ended, and does nothing any more
        # What a process waits for (not a lock; 0 where that is a secret); a thread's state, and how often it has run.
        places, stats, schedules = seen[: self._processes], seen[self._processes :: 2], seen[self._processes + 1 :: 2]
        states = [stat[stat.rindex(b")") + 2 : stat.rindex(b")") + 3] for stat in stats]
        runs = [schedule.split()[2] for schedule in schedules]
        before, self._before = self._before, [*states, *runs]
        asleep = set(states) <= {b"S", b"Z"} and all(b"poll" in place or place == b"0" for place in places)
        return before == self._before and asleep

    def wait(self) -> None:
        until = time.monotonic() + DEADLINE
        self._before = []
        while not self.now():
            os.sched_yield()
            if time.monotonic() > until:
                raise DifferenceError("does not come to rest")


class DifferenceError(AssertionError):
    """The two did not say the same."""


@dataclass
class Heard:
    """What has come on one connection."""

    data: bytearray = field(default_factory=bytearray)
    closed: bool = False


class Side:
    """One server as the sequences see it: its connections by number, and a connection past them all to control it."""

    def __init__(self, server: RedisServer, address: str, pids: list[int], password: str | None) -> None:
        self.address = address
        self.stillness = Stillness(pids)
        self.control = Wire(server.unix_path)
        if password:
            assert self.control.ask("AUTH", password) == b"+OK\r\n"
        # Or DBSIZE would depend on when the server last looked for keys that have expired.
        assert self.control.ask("DEBUG", "SET-ACTIVE-EXPIRE", "0") == b"+OK\r\n"
        self.ids: dict[int, bytes] = {}
        self._wires: dict[int, Wire] = {}
        self._heard: dict[int, Heard] = {}

    def close(self) -> None:
        self.leave()
        self.control.close()
        self.stillness.close()

    def leave(self) -> None:
        """Without connections."""
        for wire in self._wires.values():
            wire.close()
        self._wires.clear()
        self._heard.clear()

    def open(self, connection: int) -> None:
        self._wires[connection] = Wire(self.address)
        self._heard[connection] = Heard()
        self.stillness.wait()
        ids = re.findall(
            rb"^(?:[$=][0-9]+\r\n(?:txt:)?)?id=([0-9]+) ", self.control.ask("CLIENT", "LIST"), re.MULTILINE
        )
        self.ids[connection] = max(ids, key=int)

    def write(self, step: Step) -> None:
        """All is read by the peer, cut where the step says."""
        wire = self._wires[step.connection]
        for chunk in step.chunks:
            wire.send_unless_closed(chunk)
            self.settle()

    def settle(self) -> None:
        """Whatever the peers have to say, they have said it."""
        more = True
        while more:
            self.stillness.wait()
            more = False
            for connection, wire in self._wires.items():
                heard = self._heard[connection]
                if not heard.closed:
                    data, heard.closed = wire.look()
                    heard.data += data
                    more = more or bool(data) or heard.closed

    def wait_while_blocked(self, connection: int) -> None:
        """For a server that is spoken to directly: until the connection's timeout has passed."""
        blocked = re.compile(rb"id=%b .* flags=[a-zA-Z]*b" % self.ids[connection])
        until = time.monotonic() + TIMED
        while blocked.search(self.control.ask("CLIENT", "LIST")) and time.monotonic() < until:
            os.sched_yield()
        self.settle()

    def blocked(self) -> int:
        """How many connections are."""
        return len(re.findall(rb" flags=[a-zA-Z]*b", self.control.ask("CLIENT", "LIST")))

    def wait_for(self, replies: int, connection: int, blocked: int) -> None:
        """Until as many replies are there, and as many connections still blocked; or they won't be."""
        until = time.monotonic() + TIMED
        while time.monotonic() < until:
            # To be asked anything wakes the server, and it looks at its timeouts then.
            if self.blocked() == blocked and len(split_replies(self._heard[connection].data)[0]) >= replies:
                break
            self.settle()

    def take(self) -> dict[int, tuple[list[bytes], bytes, bool]]:
        """By connection: replies, what is not a whole one, and whether the peer has closed."""
        taken = {}
        for connection, heard in list(self._heard.items()):
            taken[connection] = (*split_replies(heard.data), heard.closed)
            heard.data.clear()
            if heard.closed:
                self._wires.pop(connection).close()
                del self._heard[connection]
        return taken

    def is_open(self, connection: int) -> bool:
        return connection in self._wires

    def tidy(self, commands: list[bytes]) -> None:
        self.leave()
        self.settle()
        for command in commands:
            self.control.send(command)
            self.control.reply()


@dataclass
class Tally:
    """What was compared."""

    sequences: int = 0
    requests: int = 0
    replies: int = 0

    def __str__(self) -> str:
        return f"{self.sequences} sequences, {self.requests} requests, {self.replies} replies"


class Sides:
    """A server spoken to directly and its twin spoken to through coalesce."""

    def __init__(self, direct: Side, through: Side, version: tuple[int, ...], tally: Tally) -> None:
        self.direct, self.through, self.tally = direct, through, tally
        tidy = [
            ("FLUSHALL",),
            ("SCRIPT", "FLUSH"),
            ("CONFIG", "SET", "notify-keyspace-events", ""),
            ("ACL", "LOG", "RESET"),
        ]
        tidy += [("FUNCTION", "FLUSH")] if version >= (7,) else []
        self._tidy = [pack(*words) for words in tidy]

    def commands(self) -> bytes:
        """What the server says of its commands."""
        return self.direct.control.ask("COMMAND")

    def dumps(self) -> list[bytes]:
        """What DUMP says of a value of each type."""
        control = self.direct.control
        values = ["SET d v", "RPUSH d 1 b", "SADD d m", "SADD d 1 2", "ZADD d 1 m", "HSET d f v", "XADD d 1-1 f v"]
        found = []
        for value in values:
            control.send(pack("DEL", "d") + pack(*value.split()) + pack("DUMP", "d"))
            found.append(control.replies(3)[2].partition(b"\r\n")[2][:-2])
        return found

    def compare(self, steps: list[Step]) -> None:
        """Holds the sequence with both, empty at first. DifferenceError when they differ."""
        try:
            self.direct.tidy(self._tidy)
            self.through.tidy(self._tidy)
        except (OSError, EOFError) as problem:
            raise DifferenceError(f"before the first step: {problem!r}") from problem
        self.tally.sequences += 1
        asked: dict[int, list[Request]] = {}
        for number, step in enumerate(steps):
            try:
                self._compare_step(step, asked)
            except DifferenceError as difference:
                raise DifferenceError(f"step {number}: {difference}") from None
            except (OSError, EOFError) as problem:
                raise DifferenceError(f"step {number}: {problem!r}") from problem
        self._compare_data(steps)

    def _compare_step(self, step: Step, asked: dict[int, list[Request]]) -> None:
        both = (self.direct, self.through)
        if not self.direct.is_open(step.connection):
            asked[step.connection] = []
            for side in both:
                side.open(step.connection)
        history = asked[step.connection]
        before = len(history)
        history += step.requests
        self.tally.requests += len(step.requests)
        self.direct.write(step)
        if step.waits:
            self.direct.wait_while_blocked(step.connection)
        expected = self.direct.take()
        self.through.write(step)
        if step.waits:
            self.through.wait_for(len(expected[step.connection][0]), step.connection, self.direct.blocked())
        got = self.through.take()
        for connection, (replies, rest, closed) in expected.items():
            more, other_rest, other_closed = got[connection]
            self.tally.replies += len(replies)
            where = f"connection {connection}"
            known = before if connection == step.connection else len(asked[connection])
            number = first_difference(replies, more, asked[connection], known)
            if number is not None:
                said, instead = (_brief(each, number) for each in (replies, more))
                raise DifferenceError(f"{where}, reply {number} of {len(replies)}: expected {said}, got {instead}")
            if _without_ids(rest) != _without_ids(other_rest):
                raise DifferenceError(f"{where}, part of a reply: expected {rest[:200]!r}, got {other_rest[:200]!r}")
            if closed != other_closed:
                raise DifferenceError(f"{where}: expected {'' if closed else 'not '}to be closed")

    def _compare_data(self, steps: list[Step]) -> None:
        """The same keys with the same values; unless a server's own clock or chance may have made one of them."""
        if any(OWN_VALUES.search(step.data) for step in steps):
            return
        expected, got = (side.control.ask("DEBUG", "DIGEST") for side in (self.direct, self.through))
        if expected != got:
            raise DifferenceError(f"replies are the same, but the data differ: {expected!r}, {got!r}")


def _without_ids(rest: bytes) -> bytes:
    """Part of a reply can't be parsed; it is what EXEC says after CLIENT REPLY within a transaction."""
    return re.sub(rb"(\$2\r\nid\r\n):[0-9]+", rb"\1:", rest)


def _brief(replies: list[bytes], number: int) -> str:
    return repr(replies[number][:300]) if number < len(replies) else "nothing"


@contextlib.contextmanager
def running_sides(executable: Executable, tally: Tally, *, locked: bool = False, proxy: bool = True) -> Iterator[Sides]:
    """Both sides; `locked` asks for a password, without `proxy` both are spoken to directly."""
    arguments = [word for name, rules in USERS.items() for word in ("--user", name, *rules.split())]
    password = SESAME if locked else None
    if password:
        arguments += ["--requirepass", password]
    with contextlib.ExitStack() as stack:
        direct, behind = (stack.enter_context(running_server(executable, *arguments)) for _ in range(2))
        address, pids = behind.unix_path, [_pid(behind)]
        if proxy:
            coalesce = stack.enter_context(running_coalesce(f"unix://{behind.unix_path}"))
            address, pids = coalesce.unix_path, [coalesce.pid, *pids]
        left = stack.enter_context(contextlib.closing(Side(direct, direct.unix_path, [_pid(direct)], password)))
        right = stack.enter_context(contextlib.closing(Side(behind, address, pids, password)))
        yield Sides(left, right, executable.version, tally)


def _pid(server: RedisServer) -> int:
    assert server.process is not None
    return server.process.pid
