"""Who may use coalesce, and what it is upstream: its own credentials, its listeners, passwords of clients.

No password may show anywhere: not in the log, not in a reply, not in the list of processes.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import hiredis
import pytest
import trio

from coalesce.config import Config, TcpAddress, UnixAddress, parse_upstream
from coalesce.core import moves
from coalesce.core.exchange import Exchange
from coalesce.core.identity import Identity, move_of
from coalesce.dial import DialError, Dialler, Refused, told
from coalesce.logs import logging_to_stderr
from coalesce.server import Server

from .certificates import Authority
from .processes import (
    Coalesce,
    RedisServer,
    coalesce_command,
    environment,
    eventually,
    running_coalesce,
    running_server,
    short_directory,
)
from .reliability.namespaces import Hosts, impossible, run_to_exit_with, server_at
from .versions import NEWEST, OLDEST, OLDEST_AND_NEWEST, with_newest
from .wire import Wire, bulk, pack, split_replies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .processes import Executable

OK = b"+OK\r\n"
PONG = b"+PONG\r\n"
NO_AUTH = b"-NOAUTH Authentication required.\r\n"
WRONG_PASSWORD = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"
SECRET = "hunter2-of-coalesce"  # noqa: S105 (of a server that the test starts)
DOOR = "sesame-for-clients"
REFUSES = "the upstream refuses coalesce's credentials: WRONGPASS"


@pytest.fixture(scope="session", params=OLDEST_AND_NEWEST, ids=str)
def executable(request: pytest.FixtureRequest) -> Executable:
    """Doors are ours, whichever server is behind them: the oldest Redis and the newest are enough."""
    return request.param


@pytest.fixture
def guarded(executable) -> Iterator[RedisServer]:
    """An upstream that lets nobody in but a user `proxy`, and `ada`."""
    with running_server(executable) as server, server.connect() as control:
        assert control.ask("ACL", "SETUSER", "proxy", "on", f">{SECRET}", "~*", "&*", "+@all") == OK
        assert control.ask("ACL", "SETUSER", "ada", "on", ">ada-secret", "~*", "&*", "+@all") == OK
        assert control.ask("ACL", "SETUSER", "default", "off") == OK
        yield server


@pytest.fixture
def directory() -> Iterator[Path]:
    with short_directory() as directory:
        yield directory


def written(file: Path, *lines: str) -> str:
    file.write_text("".join(f"{line}\n" for line in lines))
    return str(file)


def control(server: RedisServer) -> Wire:
    wire = server.connect()
    assert wire.ask("AUTH", "proxy", SECRET) == OK
    return wire


def one_line(ended: tuple[int, str]) -> tuple[int, str]:
    code, stderr = ended
    assert len(stderr.splitlines()) == 1, stderr
    assert SECRET not in stderr
    return code, stderr


# coalesce's own credentials


def test_clients_run_as_coalesce_until_they_are_somebody_themselves(guarded, directory):
    secret = written(directory / "secret", SECRET, "not this")
    with (
        running_coalesce(f"redis://proxy@{guarded.url}/2", "--upstream-password-file", secret) as coalesce,
        coalesce.connect() as one,
        coalesce.connect() as other,
    ):
        assert one.ask("ACL", "WHOAMI") == bulk("proxy")
        assert one.ask("HELLO", 3).startswith(b"%")
        assert one.ask("ACL", "WHOAMI") == bulk("proxy")
        assert one.ask("BLPOP", "nothing", "0.01") == b"_\r\n"  # a connection of its own
        assert one.ask("SET", "k", "v") == OK
        assert other.ask("AUTH", "ada", "ada-secret") == OK
        assert other.ask("ACL", "WHOAMI") == bulk("ada")
        assert other.ask("GET", "k") == bulk("v")  # in the same database
        assert other.ask("AUTH", "proxy", "wrong") == WRONG_PASSWORD
        assert other.ask("RESET") == b"+RESET\r\n"
        assert other.ask("ACL", "WHOAMI") == bulk("proxy")


def test_the_password_file_is_read_for_each_dial(guarded, directory):
    secret = directory / "secret"
    written(secret, SECRET)
    flags = ("--upstream-password-file", str(secret), "--upstream-wait", "0.3")
    with running_coalesce(f"redis://proxy@{guarded.url}", *flags) as coalesce, control(guarded) as steering:

        def sees(reply: bytes) -> bool:
            with coalesce.connect() as client, contextlib.suppress(EOFError, ConnectionError):
                client.send(pack("PING"))
                return client.reply().startswith(reply)
            return False

        def cut() -> None:
            steering.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

        assert sees(PONG)
        assert steering.ask("ACL", "SETUSER", "proxy", "resetpass", ">rotated") == OK
        assert sees(PONG)  # whoever is in stays in
        cut()
        eventually(lambda: sees(f"-ERR coalesce: upstream unavailable: {REFUSES}".encode()))
        written(secret, "rotated")
        eventually(lambda: sees(PONG))
        secret.unlink()
        cut()
        eventually(lambda: sees(b"-ERR coalesce: upstream unavailable: coalesce's password"))
        written(secret, "rotated")
        eventually(lambda: sees(PONG))
        assert SECRET not in coalesce.stderr
        assert "rotated" not in coalesce.stderr
        assert REFUSES in coalesce.stderr


def test_refused_credentials_cost_a_client_that_moves_no_more_than_an_outage(guarded, directory):
    """They are no reply to its SELECT, which it could take for its own."""
    secret = directory / "secret"
    with (
        running_coalesce(
            f"redis://proxy@{guarded.url}",
            *("--upstream-password-file", written(secret, SECRET)),
            *("--upstream-wait", "0.2"),
        ) as coalesce,
        coalesce.connect() as client,
    ):
        assert client.ask("PING") == PONG
        written(secret, "wrong")
        reply = client.ask("SELECT", 5)
        assert reply.startswith(b"-ERR coalesce: upstream unavailable: the upstream refuses coalesce's credentials")
        with coalesce.connect() as other:
            assert other.ask("PING") == PONG


def test_what_is_wrong_with_the_credentials_is_said_at_the_start(guarded, directory, run_to_exit):
    upstream = f"redis://proxy@{guarded.url}"
    file = directory / "secret"
    code, said = one_line(run_to_exit("--upstream", upstream, "--upstream-password-file", str(file)))
    assert (code, "No such file" in said) == (1, True)
    written(file, "")
    code, said = one_line(run_to_exit("--upstream", upstream, "--upstream-password-file", str(file)))
    assert (code, "is empty" in said) == (1, True)
    written(file, f"wrong{SECRET}")
    code, said = one_line(run_to_exit("--upstream", upstream, "--upstream-password-file", str(file)))
    assert (code, REFUSES in said) == (1, True)
    code, said = one_line(run_to_exit(COALESCE_UPSTREAM=f"redis://proxy:no{SECRET}@{guarded.url}"))
    assert (code, REFUSES in said) == (1, True)
    code, said = one_line(
        run_to_exit("--upstream-password-file", str(file), COALESCE_UPSTREAM=f"redis://proxy:{SECRET}@{guarded.url}")
    )
    assert (code, "--upstream-password-file" in said) == (2, True)
    code, said = one_line(run_to_exit("--upstream", upstream))
    assert (code, "no password" in said) == (2, True)


def test_an_upstream_that_knows_no_auth_repeats_the_password_and_coalesce_does_not(executable, directory, run_to_exit):
    with running_server(executable, "--rename-command", "AUTH", "LETMEIN") as server:
        file = written(directory / "secret", SECRET)
        code, said = one_line(run_to_exit("--upstream", server.url, "--upstream-password-file", file))
        assert (code, "the upstream refuses coalesce's credentials: ERR" in said) == (1, True)


# Listeners


def mode_of(path: str) -> int:
    return stat.S_IMODE(Path(path).stat().st_mode)


def test_the_mode_of_unix_sockets(fresh_upstream):
    with running_coalesce(fresh_upstream.url, "--socket-mode", "0660") as coalesce:
        assert mode_of(coalesce.unix_path) == 0o660
        with Wire(coalesce.unix_path) as client:
            assert client.ask("PING") == PONG
    with running_coalesce(fresh_upstream.url, COALESCE_SOCKET_MODE="777") as coalesce:
        assert mode_of(coalesce.unix_path) == 0o777


@pytest.mark.parametrize("mode", ["0999", "rw", "1777", "7", "-660"])
def test_what_is_no_mode(mode, run_to_exit):
    code, _ = one_line(run_to_exit("--upstream", "127.0.0.1:1", "--listen", "unix:///tmp/x", f"--socket-mode={mode}"))
    assert code == 2


EVERYWHERE = ["0.0.0.0:0", "[::]:0", "[::ffff:0.0.0.0]:0"]


def own_address() -> str:
    """An address of this host that others reach, too; empty where there is none. (No packet leaves.)"""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))
        except OSError:
            return ""
        return probe.getsockname()[0]


@pytest.fixture
def reachable(executable) -> Iterator[RedisServer]:
    """An upstream that others than this host reach."""
    host = own_address()
    if not host or host.startswith("127."):
        pytest.skip("this host has no address but loopback")
    with server_at(executable, host) as server:
        yield server


@pytest.fixture
def starts(forged, directory) -> Callable[..., bool]:
    """Whether coalesce starts with these; False where it says that it won't because of strangers."""

    def starts(*flags: str, **more: str) -> bool:
        code, said = forged.run_until_it_listens(*flags, "--listen", f"unix://{directory}/c.sock", **more)
        if code == 1 and "--unprotected" in said:
            return False
        assert (code, "listening on" in said) == (0, True), said
        return True

    return starts


