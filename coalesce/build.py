"""Which coalesce this is."""

from __future__ import annotations

import json
import platform
from importlib.metadata import distribution, version
from importlib.resources import files
from typing import NamedTuple


class BuildInfo(NamedTuple):
    """`commit` is None where nobody wrote it down: of an editable install, say, whose sources may change."""

    version: str
    commit: str | None
    python: str


def build_info() -> BuildInfo:
    return BuildInfo(version("coalesce"), _commit(), platform.python_version())


def _commit() -> str | None:
    """As the build of an image wrote it into the package, or pip noted it (PEP 610) when it installed from git."""
    try:
        return (files("coalesce") / "COMMIT").read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        origin = json.loads(distribution("coalesce").read_text("direct_url.json") or "{}")
        commit: str | None = origin.get("vcs_info", {}).get("commit_id")
        return commit


def said() -> str:
    """All of it, and what it runs on, for whoever reports a fault."""
    import ssl  # noqa: PLC0415 (for those who ask)

    build = build_info()
    return (
        f"coalesce {build.version} (commit {build.commit or 'unknown'})\n"
        f"Python {build.python}, trio {version('trio')}, hiredis {version('hiredis')}, {ssl.OPENSSL_VERSION}"
    )
