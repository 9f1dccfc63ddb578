"""redis-py's own tests, against a server directly and through coalesce: does any of them see a difference?

    python -m tests.system.redis_py_suite

They are the tests of the client that most Python applications use, and were written without a thought of a proxy. Each
run has a fresh server; the runs follow one another, so that they do not take the CPU from each other. What differs is
run again, alone and then with the rest of its file, before it is called a difference; two failures for different
reasons are one, too. Exits 1 when there is one, and when a run could not be made or met its deadline.

Left out, because they need servers of other kinds: cluster, sentinel, replicas, modules, TLS, a provider of identities.
Tests that this server is too old or too new for are skipped, or fail, on both sides. The tests ask one thing after the
other, so they say nothing about batches.

`--through direct` and `--through haproxy` are the controls: what differs there is not coalesce's doing.

redis-py's sources and what its tests need are downloaded once, into a virtual environment in the cache directory.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import redis_py_recorder
from .processes import (
    environment,
    eventually,
    executables,
    free_port,
    running_coalesce,
    running_server,
    short_directory,
)
from .wire import Wire

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .processes import Executable, RedisServer

REDIS_PY = "6.4.0"  # its source distribution has the tests, and they know Redis 7.0 (and later ones)
REQUIREMENTS = (
    "pytest==8.4.1",
    "pytest-asyncio==1.1.0",
    "pytest-timeout==2.4.0",
    "packaging==25.0",
    "mock==5.2.0",
    "PyJWT==2.9.0",
    "redis-entraid==1.0.0",  # tests of credentials import it
)
SETTINGS = """\
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
timeout = 30
filterwarnings = ignore
"""
MARKS = "not (onlycluster or redismod or ssl or replica or cp_integration)"
# Only what the marks don't tell, or what would need more packages to be imported.
LEFT_OUT = ("cluster", "sentinel", "multidb", "scenario", "ssl", "bloom", "json", "search", "timeseries", "vsets")

FAILED = "failed"


class SuiteError(Exception):
    """The comparison could not be made."""


@dataclass(frozen=True)
class Outcome:
    """What became of a test, and the first line of why."""

    word: str
    why: str = ""

    def __str__(self) -> str:
        return f"{self.word}: {self.why}" if self.why else self.word

    def is_like(self, other: Outcome) -> bool:
        """Whether nobody could tell which side it is from. Two that failed may yet have found different things."""
        return self.word == other.word and (self.word != FAILED or self._steady_part() == other._steady_part())

    def _steady_part(self) -> str:
        """Without ports, addresses of objects, and long random words."""
        return _NEW_IN_EACH_RUN.sub("#", self.why)


ABSENT = Outcome("absent")
_NEW_IN_EACH_RUN = re.compile(r"0x[0-9a-f]+|[0-9a-f]{8,}|\d{4,}")
Outcomes = dict[str, Outcome]


# The ways to reach the server.


@contextlib.contextmanager
def directly(server: RedisServer) -> Iterator[int]:
    yield server.port


@contextlib.contextmanager
def through_coalesce(server: RedisServer) -> Iterator[int]:
    try:
        with running_coalesce(server.url) as coalesce:
            yield coalesce.port
    except AssertionError as problem:
        raise SuiteError(f"coalesce has complained:\n{problem}") from problem


@contextlib.contextmanager
def through_haproxy(server: RedisServer) -> Iterator[int]:
    """A forwarder of bytes that knows nothing of Redis."""
    program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/local/sbin:/usr/sbin:/sbin")
    if program is None:
        raise SuiteError("haproxy is not installed")
    port = free_port()
    with short_directory() as directory:
        config = directory / "haproxy.cfg"
        config.write_text(
            "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 5m\n  timeout server 5m\n"
            f"listen suite\n  bind 127.0.0.1:{port}\n  server upstream {server.url}\n"
        )
        process = subprocess.Popen([program, "-db", "-f", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            eventually(lambda: _answers(port))
            yield port
        finally:
            process.kill()
            process.wait()


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError, EOFError), Wire(("127.0.0.1", port)) as wire:
        return wire.ask("PING") == b"+PONG\r\n"
    return False


WAYS = {"direct": directly, "coalesce": through_coalesce, "haproxy": through_haproxy}


# redis-py and what its tests need.


def prepare(cache: Path, version: str) -> Path:
    """A directory that holds redis-py's `tests`, and in `venv` the Python to run them with."""
    home = cache / f"redis-py-{version}"
    stamp = home / "complete"
    wanted = "\n".join([sys.version, *REQUIREMENTS])
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"preparing {home}", flush=True)
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        _call(sys.executable, "-m", "venv", home / "venv")
        pip = (home / "venv/bin/python", "-m", "pip", "--quiet", "--disable-pip-version-check")
        _call(*pip, "download", "--no-binary", "redis", "--no-deps", "--dest", home, f"redis=={version}")
        source = next(home.glob("redis-*.tar.gz"))
        _unpack_tests(source, home)
        _call(*pip, "install", source, *REQUIREMENTS)
        stamp.write_text(wanted)
    (home / "suite.ini").write_text(SETTINGS)
    shutil.copy(redis_py_recorder.__file__, home)
    return home