@with_newest
@pytest.mark.parametrize("listen", EVERYWHERE)
def test_strangers_do_not_get_the_credentials(guarded, listen, run_to_exit):
    upstream = {"COALESCE_UPSTREAM": f"redis://proxy:{SECRET}@{guarded.url}"}
    code, said = one_line(run_to_exit("--listen", listen, **upstream))
    assert (code, "--unprotected" in said, "credentials" in said) == (1, True, True)


@with_newest
def test_what_coalesce_may_hold_and_who_may_use_it(reachable, directory, run_to_exit, starts):
    """Each holding alone is refused, and each permission alone allows it."""
    authority = Authority(directory, "ca")
    issued = authority.issue()
    pair = (str(issued.certificate), str(issued.key))
    with reachable.connect() as steering:
        assert steering.ask("ACL", "SETUSER", "proxy", "on", f">{SECRET}", "~*", "&*", "+@all") == OK
        assert steering.ask("ACL", "SETUSER", "default", "off") == OK
    password = ["--upstream-password-file", written(directory / "secret", SECRET)]
    certificate = ["--upstream-cert", pair[0], "--upstream-key", pair[1]]
    everywhere = ["--listen", "0.0.0.0:0"]
    tls = ["--tls-cert", pair[0], "--tls-key", pair[1]]
    permissions = [
        ["--unprotected"],
        ["--client-password-file", written(directory / "passwords", DOOR)],
        [*tls, "--tls-client-ca", str(authority.file)],
    ]
    with_password = {"COALESCE_UPSTREAM": f"redis://proxy:{SECRET}@{reachable.url}"}
    with_user = {"COALESCE_UPSTREAM": f"redis://proxy@{reachable.url}"}
    for flags, more in (([], with_password), (password, with_user)):
        assert not starts(*flags, *everywhere, **more)
        assert not starts(*flags, *everywhere, *tls, **more)  # who has no certificate gets in
        for permission in permissions:
            assert starts(*flags, *everywhere, *permission, **more)
    # With a certificate for the upstream, it gets past the door, and finds that nobody speaks TLS there.
    to_tls = {"COALESCE_UPSTREAM": f"rediss://{reachable.url}", "COALESCE_CONNECT_TIMEOUT": "0.3"}
    code, said = one_line(run_to_exit(*certificate, *everywhere, **to_tls))
    assert (code, "--unprotected" in said, "a certificate" in said) == (1, True, True)
    for permission in permissions:
        code, said = one_line(run_to_exit(*certificate, *everywhere, *permission, **to_tls))
        assert (code, "can't reach upstream" in said) == (1, True)
    code, said = one_line(run_to_exit(*everywhere, **to_tls))
    assert (code, "can't reach upstream" in said) == (1, True)


