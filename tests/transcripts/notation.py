"""From the text of transcripts to steps."""

from __future__ import annotations

import ast
import re
from typing import NamedTuple

# What clients authenticate with to coalesce, with `options locked=1`.
DOOR = b"sesame"

_BULKS = "$=!"
_AGGREGATES = {"*": 1, "~": 1, ">": 1, "%": 2}


class Step(NamedTuple):
    line: str  # as written, for messages
    who: str  # "c1", "u0", "l1", "admin"
    verb: str
    data: bytes  # for >> and <<, and what a refusal says
    rest: str  # of the line, behind the verb


class Transcript(NamedTuple):
    name: str
    options: dict[str, int]
    steps: list[Step]


def parse(text: str) -> list[Transcript]:
    """Transcripts begin with `== name`; empty lines and lines with `#` say nothing."""
    transcripts: list[Transcript] = []
    for line in map(str.strip, text.splitlines()):
        if not line or line.startswith("#"):
            continue
        if line.startswith("== "):
            transcripts.append(Transcript(line[3:], {}, []))
        elif line.startswith("options "):
            pairs = (word.split("=") for word in line.split()[1:])
            transcripts[-1].options.update({name: int(value) for name, value in pairs})
        else:
            transcripts[-1].steps.append(_step(line))
    return transcripts


def _step(line: str) -> Step:
    found = re.fullmatch(r"([cul]\d+|admin) (>>|<<|\w+) ?(.*)", line)
    if not found:
        raise ValueError(f"not a step: {line!r}")
    who, verb, rest = found.groups()
    data = b""
    if verb in {">>", "<<"}:
        to_the_upstream = (who[0] == "c") == (verb == ">>")
        data = request(rest) if to_the_upstream else reply(rest)
    elif verb == "refuses":
        data = reply(rest)
    return Step(line, who, verb, data, rest)


def request(text: str) -> bytes:
    if text.startswith("b'"):
        return _literal(text)
    words = [word.encode() for word in text.split()]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def reply(text: str) -> bytes:
    if text.startswith("b'"):
        return _literal(text)
    data, rest = _element(text)
    if rest:
        raise ValueError(f"more than one reply: {text!r}")
    return data


def _literal(text: str) -> bytes:
    value = ast.literal_eval(text)
    if not isinstance(value, bytes):
        raise TypeError(text)
    return value


def _element(text: str) -> tuple[bytes, str]:
    kind = text[0]
    if kind in _BULKS:
        head, _, rest = text.partition(" ")
        length = int(head[1:])
        if length < 0:
            return head.encode() + b"\r\n", rest
        value, rest = rest[:length], rest[length:].removeprefix(" ")
        if len(value) != length:
            raise ValueError(f"a bulk string shorter than it says: {text!r}")
        return f"{head}\r\n{value}\r\n".encode(), rest
    if kind in _AGGREGATES:
        head, _, rest = text.partition(" ")
        data = head.encode() + b"\r\n"
        for _ in range(max(0, int(head[1:])) * _AGGREGATES[kind]):
            element, rest = _element(rest)
            data += element
        return data, rest
    if kind in ":_#":  # within an aggregate, the line of these types ends at the next space
        head, _, rest = text.partition(" ")
        return head.encode() + b"\r\n", rest
    return text.encode() + b"\r\n", ""


