"""TLS clients before they are clients: in the poller, without a task, until the handshake is over.

    accepted --> Greeting --> Client
                    |
                    | failed, or too slow
                    v
                  closed

A port that anybody may connect to: who says nothing, or something else, gets no task and no line in the log.
"""

from __future__ import annotations

import logging
import ssl
from time import monotonic
from typing import TYPE_CHECKING

from coalesce.config import TcpAddress
from coalesce.core.containment import contained
from coalesce.poller import READABLE, WRITABLE
from coalesce.tls import tls_reason, wrap

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from coalesce.poller import Poller
    from coalesce.tls import Certificates, TlsSocket

log = logging.getLogger("coalesce")

# Steps of handshakes in a round of the poller; one that signs with RSA takes 0.7 ms. Without this limit a PING took up
# to 187 ms while 300 others connected.
_STEPS = 4
# Seconds between two lines about handshakes that failed: a port scanner must not fill the log, and an operator has to
# see that clients have the wrong certificate.
_SAY_EVERY = 60.0


class Greetings:
    """All handshakes under way. `done` gets the socket of each that is over, and owns it then.

    Each has `timeout` seconds: who connects and says nothing would keep a place for ever.
    """

    def __init__(
        self, certificates: Certificates, poller: Poller, done: Callable[[socket.socket], None], timeout: float
    ) -> None:
        self.timeout = timeout
        self.poller = poller
        self._certificates = certificates
        self._done = done
        self._under_way: dict[Greeting, None] = {}  # the oldest first
        self._failures = 0  # since the last line about them
        self._say_from = 0.0
        self._round = 0
        self._steps = 0  # in that round

    def __len__(self) -> int:
        return len(self._under_way)

    def begin(self, sock: socket.socket) -> None:
        """Owns the socket from here on. Raises OSError, and has closed it then."""
        wrapped = wrap(self._certificates.latest(), sock)
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
        """Closes it, and says so if nothing has been said for a while."""
        self._failures += 1
        now = monotonic()
        if now >= self._say_from:
            log.warning("TLS handshakes of clients that failed: %d, the last one: %s", self._failures, why)
            self._say_from = now + _SAY_EVERY
            self._failures = 0
        self.close(greeting)


class Greeting:
    """One handshake: a member of the poller."""

    __slots__ = ("_flags", "_greetings", "ends", "sock")

    def __init__(self, greetings: Greetings, sock: TlsSocket) -> None:
        self._greetings = greetings
        self.sock = sock
        self.ends = monotonic() + greetings.timeout
        self._flags = READABLE
        greetings.poller.add(sock, self, READABLE)

    def on_ready(self, flags: int) -> None:
        """Goes on with the handshake as far as it goes."""
        del flags
        if not self._greetings.may_step():
            return
        try:
            self.sock.do_handshake()
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
            self._greetings.finished(self)

    def fail(self, fault: Exception) -> None:
        """A fault of ours while it was served."""
        faults = self._greetings.poller.faults
        faults.say(str(self), fault, "it is given up")
        with faults.contained(str(self), "while it was given up"):
            self._greetings.close(self)

    def __str__(self) -> str:
        try:
            return f"TLS handshake with {TcpAddress(*self.sock.getpeername()[:2])}"
        except OSError:
            return "TLS handshake with somebody who has left"

    def _watch(self, flags: int) -> None:
        if flags != self._flags:
            self._flags = flags
            self._greetings.poller.change(self.sock, flags)
