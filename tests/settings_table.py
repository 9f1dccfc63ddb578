"""README's tables of settings, from their declarations.

    python -m tests.settings_table

rewrites them; a test (`shell/test_settings_table.py`) sees to it that they are up to date.
"""

from __future__ import annotations

import re
from pathlib import Path

from coalesce.cli.options import SECTIONS, Option

README = Path(__file__).parents[1] / "README.md"
BEGIN = "<!-- settings: written by python -m tests.settings_table -->"
END = "<!-- end of settings -->"


def tables() -> str:
    parts = []
    for section, options in SECTIONS.items():
        rows = "\n".join(_row(option) for option in options)
        parts.append(f"| {section} | default | what |\n|---|---|---|\n{rows}\n")
    return "\n".join(parts)


def _row(option: Option) -> str:
    default = "off" if option.kind is None else option.default_in_words()
    shown = f"`{default}`" if re.search(r"[:/]", default) else default
    cells = (f"`{option.flag}`", shown.removesuffix(".0"), f"{option.help}{option.more}")
    return " | ".join(("", *(cell.replace("|", r"\|") for cell in cells), "")).strip()


def with_tables(readme: str) -> str:
    """Raises ValueError where there are no marks."""
    before, begin, rest = readme.partition(f"{BEGIN}\n")
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README has no {BEGIN} or no {END}")
    return f"{before}{begin}\n{tables()}\n{end}{after}"


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")
