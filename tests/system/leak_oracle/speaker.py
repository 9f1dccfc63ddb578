"""One connection, what is said on it, and the check of each byte that is heard."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from tests.system.wire import bulk, pack, split_replies

from .run import PASSWORD, SHARED_KEYS, WrongReplyError

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from .run import Run

PATIENCE = 30  # seconds that a client waits for a batch's replies, kills included, before it says that they are lost
AUTHORED = re.compile(rb"-(?:[A-Z]+ [^\r\n]*coalesce|LOADING)[^\r\n]*\r\n")


class Closed(Exception):
    """A kill or a cut has closed the connection."""


@dataclass(slots=True)
class Exchange:
    """One request, the reply it must get, and those it may get when a kill, or a kill or a cut, came after the
    weather's mark `written`."""

    request: bytes
    reply: bytes
    after_a_kill: tuple[bytes, ...] = ()
    written: int = 0
    after_a_cut: tuple[bytes, ...] = ()
    accepts: Callable[[bytes], bool] | None = None  # where the reply is not known to the byte; then `reply` is empty


class Speaker:
    """Somebody with a connection. Its number is in all that it writes, so no two share a secret."""

    def __init__(self, run: Run, chance: random.Random) -> None:
        self.run, self.chance = run, chance
        run.numbers += 1
        self.number = run.numbers
        self.serial = 0
        self.user = ""  # the default user
        self.database = 0
        self.resp3 = False
        self.name = ""
        self.kept_for_good = run.direct  # its upstream connection is its own until the end
        self.held_since: int | None = None  # the weather's mark from which on a cut would close it, idle or not
        self.hear: Callable[[bytes], bool] | None = None  # checks what no request asked for; False: it is a reply
        self.received = bytearray()
        self.replies_checked = 0
        self.batch: list[Exchange] = []
        self.batch_mark = 0
        self.expected = b""
        self.refused = False  # a reply of the batch was an error because of a fault
        self.diary: deque[str] = deque(maxlen=12)

    # What it says

    @property
    def null(self) -> bytes:
        return b"_\r\n" if self.resp3 else b"$-1\r\n"

    @property
    def null_array(self) -> bytes:
        return b"_\r\n" if self.resp3 else b"*-1\r\n"

    @property
    def prefix(self) -> str:
        """Of its keys."""
        return f"{self.user or 'd'}:"

    def secret(self, length: int = 0) -> str:
        """A value that nobody wrote before."""
        self.serial += 1
        return f"{self.number}.{self.serial}.{self.chance.getrandbits(64):x}" + "s" * length

    def new_key(self, kind: str) -> str:
        self.serial += 1
        return f"{self.prefix}{kind}{self.number}:{self.serial}"

    def echo(self) -> Exchange:
        secret = self.secret()
        return Exchange(pack("ECHO", secret), bulk(secret))

    def opening(self) -> list[Exchange]:
        """All that clients of today say at once, before their first command."""
        exchanges = []
        if self.resp3:
            who = ("AUTH", self.user, PASSWORD) if self.user else ()
            exchanges.append(Exchange(pack("HELLO", 3, *who), b"", accepts=_is_greeting))
        elif self.user:
            exchanges.append(Exchange(pack("AUTH", self.user, PASSWORD), b"+OK\r\n"))
        if self.database:
            exchanges.append(Exchange(pack("SELECT", self.database), b"+OK\r\n"))
        if self.name:
            exchanges.append(Exchange(pack("CLIENT", "SETNAME", self.name), b"+OK\r\n"))
        return exchanges

    # How it speaks

    async def connect(self) -> None:
        """Raises Closed."""
        where = self.chance.choice(self.run.places)
        self.socket = trio.socket.socket(trio.socket.AF_UNIX if isinstance(where, str) else trio.socket.AF_INET)
        self.received.clear()
        self.batch_mark = self.run.weather.mark
        self.held_since = self.batch_mark if self.kept_for_good else None
        try:
            await self.socket.connect(where)
        except (ConnectionRefusedError, ConnectionResetError, FileNotFoundError):
            if self.run.direct and not self.run.weather.was_fair_since(self.batch_mark):
                await trio.sleep(0.01)
                raise Closed from None
            raise

    async def converse(self, batch: list[Exchange]) -> None:
        """Writes a batch and checks all of its replies. Raises Closed, and WrongReplyError."""
        self.begin(batch)
        await self.send(b"".join(exchange.request for exchange in batch))
        await self.hear_all()

    def begin(self, batch: list[Exchange]) -> None:
        self.batch, self.batch_mark = batch, self.run.weather.mark
        self.expected = b"".join(exchange.reply for exchange in batch)
        self.replies_checked = 0
        self.refused = False
        self.diary.append(", ".join(_short(exchange.request) for exchange in batch[:4]) + ", ..." * (len(batch) > 4))

    async def hear_all(self) -> None:
        """Waits for the replies to the batch."""
        while not self.checked():
            if not await self.receive():
                raise self.wrong("no reply", self._next_reply(), b"")

    def hold(self) -> None:
        """What it says next leaves something behind on its connection."""
        if self.held_since is None:
            self.held_since = self.run.weather.mark

    def release(self) -> None:
        """Nothing is left behind."""
        if not self.kept_for_good:
            self.held_since = None

    def keep_for_good(self) -> None:
        """What it says next gets it a connection for good."""
        self.hold()
        self.kept_for_good = True

    async def send(self, data: bytes) -> None:
        """Writes, often in pieces. Raises Closed."""
        cuts = sorted(self.chance.randrange(len(data)) for _ in range(self.chance.choice((0, 0, 0, 1, 1, 2, 5))))
        with trio.fail_after(PATIENCE):
            try:
                for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
                    piece = data[start:end]
                    while piece:
                        piece = piece[await self.socket.send(piece) :]
                    await trio.lowlevel.checkpoint()
            except (BrokenPipeError, ConnectionResetError):
                self.closed()

    async def receive(self, at_most: int = 65_536, seconds: float = PATIENCE) -> bool:
        """Adds to what was received; False when nothing came in this time. Raises Closed."""
        with trio.move_on_after(seconds):
            try:
                data = await self.socket.recv(at_most)
            except ConnectionResetError:
                data = b""
            if not data:
                self.closed()
            self.received += data
            return True
        return False

    def closed(self) -> None:
        """The connection is gone: raises Closed when a fault is the reason, WrongReplyError when there was none."""
        since = self.batch_mark if self.held_since is None else min(self.held_since, self.batch_mark)
        if self.run.weather.was_fair_since(since):
            raise self.wrong("closed for no reason", self._next_reply(), b"")
        self.run.tally.closed_by_a_fault += 1
        raise Closed

    # What it hears

    def checked(self) -> bool:
        """Whether all replies are in; WrongReplyError on the first byte that isn't what it must be."""
        if self.replies_checked == 0 and not any(exchange.accepts for exchange in self.batch):
            if self.received == self.expected:  # nearly always
                self.count(len(self.batch))
                self.received.clear()
                return True
            if self.expected.startswith(self.received):
                return False
        return self._checked_one_by_one()

    def count(self, replies: int) -> None:
        self.run.tally.replies += replies
        self.replies_checked += replies

    def _checked_one_by_one(self) -> bool:
        replies, rest = split_replies(self.received)
        for reply in replies:
            del self.received[: len(reply)]
            if self.hear is not None and self.hear(reply):
                self.run.tally.messages += 1
                continue
            if self.replies_checked == len(self.batch):
                raise self.wrong("one reply too many", b"", reply)
            exchange = self.batch[self.replies_checked]
            if not self._matches(exchange, reply):
                raise self.wrong("wrong reply", exchange.reply, reply)
            self.count(1)
        if rest and self.replies_checked == len(self.batch) and self.hear is None:
            raise self.wrong("one reply too many", b"", rest)
        return self.replies_checked == len(self.batch)

    def _matches(self, exchange: Exchange, reply: bytes) -> bool:
        if exchange.accepts is not None:
            if exchange.accepts(reply):
                return True
        elif reply == exchange.reply:
            return True
        if self.run.weather.mark == 0:
            return False
        weather = self.run.weather
        if (reply in exchange.after_a_kill and weather.was_killed_since(exchange.written)) or (
            reply in exchange.after_a_cut and not weather.was_fair_since(exchange.written)
        ):
            return True
        if not weather.was_fair_since(self.batch_mark) and AUTHORED.fullmatch(reply):
            self.run.tally.refused_by_coalesce += 1
            self.refused = True
            return True
        # What was refused may have been a MULTI, so that all behind it is answered otherwise.
        return self.refused and self.held_since is not None

    def _next_reply(self) -> bytes:
        return self.batch[self.replies_checked].reply if self.replies_checked < len(self.batch) else b""

    def wrong(self, what: str, expected: bytes, got: bytes) -> WrongReplyError:
        """The failure, with all that it takes to understand it: who, when, and the whole batch."""
        protocol = 3 if self.resp3 else 2
        who = f"user {self.user or 'default'}"
        place = "for good" if self.kept_for_good else "held" if self.held_since is not None else "shared"
        lines = [
            f"{what}: {type(self).__name__} {self.number} ({who}, database {self.database}, RESP{protocol}, {place})",
            f"  request {self.replies_checked + 1} of {len(self.batch)}",
            f"  weather {self.run.weather.mark}, {self.batch_mark} when the batch began",
            f"  expected  {expected[:300]!r}",
            f"  got       {got[:300]!r}",
            f"  behind it {bytes(self.received[:300])!r}",
        ]
        for position, exchange in enumerate(self.batch):
            mark = "  -> " if position == self.replies_checked else "     "
            lines.append(f"{mark}{exchange.request[:120]!r} -- {exchange.reply[:60]!r}")
        lines += [f"  earlier   {entry}" for entry in list(self.diary)[:-1]]
        return WrongReplyError("\n".join(lines))


