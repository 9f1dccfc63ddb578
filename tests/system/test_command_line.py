"""What coalesce is told, by which way, and what it says of that."""

from __future__ import annotations

import os
import platform
import re
import signal
import socket
import ssl
import subprocess
import sys
import tomllib
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from coalesce.build import build_info
from coalesce.cli.options import OPTIONS

from .processes import (
    DEADLINE,
    ROOT,
    coalesce_command,
    environment,
    eventually,
    free_port,
    running_coalesce,
    running_server,
)
from .test_doors import Pretender
from .versions import NEWEST, with_oldest_and_newest
from .wire import Wire, pack

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


def test_a_command_that_there_is_not(run_to_exit):
    code, said = one_line(run_to_exit("topp"))
    commands = "nor one of check, wait, top, pause, resume, shutdown:"
    assert (code, commands in said, "topp" in said) == (2, True, False)


@pytest.mark.parametrize(
    ("flag", "value", "why"),
    [
        ("--admin", "h:99999", "'h:99999' is none of host:port, [IPv6]:port (a port is 65535 at the most) and off"),
        ("--drain-timeout", "5s", "'5s' is not a valid number."),
        ("--max-clients", "1k", "'1k' is not a valid whole number."),
        ("--max-leases", "9" * 400, "it is at most 2^53, as those who read /metrics know no larger one"),
    ],
)
def test_a_value_that_can_not_be(flag, value, why, run_to_exit):
    code, said = one_line(run_to_exit("--upstream", "h:1", flag, value))
    assert (code, said) == (2, f"coalesce: Invalid value for '{flag}': {why} (see coalesce --help)")


# The file


def written(path: Path, text: str, mode: int = 0o640) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def in_force(ask, *flags: str, **more: str) -> tuple[dict[str, object], dict[str, str]]:
    """What `--print-config` says: the values, and where each came from."""
    said = ask(*flags, "--print-config", **more)
    assert (said.code, said.stderr) == (0, "")
    lines = [line for line in said.stdout.splitlines() if "  # " in line]
    sources = {line.removeprefix("# ").split()[0]: line.partition("  # ")[2].partition(":")[0] for line in lines}
    return tomllib.loads(said.stdout), sources


def test_a_flag_goes_before_the_environment_and_that_before_the_file(ask, tmp_path):
    file = written(tmp_path / "c.toml", "upstream = 'h:1'\nmax-clients = 1\nmax_leases = 1\nmax-lanes = 1\n")
    for flags, more in ((["--config", file], {}), ([], {"COALESCE_CONFIG": file})):
        values, sources = in_force(
            ask, *flags, "--max-clients", "3", **more, COALESCE_MAX_CLIENTS="2", COALESCE_MAX_LEASES="2"
        )
        assert (values["max-clients"], sources["max-clients"]) == (3, "flag")
        assert (values["max-leases"], sources["max-leases"]) == (2, "environment")
        assert (values["max-lanes"], sources["max-lanes"]) == (1, "file")
        assert (values["lane-limit"], sources["lane-limit"]) == (10000, "default")
        assert (values["upstream"], sources["upstream"]) == ("h:1", "file")


EVERYTHING = {
    "COALESCE_UPSTREAM": "rediss://u@h:1/2", "COALESCE_UPSTREAM_PASSWORD_FILE": '/p\\"x', "COALESCE_LISTEN":
    "[::1]:0 unix:///tmp/x", "COALESCE_SOCKET_MODE": "0060", "COALESCE_UPSTREAM_WAIT": "inf",
    "COALESCE_UNPROTECTED": "1", "COALESCE_MAX_CLIENTS": "7", "COALESCE_ADMIN": "off",
}  # fmt: skip


