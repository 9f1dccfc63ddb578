"""Proof that a reply was one reply: a request of our own behind it, with a secret in it.

What a client says can come back in the text of an error, and not every upstream takes the line ends out of it: those in
the first line of a script (Redis from 7.0, Valkey), in the error that a script raises (Redis 8.2, CVE-2025-67733), in
the argument of FUNCTION LIST; and what a module writes is its own affair. Behind such a line end the error goes on as
the reply to the next request, and every other reply goes to the wrong one. A direct connection does that to its own
client. On one that is shared, or lent on, the neighbours would get what was made up for them, and each other's data.

So where `commands.is_fenced`, a fence goes behind the request, and has to be answered with its secret, which nobody can
know before: else the connection is in doubt (I5), and from then on such requests of that identity take connections of
their own. These are lent on only when they have answered a fence, too. A transaction that rides has one behind it as
well, the first on each connection: where EXEC is not known (`rename-command`), it would be open for everybody.

A PING may be refused (a user who may not, -MISCONF, -BUSY, -MASTERDOWN), and a refusal could be forged: so that breaks
the fence, once. On a connection that is lent it would do so each time. There it is a HELLO with the secret for an
option, which every upstream refuses by its name, whatever state it is in and whoever asks, and which changes nothing.
(It counts among the upstream's errors: not what to send behind every script.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coalesce.core.errors import Desync, bulk, hello_option
from coalesce.core.lane import Ours
from coalesce.core.resp import pack

if TYPE_CHECKING:
    from collections.abc import Callable

    from coalesce.core.lane import Lane


def ping(secret: bytes) -> tuple[bytes, bytes]:
    """A fence's request, and its answer."""
    return b"*2\r\n$4\r\nPING\r\n" + bulk(secret), bulk(secret)


def hello(secret: bytes, protocol: int) -> tuple[bytes, bytes]:
    """The same that nobody refuses otherwise."""
    return pack([b"HELLO", b"%d" % protocol, secret]), hello_option(secret)


class Fence(Ours):
    """A place in the FIFO for it. `broken` and `passed` are called with the outcome, if there is one."""

    __slots__ = ("_answer", "_broken", "_passed")

    def __init__(
        self, lane: Lane, answer: bytes, broken: Callable[[], None], passed: Callable[[], None] | None
    ) -> None:
        super().__init__(lane)
        self._answer = answer
        self._broken = broken
        self._passed = passed

    def write(self, data: bytes) -> None:
        """Raises Desync."""
        self.count()
        if data != self._answer:
            self._broken()
            raise Desync("the reply before was more than one, or our PING was refused")
        if self._passed is not None:
            self._passed()

    write_more = write

    def lost(self) -> None:
        """Whoever is behind it is told."""
