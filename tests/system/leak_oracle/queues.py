"""What blocks: pops, moves, reads of streams, WAIT. An element reaches exactly one client, or is still in its list.

Redis hands an element to whoever waits; a client that leaves in that very instant takes it to the grave, through a
proxy or without. So what may be lost is told apart:

- private keys: pushed to only while their one client waits, or once the upstream is seen to know that it has left;
- the queue to move from: the destination is the client's own, so that the upstream itself tells who got what;
- the queue to pop from: no more may be lost than clients left while they waited (and `--direct` tells how many are).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tests.system.wire import bulk, pack, split_replies

from .run import MOVE, POP, TAKEN
from .speaker import PATIENCE, Closed, Exchange, shared_key

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .client import Client
    from .speaker import Helper

GLANCE = 0.5  # seconds after which one who waits looks whether a kill took what was pushed for him


def _is_count(reply: bytes) -> bool:
    return reply.startswith(b":") and reply[1:-2].isdigit()


async def private_pop(client: Client, helper: Helper) -> None:
    """Pops from a key of its own what the helper pushes, before or after."""
    chance = client.chance
    blocking, feeding = chance.choice((_list, _move, _sorted_set, _stream, _runs_out))(client)
    database = client.database
    fair = True

    async def feed() -> None:
        nonlocal fair
        fair = await helper.act(database, *feeding) and fair

    before = chance.random() < 0.3
    lost_at = client.run.weather.mark  # before it is fed: a fault may be over by the time that one hears of it
    if before:
        await feed()
    batch = [client.echo() for _ in range(chance.randrange(3))]
    batch += [blocking]
    batch += [client.echo() for _ in range(chance.randrange(3))]
    await _send_and_maybe_leave(client, batch, "blocked")
    await _wait(client, feed, lost_at if before else None)


def _list(client: Client) -> tuple[Exchange, list[Exchange]]:
    key, element = client.new_key("list"), client.secret()
    name = client.chance.choice(("BLPOP", "BRPOP"))
    others = [client.new_key("empty") for _ in range(client.chance.randrange(2))]
    blocking = Exchange(pack(name, *others, key, 0), b"*2\r\n" + bulk(key) + bulk(element))
    return blocking, [Exchange(pack("RPUSH", key, element), b"", accepts=_is_count)]


def _move(client: Client) -> tuple[Exchange, list[Exchange]]:
    key, element = client.new_key("list"), client.secret()
    blocking = Exchange(pack("BLMOVE", key, f"{key}:to", "LEFT", "RIGHT", 0), bulk(element))
    return blocking, [Exchange(pack("RPUSH", key, element), b"", accepts=_is_count)]


def _sorted_set(client: Client) -> tuple[Exchange, list[Exchange]]:
    key, member = client.new_key("zset"), client.secret()
    score = b",1\r\n" if client.resp3 else bulk("1")
    blocking = Exchange(pack("BZPOPMIN", key, 0), b"*3\r\n" + bulk(key) + bulk(member) + score)
    return blocking, [Exchange(pack("ZADD", key, 1, member), b"", accepts=_is_count)]


def _stream(client: Client) -> tuple[Exchange, list[Exchange]]:
    key, value = client.new_key("stream"), client.secret()
    entry = b"*1\r\n*2\r\n" + bulk("1-1") + b"*2\r\n" + bulk("f") + bulk(value)
    head = b"%1\r\n" if client.resp3 else b"*1\r\n*2\r\n"
    blocking = Exchange(pack("XREAD", "BLOCK", 0, "STREAMS", key, 0), head + bulk(key) + entry)
    # Added twice, after a kill in between, the second is refused: there is one already.
    return blocking, [Exchange(pack("XADD", key, "1-1", "f", value), b"", accepts=lambda reply: reply[:1] in b"$-")]


def _runs_out(client: Client) -> tuple[Exchange, list[Exchange]]:
    """Nobody pushes."""
    key = client.new_key("none")
    return Exchange(pack("BLPOP", key, 0.01), client.null_array), [client.echo()]


async def shared_pop(client: Client, helper: Helper) -> None:
    """Takes whatever is in a queue that many pop from. For each that pops, one element is pushed."""

    def popped(reply: bytes) -> bool:
        parts = reply.split(b"\r\n")
        return parts[:4:3] == [b"*2", b"$%d" % len(parts[4])] and parts[2] == key.encode() and _take(client, parts[4])

    key = shared_key(POP)
    await _share(client, helper, POP, Exchange(pack("BLPOP", key, 0), b"", accepts=popped))


async def shared_move(client: Client, helper: Helper) -> None:
    """The same, with a destination that tells for whom an element was moved."""

    def moved(reply: bytes) -> bool:
        parts = reply.split(b"\r\n")
        return parts[0] == b"$%d" % len(parts[1]) and _take(client, parts[1])

    request = pack("BLMOVE", shared_key(MOVE), f"{TAKEN}{client.number}", "LEFT", "RIGHT", 0)
    await _share(client, helper, MOVE, Exchange(request, b"", accepts=moved))


def _take(client: Client, element: bytes) -> bool:
    problem = client.run.ledger.take(element.decode("latin-1"), client.number)
    if problem is not None:
        raise client.wrong(problem, b"an element that nobody else got", element)
    return True


async def _share(client: Client, helper: Helper, queue: str, blocking: Exchange) -> None:
    run, database = client.run, client.database

    async def feed() -> None:
        element = helper.secret()
        run.ledger.offered.add(element)
        mark = run.weather.mark
        push = Exchange(pack("RPUSH", shared_key(queue), element), b"", accepts=_is_count)
        if await helper.act(database, push) and run.weather.was_fair_since(mark):
            run.ledger.pushed.add(element)

    async def leave_an_element() -> None:
        """The push of one who left: what was given to him may have been meant for another."""
        run.ledger.left_blocked[client.number] = queue
        while not run.over:
            mark = run.weather.mark
            await feed()
            if run.weather.was_fair_since(mark):
                return
            await trio.sleep(0.01)

    client.afterwards.append(leave_an_element)
    await _send_and_maybe_leave(client, [blocking], f"blocked at the shared {queue}")
    await _wait(client, feed, None)


async def _send_and_maybe_leave(client: Client, batch: list[Exchange], moment: str) -> None:
    client.begin(batch)
    await client.send(b"".join(exchange.request for exchange in batch))
    if client.chance.random() < 0.1:
        client.leave(moment)


async def _wait(client: Client, feed: Callable[[], Awaitable[None]], fed_at: int | None) -> None:
    """Hears the replies of a batch that blocks. What a kill took is pushed once more."""
    weather = client.run.weather
    until = trio.current_time() + PATIENCE
    while not client.checked():
        if fed_at is None or (fed_at != weather.mark and weather.fair):
            fed_at = weather.mark
            await feed()
        if not await client.receive(seconds=GLANCE) and trio.current_time() > until:
            raise client.wrong("no reply", client.batch[client.replies_checked].reply, b"")


async def left_waiting(client: Client, helper: Helper) -> None:
    """Leaves while it is known to wait; what is pushed once the upstream knows, is there to stay."""
    run, key, element, database = client.run, client.new_key("left"), client.secret(), client.database
    if not client.name:
        return
    mark = run.weather.mark
    client.begin([Exchange(pack("BLPOP", key, 0), b"*2\r\n" + bulk(key) + bulk(element))])
    await client.send(client.batch[0].request)
    if not await _seen(client, waits=True):  # but a fault need not have closed it
        await _wait(client, lambda: _ignore(helper.act(database, _push(key, element))), None)
        return

    async def push_when_it_is_gone() -> None:
        if not await _seen(client, waits=False):
            if run.weather.was_fair_since(mark):
                raise client.wrong(f"still waits in the upstream, {PATIENCE} s after it left", b"", b"")
            return
        await helper.act(
            database,
            Exchange(pack("RPUSH", key, element), b":1\r\n"),
            Exchange(pack("LPOP", key), bulk(element), (b"$-1\r\n",), mark),
        )

    client.afterwards.append(push_when_it_is_gone)
    client.leave("seen to be blocked")


def _push(key: str, element: str) -> Exchange:
    return Exchange(pack("RPUSH", key, element), b"", accepts=_is_count)


async def _ignore(act: Awaitable[bool]) -> None:
    await act


async def _seen(client: Client, *, waits: bool) -> bool:
    """Whether the upstream came to know that the client waits, or that it does not any more; False after a kill."""
    weather = client.run.weather
    mark = weather.mark
    until = trio.current_time() + PATIENCE
    while weather.was_fair_since(mark) and trio.current_time() < until:
        try:
            lines = await _client_list(client)
        except OSError:
            break
        name = f" name={client.name} ".encode()
        if any(name in line and b"b" in line.partition(b" flags=")[2].split()[0] for line in lines) == waits:
            return True
        await trio.sleep(0.01)
    return False


async def _client_list(client: Client) -> list[bytes]:
    """What the upstream itself says, asked on a connection past coalesce."""
    address = client.run.upstream
    with trio.socket.socket(trio.socket.AF_UNIX if isinstance(address, str) else trio.socket.AF_INET) as sock:
        await sock.connect(address)
        await sock.send(pack("CLIENT", "LIST"))
        received = b""
        while not split_replies(received)[0]:
            data = await sock.recv(1 << 20)
            if not data:
                raise ConnectionResetError
            received += data
    return [line for line in received.split(b"\n") if b" flags=" in line]


async def waited(client: Client, helper: Helper) -> None:
    """WAIT for no replica: answered at once, on a connection of its own."""
    del helper
    await client.step("after WAIT", client.echo(), Exchange(pack("WAIT", 0, 100), b":0\r\n"), client.echo())


__all__ = ["Closed", "left_waiting", "private_pop", "shared_move", "shared_pop", "waited"]
