"""Which coalesce this is."""

from __future__ import annotations

import json
import platform
from functools import cache
from typing import NamedTuple


class BuildInfo(NamedTuple):
    """`commit` is None where nobody wrote it down: of an editable install, say, whose sources may change."""

    version: str
    commit: str | None
    python: str


@cache  # of what runs, whatever is installed meanwhile; and it reads files
def build_info() -> BuildInfo:
    from importlib.metadata import version  # noqa: PLC0415 (10 ms, for those who ask)

    return BuildInfo(version("coalesce"), _commit(), platform.python_version())


def _commit() -> str | None:
    """As the build of an image wrote it into the package, or pip noted it (PEP 610) when it installed from git."""
    from importlib.metadata import distribution  # noqa: PLC0415 (see above)
    from importlib.resources import files  # noqa: PLC0415

    try:
        return (files("coalesce") / "COMMIT").read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        origin = json.loads(distribution("coalesce").read_text("direct_url.json") or "{}")
        commit: str | None = origin.get("vcs_info", {}).get("commit_id")
        return commit


def said() -> str:
    """All of it, and what it runs on, for whoever reports a fault."""
    import ssl  # noqa: PLC0415 (for those who ask)
    from importlib.metadata import version  # noqa: PLC0415

    build = build_info()
    return (
        f"coalesce {build.version} (commit {build.commit or 'unknown'})\n"
        f"Python {build.python}, trio {version('trio')}, hiredis {version('hiredis')}, {ssl.OPENSSL_VERSION}"
    )
