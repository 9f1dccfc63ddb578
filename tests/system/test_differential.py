"""The same bytes to a server and, through coalesce, to another of the same version: the same bytes come back.

Nothing here says what Redis answers: the server said so a moment before. One exception, masked: the connection's id
in the reply to HELLO. A conversation goes on when the server itself is done with a chunk (see `Pair.settle`), so
it is also known when there is *no* reply, and whether the server closed the connection.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

import pytest

from . import conversations
from .differences import gets_all, share
from .processes import Coalesce, RedisServer, eventually, executables, running_coalesce, running_server
from .versions import with_newest
from .wire import Wire, bulk, pack, split_replies

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .conversations import Conversation
    from .processes import Executable

USERS = {
    "alice": "on >alice-pw ~alice:* &* +@all",
    "bob": "on >bob-pw ~bob:* &* +@all -@dangerous",
    "off": "off >off-pw ~* &* +@all",
}
CONNECTION_ID = re.compile(rb"(\$2\r\nid\r\n):\d+\r\n")
BUSY_CONNECTION = re.compile(rb" flags=\S*[bxPdt]")  # blocked, in a transaction, subscribed, watching, tracking
SMALL = 4096  # bytes that a client takes before it reads: so coalesce has to keep some of a large reply
# Answers all malformed requests as coalesce does.
IN_BYTES = max((found for found in executables() if gets_all(found)), key=lambda found: found.version)
LONG = 1500  # bytes; a longer conversation isn't sent byte by byte, it would only repeat itself


class Pair:
    """A server to talk to directly, its twin behind coalesce, and a client of coalesce who was there first."""

    def __init__(self, direct: RedisServer, behind: RedisServer, coalesce: Coalesce, password: str | None) -> None:
        self.direct, self.behind, self.coalesce, self.password = direct, behind, coalesce, password
        self.direct_control, self.behind_control = self._control(direct), self._control(behind)
        self.bystander = coalesce.connect()
        if password:
            assert self.bystander.ask("AUTH", password) == b"+OK\r\n"
        assert self.bystander.ask("SET", "bystander", "here") == b"+OK\r\n"
        self.bystander_lanes = {
            identifier for identifier, last_command in self.upstream_connections().items() if last_command == b"set"
        }
        assert self.bystander_lanes

    def close(self) -> None:
        for wire in (self.direct_control, self.behind_control, self.bystander):
            wire.close()

    def empty(self) -> None:
        """Both servers as they were at the start, as far as a conversation can tell."""
        for control in (self.direct_control, self.behind_control):
            # A client that has just left may still be there: and pop an element, or count as a subscriber.
            eventually(lambda control=control: not BUSY_CONNECTION.search(control.ask("CLIENT", "LIST")))
            control.send(pack("FLUSHALL") + pack("SCRIPT", "FLUSH"))
            assert control.replies(2) == [b"+OK\r\n"] * 2

    def upstream_connections(self) -> dict[bytes, bytes]:
        """Connection ids of coalesce at its upstream, each with the last command it carried."""
        own = self.behind_control.ask("CLIENT", "ID").strip(b":\r\n")
        told = self.behind_control.ask("CLIENT", "LIST")
        return {
            identifier: last_command
            for identifier, last_command in re.findall(rb"^(?:\$\d+\r\n)?id=(\d+) .* cmd=(\S+)", told, re.MULTILINE)
            if identifier != own
        }

    def settle(self, wire: Wire, sent: int) -> tuple[bytes, bool]:
        """All that the server answers to what `wire` wrote, and whether it closed, without waiting for time to pass.

        A server does one thing at a time and reads at most 16 KiB in one go: once it has answered another client's
        PING as often as that makes necessary, it has seen those bytes too. A big reply comes in turns of 64 KiB, so:
        until a PING brings nothing more.
        """
        for _ in range(2 + sent // 16_384):
            self.direct_control.ask("PING")
        received, closed = wire.look()
        while not closed:
            self.direct_control.ask("PING")
            more, closed = wire.look()
            if not more:
                break
            received += more
        return received, closed

    def compare(self, chunks: Conversation, receive_buffer: int | None = None) -> None:
        """Holds the conversation on both sides, as far as the server lets it go on."""
        with Wire(self.direct.address) as direct, Wire(self.coalesce.address, receive_buffer) as through:
            for number, chunk in enumerate(chunks):
                direct.send_unless_closed(chunk)
                received, closed = self.settle(direct, len(chunk))
                expected, incomplete = split_replies(received)
                assert incomplete == b""
                through.send_unless_closed(chunk)
                try:
                    self._hear(through, expected, closed)
                except (AssertionError, EOFError, TimeoutError, ConnectionResetError) as error:
                    error.add_note(f"chunk {number} of {len(chunks)}: {chunk[:1000]!r}")
                    raise
                if closed:
                    break

    def _hear(self, through: Wire, expected: list[bytes], closed: bool) -> None:
        """What comes through coalesce is what was expected, no more, and closed if the server has closed."""
        for number, expected_reply in enumerate(map(masked, expected)):
            try:
                reply = masked(through.reply())
            except (EOFError, TimeoutError, ConnectionResetError) as error:
                error.add_note(f"instead of reply {number}, {expected_reply[:200]!r}")
                raise
            if reply != expected_reply:  # said in few words: either may have megabytes
                raise AssertionError(f"reply {number}: expected {expected_reply[:200]!r}, got {reply[:200]!r}")
        if closed:
            assert through.rest() == b"", "more than the server said before it closed"
        else:
            # Nothing can be waited for here. By the time coalesce has served someone else, this would be there.
            assert self.bystander.ask("GET", "bystander") == self._bystanders_value()
            assert through.look() == (b"", False), "more than the server said, or closed though the server didn't"

    def bystander_is_well(self) -> None:
        """The client who was there first still works, on the very upstream connection that it had."""
        assert self.bystander.ask("SET", "bystander", "here") == b"+OK\r\n"
        assert self.bystander.ask("GET", "bystander") == bulk("here")
        assert self.bystander_lanes <= self.upstream_connections().keys()

    def _bystanders_value(self) -> bytes:
        return self.behind_control.ask("GET", "bystander")

    def _control(self, server: RedisServer) -> Wire:
        wire = server.connect()
        if self.password:
            assert wire.ask("AUTH", self.password) == b"+OK\r\n"
        return wire


def masked(reply: bytes) -> bytes:
    return CONNECTION_ID.sub(rb"\1:<id>\r\n", reply)


def byte_by_byte(chunks: Conversation, executable: Executable) -> Conversation:
    """Or seven by seven, with all servers but one: it is coalesce that reads the pieces, and no server."""
    data = b"".join(chunks)
    size = 1 if executable is IN_BYTES else 7
    return [data[start : start + size] for start in range(0, len(data), size)]


@contextlib.contextmanager
def running_pair(executable: Executable, password: str | None = None) -> Iterator[Pair]:
    arguments = [word for name, rules in USERS.items() for word in ("--user", name, *rules.split())]
    if password:
        arguments += ["--requirepass", password]
    with (
        running_server(executable, *arguments) as direct,
        running_server(executable, *arguments) as behind,
        running_coalesce(behind.url) as coalesce,
        contextlib.closing(Pair(direct, behind, coalesce, password)) as pair,
    ):
        yield pair


@pytest.fixture(scope="module")
def open_pair(executable: Executable) -> Iterator[Pair]:
    with running_pair(executable) as pair:
        yield pair


@pytest.fixture(scope="module")
def locked_pair(executable: Executable) -> Iterator[Pair]:
    """Both servers want a password."""
    with running_pair(executable, "sesame") as pair:
        yield pair


@pytest.fixture(autouse=True)
def what_is_known_to_differ(request: pytest.FixtureRequest, executable: Executable) -> None:
    """It has to: where it no longer does, README and this are out of date."""
    name = request.node.callspec.id.removeprefix(f"{executable}-")
    whole = "byte_by_byte" not in request.node.name
    if why := conversations.known_difference(name, executable, whole=whole):
        request.applymarker(pytest.mark.xfail(reason=why, raises=AssertionError, strict=True))


def table(*tables: dict[str, Conversation]) -> pytest.MarkDecorator:
    """One test for each conversation, named by it."""
    params = [pytest.param(chunks, id=name) for each_table in tables for name, chunks in each_table.items()]
    return pytest.mark.parametrize("chunks", params)


def short(*tables: dict[str, Conversation]) -> pytest.MarkDecorator:
    """One test for each conversation that isn't too long to be sent byte by byte, in RESP2 or its own protocol."""
    every = {name: chunks for each_table in tables for name, chunks in each_table.items()}
    return table({name: every[name] for name in every if "resp3 " not in name and sum(map(len, every[name])) <= LONG})


