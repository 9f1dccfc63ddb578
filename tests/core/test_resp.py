"""Where requests and replies end: each case whole, byte by byte, and with data behind it."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from coalesce.core.errors import ClientError, Desync
from coalesce.core.resp import (
    ARGUMENTS_OF_A_LANE,
    BULK_LIMIT,
    INLINE_LIMIT,
    LargeRequestError,
    RequestReader,
    pack,
    reply_end,
    skip_elements,
    split_inline,
)

BEHIND = b"*1\r\n$4\r\nPING\r\n"


class Outcome(NamedTuple):
    requests: list[list[bytes]]
    error: str | None


def read(chunks: list[bytes], *, authenticated: bool = True, bulk_limit: int = BULK_LIMIT) -> Outcome:
    reader = RequestReader(bulk_limit)
    requests = []
    for chunk in chunks:
        reader.feed(chunk)
        try:
            while (request := reader.next_request(authenticated)) is not None:
                requests.append(request)
        except ClientError as error:
            return Outcome(requests, str(error))
    return Outcome(requests, None)


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


REQUESTS = {
    "one argument": (b"*1\r\n$4\r\nPING\r\n", [[b"PING"]]),
    "two": (b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n*1\r\n$4\r\nPING\r\n", [[b"GET", b"k"], [b"PING"]]),
    "empty argument": (b"*2\r\n$4\r\nECHO\r\n$0\r\n\r\n", [[b"ECHO", b""]]),
    "line ends in a value": (b"*2\r\n$4\r\nECHO\r\n$8\r\n\r\n*1\r\n$4\r\n", [[b"ECHO", b"\r\n*1\r\n$4"]]),
    "NUL in a value": (b"*2\r\n$4\r\nECHO\r\n$3\r\na\0b\r\n", [[b"ECHO", b"a\0b"]]),
    "empty array": (b"*0\r\n", []),
    "null array": (b"*-1\r\n", []),
    "negative count": (b"*-7\r\n", []),
    "empty arrays in front": (b"*0\r\n*-1\r\n*1\r\n$4\r\nPING\r\n", [[b"PING"]]),
    "any byte for a line feed": (b"*1\rX$4\rYPING\r\n", [[b"PING"]]),
    "any bytes behind a value": (b"*1\r\n$4\r\nPINGXY", [[b"PING"]]),
    "smuggled pair": (b"*1\r\n$4\r\nPING\r\n$5\r\nabcde\r\n", [[b"PING"], [b"$5"], [b"abcde"]]),
    "inline": (b"PING\r\n", [[b"PING"]]),
    "inline without carriage return": (b"PING\n", [[b"PING"]]),
    "inline with arguments": (b"  SET  k\tv \r\n", [[b"SET", b"k", b"v"]]),
    "inline quotes": (b"SET k \"a \\x41\\n\" 'b\\'c'\r\n", [[b"SET", b"k", b"a A\n", b"b'c"]]),
    "inline, three in one write": (b"PING\r\nPING\r\nPING\r\n", [[b"PING"]] * 3),
    "empty lines": (b"\r\n\n\r\n \r\n", []),
    "inline then array": (b"PING\r\n*1\r\n$4\r\nPING\r\n", [[b"PING"], [b"PING"]]),
    "carriage return within a line": (b"A\rB\r\n", [[b"A", b"B"]]),
}


@pytest.mark.parametrize(("data", "requests"), REQUESTS.values(), ids=REQUESTS)
def test_requests(data: bytes, requests: list[list[bytes]]) -> None:
    assert read([data]) == (requests, None)
    assert read(bytewise(data)) == (requests, None)
    assert read([data + BEHIND]) == ([*requests, [b"PING"]], None)
    assert read([data, BEHIND]) == ([*requests, [b"PING"]], None)


BROKEN = {
    "no count": (b"*\r\n", "invalid multibulk length"),
    "count of letters": (b"*a\r\n", "invalid multibulk length"),
    "count with a leading zero": (b"*01\r\n", "invalid multibulk length"),
    "count with a plus": (b"*+1\r\n", "invalid multibulk length"),
    "count with a space": (b"* 1\r\n", "invalid multibulk length"),
    "count minus zero": (b"*-0\r\n", "invalid multibulk length"),
    "count with an underscore": (b"*1_0\r\n", "invalid multibulk length"),
    "count over INT_MAX": (b"*2147483648\r\n", "invalid multibulk length"),
    "count over 64 bits": (b"*9223372036854775808\r\n", "invalid multibulk length"),
    "count below 64 bits": (b"*-9223372036854775809\r\n", "invalid multibulk length"),
    "integer in an array": (b"*2\r\n$3\r\nGET\r\n:1\r\n", "expected '$', got ':'"),
    "nested array": (b"*1\r\n*1\r\n$4\r\nPING\r\n", "expected '$', got '*'"),
    "letters in an array": (b"*1\r\nPING\r\n", "expected '$', got 'P'"),
    "empty line in an array": (b"*1\r\n\r\n", "expected '$', got '\r'"),
    "high byte in an array": (b"*1\r\n\xff\r\n", "expected '$', got '\xff'"),
    "no length": (b"*1\r\n$\r\n", "invalid bulk length"),
    "length with a leading zero": (b"*1\r\n$04\r\nPING\r\n", "invalid bulk length"),
    "null argument": (b"*1\r\n$-1\r\n", "invalid bulk length"),
    "length of letters": (b"*1\r\n$four\r\n", "invalid bulk length"),
    "length over the limit": (b"*1\r\n$536870913\r\n", "invalid bulk length"),
    "length over 64 bits": (b"*1\r\n$9223372036854775808\r\n", "invalid bulk length"),
    "double quote open": (b'SET k "v\r\n', "unbalanced quotes in request"),
    "single quote open": (b"SET k 'v\r\n", "unbalanced quotes in request"),
    "letter behind a quote": (b'SET k "v"w\r\n', "unbalanced quotes in request"),
}


@pytest.mark.parametrize(("data", "error"), BROKEN.values(), ids=BROKEN)
def test_broken_requests(data: bytes, error: str) -> None:
    assert read([data]) == ([], error)
    assert read(bytewise(data)) == ([], error)
    assert read([data + BEHIND]) == ([], error)
    assert read([BEHIND + data]) == ([[b"PING"]], error)


def test_what_an_error_says_to_the_client() -> None:
    assert ClientError("expected '$', got '\r'").reply == b"-ERR Protocol error: expected '$', got ' '\r\n"
    assert ClientError("expected '$', got '\xff'").reply == b"-ERR Protocol error: expected '$', got '\xff'\r\n"


TOO_LONG = {
    "inline": (b"", b"a", "too big inline request"),
    "inline behind a NUL": (b"\0\r\n", b"a", "too big inline request"),
    "count": (b"*", b"1", "too big mbulk count string"),
    "count behind a NUL": (b"*\0\r\n", b"1", "too big mbulk count string"),
    "length": (b"*1\r\n$", b"1", "too big bulk count string"),
    "length behind a NUL": (b"*1\r\n$\0\r\n", b"1", "too big bulk count string"),
}


@pytest.mark.parametrize(("start", "filler", "error"), TOO_LONG.values(), ids=TOO_LONG)
def test_lines_without_an_end(start: bytes, filler: bytes, error: str) -> None:
    header = len(start.rpartition(b"*1\r\n")[1])  # already read when the length is sought
    longest = start + filler * (INLINE_LIMIT - len(start) + header)
    assert read([longest]) == ([], None)
    assert read([longest, filler]) == ([], error)
    assert read([longest + filler]) == ([], error)


def test_a_large_argument_is_waited_for() -> None:
    reader = RequestReader()
    reader.feed(b"*2\r\n$4\r\nECHO\r\n$1000000\r\n" + b"x" * 10)
    assert reader.next_request(authenticated=True) is None
    assert reader.wanted == 1_000_000 - 10 + 2
    assert reader.in_request
    reader.feed(b"x" * 999_990 + b"\r\n")
    assert reader.next_request(authenticated=True) == [b"ECHO", b"x" * 1_000_000]
    assert reader.empty
    assert reader.wanted == 0


def test_the_largest_argument_and_one_more() -> None:
    assert read([b"*1\r\n$536870912\r\n"]) == ([], None)
    assert read([b"*1\r\n$1000\r\n"], bulk_limit=1000) == ([], None)
    assert read([b"*1\r\n$1001\r\n"], bulk_limit=1000) == ([], "invalid bulk length")


@pytest.mark.parametrize("count", [ARGUMENTS_OF_A_LANE + 1, 2**31 - 1])
def test_more_arguments_than_a_lane_takes(count: int) -> None:
    """The reader hands on what it was given, so that the upstream itself can judge it."""
    data = b"*%d\r\n$4\r\nMGET\r\n" % count
    reader = RequestReader()
    reader.feed(BEHIND + data)
    assert reader.next_request(authenticated=True) == [b"PING"]
    with pytest.raises(LargeRequestError):
        reader.next_request(authenticated=True)
    assert reader.pending == data


def test_as_many_arguments_as_a_lane_takes() -> None:
    assert read([b"*%d\r\n" % ARGUMENTS_OF_A_LANE]) == ([], None)


def test_limits_before_authentication() -> None:
    ten = pack([b"x"] * 10)
    assert read([ten], authenticated=False) == ([[b"x"] * 10], None)
    assert read([b"*11\r\n"], authenticated=False) == ([], "unauthenticated multibulk length")
    assert read([b"*2147483648\r\n"], authenticated=False) == ([], "invalid multibulk length")
    assert read([pack([b"x" * 16384])], authenticated=False) == ([[b"x" * 16384]], None)
    assert read([b"*1\r\n$16385\r\n"], authenticated=False) == ([], "unauthenticated bulk length")
    assert read([b"*1\r\n$536870913\r\n"], authenticated=False) == ([], "invalid bulk length")


def test_pending_and_take() -> None:
    reader = RequestReader()
    reader.feed(BEHIND + b"*2\r\n$4\r\nEC")
    assert reader.next_request(authenticated=True) == [b"PING"]
    assert reader.next_request(authenticated=True) is None
    assert reader.pending == b"*2\r\n$4\r\nEC"
    assert reader.in_request
    reader.feed(b"HO\r\n$0\r\n\r\n" + BEHIND)
    assert reader.next_request(authenticated=True) == [b"ECHO", b""]
    assert not reader.in_request
    assert reader.take() == BEHIND
    assert reader.empty


WORDS = {
    b"": [],
    b" \t\v\f": [],
    b"GET k": [b"GET", b"k"],
    b"GET  k ": [b"GET", b"k"],
    b'ECHO ""': [b"ECHO", b""],
    b"ECHO ''": [b"ECHO", b""],
    b'ECHO a"b"': [b"ECHO", b"ab"],
    b'ECHO "a"b': None,
    b'ECHO "a""b"': None,
    b"ECHO 'a'\"b\"": None,
    b'ECHO "': None,
    b"ECHO '": None,
    b'ECHO "\\': None,
    b'ECHO "\\"': None,
    b"ECHO '\\'": None,
    b'ECHO "\\""': [b"ECHO", b'"'],
    b"ECHO '\\''": [b"ECHO", b"'"],
    b"ECHO '\\n'": [b"ECHO", b"\\n"],
    b'ECHO "\\n\\r\\t\\b\\a\\q\\\\"': [b"ECHO", b"\n\r\t\b\aq\\"],
    b'ECHO "\\x00\\xfF\\xg0\\x1"': [b"ECHO", b"\0\xffxg0x1"],
    b"ECHO \\x41": [b"ECHO", b"\\x41"],
    b'ECHO "it\'s" \'say "hi"\'': [b"ECHO", b"it's", b'say "hi"'],
    b"ECHO a\0b c": [b"ECHO", b"a"],
}


@pytest.mark.parametrize(("line", "words"), WORDS.items())
def test_split_inline(line: bytes, words: list[bytes] | None) -> None:
    assert split_inline(line) == words


REPLIES = [
    b"+OK\r\n", b"+\r\n", b"-ERR no\r\n", b":0\r\n", b":-1\r\n",
    b"$0\r\n\r\n", b"$3\r\nabc\r\n", b"$5\r\n+\r\n+\r\r\n", b"$-1\r\n",
    b"*0\r\n", b"*-1\r\n", b"*2\r\n:1\r\n$1\r\na\r\n", b"*2\r\n*1\r\n*0\r\n*-1\r\n", b"*3\r\n$-1\r\n_\r\n*0\r\n",
    b"_\r\n", b"#t\r\n", b"#f\r\n", b",3.25\r\n", b",inf\r\n", b"(12345678901234567890\r\n",
    b"=7\r\ntxt:a\r\n\r\n", b"!3\r\nERR\r\n",
    b"%0\r\n", b"%1\r\n+k\r\n%1\r\n+k\r\n~0\r\n", b"~2\r\n:1\r\n:2\r\n",
    b"|1\r\n+ttl\r\n:9\r\n$1\r\na\r\n", b"*2\r\n|1\r\n+ttl\r\n*1\r\n:9\r\n:1\r\n:2\r\n", b"|0\r\n|0\r\n+OK\r\n",
]  # fmt: skip


@pytest.mark.parametrize("reply", REPLIES)
def test_where_a_reply_ends(reply: bytes) -> None:
    assert reply_end(reply) == len(reply)
    assert reply_end(b"+X\r\n" + reply + b"+Y\r\n", 4) == 4 + len(reply)
    assert [reply_end(reply[:size]) for size in range(len(reply))] == [-1] * len(reply)


@pytest.mark.parametrize("reply", REPLIES)
def test_skipping_resumes_at_any_byte(reply: bytes) -> None:
    for cut in range(len(reply)):
        position, outstanding, passing = skip_elements(reply[:cut], 0, 1)
        assert outstanding or passing
        if passing:
            assert position == cut
        position, outstanding, passing = skip_elements(reply, position + passing, outstanding)
        assert (position, outstanding, passing) == (len(reply), 0, 0)


STATES = {
    b"": (0, 1, 0),
    b"$5": (0, 1, 0),
    b"$5\r\n": (4, 0, 7),
    b"$5\r\nabcde": (9, 0, 2),
    b"$5\r\nabcde\r": (10, 0, 1),
    b"*2\r\n": (4, 2, 0),
    b"*2\r\n$5\r\nab": (10, 1, 5),
    b"%2\r\n+a\r\n": (8, 3, 0),
    b"|1\r\n": (4, 3, 0),
    b"*2\r\n*2\r\n:1\r\n:2": (12, 2, 0),
}


@pytest.mark.parametrize(("data", "state"), STATES.items())
def test_what_an_incomplete_reply_lacks(data: bytes, state: tuple[int, int, int]) -> None:
    assert skip_elements(data, 0, 1) == state


@pytest.mark.parametrize("junk", [b"HTTP/1.1 400\r\n", b"\r\n", b"*1\r\nX\r\n", b"?\r\n", b"\0\r\n"])
def test_bytes_that_are_no_reply(junk: bytes) -> None:
    with pytest.raises(Desync):
        reply_end(junk)


@pytest.mark.parametrize("kind", [b"$", b"*", b"%", b"=", b"|", b"~", b"!", b">", b"", b"?", b"$9", b"*-", b"$3\r\n"])
def test_what_is_wrong_with_a_reply_repeats_none_of_it(kind: bytes) -> None:
    with pytest.raises(Desync) as caught:
        reply_end(kind + b"QXZJVW\r\n" * 2)
    assert not set("QXZJVW") & set(str(caught.value))


@pytest.mark.parametrize("junk", [b"$a\r\n", b"$\r\n", b"*x\r\n", b"%1.5\r\n", b"=\r\n"])
def test_lengths_that_are_no_number(junk: bytes) -> None:
    with pytest.raises(Desync, match="a length that is none"):
        reply_end(junk)