def test_what_is_printed_can_be_fed_back(ask, tmp_path):
    values, sources = in_force(ask, **EVERYTHING)
    assert set(sources) == {option.key for option in OPTIONS.values()}
    given = {name.removeprefix("COALESCE_").lower().replace("_", "-") for name in EVERYTHING}
    assert {key for key, source in sources.items() if source == "environment"} == given
    assert values["socket-mode"] == "0060"
    assert values["listen"] == ["[::1]:0", "unix:///tmp/x"]
    file = written(tmp_path / "c.toml", ask("--print-config", **EVERYTHING).stdout)
    again, sources = in_force(ask, "--config", file, COALESCE_ADMIN="")  # (empty: not given)
    assert again == values
    assert {key for key, source in sources.items() if source == "file"} == set(values)


def test_no_secret_is_printed(ask, tmp_path):
    file = written(tmp_path / "c.toml", "upstream = 'redis://u:hunter2@h:1'")
    for flags, more in ((["--config", file], {}), ([], {"COALESCE_UPSTREAM": "redis://u:hunter2@h:1"})):
        said = ask(*flags, "--print-config", **more)
        assert "hunter2" not in said.stdout + said.stderr
        assert '# upstream = "redis://u@h:1"' in said.stdout
        assert "its password is left out" in said.stdout
        assert "upstream" not in tomllib.loads(said.stdout)


def test_settings_are_printed_without_an_upstream(ask):
    said = ask("--print-config")
    assert (said.code, "# upstream is not set  # required\n" in said.stdout) == (0, True)


def test_what_is_in_force_has_to_make_sense(run_to_exit):
    code, said = one_line(run_to_exit("--upstream", "h:1", "--tls-cert", "x", "--print-config"))
    assert (code, "--tls-cert and --tls-key go together" in said) == (2, True)
    code, _ = one_line(run_to_exit("--print-config", "more"))
    assert code == 2


def test_a_password_in_a_file_that_everybody_may_read(run_to_exit, ask, tmp_path):
    for mode in (0o600, 0o640, 0o440):
        file = written(tmp_path / "c", "upstream='redis://:hunter2@h'", mode)
        assert ask("--config", file, "--print-config").code == 0
    for mode in (0o644, 0o604):
        file = written(tmp_path / "c", "upstream='redis://:hunter2@h'", mode)
        code, said = one_line(run_to_exit("--config", file))
        assert (code, file in said, "chmod o-r" in said, "hunter2" in said) == (2, True, True, False)
        assert ask("--config", file, "--print-config", COALESCE_UPSTREAM="h:1").code == 0  # it is not used
        assert ask("--config", written(tmp_path / "c", "upstream='redis://h'", mode), "--print-config").code == 0


WRONG = {
    "max-client = 'hunter2'": "'max-client' is no setting; the nearest is 'max-clients'",
    "max_client = 1": "'max_client' is no setting; the nearest is 'max-clients'",
    "config = 'hunter2'": "'config' is no setting",
    "'redis://u:hunter2@h' = 1": "a key is no setting; the nearest is",
    "max-clients = 1\nmax_clients = 2": "max-clients is there twice",
    "max-clients = 'hunter2'": "max-clients is to be a whole number",
    "max-clients = '5'": "max-clients is to be a whole number",
    "max-clients = 5.0": "max-clients is to be a whole number",
    "max-clients = true": "max-clients is to be a whole number",
    f"max-clients = 0x{'f' * 5000}": "max-clients is to be a whole number",
    "max-clients = 0": "Invalid value for max-clients in ",
    "upstream-wait = true": "upstream-wait is to be a number",
    "upstream-wait = nan": "Invalid value for upstream-wait in ",
    f"upstream-wait = 1{'0' * 400}": "upstream-wait is to be a number",
    "unprotected = 1": "unprotected is to be true or false",
    "upstream = ['hunter2']": "upstream is to be a string",
    "upstream = 'redis:/hunter2@h'": "Invalid value for upstream in ",
    'upstream-ca = "a\\u0000b"': "upstream-ca is to be a string",
    "upstream-ca = ''": "Invalid value for upstream-ca in ",
    "listen = []": "listen is to be a string, or a list of such",
    "listen = ['h:1', 5]": "listen is to be a string, or a list of such",
    "listen = 'u:hunter2@h:1'": "Invalid value for listen in ",
    "socket-mode = 432": "socket-mode is to be a string",
    "[upstream]\nhost = 'hunter2'": "upstream is to be a string",
    "upstream = hunter2": "not TOML: see line 1, column 12",
    "upstream = 'hunter2": "not TOML: see end of document",
    "\nhunter2": "not TOML: see ",
    f"max-clients = {'[' * 100_000}": "nested too deeply",
    f"max-clients = {'9' * 5_000}": "not TOML",
    "#" * (1024 * 1024 + 1): "is too long",
}


