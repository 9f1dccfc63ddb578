"""The start where the upstream is not there yet: `--start-timeout`."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from .processes import (
    DEADLINE,
    ROOT,
    RedisServer,
    coalesce_command,
    environment,
    eventually,
    free_port,
    running_server,
    short_directory,
)
from .versions import NEWEST
from .wire import Wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .processes import Executable

INTERRUPTED = 130
LONG = "600"  # seconds; beyond every deadline here


@pytest.fixture(scope="session", params=[NEWEST], ids=str)
def executable(request: pytest.FixtureRequest) -> Executable:
    """Whether it is there matters, not which it is."""
    return request.param


class Starting:
    """One that may not get as far as to listen."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.port = port

    def says(self, what: str) -> str:
        """The next line, which has this in it."""
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        assert what in line, line + self.process.stderr.read()
        return line

    def ask(self, method: str, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(*self.admin, timeout=DEADLINE)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def waits(self) -> None:
        """It has said, in these lines, where it can be asked and what it waits for."""
        found = re.search(r"http://(\S+):(\d+)", self.says("INFO admin on "))
        assert found
        self.admin = found[1], int(found[2])
        self.says(f"Connection refused; trying until {LONG} s are over (--start-timeout)\n")

    def ends(self) -> tuple[int, str]:
        _, rest = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, rest


@contextlib.contextmanager
def starting(upstream: str, *flags: str) -> Iterator[Starting]:
    port = free_port()
    command = [*coalesce_command(), "--listen", f"127.0.0.1:{port}", "--admin", "127.0.0.1:0", *flags]
    env = environment(COALESCE_UPSTREAM=upstream)
    with subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield Starting(process, port)
        finally:
            process.kill()


def failed_dials(coalesce: Starting) -> float:
    text = coalesce.ask("GET", "/metrics")[1]
    found = re.search(r'^coalesce_dials_total\{outcome="failed"\} (\S+)$', text, re.MULTILINE)
    assert found
    return float(found[1])


def test_an_upstream_that_comes_later_is_waited_for(executable: Executable) -> None:
    with short_directory() as directory:
        server = RedisServer(executable, directory)
        with starting(server.url, "--start-timeout", LONG) as coalesce:
            coalesce.waits()
            for probe in ("/startup", "/readiness"):
                assert coalesce.ask("GET", probe) == (503, "starting: no upstream yet: Connection refused\n")
            assert coalesce.ask("GET", "/liveness")[0] == 200
            (lane,) = json.loads(coalesce.ask("GET", "/status")[1])["lanes"]
            assert (lane["state"], lane["why"]) == ("failing", "Connection refused")
            eventually(lambda: failed_dials(coalesce) >= 4)
            with pytest.raises(ConnectionRefusedError):
                Wire(("127.0.0.1", coalesce.port))
            server.start()
            try:
                coalesce.says(f"listening on 127.0.0.1:{coalesce.port}; ")  # nothing more was said meanwhile
                assert coalesce.ask("GET", "/startup") == (200, "started\n")
                with Wire(("127.0.0.1", coalesce.port)) as client:
                    assert client.ask("PING") == b"+PONG\r\n"
                coalesce.process.send_signal(signal.SIGTERM)
                assert coalesce.ends()[0] == 0
            finally:
                server.kill()


def test_who_comes_before_the_lane_is_connected_waits_as_at_any_start() -> None:
    with socket.socket() as upstream:
        upstream.bind(("127.0.0.1", 0))
        upstream.settimeout(DEADLINE)
        with starting(f"127.0.0.1:{upstream.getsockname()[1]}", "--start-timeout", LONG) as coalesce:
            coalesce.waits()
            upstream.listen()
            first, _ = upstream.accept()
            with first:
                assert b"HELLO" in first.recv(1000)
                first.sendall(b"-ERR unknown command\r\n")
                coalesce.says("listening on")
            second, _ = upstream.accept()
            with second, Wire(("127.0.0.1", coalesce.port)) as client:
                assert b"HELLO" in second.recv(1000)
                client.send(b"PING\r\n")
                eventually(lambda: json.loads(coalesce.ask("GET", "/status")[1])["lanes"][0]["unsent"] == 1)
                second.sendall(b"-ERR unknown command\r\n" * 2)
                assert b"PING" in second.recv(1000)
                second.sendall(b"+PONG\r\n")
                assert client.reply() == b"+PONG\r\n"


def test_an_upstream_that_never_comes_is_given_up_in_time(run_to_exit) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    began = time.monotonic()
    code, stderr = run_to_exit("--upstream", nobody, "--start-timeout", "0.4")
    assert 0.4 <= time.monotonic() - began < 5
    warning, said = stderr.splitlines()
    assert code == 1
    why = f"can't reach upstream {nobody}: Connection refused"
    assert warning.endswith(f"WARNING {why}; trying until 0.4 s are over (--start-timeout)")
    assert said == f"coalesce: {why}; tried for 0.4 s (--start-timeout)"


def test_the_last_attempt_has_no_more_time_than_there_is(run_to_exit) -> None:
    """The first one has its own: it would be the only one by default."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        upstream = f"127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        code, stderr = run_to_exit("--upstream", upstream, "--connect-timeout", "1", "--start-timeout", "1.5")
        assert 1.4 <= time.monotonic() - began < 1.9 + 3
        assert (code, "no answer to a request; tried for 1.5 s" in stderr) == (1, True), stderr


@pytest.mark.parametrize("by", ["SIGTERM", "quitquitquit"])
def test_whoever_waits_can_be_told_to_end(by: str) -> None:
    """At once: nobody is served yet, whom a delay would be for."""
    with starting(f"127.0.0.1:{free_port()}", "--start-timeout", LONG, "--sigterm-delay", LONG) as coalesce:
        coalesce.waits()
        if by == "SIGTERM":
            coalesce.process.send_signal(signal.SIGTERM)
        else:
            assert coalesce.ask("POST", "/quitquitquit")[0] == 200
        code, rest = coalesce.ends()
    assert (code, "told to end before the upstream was reached" in rest) == (0, True), rest


def test_whoever_waits_can_be_interrupted() -> None:
    with starting(f"127.0.0.1:{free_port()}", "--start-timeout", LONG) as coalesce:
        coalesce.waits()
        coalesce.process.send_signal(signal.SIGINT)
        assert coalesce.ends() == (INTERRUPTED, "")


def test_told_to_end_in_the_only_attempt() -> None:
    """As process 1 of a container it would not end by SIGTERM unless it takes that itself."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(DEADLINE)
        with starting(f"127.0.0.1:{silent.getsockname()[1]}", "--connect-timeout", LONG) as coalesce:
            connection, _ = silent.accept()
            with connection:
                os.kill(coalesce.process.pid, signal.SIGTERM)
                code, said = coalesce.ends()
    assert (code, "told to end before the upstream was reached" in said) == (0, True), said


def test_what_does_not_pass_by_itself_is_no_reason_to_wait(executable: Executable, run_to_exit) -> None:
    """(A certificate that is not trusted: test_tls.py.)"""
    with running_server(executable, "--requirepass", "right") as server:
        for upstream, why in (
            (f"redis://:wrong@{server.url}", "the upstream refuses coalesce's credentials: WRONGPASS"),
            (f"redis://{server.url}/1", "refused: NOAUTH"),
        ):
            code, stderr = run_to_exit("--start-timeout", LONG, COALESCE_UPSTREAM=upstream)
            assert (code, why in stderr, len(stderr.splitlines())) == (1, True, 1), stderr
