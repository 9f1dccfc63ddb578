"""What a run of coalesce is told: the upstream, the listeners, the limits. Every default has its reason."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes, urlsplit

from coalesce.core.lane import Limits

if TYPE_CHECKING:
    from collections.abc import Mapping
    from urllib.parse import SplitResult

EMBEDDED = "embedded"


@dataclass(frozen=True)
class TcpAddress:
    """`host:port`, or `[v6]:port`."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class UnixAddress:
    """`unix:///path`."""

    path: str

    def __str__(self) -> str:
        return f"unix://{self.path}"


Address = TcpAddress | UnixAddress


def parse_address(text: str, default_port: int | None = None, other: str = "unix:///path") -> Address:
    """`host:port`, `[v6]:port` or `unix:///path`. Raises ValueError, with what is wrong with it, and what it may be.

    Its text repeats nothing that could be a password.
    """
    shown = "an address with an '@'" if "@" in text else repr(text)
    scheme, separator, path = text.partition("://")
    if separator and scheme.lower() == "unix":
        if not path.startswith("/"):
            raise ValueError(f"{shown}: a unix socket needs an absolute path, as in unix:///run/coalesce.sock")
        return UnixAddress(path)
    wrong = f"{shown} is none of host:port, [IPv6]:port (a port is 65535 at the most) and {other}"
    try:
        parts = urlsplit(f"//{text}")
        port = parts.port
    except ValueError:
        raise ValueError(wrong) from None
    if port is None:
        port = default_port
    least = 0 if default_port is None else 1  # who connects has to know the port
    more = parts.path or parts.query or parts.fragment or parts.username is not None
    host = _host_of(parts)
    if not host or port is None or port < least or more:
        raise ValueError(wrong)
    return TcpAddress(host, port)


def parse_admin(text: str) -> TcpAddress | None:
    """`host:port`, or `off`. Raises ValueError."""
    if text == "off":
        return None
    address = parse_address(text, other="off")
    if not isinstance(address, TcpAddress):
        raise ValueError(f"{text!r}: --admin is for TCP alone, which is what probes and scrapes speak")  # noqa: TRY004
    return address


# A name or IPv4; or IPv6, perhaps with its zone. Whatever else is written in its place (`h,password=..`) is not
# repeated by whoever says that there is no such host.
_HOST_AND_PORT = re.compile(r"([\w.-]+|\[[0-9a-fA-F.]*:[0-9a-fA-F:.]*(%[\w.-]+)?\])(:[0-9]*)?")


def _host_of(parts: SplitResult) -> str:
    """Empty if what stands in its place is no host."""
    place = parts.netloc.rpartition("@")[2]
    if not _HOST_AND_PORT.fullmatch(place):  # (`hostname` leaves out what is before or behind brackets)
        return ""
    host = parts.hostname or ""
    try:
        host.encode("idna")  # as whoever looks the name up will: nothing between two dots, or too much, is an exception
    except UnicodeError:
        return ""
    return host


@dataclass(frozen=True)
class Upstream:
    """Where the upstream is, and what a fresh connection of a client runs as there.

    A username without a password: that is in a file.
    """

    address: Address
    username: bytes | None = None
    password: bytes | None = dataclasses.field(default=None, repr=False)
    database: int = 0
    tls: bool = False


def parse_upstream(text: str) -> Upstream:
    """`host:port`, `redis[s]://[user[:password]@]host[:port][/db]` or `unix:///path`. Raises ValueError.

    No error text repeats any of it: wherever something is wrong, a part that was not taken for a password may be one.
    """
    scheme, separator, rest = text.partition("://")
    try:
        if separator and (scheme.lower() != "unix" or "?" in rest):  # unix:///path?password=..: redis-py's way
            return _parse_url(text)
        return Upstream(parse_address(text, default_port=6379))
    except ValueError:
        raise ValueError(_UPSTREAM_FORMS) from None


_UPSTREAM_FORMS = (
    "the upstream is to be host[:port], redis[s]://[user[:password]@]host[:port][/db] (special characters of a "
    "password percent-encoded), unix:///path or embedded; what was given is none of these, and not repeated here"
)


