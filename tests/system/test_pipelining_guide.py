"""The examples of the Redis pipelining guide (redis.io, "Redis pipelining"), and that batches really form."""

from __future__ import annotations

import contextlib
import hashlib
import re
from typing import TYPE_CHECKING

import trio

from .processes import closing_line, running_coalesce
from .versions import with_oldest_and_newest
from .wire import Wire, bulk, pack

if TYPE_CHECKING:
    from .processes import Coalesce, RedisServer

PONG = b"+PONG\r\n"


def connect_many(coalesce: Coalesce, count: int, stack: contextlib.ExitStack) -> list[Wire]:
    return [stack.enter_context(coalesce.connect()) for _ in range(count)]


def connections(upstream: RedisServer) -> int:
    """How many clients the upstream sees, without the one that asks."""
    with upstream.connect() as control:
        told = control.ask("INFO", "clients")
    found = re.search(rb"connected_clients:(\d+)", told)
    assert found, told
    return int(found[1]) - 1


def test_three_inline_pings_in_one_write_get_three_pongs(coalesce):
    # The guide's: (printf "PING\r\nPING\r\nPING\r\n"; sleep 1) | nc localhost 6379
    with coalesce.connect() as wire:
        wire.send(b"PING\r\nPING\r\nPING\r\n")
        assert wire.replies(3) == [PONG] * 3


def test_four_incrs_from_four_clients_get_one_to_four(coalesce):
    with contextlib.ExitStack() as stack:
        clients = connect_many(coalesce, 4, stack)
        for client in clients:
            client.send(pack("INCR", "X"))
        assert sorted(client.reply() for client in clients) == [b":1\r\n", b":2\r\n", b":3\r\n", b":4\r\n"]


def test_four_incrs_from_one_pipeline_get_one_to_four_in_order(coalesce):
    with coalesce.connect() as wire:
        wire.send(pack("INCR", "X") * 4)
        assert wire.replies(4) == [b":1\r\n", b":2\r\n", b":3\r\n", b":4\r\n"]


def test_ten_thousand_pings_from_clients_that_do_not_pipeline(coalesce):
    with contextlib.ExitStack() as stack:
        clients = connect_many(coalesce, 50, stack)
        for _ in range(200):
            for client in clients:
                client.send(pack("PING"))
            assert [client.reply() for client in clients] == [PONG] * 50


def test_ten_thousand_pings_from_one_client_that_pipelines(coalesce):
    with coalesce.connect() as wire:
        wire.send(pack("PING") * 10_000)
        assert wire.replies(10_000) == [PONG] * 10_000


def test_ten_thousand_pipelined_replies_keep_their_order(coalesce):
    with Wire(coalesce.unix_path) as wire:
        wire.send(b"".join(pack("ECHO", number) for number in range(10_000)))
        assert wire.replies(10_000) == [bulk(str(number)) for number in range(10_000)]


def test_evalsha_after_script_load_inside_a_pipeline(coalesce):
    script = "return redis.call('INCRBY', KEYS[1], ARGV[1])"
    digest = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
    with coalesce.connect() as wire:
        calls = [pack("EVALSHA", digest, 1, "n", amount) for amount in (5, 2)]
        wire.send(pack("SCRIPT", "LOAD", script) + b"".join(calls))
        assert wire.replies(3) == [bulk(digest), b":5\r\n", b":7\r\n"]


def test_a_pipeline_goes_on_after_an_error_in_its_middle(coalesce):
    with coalesce.connect() as wire:
        wire.send(pack("SET", "k", "v") + pack("LPUSH", "k", "x") + pack("GET", "k"))
        ok, error, value = wire.replies(3)
        assert (ok, value) == (b"+OK\r\n", bulk("v"))
        assert error.startswith(b"-WRONGTYPE ")


async def get_many_times(coalesce: Coalesce, times: int, done: trio.MemorySendChannel[None], leave: trio.Event) -> None:
    """A client that waits for each reply, and stays connected until everyone has been counted."""
    request, expected = pack("GET", "k"), bulk("value")
    async with await trio.open_tcp_stream(*coalesce.address) as stream:
        for _ in range(times):
            await stream.send_all(request)
            received = b""
            while len(received) < len(expected):
                data = await stream.receive_some()
                assert data, "closed"
                received += data
            assert received == expected
        await done.send(None)
        await leave.wait()


@with_oldest_and_newest
async def test_commands_of_200_clients_travel_in_batches_on_few_connections(fresh_upstream):
    """It is coalesce that makes the batches, whichever server gets them."""
    with running_coalesce(fresh_upstream.url) as coalesce:
        with coalesce.connect() as wire:
            assert wire.ask("SET", "k", "value") == b"+OK\r\n"
        leave = trio.Event()
        done, finished = trio.open_memory_channel[None](200)
        with trio.fail_after(40):
            async with trio.open_nursery() as nursery:
                for _ in range(200):
                    nursery.start_soon(get_many_times, coalesce, 100, done, leave)
                for _ in range(200):
                    await finished.receive()
                seen = connections(fresh_upstream)
                leave.set()
        code, stderr = coalesce.stop()
    assert code == 0, stderr
    line = closing_line(stderr)
    assert seen < 20, f"{seen} upstream connections for 200 clients"
    assert line.commands >= 20_001
    assert line.mean > 2
    assert line.largest >= line.mean
    assert line.connections >= 201


def test_a_lone_command_leaves_at_once(fresh_upstream):
    """Nothing is held back to wait for company: a client alone travels in batches of one command."""
    with running_coalesce(fresh_upstream.url) as coalesce:
        with coalesce.connect() as wire:
            for _ in range(1000):
                assert wire.ask("PING") == PONG
        _, stderr = coalesce.stop()
    line = closing_line(stderr)
    assert line.commands >= 1000
    assert line.mean < 1.1
