"""Clients that are slow, greedy or hostile harm themselves alone.

In every test a neighbour works meanwhile: it gets its own replies, in its usual time; coalesce takes no more memory
than its limits allow, and gives it back; no shared connection is closed. See `hostile.py`.

What a client can make coalesce keep
------------------------------------
===========================  ==========================================================================================
replies it does not read     outbox-limit, and the reply that goes over it; from half of that on it is not read from
requests not yet whole       what it has sent of one, up to `proto-max-bulk-len`; what it has declared counts nothing
requests not yet sent        client-limit, and what one read brings on top (`_CHUNK`)
... of all clients           lane-limit of them, or UNSENT_LIMIT bytes on all lanes, before nobody is read
behind what may block        HELD_LIMIT, and one read
large requests               LARGE and more, until they are answered
... of all, and all outboxes clients-memory, and what one round brings (one read each)
being there                  a client, a session, a socket: some KB
===========================  ==========================================================================================

A reply stands in memory as part of the chunk that was read (64 KB), and of the piece that is kept. A request stands
there up to three times for a moment: as it came, cut, and packed.
"""

from __future__ import annotations

import contextlib
import re
import resource
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .admin import ADMIN, metrics
from .certificates import Authority
from .hostile import KB, MB, STORMS, Neighbour, Storm, Watch, attacked, lanes, pour
from .processes import Coalesce, closing_line, eventually, executables, running_coalesce, running_server
from .wire import TlsWire, Wire, bulk, pack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .processes import RedisServer

PONG = b"+PONG\r\n"
# The resident memory of a client that does nothing: measured 0.8 KB, and its first requests take a reader and lists.
CLIENT = 4 * KB
CHUNK = 16 * KB
LARGE_CHUNK = 256 * KB
REPLIES_CHUNK = 64 * KB
CLIENT_LIMIT = 1024
# The heap's own: what it takes from the system at a time, and what is between objects that live.
HEAP = 8 * MB
# A request of a few bytes, as objects: its bytes, and places in lists.
REQUEST = 200


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """The newest that reads malformed requests as all Redis before it did, and answers a failed AUTH in a pipeline."""
    newest = max((it for it in executables() if it.version < (7, 2)), key=lambda it: it.version)
    with running_server(newest) as running:
        yield running


@pytest.fixture(scope="module")
def calm(server: RedisServer) -> Iterator[Coalesce]:
    """A coalesce that nobody attacks, for comparison."""
    with running_coalesce(server.url) as running:
        yield running


@pytest.fixture(autouse=True)
def emptied(server: RedisServer) -> None:
    with server.connect() as control:
        assert control.ask("FLUSHALL") == b"+OK\r\n"


@contextlib.contextmanager
def clients(watch: Watch, count: int, receive_buffer: int | None = None) -> Iterator[list[Wire]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Wire(watch.coalesce.address, receive_buffer)) for _ in range(count)]


def fill(server: RedisServer, key: str, size: int) -> None:
    with server.connect() as control:
        assert control.ask("SET", key, b"x" * size) == b"+OK\r\n"


# Those who do not read


def test_many_who_never_read_small_replies(server, calm):
    """They ask on and on, until nobody takes their requests any more."""
    deaf, limit = 8, 2 * MB
    fill(server, "small", 100)
    backlog = CLIENT_LIMIT * (REQUEST + 100) + CHUNK
    with (
        attacked(server, calm, HEAP + deaf * (limit + backlog), "--outbox-limit", str(limit)) as watch,
        clients(watch, deaf, receive_buffer=4 * KB) as those,
    ):
        requests = pack("GET", "small") * 20_000
        while sum(pour(wire, requests) for wire in those):
            watch.look()
        watch.look_closely()


def test_many_who_never_read_large_replies(server, calm):
    """Each asks for 5 MB ten times: what is on its way when its outbox is full is one reply more."""
    deaf, limit, size = 8, 4 * MB, 5 * MB
    fill(server, "large", size)
    with (
        attacked(server, calm, HEAP + deaf * (limit + size + REPLIES_CHUNK), "--outbox-limit", str(limit)) as watch,
        clients(watch, deaf, receive_buffer=4 * KB) as those,
    ):
        for wire in those:
            wire.send(pack("GET", "large") * 10)
        eventually(lambda: watch.look() and watch.coalesce.stderr.count("replies unread") == deaf)
        watch.look_closely()


