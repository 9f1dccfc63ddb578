"""TLS clients before they are clients: in the poller, without a task, until the handshake is over.

    accepted --> Greeting --> Client
                    |
                    | failed, or too slow
                    v
                  closed

A port that anybody may connect to: who says nothing, or something else, gets no task and no line in the log.

One step of OpenSSL's reads every record that is there, and takes 1.3 us for each, however short: a ClientHello of
131 KB in records of one byte held everybody up for 170 ms. So what has come is looked at first: a ClientHello has to be
one record, as every library sends it, with nothing behind it; and what follows in the clear may not be in many pieces,
be it a second ClientHello or a certificate. Two weaknesses remain: records that arrive during the step, of some 50 us,
are not looked at; nor is a certificate in TLS 1.3, which is encrypted (with --tls-client-ca alone; 100 KB at the most).
"""

from __future__ import annotations

import logging
import socket
import ssl
from time import monotonic
from typing import TYPE_CHECKING

from coalesce.core.containment import contained
from coalesce.poller import READABLE, WRITABLE
from coalesce.tls import tls_reason, wrap

if TYPE_CHECKING:
    from collections.abc import Callable

    from coalesce.poller import Poller
    from coalesce.tls import Certificates, TlsSocket

log = logging.getLogger("coalesce")

# Steps of handshakes in a round of the poller; one that signs with RSA takes 0.7 ms. Without this limit a PING took up
# to 187 ms while 300 others connected.
_STEPS = 4
# Of TLS: bytes before the content of a record, and of a message's type and length within it; content types; bytes of a
# record at the most.
_RECORD_HEADER = 5
_MESSAGE_HEADER = 4
_CHANGE_CIPHER_SPEC = 20
_HANDSHAKE = 22
_LONGEST_RECORD = _RECORD_HEADER + 16 * 1024
# Records in the clear that a step may find. A client's second flight has four messages (certificate, key exchange,
# proof, finish), and the first of them may be long.
_MOST_RECORDS = 16


class Greetings:
    """All handshakes under way. `done` gets the socket of each that is over, and owns it then.

    Each has `timeout` seconds: who connects and says nothing would keep a place for ever.
    """

    def __init__(
        self, certificates: Certificates, poller: Poller, done: Callable[[TlsSocket], None], timeout: float
    ) -> None:
        self.timeout = timeout
        self.poller = poller
        self._certificates = certificates
        self._done = done
        self._under_way: dict[Greeting, None] = {}  # the oldest first
        self._round = 0
        self._steps = 0  # in that round

    def __len__(self) -> int:
        return len(self._under_way)

    def begin(self, sock: socket.socket, origin: str = "") -> None:
        """Owns the socket from here on. Raises OSError, and has closed it then."""
        wrapped = wrap(self._certificates.latest(), sock)
        wrapped.origin = origin
        try:
            greeting = Greeting(self, wrapped)
        except BaseException:
            wrapped.close()
            raise
        self._under_way[greeting] = None

    def may_step(self) -> bool:
        """Whether it is one handshake's turn to go on; if not, the next round will tell it again that it is ready."""
        if self._round != self.poller.rounds:
            self._round = self.poller.rounds
            self._steps = 0
        self._steps += 1
        return self._steps <= _STEPS

    def expire(self) -> None:
        """Closes those that take too long."""
        now = monotonic()
        while self._under_way and (oldest := next(iter(self._under_way))).ends <= now:
            with contained(oldest):
                self.failed(oldest, f"not finished after {self.timeout:g} s")

    def close(self, greeting: Greeting) -> None:
        """Closes it, unless its socket has been handed on."""
        if greeting not in self._under_way:
            return
        del self._under_way[greeting]
        greeting.sock.discard(_LONGEST_RECORD)  # a part of a record
        self.poller.remove_and_close(greeting.sock)

    def close_all(self) -> None:
        for greeting in list(self._under_way):
            with contained(greeting):
                self.close(greeting)

    def finished(self, greeting: Greeting) -> None:
        """Hands the socket on."""
        del self._under_way[greeting]
        self.poller.remove(greeting.sock)
        self._done(greeting.sock)

    def failed(self, greeting: Greeting, why: str) -> None:
        """Closes it, and says why."""
        log.warning("%s failed: %s", greeting, why, extra=greeting.ids)
        self.close(greeting)


