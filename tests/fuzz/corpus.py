"""Inputs that are worth repeating: `corpus/<target>.txt`, a Python bytes literal a line; a line with # says why."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import replies, requests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType

TARGETS: dict[str, Callable[[bytes], None]] = {"requests": requests.play, "replies": replies.play}
CORE = Path(__file__).parents[2] / "coalesce" / "core"

Line = tuple[str, int]  # file, and number of a line in it
Branch = tuple[str, int, int]  # file, and the numbers of two lines of which the second follows the first


def path_of(target: str) -> Path:
    return Path(__file__).parent / "corpus" / f"{target}.txt"


def load(target: str) -> list[bytes]:
    lines = path_of(target).read_text().splitlines()
    return [ast.literal_eval(line) for line in lines if line.startswith("b")]


def branches_of(target: str, script: bytes) -> set[Branch]:
    """Which branches of the core an input takes."""
    branches: set[Branch] = set()
    last: dict[int, int] = {}

    def trace(frame: FrameType, event: str, argument: object) -> Callable | None:
        del argument
        name = frame.f_code.co_filename
        if not name.startswith(str(CORE)):
            return None
        if event in {"call", "line"}:
            key = id(frame)
            before = frame.f_lineno if event == "call" else last.get(key, 0)
            branches.add((Path(name).name, before, frame.f_lineno))
            last[key] = frame.f_lineno
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        TARGETS[target](script)
    finally:
        sys.settrace(previous)
    return branches


def reduced(target: str, scripts: Iterable[bytes]) -> tuple[list[bytes], set[Branch]]:
    """The short ones that reach, together, all that all of them reach; and what that is."""
    reach = {script: branches_of(target, script) for script in scripts}
    missing: set[Branch] = set().union(*reach.values())
    everything = set(missing)
    kept = []
    while missing:
        best = max(reach, key=lambda script: (len(reach[script] & missing), -len(script)))
        kept.append(best)
        missing -= reach[best]
    return kept, everything


def lines_of_core() -> set[Line]:
    """Every line of the core that is code within a function."""
    lines: set[Line] = set()
    for path in CORE.glob("*.py"):
        pending = [each for each in compile(path.read_text(), str(path), "exec").co_consts if hasattr(each, "co_lines")]
        while pending:
            code = pending.pop()
            within = [each for each in code.co_consts if hasattr(each, "co_lines")]
            pending += within
            if code.co_flags & 2:  # CO_NEWLOCALS: a function, not a class body
                lines |= {(path.name, number) for _, _, number in code.co_lines() if number is not None}
    return lines
