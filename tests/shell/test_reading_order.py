"""The theory of operation names each file once, where one would begin to read."""

from __future__ import annotations

import re
from pathlib import Path

import coalesce

PACKAGE = Path(coalesce.__file__).parent


def test_each_file_has_its_place():
    assert coalesce.__doc__
    _, _, reading = coalesce.__doc__.partition("Where to begin reading\n")
    there_are = [str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    assert sorted(re.findall(r"`([a-z_/]+\.py)`", reading)) == sorted(there_are)


def test_each_file_says_what_it_is():
    for path in PACKAGE.rglob("*.py"):
        assert re.match(r'r?"""[^"\n]{20}', path.read_text(encoding="utf-8")), path
