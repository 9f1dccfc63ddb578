"""Whether two servers said the same: byte for byte, but for what no two servers of the same version agree on.

Bytes that are equal are equal, whatever they are. Where they differ, a table of rules says what may, each with its
reason. A rule goes by the request that a reply belongs to; where that is not known for sure (pushes, subscriptions,
blocked commands, CLIENT REPLY), the rules of all that the connection has asked hold for all that it hears. An error is
never excused.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from tests.system.wire import AGGREGATES, BULKS, LINES, PAIRS, split_replies

from .steps import packed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .steps import Request


class Reply(NamedTuple):
    """A parsed reply: a line or a string has bytes, everything else has items."""

    kind: int
    content: bytes | tuple[Reply, ...]


def parse(data: bytes, start: int = 0) -> tuple[Reply, int]:
    """The reply that begins at `start`, and where it ends; it is known to be complete."""
    line_end = data.index(b"\r\n", start)
    kind, line, at = data[start], data[start + 1 : line_end], line_end + 2
    if kind in LINES:
        return Reply(kind, line), at
    count = int(line)
    if kind in BULKS:
        return (Reply(kind, data[at : at + count]), at + count + 2) if count >= 0 else (Reply(ord("_"), b""), at)
    if kind not in AGGREGATES + PAIRS:
        raise ValueError(f"no reply begins with {data[start : start + 40]!r}")
    if count < 0:
        return Reply(ord("_"), b""), at
    items = []
    for _ in range(count * 2 if kind in PAIRS else count):
        item, at = parse(data, at)
        items.append(item)
    return Reply(kind, tuple(items)), at


# --- what a rule makes of a reply ---


def unordered(reply: Reply) -> Reply:
    """The same items in an order that does not depend on a hash seed; a map's pairs stay pairs."""
    if isinstance(reply.content, bytes):
        return reply
    items = [unordered(item) for item in reply.content]
    if reply.kind in PAIRS:
        pairs = sorted(zip(items[::2], items[1::2], strict=True), key=repr)
        return Reply(reply.kind, tuple(item for pair in pairs for item in pair))
    return Reply(reply.kind, tuple(sorted(items, key=repr)))


def shape(reply: Reply) -> Reply:
    """The types, and how many items, but not what they are."""
    if isinstance(reply.content, bytes):
        return reply if reply.kind in b"-!_" else Reply(reply.kind, b"?")
    return Reply(reply.kind, tuple(map(shape, reply.content)))


def kind_alone(reply: Reply) -> Reply:
    """The type of the whole, and no more."""
    return reply if reply.kind in b"-!_" else Reply(reply.kind, b"?")


def length(reply: Reply) -> Reply:
    """A string's length."""
    return Reply(reply.kind, b"%d" % len(reply.content)) if reply.kind in BULKS else reply


_STREAM_ID = re.compile(rb"\b[0-9]{13}-[0-9]+\b")


def no_clock_ids(reply: Reply) -> Reply:
    """Stream ids that a server made from its clock are all one."""
    if isinstance(reply.content, bytes):
        return Reply(reply.kind, _STREAM_ID.sub(b"<id>", reply.content))
    return Reply(reply.kind, tuple(map(no_clock_ids, reply.content)))


def no_connection_id(reply: Reply) -> Reply:
    """The number behind `id` in what HELLO says."""
    if isinstance(reply.content, bytes):
        return reply
    items = list(reply.content)
    for at, item in enumerate(items[:-1]):
        if item.content == b"id":
            items[at + 1] = shape(items[at + 1])
    return Reply(reply.kind, tuple(items))


def unsubscribed_in_any_order(reply: Reply) -> Reply:
    """UNSUBSCRIBE without channels leaves them in the order of a hash table: the counts stay, the names don't."""
    if isinstance(reply.content, tuple) and len(reply.content) == 3 and b"unsubscribe" in _bytes(reply.content[0]):
        what, name, left = reply.content
        return Reply(reply.kind, (what, shape(name), left))
    return reply


def _bytes(reply: Reply) -> bytes:
    return reply.content if isinstance(reply.content, bytes) else b""