def test_a_subscriber_that_does_not_read(server, calm):
    limit, size = 4 * MB, 100 * KB
    with (
        attacked(server, calm, HEAP + limit + size + REPLIES_CHUNK, "--outbox-limit", str(limit)) as watch,
        clients(watch, 1, receive_buffer=4 * KB) as (deaf,),
        server.connect() as publisher,
    ):
        assert deaf.ask("SUBSCRIBE", "news").endswith(b":1\r\n")
        listens = True
        while listens:
            listens = publisher.ask("PUBLISH", "news", b"x" * size) == b":1\r\n"
            watch.look()
        eventually(lambda: "replies unread" in watch.coalesce.stderr)


# Those who say little


def test_a_byte_at_a_time(server, calm):
    """Forty clients give one byte each, whenever the neighbour has had a window."""
    request = pack("SET", "slow", "v")
    with attacked(server, calm, HEAP + 40 * CLIENT) as watch, clients(watch, 40) as those:
        for byte in request:
            for wire in those:
                wire.send(bytes((byte,)))
            watch.look()
        for wire in those:
            assert wire.reply() == b"+OK\r\n"


def test_ten_thousand_who_say_nothing(server, calm):
    """Or as many as there are descriptors for. The last of them is served like the first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    most = hard if hard != resource.RLIM_INFINITY else 20_000
    count = min(10_000 - 1, most - 2_000)
    try:
        with attacked(server, calm, HEAP + count * CLIENT) as watch, contextlib.ExitStack() as stack:
            idle = [stack.enter_context(socket.create_connection(watch.coalesce.address)) for _ in range(count)]
            watch.look_closely()
            for sock in (idle[0], idle[-1]):
                sock.sendall(pack("PING"))
                assert sock.recv(100) == PONG
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_thousands_of_half_sent_requests(server, calm):
    """Each holds what it has sent, and is answered once it sends the rest."""
    count, half = 2000, 1000
    request = pack("SET", "k", b"x" * 2 * half)
    with attacked(server, calm, HEAP + count * (CLIENT + 3 * half)) as watch, clients(watch, count) as those:
        for wire in those:
            wire.send(request[:half])
        watch.look_closely()
        for wire in those[::10]:
            wire.send(request[half:])
        for wire in those[::10]:
            assert wire.reply() == b"+OK\r\n"


def test_what_is_declared_takes_no_room(server, calm):
    """512 MB declared and never sent, by 2,000 clients."""
    count = 2000
    with attacked(server, calm, HEAP + count * (CLIENT + LARGE_CHUNK // 128)) as watch, clients(watch, count) as those:
        for wire in those:
            wire.send(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$536870912\r\n" + b"x" * 100)
        watch.look_closely()


@pytest.mark.parametrize(
    "beginning",
    [b"*1000000000\r\n", b"*1000000\r\n$4\r\nMGET\r\n", b"*2\r\n*1000000000\r\n", b"*2147483647\r\n"],
    ids=["a billion arguments", "a million", "nested", "the most that there are"],
)
def test_a_count_takes_no_room(server, calm, beginning):
    """Of arguments that never come. Where Redis refuses it, the client gets the same words."""
    count = 200
    with (
        attacked(server, calm, HEAP + count * (CLIENT + 2 * REPLIES_CHUNK), "--max-leases", str(count)) as watch,
        clients(watch, count) as those,
    ):
        for wire in those:
            wire.send(beginning)
        watch.look_closely()
        with server.connect() as direct:
            direct.send(beginning)
            said, closed = eventually(direct.look) if b"*2\r\n*" in beginning else direct.look()
            if closed or said:
                assert those[0].rest() == said


def test_a_line_without_an_end(server, calm):
    """Inline, or as a length: at 64 KB Redis says that it is too long, and closes."""
    count, sent = 50, 100 * KB
    for beginning in (b"", b"*", b"*1\r\n$"):
        with attacked(server, calm, HEAP + count * (CLIENT + 2 * sent)) as watch, clients(watch, count) as those:
            for wire in those:
                wire.send(beginning + b"1" * 60 * KB)
            watch.look_closely()
            for wire in those:
                wire.send_unless_closed(b"1" * (sent - 60 * KB))
            with server.connect() as direct:
                direct.send_unless_closed(beginning + b"1" * sent)
                expected = direct.rest()
            assert b"too big" in expected
            for wire in those:
                assert wire.rest() == expected


# Those who say much


def test_a_pipeline_of_a_million_that_is_read(server, calm):
    count, batch = 1_000_000, 20_000
    with (
        attacked(server, calm, HEAP + 2 * CLIENT_LIMIT * REQUEST + 4 * LARGE_CHUNK) as watch,
        clients(watch, 1) as (wire,),
    ):
        requests, answered = pack("PING") * batch, 0
        for _ in range(count // batch):
            wire.send(requests)
            while answered % (batch * len(PONG)) or not answered:
                answered += len(wire.socket.recv(1 << 20))
            answered -= batch * len(PONG)
            watch.look()


def test_a_pipeline_of_a_million_that_is_not_read(server, calm):
    """It comes to a halt when its outbox is half full, and gets all of its replies once it reads."""
    count, limit = 1_000_000, MB
    backlog = CLIENT_LIMIT * REQUEST + CHUNK * 40  # a chunk of PINGs is a thousand requests
    with (
        attacked(server, calm, HEAP + limit + backlog, "--outbox-limit", str(limit)) as watch,
        clients(watch, 1, receive_buffer=4 * KB) as (wire,),
    ):
        requests = memoryview(pack("PING") * count)
        sent = 0
        while more := pour(wire, requests[sent:]):
            sent += more
            watch.look()
        assert sent < len(requests)
        watch.look_closely()
        answered, whole = 0, sent // len(pack("PING"))
        while answered < whole * len(PONG):
            answered += len(wire.socket.recv(1 << 20))


def test_large_values_among_small_ones(server, calm):
    """They go by a connection of their own, and who moves both gets both in order."""
    size, count = 300 * KB, 6
    with (
        attacked(server, calm, HEAP + count * 8 * size) as watch,
        clients(watch, count) as those,
        server.connect() as control,
    ):
        for turn in range(5):
            for number, wire in enumerate(those):
                value = bytes((65 + number + turn,)) * size
                wire.send(
                    pack("ECHO", turn) + pack("SET", number, value) + pack("GET", number) + pack("ECHO", number) * 20
                )
            for number, wire in enumerate(those):
                value = bytes((65 + number + turn,)) * size
                assert wire.replies(3) == [bulk(str(turn)), b"+OK\r\n", bulk(value)]
                assert wire.replies(20) == [bulk(str(number))] * 20
            watch.look()
        assert len(lanes(control)) == 3  # calm's, ours, and that for what is large


@pytest.mark.parametrize("kind", STORMS)
def test_a_storm(server, calm, kind):
    with attacked(server, calm, HEAP + 4096 * CLIENT) as watch:  # as many may wait to be accepted
        with Storm(watch.coalesce.address, kind) as storm:
            watch.look_closely()
        assert storm.count > 20


# All of them together


def closed_for_memory(coalesce: Coalesce) -> list[tuple[int, int]]:
    """Number and bytes of each client that was closed for holding most; of those summed up, the last one's."""
    found = re.findall(
        r"(?:(\d+) more like this in the last \d+ seconds: )?"
        r"client c(\d+) \(.*?\)(?:, pinned to u\d+)? is closed: it held (\d+) bytes",
        coalesce.stderr,
    )
    return [(int(number), int(held)) for more, number, held in found for _ in range(int(more or 1))]


