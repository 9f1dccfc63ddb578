"""README says of each setting what its declaration says."""

from __future__ import annotations

import pytest

from coalesce.cli.options import OPTIONS
from tests.settings_table import BEGIN, END, README, with_tables


def test_the_tables_are_up_to_date():
    readme = README.read_text(encoding="utf-8")
    assert readme == with_tables(readme), "python -m tests.settings_table"


def test_each_setting_has_a_row():
    written = with_tables(f"before\n{BEGIN}\n| `--gone` | 1 |\n{END}\nafter\n")
    assert written.startswith(f"before\n{BEGIN}\n")
    assert written.endswith(f"{END}\nafter\n")
    assert "--gone" not in written
    for option in OPTIONS.values():
        assert written.count(f"\n| `{option.flag}` | ") == 1


def test_without_marks_nothing_is_written():
    with pytest.raises(ValueError, match="README has no"):
        with_tables(f"{BEGIN}\n")