@with_newest
def test_one_listener_beyond_loopback_is_enough(guarded, run_to_exit, starts):
    upstream = {"COALESCE_UPSTREAM": f"redis://proxy:{SECRET}@{guarded.url}"}
    for listen in (["127.0.0.1:0", "0.0.0.0:0"], ["0.0.0.0:0", "127.0.0.1:0"]):
        code, said = one_line(run_to_exit(*(word for each in listen for word in ("--listen", each)), **upstream))
        assert (code, "0.0.0.0:0" in said) == (1, True)
    for listen in ("localhost:0", "127.0.0.2:0", "[::ffff:127.0.0.1]:0"):
        assert starts("--listen", listen, **upstream)


@with_newest
def test_a_listener_without_an_address_is_not_taken_for_one_that_is_open(guarded, run_to_exit):
    """Or whoever mistyped its name would be told how to switch protection off."""
    code, said = one_line(
        run_to_exit("--listen", "nosuch.invalid:0", COALESCE_UPSTREAM=f"redis://proxy:{SECRET}@{guarded.url}")
    )
    assert code == 1
    assert "can't listen on nosuch.invalid:0: " in said
    assert "--unprotected" not in said


@with_newest
@pytest.mark.skipif(bool(impossible()), reason=f"no namespaces here: {impossible()}")
@pytest.mark.parametrize(
    ("addresses", "allowed"),
    [
        (["127.0.0.1"], True), (["127.0.0.1", "127.0.0.2"], True), (["192.0.2.77"], False), (["0.0.0.0"], False),  # noqa: S104
        (["127.0.0.1", "192.0.2.77"], False),
    ],
)  # fmt: skip
def test_a_name_is_what_its_addresses_are(guarded, addresses, allowed):
    """That of a listener, and that of the upstream."""
    with short_directory() as directory:
        hosts = Hosts(directory / "hosts")
        hosts.say("somewhere.coalesce.test", *addresses)
        mounts = f"mount --bind {hosts.path} /etc/hosts"
        file = written(directory / "secret", SECRET)
        flags = ["--upstream-password-file", file, "--drain-timeout", "0"]
        code, said = run_to_exit_with(
            mounts,
            *("--upstream", f"redis://proxy@{guarded.url}", "--listen", "somewhere.coalesce.test:0", *flags),
            *("--listen", f"unix://{directory}/no/c.sock"),
        )
        assert (code, "--unprotected" in said, "can't listen on unix" in said) == (1, not allowed, allowed)
        # The upstream: nobody is there, and nobody who is not to is let in either.
        hosts.say("somewhere.coalesce.test", *addresses)
        where = ("--upstream", "somewhere.coalesce.test:1", "--listen", "0.0.0.0:0", "--connect-timeout", "0.5")
        code, said = run_to_exit_with(mounts, *where)
        own = "192.0.2.77" not in addresses
        assert (code, "--unprotected" in said, "can't reach" in said) == (1, own, not own)


