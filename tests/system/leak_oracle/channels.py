"""Publish/subscribe: every message between the confirmation and the end of a subscription, in order, and no other."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from tests.system.wire import bulk, pack

from .speaker import Exchange
from .transactions import behind

if TYPE_CHECKING:
    from .client import Client
    from .speaker import Helper

SHARED_CHANNELS = 3
LUA_PUBLISH = "local n = redis.call('INCR', KEYS[1]); redis.call('PUBLISH', KEYS[1], n); return n"


class Ears:
    """What one client listens to. `hear` is for `Speaker.hear`."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.due: deque[bytes] = deque()  # on private channels: whole messages, in order
        self.last: dict[str, int] = {}  # by shared channel: the number heard last, 0 before the first
        self.asked: dict[str, int] = {}  # how many had been asked for when the subscription was confirmed
        self.kind = b">" if client.resp3 else b"*"
        self.subscribed = 0

    def hear(self, reply: bytes) -> bool:
        """Checks a message; False when it is none."""
        parts = reply.split(b"\r\n", 6)
        if len(parts) < 7 or parts[2] not in (b"message", b"pmessage") or parts[0][:1] != self.kind:
            return False
        channel = parts[4].decode("latin-1")
        if channel in self.last and parts[2] == b"message":
            self._hear_news(channel, int(parts[6]), reply)
        elif not self.due or self.due.popleft() != reply:
            raise self.client.wrong("a message that is not due", b"", reply)
        return True

    def _hear_news(self, channel: str, number: int, reply: bytes) -> None:
        """The first may have any number that was free when the subscription was confirmed; from there on, the next."""
        last = self.last[channel]
        first = 1 + self.asked.get(channel, self.client.run.news_of(channel).asked)
        if number != last + 1 if last else number > first:
            expected = b"after %d" % last if last else b"at most %d" % first
            raise self.client.wrong("a shared channel's message is out of order", expected, reply)
        self.last[channel] = number

    def message(self, channel: str, payload: str) -> bytes:
        return self.kind + b"3\r\n" + bulk("message") + bulk(channel) + bulk(payload)

    def pattern_message(self, pattern: str, channel: str, payload: str) -> bytes:
        return self.kind + b"4\r\n" + bulk("pmessage") + bulk(pattern) + bulk(channel) + bulk(payload)

    def confirmation(self, verb: str, channel: str) -> bytes:
        """Counts, too."""
        self.subscribed += -1 if "unsubscribe" in verb else 1
        return self.kind + b"3\r\n" + bulk(verb) + bulk(channel) + b":%d\r\n" % self.subscribed

    def change(self, verb: str, *channels: str) -> list[Exchange]:
        """A request that subscribes or unsubscribes: one confirmation for each."""
        first, *others = [self.confirmation(verb.lower(), channel) for channel in channels]
        return [Exchange(pack(verb, *channels), first), *[Exchange(b"", each) for each in others]]

    def fence(self) -> Exchange:
        """Whatever was published before is heard before its reply."""
        secret = self.client.secret()
        if self.client.resp3:
            return Exchange(pack("PING", secret), bulk(secret))
        return Exchange(pack("PING", secret), b"*2\r\n" + bulk("pong") + bulk(secret))


def shared_channel(client: Client, database: int) -> str:
    """Its name holds the mark, so that a kill or a cut ends it, and begins another that counts from 1."""
    return f"news:{database}:{client.run.weather.mark}:{client.chance.randrange(SHARED_CHANNELS)}"


async def publication(client: Client, helper: Helper) -> None:
    """Something for those who listen to a shared channel."""
    for _ in range(client.chance.randrange(1, 5)):
        await publish_news(client, helper)


