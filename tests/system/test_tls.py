"""TLS on either side of coalesce, and on both: what travels through it, who is refused, and files that change.

It takes a server that was built with TLS; those that come with packages are not.
"""

from __future__ import annotations

import contextlib
import functools
import re
import socket
import ssl
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from .certificates import Authority
from .processes import (
    DEADLINE,
    Coalesce,
    RedisServer,
    closing_line,
    eventually,
    executables,
    free_port,
    running_coalesce,
    running_server,
)
from .wire import TlsWire, Wire, bulk, pack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .certificates import Pair
    from .processes import Executable

PONG = b"+PONG\r\n"
OK = b"+OK\r\n"


@functools.cache
def has_tls(executable: Executable) -> bool:
    """One that has it misses its certificate; others do not know the flag, or lack the part for it."""
    command = [executable.path, "--port", "0", "--tls-port", str(free_port())]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    return "tls-cert-file" in ended.stdout + ended.stderr


@pytest.fixture(scope="session", params=[found for found in executables() if has_tls(found)], ids=str)
def executable(request: pytest.FixtureRequest) -> Executable:
    return request.param


@pytest.mark.parametrize("found", executables(), ids=str)
def test_who_takes_part(found):
    if not has_tls(found):
        pytest.skip(f"{found} was built without TLS")


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="session")
def authority(directory: Path) -> Authority:
    return Authority(directory, "ours")


@pytest.fixture(scope="session")
def other_authority(directory: Path) -> Authority:
    return Authority(directory, "theirs")


@dataclass
class TlsServer:
    """A server with a plain port and one for TLS."""

    server: RedisServer
    port: int

    @property
    def url(self) -> str:
        return f"rediss://127.0.0.1:{self.port}"


@contextlib.contextmanager
def tls_server(
    executable: Executable, own: Pair, authority: Authority, *, clients_need_one: bool = False
) -> Iterator[TlsServer]:
    port = free_port()
    flags = ["--tls-port", str(port), "--tls-cert-file", str(own.certificate), "--tls-key-file", str(own.key)]
    flags += ["--tls-ca-cert-file", str(authority.file), "--tls-auth-clients", "yes" if clients_need_one else "no"]
    with running_server(executable, *flags) as server:
        yield TlsServer(server, port)


def to_upstream(authority: Authority, own: Pair | None = None) -> list[str]:
    flags = ["--upstream-ca", str(authority.file)]
    return flags + (["--upstream-cert", str(own.certificate), "--upstream-key", str(own.key)] if own else [])


def of_listeners(own: Pair, clients: Authority | None = None) -> list[str]:
    flags = ["--tls-cert", str(own.certificate), "--tls-key", str(own.key)]
    return flags + (["--tls-client-ca", str(clients.file)] if clients else [])


@pytest.fixture(scope="module")
def upstream(executable: Executable, authority: Authority) -> Iterator[TlsServer]:
    with tls_server(executable, authority.issue(), authority) as server:
        yield server


@pytest.fixture(scope="module")
def strict_upstream(executable: Executable, authority: Authority) -> Iterator[TlsServer]:
    """It demands a certificate of its clients."""
    with tls_server(executable, authority.issue(), authority, clients_need_one=True) as server:
        yield server


@dataclass
class Way:
    """A coalesce, where it leads to, and how to come in."""

    coalesce: Coalesce
    server: RedisServer
    connect: Callable[[], Wire]
    redis_py: dict[str, object]  # its arguments