@with_newest
@pytest.mark.parametrize("upstream", ["tcp", "localhost", "0.0.0.0", "unix", "embedded"])  # noqa: S104
def test_access_to_an_upstream_of_this_host_is_not_for_strangers(
    fresh_upstream, directory, upstream, run_to_exit, starts
):
    """Nobody beyond this host could reach it: with coalesce on a network, everybody could."""
    url = {
        "tcp": fresh_upstream.url, "localhost": f"localhost:{fresh_upstream.port}",
        "0.0.0.0": f"0.0.0.0:{fresh_upstream.port}", "unix": f"unix://{fresh_upstream.unix_path}",  # noqa: S104
        "embedded": "embedded",
    }[upstream]  # fmt: skip
    everywhere = ["--upstream", url, "--listen", "0.0.0.0:0"]
    code, said = one_line(run_to_exit(*everywhere))
    assert (code, "--unprotected" in said, "nobody but this host" in said) == (1, True, True)
    assert starts("--upstream", url, "--listen", "127.0.0.1:0")
    if upstream != "localhost":
        passwords = written(directory / "passwords", DOOR)
        assert starts(*everywhere, "--client-password-file", passwords)
        assert starts(*everywhere, "--unprotected")


@with_newest
def test_without_credentials_anybody_may_come_to_what_anybody_reaches(reachable, starts):
    for listen in EVERYWHERE:
        assert starts("--upstream", reachable.url, "--listen", listen)


# Clients authenticate to coalesce


@pytest.fixture
def door(guarded, directory) -> Iterator[Coalesce]:
    flags = ("--upstream-password-file", written(directory / "secret", SECRET))
    passwords = written(directory / "passwords", "old", DOOR)
    upstream = f"redis://proxy@{guarded.url}"
    with running_coalesce(upstream, *flags, "--client-password-file", passwords) as coalesce:
        yield coalesce
        assert SECRET not in coalesce.stderr
        assert DOOR not in coalesce.stderr


def test_locked_and_unlocked(door):
    with door.connect() as client:
        assert client.ask("GET", "k") == NO_AUTH
        assert client.ask("AUTH", "wrong") == WRONG_PASSWORD
        assert client.ask("AUTH", "default", SECRET) == WRONG_PASSWORD
        assert client.ask("AUTH", DOOR) == OK
        assert client.ask("ACL", "WHOAMI") == bulk("proxy")
        assert client.ask("RESET") == b"+RESET\r\n"
        assert client.ask("ACL", "WHOAMI") == NO_AUTH
        hello = client.ask("HELLO", 3, "AUTH", "default", DOOR, "SETNAME", "app")
        assert hello.startswith(b"%")
        assert client.ask("CLIENT", "GETNAME") == bulk("app")
        assert client.ask("ACL", "WHOAMI") == bulk("proxy")
        assert client.ask("AUTH", "ada", "no") == WRONG_PASSWORD
        assert client.ask("AUTH", "ada", "ada-secret") == OK
        assert client.ask("ACL", "WHOAMI") == bulk("ada")
        assert client.ask("BLPOP", "nothing", "0.01") == b"_\r\n"
        assert client.ask("AUTH", DOOR) == OK
        assert client.ask("ACL", "WHOAMI") == bulk("proxy")
    with Wire(door.unix_path) as client:
        client.send(pack("PING") + pack("AUTH", "old") + pack("PING") + pack("QUIT"))
        assert client.rest() == NO_AUTH + OK + PONG + OK


def test_passwords_of_clients_where_coalesce_has_none_itself(fresh_upstream, directory):
    """They run as the upstream's default user then, which needs no password."""
    passwords = written(directory / "passwords", DOOR)
    with (
        running_coalesce(fresh_upstream.url, "--client-password-file", passwords) as coalesce,
        coalesce.connect() as client,
        coalesce.connect() as other,
    ):
        assert client.ask("SET", "k", "v") == NO_AUTH
        assert client.ask("AUTH", "wrong") == WRONG_PASSWORD
        assert client.ask("AUTH", "default", "wrong") == WRONG_PASSWORD
        assert client.ask("PING") == NO_AUTH
        assert client.ask("AUTH", DOOR) == OK
        assert client.ask("ACL", "WHOAMI") == bulk("default")
        assert client.ask("BLPOP", "nothing", "0.01") in {b"*-1\r\n", b"_\r\n"}
        assert other.ask("GET", "k") == NO_AUTH
        assert other.ask("HELLO", 3, "AUTH", "default", DOOR).startswith(b"%")
        assert other.ask("ACL", "WHOAMI") == bulk("default")
        assert client.ask("RESET") == b"+RESET\r\n"
        assert client.ask("PING") == NO_AUTH


def test_a_user_of_the_upstream_comes_in_by_itself(door):
    for way in (("AUTH", "ada"), ("HELLO", 3, "AUTH", "ada"), ("HELLO", 2, "SETNAME", "x", "AUTH", "ada")):
        with door.connect() as client:
            assert client.ask(*way, "wrong") == WRONG_PASSWORD
            assert client.ask("PING") == NO_AUTH
            assert not client.ask(*way, "ada-secret").startswith(b"-")
            assert client.ask("ACL", "WHOAMI") == bulk("ada")


def test_nothing_of_a_locked_session_is_seen_upstream(guarded, door):
    def ran(wire: Wire) -> bytes:
        lines = wire.ask("INFO", "commandstats").split(b"\r\n")
        return b"\n".join(line.partition(b",")[0] for line in lines if b"_get:" in line or b"_echo:" in line)

    with control(guarded) as steering, door.connect() as client:
        before = ran(steering)
        requests = pack("GET", "k") + pack("ECHO", "x") + b"GET k\r\n" + b"ECHO " + b"x" * 20000 + b"\r\n"
        for end in range(0, len(requests), 97):
            client.send(requests[end : end + 97])
        client.send(pack("MULTI") + pack("GET", "k") + pack("EXEC"))
        assert client.replies(7) == [NO_AUTH] * 7
        client.send(requests * 3)
        assert client.replies(12) == [NO_AUTH] * 12
        assert ran(steering) == before