class Rule(NamedTuple):
    """For replies to requests in which `asked` occurs: what may differ."""

    asked: re.Pattern[bytes]
    seen: Callable[[Reply], Reply]
    near: int = 0  # numbers may differ by so much, where both are at least 0
    why: str = ""


def _rule(asked: str, seen: Callable[[Reply], Reply], why: str, near: int = 0) -> Rule:
    return Rule(re.compile(rb"\b(?:" + asked.encode() + rb")\b"), seen, near, why)


def _as_is(reply: Reply) -> Reply:
    return reply


ORDER = "a hash table's order depends on the server's hash seed"
CLOCK = "the two servers are asked one after the other"
RANDOM = "random by nature"
OWN = "about the process or its connections"

# In this order: what looks for a place in a reply comes before what changes places.
RULES = [
    _rule("HELLO", no_connection_id, OWN),
    _rule("P?UNSUBSCRIBE|SUNSUBSCRIBE", unsubscribed_in_any_order, ORDER),
    _rule("SMEMBERS|SINTER|SUNION|SDIFF|KEYS|HGETALL|HKEYS|HVALS|SORT|SORT_RO|SPOP", unordered, ORDER),
    _rule("PUBSUB|CONFIG|COMMAND|ACL|FUNCTION", unordered, ORDER),
    _rule(r"(?:SCAN|[SHZ]SCAN \S+) 0 .*COUNT 1000", unordered, ORDER),
    _rule(r"SCAN(?! 0 .*COUNT 1000)|[SHZ]SCAN(?! \S+ 0 .*COUNT 1000)", kind_alone, "a cursor is a place in a table"),
    _rule("SRANDMEMBER|HRANDFIELD|ZRANDMEMBER|RANDOMKEY|ACL GENPASS", shape, RANDOM),
    _rule("DUMP", length, "members are dumped in a hash table's order, and a checksum follows"),
    _rule("XADD|XREAD|XREADGROUP|XRANGE|XREVRANGE|XINFO|XPENDING|XCLAIM|XAUTOCLAIM|EVAL", no_clock_ids, CLOCK),
    _rule("H?TTL|H?EXPIRETIME", _as_is, CLOCK, near=10),
    _rule("H?PTTL|H?PEXPIRETIME", _as_is, CLOCK, near=10_000),
    _rule("XPENDING|XINFO", _as_is, CLOCK, near=10_000),
    _rule("LASTSAVE|OBJECT IDLETIME|ROLE", _as_is, CLOCK, near=100),
    _rule("TIME", shape, CLOCK),
    _rule("CLIENT ID|MEMORY USAGE", shape, OWN),
    _rule("INFO|CLIENT LIST|CLIENT INFO|MEMORY|SLOWLOG|LATENCY|ACL LOG", kind_alone, OWN),
]  # fmt: skip


# --- replies against replies ---


def first_difference(expected: list[bytes], got: list[bytes], asked: Sequence[Request], before: int) -> int | None:
    """The number of the first reply that is not what it has to be.

    `asked` is all that the connection has asked for, `before` how many of it before this step.
    """
    if expected == got:
        return None
    texts = [b" ".join(request).upper() if isinstance(request, tuple) else None for request in asked]
    step = texts[before:]
    everything = _in_words(b"".join(map(packed, asked)))
    each_has_one = len(step) == len(expected) and None not in step and not _NOT_ONE_EACH.search(everything)
    expected, got = _patterns_in_order(expected), _patterns_in_order(got)
    if _BROADCAST.search(everything):
        expected, got = _invalidated_together(expected), _invalidated_together(got)
    for number in range(max(len(expected), len(got))):
        if number >= len(expected) or number >= len(got):
            return number
        if expected[number] == got[number]:
            continue
        if each_has_one and step[number] == b"EXEC":
            alike = _alike_each(expected[number], got[number], _since_the_last_transaction(texts[: before + number]))
        elif each_has_one:
            alike = _alike(parse(expected[number])[0], parse(got[number])[0], step[number] or b"")
        else:
            alike = _alike(parse(expected[number])[0], parse(got[number])[0], everything)
            alike = alike or (b"EXEC" in everything and _alike_each(expected[number], got[number], everything))
        if not alike:
            return number
    return None


