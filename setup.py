"""What `pyproject.toml` can't say: a build writes into the package which commit it is of (`coalesce/build.py`).

That is COALESCE_COMMIT, for a build that has no repository at hand (a container's), or what git says here; a `+` behind
it stands for changes that were not committed. Where neither tells, nothing is written.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent


def commit() -> str:
    if given := os.environ.get("COALESCE_COMMIT"):
        return given
    # (Sources may have been unpacked within another project's repository.)
    if git("rev-parse", "--show-toplevel") != str(HERE) or not (head := git("rev-parse", "HEAD")):
        return ""
    return f"{head}+" if git("status", "--porcelain", "--untracked-files=no") else head


def git(*arguments: str) -> str:
    """Empty where there is no git, or it says no."""
    try:
        ended = subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True, check=False)  # noqa: S603, S607
    except OSError:
        return ""
    return ended.stdout.strip() if ended.returncode == 0 else ""


class BuildWithCommit(build_py):
    """An editable install has no commit: its sources may change."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode and (of := commit()):
            (Path(self.build_lib) / "coalesce" / "COMMIT").write_text(f"{of}\n", encoding="utf-8")


setup(cmdclass={"build_py": BuildWithCommit})