class Helper(Speaker):
    """Does for a client what has to come from somebody else. Is the default user and never leaves."""

    connected = False
    connected_at = 0  # the weather's mark

    async def act(self, database: int, *exchanges: Exchange) -> bool:
        """Says this in a database; whether all of it was done, while the weather was fair."""
        mark = self.run.weather.mark
        if self.run.direct and not self.run.weather.was_fair_since(self.connected_at):
            self.close()  # a fault has closed it, which it did not notice
        if not self.connected:
            self.database = 0
        moves = [] if database == self.database else [Exchange(pack("SELECT", database), b"+OK\r\n")]
        try:
            if not self.connected:
                self.connected_at = mark
                await self.connect()
                self.connected = True
            await self.converse([*moves, *exchanges])
        except Closed:
            self.close()
            return False
        if self.refused:
            self.close()  # SELECT may be what was refused
            return False
        self.database = database
        return self.run.weather.was_fair_since(mark)

    def close(self) -> None:
        if hasattr(self, "socket"):
            self.socket.close()
        self.connected = False


def shared_key(name: str) -> str:
    """Of a key that all users may touch."""
    return f"{SHARED_KEYS}{name}"


def _is_greeting(reply: bytes) -> bool:
    return reply.startswith(b"%7\r\n$6\r\nserver\r\n") and b"$5\r\nproto\r\n:3\r\n" in reply


def _short(request: bytes) -> str:
    return " ".join(part.decode("latin-1")[:40] for part in request[:300].split(b"\r\n")[2::2])