GOOD = (conversations.REPLY_TYPES, conversations.ERRORS, conversations.SHAPES, conversations.STATE)


@table(*GOOD, conversations.HELLOS)
def test_replies_are_the_same(open_pair, chunks):
    open_pair.empty()
    open_pair.compare(chunks)


@short(*GOOD, conversations.HELLOS)
def test_replies_are_the_same_byte_by_byte(open_pair, chunks):
    open_pair.empty()
    open_pair.compare(byte_by_byte(chunks, open_pair.direct.executable))


@table(conversations.AUTHS)
def test_auth_where_no_password_is_set(open_pair, chunks):
    open_pair.empty()
    open_pair.compare(chunks)


@table(conversations.AUTHS, {f"hello {name}": chunks for name, chunks in conversations.HELLOS.items()})
def test_auth_where_a_password_is_set(locked_pair, chunks):
    locked_pair.empty()
    locked_pair.compare(chunks)


@table(conversations.BAD_INPUT, dict(conversations.random_bytes()))
def test_bad_input_gets_the_same_and_harms_nobody(open_pair, chunks):
    open_pair.empty()
    open_pair.compare(chunks)
    open_pair.bystander_is_well()


@short(conversations.BAD_INPUT)
def test_bad_input_byte_by_byte(open_pair, chunks):
    open_pair.empty()
    open_pair.compare(byte_by_byte(chunks, open_pair.direct.executable))
    open_pair.bystander_is_well()


