"""One client from connect to departure."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, NoReturn

from tests.system.wire import bulk, pack

from . import channels, identities, pins, queues, transactions
from .run import DATABASES, LUA_ERROR, USERS
from .speaker import Closed, Exchange, Helper, Speaker

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable

    from .run import Run

RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, zero seconds
LUA_NESTED = "return {ARGV[1], {ARGV[2], {}}}"
# How often which story is told. Pins take a connection away for good, and MONITOR is a flood.
STORIES = {
    transactions.transaction: 40,
    queues.private_pop: 20,
    queues.shared_pop: 8,
    queues.shared_move: 8,
    queues.left_waiting: 1,
    queues.waited: 4,
    channels.subscription: 14,
    channels.publication: 8,
    pins.tracking: 2,
    pins.refused_pin: 2,
    pins.client_info: 2,
    pins.monitor: 0.3,
    identities.wrong_password: 3,
}


class Left(Exception):
    """The client has made up its mind."""


class Client(Speaker):
    """Reads and writes what only it knows, and tells a story now and then."""

    def __init__(self, run: Run, chance: random.Random) -> None:
        super().__init__(run, chance)
        run.tally.clients += 1
        self.kept: list[tuple[str, bytes, int]] = []  # key, its value as a reply, the weather's mark when it was sent
        self.resp3 = chance.random() < 0.4
        self.database = chance.choice((0, 0, *DATABASES))
        self.user = chance.choice(("", "", *USERS))
        self.name = f"name-{self.number}-{chance.getrandbits(64):x}"
        self.afterwards: list[Callable[[], Awaitable[object]]] = []  # to be done once its connection is closed

    # What it says

    def next_batch(self) -> list[Exchange]:
        length = 1 if self.chance.random() < 0.4 else self.chance.randrange(1, 25)
        batch: list[Exchange] = []
        for _ in range(length):
            batch += self.exchanges()
        return batch

    def exchanges(self) -> list[Exchange]:
        """The next thing to say."""
        if not self.kept:
            return [self.set()]
        if self.chance.random() < 0.002:
            return transactions.in_one_piece(self)
        if self.chance.random() < 0.002:
            return transactions.none_open(self)
        sayings = (
            self.set,
            self.get,
            self.mget,
            self.say_echo,
            self.nested_array,
            self.error,
            self.get_name,
            self.foreign,
        )
        return [self.chance.choices(sayings, weights=(25, 35, 6, 20, 4, 4, 6, 2))[0]()]

    def value(self) -> str:
        """Mostly short, at times longer than a read of coalesce's."""
        return self.secret(self.chance.choice((0, 0, 0, 10, 100)) if self.chance.random() < 0.995 else 100_000)

    def say_echo(self) -> Exchange:
        secret = self.value()
        return Exchange(pack("ECHO", secret), bulk(secret))

    def nested_array(self) -> Exchange:
        first, second = self.value(), self.value()
        reply = b"*2\r\n" + bulk(first) + b"*2\r\n" + bulk(second) + b"*0\r\n"
        return Exchange(pack("EVAL", LUA_NESTED, 0, first, second), reply)

    def error(self) -> Exchange:
        self.serial += 1
        text = f"{self.number}.{self.serial}"
        return Exchange(pack("EVAL", LUA_ERROR, 0, text), self.run.texts.error.replace(b"@@", text.encode()))

    def get_name(self) -> Exchange:
        return Exchange(pack("CLIENT", "GETNAME"), bulk(self.name) if self.name else self.null)

    def foreign(self) -> Exchange:
        """A key that the user may not read; to the default user it is only missing."""
        return Exchange(pack("GET", "not yours"), self.run.texts.forbidden.get(self.user, self.null))

    def set(self) -> Exchange:
        key, value = self.new_key("k"), self.value()
        self.keep(key, value, self.run.weather.mark)
        return Exchange(pack("SET", key, value), b"+OK\r\n")

    def keep(self, key: str, value: str, mark: int) -> None:
        """Remembers what it wrote. `mark` is the weather's when it was sent, not when it was done."""
        self.kept.append((key, bulk(value), mark))
        del self.kept[:-50]

    def get(self) -> Exchange:
        key, value, mark = self.chance.choice(self.kept)
        return Exchange(pack("GET", key), value, (self.null,), mark)

    def mget(self) -> Exchange:
        (key, value, mark), (other, others_value, others_mark) = self.chance.choices(self.kept, k=2)
        head, null = b"*2\r\n", self.null
        lost = (head + null + null, head + value + null, head + null + others_value)
        return Exchange(pack("MGET", key, other), head + value + others_value, lost, min(mark, others_mark))

    # How it lives

    async def live(self, helper: Helper) -> None:
        """From connect to departure, or until a kill closes it."""
        try:
            await self.connect()
            await self.converse(self.opening())
            while not self.run.over:
                if self.chance.random() < self.run.story_share and self.kept:
                    await self.tell_a_story(helper)
                elif self.chance.random() < 0.02:
                    await self.become_another()
                elif self.chance.random() < 0.1:
                    await self.depart()
                else:
                    await self.converse(self.next_batch())
                if self.refused and self.held_since is not None:
                    return  # what its connection is in the middle of is hard to tell
        except Closed:
            self.diary.append("closed")
        except Left:
            self.diary.append("left")
        finally:
            self.socket.close()
        for act in self.afterwards:
            await act()

    async def tell_a_story(self, helper: Helper) -> None:
        story = self.chance.choices([*STORIES], weights=[*STORIES.values()])[0]
        self.run.tally.stories[story.__name__.replace("_", " ")] += 1
        self.diary.append(f"-- {story.__name__} --")
        await story(self, helper)
        self.afterwards.clear()
        self.diary.append("--")

    async def become_another(self) -> None:
        """Another database, or nobody: RESET, and what follows a connect. What it knew is out of reach."""
        if self.chance.random() < 0.7:
            self.database = self.chance.choice(DATABASES)
            await self.converse([Exchange(pack("SELECT", self.database), b"+OK\r\n")])
        else:
            await self.reset()
        self.kept.clear()

    async def reset(self) -> None:
        """Takes everything back, whatever the connection is in the middle of."""
        await self.converse([Exchange(pack("RESET"), b"+RESET\r\n")])
        self.resp3, self.database, self.user, self.name = False, 0, "", ""
        self.hear = None
        self.release()
        self.kept.clear()
        if self.chance.random() < 0.5:
            self.resp3 = True
            self.user = self.chance.choice(USERS)
            self.name = f"again-{self.number}"
            await self.converse(self.opening())

    async def step(self, moment: str, *exchanges: Exchange) -> None:
        """A step of a story, before or after which the client may leave for good."""
        roll = self.chance.random()
        if roll < 0.02:
            requests = b"".join(exchange.request for exchange in exchanges)
            self.begin([*exchanges])
            whole = self.chance.random() < 0.7
            await self.send(requests if whole else requests[: self.chance.randrange(1, len(requests))])
            self.leave(f"{moment}, reply unread" if whole else f"{moment}, mid-request")
        await self.converse([*exchanges])
        if roll > 0.98:
            self.leave(moment)

    def leave(self, moment: str) -> NoReturn:
        """Closes, by a FIN or a reset."""
        reset = self.chance.random() < 0.5
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.run.tally.departures[f"{moment} ({'reset' if reset else 'close'})"] += 1
        self.diary.append(f"leaves {moment}")
        raise Left

    async def depart(self) -> None:
        """Leaves at some moment of a batch's life; what it has received until then is checked all the same."""
        moment = self.chance.choice(("idle", "mid-request", "in flight", "mid-reply"))
        batch = self.next_batch()
        self.begin(batch)
        requests = b"".join(exchange.request for exchange in batch)
        if moment == "mid-request":
            await self.send(requests[: self.chance.randrange(1, len(requests))])
        elif moment in ("in flight", "mid-reply"):
            await self.send(requests)
        if moment == "mid-reply":
            await self.receive(self.chance.randrange(1, len(self.expected) + 1))
            self.checked()
        self.leave(moment)