_NOT_ONE_EACH = re.compile(rb"SUBSCRIBE|CLIENT REPLY|CLIENT TRACKING")


def _in_words(data: bytes) -> bytes:
    """Packed requests as text, a line for each."""
    return re.sub(rb"\*[0-9]+\r\n", b"\n", re.sub(rb"\$[0-9]+\r\n", b"", data)).upper().replace(b"\r\n", b" ")


def _patterns_in_order(replies: list[bytes]) -> list[bytes]:
    """A message that several patterns of one client match comes once for each, in a hash table's order."""
    ordered: list[bytes] = []
    copies: list[bytes] = []  # of one message
    for reply in replies:
        is_copy = reply[4:17] == b"$8\r\npmessage\r"
        if not is_copy or (copies and _message(copies[0]) != _message(reply)):
            ordered += sorted(copies)
            copies = []
        (copies if is_copy else ordered).append(reply)
    ordered += sorted(copies)
    return ordered


_BROADCAST = re.compile(rb"CLIENT TRACKING ON[^\n]* BCAST")


def _invalidated_together(replies: list[bytes]) -> list[bytes]:
    """In broadcast mode a server tells which keys have changed once in each turn of its loop, and each key once. What
    is one turn directly, LPUSH and BLMOVE in one write, is two behind coalesce: one on a lane, and one on a lease.
    So invalidations without anything between are one.
    """
    together: list[bytes] = []
    keys: set[bytes] = set()
    for reply in [*replies, b""]:
        if reply.startswith(_INVALIDATION):
            keys.update(split_replies(_keys(reply))[0])
            continue
        together += [_INVALIDATION + b"*%d\r\n" % len(keys) + b"".join(sorted(keys))] if keys else []
        together += [reply] if reply else []
        keys.clear()
    return together


_INVALIDATION = b">2\r\n$10\r\ninvalidate\r\n"


def _keys(invalidation: bytes) -> bytes:
    """Keys one behind another; a null where all are meant."""
    keys = invalidation.removeprefix(_INVALIDATION)
    return keys.partition(b"\r\n")[2] if keys.startswith(b"*") else keys


def _message(reply: bytes) -> tuple[Reply, ...]:
    content = parse(reply)[0].content
    return content[2:] if isinstance(content, tuple) else ()


def _since_the_last_transaction(texts: list[bytes | None]) -> bytes:
    begin = max((at + 1 for at, text in enumerate(texts) if text in {b"EXEC", b"DISCARD", b"RESET"}), default=0)
    return b"\n".join(text for text in texts[begin:] if text is not None)


def _alike_each(expected: bytes, got: bytes, asked: bytes) -> bool:
    """What EXEC replies: the order of its items counts."""
    left, right = parse(expected)[0], parse(got)[0]
    if isinstance(left.content, bytes) or isinstance(right.content, bytes):
        return left == right
    return len(left.content) == len(right.content) and all(
        _alike(one, other, asked) for one, other in zip(left.content, right.content, strict=True)
    )


def _alike(left: Reply, right: Reply, asked: bytes) -> bool:
    near = 0
    for rule in RULES:
        if left != right and rule.asked.search(asked):
            left, right = rule.seen(left), rule.seen(right)
            near = max(near, rule.near)
    return _nearly(left, right, near)


def _nearly(left: Reply, right: Reply, near: int) -> bool:
    if left == right:
        return True
    if left.kind != right.kind:
        return False
    if isinstance(left.content, tuple) and isinstance(right.content, tuple):
        return len(left.content) == len(right.content) and all(
            _nearly(one, other, near) for one, other in zip(left.content, right.content, strict=True)
        )
    if left.kind != ord(":") or isinstance(left.content, tuple) or isinstance(right.content, tuple):
        return False
    one, other = int(left.content), int(right.content)
    return one >= 0 and other >= 0 and abs(one - other) <= near