def memory_left() -> int:
    """Bytes that this machine has for others."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    assert found
    return int(found[1]) * KB


# An outbox is made of pieces of 64 KB, which the C library takes from its heap. It is filled again: the second wave
# takes no more than the first.
WAVES = 2


def test_many_outboxes(server, calm):
    """None of them is full. The neighbour, who works, is not in the way; nor is who holds a little."""
    limit, size, count = 32 * MB, MB, 60
    fill(server, "large", size)
    bound = HEAP + limit + count * REPLIES_CHUNK + 65 * CLIENT
    with attacked(server, calm, bound, "--clients-memory", str(limit), *ADMIN) as watch:

        def closed() -> float:
            """Of the log, which sums them up every ten seconds, it would be waited for."""
            return metrics(watch.coalesce)["clients_closed_total memory"]

        for _ in range(WAVES):
            before = closed()
            with clients(watch, count, receive_buffer=4 * KB) as those:
                modest, *greedy = those
                modest.send(pack("GET", "large") * 2)
                for wire in greedy:
                    wire.send(pack("GET", "large") * 8)
                    watch.look()
                # Of 8 MB each holds more than 2, whatever the kernels take.
                least = count - limit // (2 * size)
                eventually(lambda: watch.look() and closed() >= before + least)  # noqa: B023
                watch.look_closely()
                assert modest.replies(2) == [bulk("x" * size)] * 2
        assert min(held for _, held in closed_for_memory(watch.coalesce)) > 2 * size
        assert "replies unread" not in watch.coalesce.stderr


def test_many_pins_with_outboxes(server, calm):
    """What a client was owed goes along when it gets a connection for itself, and counts as before."""
    limit, size, count = 32 * MB, MB, 40
    fill(server, "large", size)
    bound = HEAP + limit + 8 * size + count * (CLIENT + 2 * REPLIES_CHUNK)  # (what goes along is joined)
    with attacked(server, calm, bound, "--clients-memory", str(limit)) as watch:
        for wave in range(WAVES):
            with clients(watch, count, receive_buffer=4 * KB) as those:
                for wire in those:
                    wire.send(pack("GET", "large") * 4 + pack("MONITOR"))
                    watch.look()
                eventually(
                    lambda: watch.look() and re.search("pinned to u[0-9]+ is closed: it held", watch.coalesce.stderr)
                )
                if wave:
                    watch.look_closely()


@pytest.mark.parametrize("values", [1, 4], ids=["one value", "several"])
def test_many_large_requests_that_never_end(server, calm, values):
    """Each declares 64 MB, and sends 3 MB of it. Those who hold most go, and what is left is within the bound."""
    limit, count, sent = 32 * MB, 40, 3 * MB
    bound = HEAP + limit + count * (CLIENT + LARGE_CHUNK)
    with (
        attacked(server, calm, bound, "--clients-memory", str(limit)) as watch,
        clients(watch, count) as those,
    ):
        modest, *greedy = those
        request = pack("SET", "modest", "y" * MB)
        modest.send(request[:-100])
        for wire in greedy:
            whole = b"$%d\r\n%b\r\n" % (sent // values, b"x" * (sent // values))
            data = b"*9\r\n$4\r\nMSET\r\n" + whole * (values - 1) + b"$67108864\r\n" + b"x" * (sent // values)
            wire.send_unless_closed(data)
            watch.look()
        eventually(lambda: watch.look() and closed_for_memory(watch.coalesce))
        watch.look_closely()
        assert min(held for _, held in closed_for_memory(watch.coalesce)) > 2 * MB
        modest.send(request[-100:])
        assert modest.reply() == b"+OK\r\n"


def test_large_requests_of_those_who_leave(server, calm):
    """While the upstream stands still. What they leave behind is theirs, and nobody else pays for it."""
    limit, count, size = 32 * MB, 60, 2 * MB
    bound = HEAP + limit + 10 * size
    with (
        attacked(server, calm, bound, "--clients-memory", str(limit)) as watch,
        clients(watch, 2) as (early, late),
        server.connect() as control,
        server.connect() as stopper,
    ):
        for wire in (early, late):
            assert wire.ask("SET", "k", b"x" * MB) == b"+OK\r\n"
        stopper.send(pack("DEBUG", "SLEEP", "3"))
        early.send(pack("SET", "early", b"x" * MB))
        for number in range(count):
            with watch.coalesce.connect() as wire:
                wire.send(pack("SET", f"left {number}", b"x" * size))
        late.send(pack("SET", "late", b"x" * MB))
        assert stopper.reply() == b"+OK\r\n"
        assert [wire.reply() for wire in (early, late)] == [b"+OK\r\n"] * 2
        watch.look()
        kept = sum(control.ask("EXISTS", f"left {number}") == b":1\r\n" for number in range(count))
        assert kept < limit // size + 10
        # (They are still there, as far as can be seen, until they have been answered.)
        assert all(number > 3 for number, _ in closed_for_memory(watch.coalesce))


def test_the_one_that_holds_most_is_closed(server):
    """Of two whose requests are not whole, and one that does not read."""
    fill(server, "large", 5 * MB)
    with (
        running_coalesce(server.url, "--clients-memory", str(12 * MB), *ADMIN) as coalesce,
        coalesce.connect() as small,
        Wire(coalesce.address, 4 * KB) as deaf,
        coalesce.connect() as most,
        coalesce.connect() as last,
    ):
        for wire in (small, deaf, most, last):
            assert wire.ask("PING") == PONG
        deaf.send(pack("GET", "large"))
        small.send(pack("SET", "small", b"x" * 2 * MB)[:-1])
        most.send(pack("SET", "most", b"x" * 7 * MB)[:-1])
        request = pack("SET", "last", b"x" * 4 * MB)
        last.send(request[:-1])
        assert most.rest() == b""
        last.send(request[-1:])
        assert last.reply() == b"+OK\r\n"
        small.send(b"\n")
        assert small.reply() == b"+OK\r\n"
        assert deaf.reply() == bulk("x" * 5 * MB)
        ((number, held),) = closed_for_memory(coalesce)
        assert number == 3
        assert 3 * MB < held <= 8 * MB
        assert metrics(coalesce)["clients_closed_total memory"] == 1


def test_the_largest_value_there_is(server, calm):
    """512 MB, as by Redis's own limit, there and back, with the limits as they are. In memory it stands twice."""
    size = 512 * MB
    if memory_left() < 5 * size:
        pytest.skip("there is not enough memory")
    bound = HEAP + 2 * size + 64 * MB
    with attacked(server, calm, bound) as watch, watch.coalesce.connect() as wire:
        wire.socket.settimeout(60)
        value = b"x" * size
        wire.send(b"*3\r\n$3\r\nSET\r\n$7\r\nlargest\r\n$%d\r\n" % size)
        wire.send(value)
        wire.send(b"\r\n")
        assert wire.reply() == b"+OK\r\n"
        wire.send(pack("GET", "largest"))
        received = bytearray()
        while len(received) < size + len(b"$536870912\r\n\r\n"):
            received += wire.socket.recv(1 << 20)
        assert received.startswith(b"$536870912\r\nxxx")
        assert received.endswith(b"xxx\r\n")
        assert received.count(b"x") == size
        assert not closed_for_memory(watch.coalesce)


