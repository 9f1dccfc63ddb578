"""Passwords that are rotated, users that are deleted or lose rights, while their clients are at work.

What a client sees is compared with what a direct connection sees of the same change.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from tests.system.processes import Executable, RedisServer, eventually, running_coalesce, running_server
from tests.system.versions import OLDEST_AND_NEWEST
from tests.system.wire import Wire, bulk, pack

from . import faults
from .stage import on_stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.system.processes import Coalesce

    from .faults import LoadedStage

OK = b"+OK\r\n"
CLIENTS = 10


@pytest.fixture(scope="module", params=OLDEST_AND_NEWEST, ids=str)
def upstream(request) -> Iterator[RedisServer]:
    executable: Executable = request.param
    with running_server(executable) as server:
        yield server


@pytest.fixture
def coalesce(upstream) -> Iterator[Coalesce]:
    with running_coalesce(upstream.url) as coalesce, upstream.connect() as control:
        for user in ("ada", "bob"):
            assert control.ask("ACL", "SETUSER", user, "reset", "on", f">{user}-old", "~*", "&*", "+@all") == OK
        yield coalesce


def as_user(connect: Callable[[], Wire], user: str, password: str) -> Wire:
    wire = connect()
    assert wire.ask("AUTH", user, password) == OK
    return wire


@contextlib.contextmanager
def users(connect: Callable[[], Wire], user: str, password: str = "") -> Iterator[list[Wire]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(as_user(connect, user, password or f"{user}-old")) for _ in range(CLIENTS)]


def whoami(wire: Wire) -> bytes:
    return wire.ask("ACL", "WHOAMI")


def test_a_password_is_rotated_while_clients_are_at_work(upstream, coalesce):
    """Those who are in stay in; who comes needs the new one; the old one is refused and leaves a client as it was."""
    with (
        users(coalesce.connect, "ada") as before,
        users(coalesce.connect, "bob") as others,
        upstream.connect() as control,
    ):
        for turn in range(3):
            old, new = ("ada-old", *(f"ada-{number}" for number in range(3)))[turn : turn + 2]
            assert control.ask("ACL", "SETUSER", "ada", "resetpass", f">{new}") == OK
            for wire in [*before, *others]:
                wire.send(pack("PING") * 5)  # in flight while the others come
            with users(coalesce.connect, "ada", new) as after, coalesce.connect() as late:
                assert late.ask("AUTH", "ada", old).startswith(b"-WRONGPASS")
                assert whoami(late) == bulk("default")
                assert late.ask("HELLO", 3, "AUTH", "ada", old).startswith(b"-WRONGPASS")
                assert whoami(late) == bulk("default")
                assert {whoami(wire) for wire in after} == {bulk("ada")}
                for wire in [*before, *others]:
                    assert wire.replies(5) == [b"+PONG\r\n"] * 5
                assert {whoami(wire) for wire in before} == {bulk("ada")}
                assert {whoami(wire) for wire in others} == {bulk("bob")}


def test_old_and_new_password_never_share_a_connection(upstream, coalesce):
    """One for who came with the old one, one for who came with the new; who is wrong has neither."""
    with users(coalesce.connect, "ada") as before, upstream.connect() as control:
        assert control.ask("ACL", "SETUSER", "ada", "resetpass", ">ada-new") == OK
        with users(coalesce.connect, "ada", "ada-new") as after, coalesce.connect() as wrong:
            assert wrong.ask("AUTH", "ada", "ada-old").startswith(b"-WRONGPASS")
            connections = ids_of(control, "ada")
            assert len(connections) == 2
            control.ask("CLIENT", "KILL", "ID", connections[0])
            assert {closed_or_serves(wire) for wire in after} == {"serves"}
            assert {closed_or_serves(wire) for wire in before} == {"closed"}  # it has to authenticate anew, and can't
            assert whoami(wrong) == bulk("default")


def ids_of(control: Wire, user: str) -> list[int]:
    """Connections of a user, the oldest first."""
    lines = [line for line in control.ask("CLIENT", "LIST").split(b"\n") if b" user=%b " % user.encode() in line]
    return sorted(int(line.split()[0].removeprefix(b"id=")) for line in lines)


def closed_or_serves(wire: Wire) -> str:
    try:
        return "serves" if wire.ask("PING") == b"+PONG\r\n" else "refuses"
    except (EOFError, ConnectionError):
        return "closed"


def test_a_deleted_user_is_closed_as_directly_and_others_are_untouched(upstream, coalesce):
    outcomes = {}
    for name, connect in (("direct", upstream.connect), ("coalesce", coalesce.connect)):
        with (
            upstream.connect() as control,
            users(upstream.connect, "bob") as direct_others,
            users(coalesce.connect, "bob") as others,
        ):
            assert control.ask("ACL", "SETUSER", "ada", "reset", "on", ">ada-old", "~*", "+@all") == OK
            with users(connect, "ada") as clients:
                for wire in clients:
                    assert wire.ask("SET", "k", "v") == OK
                assert control.ask("ACL", "DELUSER", "ada") == b":1\r\n"
                for wire in [*others, *direct_others]:
                    assert whoami(wire) == bulk("bob")
                outcomes[name] = [wire.rest() for wire in clients]  # raises unless closed
                with connect() as late:
                    refused = late.ask("AUTH", "ada", "ada-old")
                    outcomes[name].append(refused)
    assert outcomes["coalesce"] == outcomes["direct"]


def test_a_user_that_loses_rights_hears_what_it_hears_directly(upstream, coalesce):
    asked = [("SET", "k", "v"), ("GET", "k"), ("INCR", "n"), ("LPUSH", "l", "x"), ("PING",)]
    transaction = b"".join([pack("MULTI"), pack("GET", "k"), pack("SET", "k", "v"), pack("EXEC")])
    with (
        upstream.connect() as control,
        users(upstream.connect, "ada") as direct,
        users(coalesce.connect, "ada") as through,
        users(coalesce.connect, "bob") as others,
    ):
        for wire in [*direct, *through]:
            assert wire.ask("SET", "k", "v") == OK
        assert control.ask("ACL", "SETUSER", "ada", "-@write") == OK
        heard = set()
        for wire in [*direct, *through]:
            wire.send(b"".join(pack(*each) for each in asked) + transaction)
            heard.add(tuple(wire.replies(len(asked) + 4)))
        assert len(heard) == 1
        (replies,) = heard
        assert [reply[:7] for reply in replies[:4]] == [b"-NOPERM", b"$1\r\nv\r\n", b"-NOPERM", b"-NOPERM"]
        assert replies[-1].startswith(b"-EXECABORT")
        for wire in others:
            assert wire.ask("SET", "k", "v") == OK
        # Given back, they are there at once.
        assert control.ask("ACL", "SETUSER", "ada", "+@all") == OK
        for wire in [*direct, *through]:
            assert wire.ask("SET", "k", "v") == OK


def test_a_user_switched_off_may_go_on_but_no_one_comes(upstream, coalesce):
    """Redis leaves those who are in; so it is through coalesce, until the connection has to be made anew."""
    with (
        upstream.connect() as control,
        users(coalesce.connect, "ada") as clients,
        users(coalesce.connect, "bob") as all_,
    ):
        assert control.ask("ACL", "SETUSER", "ada", "off") == OK
        for wire in clients:
            assert whoami(wire) == bulk("ada")
        with coalesce.connect() as late:
            assert late.ask("AUTH", "ada", "ada-old").startswith(b"-WRONGPASS")
        for number in ids_of(control, "ada"):
            control.ask("CLIENT", "KILL", "ID", number)
        assert {wire.rest() for wire in clients} == {b""}
        assert {whoami(wire) for wire in all_} == {bulk("bob")}
        assert eventually(lambda: ids_of(control, "ada") == [])


@pytest.mark.parametrize(
    "fault", [faults.rotate_passwords, faults.take_rights, faults.delete_users], ids=lambda fault: fault.__name__
)
def test_nothing_runs_twice_meanwhile(executable: Executable, fault: Callable[[LoadedStage], None]) -> None:
    """Two thirds of those who count are users. Behind each change their connections break, so all come in anew."""
    with on_stage(executable, clients=30, users=("ada", "bob")) as stage, stage.upstream.connect() as control:
        for _ in range(2):
            fault(stage)
            stage.load.go_on()
            control.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            stage.load.go_on(3)
        verdict = stage.finish()
    assert verdict.closed > 0
