"""Which coalesce this is."""

from __future__ import annotations

import platform
from importlib.metadata import version
from importlib.resources import files
from typing import NamedTuple


class BuildInfo(NamedTuple):
    """`commit` is None where the build did not know it: of an editable install, say, whose sources may change."""

    version: str
    commit: str | None
    python: str


def build_info() -> BuildInfo:
    return BuildInfo(version("coalesce"), _commit(), platform.python_version())


def _commit() -> str | None:
    """As `setup.py` wrote it into the package."""
    try:
        return (files("coalesce") / "COMMIT").read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None


def said() -> str:
    """All of it, and what it runs on, for whoever reports a fault."""
    import ssl  # noqa: PLC0415 (for those who ask)

    build = build_info()
    return (
        f"coalesce {build.version} (commit {build.commit or 'unknown'})\n"
        f"Python {build.python}, trio {version('trio')}, hiredis {version('hiredis')}, {ssl.OPENSSL_VERSION}"
    )
