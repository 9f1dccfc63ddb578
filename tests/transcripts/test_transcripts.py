"""Every transcript, against the pure core and over real sockets: whole, byte by byte, and cut at random."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.transcripts.core_player import CorePlayer
from tests.transcripts.notation import Transcript, parse
from tests.transcripts.socket_player import SocketPlayer

if TYPE_CHECKING:
    from collections.abc import Iterable

ALL = [transcript for file in sorted(Path(__file__).parent.glob("*.txt")) for transcript in parse(file.read_text())]
_BY_NAME = pytest.mark.parametrize("transcript", ALL, ids=lambda transcript: transcript.name)
_IN_PIECES = pytest.mark.parametrize(
    "transcript", [each for each in ALL if not each.options.get("whole")], ids=lambda transcript: transcript.name
)


def whole(data: bytes) -> Iterable[bytes]:
    return [data]


def byte_by_byte(data: bytes) -> Iterable[bytes]:
    return [bytes((byte,)) for byte in data]


def at_random(seed: int, data: bytes) -> Iterable[bytes]:
    chance = random.Random(seed)
    cuts = sorted(chance.choices(range(1, max(2, len(data))), k=chance.randrange(5)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True) if start < end]


def test_names_are_unique() -> None:
    names = [transcript.name for transcript in ALL]
    assert len(names) == len(set(names)) > 0


@_BY_NAME
def test_core_whole(transcript: Transcript) -> None:
    CorePlayer(transcript, whole).play()


@_IN_PIECES
def test_core_byte_by_byte(transcript: Transcript) -> None:
    CorePlayer(transcript, byte_by_byte).play()


@_IN_PIECES
def test_core_cut_at_random(transcript: Transcript) -> None:
    for seed in range(20):
        CorePlayer(transcript, lambda data, seed=seed: at_random(seed, data)).play()


@_BY_NAME
async def test_sockets_whole(transcript: Transcript) -> None:
    await SocketPlayer(transcript, whole).play()


@_IN_PIECES
async def test_sockets_cut_at_random(transcript: Transcript) -> None:
    await SocketPlayer(transcript, lambda data: at_random(len(data), data)).play()


@_IN_PIECES
async def test_sockets_byte_by_byte(transcript: Transcript) -> None:
    await SocketPlayer(transcript, byte_by_byte).play()