def _unpack_tests(source: Path, home: Path) -> None:
    with tarfile.open(source) as archive:
        for member in archive.getmembers():
            _, _, inside = member.name.partition("/")
            if inside.startswith("tests/"):
                member.name = inside
                archive.extract(member, home, filter="data")
    if not (home / "tests/conftest.py").exists():
        raise SuiteError(f"{source.name} has no tests; choose another version with --redis-py")


def _call(*command: str | Path) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if ended.returncode:
        raise SuiteError(f"{' '.join(map(str, command))} failed:\n{ended.stderr}")


# Running them.


@dataclass(frozen=True)
class Selection:
    """Which of the tests, and what they are told."""

    asynchronous: bool
    protocol: int
    expression: str = ""

    def __str__(self) -> str:
        return f"{'asyncio' if self.asynchronous else 'sync'}, RESP{self.protocol}"

    def arguments(self) -> list[str]:
        ignored = [f"--ignore-glob=*test_{name}*" for name in LEFT_OUT]
        if self.asynchronous:
            return ["tests/test_asyncio", *ignored, "-k", self.expression]
        return ["tests", "--ignore=tests/test_asyncio", *ignored, "-k", self.expression]


@dataclass
class Suite:
    """The tests, the server they are for, and how long a run may take."""

    home: Path
    executable: Executable
    deadline: float

    def run(self, way: str, selection: Selection, tests: Sequence[str] = ()) -> Outcomes:
        """What became of each test: of all that are selected, or of those that are named."""
        with short_directory() as directory, running_server(self.executable) as server, WAYS[way](server) as port:
            recorded, log = directory / "outcomes", directory / "log"
            recorded.touch()
            code = self._pytest(port, selection, tests, recorded, log)
            outcomes = _read(recorded)
            if code not in {0, 1} or not outcomes:
                last = next(reversed(outcomes), "none")
                end = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
                raise SuiteError(
                    f"{selection}, {way}: pytest ended with {code}; the last of {len(outcomes)} tests: {last}\n{end}"
                )
            return outcomes

    def _pytest(self, port: int, selection: Selection, tests: Sequence[str], recorded: Path, log: Path) -> int | str:
        url = f"redis://127.0.0.1:{port}/0"
        words = f"-m pytest -q -c suite.ini --rootdir . -p no:cacheprovider -p redis_py_recorder --server-port {port}"
        words += f" --redis-url {url} --redis-mod-url {url} --protocol {selection.protocol}"
        command = [str(self.home / "venv/bin/python"), *words.split(), "--outcomes", str(recorded), "-m", MARKS]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, *(tests or selection.arguments())],
                cwd=self.home,
                env=environment(PYTEST_ADDOPTS=""),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                return process.wait(self.deadline)
            except subprocess.TimeoutExpired:
                return f"no exit code in {self.deadline:.0f} s"
            finally:
                # Some of the tests fork; whoever is left would hold this run's server up, or talk to the next one.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _read(recorded: Path) -> Outcomes:
    outcomes: Outcomes = {}
    for line in recorded.read_text().splitlines():
        told = json.loads(line)
        # The first failure counts, also one of the teardown after a test that passed.
        if told["test"] not in outcomes or outcomes[told["test"]].word != FAILED:
            outcomes[told["test"]] = Outcome(told["outcome"], told["why"])
    return outcomes


