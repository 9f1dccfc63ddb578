"""Connections that are kept for good: CLIENT TRACKING, MONITOR, CLIENT INFO."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tests.system.wire import bulk, pack

from .speaker import PATIENCE, Exchange

if TYPE_CHECKING:
    from .client import Client
    from .speaker import Helper

OK = b"+OK\r\n"


async def tracking(client: Client, helper: Helper) -> None:
    """Is told when a key changes that it read, or one with its prefix, and of no other."""
    if not client.resp3 or client.kept_for_good:
        return
    chance = client.chance
    broadcast = chance.random() < 0.5
    keys = [client.new_key("tracked") for _ in range(2)]
    options = ("BCAST", "PREFIX", keys[0]) if broadcast else ()
    due: list[bytes] = []

    def hear(reply: bytes) -> bool:
        if not reply.startswith(b">"):
            return False
        if not due or due.pop(0) != reply:
            raise client.wrong("an invalidation that is not due", due[0] if due else b"", reply)
        return True

    client.hear = hear
    client.keep_for_good()
    await client.step("tracking", Exchange(pack("CLIENT", "TRACKING", "ON", *options), OK))
    for _ in range(chance.randrange(1, 4)):
        if not broadcast:
            await client.step(
                "tracking", Exchange(pack("EXISTS", keys[0]), b"", accepts=lambda reply: reply[:1] == b":")
            )
        due.append(b">2\r\n" + bulk("invalidate") + b"*1\r\n" + bulk(keys[0]))
        changed = await helper.act(client.database, _write(keys[0], client.secret()), _write(keys[1], client.secret()))
        if not changed:  # it may still be, at any time
            client.leave("tracking, in doubt")
        await client.step("tracking", client.echo(), client.get_name())
        if due:
            raise client.wrong("an invalidation is missing", due[0], b"")
        due.clear()
    if chance.random() < 0.5:
        await client.step("tracked", Exchange(pack("CLIENT", "TRACKING", "OFF"), OK))
        await helper.act(client.database, _write(keys[0], client.secret()))
        await client.converse([client.echo()])
        client.hear = None
    else:
        # It goes on to read, and is told of each key of its own that it reads and writes.
        client.leave("tracking")


async def refused_pin(client: Client, helper: Helper) -> None:
    """What would keep a connection for good, and is refused: it goes back."""
    del helper
    refused = Exchange(pack("CLIENT", "TRACKING", "PERHAPS"), client.run.texts.syntax)
    await client.step("refused", refused, client.echo(), client.get_name())


async def client_info(client: Client, helper: Helper) -> None:
    """Whose connection is it? Its own, by name, user and database."""
    del helper

    def is_mine(reply: bytes) -> bool:
        facts = (f" name={client.name} ", f" db={client.database} ", f" user={client.user or 'default'} ")
        return all(fact.encode() in reply for fact in facts)

    client.keep_for_good()
    await client.step("kept", Exchange(pack("CLIENT", "INFO"), b"", accepts=is_mine), client.get_name(), client.echo())


async def monitor(client: Client, helper: Helper) -> None:
    """Hears everything that everybody says; leaves once it has heard what it waited for."""
    secret = client.secret()
    heard = False

    def hear(reply: bytes) -> bool:
        nonlocal heard
        if not reply.startswith(b"+") or b" [" not in reply:
            return False
        heard = heard or secret.encode() in reply
        return True

    client.keep_for_good()
    client.hear = hear
    await client.step("monitoring", Exchange(pack("MONITOR"), OK))
    mark = client.run.weather.mark
    done = await helper.act(client.database, Exchange(pack("ECHO", secret), bulk(secret)))
    until = trio.current_time() + PATIENCE
    while done and client.run.weather.was_fair_since(mark) and not heard:
        if not await client.receive(seconds=1) and trio.current_time() > until:
            raise client.wrong("MONITOR missed a command", secret.encode(), b"")
        client.checked()
    client.leave("monitoring")


def _write(key: str, value: str) -> Exchange:
    return Exchange(pack("SET", key, value), OK)