@pytest.mark.parametrize(("text", "why"), WRONG.items(), ids=lambda text: text[:30])
def test_what_is_wrong_with_the_file_is_one_line_and_exit_code_2(text, why, run_to_exit, tmp_path):
    file = written(tmp_path / "c.toml", text)
    ended = run_to_exit("--config", file, COALESCE_ADMIN="") if "upstream" in text else run_to_exit(
        "--upstream", "127.0.0.1:1", COALESCE_CONFIG=file
    )  # fmt: skip
    code, said = one_line(ended)
    assert (code, why in said, file in said, "hunter2" in said) == (2, True, True, False), said


def test_a_file_that_can_not_be_read(run_to_exit, tmp_path):
    for place, why in (("nobody", "No such file"), (".", "directory")):
        code, said = one_line(run_to_exit("--config", str(tmp_path / place)))
        assert (code, why in said) == (2, True), said
    (tmp_path / "latin").write_bytes(b"# \xe9")
    code, said = one_line(run_to_exit("--config", str(tmp_path / "latin")))
    assert (code, "not in UTF-8" in said) == (2, True)
    code, said = one_line(run_to_exit("--config", "a\n\x1b[31mb"))
    assert (code, "can't read a\\x0a\\x1b[31mb: No such file" in said) == (2, True)
    code, said = one_line(run_to_exit(COALESCE_CONFIG="redis://u:hunter2@h"))
    assert (code, "hunter2" in said) == (2, False)


def test_a_run_from_a_file(upstream, forged, tmp_path):
    file = written(tmp_path / "c.toml", f"upstream = '{upstream.url}'\nlisten = '127.0.0.1:0'\nadmin = 'off'")
    ended = forged.run_until_it_listens("--config", file, COALESCE_ADMIN="")
    assert (ended.code, "listening on 127.0.0.1:" in ended.stderr) == (0, True), ended.stderr


@pytest.mark.parametrize("flag", ["--print-config", "--help"])
def test_nobody_takes_what_is_printed(flag):
    with open("/dev/full", "w") as full:  # noqa: PTH123 (a device)
        ended = subprocess.run(
            [*coalesce_command(), flag],
            cwd=ROOT, env=environment(), stdout=full, stderr=subprocess.PIPE, text=True, timeout=DEADLINE, check=False,
        )  # fmt: skip
    code, said = one_line((ended.returncode, ended.stderr))
    assert (code, "can't write to standard output" in said) == (1, True)


def test_nobody_takes_what_is_wrong():
    """The exit code says it, then."""
    with open("/dev/full", "w") as full:  # noqa: PTH123 (a device)
        ended = subprocess.run(
            [*coalesce_command(), "--nosuch"], cwd=ROOT, env=environment(), stderr=full, timeout=DEADLINE, check=False
        )
    assert ended.returncode == 2