def test_a_locked_session_is_told_what_a_server_says(executable, door):
    """But for unknown commands and wrong numbers of arguments, which a server says first."""
    requests = [
        pack("GET", "k"), pack("HELLO"), pack("HELLO", 3), pack("HELLO", 9), pack("HELLO", 3, "NOW"),
        pack("HELLO", 3, "AUTH", "default", "wrong"), pack("AUTH", "wrong"), pack("AUTH", "default", "wrong"),
        pack("AUTH"), pack("AUTH", "a", "b", "c"), pack("HELLO", 3, "SETNAME", "a b"), pack("MULTI"), b"GET k\r\n",
        pack("HELLO", 2, "AUTH", "default", DOOR), pack("PING"), pack("RESET"), pack("PING"), pack("AUTH", DOOR),
        b"*11\r\n" if executable is NEWEST else pack("QUIT"),
    ]  # fmt: skip
    if executable is OLDEST:
        requests = [
            request for request in requests if b"HELLO" not in request and b"RESET" not in request
        ]  # older texts
    with running_server(executable, "--requirepass", DOOR) as server:
        # (Redis 8 drops the reply to a failed AUTH behind another: see the README.)
        for request in [*requests, b"".join(request for request in requests if b"wrong" not in request)]:
            told = []
            for address in (server.address, door.address):
                with Wire(address) as client:
                    client.send(request)
                    client.half_close()
                    replies = split_replies(client.rest())[0]
                    told.append([reply for reply in replies if not reply.startswith(b"*")])  # HELLO's ids
            assert told[1] == told[0], request


def test_passwords_of_clients_are_rotated(door, directory):
    def lets_in(password: str) -> bool:
        with door.connect() as client:
            return client.ask("AUTH", password) == OK

    file = directory / "passwords"
    assert lets_in("old")
    with door.connect() as client:
        assert client.ask("AUTH", "old") == OK
        written(directory / "next", DOOR, "new")
        (directory / "next").rename(file)
        assert (lets_in("old"), lets_in("new"), lets_in(DOOR)) == (False, True, True)
        assert client.ask("PING") == PONG  # who is in stays in
        file.unlink()
        assert (lets_in("old"), lets_in("new")) == (False, True)
        assert not lets_in("")
    eventually(lambda: "what was read before stays in use" in door.stderr)


@with_newest
def test_the_file_of_passwords_has_to_have_one(guarded, directory, run_to_exit):
    for file in (str(directory / "missing"), written(directory / "empty", "", "")):
        code, said = one_line(
            run_to_exit(
                *("--client-password-file", file),
                COALESCE_UPSTREAM=f"redis://proxy:{SECRET}@{guarded.url}",
            )
        )
        assert (code, file in said) == (1, True)


@with_newest
def test_a_locked_client_that_floods_holds_nobody_up(door):
    """One server, as it gets none of this."""
    with door.connect() as flood, door.connect() as other:
        assert other.ask("AUTH", DOOR) == OK
        flood.socket.settimeout(0.2)
        with contextlib.suppress(TimeoutError, ConnectionError):
            for _ in range(100):
                flood.socket.sendall(b"A\r\n" * 50_000)  # reads nothing
        assert other.ask("PING") == PONG


# Secrets never show


MALFORMED = [
    "user:{}@h:6379", ":{}@h", "{}@h:6379", "REDIS://:{}@h:port", "redis:/u:{}@h", "redis:u:{}@h", "//u:{}@h",
    "http://u:{}@h", "redis+tls://u:{}@h:6379", "redis-socket:///x?password={}", "tls://:{}@h", "redis://:{}@",
    "redis://u:{}/x@h:6379", "redis://u:{}#x@h", "redis://u:{}?x@h", "redis://u:{}[x@h", "redis://u:{}@h:x",
    "redis://u:{}@h/x", "redis://u:{}@h/0/1", "redis://h:6379?password={}", "redis://h:6379/0,password={}",
    "unix://:{}@/x", "unix://{}@/x", "unix:///x?password={}", "UNIX://u:{}@/x", "unix:u:{}@/x",
    "h:6379,password={}", "h,password={}", "h:{}", "h:6379#{}", "h:6379/{}", "h {}", " redis://u:{}@h/x",
    "\tredis://u:{}@h/x", "'redis://u:{}@h'", "redis://u:{}@h,redis://u:{}@i", "redis://u:{}@h;i", "redis://u:{}@h%00",
    "redis://u:{}@h:0", "redis://u:{}@h:70000", "redis://u:{}@h/#x", "redis://u:{}@h/0?x=1", "redis://u:{}@h/abc",
    "redis://u:{}@a..b:1", "redis://u:{}@.", f"redis://u:{{}}@{'a' * 64}.b:1", f"redis://u:{{}}@{chr(0xe9) * 60}",
    "redis://u:{}@::1", "redis://u:{}@[::1]x:1", "redis://u:{}@x[::1]:1", "redis://u:{}@[::1", "redis://u:{}@[v1.x]",
    "[::1]{}:1", "{}[::1]:1",
    "redis://u:{}\uff03@h",  # a '#' to come, says urlsplit, and repeats it
]  # fmt: skip


