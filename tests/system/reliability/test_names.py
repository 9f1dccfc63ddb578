"""The upstream is given by a name whose addresses change, or of which some lead nowhere."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import pytest

from tests.system.processes import short_directory
from tests.system.wire import bulk, pack

from .accounting import Load
from .namespaces import Hosts, coalesce_with, impossible, network, server_at
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
