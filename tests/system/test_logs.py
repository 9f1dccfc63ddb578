"""The log of a running coalesce: who it was, for people and for machines."""

from __future__ import annotations

import contextlib
import json
import os
import re
from typing import TYPE_CHECKING

import pytest

from .admin import ADMIN, metrics
from .processes import eventually, running_coalesce
from .versions import NEWEST
from .wire import Wire, pack

if TYPE_CHECKING:
    from .processes import Executable

GREEDY = pack("SET", "big", "v" * 10_000) + pack("GET", "big") * 200


@pytest.fixture(scope="session", params=[NEWEST], ids=str)
def executable(request: pytest.FixtureRequest) -> Executable:
    """The log is coalesce's, whichever server it is."""
    return request.param


def objects(coalesce) -> list[dict[str, str]]:
    return [json.loads(line) for line in coalesce.stderr.splitlines()]


def test_a_client_is_told_of_with_its_address_and_its_lane(upstream):
    """One over TCP, one over a unix socket; each is closed for what it leaves unread."""
    flags = ["--outbox-limit", "10000", "--log-format", "json", *ADMIN]
    with running_coalesce(upstream.url, *flags) as coalesce:
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(Wire(coalesce.address, receive_buffer=4096))
            assert client.ask("PING") == b"+PONG\r\n"
            other = stack.enter_context(Wire(coalesce.unix_path))
            address = f"127.0.0.1:{client.socket.getsockname()[1]}"
            for count, wire in enumerate((client, other), 1):
                wire.send_unless_closed(GREEDY * 10)
                eventually(lambda count=count: len(closed(coalesce)) == count)
            assert metrics(coalesce)["clients_closed_total outbox"] == 2
        said = closed(coalesce)
    assert [(each["client"], each["lane"], each["address"]) for each in said] == [
        ("c1", "u0", address), ("c2", "u0", f"unix, pid {os.getpid()}, uid {os.getuid()}")
    ]  # fmt: skip
    for each in said:
        assert re.fullmatch(
            rf"client {each['client']} \({each['address']}\) is closed: it left \d+ bytes of replies unread "
            r"\(--outbox-limit 10000\)",
            each["message"],
        )


def closed(coalesce) -> list[dict[str, str]]:
    return [each for each in objects(coalesce) if "unread" in each["message"]]


def events(coalesce, sign: str) -> list[dict[str, str]]:
    return [each for each in objects(coalesce) if sign in each["message"]]


def test_who_is_refused_again_and_again_does_not_fill_the_log(upstream):
    """Nor hide what others do. The flag is named."""
    with running_coalesce(upstream.url, "--max-clients", "1", "--log-format", "json") as coalesce:
        with coalesce.connect() as client:
            assert client.ask("PING") == b"+PONG\r\n"
            for _ in range(60):
                with coalesce.connect() as other:
                    assert other.rest().startswith(b"-ERR max number of clients")
        coalesce.stop()
        said = events(coalesce, "(--max-clients)")
    assert len(said) == 11
    assert re.fullmatch(r"a client \(127\.0\.0\.1:\d+\) is refused: there are 1 already .*", said[0]["message"])
    assert said[0]["address"] in said[0]["message"]
    assert re.match(r"50 more like this in the last \d+ seconds: a client", said[10]["message"])
    assert said[10]["more"] == 50


def test_other_limits_are_named_with_who_has_hit_them(upstream):
    flags = ["--max-leases", "1", "--max-lanes", "1", "--upstream-wait", "0.3", "--log-format", "json"]
    with running_coalesce(upstream.url, *flags) as coalesce:
        with coalesce.connect() as first, coalesce.connect() as second:
            assert first.ask("MULTI") == b"+OK\r\n"
            assert second.ask("SELECT", 3).startswith(b"-ERR coalesce: all 1 leases")
        leases, lanes = events(coalesce, "(--max-leases)"), events(coalesce, "(--max-lanes)")
    assert [each["client"] for each in leases + lanes] == ["c2", "c2"]
    assert "waits for a connection of its own: all 1 are taken" in leases[0]["message"]
    assert "takes a connection of its own: 1 users, databases" in lanes[0]["message"]


def test_an_upstream_that_is_lost_on_many_lanes_does_not_fill_the_log(fresh_upstream):
    with running_coalesce(fresh_upstream.url, "--log-format", "json", "--upstream-wait", "0.1") as coalesce:
        with contextlib.ExitStack() as stack:
            for database in range(16):
                client = stack.enter_context(coalesce.connect())
                assert client.ask("SELECT", database) == b"+OK\r\n"
            fresh_upstream.kill()
            eventually(lambda: len(events(coalesce, "can't connect")) > 0)
        coalesce.stop()
        said = events(coalesce, "connection lost: closed by the upstream")
    assert len(said) == 11
    assert len({each["lane"] for each in said[:10]}) == 10
    assert said[10]["more"] == 6
