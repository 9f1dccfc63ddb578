"""What is told of a build: its commit, where somebody wrote it down."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from coalesce.build import build_info

ROOT = Path(__file__).parents[2]
ASKED = "from coalesce.build import build_info; print(build_info().commit)"


@pytest.fixture
def installed(tmp_path) -> Path:
    """A package and its metadata, as an installer leaves them."""
    (tmp_path / "coalesce").mkdir()
    for name in ("coalesce/__init__.py", "coalesce/build.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    metadata = tmp_path / "coalesce-9.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: coalesce\nVersion: 9\n")
    return tmp_path


def commit_of(installed: Path) -> str:
    command = [sys.executable, "-c", ASKED]
    return subprocess.run(command, cwd=installed, capture_output=True, text=True, check=True, timeout=50).stdout.strip()


def test_the_build_of_an_image_writes_it_down(installed):
    (installed / "coalesce" / "COMMIT").write_text("abc123\n")
    assert commit_of(installed) == "abc123"


@pytest.mark.parametrize("nothing", ["", "\n"])
def test_it_was_not_told(installed, nothing):
    (installed / "coalesce" / "COMMIT").write_text(nothing)
    assert commit_of(installed) == "None"


def test_pip_notes_where_it_was_installed_from(installed):
    note = installed / "coalesce-9.dist-info" / "direct_url.json"
    note.write_text('{"url": "https://x.example/c.git", "vcs_info": {"vcs": "git", "commit_id": "def456"}}')
    assert commit_of(installed) == "def456"


def test_unknown_is_unknown(installed):
    assert commit_of(installed) == "None"
    (installed / "coalesce-9.dist-info" / "direct_url.json").write_text('{"url": "file:///x", "dir_info": {}}')
    assert commit_of(installed) == "None"


def test_what_runs_the_tests():
    build = build_info()
    assert build.python == ".".join(map(str, sys.version_info[:3]))
    assert build.version
