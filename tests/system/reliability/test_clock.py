"""The wall clock jumps: nothing in coalesce may look at it but the time stamps of its log."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.system.processes import (
    ROOT,
    Coalesce,
    coalesce_command,
    environment,
    executables,
    running_server,
    short_directory,
)

from . import faults
from .accounting import Load

# Names that read the wall clock, by module; the rest of these modules (`perf_counter`, `timedelta`) is welcome.
WALL_CLOCK = {
    "time": {"time", "time_ns", "localtime", "gmtime", "ctime", "clock_gettime", "clock_gettime_ns"},
    "datetime": {"datetime", "date"},
}

# Put before the program: its wall clock jumps a day to and fro with every look, and it says at its end how many there
# were.
JUMPS = """
import itertools, time
real, days = time.time, itertools.cycle((0, 86400, -86400, 3600, -1))
time.time = lambda: real() + next(days)
time.time_ns = lambda: int(time.time() * 1e9)
"""


def uses_of_the_wall_clock(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in WALL_CLOCK:
            found += [name.name for name in node.names if name.name in WALL_CLOCK[node.module]]
        elif isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name in WALL_CLOCK]
    return found


def test_no_module_reads_the_wall_clock():
    modules = sorted((ROOT / "coalesce").rglob("*.py"))
    assert len(modules) > 10
    used = {
        str(path.relative_to(ROOT)): names for path in modules if (names := uses_of_the_wall_clock(path.read_text()))
    }
    # To write a time that the kernel, or a line of the log, tells; they read no clock.
    assert used == {"coalesce/logs.py": ["datetime"], "coalesce/admin/status.py": ["datetime"]}


def test_the_look_for_it_finds_it():
    for source in (
        "from time import time",
        "import time",
        "from datetime import datetime",
        "def f():\n import datetime",
    ):
        assert uses_of_the_wall_clock(source), source
    assert uses_of_the_wall_clock("from time import perf_counter, monotonic") == []


def test_a_clock_that_jumps_disturbs_nothing():
    """The clock of every module in the process, trio's included; a kill in the middle makes all timers matter."""
    with short_directory() as directory, running_server(executables()[-1]) as upstream:
        Path(directory, "sitecustomize.py").write_text(JUMPS)
        listen = ["--listen", "127.0.0.1:0", "--listen", f"unix://{directory}/c.sock"]
        environ = environment(PYTHONPATH=f"{directory}:{ROOT}")
        coalesce = Coalesce([*coalesce_command(), "--upstream", upstream.url, *listen], environ)
        try:
            load = Load([coalesce.address], clients=20)
            load.start()
            faults.stop_process(upstream.process, 0.3)
            load.go_on(20)
            load.finish()
            with upstream.connect() as control:
                verdict = load.balance(control)
            assert (verdict.unacknowledged, verdict.refused, verdict.closed) == (0, 0, 0)
            code, stderr = coalesce.stop()
            assert code == 0, stderr
            days = {line[:10] for line in stderr.splitlines()}
            assert len(days) > 1, stderr  # so it did jump
        finally:
            coalesce.end()