def test_a_closed_standard_stream_is_no_place_for_a_connection(upstream, tmp_path):
    """A line of the log would go into it."""
    closing = ["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *coalesce_command()]
    place = tmp_path / "c"
    command = [*closing, "--upstream", upstream.url, "--listen", f"unix://{place}", "--trace"]
    with subprocess.Popen(command, cwd=ROOT, env=environment()) as process:
        try:
            with Wire(eventually(lambda: place.exists() and str(place))) as client:
                assert client.ask("PING") == b"+PONG\r\n"
                streams = [str(Path(f"/proc/{process.pid}/fd/{number}").readlink()) for number in range(3)]
        finally:
            process.terminate()
        assert process.wait(DEADLINE) == 0
    assert streams == [os.devnull] * 3


# Which coalesce it is


def test_the_version(ask):
    said = ask("--version", COALESCE_UPSTREAM="no upstream", COALESCE_VERSION="1")
    assert (said.code, said.stderr) == (0, "")
    first, second = said.stdout.splitlines()
    build = build_info()
    assert first == f"coalesce {version('coalesce')} (commit {build.commit or 'unknown'})"
    libraries = f"trio {version('trio')}, hiredis {version('hiredis')}, {ssl.OPENSSL_VERSION}"
    assert second == f"Python {platform.python_version()}, {libraries}"


# What is found upstream


def found_by(said) -> dict[str, str]:
    """Its lines, without the remarks."""
    assert (said.code, said.stderr) == (0, ""), said
    pairs = [re.split(r"  +", line, maxsplit=1) for line in said.stdout.splitlines()]
    return {what: found.partition("  (")[0] for what, found in pairs}


@with_oldest_and_newest
def test_what_check_finds(executable, ask):
    limits = "--timeout 7 --maxclients 77 --client-output-buffer-limit normal 1048576 524288 9"
    with running_server(executable, *limits.split()) as server:
        found = found_by(ask("check", "--upstream", f"redis://{server.url}/3"))
        assert found["upstream"] == server.url
        assert found["version"] == f"{executable.product.lower()} {'.'.join(map(str, executable.version))}"
        assert 0 < float(found["round trip"].removesuffix(" ms")) < 1000
        assert (found["TLS"], found["user"], found["database"]) == ("none", "default", "3")
        assert (found["timeout"], found["maxclients"]) == ("7", "77")
        assert found["client-output-buffer-limit"] == "1048576 524288 9"
        assert found["proto-max-bulk-len"] == "536870912"
        assert found["maxmemory-clients"] == ("0" if executable.version >= (7,) else "not known to this version")
        assert found["io-threads"] == "1"
        assert "a primary" in ask("check", "--upstream", server.url).stdout


def test_what_check_is_not_told(fresh_upstream, ask):
    with fresh_upstream.connect() as control:
        control.ask("ACL", "SETUSER", "poor", "on", ">hunter2", "+hello", "+ping")
        control.ask("CONFIG", "SET", "requirepass", "x")
    said = ask("check", COALESCE_UPSTREAM=f"redis://poor:hunter2@{fresh_upstream.url}")
    found = found_by(said)
    assert "hunter2" not in said.stdout
    assert {found[name] for name in ("user", "maxclients", "timeout", "io-threads")} == {"can't be told"}
    found = found_by(ask("check", "--upstream", fresh_upstream.url))
    assert (found["version"], found["user"], found["maxclients"]) == ("version unknown", "none yet", "can't be told")


def test_check_says_in_one_line_why_not(run_to_exit, upstream, tmp_path):
    """With the words of a run."""
    nobody = f"127.0.0.1:{free_port()}"
    for flags in (
        ["--upstream", nobody],
        ["--upstream", f"unix://{tmp_path}/nobody"],
        ["--upstream", upstream.url, "--client-password-file", str(tmp_path / "none")],
        ["--upstream", f"rediss://{upstream.url}", "--upstream-ca", str(tmp_path / "none")],
        ["--upstream", f"redis://{upstream.url}/999999"],
    ):
        code, said = one_line(run_to_exit("check", *flags))
        assert (code, said) == one_line(run_to_exit(*flags, "--listen", "127.0.0.1:0"))
        assert code == 1
    code, said = one_line(run_to_exit("check", COALESCE_UPSTREAM=f"redis://u:hunter2@{upstream.url}"))
    assert (code, "hunter2" in said, "refuses coalesce's credentials" in said) == (1, False, True)


def test_an_upstream_that_hangs_up_when_it_is_asked(run_to_exit):
    with closing(Pretender()) as pretender:
        pretender.answers[b"CONFIG"] = b"-ERR unknown command 'CONFIG', with args beginning with: 'hunter2'\r\n"
        pretender.closes_after.add(b"CONFIG")
        code, said = one_line(run_to_exit("check", "--upstream", pretender.url))
    assert (code, "hung up when it was asked" in said) == (1, True)


def test_check_with_wrong_settings(run_to_exit):
    for flags in ([], ["--upstream", "redis://u:hunter2@h"], ["--upstream", "h", "--nosuch"], ["--upstream", "h", "x"]):
        code, said = one_line(run_to_exit("check", *flags))
        assert (code, "hunter2" in said) == (2, False)
        assert "coalesce check --help" in said


def test_a_private_redis_is_checked(ask):
    assert found_by(ask("check", "--upstream", "embedded"))["user"] == "default"


# A running one


@pytest.fixture
def silent_admin():
    """It accepts, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def admin_of(coalesce) -> str:
    return eventually(lambda: re.search(r"admin on http://(\S+)", coalesce.stderr))[1]


def test_wait_and_shutdown(upstream, ask):
    with running_coalesce(upstream.url, COALESCE_ADMIN="127.0.0.1:0") as coalesce:
        admin = admin_of(coalesce)
        for flags, more in ((["--admin", admin], {}), (["--for", "startup"], {"COALESCE_ADMIN": admin})):
            assert ask("wait", *flags, http_proxy="http://127.0.0.1:1", **more) == (0, "", "")
        assert ask("shutdown", "--admin", f"0.0.0.0:{admin.rpartition(':')[2]}") == (0, "", "")
        code, stderr = coalesce.wait()
        assert (code, "draining" in stderr) == (0, True)
        said = ask("shutdown", "--admin", admin)
        assert (said.code, said.stderr) == (1, f"coalesce: can't ask {admin} (--admin): Connection refused\n")
        said = ask("wait", "--admin", admin, "--timeout", "0.2")
        assert said.code == 1
        assert said.stderr.startswith("coalesce: not ready after 0.2 s: can't ask")


def test_wait_begins_before_there_is_anybody(upstream):
    port = free_port()
    command = [*coalesce_command(), "wait", "--admin", f"127.0.0.1:{port}"]
    with (
        subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True) as waiting,
        running_coalesce(upstream.url, COALESCE_ADMIN=f"127.0.0.1:{port}"),
    ):
        _, stderr = waiting.communicate(timeout=DEADLINE)
    assert (waiting.returncode, stderr) == (0, "")


HELD = "paused: commands are held until coalesce resume; "


def test_pause_and_resume(upstream, ask):
    with (
        running_coalesce(upstream.url, COALESCE_ADMIN="127.0.0.1:0") as coalesce,
        coalesce.connect() as client,
        coalesce.connect() as subscriber,
    ):
        at = ["--admin", admin_of(coalesce)]
        can_be = "nothing is in flight, so the upstream can be replaced"
        assert ask("pause", *at) == (0, f"{HELD}{can_be}\n", "")
        client.send(pack("GET", "k"))
        assert client.look() == (b"", False)
        assert ask("resume", *at) == (0, "resumed: nothing is held any more\n", "")
        assert client.reply() == b"$-1\r\n"
        assert subscriber.ask("SUBSCRIBE", "c").startswith(b"*3\r\n")
        said = ask("pause", COALESCE_ADMIN=at[1])
        assert said == (0, f"{HELD}{can_be}, and its end cuts off 1 subscribed\n", "")
        assert ask("resume", COALESCE_ADMIN=at[1]).code == 0
        for each in (client, subscriber):
            each.close()
        assert coalesce.stop()[0] == 0
        for command in ("pause", "resume"):
            said = ask(command, *at)
            assert (said.code, said.stdout) == (1, "")
            assert said.stderr == f"coalesce: can't ask {at[1]} (--admin): Connection refused\n"


def test_a_pause_in_which_something_is_not_finished_is_told_apart(upstream, ask):
    with running_coalesce(upstream.url, COALESCE_ADMIN="127.0.0.1:0") as coalesce, coalesce.connect() as client:
        admin = admin_of(coalesce)
        assert client.ask("WATCH", "k") == b"+OK\r\n"
        said = ask("pause", "--admin", admin, "--timeout", "0.05")
        why = "not finished after 0.05 s, so the upstream's end would cut off 1 in a transaction"
        assert said == (3, f"{HELD}{why}\n", "")
        assert client.ask("UNWATCH") == b"+OK\r\n"
        assert ask("pause", "--admin", admin, "--timeout", "0").code == 0


def test_a_pause_that_is_taken_back_is_none(upstream, ask):
    with running_coalesce(upstream.url, COALESCE_ADMIN="127.0.0.1:0") as coalesce, coalesce.connect() as client:
        admin = admin_of(coalesce)
        assert client.ask("WATCH", "k") == b"+OK\r\n"
        command = [*coalesce_command(), "pause", "--admin", admin]
        with subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True) as waiting:
            eventually(lambda: "paused" in coalesce.stderr)
            assert ask("resume", "--admin", admin).code == 0
            _, stderr = waiting.communicate(timeout=DEADLINE)
    assert (waiting.returncode, stderr) == (1, f"coalesce: {admin} is not paused: resumed meanwhile\n")


def test_how_long_a_pause_may_wait(run_to_exit):
    for timeout in ("-1", "nan", "inf", "3601"):
        code, said = one_line(run_to_exit("pause", "--admin", "127.0.0.1:1", "--timeout", timeout))
        assert (code, "'--timeout'" in said) == (2, True)


def test_shutdown_waits_for_the_drain_and_not_for_ever(upstream, ask):
    with running_coalesce(upstream.url, "--drain-timeout", "60", COALESCE_ADMIN="127.0.0.1:0") as coalesce:
        admin = admin_of(coalesce)
        with coalesce.connect() as client:
            upstream.process.send_signal(signal.SIGSTOP)
            try:
                client.send(pack("GET", "k"))
                said = ask("shutdown", "--admin", admin, "--timeout", "0.5")
                assert (said.code, said.stderr) == (1, "coalesce: still draining after 0.5 s\n")
                said = ask("wait", "--admin", admin, "--timeout", "1")
                assert (said.code, said.stderr) == (1, "coalesce: not ready after 1 s: draining\n")
            finally:
                upstream.process.send_signal(signal.SIGCONT)
            assert client.reply() == b"$-1\r\n"
        assert coalesce.wait()[0] == 0


def test_whoever_does_not_answer_is_said(ask, silent_admin):
    for command in ("wait", "shutdown"):
        said = ask(command, "--admin", silent_admin, "--timeout", "0.2")
        assert (said.code, "no answer of HTTP" in said.stderr or "timed out" in said.stderr) == (1, True), said


@pytest.mark.parametrize("command", ["wait", "pause", "resume", "shutdown", "top"])
def test_nobody_to_ask(command, run_to_exit):
    for flags in (["--admin", "off"], ["--admin", "127.0.0.1:0"], ["--admin", "127.0.0.1:1", "x"], ["--nosuch"]):
        code, said = one_line(run_to_exit(command, *flags))
        assert (code, f"coalesce {command} --help" in said) == (2, True)


def test_help_has_all_commands_and_settings(ask):
    said = ask("--help")
    assert said.code == 0
    for option in OPTIONS.values():
        assert f"  {option.flag} " in said.stdout
    for command in ("check", "wait", "top", "pause", "resume", "shutdown"):
        assert f"\n  {command} " in said.stdout
        assert ask(command, "--help").stdout.startswith(f"Usage: coalesce {command} [OPTIONS]")
    commands = said.stdout.partition("\nCommands:\n")[2].partition("\n\n")[0]
    assert "..." not in commands  # nothing is cut off


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


@pytest.mark.parametrize(
    "name", ["coalesce.cli.command_line", "trio", "hiredis", "coalesce.server", "coalesce.core.lane"]
)
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


def test_interrupted_while_it_waits():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(DEADLINE)
        command = [*coalesce_command(), "wait", "--admin", f"127.0.0.1:{silent.getsockname()[1]}"]
        with subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True) as process:
            connection, _ = silent.accept()
            os.kill(process.pid, signal.SIGINT)
            with connection:
                _, stderr = process.communicate(timeout=DEADLINE)
    assert (process.returncode, stderr.strip()) == (INTERRUPTED, "")
