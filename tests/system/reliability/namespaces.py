"""Namespaces of a test's own: a network whose packets can be dropped, a process with an /etc/hosts of its own.

They need root and Linux's tools; `can` tells whether they work here, and why not.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.system.processes import (
    ROOT,
    Coalesce,
    Executable,
    RedisServer,
    coalesce_command,
    environment,
    short_directory,
)
from tests.system.wire import Wire

if TYPE_CHECKING:
    from collections.abc import Iterator

TOOLS = ("ip", "iptables", "unshare", "mount")
_CLONE_NEWNET = 0x40000000  # <linux/sched.h>
_NUMBERS = itertools.count()  # the kernel takes its time to be rid of a network: none is made twice
STEP = 10.0  # seconds for one command of these


def run(*command: str) -> None:
    """Raises CalledProcessError with what the command said."""
    told = subprocess.run(command, capture_output=True, text=True, timeout=STEP, check=False)
    if told.returncode:
        raise subprocess.CalledProcessError(told.returncode, command, told.stdout, told.stderr)


@functools.cache
def impossible() -> str:
    """Why there can be no namespaces here; empty when there can."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if os.geteuid() != 0:
        return "not root"
    try:
        run("unshare", "-n", "-m", "iptables", "-A", "INPUT", "-p", "tcp", "--dport", "1", "-j", "DROP")
        with network():
            pass
    except (subprocess.SubprocessError, OSError) as problem:
        return f"{problem} {getattr(problem, 'stderr', '')}"
    return ""


class ServerAt(RedisServer):
    """A server on another address than 127.0.0.1, perhaps in a network namespace."""

    def __init__(
        self, executable: Executable, directory: Path, *arguments: str, host: str, port: int = 0, within: str = ""
    ) -> None:
        super().__init__(executable, directory, *arguments)
        self.command[self.command.index("--bind") + 1] = host
        if port:
            self.command[self.command.index("--port") + 1] = str(port)
            self.port = port
        self.address = (host, self.port)
        self.url = f"{host}:{self.port}"
        # (-DENYOOM and the like apart: a server that listens on more than loopback asks for no password here either)
        self.command += ["--protected-mode", "no"]
        if within:
            self.command = ["ip", "netns", "exec", within, *self.command]


@contextlib.contextmanager
def server_at(
    executable: Executable, host: str, *arguments: str, port: int = 0, within: str = ""
) -> Iterator[ServerAt]:
    with short_directory() as directory:
        server = ServerAt(executable, directory, *arguments, host=host, port=port, within=within)
        server.start()
        try:
            yield server
        finally:
            server.kill()


@dataclass
class Network:
    """A namespace that a pair of virtual interfaces leads to: this end's address is `here`, the other's two are
    `there` and `elsewhere`."""

    name: str
    here: str
    there: str
    elsewhere: str

    def drop(self, address: str = "") -> None:
        """From now on, every packet to and from an address there (`there`) vanishes, and nobody is told."""
        self._rule("-I", address or self.there)

    def heal(self, address: str = "") -> None:
        self._rule("-D", address or self.there)

    def connect(self, address: tuple[str, int], receive_buffer: int | None = None) -> Wire:
        """A client whose host is in there: a socket stays in the namespace of the thread that made it."""

        def make() -> Wire:
            with Path(f"/run/netns/{self.name}").open("rb") as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            return Wire(address, receive_buffer)

        with ThreadPoolExecutor(1) as thread:  # which is over afterwards
            return thread.submit(make).result(STEP)

    def _rule(self, action: str, address: str) -> None:
        for chain, side in (("INPUT", "-d"), ("OUTPUT", "-s")):
            run("ip", "netns", "exec", self.name, "iptables", action, chain, side, address, "-p", "tcp", "-j", "DROP")


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """A network of its own for each call: a number is in the names and in the addresses (RFC 2544)."""
    number = next(_NUMBERS)
    first = (os.getpid() * 16 + number) % (2 * 256 * 32) * 8
    prefix = f"198.{18 + first // 65536}.{first // 256 % 256}"
    name = f"coal{os.getpid()}n{number}"
    made = Network(name, *(f"{prefix}.{first % 256 + host}" for host in (1, 2, 3)))
    with contextlib.ExitStack() as stack:
        run("ip", "netns", "add", name)
        stack.callback(run, "ip", "netns", "del", name)
        run("ip", "link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b", "netns", name)
        stack.callback(run, "ip", "link", "del", f"{name}a")
        run("ip", "addr", "add", f"{made.here}/29", "dev", f"{name}a")
        run("ip", "link", "set", f"{name}a", "up")
        for words in (
            ("addr", "add", f"{made.there}/29", "dev", f"{name}b"),
            ("addr", "add", f"{made.elsewhere}/29", "dev", f"{name}b"),
            ("link", "set", f"{name}b", "up"),
            ("link", "set", "lo", "up"),
        ):
            run("ip", "-n", name, *words)
        yield made


class Hosts:
    """An /etc/hosts that one process sees; it can be changed under way."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def say(self, name: str, *addresses: str) -> None:
        """Written in place: the file that is mounted stays the same."""
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for address in addresses)]
        self.path.write_text("\n".join([*lines, ""]))


@contextlib.contextmanager
def coalesce_at(host: str, upstream: str, *flags: str) -> Iterator[Coalesce]:
    """A coalesce that listens on another address than 127.0.0.1, which nobody but the test can reach."""
    with short_directory() as directory:
        listen = ["--listen", f"{host}:0", "--listen", f"unix://{directory}/c.sock", "--unprotected"]
        coalesce = Coalesce([*coalesce_command(), "--upstream", upstream, *listen, *flags], environment())
        try:
            yield coalesce
        finally:
            coalesce.end()
    assert "Traceback" not in coalesce.stderr, coalesce.stderr


@contextlib.contextmanager
def coalesce_with(
    mounts: str, upstream: str, *flags: str, place: Path, host: str = "127.0.0.1"
) -> Iterator[Coalesce]:
    """A coalesce in a mount namespace of its own, after the shell commands `mounts`; its unix socket is at `place`."""
    listen = ["--listen", f"{host}:0", "--listen", f"unix://{place}"]
    start = ["unshare", "-m", "sh", "-ec", f'{mounts}\nexec "$@"', "sh"]
    coalesce = Coalesce([*start, *coalesce_command(), "--upstream", upstream, *listen, *flags], environment())
    try:
        yield coalesce
    finally:
        coalesce.end()
    assert "Traceback" not in coalesce.stderr, coalesce.stderr


def run_to_exit_with(mounts: str, *arguments: str, prefix: tuple[str, ...] = ()) -> tuple[int, str]:
    """As `processes.run_to_exit`, in a mount namespace of its own."""
    start = ["unshare", "-m", "sh", "-ec", f'{mounts}\nexec "$@"', "sh"]
    ended = subprocess.run(
        [*start, *prefix, *coalesce_command(), *arguments],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=STEP, check=False,
    )  # fmt: skip
    return ended.returncode, ended.stderr
