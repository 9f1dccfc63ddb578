"""Runs of coalesce that end soon, in tenths of the time: forked from one process that has imported everything.

    python -m tests.system.forge [another build's command] < orders > outcomes

Each is a process of its own that runs what `python -m coalesce` runs, with a command line, an environment, descriptors
and an exit code of its own. What takes a fifth of a second is to import it all, and tests would wait for that two
hundred times, for one line on stderr each. Orders and outcomes are JSON, one in a line.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shlex
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

from .processes import DEADLINE, ROOT, environment

if TYPE_CHECKING:
    from collections.abc import Iterator


class Ended(NamedTuple):
    code: int
    stderr: str


class Said(NamedTuple):
    """What it said, too, that was asked something."""

    code: int
    stdout: str
    stderr: str


class Forge:
    """Where tests have them made."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run_to_exit(self, *arguments: str, **more: str) -> Ended:
        """For a coalesce that is to refuse. `more` is environment."""
        return _ended(self._run(arguments, more, until=""))

    def ask(self, *arguments: str, **more: str) -> Said:
        """For one that answers on stdout."""
        return self._run(arguments, more, until="")

    def run_until_it_listens(self, *arguments: str, **more: str) -> Ended:
        """For one that may refuse or not: when it has said where it listens, it is asked to end."""
        return _ended(self._run(arguments, more, until="listening on"))

    def _run(self, arguments: tuple[str, ...], more: dict[str, str], until: str) -> Said:
        order = {"arguments": arguments, "environment": environment(**more), "until": until}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(order)}\n")
        self._process.stdin.flush()
        said = Said(*json.loads(self._process.stdout.readline()))
        if said.code == -signal.SIGALRM:
            raise TimeoutError(f"it goes on: {said.stderr!r}")
        return said


def _ended(said: Said) -> Ended:
    return Ended(said.code, said.stderr)


@contextlib.contextmanager
def forge() -> Iterator[Forge]:
    other = shlex.split(os.environ.get("COALESCE_TEST_COMMAND", ""))
    command = [sys.executable, "-m", __name__, *other]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Forge(process)


def _be_coalesce(arguments: list[str], variables: dict[str, str], stdout: int, stderr: int) -> None:
    """Returns or raises SystemExit, as the program does."""
    from coalesce.__main__ import main  # noqa: PLC0415 (whoever orders needs none of it)

    signal.alarm(int(DEADLINE))
    nothing = os.open(os.devnull, os.O_RDWR)
    for number, descriptor in enumerate((nothing, stdout, stderr)):
        os.dup2(descriptor, number)
    os.closerange(3, 64)
    os.environ.clear()
    os.environ.update(variables)
    if another := sys.argv[1:]:
        os.execvp(another[0], [*another, *arguments])  # noqa: S606
    sys.argv = ["coalesce", *arguments]
    main()


def _serve() -> None:
    import coalesce.cli.command_line  # noqa: F401, PLC0415

    gc.freeze()  # else each spends a tenth of a second at its end on what is not its own
    for line in sys.stdin:
        order = json.loads(line)
        reading, writing = os.pipe()
        output = os.memfd_create("stdout")
        if not (pid := os.fork()):
            _be_coalesce(order["arguments"], order["environment"], output, writing)
            return
        os.close(writing)
        told = ""
        with open(reading, encoding="utf-8", errors="surrogateescape") as stderr:  # noqa: PTH123 (a descriptor)
            for said in stderr:
                told += said
                if order["until"] and order["until"] in said:
                    os.kill(pid, signal.SIGTERM)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.lseek(output, 0, os.SEEK_SET)
        with open(output, encoding="utf-8", errors="surrogateescape") as stdout:  # noqa: PTH123 (a descriptor)
            print(json.dumps([code, stdout.read(), told]), flush=True)


if __name__ == "__main__":
    _serve()
