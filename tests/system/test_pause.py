"""/pause, and what may happen to the upstream until /resume: nobody is told."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from signal import SIGCONT, SIGSTOP, SIGTERM
from typing import TYPE_CHECKING, NamedTuple

import pytest

from .admin import ADMIN, ask, metrics, post
from .processes import DEADLINE, RedisServer, eventually, running_coalesce, running_server, short_directory
from .redis_py_load import RedisPyLoad
from .reliability.faults import last
from .reliability.stage import FORGETS_NOTHING, on_stage
from .test_metrics import metrics as figures
from .test_metrics import reset
from .versions import NEWEST
from .wire import bulk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .processes import Coalesce
    from .wire import Wire

NOTHING = {"paused": True, "in_flight": 0, "in_transaction": 0, "blocked": 0, "subscribed": 0, "pinned": 0}


@pytest.fixture(scope="session", params=[NEWEST], ids=str)
def executable(request):
    """It is coalesce's to bear, whichever server it is."""
    return request.param


@pytest.fixture
def coalesce(fresh_upstream) -> Iterator[Coalesce]:
    with running_coalesce(fresh_upstream.url, *ADMIN) as coalesce:
        yield coalesce


def shut_down(server: RedisServer) -> None:
    """As an operator does: SHUTDOWN, by somebody who is not a client of coalesce's."""
    with server.connect() as control:
        control.send(b"SHUTDOWN NOSAVE\r\n")
        control.rest()
    assert server.process is not None
    server.process.wait(DEADLINE)


def is_held(wire: Wire) -> bool:
    """(What says that nothing comes is a look at what has come, behind something that was answered.)"""
    return wire.look() == (b"", False)


def go_on_saying(wire: Wire, what: bytes) -> None:
    for _ in itertools.repeat(None, 10_000):
        wire.send(what)


def in_the_background(call: Callable[[], object]) -> Callable[[], object]:
    """Begins it, and returns what waits for what it comes to."""
    pool = ThreadPoolExecutor(1)
    running = pool.submit(call)
    pool.shutdown(wait=False)
    return lambda: running.result(DEADLINE)


def test_the_upstream_is_swapped_under_load_and_nobody_notices(executable):
    with on_stage(executable, *ADMIN) as stage:
        for _ in range(2):
            paused = post(stage.coalesce, "/pause")
            assert (paused.status, paused.told) == (200, NOTHING)
            shut_down(stage.upstream)
            stage.upstream.start()
            assert post(stage.coalesce, "/resume").told == {"paused": False}
            stage.load.go_on(5)
        verdict = stage.finish()
        assert (verdict.unacknowledged, verdict.refused, verdict.closed) == (0, 0, 0)
        assert verdict.acknowledged == verdict.sent >= 50


def test_redis_py_notices_nothing_of_a_swap(executable):
    """With every kind of request under way, new connections among them, and without its retries."""
    with (
        running_server(executable, *FORGETS_NOTHING) as upstream,
        running_coalesce(upstream.url, *ADMIN) as coalesce,
        RedisPyLoad(coalesce.port, 12) as load,
    ):
        for _ in range(3):
            load.go_on(6)
            assert post(coalesce, "/pause").told == NOTHING
            shut_down(upstream)
            upstream.start()
            last(0.1)
            post(coalesce, "/resume")
        load.go_on(6)
        load.ends()


def test_the_books_do_not_balance_like_that_without_a_pause(executable):
    with on_stage(executable, *ADMIN) as stage:
        shut_down(stage.upstream)
        stage.upstream.start()
        stage.load.go_on(5)
        assert stage.finish().closed > 0


def test_a_pause_may_last_longer_than_requests_wait(fresh_upstream):
    """Without an upstream, and with the attempts to reach it being refused all the while."""
    hasty = ("--upstream-wait", "0.05")
    with (
        running_coalesce(fresh_upstream.url, *ADMIN, *hasty) as coalesce,
        coalesce.connect() as client,
        coalesce.connect() as borrower,
    ):
        assert client.ask("SET", "k", "v") == b"+OK\r\n"
        assert post(coalesce, "/pause").status == 200
        shut_down(fresh_upstream)
        client.send(b"GET k\r\n")
        borrower.send(b"MULTI\r\n")
        eventually(lambda: "can't connect to" in coalesce.stderr)
        last(1.0)  # twenty times what they would wait for
        assert is_held(client)
        assert is_held(borrower)
        fresh_upstream.start()
        post(coalesce, "/resume")
        assert client.reply() == b"$-1\r\n"  # (nothing was kept)
        assert borrower.reply() == b"+OK\r\n"


