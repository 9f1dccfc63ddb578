"""Runs of coalesce in tenths of the time: forked from one process that has imported everything.

    python -m tests.system.forge DESCRIPTOR [another build's command]

Each is a process of its own that runs what `python -m coalesce` runs, with a command line, an environment, descriptors
and an exit code of its own. What takes a fifth of a second is to import it all, and tests would wait for that seven
hundred times. Whatever is about the start itself, or about the command line that `ps` shows, starts one as users do.

Orders come over the socket DESCRIPTOR, JSON, one in a line, each with the new process's stdout and stderr, and with a
pipe for its exit code. Its id is answered.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, NamedTuple

from . import processes
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


class Forged:
    """A process that was forked there: what tests use of subprocess.Popen."""

    def __init__(self, pid: int, stderr: int, code: int, *, errors: str = "strict") -> None:
        self.pid = pid
        self.stderr = open(stderr, encoding="utf-8", errors=errors)  # noqa: SIM115 (closed by whoever reads it)
        self.returncode: int | None = None
        self._code = code

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float) -> int:
        if self.returncode is None:
            if not select.select([self._code], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired([str(self.pid)], timeout)
            told = os.read(self._code, 100)
            os.close(self._code)
            self.returncode = int(told)  # (nothing was told if the forge has ended: a ValueError)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # just now
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Forge:
    """Where tests have them made. It begins with the first of them."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._orders, self._theirs = socket.socketpair()
        self._one_at_a_time = threading.Lock()
        self._running: list[Forged] = []

    def start(self, arguments: list[str], variables: dict[str, str]) -> Forged:
        return self._order(arguments, variables, stdout=1)

    def run_to_exit(self, *arguments: str, **more: str) -> Ended:
        """For a coalesce that is to refuse. `more` is environment."""
        return _ended(self._run(arguments, more, until=""))

    def ask(self, *arguments: str, **more: str) -> Said:
        """For one that answers on stdout."""
        return self._run(arguments, more, until="")

    def run_until_it_listens(self, *arguments: str, **more: str) -> Ended:
        """For one that may refuse or not: when it has said where it listens, it is asked to end."""
        return _ended(self._run(arguments, more, until="listening on"))

    def end(self) -> None:
        """Whoever was forked and not ended is, as with a process that a test has started itself, a mistake."""
        left = [forged.pid for forged in self._running if forged.poll() is None]
        self._orders.close()
        self._theirs.close()
        if self._process is not None:
            self._process.wait(DEADLINE)
        assert left == []

    def _run(self, arguments: tuple[str, ...], more: dict[str, str], until: str) -> Said:
        output = os.memfd_create("stdout")
        with open(output, encoding="utf-8", errors="surrogateescape") as stdout:  # noqa: PTH123 (a descriptor)
            forged = self._order(arguments, environment(**more), output, errors="surrogateescape", alarm=int(DEADLINE))
            told = ""
            with forged.stderr as stderr:
                for said in stderr:
                    told += said
                    if until and until in said:
                        forged.send_signal(signal.SIGTERM)
            code = forged.wait(DEADLINE)
            os.lseek(output, 0, os.SEEK_SET)
            said = Said(code, stdout.read(), told)
        if said.code == -signal.SIGALRM:
            raise TimeoutError(f"it goes on: {said.stderr!r}")
        return said

    def _order(
        self, arguments: list[str] | tuple[str, ...], variables: dict[str, str], stdout: int,
        *, errors: str = "strict", alarm: int = 0,
    ) -> Forged:  # fmt: skip
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
        order = {"arguments": arguments, "environment": variables, "alarm": alarm, "descriptors": descriptors}
        stderr, their_stderr = os.pipe()
        code, their_code = os.pipe()
        with self._one_at_a_time:
            if self._process is None:
                self._begin()
            socket.send_fds(self._orders, [f"{json.dumps(order)}\n".encode()], [stdout, their_stderr, their_code])
            os.close(their_stderr)
            os.close(their_code)
            forged = Forged(int(self._orders.recv(100)), stderr, code, errors=errors)
            self._running = [other for other in self._running if other.returncode is None] + [forged]
            return forged

    def _begin(self) -> None:
        other = shlex.split(os.environ.get("COALESCE_TEST_COMMAND", ""))
        number = self._theirs.fileno()
        command = [sys.executable, "-m", __name__, str(number), *other]
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment(), pass_fds=[number])
        self._theirs.close()


def _ended(said: Said) -> Ended:
    return Ended(said.code, said.stderr)


@contextlib.contextmanager
def forge() -> Iterator[Forge]:
    """While it lasts, `running_coalesce` has them made there."""
    made = Forge()
    processes.forges.append(made)
    try:
        yield made
    finally:
        processes.forges.remove(made)
        made.end()


# In the other process


def _be_coalesce(order: dict[str, object], stdout: int, stderr: int) -> None:
    """Returns or raises SystemExit, as the program does."""
    from coalesce.__main__ import main  # noqa: PLC0415 (whoever orders needs none of it)

    arguments, variables = order["arguments"], order["environment"]
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.alarm(order["alarm"])
    nothing = os.open(os.devnull, os.O_RDWR)
    for number, descriptor in enumerate((nothing, stdout, stderr)):
        os.dup2(descriptor, number)
    os.closerange(3, 1024)
    resource.setrlimit(resource.RLIMIT_NOFILE, order["descriptors"])
    os.environ.clear()
    os.environ.update(variables)
    if another := sys.argv[2:]:
        os.execvp(another[0], [*another, *arguments])  # noqa: S606
    sys.argv = ["coalesce", *arguments]
    main()


def _serve() -> None:
    from coalesce.admin import http, routes  # noqa: F401, PLC0415
    from coalesce.cli import ask, check, command_line, top  # noqa: F401, PLC0415

    gc.freeze()  # else each spends a tenth of a second at its end on what is not its own
    orders = socket.socket(fileno=int(sys.argv[1]))
    ended, wakes = os.pipe()
    for descriptor in (ended, wakes):
        os.set_blocking(descriptor, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes)
    codes: dict[int, int] = {}  # process id -> where its exit code goes
    while True:
        ready, _, _ = select.select([orders, ended], [], [])
        if ended in ready:
            os.read(ended, 1000)
            for pid, code in list(codes.items()):
                if (found := os.waitpid(pid, os.WNOHANG))[0]:
                    del codes[pid]
                    with contextlib.suppress(BrokenPipeError):  # nobody wants to know
                        os.write(code, str(os.waitstatus_to_exitcode(found[1])).encode())
                    os.close(code)
        if orders in ready:
            data, descriptors, _, _ = socket.recv_fds(orders, 1 << 16, 3)
            if not data:
                return
            while not data.endswith(b"\n"):
                data += orders.recv(1 << 16)
            stdout, stderr, code = descriptors
            if not (pid := os.fork()):
                _be_coalesce(json.loads(data), stdout, stderr)
                return
            os.close(stdout)
            os.close(stderr)
            codes[pid] = code
            orders.send(str(pid).encode())


if __name__ == "__main__":
    _serve()
