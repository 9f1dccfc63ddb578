"""Directories that are full, gone, or not ours to write in: where the unix socket is to be, and where the log goes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.processes import (
    DEADLINE,
    ROOT,
    coalesce_command,
    environment,
    eventually,
    free_port,
    running_server,
    short_directory,
)  # fmt: skip
from tests.system.wire import Wire, bulk, pack

from . import faults
from .accounting import Load
from .namespaces import coalesce_with, impossible, run_to_exit_with
from .stage import FORGETS_NOTHING

in_namespace = pytest.mark.skipif(bool(impossible()), reason=f"no namespaces here: {impossible()}")

OK = b"+OK\r\n"
LINES = 3000  # of a log; 1000 may wait, and a page of a pipe takes fewer than 100
# Says them while nobody reads, and one more when it is told to.
TALKATIVE = f"""
import logging
import sys
from coalesce.logs import logging_to_stderr

with logging_to_stderr():
    log = logging.getLogger("coalesce")
    for number in range({LINES}):
        log.info(f"line {{number}}")  # (lines alike would be summed up)
    print("done", flush=True)
    sys.stdin.readline()
    log.info("the last one")
"""


@pytest.fixture(scope="module")
def upstream(executable):
    with running_server(executable) as server:
        yield server


def refusal(code: int, stderr: str) -> str:
    """The one line that says why there was no start; a warning of the system's limits may come first."""
    assert code == 1, stderr
    lines = [line for line in stderr.splitlines() if "descriptors" not in line]
    assert len(lines) == 1, stderr
    return lines[0]


@in_namespace
@pytest.mark.parametrize(
    ("mount", "said"),
    [
        # The directory itself takes one of the two inodes; the file the other.
        ("mount -t tmpfs -o size=64k,nr_inodes=2 none {0} && touch {0}/file", "No space left on device"),
        ("mount -t tmpfs -o ro none {0}", "Read-only file system"),
    ],
    ids=["full", "read-only"],
)
def test_a_socket_that_cannot_be_made_is_one_line_and_exit_code_1(upstream, mount, said):
    with short_directory() as directory:
        place = f"unix://{directory}/c.sock"
        line = refusal(*run_to_exit_with(mount.format(directory), "--upstream", upstream.url, "--listen", place))
    assert line == f"coalesce: can't listen on {place}: {said}"


@in_namespace
def test_a_directory_of_somebody_else_is_one_line_and_exit_code_1(upstream):
    """Root may write anywhere, unless it has given that up."""
    with short_directory() as directory:
        directory.chmod(0o555)
        place = f"unix://{directory}/c.sock"
        drop = ("setpriv", "--bounding-set", "-dac_override", "--inh-caps", "-dac_override")
        line = refusal(*run_to_exit_with("", "--upstream", upstream.url, "--listen", place, prefix=drop))
    assert line == f"coalesce: can't listen on {place}: Permission denied"


def test_a_directory_that_is_not_there_is_one_line_and_exit_code_1(upstream, run_to_exit):
    with short_directory() as directory:
        place = f"unix://{directory}/gone/c.sock"
    line = refusal(*run_to_exit("--upstream", upstream.url, "--listen", place))
    assert line == f"coalesce: can't listen on {place}: No such file or directory"


@in_namespace
def test_a_directory_that_vanishes_takes_nothing_but_the_way_in(upstream):
    """Who is connected goes on, TCP goes on, and the end is clean."""
    with short_directory() as directory:
        inner = directory / "run"
        inner.mkdir()
        place = inner / "d.sock"
        with coalesce_with("", upstream.url, place=place) as coalesce:
            with Wire(str(place)) as client:
                assert client.ask("SET", "k", "v") == OK
                place.unlink()
                inner.rmdir()
                assert client.ask("SET", "k", "w") == OK
                with coalesce.connect() as late:
                    assert late.ask("SET", "k", "x") == OK
                with pytest.raises(FileNotFoundError):
                    Wire(str(place))
            code, stderr = coalesce.stop()
            assert code == 0, stderr