def test_an_outage_before_the_pause_is_over_with_it(fresh_upstream):
    """Who would have been refused waits as well, and is served as soon as the pause is over."""
    hasty = ("--upstream-wait", "0.05")
    with running_coalesce(fresh_upstream.url, *ADMIN, *hasty) as coalesce, coalesce.connect() as client:
        shut_down(fresh_upstream)
        eventually(lambda: client.ask("PING").startswith(b"-ERR coalesce: upstream unavailable"))
        post(coalesce, "/pause")
        client.send(b"PING\r\n")
        fresh_upstream.start()
        post(coalesce, "/resume")
        assert client.reply() == b"+PONG\r\n"


def test_after_a_pause_nobody_is_left_on_the_upstream_that_was_replaced(executable):
    """It runs on, and only what leads to it has changed: here, the place of a unix socket."""
    with short_directory() as place, running_server(executable) as old, running_server(executable) as new:
        link = place / "upstream.sock"
        link.symlink_to(old.unix_path)
        with running_coalesce(f"unix://{link}", *ADMIN) as coalesce, coalesce.connect() as client:
            with coalesce.connect() as other, coalesce.connect() as lent:
                assert client.ask("SET", "k", "old") == b"+OK\r\n"
                assert other.ask("SELECT", "3") == b"+OK\r\n"
                assert lent.ask("MULTI") == b"+OK\r\n"
                assert lent.ask("EXEC") == b"*0\r\n"  # a connection that is idle now
                assert post(coalesce, "/pause").told == NOTHING
                link.unlink()
                link.symlink_to(new.unix_path)
                for wire in (client, other, lent):
                    wire.send(b"MULTI\r\n" if wire is lent else b"SET k new\r\n")
                post(coalesce, "/resume")
                for wire in (client, other, lent):
                    assert wire.reply() == b"+OK\r\n"
                assert lent.ask("SET", "k2", "new") == b"+QUEUED\r\n"
                assert lent.ask("EXEC") == b"*1\r\n+OK\r\n"
                lost = {name: count for name, count in metrics(coalesce).items() if name.startswith("lane_losses")}
                assert lost.pop("lane_losses_total replaced") == 2
                assert not any(lost.values())
            with old.connect() as control:
                assert control.ask("MGET", "k", "k2") == b"*2\r\n" + bulk("old") + b"$-1\r\n"
                eventually(lambda: control.ask("CLIENT", "LIST").count(b"name=coalesce") == 0)


def test_a_connection_that_was_found_before_the_end_of_a_pause_is_not_gone_on_with(executable):
    """A lane that was turned away has found another upstream, and waits for its last reply when the pause begins."""
    with (
        short_directory() as place,
        running_server(executable) as replica,
        running_server(executable) as middle,
        running_server(executable) as last_one,
    ):
        link = place / "upstream.sock"
        link.symlink_to(replica.unix_path)
        with (
            running_coalesce(f"unix://{link}", *ADMIN) as coalesce,
            replica.connect() as control,
            middle.connect() as found,
            coalesce.connect() as client,
        ):
            assert client.ask("SELECT", "3") == b"+OK\r\n"
            control.ask("REPLICAOF", "127.0.0.1", "1")
            control.ask("CLIENT", "PAUSE", "60000", "WRITE")
            lead(link, middle)
            client.send(b"SET k v\r\nPUBLISH c m\r\n")
            assert client.reply().startswith(b"-READONLY")
            eventually(lambda: found.ask("CLIENT", "LIST").count(b"name=coalesce"))
            assert post(coalesce, "/pause?timeout=0").told["in_flight"] == 1
            control.ask("CLIENT", "UNPAUSE")
            assert client.reply() == b":0\r\n"
            assert post(coalesce, "/pause").told == NOTHING
            lead(link, last_one)
            client.send(b"SET k v\r\n")
            post(coalesce, "/resume")
            assert client.reply() == b"+OK\r\n"
            assert found.ask("INFO", "keyspace").count(b"db3") == 0


@pytest.fixture
def frozen(executable) -> Iterator[Frozen]:
    """An upstream that stops in the middle of everything, and the one that is to take its place."""
    with short_directory() as place, running_server(executable) as old, running_server(executable) as new:
        link = place / "upstream.sock"
        link.symlink_to(old.unix_path)
        frozen = Frozen(link, old, new)
        try:
            yield frozen
        finally:
            frozen.signal(SIGCONT)