@table(conversations.BAD_INPUT_BEFORE_AUTH)
def test_bad_input_before_auth(locked_pair, chunks):
    locked_pair.empty()
    locked_pair.compare(chunks)
    locked_pair.bystander_is_well()


def compare_at_random(pair: Pair, seeds: range) -> None:
    """All kinds of requests in any order and few writes: who answers what and where must not change the order."""
    executable = pair.direct.executable
    for seed in seeds[: share(len(seeds), executable)]:
        pair.empty()
        for control in (pair.direct_control, pair.behind_control):
            assert control.ask("SET", "big", b"x" * 400_000) == b"+OK\r\n"
        try:
            pair.compare(conversations.random_conversation(seed, executable), SMALL if seed % 2 else None)
        except (AssertionError, EOFError, TimeoutError, ConnectionResetError) as error:
            error.add_note(f"random conversation {seed}")
            raise


@pytest.mark.parametrize("begin", range(0, 400, 100))
def test_random_conversations(open_pair, begin):
    compare_at_random(open_pair, range(begin, begin + 100))


@pytest.mark.parametrize("begin", range(1000, 1400, 100))
def test_random_conversations_where_a_password_is_set(locked_pair, begin):
    compare_at_random(locked_pair, range(begin, begin + 100))


@pytest.mark.parametrize("last", ["SUBSCRIBE a", "MULTI", "SELECT 1", "RESET", "QUIT"])
def test_a_reply_behind_a_big_one_and_a_name_is_not_lost(open_pair, last):
    """More than the socket takes at once, a reply that coalesce changes, one more; then the client moves or leaves."""
    open_pair.empty()
    for control in (open_pair.direct_control, open_pair.behind_control):
        assert control.ask("SET", "big", b"x" * 300_000) == b"+OK\r\n"
    conversation = b"".join(map(conversations.words, ("GET big", "CLIENT GETNAME", "ECHO x", last)))
    for _ in range(20):
        open_pair.compare([conversation], SMALL)


def test_split_in_two_at_every_byte(open_pair):
    """One request in two pieces, for each place to cut it, behind a whole one and before another."""
    request = pack("SET", "key", "a\r\nb") + pack("GET", "key") + b'ECHO "x y"\r\n'
    open_pair.empty()
    with open_pair.coalesce.connect() as wire:
        for cut in range(1, len(request)):
            wire.send(pack("PING") + request[:cut])
            assert wire.reply() == b"+PONG\r\n"
            assert open_pair.bystander.ask("PING") == b"+PONG\r\n"  # so that the first piece is read alone
            wire.send(request[cut:] + pack("PING"))
            assert wire.replies(4) == [b"+OK\r\n", bulk("a\r\nb"), bulk("x y"), b"+PONG\r\n"]


@pytest.mark.parametrize("hello", [2, 3], ids=["resp2", "resp3"])
@pytest.mark.parametrize("begun", ["MULTI, SET k v", "MULTI, SET k v, NOSUCH", "WATCH k, MULTI, SET k v", "WATCH k",
                                   "MULTI, SUBSCRIBE a, BLPOP l 0"])  # fmt: skip
@pytest.mark.parametrize("in_one_write", [False, True])
def test_who_leaves_in_a_transaction_has_begun_nothing(open_pair, hello, begun, in_one_write):
    """Neither is it run, nor is somebody else in it, who comes next."""
    open_pair.empty()
    requests = [pack("HELLO", hello), *map(conversations.words, begun.split(", "))]
    for address in (open_pair.direct.address, open_pair.coalesce.address):
        with Wire(address) as wire:
            for request in [b"".join(requests)] if in_one_write else requests:
                wire.send(request)
                if not in_one_write:
                    wire.reply()
    for control in (open_pair.direct_control, open_pair.behind_control):
        eventually(lambda control=control: not BUSY_CONNECTION.search(control.ask("CLIENT", "LIST")))
    next_one = ["EXEC", "GET k", "DISCARD", "WATCH k", "SET k w", "MULTI", "GET k", "EXEC", "PUBLISH a x", "GET k"]
    open_pair.compare([pack("HELLO", hello), *map(conversations.words, next_one)])
    open_pair.bystander_is_well()


@with_newest
def test_a_value_of_100_megabytes(open_pair):
    """Of one version: how a large value is carried is told by its length, and all write that alike."""
    open_pair.empty()
    value = bytes(range(256)) * (100 * 1024 * 1024 // 256)
    with open_pair.coalesce.connect() as wire:
        assert wire.ask("SET", "big", value) == b"+OK\r\n"
        assert open_pair.bystander.ask("PING") == b"+PONG\r\n"
        assert wire.ask("GET", "big") == bulk(value)
        assert wire.ask("DEL", "big") == b":1\r\n"
    open_pair.bystander_is_well()
