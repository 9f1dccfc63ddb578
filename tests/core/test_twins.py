"""The hot functions against their plain twins: any stream, in any chunking."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coalesce.core.errors import UpstreamError, hello_option
from coalesce.core.exchange import Exchange
from coalesce.core.identity import Identity
from coalesce.core.lane import Lane, Limits
from coalesce.core.session import SessionState

from . import twins
from .fakes import Caller, RecordingPeer, Taking

BASE = Identity(None, None, 0, 2)
NO_LIMITS = Limits(lane=10**9, client=10**9)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted({at for at in cuts if 0 < at < len(data)}), len(data)]
    return [data[start:end] for start, end in pairwise(edges) if end > start]


def lengths_to_edges(frames: list[bytes]) -> list[int]:
    edges = [0]
    for frame in frames:
        edges.append(edges[-1] + len(frame))
    return edges


@st.composite
def chunked(draw: st.DrawFn, frames: st.SearchStrategy[list[bytes]]) -> tuple[list[bytes], list[bytes]]:
    """(frames, chunks): whole, byte by byte, at or beside the ends of frames, or anywhere."""
    drawn = draw(frames)
    data = b"".join(drawn)
    how = draw(st.sampled_from(["whole", "bytes", "edges", "anywhere"]))
    if how == "whole":
        cuts = []
    elif how == "bytes" and len(data) < 2000:
        cuts = list(range(len(data)))
    elif how == "edges":
        edges = lengths_to_edges(drawn)
        cuts = draw(st.lists(st.builds(int.__add__, st.sampled_from(edges), st.integers(-3, 3)), max_size=12))
    else:
        cuts = draw(st.lists(st.integers(0, max(1, len(data))), max_size=12))
    return drawn, cut(data, cuts)


# --- Exchange.receive ---

STATELESS = {b"GET", b"SET", b"ECHO", b"PING", b"MGET", b"DEL", b"UNWATCH"}
BORROWING = {b"MULTI", b"EXEC", b"DISCARD", b"WATCH", b"BLPOP", b"XREAD"}
OUR_PING = [b"PING", b"nobody knows"]
OUR_HELLO = [b"HELLO", b"2", b"nobody knows"]
SUBSCRIBING = {b"SUBSCRIBE", b"UNSUBSCRIBE"}
UNKNOWN = {b"FROBNICATE"}  # to the upstream, too

values = st.one_of(
    st.binary(max_size=12),
    st.sampled_from(
        [b"", b"\r\n", b"\r", b"\n", b"$", b"*", b"\0", b"*1\r\n$4\r\nPING\r\n", b"$3\r\nGET\r\n", b"\r\n*2\r\n"]
    ),
    st.integers(0, 2**32).map(lambda seed: random.Random(seed).randbytes(20_000)),
)
names = st.sampled_from([b"GET", b"SET", b"ECHO", b"PING", b"MGET", b"DEL", b"get", b"set", b"Get", b"eChO", b"del"])
riding = st.builds(lambda name, arguments: twins.canonical([name, *arguments]), names, st.lists(values, max_size=3))
many_arguments = st.integers(9, 1100).map(lambda count: twins.canonical([b"MGET"] + [b"k"] * count))
inline = st.one_of(
    st.sampled_from(
        [
            b"PING\r\n", b"PING\n", b"\r\n", b"\n", b"get  k\r\n", b'SET k "a \\x41\\r\\n"\r\n', b"ECHO 'it\\'s'\n",
            b"ECHO a\rb\r\n", b"PING\0\r\n", b"ECHO \xff\r\n",
        ]
    ),
    st.text(alphabet=" abk\"'\\x4\t\r", max_size=10).map(lambda text: b"ECHO " + text.encode() + b"\r\n"),
)  # fmt: skip
pinning = st.sampled_from(
    [
        [b"subscribe", b"c"], [b"SUBSCRIBE", b"c"], [b"UNSUBSCRIBE", b"c"], [b"Unsubscribe"], [b"CLIENT", b"ID"],
        [b"CLIENT", b"REPLY", b"ON"], [b"frobnicate", b"1"], [b"Frobnicate"], [b""],
    ]
).map(twins.canonical)  # fmt: skip
subscriptions = st.builds(
    lambda inside, end: twins.canonical([b"SUBSCRIBE", b"c"]) + b"".join(inside) + twins.canonical(end),
    st.lists(riding, max_size=2),
    st.sampled_from([[b"UNSUBSCRIBE", b"c"], [b"unsubscribe"], [b"GET", b"k"]]),
)
borrowing = st.sampled_from(
    [
        [b"MULTI"], [b"MULTI"], [b"multi"], [b"Multi"], [b"MULTI", b"now"], [b"EXEC"], [b"exec"], [b"eXec"],
        [b"DISCARD"], [b"WATCH", b"k"], [b"UNWATCH"], [b"BLPOP", b"k", b"0"],
        [b"XREAD", b"BLOCK", b"0", b"STREAMS", b"s", b"$"],
    ]
).map(twins.canonical)  # fmt: skip
blocks = st.builds(
    lambda begin, inside, end: twins.canonical([begin]) + b"".join(inside) + twins.canonical([end]),
    st.sampled_from([b"MULTI", b"multi", b"Multi"]),
    st.lists(st.one_of(riding, riding, borrowing), max_size=3),
    st.sampled_from([b"EXEC", b"exec", b"Exec", b"DISCARD"]),
)
ending = st.sampled_from([[b"QUIT"], [b"quit", b"now"], [b"POST", b"/"], [b"Host:", b"x"]]).map(twins.canonical)
smuggling = st.sampled_from(
    [
        b"$5\r\nabcde\r\n",  # one value to hiredis, two inline commands to Redis
        b":1\r\n", b"+OK\r\n", b"#t\r\n", b"_\r\n",
        b"*2\r\n$3\r\nGET\r\n:1\r\n",
        b"*2\r\n$3\r\nGET\r\n*1\r\n$1\r\na\r\n",
        b"*1\r\n*1\r\n$4\r\nPING\r\n",
        b"*01\r\n$4\r\nPING\r\n", b"*1\r\n$04\r\nPING\r\n", b"*+1\r\n$4\r\nPING\r\n", b"*1\r\n$ 4\r\nPING\r\n",
        b"*1\r\n$4\r\nPINGXY", b"*1\r\n$4\r\nPING\n\n", b"*1\rX$4\rXPING\r\n", b"*1\r\n$4\r\nPING\r*",
        b"*2\r\n$3\r\nGET\r\n$5\r\na\r\nbc\r\n",
        b"*2\r\n$3\r\nGET\r\n$1\r\na\r\nbc\r\n",
        b"*2\r\n$3\r\nGET\r\n$-1\r\n", b"*2\r\n$3\r\nGET\r\n$1\r\n",
        b"*0\r\n", b"*-1\r\n", b"*-0\r\n", b"*\r\n", b"*1\r\n$\r\n", b"*1\r\n\r\n",
        b"*2147483647\r\n", b"*2147483648\r\n", b"*1048577\r\n$4\r\nPING\r\n", b"*99999999999999999999\r\n",
        b"*1\r\n$536870912\r\nPING\r\n", b"*1\r\n$536870913\r\n", b"*1\r\n$99999999999999999999\r\n",
        b'ECHO "\r\n', b"\0\r\n", b"*1\0\r\n", b"\xff\xfe\r\n",
    ]
)  # fmt: skip
cut_short = st.builds(lambda frame, size: frame[:size], riding, st.integers(1, 12))
frames = st.one_of(
    *[riding] * 4, *[inline, borrowing, blocks] * 2,
    smuggling, many_arguments, pinning, subscriptions, ending, cut_short,
)  # fmt: skip
streams = chunked(st.lists(frames, min_size=1, max_size=8))


class Redis:
    """What one connection of a Redis says to the requests above; it has no data."""

    def __init__(self) -> None:
        self.queue: list[bytes] | None = None  # replies to come, in a transaction
        self.watching = False
        self.subscribed = False  # to the only channel

    def reply(self, request: list[bytes]) -> bytes:
        name = request[0].upper()
        if name in SUBSCRIBING:
            self.subscribed = name == b"SUBSCRIBE"
            return b"*3\r\n" + _bulk(b"$", name.lower()) + b"$1\r\nc\r\n:%d\r\n" % self.subscribed
        if name in UNKNOWN:
            return b"-ERR unknown command\r\n"
        if request == OUR_PING:
            return (b"*2\r\n$4\r\npong\r\n" if self.subscribed else b"") + _bulk(b"$", request[1])
        if request == OUR_HELLO:
            return hello_option(request[2])
        if self.subscribed:
            return b"-ERR only (P|S)SUBSCRIBE and the like are allowed\r\n"
        return self._reply_to_data(name, request)

    def _reply_to_data(self, name: bytes, request: list[bytes]) -> bytes:
        if name in {b"MULTI", b"EXEC", b"DISCARD"} and len(request) > 1:
            return b"-ERR wrong number of arguments\r\n"
        if name in {b"EXEC", b"DISCARD"}:
            return self._end(name)
        if self.queue is None:
            if name == b"MULTI":
                self.queue = []
            elif name in {b"WATCH", b"UNWATCH"}:
                self.watching = name == b"WATCH"
            return b"+OK\r\n"
        if name in {b"MULTI", b"WATCH"}:
            return b"-ERR " + name + b" inside MULTI is not allowed\r\n"
        self.queue.append(b"+OK\r\n")
        return b"+QUEUED\r\n"

    def _end(self, name: bytes) -> bytes:
        queue, self.queue = self.queue, None
        if queue is None:
            return b"-ERR " + name + b" without MULTI\r\n"
        self.watching = False
        return b"*%d\r\n" % len(queue) + b"".join(queue) if name == b"EXEC" else b"+OK\r\n"

    @property
    def clean(self) -> bool:
        return self.queue is None and not self.watching and not self.subscribed


class Outcome(NamedTuple):
    """What became of a stream, once every reply has arrived."""

    sent: bytes  # what reached the upstream, on whichever connection
    written: bytes
    closed: bool
    pinned: bytes | None  # what a connection of its own would be given, with what was never read


class Upstream:
    """A lane's connection, with the Redis behind it."""

    def __init__(self, lane: Lane, playing: Play) -> None:
        self.lane = lane
        self.up = True
        self.redis = Redis()
        self.replies = b""
        self._playing = playing

    def send(self, batch: bytes) -> None:
        reading = twins.read_requests(batch)
        assert (reading.leftover, reading.error) == (b"", None)
        assert b"".join(map(twins.canonical, reading.requests)) == batch
        self._playing.batches += 1
        for request in reading.requests:
            self.replies += self.redis.reply(request)
            if request in (OUR_PING, OUR_HELLO):  # no stream in here has one
                continue
            if request[:2] == [b"CLIENT", b"SETNAME"]:
                assert self.lane.exclusive
                continue
            self._playing.sent.append(twins.canonical(request))
            if not self.lane.exclusive:
                assert request[0].upper() in STATELESS | {b"MULTI", b"EXEC", b"UNWATCH"}
        assert self.lane.exclusive or self.redis.clean, "half a transaction on a shared lane"

    def hang_up(self) -> None:
        assert self.up
        self.up = False
        self._playing.exchange.lose(self.lane)