@in_namespace
def test_a_disk_that_fills_up_while_it_runs_harms_nothing(executable):
    """The disk with the socket on it; new clients still come, and so does a lost upstream."""
    with short_directory() as directory, running_server(executable, *FORGETS_NOTHING) as server:
        disk = directory / "disk"
        disk.mkdir()
        mounts = f"mount -t tmpfs -o size=64k none {disk}"
        with coalesce_with(mounts, server.url, place=disk / "d.sock") as coalesce:
            there = Path(f"/proc/{coalesce.pid}/root{disk}")  # as it sees it
            with contextlib.suppress(OSError), (there / "file").open("wb", buffering=0) as file:
                while file.write(b"x" * 4096):
                    pass
            with pytest.raises(OSError, match="No space left"):
                (there / "another").write_bytes(b"x" * 4096)
            # (the way to the socket leads through /proc, so nobody but its process need see the mount)
            with Wire(str(there / "d.sock")) as client, coalesce.connect() as other:
                assert client.ask("SET", "k", "v") == OK
                load = Load([coalesce.address, str(there / "d.sock")], clients=20)
                load.start()
                server.kill()
                server.start()
                assert client.ask("GET", "k") == bulk("v")
                assert other.ask("SET", "k", "w") == OK
                load.go_on(3)
                load.finish()
                with server.connect() as control:
                    load.balance(control)
            code, stderr = coalesce.stop()
            assert code == 0, stderr
            assert not (there / "d.sock").exists()


def test_a_log_that_takes_no_more_harms_nothing(executable):
    """stderr is /dev/full: every line of the log fails, a lost upstream's among them."""
    port = free_port()
    with running_server(executable) as server, Path("/dev/full").open("wb", buffering=0) as full:
        command = [*coalesce_command(), "--upstream", server.url, "--listen", f"127.0.0.1:{port}"]
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, stderr=full)
        try:
            with eventually(lambda: connected(port)) as client:
                assert client.ask("SET", "k", "v") == OK
                for _ in range(2):
                    server.kill()
                    faults.last(0.3)  # so there are some attempts in vain, and a line for each
                    server.start()
                    assert client.ask("GET", "k") == b"$-1\r\n"
            process.terminate()
            assert process.wait(DEADLINE) == 0
        finally:
            if process.poll() is None:
                process.kill()
                process.wait(DEADLINE)


def connected(port: int) -> Wire | None:
    try:
        return Wire(("127.0.0.1", port))
    except ConnectionRefusedError:
        return None


def test_a_log_that_nobody_reads_holds_nothing_up(executable):
    """stderr is a pipe whose reader has stopped, as a container's may. It takes a page, so few lines fill it."""
    port = free_port()
    reading, writing = os.pipe()
    with running_server(executable) as server, contextlib.ExitStack() as stack:
        stack.callback(os.close, reading)
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
        command = [*coalesce_command(), "--upstream", server.url, "--listen", f"127.0.0.1:{port}"]
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, stderr=writing)
        os.close(writing)
        stack.callback(process.wait, DEADLINE)
        stack.callback(process.kill)
        client = stack.enter_context(eventually(lambda: connected(port)))
        waiting = [stack.enter_context(Wire(("127.0.0.1", port))) for _ in range(50)]
        assert client.ask("PING") == b"+PONG\r\n"
        server.kill()
        for wire in waiting:
            wire.send(pack("MULTI"))  # each needs a connection of its own: a line of the log for each attempt
        faults.last(0.5)
        server.start()
        client.socket.settimeout(3)
        assert client.ask("PING") == b"+PONG\r\n"


def test_lines_that_nobody_read_are_counted():
    """How many were dropped is said once the log is read again; the others are there, in order."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with (
        os.fdopen(reading, encoding="utf-8") as log,
        subprocess.Popen([sys.executable, "-c", TALKATIVE], cwd=ROOT, env=environment(), stderr=writing, **pipes) as it,
    ):
        os.close(writing)
        assert it.stdin is not None
        assert it.stdout is not None
        assert it.stdout.readline() == b"done\n"
        lines = [log.readline() for _ in range(800)]  # so fewer than 500 wait
        it.stdin.write(b"\n")
        it.stdin.flush()
        lines += log.readlines()
        assert it.wait(DEADLINE) == 0
    *known, told, last = lines
    numbers = [int(line.split()[-1]) for line in known]
    assert numbers == sorted(set(numbers))
    assert 1000 <= len(known) < 1200
    assert re.search(rf" WARNING {LINES - len(known)} lines of this log were dropped: nobody read it$", told)
    assert last.endswith(" the last one\n")