def _parse_url(text: str) -> Upstream:
    """Raises ValueError, whose text is not to be shown."""
    parts = urlsplit(text)
    database = parts.path.removeprefix("/")
    if (
        parts.scheme not in {"redis", "rediss", "valkey", "valkeys"}
        or not _host_of(parts)
        or parts.port == 0
        or parts.query
        or parts.fragment
        or not re.fullmatch(r"[0-9]{0,9}", database)
    ):
        raise ValueError
    port = 6379 if parts.port is None else parts.port
    username = _unquote(parts.username) if parts.username else None
    password = None if parts.password is None else _unquote(parts.password)
    tls = parts.scheme in {"rediss", "valkeys"}
    return Upstream(TcpAddress(_host_of(parts), port), username, password, int(database or "0"), tls)


def _unquote(text: str) -> bytes:
    """What is percent-encoded may be any bytes; so may the environment."""
    return unquote_to_bytes(text.encode("utf-8", "surrogateescape"))


def parse_mode(text: str) -> int:
    """The mode of a file, in octal digits. Raises ValueError."""
    if not re.fullmatch(r"(0o)?[0-7]{3,4}", text) or int(text, 8) > 0o777:
        raise ValueError(f"{text!r} is not the mode of a file, as in 0660")
    return int(text, 8)


def parse_server_name(text: str) -> str:
    """A name that a certificate can be for. Raises ValueError."""
    if text.startswith(".") or not text.isascii() or not all(0 < len(part) < 64 for part in text.split(".")):
        raise ValueError(f"{text!r} is not the name of a host")
    return text


@dataclass(frozen=True)
class Config:
    """One run's settings. The command line takes its defaults from here."""

    upstream: Upstream
    # Loopback: a sidecar serves its neighbours in the pod, and nobody is asked for a password by default.
    listen: tuple[Address, ...] = (TcpAddress("127.0.0.1", 6380),)
    # Redis's own default for maxclients.
    max_clients: int = 10_000
    # "A reasonable number" for a batch, by the pipelining guide of Redis: the replies to it are kept in memory there.
    lane_limit: int = 10_000
    # Ten times what client libraries put in a pipeline; one client then holds a tenth of a lane at the most.
    client_limit: int = 1_024
    # Connections lent to one client each, for a transaction or a blocking command, at a time. A tenth of the clients;
    # Redis itself takes 10,000 connections in all, by default.
    max_leases: int = 1_000
    # Identities that share connections. Applications have a handful; a client that makes up passwords, where Redis
    # takes any, would otherwise open a connection with each.
    max_lanes: int = 128
    # Bytes of replies kept for a client that does not read. One reply more than this is always taken, so that a
    # value of any size passes; Redis's own limit for replicas is 256 MB, and for pub/sub 32 MB.
    outbox_limit: int = 64 * 1024 * 1024
    # Bytes held for all clients together; beyond, those that hold most are closed. Room for the largest value that
    # there is by default (proto-max-bulk-len, 512 MB) and half a dozen full outboxes beside it; Redis's own limit for
    # what one client has begun to say is 1 GB (client-query-buffer-limit).
    clients_memory: int = 1024 * 1024 * 1024
    # Seconds. Long enough for a restart of the upstream, shorter than what client libraries wait for a reply.
    upstream_wait: float = 5.0
    # Seconds. One attempt: who starts it by hand is told of a wrong address at once, and who supervises it may start it
    # again. Where both are started together, waiting is better than being started again and again.
    start_timeout: float = 0.0
    # Seconds for one attempt: connect and handshake; and for the TLS handshake of a client, which takes two round trips
    # and some computing on either side.
    connect_timeout: float = 5.0
    # Seconds without a sign of life from the upstream's host until its connections are given up. A reboot of a host
    # takes longer, a failover of the network less.
    upstream_silence: float = 15.0
    # The same for clients, who may be further away. What a vanished one holds is missing for somebody else meanwhile: a
    # connection of its own, the next element of a queue.
    client_silence: float = 30.0
    # Attempts to connect in a second, beyond a burst of 100: thousands of clients may want a connection at once, and an
    # upstream that has just come back pays for each one, with TLS a millisecond.
    max_dials: float = 500.0
    # Seconds: see `Limits.hold_below`. Not on the command line: no user could know better.
    hold_below: float = Limits().hold_below
    # Its first line is the password that coalesce itself has at the upstream.
    upstream_password_file: str | None = None
    # HTTP for operators: probes, metrics, a status page. Loopback, on the port that the Prometheus project's list of
    # exporters leaves free; None: off.
    admin: TcpAddress | None = TcpAddress("127.0.0.1", 9380)
    # Whether /readiness depends on the upstream, too. Off: taking all proxies out of a Service when it is gone helps
    # nobody.
    readiness_upstream: bool = False
    # Of the files of unix listeners; None: what the umask leaves.
    socket_mode: int | None = None
    # Each line is a password that clients may authenticate with to coalesce. None: they need not.
    client_password_file: str | None = None
    # Whoever reaches the listeners may use what coalesce has and they do not: credentials at the upstream, or access to
    # one that is on this host alone.
    unprotected: bool = False
    # Seconds. An application that is told to end at the same time has work to finish, for which it needs its upstream;
    # how long that takes nobody else knows. Where it is ended first, that would be waiting for nothing.
    sigterm_delay: float = 0.0
    # Seconds. Kubernetes kills 30 s after SIGTERM.
    drain_timeout: float = 10.0
    # TLS to the upstream, where its URL says so. All files are in PEM format; without one of authorities, the system's
    # count.
    upstream_ca: str | None = None
    upstream_cert: str | None = None
    upstream_key: str | None = None
    upstream_sni: str | None = None  # the name that is asked for and verified; None: the host
    tls_insecure: bool = False
    # TLS of the TCP listeners. With a CA file for clients, each of them has to have a certificate.
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_client_ca: str | None = None
    # Lines for people, or `json` for machines; and from which level on.
    log_format: str = "human"
    log_level: str = "info"
    # Standard output has the conversation as a transcript; with its keys and values.
    trace: bool = False
    trace_values: bool = False


