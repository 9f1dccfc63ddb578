"""The upstream is given by a name whose addresses change, or of which some lead nowhere; or a listener is."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING

import pytest

from tests.system.processes import short_directory
from tests.system.wire import bulk, pack

from .accounting import Load
from .namespaces import Hosts, coalesce_with, impossible, network, run_to_exit_with, server_at
from .stage import FORGETS_NOTHING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.system.processes import Coalesce

pytestmark = pytest.mark.skipif(bool(impossible()), reason=f"no namespaces here: {impossible()}")

NAME = "redis.coalesce.test"
OK = b"+OK\r\n"


@contextlib.contextmanager
def named_coalesce(port: int, *addresses: str, flags: tuple[str, ...] = ()) -> Iterator[tuple[Coalesce, Hosts]]:
    with short_directory() as directory:
        hosts = Hosts(directory / "hosts")
        hosts.say(NAME, *addresses)
        mounts = f"mount --bind {hosts.path} /etc/hosts"
        with coalesce_with(mounts, f"{NAME}:{port}", *flags, place=directory / "c.sock") as coalesce:
            yield coalesce, hosts


def test_the_next_dial_follows_the_name(executable):
    """Fail-over by DNS: the old one dies, the name leads to the new one, and idle clients go on there."""
    with (
        server_at(executable, "127.0.0.1") as old,
        server_at(executable, "127.0.0.2", port=old.port) as new,
        named_coalesce(old.port, "127.0.0.1") as (coalesce, hosts),
        coalesce.connect() as client,
        coalesce.connect() as second,
    ):
        with old.connect() as direct_old, new.connect() as direct_new:
            assert direct_old.ask("SET", "who", "old") == OK
            assert direct_new.ask("SET", "who", "new") == OK
        assert client.ask("GET", "who") == bulk("old")
        assert second.ask("SELECT", 3) == OK
        hosts.say(NAME, "127.0.0.2")
        assert client.ask("GET", "who") == bulk("old")  # a connection that works is kept
        old.kill()
        assert client.ask("GET", "who") == bulk("new")
        assert second.ask("SET", "k", "v") == OK  # its lane follows, too, into its own database
        second.send(pack("MULTI"))  # and so do leases
        assert second.reply() == OK
        assert [second.ask("GET", "k"), second.ask("EXEC")] == [b"+QUEUED\r\n", b"*1\r\n$1\r\nv\r\n"]
        with coalesce.connect() as late:
            assert late.ask("GET", "who") == bulk("new")


def test_nothing_runs_twice_while_the_name_moves(executable):
    """It leads nowhere for a time, and then to another address of the same upstream; each time connections break."""
    with (
        server_at(executable, "127.0.0.1", "--bind", "127.0.0.1", "127.0.0.2", *FORGETS_NOTHING) as upstream,
        named_coalesce(upstream.port, "127.0.0.1", flags=("--upstream-wait", "0.2")) as (coalesce, hosts),
        upstream.connect() as control,
    ):
        load = Load([coalesce.address, coalesce.unix_path], clients=20)
        load.start()
        for addresses in ([], ["127.0.0.2"]):
            hosts.say(NAME, *addresses)
            control.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            if not addresses:
                load.be_refused()
        load.go_on(5)
        lines = [line for line in control.ask("CLIENT", "LIST").splitlines() if b" name=coalesce" in line]
        assert lines
        assert all(b" laddr=127.0.0.2:" in line for line in lines)
        load.finish()
        verdict = load.balance(control)
    assert verdict.closed > 0
    assert verdict.refused > 0


def test_a_name_that_leads_nowhere_for_a_while(executable):
    """Requests wait, then are refused and not run; once the name is back, everything goes on."""
    with (
        server_at(executable, "127.0.0.1") as upstream,
        named_coalesce(upstream.port, "127.0.0.1", flags=("--upstream-wait", "0.5")) as (coalesce, hosts),
        coalesce.connect() as client,
    ):
        assert client.ask("SET", "k", "v") == OK
        hosts.path.write_text("127.0.0.1 localhost\n")
        with upstream.connect() as control:
            assert control.ask("CLIENT", "KILL", "TYPE", "normal").startswith(b":")
        assert client.ask("INCR", "n").startswith(b"-ERR coalesce: upstream unavailable: ")
        hosts.say(NAME, "127.0.0.1")
        while (reply := client.ask("INCR", "n")).startswith(b"-ERR coalesce: upstream unavailable: "):
            pass
        assert reply == b":1\r\n"


def test_a_name_whose_first_address_refuses(executable):
    with (
        server_at(executable, "127.0.0.2") as upstream,
        named_coalesce(upstream.port, "127.0.0.1", "127.0.0.2") as (coalesce, _),
        coalesce.connect() as client,
    ):
        assert client.ask("SET", "k", "v") == OK
        upstream.kill()
        upstream.start()
        assert client.ask("GET", "k") == b"$-1\r\n"


def test_a_name_whose_first_address_is_silent(executable):
    """trio tries the next one after a quarter of a second (happy eyeballs); a dial takes little more."""
    with (
        network() as between,
        server_at(executable, between.elsewhere, within=between.name) as upstream,
    ):
        between.drop()
        with (
            named_coalesce(upstream.port, between.there, between.elsewhere) as (coalesce, _),
            coalesce.connect() as client,
        ):
            begun = time.monotonic()
            assert client.ask("SET", "k", "v") == OK
            assert time.monotonic() - begun < 1.0
            with upstream.connect() as control:
                assert control.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes").startswith(b":")
            begun = time.monotonic()
            client.send(pack("MULTI"))  # so a connection is dialled, whether or not the shared one has come back
            assert client.reply() == OK
            assert 0.2 < time.monotonic() - begun < 1.0


# That of a listener

LOCAL = ["127.0.0.1", "127.0.0.2"]  # of this host, whatever it has besides


def serves(address: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(address, timeout=5) as client:
            client.sendall(pack("PING"))
            return client.recv(100) == b"+PONG\r\n"
    except ConnectionRefusedError:
        return False


def has(host: str) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True


def test_a_name_is_listened_on_at_each_of_its_addresses(upstream):
    """On one port, though that was for the system to choose."""
    addresses = [*LOCAL, "::1"] if has("::1") else LOCAL
    with short_directory() as directory:
        hosts = Hosts(directory / "hosts")
        hosts.say(NAME, *addresses)
        mounts = f"mount --bind {hosts.path} /etc/hosts"
        with coalesce_with(mounts, upstream.url, place=directory / "c.sock", host=NAME) as coalesce:
            assert coalesce.address == (NAME, coalesce.port)
            assert [serves((host, coalesce.port)) for host in addresses] == [True] * len(addresses)
            assert not serves(("127.0.0.3", coalesce.port))
            code, stderr = coalesce.stop()
            assert code == 0, stderr
            assert not any(serves((host, coalesce.port)) for host in addresses)


@pytest.mark.parametrize("addresses", [["192.0.2.77", "127.0.0.1"], ["127.0.0.1", "2001:db8::77"]])
def test_an_address_of_the_name_that_is_none_of_this_host_is_passed_over(upstream, addresses):
    absent = next(host for host in addresses if host != "127.0.0.1")
    with short_directory() as directory:
        hosts = Hosts(directory / "hosts")
        hosts.say(NAME, *addresses)
        mounts, flags = f"mount --bind {hosts.path} /etc/hosts", ["--unprotected"]
        with coalesce_with(mounts, upstream.url, *flags, place=directory / "c.sock", host=NAME) as coalesce:
            assert serves(("127.0.0.1", coalesce.port))
            assert f"{NAME}:0: an address is passed over: " in coalesce.stderr
            assert f"({absent})" in coalesce.stderr
        hosts.say(NAME, absent)
        code, stderr = run_to_exit_with(mounts, "--upstream", upstream.url, "--listen", f"{NAME}:0", *flags)
        assert (code, len(stderr.splitlines())) == (1, 1)
        assert stderr.startswith(f"coalesce: can't listen on {NAME}:0: ")


def test_a_name_of_which_somebody_else_has_an_address_is_not_listened_on(upstream):
    """Clients would come to one or the other, by chance."""
    with short_directory() as directory, socket.create_server(("127.0.0.2", 0)) as busy:
        hosts = Hosts(directory / "hosts")
        hosts.say(NAME, *LOCAL)
        port = busy.getsockname()[1]
        mounts = f"mount --bind {hosts.path} /etc/hosts"
        code, stderr = run_to_exit_with(mounts, "--upstream", upstream.url, "--listen", f"{NAME}:{port}")
        assert (code, len(stderr.splitlines())) == (1, 1)
        assert f"can't listen on {NAME}:{port}: Address already in use (127.0.0.2)" in stderr