@pytest.mark.parametrize("form", MALFORMED)
def test_what_is_no_upstream_is_not_repeated(form, run_to_exit):
    code, said = one_line(run_to_exit("--listen", "127.0.0.1:0", COALESCE_UPSTREAM=form.replace("{}", SECRET)))
    assert code == 2
    assert "COALESCE_UPSTREAM" in said
    assert "redis[s]://[user[:password]@]host[:port]" in said


def test_nor_is_it_where_it_was_a_flag(run_to_exit):
    code, said = one_line(run_to_exit("--upstream", f"redis:/u:{SECRET}@h"))
    assert (code, "'--upstream'" in said) == (2, True)


@pytest.mark.parametrize("form", ["u:{}@127.0.0.1:0", "redis://u:{}@127.0.0.1:0", "unix://u:{}@/x", "u:{}@h:x"])
def test_a_listener_that_looks_like_an_upstream_is_not_repeated(form, run_to_exit):
    listen = form.replace("{}", SECRET)
    for flags, more in ((["--listen", listen], {}), ([], {"COALESCE_LISTEN": listen})):
        code, _ = one_line(run_to_exit("--upstream", "127.0.0.1:1", *flags, **more))
        assert code == 2


@pytest.mark.parametrize("form", ["redis://u:{}@h", "--redis://u:{}@h", "--upstream:redis://:{}@h", "-redis://:{}@h"])
def test_what_is_no_flag_is_not_repeated(form, run_to_exit):
    code, _ = one_line(run_to_exit("--upstream", "127.0.0.1:1", form.replace("{}", SECRET)))
    assert code == 2


@pytest.mark.parametrize("form", ["redis://u:{}@127.0.0.1:1", "rediss://:{}@127.0.0.1:1/2", "VALKEY://u:{}@127.0.0.1"])
def test_a_password_on_the_command_line_is_refused(form, run_to_exit):
    """Everybody on the host can read it there."""
    for flags in (["--upstream", form.replace("{}", SECRET)], [f"--upstream={form.replace('{}', SECRET)}"]):
        code, said = one_line(run_to_exit(*flags, "--listen", "127.0.0.1:0"))
        assert code == 2
        assert "COALESCE_UPSTREAM" in said
        assert "--upstream-password-file" in said


def test_schemes_are_of_either_case_and_passwords_of_any_bytes():
    for url in ("REDISS://u:%ff%00p@H:1/2", "rediss://u:%FF%00p@h:1/2", "Valkeys://u:\udcff%00p@h:1/2"):
        found = parse_upstream(url)
        assert (found.address, found.username, found.password) == (TcpAddress("h", 1), b"u", b"\xff\0p")
        assert (found.database, found.tls) == (2, True)
    assert parse_upstream("UNIX:///x@y").address == UnixAddress("/x@y")


def test_secrets_are_not_in_representations():
    upstream = parse_upstream(f"redis://proxy:{SECRET}@127.0.0.1:1")
    identity = Identity(b"ada", SECRET.encode(), 0, 2)
    move = move_of(identity, True, [b"AUTH", b"ada", SECRET.encode()])
    exchange = Exchange(identity, lambda _: None)
    things = [upstream, Config(upstream), identity, move, exchange.lane(identity), exchange]
    assert not [thing for thing in things if SECRET in repr(thing)]


def test_nobody_becomes_the_upstreams_default_user(guarded, directory, run_to_exit):
    """A pinned client's AUTH and RESET are the upstream's affair: so its default user may not be open to all."""
    doors = written(directory / "doors", DOOR)
    url = f"redis://proxy:{SECRET}@{guarded.url}"
    with (
        running_coalesce(url, "--client-password-file", doors) as coalesce,
        coalesce.connect() as client,
        coalesce.connect() as other,
    ):
        for each in (client, other):
            assert each.ask("AUTH", DOOR) == OK
            assert each.ask("CLIENT", "ID").startswith(b":")  # pinned
        assert client.ask("AUTH", "default", DOOR) == WRONG_PASSWORD
        assert client.ask("ACL", "WHOAMI") == bulk("proxy")
        assert other.ask("RESET") == b"+RESET\r\n"
        assert other.ask("ACL", "WHOAMI") == NO_AUTH
    with control(guarded) as steering:
        assert steering.ask("ACL", "SETUSER", "default", "on", "nopass") == OK
    code, stderr = run_to_exit("--client-password-file", doors, "--listen", "127.0.0.1:0", COALESCE_UPSTREAM=url)
    assert code == 1
    assert "user default needs no password: clients could become it" in stderr


