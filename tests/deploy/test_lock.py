"""What the image is made of is pinned, complete, and what pyproject.toml asks for."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.system.processes import ROOT

from .manifests import DEPLOY

if TYPE_CHECKING:
    from collections.abc import Iterable

# Where it runs (deploy/lock.sh), whatever runs the tests.
IMAGE = {
    "extra": "",
    "os_name": "posix",
    "platform_system": "Linux",
    "python_full_version": "3.11.0",
    "python_version": "3.11",
    "sys_platform": "linux",
}
PINNED = re.compile(r"([a-z0-9-]+)==(\S+)((?: --hash=sha256:[0-9a-f]{64})+)")


def locked(name: str) -> dict[str, str]:
    """Versions of the lock file. Whatever is no pinned package with hashes is an error: an index, a URL, a flag."""
    text = re.sub(r"(?m)^ *#.*\n", "", (DEPLOY / name).read_text()).replace(" \\\n", " ")
    lines = [re.sub(r" +", " ", line) for line in text.splitlines()]
    found = [PINNED.fullmatch(line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found, strict=True) if not match]
    return {match[1]: match[2] for match in found if match}


def needed(requirements: Iterable[str]) -> dict[str, Requirement]:
    """By name, those that count where the image runs."""
    found = [Requirement(each) for each in requirements]
    return {
        canonicalize_name(each.name): each for each in found if each.marker is None or each.marker.evaluate(IMAGE)
    }


def unsatisfied(wanted: Iterable[str], lock: dict[str, str]) -> list[str]:
    return [str(each) for name, each in needed(wanted).items() if not each.specifier.contains(lock.get(name, "0"))]


def test_is_what_pyproject_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert unsatisfied(project["project"]["dependencies"], locked("requirements.lock")) == []
    assert unsatisfied(project["build-system"]["requires"], locked("build.lock")) == []


def test_what_is_missing_is_seen() -> None:
    assert unsatisfied(["trio>=0.27"], {}) == ["trio>=0.27"]
    assert unsatisfied(["trio>=0.27"], {"trio": "0.26"}) == ["trio>=0.27"]


def test_is_complete() -> None:
    """What each package requires, as the one that is installed here says, is in it, and nothing else is.

    (Of other versions than the locked ones only which packages they require counts. That the locked ones install, and
    fit together, the image's build shows: pip takes nothing else there, and checks.)
    """
    lock = locked("requirements.lock")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = set(needed(project["project"]["dependencies"]))
    for name, pinned in lock.items():
        installed = importlib.metadata.distribution(name)
        requires = needed(installed.requires or ())
        wanted |= set(requires)
        if installed.version == pinned:
            assert unsatisfied(map(str, requires.values()), lock) == [], name
    assert lock.keys() == wanted
