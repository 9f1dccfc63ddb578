"""The fuzzing process: `python -m tests.fuzz.engine TARGET [options of libFuzzer] DIRECTORY`. It never returns."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["coalesce.core"]):
    import coalesce.core.exchange  # noqa: F401

from .corpus import TARGETS

if __name__ == "__main__":
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