class Play:
    """Gives chunks to a real exchange, over connections of a model."""

    def __init__(self, *, authenticated: bool) -> None:
        self.sent: list[bytes] = []
        self.batches = 0
        self.opened: list[Lane] = []
        self.upstreams: list[Upstream] = []
        self.exchange = Exchange(BASE, self.opened.append, NO_LIMITS, lambda: OUR_PING[1])
        self.authenticated = authenticated
        self.exchange.lane(BASE).authenticated = authenticated
        self.peer = RecordingPeer()
        self.session = self.exchange.connect(self.peer)

    def feed(self, chunks: list[bytes], *, prompt: bool) -> Outcome:
        """The upstream answers after each chunk, or when nothing else goes on."""
        waiting = list(chunks)
        while waiting and self.goes_on():
            if self.peer.reading:
                self.exchange.receive(self.session, waiting.pop(0))
            if prompt or not self.peer.reading:
                before = self.batches
                self.settle()
                assert self.peer.reading or not self.goes_on() or self.batches > before, "stuck"
        self.settle()
        pinned = None if self.peer.pinned is None else self.peer.pinned[1] + b"".join(waiting)
        return Outcome(b"".join(self.sent), self.peer.written, self.peer.closed, pinned)

    def goes_on(self) -> bool:
        return not self.peer.closed and self.peer.pinned is None

    def settle(self) -> None:
        """All is connected, sent and answered."""
        before = -1
        while before != self.batches:
            before = self.batches
            while self.opened:
                upstream = Upstream(self.opened.pop(0), self)
                upstream.lane.authenticated = self.authenticated
                self.upstreams.append(upstream)
                self.exchange.connected(upstream.lane, upstream, 0.0)
            self.exchange.flush(0.0)
            for upstream in self.upstreams:
                replies, upstream.replies = upstream.replies, b""
                if replies:
                    self.exchange.replies(upstream.lane, replies, 0.0)
        if self.goes_on():
            assert self.session.owed == 0

    def redis(self) -> Redis:
        """The one that the client is connected to now."""
        assert self.goes_on()
        lane = self.session.lane
        assert lane.exclusive == (self.session.state is SessionState.LEASED)
        return next(upstream.redis for upstream in self.upstreams if upstream.lane is lane)


