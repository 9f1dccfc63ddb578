"""The unit for hosts without Kubernetes."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from coalesce.cli.command_line import COMMANDS

from .manifests import DEPLOY

if TYPE_CHECKING:
    from pathlib import Path


def complaints(directory: Path, unit: str) -> str:
    """Of systemd, about the unit; the program that it starts is one that there is."""
    (directory / "coalesce.service").write_text(unit.replace("/opt/coalesce/bin/coalesce", "/bin/true"))
    told = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(directory / "coalesce.service")],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    said = [line for line in told.stderr.splitlines() if "coalesce.service" in line]
    return "\n".join(said) or f"exit code {told.returncode}" * (told.returncode != 0)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="not installed: systemd-analyze")
def test_unit_is_valid(tmp_path: Path) -> None:
    unit = (DEPLOY / "coalesce.service").read_text()
    assert complaints(tmp_path, unit) == ""
    wrong = unit.replace("StartLimitIntervalSec=0", "StartLimitIntervalSec=x")
    assert "Failed to parse" in complaints(tmp_path, wrong)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="not installed: systemd-analyze")
def test_unit_has_few_rights(tmp_path: Path) -> None:
    """What systemd calls OK: below 5 of 10, where a service that says nothing of rights has 9.6."""
    copy = tmp_path / "coalesce.service"
    copy.write_text((DEPLOY / "coalesce.service").read_text())
    told = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=50", "--no-pager", str(copy)],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stdout[-200:]


def test_who_is_ordered_after_it_waits_until_it_serves() -> None:
    """By coalesce's own command, with its settings: systemd itself would only wait for the process."""
    (start,) = re.findall(r"(?m)^ExecStart=(\S+)$", (DEPLOY / "coalesce.service").read_text())
    (after,) = re.findall(r"(?m)^ExecStartPost=-(\S+ \w+)$", (DEPLOY / "coalesce.service").read_text())
    assert after == f"{start} wait"
    assert "wait" in COMMANDS
