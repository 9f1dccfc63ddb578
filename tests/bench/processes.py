"""Processes that run while something is measured: started, awaited with a deadline, ended by pid."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .errors import BenchError

START_SECONDS = 15.0
# Longer than coalesce drains when nobody is connected, which is at once.
STOP_SECONDS = 15.0
_POLL_SECONDS = 0.005
_TAIL_LINES = 15


class Daemon:
    """A running process and the file that holds what it printed (stdout and stderr)."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self._process = process
        self._log = log

    @property
    def pid(self) -> int:
        return self._process.pid

    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_until(self, ready: Callable[[], bool], what: str) -> None:
        """Returns once `ready()`. Raises BenchError if the process ends before, or after START_SECONDS."""
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if self._process.poll() is not None:
                raise self.failure(f"ended before {what}")
            if time.monotonic() > deadline:
                raise self.failure(f"took more than {START_SECONDS:.0f} s before {what}")
            time.sleep(_POLL_SECONDS)

    def failure(self, complaint: str) -> BenchError:
        """The complaint with what there is to know of the process: whether it still runs, and what it printed last."""
        status = self._process.poll()
        state = "still runs" if status is None else f"has exited with {status}"
        tail = self.output().splitlines()[-_TAIL_LINES:] or ["(nothing)"]
        return BenchError("\n  | ".join([f"{self.name} {complaint}\n{self.name} {state}; it printed last:", *tail]))

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for who does not heed it. Afterwards the process is gone and `output()` complete."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_SECONDS)


@contextmanager
def daemon(name: str, argv: Sequence[str], log: Path, directory: Path) -> Iterator[Daemon]:
    """The process lives as long as the block, in a session of its own: a Ctrl-C reaches us alone, and we end it."""
    # A developer's COALESCE_* variables are flags, and would change what is measured.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COALESCE_")}
    environment["COALESCE_ADMIN"] = "off"  # what it costs has rows of its own
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=environment,
            start_new_session=True,
        )
    running = Daemon(name, process, log)
    try:
        yield running
    finally:
        running.stop()


@contextmanager
def one_core(*pids: int) -> Iterator[None]:
    """We, whatever we start in the block, and the processes given all run on the same core while the block lasts.

    With a lone client never more than one of load, proxy and upstream has work, so one core is all they use; where the
    scheduler places them decides what is measured. Next to each other a wake-up is a switch, on two cores it is an
    interrupt to a sleeping one, which on a virtual machine costs more than the proxy does. The same twemproxy took
    36 us or 74 us for a round trip, by the whim of the moment; on one core 34 us, within 2 %.
    """
    ours = os.sched_getaffinity(0)
    _move(pids, {max(ours)})  # interrupts tend to be served by the first
    try:
        yield
    finally:
        _move(pids, ours)


def _move(pids: Iterable[int], cores: set[int]) -> None:
    os.sched_setaffinity(0, cores)
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), cores)


def free_port() -> int:
    """A port that was free a moment ago. Should another process be quicker, the daemon fails to start and says so."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def first_line(argv: Sequence[str]) -> str:
    """The first line that a program prints about itself, e.g. its version; some use stderr for it."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=START_SECONDS, check=False)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0] if lines else "unknown"