# Requests that are read in two ways

SMUGGLED = {
    "a bulk string alone": b"$5\r\nabcde\r\n",
    "an integer for a command": b":1\r\n",
    "an integer in the array": b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n:5\r\n",
    "an integer in front": b"*2\r\n:4\r\n$1\r\nk\r\n",
    "a simple string in the array": b"*2\r\n+GET\r\n$1\r\nk\r\n",
    "a nested array": b"*2\r\n$3\r\nGET\r\n*1\r\n$1\r\nk\r\n",
    "a null in the array": b"*2\r\n$3\r\nGET\r\n$-1\r\n",
    "a null array": b"*-1\r\n" + pack("PING"),
    "an empty array": b"*0\r\n" + pack("PING"),
    "a map": b"%1\r\n$3\r\nGET\r\n$1\r\nk\r\n",
    "a request in a value": pack("SET", "k", "x\r\n" + pack("GET", "secret").decode()),
    "a value shorter than told": b"*2\r\n$4\r\nECHO\r\n$3\r\nabcdef\r\n",
    "a value longer than told": b"*2\r\n$4\r\nECHO\r\n$9\r\nabc\r\n" + pack("PING") * 2,
    "wrong ends behind values": b"*2\r\n$4\r\nECHOxx$3\r\nabc\n\r" + pack("PING"),
    "line feeds alone": b"*2\n$4\nECHO\n$3\nabc\n",
    "carriage returns and something": b"*2\rx$4\rxECHO\r\n$3\rxabc\r\n" + pack("PING"),
    "a plus in the count": b"*+1\r\n$4\r\nPING\r\n",
    "a zero in the count": b"*01\r\n$4\r\nPING\r\n",
    "a space in the length": b"*1\r\n$ 4\r\nPING\r\n",
    "a count that wraps": b"*4294967297\r\n$4\r\nPING\r\n",
    "a length that wraps": b"*1\r\n$18446744073709551620\r\nPING\r\n",
    "a NUL in the header": b"*1\0\r\n$4\r\nPING\r\n",
    "inline": b'SET k "a b"\r\nGET k\nPING\r\n',
    "inline, quotes open": b'SET k "a b\r\nPING\r\n',
    "inline behind an array": pack("PING") + b"PING\r\n" + pack("ECHO", "x"),
    "an HTTP request": b"POST / HTTP/1.1\r\nHost: x\r\n\r\n",
    "Host: alone": b"Host: x\r\n" + pack("PING"),
    "POST as an array": pack("POST", "/") + pack("PING"),
}


