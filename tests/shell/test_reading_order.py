"""The theory of operation names each file once, where one would begin to read; folders with an own list, in that."""

from __future__ import annotations

import re
from pathlib import Path

import coalesce.admin
import coalesce.cli

PACKAGE = Path(coalesce.__file__).parent
_FILE = re.compile(r"`([a-z_/]+\.py)`")


def test_each_file_has_its_place():
    assert coalesce.__doc__
    assert coalesce.admin.__doc__
    assert coalesce.cli.__doc__
    _, _, reading = coalesce.__doc__.partition("Where to begin reading\n")
    named = _FILE.findall(reading)
    for folder, said in (("admin/", coalesce.admin.__doc__), ("cli/", coalesce.cli.__doc__)):
        assert f"`{folder}`" in reading
        named += [f"{folder}{file}" for file in _FILE.findall(said)]
    there_are = [str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    assert sorted(named) == sorted(there_are)


def test_each_file_says_what_it_is():
    for path in PACKAGE.rglob("*.py"):
        assert re.match(r'r?"""[^"\n]{20}', path.read_text(encoding="utf-8")), path