def play(chunks: list[bytes], *, authenticated: bool, prompt: bool) -> Outcome:
    """What becomes of the chunks. The client's connection is then as one to a Redis of its own would be."""
    playing = Play(authenticated=authenticated)
    outcome = playing.feed(chunks, prompt=prompt)
    own = Redis()
    for request in twins.read_requests(outcome.sent).requests:
        own.reply(request)
    if playing.peer.pinned is not None:
        lane, _ = playing.peer.pinned
        current = [upstream.redis for upstream in playing.upstreams if upstream.lane is lane]
        assert current
    else:
        current = [] if playing.peer.closed else [playing.redis()]
    assert all(vars(redis) == vars(own) for redis in current)
    others = [upstream for upstream in playing.upstreams if upstream.redis not in current]
    assert all(upstream.redis.clean for upstream in others if upstream.up)
    assert all(upstream.up for upstream in playing.upstreams) or playing.peer.closed
    return outcome


def expected(data: bytes, *, authenticated: bool) -> list[Outcome]:  # noqa: C901, PLR0911 (a case each)
    """What Redis would read and say, up to the first request that takes a connection of its own for good.

    Two are possible where a connection of its own is needed no longer and has not been given back, and behind what may
    block.
    """
    reading = twins.read_requests(data, authenticated=authenticated)
    redis = Redis()
    sent = written = b""
    for at, request in enumerate(reading.requests):
        name = request[0].upper()
        kept = Outcome(sent, written, closed=False, pinned=twins.canonical(request) + reading.behind[at])
        if name in {b"POST", b"HOST:"} and authenticated and redis.clean:
            return [Outcome(sent, written, closed=True, pinned=None)]
        if name == b"QUIT" and not redis.subscribed:
            quits = Outcome(sent, written + b"+OK\r\n", closed=True, pinned=None)
            return [quits, kept] if _may_block(sent) else [quits]
        if redis.subscribed:
            passes = name in STATELESS | SUBSCRIBING | {b"EXEC", b"DISCARD"}
        elif redis.clean:
            passes = request[:2] != [b"CLIENT", b"REPLY"] and name not in {b"POST", b"HOST:"}
        else:
            passes = name in STATELESS | BORROWING
        if not passes:
            return [kept]
        sent += twins.canonical(request)
        written += redis.reply(request)
        if name not in STATELESS | BORROWING | SUBSCRIBING | UNKNOWN:  # accepted: it keeps the connection
            return [Outcome(sent, written, closed=False, pinned=reading.behind[at])]
    if _is_large(reading.leftover, authenticated):
        return [Outcome(sent, written, closed=False, pinned=reading.leftover)]
    if reading.error is None:
        return [Outcome(sent, written, closed=False, pinned=None)]
    said = Outcome(sent, written + reading.error.reply, closed=True, pinned=None)
    kept = Outcome(sent, written, closed=False, pinned=reading.leftover)
    if redis.subscribed:
        return [kept]
    return [said, kept] if b"subscribe" in written or _may_block(sent) else [said]