async def publish_news(client: Client, helper: Helper) -> None:
    channel = shared_channel(client, client.database)
    news = client.run.news_of(channel)
    if not client.run.weather.fair:
        return
    number = 0

    def numbered(reply: bytes) -> bool:
        nonlocal number
        number = int(reply[1:]) if reply.startswith(b":") else 0
        return 0 < number <= news.asked

    news.asked += 1
    if await helper.act(client.database, Exchange(pack("EVAL", LUA_PUBLISH, 1, channel), b"", accepts=numbered)):
        news.published = max(news.published, number)


async def subscription(client: Client, helper: Helper) -> None:
    """Subscribes, listens, unsubscribes to nothing, and goes on with ordinary commands on the same connection."""
    chance = client.chance
    ears = Ears(client)
    client.hear = ears.hear
    client.hold()
    channels = [client.new_key("channel") for _ in range(chance.randrange(1, 3))]
    pattern = f"{channels[0]}*" if chance.random() < 0.4 else None
    news = await _subscribe_to_news(client, ears)
    await client.step("subscribed", *ears.change("SUBSCRIBE", *channels))
    if pattern is not None:
        await client.step("subscribed", *ears.change("PSUBSCRIBE", pattern))
    for _ in range(chance.randrange(1, 4)):
        await _listen(client, helper, ears, channels, pattern)
        if news is not None and chance.random() < 0.5:
            await publish_news(client, helper)
    if chance.random() < 0.05:
        await client.reset()
        return
    ends = ears.change("UNSUBSCRIBE", *channels)
    if pattern is not None:
        ends += ears.change("PUNSUBSCRIBE", pattern)
    if news is not None:
        ends += ears.change("UNSUBSCRIBE", news)
    if chance.random() < 0.3:  # for a moment, to nothing; then once more
        ends += [*behind(client), *ears.change("SUBSCRIBE", *channels), *ears.change("UNSUBSCRIBE", *channels)]
    published = 0 if news is None else client.run.news_of(news).published
    await client.step("unsubscribed", *ends, *behind(client))
    if news is not None and published > max(ears.last[news], ears.asked[news]):
        raise client.wrong(f"missed {published} of {news}", b"%d" % published, b"%d" % ears.last[news])
    client.hear = None
    if chance.random() < 0.7:
        await helper.act(client.database, Exchange(pack("PUBLISH", channels[0], "too late"), b":0\r\n"))
    await client.converse(client.next_batch())
    client.release()  # not before: coalesce had a question of its own to the connection, which a cut may have caught


async def _subscribe_to_news(client: Client, ears: Ears) -> str | None:
    """At times, to a shared channel, too."""
    if not client.run.weather.fair or client.chance.random() < 0.5:
        return None
    news = shared_channel(client, client.database)
    ears.last[news] = 0
    await client.step("subscribed", *ears.change("SUBSCRIBE", news))
    ears.asked[news] = client.run.news_of(news).asked
    return news


async def _listen(client: Client, helper: Helper, ears: Ears, channels: list[str], pattern: str | None) -> None:
    """Some private messages: how many hear each is known, and so is that they have come when the fence has."""
    publications = []
    for _ in range(client.chance.randrange(1, 6)):
        channel, payload = client.chance.choice(channels), client.secret()
        ears.due.append(ears.message(channel, payload))
        matches = pattern is not None and channel.startswith(pattern[:-1])
        if matches and pattern is not None:
            ears.due.append(ears.pattern_message(pattern, channel, payload))
        # A kill or a cut since it subscribed has closed the client, which may not have noticed: then nobody hears it.
        heard_by, since = b":%d\r\n" % (1 + matches), client.held_since or 0
        publications.append(Exchange(pack("PUBLISH", channel, payload), heard_by, (), since, (b":0\r\n",)))
    if not await helper.act(client.database, *publications):  # some of them may still come, at any time
        client.leave("subscribed, in doubt")
    requests = [ears.fence()]
    if client.resp3 and client.chance.random() < 0.5:
        requests = [client.get(), *requests, client.get()] if client.kept else requests
    await client.step("subscribed", *requests)
    if ears.due:
        raise client.wrong("a message is missing", ears.due[0], b"")


__all__ = ["publication", "subscription"]