class Frozen(NamedTuple):
    link: Path
    old: RedisServer
    new: RedisServer

    def signal(self, number: int) -> None:
        assert self.old.process is not None
        self.old.process.send_signal(number)


def test_a_dial_that_was_under_way_when_a_pause_began_takes_nobodys_place_after_it(frozen):
    """The only connection there may be is being dialled, to an upstream that does not answer any more."""
    few = ("--max-leases", "1", "--upstream-wait", "1")
    with running_coalesce(f"unix://{frozen.link}", *ADMIN, *few) as coalesce, coalesce.connect() as client:
        assert client.ask("PING") == b"+PONG\r\n"
        frozen.signal(SIGSTOP)
        client.send(b"MULTI\r\n")
        eventually(lambda: figures(coalesce)["leases dialling"] == 1)
        post(coalesce, "/pause?timeout=0")
        lead(frozen.link, frozen.new)
        post(coalesce, "/resume")
        assert client.reply() == b"+OK\r\n"


def test_a_connection_on_which_nobody_waits_for_anything_is_not_waited_for(frozen):
    """Its upstream answers no more, and what is in flight there is a question of our own."""
    with running_coalesce(f"unix://{frozen.link}", *ADMIN) as coalesce, coalesce.connect() as client:
        assert client.ask("PING") == b"+PONG\r\n"
        frozen.signal(SIGSTOP)
        client.send(b"MULTI\r\n")  # has the lane asked for its role
        eventually(lambda: figures(coalesce)["requests_in_flight"] == 1)
        post(coalesce, "/pause?timeout=0")
        lead(frozen.link, frozen.new)
        post(coalesce, "/resume")
        assert client.reply() == b"+OK\r\n"
        assert client.ask("EXEC") == b"*0\r\n"
        assert client.ask("PING") == b"+PONG\r\n"


def test_a_connection_is_waited_for_until_who_waited_has_left(frozen):
    """Its upstream answers no more, and who had something in flight there gives up after the pause."""
    with running_coalesce(f"unix://{frozen.link}", *ADMIN) as coalesce, coalesce.connect() as client:
        other = coalesce.connect()
        assert other.ask("PING") == b"+PONG\r\n"
        frozen.signal(SIGSTOP)
        other.send(b"GET k\r\n")
        eventually(lambda: figures(coalesce)["requests_in_flight"] == 1)
        post(coalesce, "/pause?timeout=0")
        lead(frozen.link, frozen.new)
        post(coalesce, "/resume")
        client.send(b"PING\r\n")
        eventually(lambda: figures(coalesce)["requests_unsent"] == 1)
        reset(other)
        assert client.reply() == b"+PONG\r\n"


def test_a_look_for_another_upstream_does_not_outlast_a_pause(frozen, executable):
    """A lane was turned away, and looks where nobody answers."""
    patient = ("--connect-timeout", "60")
    with running_server(executable) as replica:
        lead(frozen.link, replica)
        with (
            running_coalesce(f"unix://{frozen.link}", *ADMIN, *patient) as coalesce,
            replica.connect() as control,
            coalesce.connect() as client,
        ):
            assert client.ask("PING") == b"+PONG\r\n"
            control.ask("REPLICAOF", "127.0.0.1", "1")
            lead(frozen.link, frozen.old)
            frozen.signal(SIGSTOP)
            assert client.ask("SET", "k", "v").startswith(b"-READONLY")
            assert post(coalesce, "/pause").told == NOTHING
            lead(frozen.link, frozen.new)
            client.send(b"SET k v\r\n")
            post(coalesce, "/resume")
            assert client.reply() == b"+OK\r\n"


def lead(link: Path, server: RedisServer) -> None:
    link.unlink()
    link.symlink_to(server.unix_path)


def test_a_transaction_goes_on_until_its_end(coalesce):
    with coalesce.connect() as client, coalesce.connect() as other:
        assert client.ask("MULTI") == b"+OK\r\n"
        waited = in_the_background(lambda: post(coalesce, "/pause"))
        eventually(lambda: "paused" in coalesce.stderr)
        assert client.ask("INCR", "k") == b"+QUEUED\r\n"
        other.send(b"GET k\r\n")
        assert client.ask("EXEC") == b"*1\r\n:1\r\n"
        answer = waited()
        assert (answer.status, answer.told) == (200, NOTHING)
        client.send(b"INCR k\r\n")
        assert ask(coalesce, "/readiness").status == 200
        assert is_held(client)
        assert is_held(other)
        post(coalesce, "/resume")
        assert other.reply() == bulk("1")
        assert client.reply() == b":2\r\n"


