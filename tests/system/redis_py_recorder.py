"""A pytest plugin for redis-py's tests, loaded by `redis_py_suite` into an environment that has no coalesce.

It writes down what became of every test, and leads connections to port 6379, which some of the tests have built in, to
the server of this run: a developer's own Redis is never spoken to, much less flushed.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

BUILT_IN_PORT = 6379


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outcomes", type=Path, help="file to append to: a JSON object for each test, in a line")
    parser.addoption("--server-port", type=int, help="where connections to port 6379 go")


def pytest_configure(config: pytest.Config) -> None:
    redirect(config.getoption("--server-port"))
    config.pluginmanager.register(Recorder(config.getoption("--outcomes")))


def redirect(port: int) -> None:
    plain = socket.socket.connect

    def connect(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and address[1] == BUILT_IN_PORT:
            address = (address[0], port, *address[2:])
        plain(self, address)  # type: ignore[arg-type]

    socket.socket.connect = connect  # type: ignore[method-assign,assignment]


class Recorder:
    """A line at once for each report that says something, so that a run that is cut short leaves what it has."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write(report.nodeid, "failed", report)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if hasattr(report, "wasxfail"):
            self._write(report.nodeid, "xpassed" if report.passed else "xfailed", report)
        elif report.when == "call" or not report.passed:
            self._write(report.nodeid, report.outcome, report)

    def _write(self, test: str, outcome: str, report: pytest.CollectReport | pytest.TestReport) -> None:
        with self.path.open("a") as file:
            print(json.dumps({"test": test, "outcome": outcome, "why": why(report)}), file=file)


def why(report: pytest.CollectReport | pytest.TestReport) -> str:
    """The first line of what is to be said of a test that did not pass."""
    if isinstance(report.longrepr, tuple):
        text = report.longrepr[2]  # of a skipped one: path, line, reason
    else:
        crash = getattr(report.longrepr, "reprcrash", None)
        text = crash.message if crash else str(report.longrepr or "").strip()
    first = text.splitlines()[0] if text else ""
    during = getattr(report, "when", "collect")
    return first if during == "call" else f"({during}) {first}"
