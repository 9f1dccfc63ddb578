"""The table of commands against what each server says of its own: a row for all, and none that the server contradicts.

The servers' flags tell of some mistakes only, so what rides is tried, too: it has one reply, at once, and leaves its
connection as it was.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import hiredis
import pytest

from coalesce.core.commands import Need, need_of, row_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .processes import RedisServer

# What blocks in Redis 6.2, which has no flag for it.
BLOCKING_OF_6_2 = frozenset(
    ("BLMOVE", "BLPOP", "BRPOP", "BRPOPLPUSH", "BZPOPMAX", "BZPOPMIN", "WAIT", "XREAD", "XREADGROUP")
)

# Flagged `pubsub`, and answered like any other command.
NOT_SUBSCRIBING = {"PUBLISH", "SPUBLISH"}

# Allowed while a script keeps the server busy, to end or report it or to set up a connection. On a lane these wait like
# the rest: the first has nothing to do there, the others are about one connection and answered for another.
BUSY_AND_RIDE = {"UNWATCH", "CLIENT GETREDIR", "CLIENT SETINFO"}

# What `CLIENT INFO` tells of a connection that a command might have changed.
STATE = re.compile(rb" (?:name|db|flags|sub|psub|ssub|multi|watch|user|redir|resp|capa)=\S*")

# What to call a command with: a number, a name of something, and what switches things on and off.
WORDS = (b"1", b"ON", b"OFF", b"YES")


@dataclass(frozen=True)
class Told:
    """What a server says of one command; a subcommand's name is two words."""

    name: str
    arity: int
    flags: frozenset[str]

    @property
    def words(self) -> list[bytes]:
        return self.name.encode().split()

    @property
    def row(self) -> Need | None:
        """A container has no row of its own but for HELP, which each has in the table."""
        found = row_of(*self.words)
        return row_of(self.words[0], b"HELP") if found is None and len(self.words) == 1 else found

    @property
    def rides(self) -> bool:
        return row_of(*self.words) is Need.RIDE


@pytest.fixture(scope="module")
def told(module_upstream: RedisServer) -> list[Told]:
    reader = hiredis.Reader(encoding="utf-8")
    with module_upstream.connect() as wire:
        reader.feed(wire.ask("COMMAND"))
    commands = list(_flatten(reader.gets()))
    assert len(commands) > 200
    return commands


def _flatten(reply: list[list[object]]) -> Iterator[Told]:
    for name, arity, flags, *more in reply:
        assert isinstance(name, str)
        assert isinstance(arity, int)
        assert isinstance(flags, list)
        subcommands = more[6] if len(more) > 6 else []  # from 7.0 on
        assert isinstance(subcommands, list)
        yield Told(name.upper().replace("|", " "), arity, frozenset(flags))
        yield from _flatten(subcommands)


def test_every_command_has_a_row(told: list[Told]) -> None:
    assert [command.name for command in told if command.row is None] == []


def test_the_servers_since_7_0_name_their_subcommands(told: list[Told], module_upstream: RedisServer) -> None:
    """Otherwise the test above would pass for want of them."""
    named = {command.name for command in told}
    assert ({"CLIENT KILL", "SCRIPT DEBUG", "XINFO STREAM"} <= named) == (module_upstream.executable.version >= (7,))


def test_nothing_rides_that_blocks(told: list[Told], module_upstream: RedisServer) -> None:
    blocking = {command.name for command in told if "blocking" in command.flags}
    if module_upstream.executable.version < (7,):
        assert not blocking
        blocking |= BLOCKING_OF_6_2
    assert blocking >= {"BLPOP", "XREAD", "XREADGROUP"}
    needs = {name: need_of([name.encode(), b"BLOCK", b"0"]) for name in blocking}
    assert {name: need for name, need in needs.items() if need not in {Need.BORROW, Need.WAIT}} == {}


def test_what_subscribes_is_known_for_it(told: list[Told]) -> None:
    flagged = {command.name: command.row for command in told if "pubsub" in command.flags}
    subscribing = {name: row for name, row in flagged.items() if name.split()[0] not in NOT_SUBSCRIBING | {"PUBSUB"}}
    assert {"SUBSCRIBE", "PSUBSCRIBE"} <= subscribing.keys()
    assert {name: row for name, row in subscribing.items() if row is not Need.SUBSCRIBE} == {}


def test_nothing_rides_that_a_transaction_may_not_hold(told: list[Told]) -> None:
    """Such a command ends its connection, or takes it or the whole server for itself."""
    assert [command.name for command in told if "no_multi" in command.flags and command.rides] == []


def test_nothing_rides_that_must_get_past_a_script(told: list[Told]) -> None:
    riding = {command.name for command in told if "allow_busy" in command.flags and command.rides}
    assert riding <= BUSY_AND_RIDE


def test_what_rides_has_one_reply_and_leaves_its_connection_as_it_was(told: list[Told], upstream: RedisServer) -> None:
    ridden = set()
    with upstream.connect() as wire:
        before = STATE.findall(wire.ask("CLIENT", "INFO"))
        assert len(before) >= 6
        for command in told:
            least = abs(command.arity) - len(command.words)
            for word, count in itertools.product(WORDS, range(least, least + 3)):
                request = [*command.words, *[word] * count]
                if need_of(request) is Need.RIDE:
                    ridden.add(command.name)
                    wire.ask(*request)
                    assert STATE.findall(wire.ask("CLIENT", "INFO")) == before, request
    assert {"GET", "INFO", "EVAL", "COMMAND"} <= ridden