def _may_block(sent: bytes) -> bool:
    return b"BLPOP" in sent or b"BLOCK" in sent


def _is_large(leftover: bytes, authenticated: bool) -> bool:
    """More arguments than Redis 6.2 takes: which Redis it is, the upstream itself has to say."""
    line, found, _ = leftover.partition(b"\r\n")
    digits = line[1:]
    return bool(authenticated and found and line[:1] == b"*" and digits.isdigit() and 1024 * 1024 < int(digits) < 2**31)


@settings(max_examples=600, deadline=None)
@example(([], [twins.canonical([b"MULTI"]) + twins.canonical([b"POST", b"/"])]), False, False)
@given(streams, st.sampled_from([True, True, False]), st.booleans())
def test_exchange_receive(stream: tuple[list[bytes], list[bytes]], authenticated: bool, prompt: bool) -> None:
    """What reaches the upstream is the canonical form of what Redis would read, in order, however it was cut (I9).

    No shared lane sees anything of a transaction but all of it.
    """
    _, chunks = stream
    outcome = play(chunks, authenticated=authenticated, prompt=prompt)
    assert outcome in expected(b"".join(chunks), authenticated=authenticated)


@pytest.mark.parametrize("size", [1, 2, 16, 1000])
def test_exchange_receive_pipelined(size: int) -> None:
    """The quick path takes a whole chunk of canonical requests, in the middle of one that was cut too."""
    requests = [twins.canonical([b"SET", b"k%d" % number, b"v\r\n" * (number % 3)]) for number in range(size)]
    data = b"".join(requests)
    for at in {0, 1, len(data) // 2, len(data) - 1}:
        chunks = cut(data, [at])
        assert play(chunks, authenticated=True, prompt=False) == (data, b"+OK\r\n" * size, False, None)


RIDING_BLOCKS = [
    [[b"MULTI"], [b"EXEC"]],
    [[b"multi"], [b"SET", b"k", b"v"], [b"exec"]],
    [[b"GET", b"k"], [b"MULTI"], [b"SET", b"k", b""], [b"GET", b"k"], [b"EXEC"], [b"GET", b"k"]],
    [[b"MULTI"], [b"EXEC"], [b"MULTI"], [b"UNWATCH"], [b"EXEC"]],
]
BORROWING_BLOCKS = [
    [[b"MULTI"]],
    [[b"MULTI"], [b"SET", b"k", b"v"]],
    [[b"MULTI"], [b"MULTI"], [b"EXEC"]],
    [[b"MULTI"], [b"BLPOP", b"k", b"0"], [b"EXEC"]],
    [[b"MULTI"], [b"SET", b"k", b"v"], [b"DISCARD"]],
    [[b"MULTI"], [b"GET", b"k"], [b"EXEC", b"now"]],
    [[b"MULTI", b"now"], [b"EXEC"]],
    [[b"EXEC"]],
    [[b"WATCH", b"k"], [b"MULTI"], [b"EXEC"]],
]


@pytest.mark.parametrize("block", RIDING_BLOCKS)
def test_a_whole_transaction_rides(block: list[list[bytes]]) -> None:
    playing = Play(authenticated=True)
    data = b"".join(map(twins.canonical, block))
    assert playing.feed([data], prompt=False) in expected(data, authenticated=True)
    assert len(playing.upstreams) == 1


@pytest.mark.parametrize("block", BORROWING_BLOCKS)
def test_any_other_borrows(block: list[list[bytes]]) -> None:
    playing = Play(authenticated=True)
    data = b"".join(map(twins.canonical, block))
    assert playing.feed([data], prompt=False) in expected(data, authenticated=True)
    assert [upstream.lane.exclusive for upstream in playing.upstreams] == [False, True]


# --- Lane.receive ---


def lane_owing(fifo: list[str]) -> tuple[Lane, dict[str, Caller]]:
    """A lane with one request in flight for each entry."""
    callers = {name: Caller() for name in fifo}
    lane = Lane(0, BASE, NO_LIMITS)
    lane.connected(Taking(), 0.0)
    for name in fifo:
        lane.enqueue(b"*1\r\n$4\r\nPING\r\n", callers[name])
    lane.take_batch(0.0)
    return lane, callers


def receive_all(lane: Lane, chunks: list[bytes]) -> None:
    for chunk in chunks:
        lane.receive(chunk)


blobs = st.one_of(
    st.binary(max_size=10),
    st.sampled_from([b"", b"\r\n", b"+OK\r\n", b">1\r\n+x\r\n", b"$3\r\n"]),
    st.integers(16_300, 50_000).map(lambda size: (b"%d\r\n+" % size * size)[:size]),
)
small_blobs = st.binary(max_size=10)


def _line(value: bytes) -> bytes:
    """Without a line end; one of its two bytes, it may have."""
    return value.replace(b"\n", b"$")


def _bulk(kind: bytes, value: bytes) -> bytes:
    return kind + b"%d\r\n" % len(value) + value + b"\r\n"


def _aggregate(kind: bytes, items: list[bytes]) -> bytes:
    each = 2 if kind in {b"%", b"|"} else 1
    items = items[: len(items) // each * each]
    return kind + b"%d\r\n" % (len(items) // each) + b"".join(items)


def _scalars(values: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.one_of(
        st.builds(lambda kind, text: kind + text + b"\r\n", st.sampled_from([b"+", b"-", b"("]), values.map(_line)),
        st.integers(-(2**63), 2**63 - 1).map(lambda value: b":%d\r\n" % value),
        st.builds(_bulk, st.sampled_from([b"$", b"$", b"$", b"=", b"!"]), values),
        st.sampled_from([b"$-1\r\n", b"*-1\r\n", b"_\r\n", b"#t\r\n", b"#f\r\n", b",1.5\r\n", b",inf\r\n"]),
    )


def _nest(elements: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    attributes = st.lists(elements, max_size=4).map(lambda items: _aggregate(b"|", items))
    return st.one_of(
        st.builds(_aggregate, st.sampled_from([b"*", b"~", b"%"]), st.lists(elements, max_size=5)),
        st.builds(bytes.__add__, attributes, elements),
    )


long_arrays = st.integers(150, 400).map(lambda count: _aggregate(b"*", [_bulk(b"$", b"\r\n" * 50)] * count))
replies = st.one_of(
    _scalars(small_blobs), _scalars(blobs), st.recursive(_scalars(blobs), _nest, max_leaves=10), long_arrays
)
reply_streams = st.lists(replies, min_size=1, max_size=8)
fifos = st.lists(st.sampled_from("abc"), min_size=8, max_size=12)


def check_delivery(fifo: list[str], fed: bytes, lane: Lane, callers: dict[str, Caller]) -> None:
    """Every whole reply is where it belongs; the head may have a part of the next, if that is a large one."""
    whole, beginning = twins.split_replies(fed)
    assert len(lane.in_flight) == len(fifo) - len(whole)
    due = twins.deliver(fed, fifo)
    for name, caller in callers.items():
        assert caller.owed == fifo[len(whole) :].count(name)
        assert caller.got.startswith(due[name])
        part = caller.got[len(due[name]) :]
        assert not part or (name == fifo[len(whole)] and beginning.startswith(part) and len(beginning) >= 16 * 1024)


@settings(max_examples=400, deadline=None)
@given(chunked(reply_streams), fifos)
def test_lane_receive(stream: tuple[list[bytes], list[bytes]], fifo: list[str]) -> None:
    """Every reply is its caller's, byte for byte, however the stream was cut (I1, I8)."""
    written, chunks = stream
    data = b"".join(written)
    assert twins.split_replies(data) == (written, b"")
    lane, callers = lane_owing(fifo)
    fed = b""
    for chunk in chunks:
        lane.receive(chunk)
        fed += chunk
        if len(data) < 300 or fed == data:  # the twin begins anew each time
            check_delivery(fifo, fed, lane, callers)
    assert {name: caller.got for name, caller in callers.items()} == twins.deliver(data, fifo)
    assert not any(caller.was_lost for caller in callers.values())


JUNK = [
    b">2\r\n+message\r\n+x\r\n",
    b">0\r\n",
    b"HTTP/1.1 400 Bad Request\r\n",
    b"\r\n",
    b"\0\0\r\n",
    b"$x\r\n",
    b"$\r\n",
    b"*1\r\n?\r\n",
    b"*x\r\n",
    b"%1.0\r\n",
    b"|1\r\n+k\r\n+v\r\nX\r\n",
]


@settings(max_examples=300, deadline=None)
@given(chunked(st.lists(replies, max_size=4)), st.sampled_from(JUNK), st.lists(st.integers(0, 60), max_size=3), fifos)
def test_lane_receive_junk(
    stream: tuple[list[bytes], list[bytes]], junk: bytes, cuts: list[int], fifo: list[str]
) -> None:
    """A push, or what is no RESP, fails the lane, and nobody gets what was not theirs (I5)."""
    written, chunks = stream
    behind = junk + b"+secret\r\n" * 4
    tail = cut(behind, cuts)
    if chunks and not cuts:  # in one chunk with replies that are in order
        tail = [chunks.pop() + behind]
    lane, callers = lane_owing(fifo)
    with pytest.raises(UpstreamError):
        receive_all(lane, chunks + tail)
    check_nobody_has_anothers(b"".join(written), fifo, lane, callers)


@settings(max_examples=300, deadline=None)
@given(chunked(st.lists(replies, min_size=1, max_size=8)), st.data())
def test_lane_receive_surplus(stream: tuple[list[bytes], list[bytes]], data: st.DataObject) -> None:
    """A reply that nobody asked for fails the lane at its first byte (I5)."""
    written, chunks = stream
    fifo = data.draw(st.lists(st.sampled_from("abc"), max_size=len(written) - 1))
    lane, callers = lane_owing(fifo)
    with pytest.raises(UpstreamError):
        receive_all(lane, chunks)
    check_nobody_has_anothers(b"".join(written[: len(fifo)]), fifo, lane, callers)


def check_nobody_has_anothers(sound: bytes, fifo: list[str], lane: Lane, callers: dict[str, Caller]) -> None:
    """Whoever has not all that was theirs has been told, or stands in the FIFO and will be."""
    due = twins.deliver(sound, fifo)
    for name, caller in callers.items():
        assert due[name].startswith(caller.got)
        assert caller.got == due[name] or caller.was_lost or caller in lane.in_flight


# What Redis never says, and Python's int() takes. Whoever says it can't be trusted with the next reply.
DOUBTFUL = [
    b"$-2\r\n", b"*-2\r\n", b"%-1\r\n", b"~-1\r\n", b"|-1\r\n", b"$+3\r\nabc\r\n", b"$ 3\r\nabc\r\n",
    b"$1_0\r\n0123456789\r\n", b"*1_0\r\n" + b":1\r\n" * 10, b"*03\r\n:1\r\n:1\r\n:1\r\n",
    b"$" + b"1" * 20_000, b"*2\r\n+" + b"x" * 20_000 + b"\r\n%" + b"1" * 33,
    b"|1\r\n+k\r\n+v\r\n>1\r\n+x\r\n", b"$3\r\nabcXY", b"$9223372036854775808\r\n",
]  # fmt: skip


@pytest.mark.parametrize("doubtful", DOUBTFUL)
def test_lane_receive_doubtful(doubtful: bytes) -> None:
    """Any doubt about alignment kills the lane, never guesses: no reply ever reaches the wrong client."""
    with pytest.raises(twins.NoReply):
        twins.split_replies(doubtful)
    lane, _ = lane_owing(["a", "b"] * 20)
    with pytest.raises(UpstreamError):
        lane.receive(b"+OK\r\n" + doubtful + b"+secret\r\n" * 2)


@pytest.mark.parametrize("beginning", [b"+", b"-ERR ", b":", b"*2\r\n:1\r\n(", b"*1\r\n|1\r\n+k\r\n:1\r\n+"])
def test_lane_receive_long_line(beginning: bytes) -> None:
    """It is passed on as it comes: what is kept is looked at again, of 16 MB for seconds, and all others wait."""
    lane, callers = lane_owing(["a", "b"])
    fed = b""
    for chunk in [beginning, *[b"x" * 20_000] * 50, b"y" * 20_000 + b"\r", b"\rz", b"\r"]:
        lane.receive(chunk)
        fed += chunk
        assert len(fed) < 16 * 1024 or callers["a"].got == fed.removesuffix(b"\r")
    lane.receive(b"\n+b\r\n")
    assert callers["a"].got == fed + b"\n"
    assert callers["b"].got == b"+b\r\n"


@pytest.mark.parametrize("behind", [0, 1, 2])
@pytest.mark.parametrize("line_end", [b"X\n", b"\rX", b"\n\r", b"XX"])
def test_lane_receive_doubtful_line_end(line_end: bytes, behind: int) -> None:
    """Behind a large value that is passed on as it comes, too, and wherever the chunk ends (`tests/fuzz` found it)."""
    lane, callers = lane_owing(["a", "b"])
    value = b"v" * 20_000
    data = b"$%d\r\n" % len(value) + value + line_end
    with pytest.raises(UpstreamError):
        receive_all(
            lane,
            [
                data[:10_000],
                data[10_000:18_000],
                data[18_000 : len(data) - behind],
                data[len(data) - behind :] + b"+secret\r\n",
            ],
        )
    assert callers["b"].got == b""