@pytest.fixture(scope="module", params=["plain to TLS", "TLS to plain", "TLS to TLS", "mutual TLS on both sides"])
def module_way(
    request: pytest.FixtureRequest, upstream: TlsServer, strict_upstream: TlsServer, authority: Authority
) -> Iterator[Way]:
    own, clients_own = authority.issue(), authority.issue()
    server, flags, context = {
        "plain to TLS": (upstream, to_upstream(authority), None),
        "TLS to plain": (upstream, of_listeners(own), authority.trusting()),
        "TLS to TLS": (upstream, to_upstream(authority) + of_listeners(own), authority.trusting()),
        "mutual TLS on both sides": (
            strict_upstream,
            to_upstream(authority, authority.issue()) + of_listeners(own, authority),
            authority.trusting(clients_own),
        ),
    }[request.param]
    files = {"ca_certs": authority.file, "certfile": clients_own.certificate, "keyfile": clients_own.key}
    redis_py = {"ssl": True} | {f"ssl_{name}": str(file) for name, file in files.items()} if context else {}
    url = server.server.url if request.param == "TLS to plain" else server.url
    with running_coalesce(url, *flags) as coalesce:

        def connect() -> Wire:
            return coalesce.connect() if context is None else TlsWire(coalesce.address, context)

        yield Way(coalesce, server.server, connect, redis_py)
        code, stderr = coalesce.stop()
        assert code == 0, stderr


@pytest.fixture
def way(module_way: Way) -> Way:
    with module_way.server.connect() as control:
        assert control.ask("FLUSHALL") == OK
    return module_way


# What travels through it