def test_a_transaction_that_does_not_end_is_told_of(coalesce):
    with coalesce.connect() as client:
        assert client.ask("WATCH", "k") == b"+OK\r\n"
        answer = post(coalesce, "/pause?timeout=0.05")
        assert (answer.status, answer.told) == (504, NOTHING | {"in_transaction": 1})
        assert client.ask("UNWATCH") == b"+OK\r\n"
        assert post(coalesce, "/pause?timeout=5").told == NOTHING  # it has stayed paused
        client.send(b"PING\r\n")
        post(coalesce, "/resume")
        assert client.reply() == b"+PONG\r\n"


def test_one_who_sends_on_and_on_gives_its_connection_back(coalesce):
    """Requests behind one that was lent a connection: the pause does not wait for a moment without any."""
    with coalesce.connect() as client:
        assert client.ask("MULTI") == b"+OK\r\n"
        waited = in_the_background(lambda: post(coalesce, "/pause"))
        eventually(lambda: "paused" in coalesce.stderr)
        client.send(b"INCR k\r\nEXEC\r\nMULTI\r\nINCR k\r\nEXEC\r\nGET k\r\n")
        assert client.replies(2) == [b"+QUEUED\r\n", b"*1\r\n:1\r\n"]
        answer = waited()
        assert (answer.status, answer.told) == (200, NOTHING)
        assert is_held(client)
        post(coalesce, "/resume")
        assert client.replies(4) == [b"+OK\r\n", b"+QUEUED\r\n", b"*1\r\n:2\r\n", bulk("2")]


def test_what_cannot_end_is_counted_and_not_waited_for(coalesce):
    with coalesce.connect() as blocked, coalesce.connect() as subscribed, coalesce.connect() as pinned:
        assert subscribed.ask("SUBSCRIBE", "c").startswith(b"*3\r\n")
        assert pinned.ask("CLIENT", "ID").startswith(b":")
        blocked.send(b"BLPOP k 0\r\n")
        eventually(lambda: pinned.ask("CLIENT", "LIST").count(b"cmd=blpop"))
        answer = post(coalesce, "/pause")
        assert (answer.status, answer.told) == (200, NOTHING | {"blocked": 1, "subscribed": 1, "pinned": 1})
        assert pinned.ask("RPUSH", "k", "v") == b":1\r\n"  # its connection is its own
        assert blocked.reply() == b"*2\r\n" + bulk("k") + bulk("v")
        assert post(coalesce, "/pause").told == NOTHING | {"subscribed": 1, "pinned": 1}
        post(coalesce, "/resume")
        assert blocked.ask("PING") == b"+PONG\r\n"


def test_a_slow_request_is_waited_for_and_told_of(coalesce, fresh_upstream):
    with coalesce.connect() as client, fresh_upstream.connect() as control:
        assert control.ask("CONFIG", "SET", "lua-time-limit", "10") == b"+OK\r\n"
        client.send(b"EVAL 'while true do end' 0\r\n")
        eventually(lambda: control.ask("PING").startswith(b"-BUSY"))
        answer = post(coalesce, "/pause?timeout=0.05")
        assert answer.status == 504
        assert answer.told["in_flight"]
        control.ask("SCRIPT", "KILL")
        assert client.reply().startswith(b"-")
        assert post(coalesce, "/pause").told == NOTHING


def test_clients_come_to_a_halt_by_the_limits_there_are(fresh_upstream):
    with running_coalesce(fresh_upstream.url, *ADMIN, "--client-limit", "10") as coalesce, coalesce.connect() as client:
        assert client.ask("PING") == b"+PONG\r\n"
        post(coalesce, "/pause")
        before = coalesce.most_memory()
        client.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):  # nobody reads what it says
            go_on_saying(client, b"PING\r\n" * 1000)
        assert coalesce.most_memory() < before + 20_000_000
        post(coalesce, "/resume")
        client.socket.settimeout(DEADLINE)
        assert set(client.replies(10_000)) == {b"+PONG\r\n"}


