"""What coalesce tells of itself, against what a real run did."""

from __future__ import annotations

import json
import re
import socket
import struct
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client import ProcessCollector
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from .admin import ADMIN, OPENMETRICS, metrics
from .processes import Coalesce, RedisServer, eventually, free_port, run_to_exit, running_coalesce
from .versions import NEWEST
from .wire import Wire, pack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .processes import Executable

TYPES = {
    "build_info": "gauge", "clients": "gauge", "clients_limit": "gauge", "clients_accepted": "counter",
    "clients_refused": "counter", "clients_closed": "counter", "clients_memory_bytes": "gauge",
    "clients_memory_limit_bytes": "gauge", "lanes": "gauge", "lanes_limit": "gauge", "leases": "gauge",
    "log_lines_dropped": "counter",
    "leases_waiting": "gauge", "leases_limit": "gauge", "commands": "counter", "own_commands": "counter",
    "requests_unsent": "gauge", "requests_in_flight": "gauge", "batch_commands": "histogram",
    "upstream_round_trip_seconds": "histogram", "queue_wait_seconds": "histogram", "upstream_sent_bytes": "counter",
    "upstream_received_bytes": "counter", "lane_losses": "counter", "dials": "counter", "protocol_errors": "counter",
    "faults": "counter", "paused": "gauge", "draining": "gauge",
}  # fmt: skip


def fetch(coalesce: Coalesce, path: str, accept: str = "*/*") -> tuple[str, str]:
    """The content type, and the text."""
    found = re.search(r"admin on (http://\S+)", coalesce.stderr)
    assert found, coalesce.stderr
    request = urllib.request.Request(found[1] + path, headers={"Accept": accept})  # noqa: S310 (ours)
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        return answer.headers["content-type"], answer.read().decode()


def status(coalesce: Coalesce) -> dict:
    return json.loads(fetch(coalesce, "/status")[1])


def reset(wire: Wire) -> None:
    """Leaves for good: a FIN alone might be of one that still reads."""
    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.close()


@pytest.fixture(scope="session", params=[NEWEST], ids=str)
def executable(request: pytest.FixtureRequest) -> Executable:
    """It is coalesce that counts, whichever server it is."""
    return request.param


@pytest.fixture
def coalesce(fresh_upstream: RedisServer) -> Iterator[Coalesce]:
    with running_coalesce(fresh_upstream.url, *ADMIN, "--max-clients", "3", "--upstream-wait", "0.5") as coalesce:
        yield coalesce