# Comparing.


@dataclass
class Suspect:
    """A test whose outcomes differ: the pairs (directly, through) of all runs, the first one with all the others."""

    test: str
    pairs: list[tuple[Outcome, Outcome]]

    def is_steady(self) -> bool:
        """Whether it always passed, or always didn't, on the direct side."""
        return len({direct.word for direct, _ in self.pairs}) == 1

    def is_different(self) -> bool:
        """Whether another run has shown it again, and the test itself is not to blame."""
        return self.is_steady() and any(not direct.is_like(through) for direct, through in self.pairs[1:])


def investigate(suite: Suite, selection: Selection, way: str, suspect: Suspect) -> None:
    """Runs it again until the difference shows again: alone, with the rest of its file, and once more alone."""
    file = suspect.test.partition("::")[0]
    for tests in ([suspect.test], [file], [suspect.test]):
        direct, through = (suite.run(each, selection, tests) for each in ("direct", way))
        suspect.pairs.append((direct.get(suspect.test, ABSENT), through.get(suspect.test, ABSENT)))
        if suspect.is_different():
            return


def compare(suite: Suite, selection: Selection, way: str) -> bool:
    """Whether both sides are the same. Prints what there is to say."""
    runs, seconds = [], []
    for each in ("direct", way):
        begin = time.monotonic()
        runs.append(suite.run(each, selection))
        seconds.append(time.monotonic() - begin)
    direct, through = runs
    print(f"{selection}: direct {seconds[0]:.0f} s, {way} {seconds[1]:.0f} s", flush=True)

    pairs = {test: (direct.get(test, ABSENT), through.get(test, ABSENT)) for test in direct | through}
    counts = Counter(one.word for one, other in pairs.values() if one.is_like(other))
    print("  in both:", ", ".join(f"{counts[word]} {word}" for word in sorted(counts)) or "nothing")

    suspects = [Suspect(test, [pair]) for test, pair in pairs.items() if not pair[0].is_like(pair[1])]
    for suspect in suspects:
        investigate(suite, selection, way, suspect)
    different = [suspect for suspect in suspects if suspect.is_different()]
    show("flaky", [suspect for suspect in suspects if not suspect.is_different()], way)
    show("DIFFERENT", different, way)
    return not different


def show(title: str, suspects: Sequence[Suspect], way: str) -> None:
    if suspects:
        print(f"  {title} ({len(suspects)}):")
    for suspect in suspects:
        print(f"    {suspect.test}")
        for number, name in enumerate(("direct", way)):
            told = dict.fromkeys(str(pair[number]) for pair in suspect.pairs)
            print(f"      {name:<9} {' | '.join(told)}")
    sys.stdout.flush()


def main() -> int:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    servers = {str(each): each for each in executables()}
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--redis-py", default=REDIS_PY, metavar="VERSION")
    parser.add_argument("--only", choices=["sync", "asyncio"], help="which half of the tests; both if not given")
    parser.add_argument("--protocol", type=int, choices=[2, 3], help="both if not given")
    parser.add_argument("-k", default="", metavar="EXPRESSION", help="only tests that match, as in pytest")
    parser.add_argument("--through", choices=sorted(WAYS), default="coalesce")
    parser.add_argument("--server", choices=sorted(servers), default=list(servers)[-1])
    parser.add_argument("--cache", type=Path, default=home / "coalesce-tests", metavar="DIRECTORY")
    parser.add_argument("--deadline", type=float, default=300.0, metavar="SECONDS", help="for one run of the tests")
    chosen = parser.parse_args()
    try:
        suite = Suite(prepare(chosen.cache.resolve(), chosen.redis_py), servers[chosen.server], chosen.deadline)
        print(f"redis-py {chosen.redis_py}, {chosen.server}, through {chosen.through}", flush=True)
        same = True
        for kind in [chosen.only] if chosen.only else ["sync", "asyncio"]:
            for protocol in [chosen.protocol] if chosen.protocol else [2, 3]:
                same &= compare(suite, Selection(kind == "asyncio", protocol, chosen.k), chosen.through)
    except SuiteError as problem:
        print(problem, file=sys.stderr)
        return 1
    print("no difference" if same else "there are differences")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