def contradiction(upstream: Upstream | None, settings: Mapping[str, object]) -> str | None:
    """What makes no sense about the flags, if anything. `upstream` is None for a private Redis."""
    return (
        _credentials_contradiction(upstream, settings)
        or _listeners_contradiction(settings)
        or _tls_contradiction(upstream, settings)
    )


def _credentials_contradiction(upstream: Upstream | None, settings: Mapping[str, object]) -> str | None:
    if settings.get("upstream_password_file"):
        if upstream is None:
            return "--upstream-password-file: a private Redis wants no password"
        if upstream.password is not None:
            return "the upstream's URL has a password, and --upstream-password-file gives one, too"
    elif upstream is not None and upstream.username is not None and upstream.password is None:
        # redis://secret@host: what redis-cli and most libraries take for a user without a password.
        return (
            "the upstream's URL names a user and no password: give --upstream-password-file, or the URL with the "
            "password in COALESCE_UPSTREAM"
        )
    return None


def _listeners_contradiction(settings: Mapping[str, object]) -> str | None:
    listen = settings.get("listen", Config.listen)
    assert isinstance(listen, tuple)
    if settings.get("socket_mode") is not None and not any(isinstance(address, UnixAddress) for address in listen):
        return "--socket-mode is for unix listeners, and there is none"
    return None


def _tls_contradiction(upstream: Upstream | None, settings: Mapping[str, object]) -> str | None:
    given = {f"--{name.replace('_', '-')}" for name, value in settings.items() if value}
    if upstream is None or not upstream.tls:
        for flag in ("--upstream-ca", "--upstream-cert", "--upstream-key", "--upstream-sni", "--tls-insecure"):
            if flag in given:
                return f"{flag} needs an upstream with TLS: rediss://host:port"
    for one, other in (("--upstream-cert", "--upstream-key"), ("--tls-cert", "--tls-key")):
        if len({one, other} & given) == 1:
            return f"{one} and {other} go together"
    if {"--tls-insecure", "--upstream-ca"} <= given:
        return "--tls-insecure verifies nothing, so --upstream-ca has no use"
    if "--tls-client-ca" in given and "--tls-cert" not in given:
        return "--tls-client-ca needs --tls-cert and --tls-key"
    listen = settings.get("listen", Config.listen)
    assert isinstance(listen, tuple)
    if "--tls-cert" in given and not any(isinstance(address, TcpAddress) for address in listen):
        return "--tls-cert is for TCP listeners, and there is none: unix sockets are always plain"
    return None
