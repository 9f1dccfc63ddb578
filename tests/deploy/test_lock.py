"""What the image is made of is pinned, complete, and what pyproject.toml asks for."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.system.processes import ROOT

from .manifests import DEPLOY

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

PINNED = re.compile(r"([a-z0-9-]+)==(\S+)((?: --hash=sha256:[0-9a-f]{64})+)")


def locked(name: str) -> dict[str, str]:
    """Versions of the lock file. Whatever is no pinned package with hashes is an error: an index, a URL, a flag."""
    text = re.sub(r"(?m)^ *#.*\n", "", (DEPLOY / name).read_text()).replace(" \\\n", " ")
    lines = [re.sub(r" +", " ", line) for line in text.splitlines()]
    found = [PINNED.fullmatch(line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found, strict=True) if not match]
    return {match[1]: match[2] for match in found if match}


def unsatisfied(wanted: Iterable[str], lock: dict[str, str]) -> list[str]:
    requirements = [Requirement(each) for each in wanted]
    return [
        str(each)
        for each in requirements
        if (each.marker is None or each.marker.evaluate({"extra": ""}))
        and not each.specifier.contains(lock.get(canonicalize_name(each.name), "0"))
    ]


def test_is_what_pyproject_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert unsatisfied(project["project"]["dependencies"], locked("requirements.lock")) == []
    assert unsatisfied(project["build-system"]["requires"], locked("build.lock")) == []


def test_what_is_missing_is_seen() -> None:
    assert unsatisfied(["trio>=0.27"], {}) == ["trio>=0.27"]
    assert unsatisfied(["trio>=0.27"], {"trio": "0.26"}) == ["trio>=0.27"]


@pytest.mark.skipif(sys.platform != "linux", reason="the image is Linux's")
def test_is_complete(tmp_path: Path) -> None:
    """Installed as in deploy/Dockerfile: whatever one of the packages requires is there as it wants it, and no more."""
    lock = locked("requirements.lock")
    flags = ["--require-hashes", "--no-deps", "--only-binary", ":all:", "--no-compile", "--quiet"]
    target = ["--target", str(tmp_path), "-r", str(DEPLOY / "requirements.lock")]
    told = subprocess.run(
        [sys.executable, "-m", "pip", "install", *flags, *target],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    installed = {canonicalize_name(each.name): each for each in importlib.metadata.distributions(path=[str(tmp_path)])}
    assert {name: each.version for name, each in installed.items()} == lock
    assert not any(unsatisfied(each.requires or (), lock) for each in installed.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = {canonicalize_name(Requirement(each).name) for each in project["project"]["dependencies"]}
    for each in installed.values():
        wanted |= {canonicalize_name(Requirement(requirement).name) for requirement in each.requires or ()}
    assert lock.keys() <= wanted  # nothing that nobody asks for
