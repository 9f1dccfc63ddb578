"""The log of a running coalesce: who it was, for people and for machines."""

from __future__ import annotations

import contextlib
import json
import os
import re

from .processes import eventually, running_coalesce
from .wire import Wire, pack

GREEDY = pack("SET", "big", "v" * 10_000) + pack("GET", "big") * 200


def objects(coalesce) -> list[dict[str, str]]:
    return [json.loads(line) for line in coalesce.stderr.splitlines()]


def test_a_client_is_told_of_with_its_address_and_its_lane(upstream):
    """One over TCP, one over a unix socket; each is closed for what it leaves unread."""
    flags = ["--outbox-limit", "10000", "--log-format", "json"]
    with running_coalesce(upstream.url, *flags) as coalesce:
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(Wire(coalesce.address, receive_buffer=4096))
            assert client.ask("PING") == b"+PONG\r\n"
            other = stack.enter_context(Wire(coalesce.unix_path))
            address = f"127.0.0.1:{client.socket.getsockname()[1]}"
            for count, wire in enumerate((client, other), 1):
                wire.send_unless_closed(GREEDY * 10)
                eventually(lambda count=count: len(closed(coalesce)) == count)
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