def echo_by_many(connect: Callable[[], Wire]) -> int:
    """Fifty clients, all of whom have something in flight at a time. How many requests it was."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect()) for _ in range(50)]
        for turn in range(20):
            for number, client in enumerate(clients):
                client.send(pack("ECHO", f"{number}-{turn}"))
            for number, client in enumerate(clients):
                assert client.reply() == bulk(f"{number}-{turn}")
    return 50 * 20


def test_commands(way):
    echo_by_many(way.connect)


def test_clients_with_tls_share_a_lane(upstream, authority):
    """As those without: what they have in flight at a time travels in batches, on one connection."""
    flags = to_upstream(authority) + of_listeners(authority.issue())
    context = authority.trusting()
    with running_coalesce(upstream.url, *flags) as coalesce:
        requests = echo_by_many(lambda: TlsWire(coalesce.address, context))
        code, stderr = coalesce.stop()
    line = closing_line(stderr)
    assert (code, line.commands, line.connections) == (0, requests, 50)
    assert (line.lanes, line.leases, line.leased_commands) == (1, 0, 0)
    assert line.batches < line.commands
    assert line.mean > 1


def test_large_values(way):
    """Longer than what TLS, sockets and the kernel take at a time, and of lengths around that of a record."""
    with way.connect() as client, way.connect() as other:
        for size in (10 << 20, *range(16_300, 16_400, 7), 1 << 14, 1 << 16, (1 << 18) + 1):
            value = (b"0123456789abcdef" * (size // 16 + 1))[:size]
            assert client.ask("SET", "large", value) == OK
            assert other.ask("GET", "large") == bulk(value)


def test_a_long_pipeline(way):
    with way.connect() as client:
        client.send(b"".join(pack("ECHO", number) for number in range(10_000)))
        assert client.replies(10_000) == [bulk(str(number)) for number in range(10_000)]


def test_long_pipelines_of_several_clients_that_read_last(way):
    """Their replies do not fit into the sockets: what is kept for them goes out in the order it came."""
    value = "x" * 2000
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(way.connect()) for _ in range(5)]
        assert clients[0].ask("SET", "k", value) == OK
        for number, client in enumerate(clients):
            client.send((pack("GET", "k") + pack("ECHO", number)) * 5_000)
        for number, client in enumerate(clients):
            assert client.replies(10_000) == [bulk(value), bulk(str(number))] * 5_000


def test_a_pipeline_of_large_requests(way):
    """The upstream does not take them as fast as they come."""
    value = b"v" * 100_000
    with way.connect() as client, way.connect() as other:
        client.send(b"".join(pack("SET", number, value) + pack("GET", number) for number in range(200)))
        assert other.ask("PING") == PONG
        assert client.replies(400) == [OK, bulk(value)] * 200


def test_a_transaction(way):
    with way.connect() as client:
        assert client.ask("WATCH", "k") == OK
        assert client.ask("MULTI") == OK
        assert client.ask("INCR", "k") == b"+QUEUED\r\n"
        assert client.ask("EXEC") == b"*1\r\n:1\r\n"


def test_a_blocked_client(way):
    with way.connect() as client, way.connect() as other:
        client.send(pack("BLPOP", "queue", 0))
        eventually(lambda: other.ask("CLIENT", "LIST").count(b"cmd=blpop"))
        assert other.ask("RPUSH", "queue", "element") == b":1\r\n"
        assert client.reply() == b"*2\r\n" + bulk("queue") + bulk("element")
        assert client.ask("PING") == PONG


def test_a_blocked_client_that_leaves_takes_no_element_along(way):
    with way.connect() as other:
        with way.connect() as client:
            client.send(pack("BLPOP", "queue", 0))
            eventually(lambda: b"cmd=blpop" in other.ask("CLIENT", "LIST"))
        eventually(lambda: b"cmd=blpop" not in other.ask("CLIENT", "LIST"))
        assert other.ask("RPUSH", "queue", "element") == b":1\r\n"
        assert other.ask("LPOP", "queue") == bulk("element")


def test_a_subscriber(way):
    with way.connect() as subscriber, way.connect() as publisher:
        assert subscriber.ask("SUBSCRIBE", "news") == b"*3\r\n" + bulk("subscribe") + bulk("news") + b":1\r\n"
        for number in range(100):
            assert publisher.ask("PUBLISH", "news", f"{number}" * 1000) == b":1\r\n"
        for number in range(100):
            assert subscriber.reply() == b"*3\r\n" + bulk("message") + bulk("news") + bulk(f"{number}" * 1000)


def test_a_monitor(way):
    """It keeps its connection for good."""
    with way.connect() as monitor, way.connect() as client:
        monitor.send(pack("MONITOR"))
        assert monitor.reply() == OK
        marks = [b"mark-%d" % number for number in range(1000)]
        client.send(b"".join(pack("ECHO", mark) for mark in marks))
        assert client.replies(1000) == [bulk(mark) for mark in marks]
        seen = iter(monitor.reply, None)
        for mark in marks:
            assert any(mark in line for line in seen)


def test_a_client_is_pinned_while_much_is_under_way(way):
    """Its sockets are handed over in the middle of a write, which goes on with the very same bytes."""
    value = b"v" * 300_000
    with way.connect() as client:
        assert client.ask("SET", "k", value) == OK
        client.send(pack("GET", "k") * 80 + pack("CLIENT", "REPLY", "ON") + pack("SET", "l", value) + pack("PING"))
        assert client.replies(83) == [bulk(value)] * 80 + [OK, OK, PONG]
        assert client.ask("GET", "l") == bulk(value)
        assert client.ask("SET", "k", value * 10) == OK
        assert client.ask("GET", "k") == bulk(value * 10)


@pytest.mark.parametrize("first", [[], [pack("CLIENT", "REPLY", "ON")]], ids=["shared", "pinned"])
def test_who_sends_no_more_is_answered(way, first):
    with way.connect() as client:
        client.send(b"".join(first) + b"".join(pack("ECHO", number) for number in range(100)))
        client.half_close()
        assert client.rest() == OK * len(first) + b"".join(bulk(str(number)) for number in range(100))


def test_redis_py(way):
    host, port = way.coalesce.address
    retry = Retry(NoBackoff(), 0)
    with redis.Redis(host, port, socket_timeout=DEADLINE, retry=retry, **way.redis_py) as client:
        assert client.set("k", "v")
        assert client.get("k") == b"v"
        with client.pipeline() as pipeline:
            for number in range(100):
                pipeline.rpush("list", number)
            pipeline.lrange("list", 0, -1)
            assert len(pipeline.execute()[-1]) == 100
        with client.pubsub() as subscriber:
            subscriber.subscribe("news")
            assert subscriber.get_message(timeout=DEADLINE)["type"] == "subscribe"
            client.publish("news", "hello")
            assert subscriber.get_message(timeout=DEADLINE)["data"] == b"hello"


def test_who_ends_with_a_close_notify_alone_is_answered(upstream, authority):
    """And is sent one in return."""
    with running_coalesce(upstream.server.url, *of_listeners(authority.issue())) as coalesce:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = authority.trusting().wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
        with socket.create_connection(coalesce.address, DEADLINE) as sock:

            def until_done(step: Callable[[], object]) -> object:
                while True:
                    try:
                        return step()
                    except ssl.SSLWantReadError:
                        sock.sendall(outgoing.read())
                        data = sock.recv(65536)
                        incoming.write(data) if data else incoming.write_eof()
                    finally:
                        sock.sendall(outgoing.read())

            until_done(tls.do_handshake)
            tls.write(pack("ECHO", "x" * 1000) * 100)
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.unwrap()
            received = b""
            with contextlib.suppress(ssl.SSLZeroReturnError):
                while True:
                    received += until_done(lambda: tls.read(65536))
    assert received == bulk("x" * 1000) * 100


def test_unix_sockets_stay_plain(upstream, authority):
    with (
        running_coalesce(upstream.server.url, *of_listeners(authority.issue())) as coalesce,
        Wire(coalesce.unix_path) as client,
    ):
        assert client.ask("PING") == PONG


def test_a_database_and_credentials_in_the_url(upstream, authority):
    with upstream.server.connect() as control:
        assert control.ask("ACL", "SETUSER", "ada", "on", ">pw", "~*", "+@all") == OK
    url = f"valkeys://ada:pw@127.0.0.1:{upstream.port}/3"
    with running_coalesce(url, *to_upstream(authority)) as coalesce, coalesce.connect() as client:
        assert client.ask("ACL", "WHOAMI") == bulk("ada")
        assert b" db=3 " in client.ask("CLIENT", "LIST")


# Who is refused


@pytest.fixture
def refused(run_to_exit) -> Callable[..., str]:
    """What coalesce says when it does not start."""

    def refused(url: str, *flags: str) -> str:
        code, stderr = run_to_exit("--listen", "127.0.0.1:0", *flags, COALESCE_UPSTREAM=url)
        assert code == 1, stderr
        assert len(stderr.splitlines()) == 1, stderr
        return stderr

    return refused


def test_an_upstream_of_an_unknown_authority(upstream, other_authority, refused):
    for flags in (to_upstream(other_authority), [], ["--start-timeout", "600"]):  # (it is nothing to wait for)
        assert "certificate can't be verified" in refused(upstream.url, *flags)


def test_an_upstream_by_another_name(executable, authority, refused):
    with tls_server(executable, authority.issue("redis.test"), authority) as server:
        assert "another name" in refused(server.url, *to_upstream(authority))
        assert "another name" in refused(server.url, *to_upstream(authority), "--upstream-sni", "elsewhere.test")
        for flags in ([*to_upstream(authority), "--upstream-sni", "redis.test"], ["--tls-insecure"]):
            with running_coalesce(server.url, *flags) as coalesce, coalesce.connect() as client:
                assert client.ask("PING") == PONG


def test_an_upstream_whose_certificate_has_expired(executable, authority, refused):
    with tls_server(executable, authority.issue(expired=True), authority) as server:
        assert "expired" in refused(server.url, *to_upstream(authority))


def test_an_upstream_that_wants_a_certificate(strict_upstream, authority, other_authority, refused):
    """The alert that says so may be overtaken by the reset that follows it."""
    for flags in (to_upstream(authority), to_upstream(authority, other_authority.issue())):
        assert re.search("TLS: .*(certificate required|unknown ca)|hung up|lost", refused(strict_upstream.url, *flags))


def test_plain_to_an_upstream_with_tls_and_the_other_way_round(upstream, authority, refused):
    refused(f"127.0.0.1:{upstream.port}")
    said = refused(f"rediss://{upstream.server.url}", *to_upstream(authority), "--connect-timeout", "1")
    assert "does it speak TLS" in said or "it does not speak TLS" in said


def is_refused(coalesce: Coalesce, context: ssl.SSLContext) -> bool:
    """With TLS 1.3 a client hears of it only after its own half of the handshake."""
    try:
        with TlsWire(coalesce.address, context) as client:
            client.ask("PING")
    except (OSError, EOFError):
        return True
    return False


def test_clients_without_a_certificate_that_counts(upstream, authority, other_authority):
    with running_coalesce(upstream.server.url, *of_listeners(authority.issue(), authority)) as coalesce:
        assert is_refused(coalesce, authority.trusting())
        assert is_refused(coalesce, authority.trusting(other_authority.issue()))
        assert is_refused(coalesce, authority.trusting(authority.issue(expired=True)))
        with TlsWire(coalesce.address, authority.trusting(authority.issue())) as client:
            assert client.ask("PING") == PONG
        failed = re.findall(r"TLS handshake with 127\.0\.0\.1:\d+ failed: (.*)", coalesce.stderr)
        assert len(failed) == 3
        assert failed[0] == "TLS: peer did not return a certificate"


def test_old_versions_of_tls_are_refused(upstream, authority):
    with running_coalesce(upstream.server.url, *of_listeners(authority.issue())) as coalesce:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = authority.trusting()
            context.minimum_version = context.maximum_version = version
            assert not is_refused(coalesce, context)
        old = authority.trusting()
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        assert is_refused(coalesce, old)


def test_a_plain_client_at_a_port_with_tls(upstream, authority):
    with running_coalesce(upstream.server.url, *of_listeners(authority.issue())) as coalesce:
        with coalesce.connect() as client:
            client.send_unless_closed(pack("PING"))
            assert not client.rest().startswith(b"+")
        with TlsWire(coalesce.address, authority.trusting()) as client:
            assert client.ask("PING") == PONG


def test_a_client_with_tls_at_a_plain_port(upstream, authority):
    with running_coalesce(upstream.server.url) as coalesce:
        context = authority.trusting()
        with coalesce.connect() as plain:
            plain.socket.settimeout(1)  # a ClientHello without a line end could be the beginning of a request
            with pytest.raises(OSError):  # noqa: PT011 (an alert, a reset or a timeout)
                context.wrap_socket(plain.socket, server_hostname="127.0.0.1")
        with coalesce.connect() as client:
            assert client.ask("PING") == PONG


def test_who_says_nothing_is_closed_and_holds_up_nobody(upstream, authority):
    flags = [*of_listeners(authority.issue()), "--max-clients", "20", "--connect-timeout", "1.5"]
    with running_coalesce(upstream.server.url, *flags) as coalesce, contextlib.ExitStack() as stack:
        context = authority.trusting()
        silent = [stack.enter_context(coalesce.connect()) for _ in range(9)]
        silent.append(stack.enter_context(coalesce.connect()))
        silent[-1].send(b"\x16\x03\x01")  # the beginning of a record
        clients = [stack.enter_context(TlsWire(coalesce.address, context)) for _ in range(10)]
        for client in clients:
            assert client.ask("PING") == PONG
        with coalesce.connect() as one_too_many:
            assert one_too_many.rest() == b""
        for one in silent:
            one.socket.settimeout(2 * DEADLINE)
            assert one.socket.recv(100) == b""
        clients += [stack.enter_context(TlsWire(coalesce.address, context)) for _ in range(10)]
        for client in clients:
            assert client.ask("PING") == PONG


def test_who_only_looks_whether_anybody_listens_is_no_line_in_the_log(upstream, authority):
    with running_coalesce(upstream.server.url, *of_listeners(authority.issue())) as coalesce:
        for _ in range(10):
            coalesce.connect().close()
        with TlsWire(coalesce.address, authority.trusting()) as client:
            assert client.ask("PING") == PONG
        code, stderr = coalesce.stop()
        assert code == 0
        assert "handshake" not in stderr


def test_a_drain_does_not_wait_for_handshakes(upstream, authority):
    with running_coalesce(upstream.server.url, *of_listeners(authority.issue())) as coalesce, coalesce.connect() as one:
        with TlsWire(coalesce.address, authority.trusting()) as client:
            assert client.ask("PING") == PONG
        code, stderr = coalesce.stop()
        assert code == 0, stderr
        assert one.rest() == b""


# Files that change


def test_the_certificate_of_a_listener_is_renewed(upstream, authority, other_authority):
    own = authority.issue()
    with running_coalesce(upstream.server.url, *of_listeners(own)) as coalesce:
        with TlsWire(coalesce.address, authority.trusting()) as early:
            first = early.certificate()
            other_authority.issue().copy_to(own)
            eventually(lambda: not is_refused(coalesce, other_authority.trusting()))
            assert is_refused(coalesce, authority.trusting())
            assert early.ask("PING") == PONG
        with TlsWire(coalesce.address, other_authority.trusting()) as late:
            assert late.certificate() != first


def test_a_certificate_that_is_half_written_changes_nothing(upstream, authority):
    own, fresh = authority.issue(), authority.issue()
    context = authority.trusting()

    def served() -> bytes:
        with TlsWire(coalesce.address, context) as client:
            assert client.ask("PING") == PONG
            return client.certificate()

    with running_coalesce(upstream.server.url, *of_listeners(own)) as coalesce:
        first = served()
        whole = fresh.certificate.read_bytes()
        own.certificate.write_bytes(whole[: len(whole) // 3])
        eventually(lambda: served() == first and "stays in use" in coalesce.stderr)
        own.certificate.write_bytes(whole)  # ... and the key is still that of the last
        eventually(lambda: served() == first and coalesce.stderr.count("stays in use") == 2)
        own.key.unlink()
        eventually(lambda: served() == first and coalesce.stderr.count("stays in use") == 3)
        own.key.write_bytes(fresh.key.read_bytes())
        eventually(lambda: served() != first)
        assert coalesce.stderr.count("stays in use") == 3


def test_a_certificate_of_ours_that_is_half_written_leaves_the_upstream_within_reach(executable, authority):
    own = authority.issue()
    whole = own.certificate.read_bytes()
    flags = ["--upstream-ca", str(authority.file), "--upstream-cert", str(own.certificate)]
    with (
        tls_server(executable, authority.issue(), authority, clients_need_one=True) as upstream,
        running_coalesce(upstream.url, *flags, "--upstream-key", str(own.key)) as coalesce,
        coalesce.connect() as client,
        upstream.server.connect() as control,
    ):
        assert client.ask("SET", "k", "v") == OK
        own.certificate.write_bytes(whole[: len(whole) // 3])
        control.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        eventually(lambda: "stays in use" in coalesce.stderr)
        assert client.ask("GET", "k") == bulk("v")


def test_authorities_of_clients_change(upstream, authority, other_authority, directory):
    trusted = directory / "trusted.pem"
    trusted.write_bytes(authority.file.read_bytes())
    flags = [*of_listeners(authority.issue()), "--tls-client-ca", str(trusted)]
    ours, theirs = authority.trusting(authority.issue()), authority.trusting(other_authority.issue())
    with running_coalesce(upstream.server.url, *flags) as coalesce:
        assert not is_refused(coalesce, ours)
        assert is_refused(coalesce, theirs)
        trusted.write_bytes(other_authority.file.read_bytes())
        eventually(lambda: not is_refused(coalesce, theirs))
        assert is_refused(coalesce, ours)


def test_the_upstream_gets_a_certificate_of_another_authority(executable, authority, other_authority, directory):
    """And wants one of it from us: both files of ours are replaced, and the next connection is made with them."""
    trusted = directory / "trusted-upstream.pem"
    trusted.write_bytes(authority.file.read_bytes())
    own, fresh = authority.issue(), other_authority.issue()
    flags = ["--upstream-ca", str(trusted), "--upstream-cert", str(own.certificate), "--upstream-key", str(own.key)]
    with (
        tls_server(executable, authority.issue(), authority, clients_need_one=True) as upstream,
        running_coalesce(upstream.url, *flags, "--upstream-wait", "30") as coalesce,
        coalesce.connect() as client,
        upstream.server.connect() as control,
    ):
        assert client.ask("SET", "k", "v") == OK
        settings = {
            "tls-cert-file": fresh.certificate, "tls-key-file": fresh.key, "tls-ca-cert-file": other_authority.file
        }  # fmt: skip
        words = [word for setting in settings.items() for word in map(str, setting)]
        assert control.ask("CONFIG", "SET", *words) == OK
        assert client.ask("GET", "k") == bulk("v")  # on the connection that there is
        control.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        eventually(lambda: "can't be verified" in coalesce.stderr)
        client.send(pack("GET", "k"))
        trusted.write_bytes(other_authority.file.read_bytes())
        other_authority.issue().copy_to(own)
        assert client.reply() == bulk("v")


def test_files_that_are_no_use_at_the_start(upstream, authority, directory, refused):
    own, other = authority.issue(), authority.issue()
    empty = directory / "empty.pem"
    empty.write_bytes(b"")
    for flags in (
        [*of_listeners(own)[:3], str(other.key)],
        ["--tls-cert", str(empty), "--tls-key", str(own.key)],
        ["--tls-cert", str(directory / "nobody.pem"), "--tls-key", str(own.key)],
        [*of_listeners(own), "--tls-client-ca", str(empty)],
        [*of_listeners(own), "--tls-client-ca", str(own.key)],
    ):
        assert flags[-1] in refused(upstream.server.url, *flags)
    assert "empty.pem" in refused(upstream.url, "--upstream-ca", str(empty))
    half = directory / "half.pem"
    half.write_bytes(authority.file.read_bytes()[:300])
    assert "half.pem" in refused(upstream.url, "--upstream-ca", str(half))


@pytest.mark.parametrize(
    "flags",
    [
        "--upstream 127.0.0.1:1 --upstream-ca file",
        "--upstream redis://127.0.0.1:1 --tls-insecure",
        "--upstream unix:///nowhere --upstream-sni name",
        "--upstream embedded --tls-insecure",
        "--upstream rediss://127.0.0.1:1 --upstream-cert file",
        "--upstream rediss://127.0.0.1:1 --upstream-key file",
        "--upstream rediss://127.0.0.1:1 --upstream-ca file --tls-insecure",
        "--upstream rediss://127.0.0.1:1 --upstream-sni .name",
        "--upstream rediss://127.0.0.1:1/letters",
        "--upstream 127.0.0.1:1 --tls-cert file",
        "--upstream 127.0.0.1:1 --tls-key file",
        "--upstream 127.0.0.1:1 --tls-client-ca file",
        "--upstream 127.0.0.1:1 --tls-cert file --tls-key file --listen unix:///nowhere",
    ],
)
def test_flags_that_make_no_sense_together(flags, run_to_exit):
    code, stderr = run_to_exit(*flags.split())
    assert code == 2, stderr
    assert len(stderr.splitlines()) == 1, stderr


# What `coalesce check` finds


def test_check_says_what_the_upstreams_certificate_is(executable, authority, ask):
    own = authority.issue("127.0.0.1", "redis.example")
    with tls_server(executable, own, authority) as server:
        said = ask("check", "--upstream", server.url, *to_upstream(authority))
        assert (said.code, said.stderr) == (0, ""), said
        assert re.search(r"^TLS +TLSv1\.[23]  \(\w+", said.stdout, re.MULTILINE)
        assert re.search(r"^certificate +\S+.*$", said.stdout, re.MULTILINE)
        ends = " ".join(ssl._ssl._test_decode_cert(str(own.certificate))["notAfter"].split())
        assert re.search(rf"^expires +{ends}$", said.stdout, re.MULTILINE)
        said = ask("check", "--upstream", server.url, "--tls-insecure")
        assert (said.code, "not verified" in said.stdout) == (0, True), said
        said = ask("check", "--upstream", server.url)
        assert (said.code, said.stdout) == (1, "")
        assert "its certificate can't be verified" in said.stderr