def test_names_and_types(coalesce: Coalesce) -> None:
    """In both forms, as the parsers of Prometheus's own library read them."""
    content_type, text = fetch(coalesce, "/metrics", OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    ours = {family.name: family.type for family in read_openmetrics(text) if family.name.startswith("coalesce_")}
    assert ours == {f"coalesce_{name}": kind for name, kind in TYPES.items()}
    content_type, text = fetch(coalesce, "/metrics")
    assert content_type.startswith("text/plain")
    families = {family.name for family in read_text(text)}
    assert {f"coalesce_{name}" for name in TYPES} <= families


def test_whatever_version_of_a_form_is_asked_for(coalesce: Coalesce) -> None:
    """It is answered in one that there is, and no fault of ours."""
    for version in ("2", "x", "1..0", '"1.0.0"', "9" * 5000, "9.9.9; escaping=x"):
        content_type, _ = fetch(coalesce, "/metrics", f"application/openmetrics-text; version={version}")
        assert content_type == OPENMETRICS + "; charset=utf-8"
        content_type, _ = fetch(coalesce, "/metrics", f"text/plain; version={version}")
        assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert metrics(coalesce)["faults_total"] == 0


def test_the_process_as_prometheus_has_it(coalesce: Coalesce) -> None:
    """The same, by the same names, as its own library finds, which lists the descriptors."""
    oracle = ProcessCollector(pid=lambda: coalesce.pid, registry=None)

    def theirs() -> dict[str, float]:
        return {sample.name: sample.value for family in oracle.collect() for sample in family.samples}

    def ours() -> dict[str, float]:
        return {name: value for name, value in metrics(coalesce).items() if name.startswith("process_")}

    counted = Path("/proc/self/fd").stat().st_size > 0  # by this kernel
    with coalesce.connect() as first:
        assert first.ask("PING") == b"+PONG\r\n"
        wanted = theirs()
        found = ours()
        if counted:
            with coalesce.connect() as one, coalesce.connect() as other:
                assert one.ask("PING") == other.ask("PING") == b"+PONG\r\n"
                # One more is the connection of whoever asks, unless it is still there when the others are counted.
                eventually(lambda: ours()["process_open_fds"] == theirs()["process_open_fds"] + 1)
                with_both = theirs()["process_open_fds"]
            eventually(lambda: ours()["process_open_fds"] <= with_both + 1 - 2)
        else:
            del wanted["process_open_fds"]
    assert found.keys() == wanted.keys()
    for name in ("process_start_time_seconds", "process_max_fds"):
        assert found[name] == pytest.approx(wanted[name])
    for name in ("process_virtual_memory_bytes", "process_resident_memory_bytes"):
        assert found[name] == pytest.approx(wanted[name], rel=0.2)
    assert 0 < wanted["process_cpu_seconds_total"] <= found["process_cpu_seconds_total"] + 0.001


def test_commands_and_batches(coalesce: Coalesce) -> None:
    with coalesce.connect() as wire:
        for _ in range(3):
            wire.ask("SET", "k", "v")
        wire.send(pack("GET", "k") * 5)
        assert wire.replies(5) == [b"$1\r\nv\r\n"] * 5
        found = metrics(coalesce)
        assert found["commands_total shared delivered"] == 8
        assert (found["batch_commands_count"], found["batch_commands_sum"]) == (4, 8)
        assert found["batch_commands_bucket 1.0"] == 3
        assert found["batch_commands_bucket 8.0"] == 4
        assert found["upstream_round_trip_seconds_count"] == found["queue_wait_seconds_count"] == 4
        assert found["upstream_sent_bytes_total"] == len(pack("SET", "k", "v") * 3 + pack("GET", "k") * 5)
        assert found["upstream_received_bytes_total"] == len(b"+OK\r\n" * 3 + b"$1\r\nv\r\n" * 5)
        assert found["clients shared"] == found["clients_accepted_total"] == 1
        said = status(coalesce)
        assert (said["totals"]["commands"], said["totals"]["batches"], said["totals"]["round_trips_saved"]) == (8, 4, 4)
        (lane,) = said["lanes"]
        assert (lane["lane"], lane["state"], lane["commands"], lane["mean_batch"]) == ("u0", "ready", 8, 2.0)


def test_the_commands_of_a_client_that_leaves_are_swallowed(coalesce: Coalesce, fresh_upstream: RedisServer) -> None:
    with fresh_upstream.connect() as operator, coalesce.connect() as leaves, coalesce.connect() as stays:
        operator.ask("CLIENT", "PAUSE", "60000", "WRITE")
        leaves.send(pack("SET", "k", "v") * 2)
        eventually(lambda: metrics(coalesce)["requests_in_flight"] == 2)
        reset(leaves)
        eventually(lambda: metrics(coalesce)["clients shared"] == 1)
        assert metrics(coalesce)["commands_total shared swallowed"] == 0
        operator.ask("CLIENT", "UNPAUSE")
        assert stays.ask("GET", "k") == b"$1\r\nv\r\n"
        found = metrics(coalesce)
        assert (found["commands_total shared swallowed"], found["commands_total shared delivered"]) == (2, 1)


def test_an_upstream_that_dies(coalesce: Coalesce, fresh_upstream: RedisServer) -> None:
    """In flight: failed, and the client is closed. Later: refused, when it has waited for long enough."""
    with fresh_upstream.connect() as operator, coalesce.connect() as busy, coalesce.connect() as later:
        operator.ask("CLIENT", "PAUSE", "60000", "WRITE")
        busy.send(pack("SET", "k", "v") * 3)
        eventually(lambda: metrics(coalesce)["requests_in_flight"] == 3)
        fresh_upstream.kill()
        assert busy.rest() == b""
        assert later.ask("GET", "k").startswith(b"-ERR coalesce: upstream unavailable")
        found = metrics(coalesce)
        assert found["commands_total shared failed"] == 3
        assert found["commands_total shared refused"] == 1
        assert found["clients_closed_total lost_upstream"] == 1
        assert found["lane_losses_total closed"] + found["lane_losses_total reset"] == 1
        assert found["lanes shared failing"] == 1
        assert found["dials_total failed"] > 0
        assert status(coalesce)["lanes"][0]["why"] == "Connection refused"


def test_a_move_that_the_upstream_refuses(coalesce: Coalesce) -> None:
    """It was asked in a handshake, and so never sent as a command."""
    with coalesce.connect() as wire:
        assert wire.ask("SELECT", "99") == b"-ERR DB index is out of range\r\n"
        found = metrics(coalesce)
        assert (found["commands_total shared refused"], found["dials_total refused"]) == (1, 1)
        assert found["commands_total shared delivered"] == found["protocol_errors_total client"] == 0


def test_leases(coalesce: Coalesce) -> None:
    with coalesce.connect() as blocks, coalesce.connect() as listens, coalesce.connect() as pinned:
        blocks.send(pack("BLPOP", "q", "0"))
        assert listens.ask("WATCH", "k") == b"+OK\r\n"
        pinned.ask("CLIENT", "ID")
        found = metrics(coalesce)
        assert (found["clients leased"], found["clients pinned"], found["clients shared"]) == (2, 1, 0)
        assert (found["leases lent"], found["leases pinned"], found["leases idle"]) == (2, 1, 0)
        assert found["commands_total leased delivered"] == 1
        assert listens.ask("UNWATCH") == b"+OK\r\n"
        found = metrics(coalesce)
        assert (found["clients leased"], found["clients shared"], found["leases idle"]) == (1, 1, 1)
        blocks.close()
        eventually(lambda: metrics(coalesce)["commands_total leased swallowed"] == 1)
        assert found["commands_total leased failed"] == 0
        assert found["dials_total connected"] == 2 + 3  # at the start, and of the lane


def test_who_is_one_too_many_and_who_speaks_no_resp(coalesce: Coalesce) -> None:
    with coalesce.connect() as one, coalesce.connect() as other, coalesce.connect() as third:
        for wire in (one, other, third):
            wire.ask("PING")
        with coalesce.connect() as refused:
            assert refused.rest() == b"-ERR max number of clients reached\r\n"
        one.send(b"*1\r\n:5\r\n")
        assert one.rest().startswith(b"-ERR Protocol error")
        found = metrics(coalesce)
        assert (found["clients_accepted_total"], found["clients_refused_total"]) == (3, 1)
        assert (found["protocol_errors_total client"], found["protocol_errors_total upstream"]) == (1, 0)


def test_a_history_is_kept(coalesce: Coalesce) -> None:
    with coalesce.connect() as wire:
        def busy_second() -> list[float] | None:
            wire.send(pack("GET", "k") * 4)
            wire.replies(4)
            history = status(coalesce)["history"]
            rows = [dict(zip(history["columns"], row, strict=True)) for row in history["samples"]]
            return next((row for row in rows if row["commands_per_second"] and row["mean_batch"] == 4), None)

        row = eventually(busy_second)
        assert row["clients"] == row["lanes"] == 1
        assert row["round_trip_p50_us"] > 0
        assert row["round_trips_saved_per_second"] == pytest.approx(row["commands_per_second"] * 0.75, abs=0.1)


def test_a_start_that_fails_is_said_in_one_line() -> None:
    """Also while there is somebody to be asked over HTTP."""
    code, said = run_to_exit("--upstream", f"127.0.0.1:{free_port()}", *ADMIN)
    assert code == 1
    assert said.rstrip().rpartition("\n")[2].startswith("coalesce: can't reach upstream")
    assert "Traceback" not in said


def test_no_secret_and_nothing_of_a_client_is_told(fresh_upstream: RedisServer) -> None:
    with fresh_upstream.connect() as operator:
        operator.ask("ACL", "SETUSER", "ourname", "on", ">ourpassword", "~*", "&*", "+@all")
        operator.ask("ACL", "SETUSER", "theirname", "on", ">theirpassword", "~*", "&*", "+@all")
    url = f"redis://ourname:ourpassword@{fresh_upstream.url}/2"
    with running_coalesce(url, *ADMIN) as coalesce, coalesce.connect() as wire:
        assert wire.ask("AUTH", "theirname", "theirpassword") == b"+OK\r\n"
        assert wire.ask("CLIENT", "SETNAME", "theirclient") == b"+OK\r\n"
        assert wire.ask("SET", "theirkey", "theirvalue") == b"+OK\r\n"
        wire.ask("AUTH", "theirname", "wrongpassword")
        text, said = fetch(coalesce, "/metrics")[1], fetch(coalesce, "/status")[1]
        for word in ("password", "their", "ourname", fresh_upstream.url):
            assert word not in text
        for word in ("ourpassword", "theirpassword", "wrongpassword", "theirkey", "theirvalue", "theirclient"):
            assert word not in said
        assert status(coalesce)["settings"]["upstream"] == f"redis://ourname@{fresh_upstream.url}/2"
        assert {lane["user"] for lane in status(coalesce)["lanes"]} == {"ourname", "theirname"}
