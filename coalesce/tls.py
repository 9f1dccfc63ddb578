"""TLS on either side: a socket that behaves as a plain one that does not block, and contexts that follow their files.

Only what is TLS's own is in here; who dials, accepts and reads knows nothing of it but `TlsSocket`'s handshake.
"""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING

from coalesce.config import TcpAddress
from coalesce.watched import UnusableFileError, WatchedFiles

if TYPE_CHECKING:
    from coalesce.config import Config

# Bytes of a record, at the most.
_RECORD = 16 * 1024
# Bytes that one `send` takes at the most. OpenSSL goes on until all of it has gone or the kernel takes no more: to a
# client that reads as fast as we encrypt, a value of 512 MB would go in one call, and everybody else would wait.
_MOST_SENT = 256 * 1024
# Seconds between two looks at the files of a listener: thousands of clients may come in one of them.
_LOOK_EVERY = 1.0


class CertificateError(UnusableFileError):
    """A certificate, a key or authorities."""


class TlsSocket(ssl.SSLSocket):
    """Never blocks, and looks like a plain socket that doesn't: BlockingIOError where nothing goes, b"" at the end.

    A `recv` takes 16 KiB at least, the longest record, also when less is asked for, and so leaves nothing behind in
    here: OpenSSL reads one record at a time and nothing ahead, and a level-triggered epoll tells of all there is.

    After a `send` that raised BlockingIOError, the next one has to begin with all of the same bytes: some may have left
    already, and records may have been made of others. More may follow them.
    """

    origin = ""  # where an accepted one comes from, for the log

    def recv(self, buflen: int = _RECORD, flags: int = 0) -> bytes:
        try:
            return super().recv(max(buflen, _RECORD), flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None  # a part of a record
        except ssl.SSLZeroReturnError:
            return b""

    def peek(self, most: int) -> bytes:
        """What OpenSSL has not read yet, up to so many bytes, as it came over the network. It stays there."""
        return super(ssl.SSLSocket, self).recv(most, socket.MSG_PEEK)

    def discard(self, most: int) -> None:
        """Drops what OpenSSL has not read yet: a socket that is closed with something unread in it sends a reset."""
        with suppress(OSError):
            super(ssl.SSLSocket, self).recv(most, socket.MSG_DONTWAIT)

    def send(self, data: bytes | bytearray | memoryview, flags: int = 0) -> int:  # type: ignore[override]
        if len(data) > _MOST_SENT:
            data = memoryview(data)[:_MOST_SENT]
        try:
            return super().send(data, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None

    def end_output(self) -> None:
        """Says that no more is sent; what the peer still sends can be read.

        By a FIN alone: `unwrap`, the one way to a close_notify, reads on at once, and fails for good when it finds data
        there (APPLICATION_DATA_AFTER_CLOSE_NOTIFY). `SSLSocket.shutdown` would drop the TLS layer.
        """
        super(ssl.SSLSocket, self).shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Sends a close_notify if there is room for it."""
        # It wants to read the peer's, which nobody waits for; or it was never greeted, or the connection is broken.
        with suppress(OSError, ValueError):
            self.unwrap()
        super().close()


Certificates = WatchedFiles[ssl.SSLContext]


def upstream_certificates(config: Config) -> Certificates | None:
    """None: plain. Raises CertificateError."""
    if not config.upstream.tls:
        return None
    pair = _pair(config.upstream_cert, config.upstream_key)

    def make() -> ssl.SSLContext:
        context = _context(ssl.PROTOCOL_TLS_CLIENT)
        if config.tls_insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif config.upstream_ca is not None:
            _load_authorities(context, config.upstream_ca)
        else:
            context.load_default_certs()
        if pair is not None:
            _load_pair(context, *pair)
        return context

    files = (config.upstream_ca, *(pair or ()))
    return Certificates(make, tuple(file for file in files if file is not None))


def listener_certificates(config: Config) -> Certificates | None:
    """None: plain. Raises CertificateError."""
    pair = _pair(config.tls_cert, config.tls_key)
    if pair is None:
        return None
    authorities = config.tls_client_ca

    def make() -> ssl.SSLContext:
        context = _context(ssl.PROTOCOL_TLS_SERVER)
        _load_pair(context, *pair)
        if authorities is not None:
            _load_authorities(context, authorities)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    return Certificates(make, (*pair, *([authorities] if authorities is not None else [])), _LOOK_EVERY)


def server_name(config: Config) -> str | None:
    """The name that the upstream's certificate has to be for; it is sent, too, unless it is an IP address."""
    address = config.upstream.address
    return config.upstream_sni or (address.host if isinstance(address, TcpAddress) else None)


def wrap(context: ssl.SSLContext, sock: socket.socket, *, server_hostname: str | None = None) -> TlsSocket:
    """The socket with TLS, before the handshake. The plain one is not to be used any more; OSError has closed it."""
    try:
        sock.getpeername()  # raises if the peer has reset it, where `wrap_socket` would not always close it
        wrapped = context.wrap_socket(
            sock,
            server_side=context.protocol is ssl.PROTOCOL_TLS_SERVER,
            do_handshake_on_connect=False,
            server_hostname=server_hostname,
        )
    except OSError:
        sock.close()
        raise
    assert isinstance(wrapped, TlsSocket)
    return wrapped


def tls_reason(problem: ssl.SSLError) -> str:
    """What went wrong, in a few words that name no address."""
    if isinstance(problem, ssl.SSLCertVerificationError):
        if problem.verify_code in _MISMATCHES:
            return "its certificate is for another name"
        return f"its certificate can't be verified: {problem.verify_message}"
    if isinstance(problem, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return "hung up in the TLS handshake"
    if problem.reason in _NO_TLS:
        return NO_TLS
    return f"TLS: {(problem.reason or problem.strerror or str(problem)).replace('_', ' ').lower()}"


NO_TLS = "it does not speak TLS"
# What OpenSSL 1.1 to 3.5 make of what is no record.
_NO_TLS = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "UNKNOWN_PROTOCOL"}
# X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH, whose texts repeat the name.
_MISMATCHES = {62, 64}


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.sslsocket_class = TlsSocket
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Without renegotiation a read never has to write, nor a write to read.
    context.options |= ssl.OP_NO_RENEGOTIATION
    # An end without a close_notify is an end like any other: who half-closed so is still answered. Nothing is lost by
    # it: a request or a reply that was cut short is none.
    context.options |= ssl.OP_IGNORE_UNEXPECTED_EOF
    return context


def _pair(certificate: str | None, key: str | None) -> tuple[str, str] | None:
    return None if certificate is None or key is None else (certificate, key)


def _load_pair(context: ssl.SSLContext, certificate: str, key: str) -> None:
    try:
        # No passphrase, rather than OpenSSL asking for one on the terminal.
        context.load_cert_chain(certificate, key, password=str)
    except OSError as problem:
        raise CertificateError(
            f"can't use the certificate {certificate} with the key {key}: {_file_reason(problem)}"
        ) from None


def _load_authorities(context: ssl.SSLContext, file: str) -> None:
    try:
        context.load_verify_locations(file)
    except OSError as problem:
        raise CertificateError(f"can't use the CA file {file}: {_file_reason(problem)}") from None


def _file_reason(problem: OSError) -> str:
    if isinstance(problem, ssl.SSLError):
        return (
            problem.reason.replace("_", " ").lower()
            if problem.reason
            else "not in PEM format, cut short, or with a passphrase"
        )
    return problem.strerror or str(problem)
