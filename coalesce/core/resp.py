"""Where a request or a reply ends: RESP2, RESP3 and inline commands.

The only module that imports hiredis. It knows no sessions, lanes or commands.

Requests. `hiredis.pack_command` writes the canonical form of a request, and that is what travels on a lane (I9). The
form is also how a request is *checked*. A chunk is cut at its line ends, the arguments are picked out of the pieces,
packed again, and the result compared with the chunk. If they are equal, then the chunk was exactly that canonical
request and nothing else: no integer inside the array, no nested array, no second request in hiding. All else (split
requests, inline commands, values that hold a line end, malice) goes to `RequestReader`, which reads as Redis reads.

Why not `hiredis.Reader` for the requests: it allocates whatever count a header states, nested ones too, it takes types
for requests that Redis does not, and it tells no offsets. Fencing it in cost more than it saved. Measured, a 64-byte
SET and a GET, packing included: hiredis 0.57 and 0.44 us, and 0.2 to 0.3 us more for the fence; cut, pack and compare
0.58 and 0.42 us.

Replies. Only their ends are sought, the bytes are forwarded raw (I8). A reply is counted in elements:
`outstanding` starts at 1, a scalar takes one off, an array of n adds n - 1. It needs no stack, and it can stop and
resume at any element, so a reply of any size passes without being collected.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import hiredis

from coalesce.core.errors import ClientError, Desync

if TYPE_CHECKING:
    from collections.abc import Callable

CRLF = b"\r\n"

# Redis: PROTO_INLINE_MAX_SIZE. The longest line without an end that it waits for, inline command or length.
INLINE_LIMIT = 64 * 1024
# Redis: the limits of a connection that has not authenticated (CVE-2021-32675).
UNAUTHENTICATED_ARGUMENTS = 10
UNAUTHENTICATED_BULK = 16384
# Redis 7 takes up to INT_MAX arguments, Redis 6.2 up to 1024 * 1024: each says it itself, as what has many goes to a
# connection of its own. Each argument takes 2 us of everybody's time, and what is passed on there takes none.
ARGUMENTS_LIMIT = 2**31 - 1
ARGUMENTS_OF_A_LANE = 32 * 1024
# Redis: proto-max-bulk-len, its default. An upstream's own value is asked for when it is dialled.
BULK_LIMIT = 512 * 1024 * 1024

# Redis: string2ll. No sign but a minus, no leading zero, no space.
_INTEGER = re.compile(rb"0|-?[1-9][0-9]{0,18}")

# Counts of the array headers that the quick check takes. Longer arrays are rare, and take RequestReader.
ARRAY_HEADERS = {b"*%d" % count: count for count in range(1, 1025)}


# Arguments still to come from which on a request is a crowd, if the one at hand has fewer bytes than this.
_CROWD = 128
_SMALL = 2048

# What an argument takes besides its bytes: an object (33 bytes, and up to 15 to the next multiple of 16), and a place.
_ARGUMENT = 56

# hiredis builds a request aside and then copies it, so a large one would stand in memory once more. Bytes.
_LARGE = 1024 * 1024

# The canonical request of a tuple of arguments: a flat array of bulk strings. (hiredis's stub says: a tuple of one.)
pack_tuple: Callable[[tuple[bytes, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]


def pack(arguments: list[bytes]) -> bytes:
    """The canonical request."""
    if sum(map(len, arguments)) < _LARGE:
        return pack_tuple(tuple(arguments))
    pieces = [b"*%d\r\n" % len(arguments)]
    for argument in arguments:
        pieces += (b"$%d\r\n" % len(argument), argument, CRLF)
    return b"".join(pieces)


def unpack(requests: bytes) -> list[bytes]:
    """Canonical requests, each by itself. An inline one may have had more arguments than an array may have here."""
    pieces = []
    position = 0
    while position < len(requests):
        start = position
        end = requests.index(CRLF, position)
        count = int(requests[position + 1 : end])
        position = end + 2
        for _ in range(count):
            end = requests.index(CRLF, position)
            position = end + 2 + int(requests[position + 1 : end]) + 2
        pieces.append(requests[start:position])
    return pieces


class LargeRequestError(Exception):
    """More, or longer, arguments than every Redis takes on a connection that others depend on."""


class RequestReader:
    """One client's requests, read as Redis reads them (`processInputBuffer` in `networking.c`, 7.0).

    Bytes stay in the buffer from the start of the request that is being read, so that `pending` can hand them on raw.
    Scanning resumes where it stopped: a value of 100 MB in 6,000 chunks costs 6,000 steps, not 6,000 scans.
    """

    __slots__ = ("_arguments", "_buffer", "_bulk", "_missing", "_position", "_taken", "bulk_limit")

    def __init__(self, bulk_limit: int = BULK_LIMIT) -> None:
        self._buffer = bytearray()
        self._position = 0  # what has been read of the request that the buffer starts with
        self._missing = 0  # arguments still to come; 0 is "between requests"
        self._bulk = -1  # length of the argument that is being read, -1 when its header is still to come
        self._arguments: list[bytes] = []
        self._taken = 0  # what these take, in bytes
        self.bulk_limit = bulk_limit

    def __repr__(self) -> str:
        return f"<RequestReader buffered={len(self._buffer)} missing={self._missing}>"

    def feed(self, data: bytes) -> None:
        self._buffer += data

    @property
    def pending(self) -> bytes:
        """All bytes of requests not yet returned by `next_request`."""
        return bytes(self._buffer)

    @property
    def held(self) -> int:
        """How many bytes `pending` has."""
        return len(self._buffer)

    @property
    def weight(self) -> int:
        """How many bytes it takes: `held`, and once more the arguments of the request that is being read."""
        return len(self._buffer) + self._taken

    @property
    def empty(self) -> bool:
        return not self._buffer

    @property
    def in_request(self) -> bool:
        """Whether a part of a request has been read."""
        return bool(self._missing)

    @property
    def crowded(self) -> bool:
        """Whether the request being read still lacks many arguments, and the one at hand is no large one."""
        return self._missing > _CROWD and self.wanted < _SMALL

    @property
    def wanted(self) -> int:
        """How many bytes the argument at hand still lacks; 0 when that is unknown."""
        if self._bulk < 0:
            return 0
        return max(0, self._position + self._bulk + 2 - len(self._buffer))

    def take(self) -> bytes:
        """The bytes after the last whole request; the reader is as new afterwards. Only between requests."""
        data = bytes(self._buffer)
        self._buffer.clear()
        self._position = 0
        return data

    def skip(self) -> None:
        """Goes on behind the inline request that LargeRequestError was raised for."""
        del self._buffer[: self._position]
        self._position = 0

    def next_request(self, authenticated: bool) -> list[bytes] | None:
        """The arguments of the next request, at least one; None when more bytes are needed.

        Raises ClientError where Redis replies with a protocol error and closes, LargeRequestError where a lane must
        not carry the request. The reader is of no use after either, but for `pending`, and for `skip` after the latter.
        """
        while self._buffer:
            if self._missing or self._buffer[0] == 42:  # "*"
                arguments = self._read_array(authenticated)
            else:
                arguments = self._read_inline(authenticated)
            if arguments is None:
                return None
            del self._buffer[: self._position]
            self._position = 0
            if arguments:  # an empty line and an empty array are read over without a reply
                return arguments
        return None

    def _line(self, end: bytes, too_long: str) -> int:
        """Where the line at the position ends, or -1. Redis looks with strchr(), so a NUL hides what is behind it."""
        found = self._buffer.find(end, self._position)
        if found >= 0 and self._buffer.find(0, self._position, found) >= 0:
            found = -1
        if found < 0 and len(self._buffer) - self._position > INLINE_LIMIT:
            raise ClientError(too_long)
        return found

    def _read_inline(self, authenticated: bool) -> list[bytes] | None:
        end = self._line(b"\n", "too big inline request")
        if end < 0:
            return None
        line = bytes(self._buffer[: end - 1 if end and self._buffer[end - 1] == 13 else end])
        self._position = end + 1
        arguments = split_inline(line)
        if arguments is None:
            raise ClientError("unbalanced quotes in request")
        if not authenticated and (len(arguments) > UNAUTHENTICATED_ARGUMENTS or len(line) > UNAUTHENTICATED_BULK):
            raise LargeRequestError  # Redis takes it, and would not take it as an array
        return arguments

    def _read_length(self, too_long: str) -> int | None:
        """The integer behind the type byte at the position, which moves on to the next line; None when incomplete.

        Redis seeks the carriage return alone and takes whatever follows it for the line feed.
        """
        end = self._line(b"\r", too_long)
        if end < 0 or end + 2 > len(self._buffer):
            return None
        text = bytes(self._buffer[self._position + 1 : end])
        self._position = end + 2
        if not _INTEGER.fullmatch(text) or not -(2**63) <= int(text) < 2**63:
            return -(2**63) - 1  # no such length: every caller refuses it
        return int(text)

    def _read_array(self, authenticated: bool) -> list[bytes] | None:
        if not self._missing:
            count = self._read_count(authenticated)
            if count is None:
                return None
            self._missing = max(0, count)
        while self._missing:
            if self._bulk < 0:
                length = self._read_bulk_length(authenticated)
                if length is None:
                    return None
                self._bulk = length
            end = self._position + self._bulk
            if len(self._buffer) < end + 2:
                return None
            self._arguments.append(bytes(memoryview(self._buffer)[self._position : end]))
            self._taken += self._bulk + _ARGUMENT
            self._position = end + 2  # Redis does not look at the two bytes behind a value either
            self._bulk = -1
            self._missing -= 1
        arguments, self._arguments = self._arguments, []
        self._taken = 0
        return arguments

    def _read_count(self, authenticated: bool) -> int | None:
        count = self._read_length("too big mbulk count string")
        if count is None:
            return None
        if not -(2**63) <= count <= ARGUMENTS_LIMIT:
            raise ClientError("invalid multibulk length")
        if count > UNAUTHENTICATED_ARGUMENTS and not authenticated:
            raise ClientError("unauthenticated multibulk length")
        if count > ARGUMENTS_OF_A_LANE:
            raise LargeRequestError
        return count

    def _read_bulk_length(self, authenticated: bool) -> int | None:
        start = self._position
        length = self._read_length("too big bulk count string")
        if length is None:
            return None
        kind = self._buffer[start]
        if kind != 36:  # "$"
            raise ClientError(f"expected '$', got '{chr(kind)}'")
        if not 0 <= length <= self.bulk_limit:
            raise ClientError("invalid bulk length")
        if length > UNAUTHENTICATED_BULK and not authenticated:
            raise ClientError("unauthenticated bulk length")
        return length


_SPACES = b" \t\n\v\f\r"  # isspace(): skipped between arguments
_ENDS = b" \t\n\r"  # ... and what ends an argument, which is less
_ESCAPES = {ord("n"): b"\n", ord("r"): b"\r", ord("t"): b"\t", ord("b"): b"\b", ord("a"): b"\a"}


def split_inline(line: bytes) -> list[bytes] | None:
    """The arguments of an inline command, None where quotes are unbalanced (Redis: `sdssplitargs` in `sds.c`)."""
    line = line.partition(b"\0")[0]
    arguments: list[bytes] = []
    position = 0
    while True:
        while position < len(line) and line[position] in _SPACES:
            position += 1
        if position == len(line):
            return arguments
        argument = bytearray()
        while position < len(line) and line[position] not in _ENDS:
            quote = line[position]
            position += 1
            if quote not in b"\"'":
                argument.append(quote)
                continue
            closed = _unquote(line, position, quote, argument)
            if closed is None or (closed < len(line) and line[closed] not in _SPACES):
                return None  # no end, or something right behind it
            position = closed
            break  # the argument ends with its quote, also before a space that would not end it
        arguments.append(bytes(argument))


def _unquote(line: bytes, position: int, quote: int, argument: bytearray) -> int | None:
    """Appends what is quoted to `argument`; the position behind the closing quote, None where there is none."""
    double = quote == 34
    while position < len(line):
        byte = line[position]
        if byte == quote:
            return position + 1
        if byte == 92 and double and re.match(rb"x[0-9a-fA-F]{2}", line[position + 1 : position + 4]):
            argument.append(int(line[position + 2 : position + 4], 16))
            position += 4
        elif byte == 92 and double and position + 1 < len(line):
            argument += _ESCAPES.get(line[position + 1], line[position + 1 : position + 2])
            position += 2
        elif byte == 92 and not double and line[position + 1 : position + 2] == b"'":
            argument += b"'"
            position += 2
        else:
            argument.append(byte)
            position += 1
    return None


_LINES = frozenset(b"+-:_#,(")
_BULKS = frozenset(b"$=!")
_ARRAYS = frozenset(b"*~")
# The same where pushes are expected, which RESP3 writes like arrays.
WITH_PUSHES = frozenset(b"*~>")
# The lengths of most bulk strings: quicker to look up than to convert, and then known to be written as they should be.
SHORT_LENGTHS = {b"%d" % length: length for length in range(1024)}


def _length(digits: bytes, least: int = 0) -> int:
    """A length or count in a reply. Raises Desync for anything but plain digits, or -1 where `least` allows it.

    What stands there instead may be somebody's value, and the text is for the log.
    """
    if not _INTEGER.fullmatch(digits) or not least <= int(digits) < 2**63:
        raise Desync("a length that is none")
    return int(digits)


def skip_elements(  # noqa: C901 (one walk: a type each)
    data: bytes, position: int, outstanding: int, arrays: frozenset[int] = _ARRAYS
) -> tuple[int, int, int]:
    """Goes on through a reply that lacks `outstanding` elements, as far as `data` reaches.

    Returns (position, outstanding, passing). The reply is whole when the last two are 0. `passing` counts the bytes
    that the bulk string at the end of `data` still lacks, its line end included. Raises Desync for bytes that are no
    RESP, and for a push, which answers no request, unless `arrays` is WITH_PUSHES.
    """
    size = len(data)
    find = data.find
    short = SHORT_LENGTHS.get
    while outstanding:
        end = find(CRLF, position)
        if end < 0:
            break
        kind = data[position]
        if kind in _LINES:
            outstanding -= 1
            position = end + 2
        elif kind in _BULKS:
            length = short(data[position + 1 : end])
            if length is None:
                length = _length(data[position + 1 : end], least=-1 if kind == 36 else 0)  # the null of RESP2
            outstanding -= 1
            position = end + 2 if length < 0 else end + length + 4
            if position > size:
                if position == size + 1 and data[size - 1] != 13:
                    raise Desync("a bulk string without an end")
                return size, outstanding, position - size
            if data[position - 1] != 10 or data[position - 2] != 13:
                raise Desync("a bulk string without an end")
        elif kind in arrays:
            outstanding += max(0, _length(data[position + 1 : end], least=-1 if kind == 42 else 0)) - 1
            position = end + 2
        elif kind == 37:  # "%", a map: pairs
            outstanding += 2 * _length(data[position + 1 : end]) - 1
            position = end + 2
        elif kind == 124:  # "|", attributes: pairs in front of the element that they speak of
            outstanding += 2 * _length(data[position + 1 : end])
            position = end + 2
        else:
            raise Desync("a push on a lane" if kind == 62 else "a reply of unknown type")
    return position, outstanding, 0


def _before_half_an_end(data: bytes) -> int:
    return len(data) - data.endswith(b"\r")


# A length, its type and its line end have no more bytes than this.
_LONGEST_HEADER = 32


class Passage:
    """A reply that is passed on as it comes, of any size and any depth: what it still lacks.

    A line (a script's status may have 16 MB) is passed on like the rest: nothing but the beginning of a length, or half
    a line end, has to be kept. So the cost is linear, whatever the reply is made of.
    """

    __slots__ = ("_arrays", "_in_line", "_outstanding", "_passing")

    def __init__(self, arrays: frozenset[int] = _ARRAYS) -> None:
        self._arrays = arrays
        self._outstanding = 1  # elements missing,
        self._passing = 0  # ... bytes missing of the bulk string at hand, its line end included,
        self._in_line = False  # ... and whether it is in the middle of a line, which is one of the elements

    @property
    def over(self) -> bool:
        return not (self._outstanding or self._passing)

    @property
    def crowded(self) -> bool:
        """Whether elements are still to come, and the one at hand is no large one."""
        return not (self._passing or self._in_line)

    def skip(self, data: bytes, position: int = 0) -> int:
        """How far `data`, from `position` on, is this reply's.

        If it is not over then, what lies behind is to be handed in again, with what follows. Raises as `skip_elements`.
        """
        if self._in_line:
            end = data.find(CRLF, position)
            if end < 0:
                return _before_half_an_end(data)
            self._in_line = False
            self._outstanding -= 1
            position = end + 2
        elif self._passing:
            position = self._skip_bulk(data, position)
            if self._passing:
                return position
        position, self._outstanding, self._passing = skip_elements(data, position, self._outstanding, self._arrays)
        if self._outstanding and not self._passing and position < len(data):
            if data[position] in _LINES:
                self._in_line = True
                return _before_half_an_end(data)
            if len(data) - position > _LONGEST_HEADER:
                raise Desync("a length without an end")
        return position

    def _skip_bulk(self, data: bytes, position: int) -> int:
        before = self._passing
        passed = min(before, len(data) - position)
        self._passing -= passed
        # The line end may come in two chunks.
        if before > 1 >= self._passing and data[position + before - 2] != 13:
            raise Desync("a bulk string without an end")
        position += passed
        if not self._passing and data[position - 1] != 10:
            raise Desync("a bulk string without an end")
        return position


def reply_end(data: bytes, position: int = 0) -> int:
    """Where the reply at `position` ends, -1 when it is incomplete. Raises as `skip_elements`."""
    end, outstanding, passing = skip_elements(data, position, 1)
    return -1 if outstanding or passing else end