def test_who_gave_up_in_a_pause_makes_room(fresh_upstream):
    with running_coalesce(fresh_upstream.url, *ADMIN, "--max-clients", "3") as coalesce, coalesce.connect() as patient:
        post(coalesce, "/pause")
        patient.send(b"PING\r\n")
        for said in (b"PING\r\n", b"PING\r\nSELECT 1\r\n", b"SELECT 1\r\n", b"MULTI\r\n", b"BLPOP k 0\r\n"):
            last(0.15)  # it is looked for them ten times a second
            for _ in range(2):
                with coalesce.connect() as impatient:
                    impatient.send(said)
                    impatient.half_close()
                    assert impatient.look()[0] == b""
        last(0.15)
        with coalesce.connect() as one, coalesce.connect() as other:
            for wire in (one, other):
                wire.send(b"PING\r\n")
            with coalesce.connect() as refused:
                assert refused.rest().startswith(b"-ERR max number of clients")
            post(coalesce, "/resume")
            assert [wire.reply() for wire in (patient, one, other)] == [b"+PONG\r\n"] * 3


def test_who_guessed_passwords_in_a_pause_and_gave_up_leaves_nothing(fresh_upstream, tmp_path):
    """Each is a connection of its user's, which is not there yet, and is not to be afterwards."""
    passwords = tmp_path / "passwords"
    passwords.write_text("sesame\n")
    passwords.chmod(0o600)
    with fresh_upstream.connect() as control:
        for rule in ("ada on >hers ~* +@all", "default on >nobodys"):
            assert control.ask("ACL", "SETUSER", *rule.split()) == b"+OK\r\n"
        url = f"redis://default:nobodys@{fresh_upstream.url}"
        few = ("--max-clients", "3", "--client-password-file", str(passwords))
        with running_coalesce(url, *ADMIN, *few) as coalesce, coalesce.connect() as ada:
            post(coalesce, "/pause")
            ada.send(b"AUTH ada hers\r\nPING\r\n")
            for guess in range(6):
                last(0.15)
                for said in (f"AUTH ada {guess}\r\n", "HELLO 3 AUTH default sesame\r\n"):
                    with coalesce.connect() as impatient:
                        impatient.send(said.encode())
                        impatient.half_close()
                        assert impatient.look()[0] == b""
            last(0.15)
            with coalesce.connect() as other:
                other.send(b"AUTH ada hers\r\nPING\r\n")
                # What the last of them asked for stays until somebody needs their places.
                eventually(lambda: 2 <= figures(coalesce)["lanes shared dialling"] <= 4)
                post(coalesce, "/resume")
                for wire in (ada, other):
                    assert wire.replies(2) == [b"+OK\r\n", b"+PONG\r\n"]
            assert control.ask("ACL", "LOG").count(b"username") <= 2
            assert control.ask("ACL", "SETUSER", "default", "nopass") == b"+OK\r\n"


def test_what_blocks_and_was_given_up_in_a_pause_takes_nothing(coalesce, fresh_upstream):
    """A worker that waits for a job, loses patience, and comes back to wait anew: it is there once, afterwards."""
    with fresh_upstream.connect() as control, coalesce.connect() as worker:
        post(coalesce, "/pause")
        for how in ("close", "shutdown", "reset"):
            with coalesce.connect() as impatient:
                impatient.send(b"BLMOVE jobs taken LEFT RIGHT 0\r\n")
                eventually(lambda: figures(coalesce)["leases_waiting"] == 1)
                if how == "shutdown":
                    impatient.half_close()
                    assert impatient.rest() == b""
                elif how == "reset":
                    reset(impatient)
                else:
                    impatient.close()
                eventually(lambda: figures(coalesce)["clients shared"] + figures(coalesce)["clients waiting"] == 1)
                assert figures(coalesce)["leases_waiting"] == 0
        worker.send(b"BLPOP jobs 0\r\n")
        control.ask("RPUSH", "jobs", "a-job")
        post(coalesce, "/resume")
        assert worker.reply() == b"*2\r\n" + bulk("jobs") + bulk("a-job")
        assert control.ask("EXISTS", "taken") == b":0\r\n"


def test_what_blocks_behind_another_request_and_was_given_up_takes_nothing(coalesce, fresh_upstream):
    """What is before it is run and answered: whoever closes can't be told from one who only says no more."""
    with fresh_upstream.connect() as control, coalesce.connect() as before, coalesce.connect() as half:
        before.send(b"PING\r\n")
        assert before.reply() == b"+PONG\r\n"
        post(coalesce, "/pause")
        for how in ("close", "shutdown", "reset"):
            impatient = half if how == "shutdown" else coalesce.connect()
            impatient.send(b"INCR asked\r\nBLMOVE jobs taken LEFT RIGHT 0\r\n")
            if how == "shutdown":
                impatient.half_close()
            elif how == "reset":
                reset(impatient)
            else:
                impatient.close()
        control.ask("RPUSH", "jobs", "a-job")
        before.send(b"PING\r\n")
        post(coalesce, "/resume")
        assert before.reply() == b"+PONG\r\n"
        assert half.rest().startswith(b":")
        assert control.ask("GET", "asked") == bulk("3")
        eventually(lambda: figures(coalesce)["clients shared"] + figures(coalesce)["clients waiting"] == 1)
        assert control.ask("EXISTS", "taken") == b":0\r\n"