def test_where_the_default_user_is_open_nobody_becomes_it_by_way_of_another(executable, directory):
    """coalesce has no credentials of its own: its passwords guard the upstream's default user."""
    doors = written(directory / "doors", DOOR)
    with running_server(executable) as server, server.connect() as steering:
        assert steering.ask("ACL", "SETUSER", "ada", "on", ">ada-secret", "~ada:*", "+@all") == OK
        with running_coalesce(server.url, "--client-password-file", doors) as coalesce:
            for request in (("AUTH", "ada", "ada-secret"), ("HELLO", 3, "AUTH", "ada", "ada-secret")):
                with coalesce.connect() as client:
                    assert b"-ERR coalesce: the upstream's user default needs no password" in client.ask(*request)
                    client.send(pack("CLIENT", "ID") + pack("RESET") + pack("ACL", "WHOAMI"))
                    assert client.rest() == b""
            with coalesce.connect() as client:
                assert client.ask("AUTH", "default", DOOR) == OK
                assert client.ask("ACL", "WHOAMI") == bulk("default")
            assert steering.ask("CONFIG", "SET", "requirepass", SECRET) == OK
            with coalesce.connect() as client:
                assert client.ask("AUTH", "ada", "ada-secret") == OK
                assert client.ask("CLIENT", "ID").startswith(b":")
                assert client.ask("RESET") == b"+RESET\r\n"
                assert client.ask("ACL", "WHOAMI") == NO_AUTH


# What goes wrong, in the log's words: a user, what is made of it for that, and of what it is again afterwards.
GOES_WRONG = {
    "clients could become it": ("default", ("on", "nopass"), ("off",)),
    REFUSES: ("proxy", ("resetpass", ">other"), ("resetpass", f">{SECRET}")),
    "Connection refused": None,  # the upstream is away
}


@contextlib.contextmanager
def gone_wrong(guarded: RedisServer, said: str) -> Iterator[None]:
    """All connections are cut, and new ones fail."""
    if (change := GOES_WRONG[said]) is None:
        guarded.kill()
        yield
        return
    user, wrong, right = change
    with control(guarded) as steering:
        assert steering.ask("ACL", "SETUSER", user, *wrong) == OK
        steering.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        yield
        assert steering.ask("ACL", "SETUSER", user, *right) == OK


@pytest.mark.parametrize("by", ["environment", "file"])
def test_secrets_are_not_in_the_log_nor_in_the_list_of_processes(guarded, directory, by):
    """To each thing that goes wrong its own coalesce, since one says the next only seconds after the first."""
    file = written(directory / "secret", SECRET)
    if by == "environment":
        more = {"COALESCE_UPSTREAM": f"redis://proxy:{SECRET}@{guarded.url}"}
    else:
        more = {"COALESCE_UPSTREAM": f"redis://proxy@{guarded.url}", "COALESCE_UPSTREAM_PASSWORD_FILE": file}
    more |= {"COALESCE_UPSTREAM_WAIT": "0.1", "COALESCE_CLIENT_PASSWORD_FILE": written(directory / "doors", DOOR)}
    listen = ["--listen", "127.0.0.1:0", "--listen", f"unix://{directory}/c.sock"]
    for said in GOES_WRONG:
        coalesce = Coalesce([*coalesce_command(), *listen], environment(**more))
        shown = Path(f"/proc/{coalesce.pid}/cmdline").read_bytes()
        try:
            with coalesce.connect() as client:
                shown += client.ask("AUTH", "ada", "made-up-by-ada")
                shown += client.ask("AUTH", "default", "made-up-by-ada")
                shown += client.ask("AUTH", DOOR) + client.ask("PING")
                with gone_wrong(guarded, said):
                    eventually(lambda said=said, coalesce=coalesce: said in coalesce.stderr)
                    shown += client.ask("PING")
                    with coalesce.connect() as late:
                        shown += late.ask("AUTH", "ada", "made-up-by-ada")
        finally:
            coalesce.end()
        assert b"upstream unavailable" in shown
        for secret in (SECRET, DOOR, "made-up-by-ada"):
            assert secret not in coalesce.stderr
            assert secret.encode() not in shown


class Pretender:
    """An upstream that answers each command as it is told to, and closes after some."""

    def __init__(self) -> None:
        self.answers: dict[bytes, bytes] = {b"AUTH": OK, b"PING": PONG, b"QUIT": OK, b"GET": bulk("v")}
        self.closes_after: set[bytes] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def hang_up(self) -> None:
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        reader = hiredis.Reader()
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(1 << 16):
                reader.feed(data)
                while request := reader.gets():
                    connection.sendall(self.answers.get(request[0], b"-ERR unknown command\r\n"))
                    if request[0] in self.closes_after:
                        return


@pytest.fixture
def pretender() -> Iterator[Pretender]:
    pretender = Pretender()
    yield pretender
    pretender.close()


SECRET_ECHOED = [
    b"-ERR unknown command 'AUTH', with args beginning with: '%b' \r\n", b"-ERR unknown command '%b'\r\n",
    b"-WRONGPASS for %b\r\n", b"-NOPERM %b\r\n", b"-%b\r\n", b"-%b is wrong\r\n", b"-ERR\t%b\r\n", b"-LOADING %b\r\n",
    b"-BUSY %b\r\n", b"-ERR max number of clients reached %b\r\n", b"?%b\r\n", b"$%b\r\n", b"%b\r\n",
    b">1\r\n+%b\r\n", b"+OK\r\n+%b\r\n+%b\r\n", b"*2\r\n+%b\r\n", b"-ERR %b", b"-ERR unknown '%b", b"-WRONGPASS %b\r",
    b"+%b", b"%b", b"+OK\r\n-ERR %b", b"-ERR no\r\n%b", b"!5\r\n%b\r\n", b"$100\r\n%b\r\n",
]  # fmt: skip


