r"""How the bytes of an input are a sequence of steps, so that a small mutation is a small change of what happens.

head | step | step | ...      the first two bytes are settings; 0xff stands between steps
step = how, data              the first byte says what happens and to whom; the rest is data, after expansion:

0xfe c n     c, 257 * n times: long lines and long values from three bytes
0xfd m n     what the last m bytes say, 16 * n times more: many elements, and deep ones
0xfc         the name of whoever speaks, so that two may say the same and mean something else
"""

from __future__ import annotations

from typing import NamedTuple

# Bytes of one step's data. Enough to pass every limit of the protocol (64 KiB for a line).
LONGEST = 70_000
# ... and of what is repeated in it: the twins take time that grows with its square.
REPEATED = 20_000


class Step(NamedTuple):
    how: int
    data: bytes


def steps_of(script: bytes) -> list[Step]:
    """The steps, not expanded; those without even a first byte are none."""
    return [Step(piece[0], piece[1:]) for piece in script.split(b"\xff") if piece]


def expanded(data: bytes, name: bytes = b"", repeated: int = REPEATED) -> bytes:
    """What the data of a step stand for."""
    if max(data, default=0) < 0xFC:
        return data
    out = bytearray()
    position = 0
    while position < len(data) and len(out) < LONGEST:
        byte = data[position]
        first, second = (*data[position + 1 : position + 3], 0, 0)[:2]
        position += 1
        if byte == 0xFE:
            out += bytes((first,)) * (257 * second)
            position += 2
        elif byte == 0xFD:
            more = out[-first:] * (16 * second) if first else b""
            out += more[:repeated]
            repeated -= len(more[:repeated])
            position += 2
        elif byte == 0xFC:
            out += name
        else:
            out.append(byte)
    return bytes(out[:LONGEST])