@pytest.fixture(scope="module")
def smuggled(server: RedisServer, calm: Coalesce) -> Iterator[tuple[Watch, list[Wire]]]:
    with attacked(server, calm, HEAP) as watch:
        with clients(watch, 10) as neighbours:
            yield watch, neighbours
        watch.look_closely()


@pytest.mark.parametrize("in_pieces", [False, True], ids=["whole", "in pieces"])
@pytest.mark.parametrize("name", SMUGGLED)
def test_smuggling(server, smuggled, name, in_pieces):
    """Said directly and through coalesce: the same comes back, and neighbours in the same batch get their own."""
    watch, neighbours = smuggled
    data = SMUGGLED[name]
    pieces = [data[at : at + 1] for at in range(len(data))] if in_pieces else [data]
    found = []
    for address in (server.address, watch.coalesce.address):
        with server.connect() as control, Wire(address) as wire:
            assert control.ask("SET", "k", "v") == b"+OK\r\n"
            for number, piece in enumerate(pieces):
                for who, neighbour in enumerate(neighbours[: 1 if in_pieces else 10]):
                    neighbour.send(pack("ECHO", f"{who}-{number}"))
                wire.send_unless_closed(piece)
                for who, neighbour in enumerate(neighbours[: 1 if in_pieces else 10]):
                    assert neighbour.reply() == bulk(f"{who}-{number}")
            with contextlib.suppress(OSError):
                wire.half_close()
            found.append((wire.rest(), control.ask("GET", "k")))
    assert found[1] == found[0]
    watch.look()


