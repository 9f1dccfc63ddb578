"""A build writes down which commit it is of, where that can be told."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from coalesce.build import build_info

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
pytest.importorskip("setuptools")  # no venv of Python 3.12 or newer has it by itself
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="no git here")


@pytest.fixture
def sources(tmp_path) -> Path:
    """As unpacked somewhere, without a repository."""
    place = tmp_path / "sources"
    (place / "coalesce").mkdir(parents=True)
    for name in ("setup.py", "coalesce/__init__.py", "coalesce/build.py"):
        shutil.copy(ROOT / name, place / name)
    (place / "pyproject.toml").write_text("[project]\nname = 'coalesce'\nversion = '9'\n")
    return place


@pytest.fixture
def commit_of(sources, tmp_path) -> Callable[..., str | None]:
    """Builds it, and what the built package says then."""

    def build(**more: str) -> str | None:
        built = tmp_path / "built"
        shutil.rmtree(built, ignore_errors=True)
        environment = {name: value for name, value in os.environ.items() if name != "COALESCE_COMMIT"} | more
        program = "import sys; sys.argv = ['setup.py', '-q', 'build_py', '--build-lib', sys.argv[1]]; import setup"
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program, str(built)], cwd=sources, env=environment, check=True,
            stderr=subprocess.DEVNULL, timeout=50,
        )  # fmt: skip
        asked = "from coalesce.build import build_info; print(build_info().commit or '')"
        said = subprocess.run([sys.executable, "-c", asked], cwd=built, env=environment | {"PYTHONPATH": str(built)},
                              capture_output=True, text=True, check=True, timeout=50)  # fmt: skip
        return said.stdout.strip() or None

    return build


def git(place: Path, *arguments: str) -> str:
    who = ["-c", "user.name=A", "-c", "user.email=a@b.example"]
    return subprocess.run(
        ["git", *who, *arguments], cwd=place, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_a_build_is_told_its_commit(commit_of):
    assert commit_of(COALESCE_COMMIT="abc123") == "abc123"


@needs_git
def test_a_build_from_a_repository_asks_git(commit_of, sources):
    git(sources, "init", "-q")
    git(sources, "add", ".")
    git(sources, "commit", "-qm", "x")
    head = git(sources, "rev-parse", "HEAD")
    assert commit_of() == head
    (sources / "coalesce" / "__init__.py").write_text("# changed\n")
    assert commit_of() == f"{head}+"


def test_unknown_is_unknown(commit_of, sources):
    if shutil.which("git"):  # a repository of somebody else's around it
        git(sources.parent, "init", "-q")
        git(sources.parent, "commit", "-qm", "x", "--allow-empty")
    assert commit_of() is None


def test_what_runs_the_tests():
    build = build_info()
    assert build.python == ".".join(map(str, sys.version_info[:3]))
    assert build.version