@pytest.mark.parametrize("command", [b"AUTH", b"HELLO", b"SELECT"])
@pytest.mark.parametrize("echo", SECRET_ECHOED)
async def test_what_an_upstream_repeats_of_the_credentials_is_nowhere_said(pretender, echo, command):
    """Neither whole, nor cut short anywhere."""
    pretender.answers |= {b"SELECT": OK, command: echo.replace(b"%b", SECRET.encode())}
    pretender.closes_after.add(command)
    config = Config(parse_upstream(f"redis://proxy:{SECRET}@{pretender.url}"), connect_timeout=5)
    with contextlib.closing(Dialler(config)) as dialler, pytest.raises((DialError, Refused)) as caught:
        (await dialler.try_once(Identity(None, None, 1, 3), b"")).sock.close()
    assert "hunter" not in str(caught.value)
    assert "%b" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (b"-ERR AUTH <password> called without any password configured for the default user. Are you sure?",
         "ERR AUTH <password> called without any password configured for the default user"),
        (b"-ERR DB index is out of range", "ERR DB index is out of range"),
        (b"-ERR max number of clients reached", "ERR max number of clients reached"),
        (b"-ERR unknown command 'AUTH', with args beginning with: 'x'", "ERR unknown command"),
        (b"-LOADING Redis is loading the dataset in memory", "LOADING Redis is loading the dataset in memory"),
        (b"-NOPERM User proxy has no permissions to run the 'hello' command", "NOPERM"),
        (b"-ERRATIC", "an error"),
    ],
)  # fmt: skip
def test_what_an_upstream_says_in_words_of_its_own_is_said(error, said):
    assert told(error + b"\r\n") == said


@pytest.mark.parametrize("echo", [b"-ERR with args beginning with: %b \r\n", b"-ERR %b", b"%b"])
def test_nor_is_it_in_the_log_nor_told_to_other_clients(pretender, echo, directory, run_to_exit):
    more = {"COALESCE_UPSTREAM_PASSWORD_FILE": written(directory / "secret", SECRET), "COALESCE_UPSTREAM_WAIT": "0"}
    upstream = f"redis://proxy@{pretender.url}"
    with running_coalesce(upstream, **more) as coalesce, coalesce.connect() as client:
        assert client.ask("PING") == PONG
        pretender.answers[b"AUTH"] = echo % SECRET.encode()
        pretender.closes_after.add(b"AUTH")
        pretender.hang_up()
        assert b"hunter" not in eventually(lambda: told_unavailable(coalesce))
        eventually(lambda: "can't connect to" in coalesce.stderr)
        code, stderr = run_to_exit("--listen", "127.0.0.1:0", "--upstream", upstream, **more)
        assert (code, "hunter" in stderr) == (1, False)
    assert "hunter" not in coalesce.stderr


def told_unavailable(coalesce: Coalesce) -> bytes:
    """What a client is told, or nothing when it is served, or closed."""
    with coalesce.connect() as client, contextlib.suppress(EOFError, ConnectionError):
        client.send(pack("GET", "k"))
        reply = client.reply()
        return reply if reply.startswith(b"-ERR coalesce: ") else b""
    return b""


@pytest.mark.parametrize("reply", [b"$%b\r\n", b"%b\r\n", b"$4\r\n%b\r\n", b"$1\r\nv\r\n%b\r\n", b">1\r\n+%b\r\n"])
def test_a_desync_repeats_no_data(pretender, reply):
    with running_coalesce(pretender.url) as coalesce, coalesce.connect() as client:
        assert client.ask("GET", "k") == bulk("v")
        pretender.answers[b"GET"] = reply % b"mysecretvalue"
        client.send(pack("GET", "k"))
        assert b"mysecretvalue" not in client.rest()
        eventually(lambda: "can't be trusted any more" in coalesce.stderr)
    assert "myse" not in coalesce.stderr


class OwnFaultError(Exception):
    """What nobody thought of."""


async def test_secrets_are_not_in_the_traceback_of_a_fault(guarded, monkeypatch, capfd):
    """Though the exception's text has all that the function was given."""

    secrets = [SECRET, "ada-secret"]

    def faulty(*given: object) -> None:
        raise OwnFaultError(given, secrets) from KeyError(secrets)

    upstream = parse_upstream(f"redis://proxy:{SECRET}@{guarded.url}")
    config = Config(upstream, listen=(TcpAddress("127.0.0.1", 0),))
    with trio.fail_after(10), logging_to_stderr(logging.DEBUG):
        async with trio.open_nursery() as nursery:
            (address,) = await nursery.start(Server(config).serve)
            for owner, name in ((moves, "begin"), (Exchange, "connected")):
                with monkeypatch.context() as patch:
                    patch.setattr(owner, name, faulty)
                    async with await trio.open_tcp_stream(address.host, address.port) as client:
                        await client.send_all(pack("AUTH", "ada", "ada-secret"))
                        with trio.move_on_after(1):  # closed, or it waits for a lane that comes to nothing
                            assert await client.receive_some() == b""
            nursery.cancel_scope.cancel()
    said = capfd.readouterr().err
    assert said.count("OwnFaultError") > 1
    assert said.count("in faulty") > 1
    assert SECRET not in said
    assert "ada-secret" not in said