# Those who have not authenticated

RUDE = {
    "POST": pack("POST", "/"),
    "Host:": pack("Host:", "x"),
    "POST, inline": b"POST / HTTP/1.1\r\n",
    "eleven arguments": pack("MGET", *map(str, range(10))),
    "eleven arguments, inline": b"MGET 0 1 2 3 4 5 6 7 8 9\r\n",
    "a value of 16 KB and 1": pack("SET", "k", "x" * 16385),
    "... inline": b"SET k " + b"x" * 16385 + b"\r\n",
    "a pipeline with a bad end": pack("GET", "k") * 3 + b"*1\r\n:1\r\n",
    "a thousand refusals": pack("GET", "k") * 1000,
    "a failed AUTH": pack("AUTH", "wrong") * 20,
    "a failed HELLO": pack("HELLO", 3, "AUTH", "default", "wrong") * 20,
    "a long password": pack("AUTH", "x" * 16000),
    "RESET": pack("RESET") + pack("GET", "k"),
    "QUIT": pack("QUIT"),
    "a billion arguments": b"*1000000000\r\n",
    "a subscription": pack("SUBSCRIBE", "a") + pack("MONITOR") + pack("MULTI"),
}


def test_before_auth(server):
    """They share a connection, too, and an upstream closes it for less."""
    with running_server(server.executable, "--requirepass", "pw") as closed, contextlib.ExitStack() as stack:
        control = stack.enter_context(closed.connect())
        assert control.ask("AUTH", "pw") == b"+OK\r\n"
        coalesce = stack.enter_context(running_coalesce(closed.url))
        member = stack.enter_context(coalesce.connect())
        assert member.ask("AUTH", "pw") == b"+OK\r\n"
        stranger = stack.enter_context(coalesce.connect())
        assert stranger.ask("GET", "k").startswith(b"-NOAUTH")
        before = lanes(control)
        for what, data in RUDE.items():
            with closed.connect() as direct, coalesce.connect() as wire:
                for each in (direct, wire):
                    each.send_unless_closed(data)
                    stranger.send(pack("GET", "k"))
                    with contextlib.suppress(OSError):
                        each.half_close()
                # Redis itself may close before it has said it all: it can't do so to a connection that others share.
                assert wire.rest().startswith(direct.rest()), what
            assert [reply[:7] for reply in stranger.replies(2)] == [b"-NOAUTH"] * 2
            assert member.ask("ECHO", what) == bulk(what)
            assert lanes(control) == before, what
        assert "connection lost" not in coalesce.stderr


