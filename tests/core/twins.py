"""Plain twins of the core's hot functions: written to be believed, not to be fast, and sharing no code with them.

A twin sees a whole stream at once and reads it from front to back, one frame after the other. Where it reads requests
it follows `processInlineBuffer`, `processMultibulkBuffer` (`networking.c`) and `sdssplitargs` (`sds.c`) of Redis 7.0.
"""

from __future__ import annotations

from typing import NamedTuple

LINE_LIMIT = 64 * 1024
SPACES = b" \t\n\v\f\r"  # isspace(): what is skipped before a word, and may follow a quote
ENDS = b" \t\n\r"  # ... and what ends a word, which is less
HEX = b"0123456789abcdefABCDEF"
LINES = b"+-:_#,("  # types of one line
LONGEST_HEADER = 32  # bytes of any other type's first line are more than enough
ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"a": b"\a"}


class Incomplete(Exception):
    """The frame goes on behind the bytes at hand."""


class Broken(Exception):
    """Redis would say `-ERR Protocol error: <text>` and close."""

    @property
    def reply(self) -> bytes:
        return b"-ERR Protocol error: " + str(self).replace("\r", " ").replace("\n", " ").encode("latin-1") + b"\r\n"


class NoReply(Exception):
    """A RESP server would never send this where a reply is due."""


# --- (a) requests ---


class Reading(NamedTuple):
    requests: list[list[bytes]]
    behind: list[bytes]  # what lay behind each of them
    leftover: bytes  # the beginning of a request, or what begins with the one that broke the protocol
    error: Broken | None


def canonical(request: list[bytes]) -> bytes:
    """A flat array of bulk strings."""
    frames = [b"$" + str(len(argument)).encode() + b"\r\n" + argument + b"\r\n" for argument in request]
    return b"*" + str(len(request)).encode() + b"\r\n" + b"".join(frames)


def read_requests(data: bytes, *, authenticated: bool = True, bulk_limit: int = 512 * 1024 * 1024) -> Reading:
    """All requests in `data`; an empty line and an empty array are none."""
    requests: list[list[bytes]] = []
    rests: list[bytes] = []
    while data:
        try:
            request, behind = read_request(data, authenticated=authenticated, bulk_limit=bulk_limit)
        except Incomplete:
            return Reading(requests, rests, data, None)
        except Broken as error:
            return Reading(requests, rests, data, error)
        if request:
            requests.append(request)
            rests.append(behind)
        data = behind
    return Reading(requests, rests, b"", None)


def read_request(data: bytes, *, authenticated: bool, bulk_limit: int) -> tuple[list[bytes], bytes]:
    """The request that `data` begins with, perhaps an empty one, and what lies behind. Raises Incomplete and Broken."""
    if data.startswith(b"*"):
        return _read_array(data, authenticated, bulk_limit)
    return _read_inline(data)


def _up_to(data: bytes, end: bytes, too_long: str) -> bytes:
    """What stands before `end`, sought as strchr() seeks: not beyond a NUL."""
    line, found, _ = data.partition(end)
    if not found or b"\0" in line:
        if len(data) > LINE_LIMIT:
            raise Broken(too_long)
        raise Incomplete
    return line


def _read_inline(data: bytes) -> tuple[list[bytes], bytes]:
    line = _up_to(data, b"\n", "too big inline request")
    behind = data[len(line) + 1 :]
    return split_words(line.removesuffix(b"\r")), behind


def split_words(line: bytes) -> list[bytes]:
    """The words of an inline command. A quoted word ends where its quote does, and a space has to follow."""
    words = []
    rest = line.lstrip(SPACES)
    while rest:
        word, rest = _split_word(rest)
        words.append(word)
        rest = rest.lstrip(SPACES)
    return words


def _split_word(rest: bytes) -> tuple[bytes, bytes]:
    word = b""
    while rest and rest[:1] not in _each(ENDS):
        first, rest = rest[:1], rest[1:]
        if first not in (b'"', b"'"):
            word += first
            continue
        quoted, rest = _split_quoted(first, rest)
        if rest and rest[:1] not in _each(SPACES):
            raise Broken("unbalanced quotes in request")
        return word + quoted, rest
    return word, rest


def _split_quoted(quote: bytes, rest: bytes) -> tuple[bytes, bytes]:
    value = b""
    while rest:
        if rest.startswith(quote):
            return value, rest[1:]
        if quote == b"'" and rest.startswith(b"\\'"):
            value, rest = value + b"'", rest[2:]
        elif quote == b'"' and rest.startswith(b"\\x") and len(rest) >= 4 and rest[2] in HEX and rest[3] in HEX:
            value, rest = value + bytes.fromhex(rest[2:4].decode()), rest[4:]
        elif quote == b'"' and rest.startswith(b"\\") and len(rest) >= 2:
            value, rest = value + ESCAPES.get(rest[1:2], rest[1:2]), rest[2:]
        else:
            value, rest = value + rest[:1], rest[1:]
    raise Broken("unbalanced quotes in request")


