"""What coalesce is told, by which way, and what it says of that."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from .processes import DEADLINE, ROOT, coalesce_command, environment, free_port
from .versions import NEWEST

if TYPE_CHECKING:
    from .processes import Executable

INTERRUPTED = 130


@pytest.fixture(scope="session", params=[NEWEST], ids=str)
def executable(request: pytest.FixtureRequest) -> Executable:
    """Settings are ours, whichever server it is."""
    return request.param


def one_line(ended: tuple[int, str]) -> tuple[int, str]:
    code, stderr = ended
    lines = stderr.splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("coalesce: ")
    return code, lines[0]


# Variables


def test_a_variable_that_is_no_setting_is_warned_of_and_those_of_a_service_are_not(run_to_exit):
    upstream = f"127.0.0.1:{free_port()}"
    service = {"COALESCE_SERVICE_HOST": "10.0.0.1", "COALESCE_PORT_6380_TCP": "tcp://10.0.0.1:6380"}
    code, said = one_line(run_to_exit("--upstream", upstream, **service))
    assert code == 1
    code, stderr = run_to_exit("--upstream", upstream, COALESCE_MAX_CLIENT="hunter2", **service)
    assert code == 1
    warning, said = stderr.splitlines()
    assert "WARNING COALESCE_MAX_CLIENT in the environment" in warning
    assert "COALESCE_MAX_CLIENTS" in warning
    assert "hunter2" not in stderr
    assert said.startswith("coalesce: can't reach upstream")


def test_a_command_in_the_wrong_place(run_to_exit):
    code, said = one_line(run_to_exit("--upstream", "127.0.0.1:1", "check"))
    assert (code, "coalesce check ..." in said) == (2, True)


# Control-C before there is anything to drain


AT_AN_IMPORT = """
import os, signal, sys
class Interrupting:
    def find_spec(name, path=None, target=None):
        if name == {name!r}:
            sys.meta_path.remove(Interrupting)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting)
sys.argv = ["coalesce", "--upstream", "127.0.0.1:1"]
from coalesce.__main__ import main
main()
"""


@pytest.mark.parametrize("name", ["coalesce.command_line", "trio", "hiredis", "coalesce.server", "coalesce.core.lane"])
def test_interrupted_while_it_is_imported(name):
    ended = subprocess.run(
        [sys.executable, "-c", AT_AN_IMPORT.format(name=name)],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=DEADLINE, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr) == (INTERRUPTED, "", "")


@pytest.mark.parametrize("admin", ["off", "127.0.0.1:0"])
def test_interrupted_while_the_upstream_says_nothing(admin):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(DEADLINE)
        command = [*coalesce_command(), "--upstream", f"127.0.0.1:{silent.getsockname()[1]}", "--admin", admin]
        with subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True) as process:
            connection, _ = silent.accept()
            os.kill(process.pid, signal.SIGINT)
            with connection:
                _, stderr = process.communicate(timeout=DEADLINE)
    assert process.returncode == INTERRUPTED, stderr
    assert "Traceback" not in stderr
    assert "fault" not in stderr
