"""`coalesce check`: dials the upstream as a run would, and says what it finds there.

What the upstream does not tell, because it refuses CONFIG or knows no such setting, is said as such.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from coalesce.bytestream import ByteStream
from coalesce.core.errors import UpstreamError
from coalesce.core.identity import CONNECTION_NAME, Identity
from coalesce.core.resp import CRLF
from coalesce.dial import Dialler, converse
from coalesce.passwords import ClientPasswords, PasswordFileError
from coalesce.server import StartError, dial_first
from coalesce.tls import CertificateError, TlsSocket, listener_certificates

if TYPE_CHECKING:
    import socket

    from coalesce.config import Config
    from coalesce.dial import Dialled

# Of so many PINGs, the fastest is what the link takes.
_PINGS = 5
_UNKNOWN = "can't be told"
# Settings of the upstream, and what they mean where all clients come by a few connections.
_LIMITS = {
    "maxclients": "coalesce's connections count to it, not its clients",
    "timeout": "seconds; idle lanes are kept alive by PING",
    "client-output-buffer-limit": "of a normal connection; a lane has the replies of many clients in it",
    "maxmemory-clients": "a lane is one client to it, and may be closed as the largest",
    "proto-max-bulk-len": "a longer value is refused before it reaches a lane",
    "io-threads": "they work across connections",
}


class Finding(NamedTuple):
    """One line."""

    what: str
    found: str
    remark: str = ""


async def check(config: Config) -> list[Finding]:
    """Raises StartError: why a run would not start, but for its listeners' addresses, which nothing is tried of."""
    try:
        dialler = Dialler(config)
        listener_certificates(config)
        if config.client_password_file is not None:
            ClientPasswords(config.client_password_file)
    except (CertificateError, PasswordFileError) as problem:
        raise StartError(str(problem)) from None
    upstream = config.upstream
    dialled = await dial_first(dialler, upstream.address, Identity(None, None, upstream.database, 2), CONNECTION_NAME)
    with ByteStream(dialled.sock) as stream:
        try:
            fastest, user, settings = await _ask(stream)
        except (OSError, UpstreamError):
            raise StartError(f"upstream {upstream.address} hung up when it was asked about itself") from None
        return [
            Finding("upstream", str(upstream.address)),
            Finding("version", dialled.software, _role(dialled)),
            Finding("round trip", f"{fastest * 1000:.3f} ms", f"the fastest of {_PINGS}"),
            *_of_tls(config, dialled.sock),
            Finding("user", user if dialled.authenticated else "none yet", _on_the_user(dialled)),
            Finding("database", str(upstream.database)),
            *(Finding(name, settings[name], remark) for name, remark in _LIMITS.items()),
        ]


def report(findings: list[Finding]) -> str:
    width = max(len(finding.what) for finding in findings)
    return "\n".join(
        f"{what.ljust(width)}  {found}{f'  ({remark})' if remark else ''}" for what, found, remark in findings
    )


async def _ask(stream: ByteStream) -> tuple[float, str, dict[str, str]]:
    """Seconds for a round trip, the user, and the settings. Raises OSError and UpstreamError."""
    fastest = float("inf")
    for _ in range(_PINGS):
        start = perf_counter()
        await converse(stream, [[b"PING"]])
        fastest = min(fastest, perf_counter() - start)
    questions = [[b"CONFIG", b"GET", name.encode()] for name in _LIMITS]
    who, *told = await converse(stream, [[b"ACL", b"WHOAMI"], *questions])
    settings = {name: _setting(name, reply) for name, reply in zip(_LIMITS, told, strict=True)}
    return fastest, _text(_bulks(who)[0]) if who.startswith(b"$") else _UNKNOWN, settings


def _setting(name: str, reply: bytes) -> str:
    if not reply.startswith(b"*"):
        return _UNKNOWN
    pair = _bulks(reply)
    if len(pair) < 2:
        return "not known to this version"
    value = _text(pair[1])
    if name == "client-output-buffer-limit":
        words = value.split()
        at = words.index("normal") + 1 if "normal" in words else len(words)
        value = " ".join(words[at : at + 3]) or _UNKNOWN
    return value


def _bulks(reply: bytes) -> list[bytes]:
    """The strings of a reply of strings, none of which has a line end in it."""
    lines = reply.split(CRLF)
    return lines[1:2] if reply.startswith(b"$") else lines[2::2]


def _text(value: bytes) -> str:
    """A user's name may be anything, and a terminal obeys some of it."""
    text = value.decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def _role(dialled: Dialled) -> str:
    if dialled.primary:
        return "a primary"
    return "a replica" if dialled.replica else ""


def _on_the_user(dialled: Dialled) -> str:
    return "" if dialled.authenticated else "coalesce has no credentials; each client needs its own"


def _of_tls(config: Config, sock: socket.socket) -> list[Finding]:
    if not isinstance(sock, TlsSocket):
        return [Finding("TLS", "none")]
    cipher = sock.cipher()
    findings = [Finding("TLS", str(sock.version()), cipher[0] if cipher else "")]
    if config.tls_insecure:
        return [*findings, Finding("certificate", "not verified, so nothing is known of it", "--tls-insecure")]
    certificate: dict[str, Any] = sock.getpeercert() or {}
    parts = [f"{name}={value}" for group in certificate.get("subject", ()) for name, value in group]
    names = [f"{kind}:{value}" for kind, value in certificate.get("subjectAltName", ())]
    findings.append(Finding("certificate", ", ".join(map(_shown, parts or names)) or "without a subject"))
    findings.append(Finding("expires", " ".join(certificate["notAfter"].split())))  # (by no clock of ours)
    return findings


def _shown(text: str) -> str:
    return _text(text.encode("utf-8", "surrogateescape"))