def _each(characters: bytes) -> list[bytes]:
    return [bytes([character]) for character in characters]


def _read_header(data: bytes, too_long: str) -> tuple[bytes, int | None, bytes]:
    """A line: its first byte, the integer behind that (None where Redis sees none), and what follows the line.

    Redis seeks the carriage return alone and steps over the byte behind it, whatever it is.
    """
    line = _up_to(data, b"\r", too_long)
    if len(data) < len(line) + 2:
        raise Incomplete
    return line[:1], _integer(line[1:]), data[len(line) + 2 :]


def _integer(text: bytes) -> int | None:
    """`string2ll`: one spelling for each integer of 64 bits."""
    digits = text.removeprefix(b"-")
    if not digits or len(digits) > 19 or any(digit not in b"0123456789" for digit in digits):
        return None
    value = int(text)
    if str(value).encode() != text or not -(2**63) <= value < 2**63:
        return None
    return value


def _read_array(data: bytes, authenticated: bool, bulk_limit: int) -> tuple[list[bytes], bytes]:
    _, count, data = _read_header(data, "too big mbulk count string")
    if count is None or count > 2**31 - 1:
        raise Broken("invalid multibulk length")
    if count > 10 and not authenticated:
        raise Broken("unauthenticated multibulk length")
    request = []
    for _ in range(count):
        argument, data = _read_argument(data, authenticated, bulk_limit)
        request.append(argument)
    return request, data


def _read_argument(data: bytes, authenticated: bool, bulk_limit: int) -> tuple[bytes, bytes]:
    kind, length, data = _read_header(data, "too big bulk count string")
    if not kind:  # the line is empty, so what stands there is its end
        kind = b"\r"
    if kind != b"$":
        raise Broken(f"expected '$', got '{kind.decode('latin-1')}'")
    if length is None or not 0 <= length <= bulk_limit:
        raise Broken("invalid bulk length")
    if length > 16384 and not authenticated:
        raise Broken("unauthenticated bulk length")
    if len(data) < length + 2:
        raise Incomplete
    return data[:length], data[length + 2 :]  # nor does Redis look at the two bytes behind a value


# --- (b) replies ---


def split_replies(data: bytes) -> tuple[list[bytes], bytes]:
    """All whole replies in `data`, and the beginning of the next. Raises NoReply for a push and for what is no RESP."""
    replies = []
    while data:
        try:
            size = _reply_size(data)
        except Incomplete:
            break
        replies.append(data[:size])
        data = data[size:]
    return replies, data


def _reply_size(data: bytes) -> int:
    if data.startswith(b">"):
        raise NoReply("a push")
    return _element_size(data)


def _element_size(data: bytes) -> int:
    kind = data[:1]
    if kind not in _each(b"+-:_#,($=!*~%|"):
        raise NoReply("an unknown type")
    line, found, _ = data.partition(b"\r\n")
    if not found:
        if kind not in _each(LINES) and len(line) > LONGEST_HEADER:
            raise NoReply("no length, whatever comes")
        raise Incomplete
    size = len(line) + 2
    if kind in _each(LINES):
        return size
    length = _integer(line[1:])
    if length is None or length < -1 or (length == -1 and kind not in (b"$", b"*")):
        raise NoReply("no length")
    if kind in (b"$", b"=", b"!"):
        return size + _bulk_size(data[size:], length)
    elements = {b"*": max(0, length), b"~": length, b"%": 2 * length, b"|": 2 * length + 1}[kind]
    for _ in range(elements):
        if len(data) == size:
            raise Incomplete
        size += _element_size(data[size:])
    return size


def _bulk_size(data: bytes, length: int) -> int:
    if length == -1:
        return 0
    if not b"\r\n".startswith(data[length : length + 2]):
        raise NoReply("no line end behind a bulk string")
    if len(data) < length + 2:
        raise Incomplete
    return length + 2


# --- (c) a lane ---


def deliver(replies: bytes, callers: list[str]) -> dict[str, bytes]:
    """Who gets which bytes: the first reply goes to the first caller, and so on. Raises NoReply for a surplus one."""
    gets = dict.fromkeys(callers, b"")
    whole, beginning = split_replies(replies)
    if len(whole) + bool(beginning) > len(callers):
        raise NoReply("nobody asked")
    for caller, reply in zip(callers, whole, strict=False):
        gets[caller] += reply
    return gets
