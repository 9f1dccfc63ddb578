"""Transactions: step by step and in one piece, in conflict, discarded, aborted, abandoned at every point.

Whoever leaves with a key watched has it written to afterwards: a connection that still watches it, lent to somebody
else, would abort his transaction. One that is still in a transaction would answer him with +QUEUED.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tests.system.wire import bulk, pack

from .speaker import Exchange

if TYPE_CHECKING:
    from .client import Client
    from .speaker import Helper

OK = b"+OK\r\n"
QUEUED = b"+QUEUED\r\n"
LUA_REPEAT = "return string.rep(ARGV[1], ARGV[2])"
REPEATED = 10_000
RETRY = 0.01  # seconds, while the upstream is away


def in_one_piece(client: Client) -> list[Exchange]:
    """Among others in a pipeline. With WATCH it needs a connection of its own."""
    key, value, mark = client.chance.choice(client.kept)
    watch = [Exchange(pack("WATCH", key), OK)] if client.chance.random() < 0.3 else []
    results = Exchange(pack("EXEC"), b"*1\r\n" + value, (b"*1\r\n" + client.null,), mark)
    return [*watch, Exchange(pack("MULTI"), OK), Exchange(pack("GET", key), QUEUED), results]


def none_open(client: Client) -> list[Exchange]:
    """EXEC where there is no transaction, and what stands behind it."""
    return [Exchange(pack("EXEC"), client.run.texts.no_multi), client.get()]


async def transaction(client: Client, helper: Helper) -> None:
    """One transaction, with a round trip for each step or for several."""
    chance = client.chance
    kept = chance.choice(client.kept)
    key, value, mark = kept
    client.hold()
    watching = chance.random() < 0.7
    touched = False
    if watching:
        client.afterwards.append(lambda: helper.act(database, _write(key, "touched")))
        database = client.database
        client.kept.remove(kept)  # whatever becomes of it
        await client.step("watching", Exchange(pack("WATCH", key), OK))
        if chance.random() < 0.5:
            read = Exchange(pack("GET", key), value, (client.null,), mark)
            await client.step("watching", read, client.echo())
        if chance.random() < 0.4:
            value, mark, touched = await _conflict(client, helper, key)
    if touched and chance.random() < 0.3:
        await client.step("unwatched", Exchange(pack("UNWATCH"), OK))
        touched = False
        if chance.random() < 0.5:
            client.release()
            await client.converse([client.get_name()])
            return
    if watching and chance.random() < 0.05:
        await client.reset()
        return
    await _queue_and_end(client, key, value, mark, touched=touched)
    client.release()
    if watching and chance.random() < 0.5:
        # What was watched is not watched any more, whoever has the connection now.
        await helper.act(client.database, _write(key, "touched"))


async def _conflict(client: Client, helper: Helper, key: str) -> tuple[bytes, int, bool]:
    """Somebody writes to what is watched: the client itself, or another. Returns what the key holds then."""
    value = client.secret()
    mark = client.run.weather.mark
    if client.chance.random() < 0.3:
        await client.step("watching", _write(key, value))
    else:
        while not await helper.act(client.database, _write(key, value)):  # noqa: ASYNC110 (the upstream tells nobody)
            await trio.sleep(RETRY)
        client.diary.append(f"(helper {helper.number} wrote to {key})")
    return bulk(value), mark, True


async def _queue_and_end(client: Client, key: str, value: bytes, mark: int, *, touched: bool) -> None:
    chance, texts = client.chance, client.run.texts
    await client.step("in a transaction", Exchange(pack("MULTI"), OK))
    new, new_value = client.new_key("k"), client.secret()
    pairs = [(Exchange(pack("GET", key), QUEUED), value), *_some_more(client, new, new_value)]
    queued, results = [exchange for exchange, _ in pairs], [result for _, result in pairs]
    aborted = chance.random() < 0.15
    if aborted:
        queued.insert(chance.randrange(len(queued) + 1), _wrong(client))
    while queued:
        some = chance.randrange(1, len(queued) + 1)
        await client.step("in the middle of queueing", *queued[:some])
        del queued[:some]
    roll = chance.random()
    if roll < 0.05:
        await client.reset()
    elif roll < 0.2:
        await client.step("after DISCARD", Exchange(pack("DISCARD"), OK), *behind(client))
    elif aborted:
        await client.step("after EXEC", Exchange(pack("EXEC"), texts.aborted), *behind(client))
    elif touched:
        await client.step("after EXEC", Exchange(pack("EXEC"), client.null_array), *behind(client))
    else:
        head = b"*%d\r\n" % len(results)
        reply, lost = head + b"".join(results), head + b"".join([client.null, *results[1:]])
        await client.step("after EXEC", Exchange(pack("EXEC"), reply, (lost,), mark), *behind(client))
        if OK in results and not client.refused:
            client.keep(new, new_value, client.batch_mark)


def _some_more(client: Client, new: str, new_value: str) -> list[tuple[Exchange, bytes]]:
    """What else may be queued, with its results."""
    chance, echo = client.chance, client.echo()
    possible = [
        (Exchange(pack("SET", new, new_value), QUEUED), OK),
        (Exchange(echo.request, QUEUED), echo.reply),
        (Exchange(pack("ACL", "WHOAMI"), QUEUED), bulk(client.user or "default")),
        (Exchange(pack("BLPOP", client.new_key("none"), 0), QUEUED), client.null_array),
        (Exchange(pack("PUBLISH", client.new_key("nobody"), "x"), QUEUED), b":0\r\n"),
    ]
    some = chance.sample(possible, chance.randrange(len(possible)))
    if chance.random() < 0.1:
        # The name that the connection bears; a question for which the client keeps it.
        client.keep_for_good()
        some.append((Exchange(pack("CLIENT", "GETNAME"), QUEUED), bulk(client.name) if client.name else client.null))
    return some


def _wrong(client: Client) -> Exchange:
    """Aborts a transaction."""
    forbidden = client.run.texts.forbidden_in_transaction.get(client.user)
    if forbidden is not None and client.chance.random() < 0.5:
        return Exchange(pack("GET", "not yours"), forbidden)
    return Exchange(pack("GET"), client.run.texts.arity)


def behind(client: Client) -> list[Exchange]:
    """What is sent in one go with the end of something, so that it arrives before that is over.

    At times its reply is far longer than a read of coalesce's, and still to come when the end has been seen.
    """
    exchanges = [client.echo() for _ in range(client.chance.choice((0, 0, 1, 3)))]
    if client.chance.random() < 0.2:
        secret = client.secret()
        exchanges.append(Exchange(pack("EVAL", LUA_REPEAT, 0, secret, REPEATED), bulk(secret * REPEATED)))
    return exchanges


def _write(key: str, value: str) -> Exchange:
    return Exchange(pack("SET", key, value), OK)
