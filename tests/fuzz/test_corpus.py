"""What the fuzzer found worth repeating, and that it would find something: a splitter and a reader that are broken."""

from __future__ import annotations

import importlib.util
import itertools
import random
import subprocess
import sys
import types
from pathlib import Path

import pytest

from coalesce.core.exchange import Exchange
from coalesce.core.lane import Lane
from coalesce.core.resp import Passage, RequestReader

from .corpus import TARGETS, load
from .script import expanded, steps_of

MOST = 4000  # mutations until one has to be found; a few hundred do


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_holds(target: str) -> None:
    for script in load(target):
        try:
            TARGETS[target](script)
        except BaseException as problem:
            problem.add_note(repr(script))
            raise


def test_a_script_is_steps() -> None:
    assert steps_of(b"\x00a\xff\xff\x01b\xff") == [(0, b"a"), (1, b"b")]
    assert expanded(b"a\xfeb\x01c") == b"a" + b"b" * 257 + b"c"
    assert expanded(b"ab\xfd\x01\x01") == b"a" + b"b" * 17
    assert expanded(b"GET \xfc", b"0") == b"GET 0"
    assert len(expanded(b"\xfeb\xff" * 9)) == 70_000
    assert expanded(b"a\xfe") == b"a"


def broken(module: types.ModuleType, before: str, after: str) -> types.ModuleType:
    """A module of the core with one mistake in it. The original is left alone."""
    assert module.__file__ is not None
    source = Path(module.__file__).read_text()
    assert source.count(before) == 1, f"{module.__name__} is written otherwise: {before!r}"
    other = types.ModuleType(module.__name__)
    sys_modules, sys.modules[module.__name__] = sys.modules[module.__name__], other
    try:
        exec(compile(source.replace(before, after), module.__file__, "exec"), vars(other))  # noqa: S102
    finally:
        sys.modules[module.__name__] = sys_modules
    return other


def put_in(monkeypatch: pytest.MonkeyPatch, mistake: tuple[str, str], of: type, *methods: str) -> None:
    """These methods of a class of the core are as they would be with this mistake in its module."""
    other = getattr(broken(sys.modules[of.__module__], *mistake), of.__name__)
    for name in methods:
        code = getattr(other, name).__code__
        monkeypatch.setattr(of, name, types.FunctionType(code, getattr(of, name).__globals__))


def finds(target: str, seed: int) -> bool:
    """Whether mutations of the corpus, of the plainest kind, come upon something that is wrong."""
    chance = random.Random(seed)
    corpus = [script for script in load(target) if len(script) < 300]
    for number in itertools.count():
        script = bytearray(chance.choice(corpus)) if number >= len(corpus) else bytearray(corpus[number])
        for _ in range(chance.randrange(4) if number >= len(corpus) else 0):
            at = chance.randrange(2, len(script))
            match chance.randrange(3):
                case 0:
                    script[at] = chance.choice(b"\r\n\0*$:+>|x01239\xff")
                case 1:
                    del script[at : at + chance.randrange(1, 4)]
                case _:
                    script[at:at] = chance.choice((b"\xff\x00", b"\r\n", b"1", b"\xff\x01"))
        try:
            TARGETS[target](bytes(script))
        except Exception:  # noqa: BLE001  (whatever it comes to, it is found)
            return True
        if number > MOST:
            return False
    raise AssertionError


SPLITTERS = {
    "any two bytes end a bulk string": (
        "if data[end - 1] != 10 or data[end - 2] != 13:",
        "if False:",
    ),
    "a reply is its neighbour's": ("owner = next_caller()\n", "owner = next_caller() if caller is None else caller\n"),
    "one byte is kept twice": ("self._keep(data[position:])", "self._keep(data[position - 1 :])"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPLITTERS)
def test_a_broken_splitter_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put_in(monkeypatch, SPLITTERS[name], Lane, "receive", "_pass_on", "_keep")
    assert finds("replies", seed=1)


PASSAGES = {
    "the line end of a large one is half looked at": (
        "if before > 1 >= self._passing and data[position + before - 2] != 13:",
        "if False:",
    ),
    "half the end of a long line is passed on": (
        "    return _before_half_an_end(data)\n            self._in_line",
        "    return len(data)\n            self._in_line",
    ),
}


@pytest.mark.parametrize("name", PASSAGES)
def test_a_broken_passage_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put_in(monkeypatch, PASSAGES[name], Passage, "skip", "_skip_bulk")
    assert finds("replies", seed=1)


READERS = {
    "the bytes behind a value are looked at": (
        "if len(self._buffer) < end + 2:",
        "if self._buffer[end : end + 2] != CRLF:",
    ),
    "a leading zero passes": (
        "if not _INTEGER.fullmatch(text) or",
        "if not text.isdigit() or",
    ),
    "a NUL hides nothing": ("if found >= 0 and self._buffer.find(0, self._position, found) >= 0:", "if False:"),
    "ten arguments and one before AUTH": (
        "if count > UNAUTHENTICATED_ARGUMENTS and not authenticated:",
        "if count > UNAUTHENTICATED_ARGUMENTS + 1 and not authenticated:",
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_a_broken_reader_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put_in(monkeypatch, READERS[name], RequestReader, "_line", "_read_length", "_read_array", "_read_count")
    assert finds("requests", seed=1)


EXCHANGES = {
    "a chunk is not compared with its canonical form": ("if request == data:", "if True:"),
    "a pipeline neither": ("if not packed or not data.startswith(requests):", "if not packed:"),
    "half a transaction rides": ("        if block >= 0:\n            del packed[block:]\n", ""),
}


@pytest.mark.parametrize("name", EXCHANGES)
def test_a_broken_exchange_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put_in(monkeypatch, EXCHANGES[name], Exchange, "receive", "_ride")
    assert finds("requests", seed=1)


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="the extra `fuzz` is not installed")
def test_the_fuzzer_runs(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    ended = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "replies", "--seconds", "1", "--seed", "1", "--keep", str(kept)],
        capture_output=True, text=True, timeout=50, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "reach all" in ended.stdout
    assert kept.read_text().startswith("b")