def test_who_waits_for_the_end_of_a_pause_waits_for_no_limit(coalesce):
    with coalesce.connect() as client:
        post(coalesce, "/pause")
        client.send(b"MULTI\r\n")
        eventually(lambda: figures(coalesce)["leases_waiting"] == 1)
        post(coalesce, "/resume")
        assert client.reply() == b"+OK\r\n"
    assert "--max-leases" not in coalesce.stderr


def test_sigterm_in_a_pause_answers_what_was_read(fresh_upstream):
    with running_coalesce(fresh_upstream.url, *ADMIN) as coalesce, coalesce.connect() as client:
        assert client.ask("PING") == b"+PONG\r\n"
        post(coalesce, "/pause")
        client.send(b"INCR k\r\n")
        code, stderr = coalesce.stop()
        assert code == 0, stderr
        assert client.rest() == b":1\r\n"


def test_a_pause_goes_on_after_sigterm_for_its_delay(fresh_upstream):
    """Its upstream may be away, and whoever replaces it may be about to resume."""
    with (
        running_coalesce(fresh_upstream.url, *ADMIN, "--sigterm-delay", "60") as coalesce,
        coalesce.connect() as client,
    ):
        post(coalesce, "/pause")
        client.send(b"PING\r\n")
        coalesce.signal(SIGTERM)
        eventually(lambda: ask(coalesce, "/readiness").status == 503)
        assert (metrics(coalesce)["paused"], metrics(coalesce)["draining"]) == (1, 1)
        assert is_held(client)
        post(coalesce, "/resume")
        assert client.reply() == b"+PONG\r\n"
        assert (metrics(coalesce)["paused"], metrics(coalesce)["draining"]) == (0, 1)
        code, stderr = coalesce.stop()
        assert code == 0
        assert "SIGTERM: clients are held, or after coalesce resume served, for 60 s more" in stderr


def test_quitquitquit_in_a_pause_and_a_pause_that_waits(fresh_upstream):
    with running_coalesce(fresh_upstream.url, *ADMIN) as coalesce, coalesce.connect() as client:
        assert client.ask("MULTI") == b"+OK\r\n"
        waited = in_the_background(lambda: post(coalesce, "/pause?timeout=10"))
        eventually(lambda: "paused" in coalesce.stderr)
        assert post(coalesce, "/quitquitquit").status == 200
        answer = waited()
        assert (answer.status, answer.body) == (409, b"draining\n")
        assert coalesce.wait()[0] == 0
        assert client.rest() == b""  # a drain waits for no transaction


def test_a_pause_that_is_taken_back_says_so(coalesce):
    with coalesce.connect() as client:
        assert client.ask("MULTI") == b"+OK\r\n"
        waited = in_the_background(lambda: post(coalesce, "/pause"))
        eventually(lambda: "paused" in coalesce.stderr)
        post(coalesce, "/resume")
        answer = waited()
        assert (answer.status, answer.body) == (409, b"resumed meanwhile\n")
        assert client.ask("EXEC") == b"*0\r\n"


def test_a_time_that_is_none(coalesce):
    for timeout in ("", "-1", "nan", "inf", "soon", "1&timeout=2"):
        assert post(coalesce, f"/pause?timeout={timeout}").status == 400, timeout
    with coalesce.connect() as client:
        assert client.ask("PING") == b"+PONG\r\n"


def test_resume_without_a_pause_changes_nothing(coalesce, fresh_upstream):
    with coalesce.connect() as client, fresh_upstream.connect() as control:
        assert client.ask("PING") == b"+PONG\r\n"
        before = control.ask("INFO", "stats").split(b"total_connections_received:")[1].split()[0]
        assert post(coalesce, "/resume").status == 200
        assert client.ask("PING") == b"+PONG\r\n"
        assert control.ask("INFO", "stats").split(b"total_connections_received:")[1].split()[0] == before