class InPiecesError(Exception):
    """The client makes work of what could have come at once."""


def bytes_wanted(seen: bytes, *, first: bool) -> int:
    """How much has to be there before OpenSSL may see any of it; 0: go on. Raises InPiecesError.

    `seen` begins with a record. What is no record, and what is encrypted, is OpenSSL's affair.
    """
    at = records = 0
    while len(seen) >= at + _RECORD_HEADER and seen[at] in {_HANDSHAKE, _CHANGE_CIPHER_SPEC}:
        length = int.from_bytes(seen[at + 3 : at + _RECORD_HEADER])
        records += 1
        if records > (1 if first else _MOST_RECORDS):
            raise InPiecesError
        at += _RECORD_HEADER + length
        if at > _LONGEST_RECORD:
            return 0
        if at > len(seen):
            return at
        if first and length < _MESSAGE_HEADER + int.from_bytes(seen[_RECORD_HEADER + 1 : _RECORD_HEADER + 4]):
            raise InPiecesError
    if first and at and at < len(seen):
        raise InPiecesError
    return at + _RECORD_HEADER if at < len(seen) < at + _RECORD_HEADER else 0


class Greeting:
    """One handshake: a member of the poller."""

    __slots__ = ("_first", "_flags", "_greetings", "_wanted", "ends", "sock")

    def __init__(self, greetings: Greetings, sock: TlsSocket) -> None:
        self._greetings = greetings
        self.sock = sock
        self.ends = monotonic() + greetings.timeout
        self._flags = READABLE
        self._first = True  # the client has said nothing yet
        self._wanted = 1  # bytes that have to be there before it is told that it is ready
        self._want(_RECORD_HEADER)
        greetings.poller.add(sock, self, READABLE)

    def on_ready(self, flags: int) -> None:
        """Goes on with the handshake as far as it goes."""
        del flags
        if not self._greetings.may_step():
            return
        try:
            if not self._has_come():
                return
            self.sock.do_handshake()
        except InPiecesError:
            self._greetings.failed(self, "a message in many pieces")
        except ssl.SSLWantReadError:
            self._watch(READABLE)
        except ssl.SSLWantWriteError:
            self._watch(WRITABLE)
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError):
            self._greetings.close(self)  # a probe whether anybody listens, or a client that has changed its mind
        except ssl.SSLError as problem:
            self._greetings.failed(self, tls_reason(problem))
        except OSError as problem:
            self._greetings.failed(self, problem.strerror or str(problem))
        else:
            self._want(1)
            self._greetings.finished(self)

    def _has_come(self) -> bool:
        """Whether OpenSSL may see what is there. If not, it is waited for what is missing. Raises InPiecesError."""
        try:
            seen = self.sock.peek(_LONGEST_RECORD)
        except (BlockingIOError, InterruptedError):
            return True  # it has something to write
        if len(seen) >= self._wanted:  # else that was all: the end
            if wanted := bytes_wanted(seen, first=self._first):
                self._want(wanted)
                return False
            self._first = False
        self._want(_RECORD_HEADER)
        return True

    def _want(self, count: int) -> None:
        if count != self._wanted:
            self._wanted = count
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)

    def fail(self, fault: Exception) -> None:
        """A fault of ours while it was served."""
        faults = self._greetings.poller.faults
        faults.say(self, fault, "it is given up")
        with faults.contained(self, "while it was given up"):
            self._greetings.close(self)

    def __str__(self) -> str:
        return f"TLS handshake with {self.sock.origin}"

    @property
    def ids(self) -> dict[str, str]:
        return {"address": self.sock.origin}

    def _watch(self, flags: int) -> None:
        if flags != self._flags:
            self._flags = flags
            self._greetings.poller.change(self.sock, flags)
