"""HTTP for operators: probes, doors, and clients of it that behave badly."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import time
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import TYPE_CHECKING

import pytest

from .admin import ADMIN, admin_address, ask, post
from .processes import DEADLINE, eventually, free_port, running_coalesce
from .reliability import namespaces
from .reliability.faults import last, no_descriptors
from .versions import NEWEST
from .wire import Wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .processes import Coalesce

GET = b"GET /liveness HTTP/1.1\r\nHost: localhost\r\n\r\n"
PROBES = ("/startup", "/readiness", "/liveness")


@pytest.fixture(scope="session", params=[NEWEST], ids=str)
def executable(request):
    """It is coalesce's to answer, whichever server it is."""
    return request.param


@pytest.fixture(scope="module")
def module_coalesce(module_upstream) -> Iterator[Coalesce]:
    with running_coalesce(module_upstream.url, *ADMIN) as coalesce:
        yield coalesce
        assert coalesce.stop()[0] == 0


@pytest.fixture
def own_coalesce(upstream) -> Iterator[Coalesce]:
    """For one that the test ends."""
    with running_coalesce(upstream.url, *ADMIN) as coalesce:
        yield coalesce


# --- probes ---


@pytest.mark.parametrize("path", PROBES)
def test_a_probe(coalesce, path):
    answer = ask(coalesce, path)
    assert answer.status == 200
    assert answer.body.endswith(b"\n")
    assert answer.headers["cache-control"] == "no-store"
    head = ask(coalesce, path, "HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(answer.body))
    refused = post(coalesce, path)
    assert (refused.status, refused.headers["allow"]) == (405, "GET")


@pytest.mark.parametrize("path", ["/quitquitquit", "/pause", "/resume"])
def test_what_changes_something_is_no_get(coalesce, path):
    for method in ("GET", "HEAD", "PUT"):
        refused = ask(coalesce, path, method)
        assert (refused.status, refused.headers["allow"]) == (405, "POST")
    with coalesce.connect() as client:
        assert client.ask("PING") == b"+PONG\r\n"


def test_readme_tells_of_each_endpoint(coalesce):
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `(GET|POST) (/[a-z]*)[^`]*` \|", readme, re.MULTILINE)
    there_are = ask(coalesce, "/nothing").body.decode()
    assert sorted(path for _, path in told if path != "/") == sorted(re.findall(r"/[a-z]+", there_are))
    for method, path in told:
        other = {"GET": "POST", "POST": "GET"}[method]
        assert ask(coalesce, path, other).status == 405


@pytest.mark.parametrize("path", ["/nothing", "/readiness/", "//readiness", "/%00", "/READINESS", "*"])
def test_there_is_no_such_page(coalesce, path):
    said = ask(coalesce, path)
    assert said.status == 404
    assert b"/readiness, /liveness, /metrics" in said.body


def test_readiness_while_draining(fresh_upstream):
    with (
        running_coalesce(fresh_upstream.url, *ADMIN) as coalesce,
        coalesce.connect() as client,
        fresh_upstream.connect() as control,
    ):
        assert control.ask("CONFIG", "SET", "lua-time-limit", "10") == b"+OK\r\n"
        client.send(b"EVAL 'while true do end' 0\r\n")
        eventually(lambda: control.ask("PING").startswith(b"-BUSY"))
        assert ask(coalesce, "/readiness").status == 200
        coalesce.signal()
        eventually(lambda: ask(coalesce, "/readiness").status == 503)
        assert ask(coalesce, "/readiness").body == b"draining\n"
        assert ask(coalesce, "/liveness").status == 200
        assert ask(coalesce, "/startup").status == 200
        coalesce.signal()


def test_the_upstream_counts_for_readiness_alone_and_if_that_is_wanted(fresh_upstream):
    with (
        running_coalesce(fresh_upstream.url, *ADMIN, "--readiness-upstream") as strict,
        running_coalesce(fresh_upstream.url, *ADMIN) as usual,
    ):
        eventually(lambda: ask(strict, "/readiness").status == 200)
        fresh_upstream.kill()
        eventually(lambda: ask(strict, "/readiness").status == 503)
        assert ask(strict, "/readiness").body.startswith(b"no connection to the upstream")
        for each in (strict, usual):
            assert ask(each, "/liveness").status == ask(each, "/startup").status == 200
        assert ask(usual, "/readiness").status == 200
        fresh_upstream.start()
        eventually(lambda: ask(strict, "/readiness").status == 200)


def test_quitquitquit(own_coalesce):
    assert post(own_coalesce, "/quitquitquit").body == b"draining\n"
    assert own_coalesce.wait()[0] == 0


# --- doors ---


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000"},
        {"Host": "evil.example:9380"},
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example:9380"},
        {"Host": "localhost.evil.example"},
        {"Host": "10.0.0.1:9380"},
        {"Host": "0.0.0.0:9380"},
        {"Host": "[::]:9380"},
        {"Host": "[::1"},
        {"Host": ""},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"X-Forwarded-For": "10.0.0.1"},
        {"Forwarded": "for=10.0.0.1"},
        {"Via": "1.1 a-proxy"},
    ],
    ids=str,
)
def test_a_foreign_page_or_who_comes_through_a_proxy_changes_nothing(coalesce, headers):
    assert ask(coalesce, "/quitquitquit", "POST", headers).status == 403
    assert ask(coalesce, "/readiness", headers=headers).status == 200  # it does not even drain


def test_a_header_said_twice_opens_no_door(coalesce):
    host, port = admin_address(coalesce)
    for name, one, other in (("Origin", "http://evil.example", f"http://{host}:{port}"),
                             ("Sec-Fetch-Site", "cross-site", "none")):  # fmt: skip
        lines = ["POST /quitquitquit HTTP/1.1", f"Host: {host}:{port}", f"{name}: {one}", f"{name}: {other}", "", ""]
        with Wire((host, port)) as wire:
            wire.send("\r\n".join(lines).encode())
            assert wire.socket.recv(1000).startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Host": "localhost"},
        {"Host": "LocalHost:9380"},
        {"Host": "127.0.0.1"},
        {"Host": "127.1.2.3:1"},
        {"Host": "[::1]"},
        {"Host": "[::1]:9380"},
        {"Host": "[::ffff:127.0.0.1]:9380"},
        {"Host": "localhost:9380", "Origin": "http://localhost:9380", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
    ],
    ids=str,
)
def test_who_is_here_may(coalesce, headers):
    assert ask(coalesce, "/resume", "POST", headers).status == 200


@pytest.mark.parametrize("path", ["/", "/status", "/page.js", "/page.css"])
def test_a_page_that_leads_its_name_here_does_not_look(coalesce, path):
    assert ask(coalesce, path).status == 200
    names = ("evil.example", "evil.example:9380", "127.0.0.1.evil.example", "localhost.evil.example", "1", "a_b", "")
    for host in names:
        assert ask(coalesce, path, headers={"Host": host}).status == 403, host
    for host in ("localhost", "localhost:9380", "127.0.0.1:9380", "10.1.2.3:9380", "[::1]:9380", "[fe80::1]"):
        assert ask(coalesce, path, headers={"Host": host}).status == 200, host


@pytest.mark.parametrize("path", [*PROBES, "/metrics"])
def test_machines_ask_by_any_name(coalesce, path):
    assert ask(coalesce, path, headers={"Host": "coalesce.a-namespace.svc:9380"}).status == 200


@pytest.mark.skipif(bool(namespaces.impossible()), reason=namespaces.impossible() or "they work")
def test_another_host_may_look_and_change_nothing(fresh_upstream):
    with (
        namespaces.network() as network,
        running_coalesce(fresh_upstream.url, "--admin", f"{network.here}:0") as coalesce,
    ):
        may = [("POST", "/quitquitquit", 403), ("POST", "/pause", 403), ("GET", "/readiness", 200)]
        for method, path, status in may:
            with network.connect(admin_address(coalesce)) as wire:
                wire.send(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
                assert wire.rest().startswith(b"HTTP/1.1 %d " % status)
        # This host by that address is not told from others: it is by loopback that one is here.
        assert post(coalesce, "/resume").status == 403
        with coalesce.connect() as client:
            assert client.ask("PING") == b"+PONG\r\n"


# --- how it starts ---


def test_a_busy_port_is_one_line(upstream, run_to_exit):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        code, said = run_to_exit(
            "--upstream", upstream.url, "--listen", "127.0.0.1:0", "--admin", f"127.0.0.1:{port}"
        )
    why = "Address already in use; a second coalesce on a host wants another port, or --admin off"
    assert (code, said) == (1, f"coalesce: can't listen on 127.0.0.1:{port} (--admin): {why}\n")


def test_what_else_keeps_it_from_starting_is_still_one_line(run_to_exit):
    code, said = run_to_exit("--upstream", f"127.0.0.1:{free_port()}", "--listen", "127.0.0.1:0", *ADMIN)
    assert code == 1
    assert said.splitlines()[-1].startswith("coalesce: can't reach upstream ")
    assert "Traceback" not in said


# --- clients of it that behave badly ---


def wires(coalesce: Coalesce, count: int, stack: contextlib.ExitStack) -> list[Wire]:
    return [stack.enter_context(Wire(admin_address(coalesce), receive_buffer=1024)) for _ in range(count)]


def go_on_saying(wire: Wire, what: bytes) -> None:
    """Until the other side takes no more, or closes."""
    wire.socket.settimeout(0.2)
    with contextlib.suppress(TimeoutError, ConnectionError):
        for _ in range(20_000):
            wire.send(what)


def descriptors(coalesce: Coalesce) -> int:
    return len(list(Path(f"/proc/{coalesce.pid}/fd").iterdir()))


def test_who_never_reads_holds_up_neither_clients_nor_the_end(own_coalesce):
    coalesce = own_coalesce
    with contextlib.ExitStack() as stack:
        for wire in wires(coalesce, 3, stack):
            go_on_saying(wire, GET * 100)
        with coalesce.connect() as client:
            assert client.ask("PING") == b"+PONG\r\n"
        assert ask(coalesce, "/liveness").status == 200
        for wire in wires(coalesce, 1, stack):  # just before: the kernel has not given it up
            go_on_saying(wire, GET * 100)
        began = time.monotonic()
        code, stderr = coalesce.stop()
        assert code == 0, stderr
        assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    "said",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"*1\r\n$4\r\nPING\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nA: " + b"a" * 1_000_000 + b"\r\n\r\n",
        b"GET " + b"/" * 1_000_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"A%d: b\r\n" % number for number in range(100_000)) + b"\r\n",
        b"POST /resume HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999999\r\n\r\n" + bytes(1_000_000),
        b"POST /resume HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /resume HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST /resume HTTP/1.1\r\nTransfer-Encoding: chunked\r\nHost: localhost\r\n\r\nzz\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(1000),
        (b"GET /liveness HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        b"HTTP2-Settings: ????\r\n\r\n"),
        (b"GET /liveness HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"),
        b"GET /\xff\xfe HTTP/1.1\r\nHost: \xff\r\n\r\n",
    ],
    ids=lambda said: repr(said[:30]),
)
def test_garbage_is_nobody_elses_affair(coalesce, said):
    with Wire(admin_address(coalesce)) as wire:
        go_on_saying(wire, said) if len(said) < 1000 else wire.send_unless_closed(said)
        with coalesce.connect() as client:
            assert client.ask("PING") == b"+PONG\r\n"
        assert ask(coalesce, "/liveness").status == 200


def test_many_connections_keep_nobody_out(own_coalesce):
    coalesce = own_coalesce
    with contextlib.ExitStack() as stack, coalesce.connect() as client:
        assert client.ask("PING") == b"+PONG\r\n"  # it has been accepted
        before = descriptors(coalesce)
        idle = wires(coalesce, 60, stack)
        dribbling = wires(coalesce, 40, stack)
        for wire in dribbling:
            wire.send_unless_closed(GET[:10])
        assert ask(coalesce, "/liveness").status == 200
        assert client.ask("PING") == b"+PONG\r\n"
        assert descriptors(coalesce) <= before + 33
        assert idle[0].rest() == b""
        began = time.monotonic()
        assert coalesce.stop()[0] == 0
        assert time.monotonic() - began < 3


def test_a_flood_of_requests_is_answered_at_a_pace(own_coalesce):
    """Each takes the time of clients. Without a pace, all of these are answered within the second."""
    coalesce = own_coalesce
    with contextlib.ExitStack() as stack:
        flood = [stack.enter_context(Wire(admin_address(coalesce))) for _ in range(8)]
        for wire in flood:
            wire.send(GET * 50)
        last(1.0)
        answered = 0
        for wire in flood:
            wire.socket.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                answered += wire.socket.recv(1_000_000).count(b"HTTP/1.1 200")
        assert 20 < answered < 150
        assert ask(coalesce, "/liveness").status == 200  # who comes now does not wait for all of them


def test_who_waits_to_be_accepted_is_not_one_of_thousands(own_coalesce):
    """A probe would come after all of them, when whoever opened them has gone."""
    coalesce = own_coalesce
    with contextlib.ExitStack() as stack:
        coalesce.signal(SIGSTOP)
        stack.callback(coalesce.signal, SIGCONT)
        waiting = select.poll()
        for _ in range(300):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(admin_address(coalesce))
            waiting.register(sock, select.POLLOUT)
        last(0.3)
        assert 1 < len(waiting.poll(0)) < 150


@pytest.mark.parametrize(
    "said",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]),
        (b"GET /liveness HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n"
         b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"),
    ],
    ids=["as if it was known", "asked for"],
)  # fmt: skip
def test_it_speaks_no_http_2(coalesce, said):
    """In which each connection has a hundred requests at a time."""
    with Wire(admin_address(coalesce)) as wire:
        wire.send(said)
        assert re.match(rb"HTTP/1\.1 [24]", wire.socket.recv(1000))


def test_who_dribbles_is_closed(coalesce):
    """A header that never ends, a byte at a time: hypercorn's patience is 5 s for all of it."""
    with Wire(admin_address(coalesce)) as wire:
        until = time.monotonic() + DEADLINE
        with contextlib.suppress(ConnectionError):
            for byte in GET[:20] + b"a" * 10_000:
                wire.send(bytes([byte]))
                wire.socket.settimeout(0.1)
                with contextlib.suppress(TimeoutError):
                    if not wire.socket.recv(1000):
                        break
                assert time.monotonic() < until


def test_without_descriptors_nothing_is_said_twice(own_coalesce):
    coalesce = own_coalesce
    with coalesce.connect() as client, contextlib.ExitStack() as stack:
        assert client.ask("PING") == b"+PONG\r\n"
        with no_descriptors(coalesce.pid):
            wires(coalesce, 3, stack)
            last(0.5)
            assert client.ask("PING") == b"+PONG\r\n"
        assert ask(coalesce, "/liveness").status == 200
        assert not re.search("accept returned|retrying", coalesce.stderr)