# Descriptors


def test_descriptors_run_out(server):
    """More clients than descriptors: they wait to be accepted, those who are there are served, and it goes on."""
    limit, wanted = 64, 100
    # When it starts, coalesce takes no more clients than it has descriptors for; here the limit is lowered afterwards.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with (
        running_coalesce(server.url, "--upstream-wait", "0.3") as coalesce,
        contextlib.ExitStack() as stack,
        server.connect() as control,
    ):
        resource.prlimit(coalesce.pid, resource.RLIMIT_NOFILE, (limit, hard))
        neighbour = Neighbour(coalesce.address)
        stack.callback(neighbour.wire.close)
        neighbour.window()
        before = lanes(control)
        waiting = [stack.enter_context(coalesce.connect()) for _ in range(wanted)]
        eventually(lambda: "can't accept clients for the moment: Too many open files" in coalesce.stderr)
        for wire in waiting:
            wire.send(pack("PING"))
        served = [wire for wire in waiting[: limit // 2] if wire.reply() == PONG]
        for _ in range(5):
            neighbour.window()
        assert waiting[-1].look() == (b"", False)  # neither served nor refused: it waits
        # A lease can't be dialled now: who asks for one is told so, and goes on.
        assert served[0].ask("BLPOP", "nothing", "0.01")[:1] in b"-*"
        for wire in served:
            wire.close()
        for wire in waiting[len(served) :][: len(served)]:
            assert wire.reply() == PONG
        for wire in waiting:
            wire.close()
        with coalesce.connect() as late:
            assert late.ask("PING") == PONG
        neighbour.window()
        assert lanes(control) == before
        (attempts,) = tried_in_vain(coalesce, 1)
        assert attempts > 1
        code, stderr = coalesce.stop()
        assert code == 0, stderr
        assert closing_line(stderr).commands > wanted


def tried_in_vain(coalesce: Coalesce, outages: int) -> list[int]:
    """How often, in each of so many outages. One line is said when it begins, and one when it is over."""
    over = r"listener \S+: accepting clients again, after [\d.]+ s \(attempts: (\d+)\)"

    def is_over() -> bool:
        """Somebody has to come for it to show: behind the last one that was accepted there may have been no room."""
        socket.create_connection(coalesce.address, 10).close()
        return len(re.findall(over, coalesce.stderr)) >= outages

    eventually(is_over)
    attempts = [int(found) for found in re.findall(over, coalesce.stderr)]
    assert coalesce.stderr.count("can't accept clients") == len(attempts) == outages
    return attempts


def test_descriptors_run_out_of_a_tls_listener(server, tmp_path):
    """The same, in two outages: who has waited gets his handshake."""
    authority = Authority(tmp_path, "ours")
    own = authority.issue()
    limit, wanted = 48, 64
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with running_coalesce(server.url, "--tls-cert", str(own.certificate), "--tls-key", str(own.key)) as coalesce:
        for outage in range(2):
            with contextlib.ExitStack() as stack:
                first = stack.enter_context(TlsWire(coalesce.address, authority.trusting()))
                resource.prlimit(coalesce.pid, resource.RLIMIT_NOFILE, (limit, hard))
                for _ in range(wanted):  # who say nothing
                    stack.enter_context(socket.create_connection(coalesce.address))
                eventually(lambda: coalesce.stderr.count("can't accept clients for the moment") == outage + 1)  # noqa: B023
                for _ in range(3):
                    assert first.ask("PING") == PONG
            with TlsWire(coalesce.address, authority.trusting()) as late:
                assert late.ask("PING") == PONG
            assert all(tried_in_vain(coalesce, outage + 1))
            resource.prlimit(coalesce.pid, resource.RLIMIT_NOFILE, (hard, hard))
        code, stderr = coalesce.stop()
        assert code == 0, stderr
