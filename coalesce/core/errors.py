"""Exceptions by blame, and every reply that coalesce authors itself (I8).

A reply that does not come from here is the upstream's, byte for byte. The texts are Redis's own wherever Redis has
one, so that a client can't tell who refused it; their source is `networking.c` and `server.c` of Redis 7.0.
"""

from __future__ import annotations


class ClientError(Exception):
    """The client broke the protocol. `reply` is what Redis would say before it closes the connection."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        # Redis replaces line ends within an error, which would end the reply too early.
        flat = text.replace("\r", " ").replace("\n", " ")
        self.reply = b"-ERR Protocol error: " + flat.encode("latin-1") + b"\r\n"


class UpstreamError(Exception):
    """The upstream did what a RESP server does not do: the lane can't be trusted any more (I5)."""


class Desync(UpstreamError):
    """Replies no longer match the FIFO, or are about to: a push, a reply nobody asked for, bytes that are no RESP."""


OK = b"+OK\r\n"
PONG = b"+PONG\r\n"
RESET = b"+RESET\r\n"
NO_NAME_RESP2 = b"$-1\r\n"
NO_NAME_RESP3 = b"_\r\n"
MAX_CLIENTS = b"-ERR max number of clients reached\r\n"
NO_MAINT_NOTIFICATIONS = b"-ERR unknown subcommand 'MAINT_NOTIFICATIONS'. Try CLIENT HELP.\r\n"


# The reply to WAIT and WAITAOF where the upstream's own would speak of another connection's writes: see wait.py.
UNMARKED = b"-ERR coalesce: can't tell what has been replicated: the upstream refused SWAPDB 0 0\r\n"


def bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


# How every reply begins that tells of coalesce's own troubles: the request was not run.
OURS = b"-ERR coalesce: "


def no_lease(limit: int) -> bytes:
    """The reply to a request that needs a connection of its own when all of them are lent, and stay so."""
    return b"-ERR coalesce: all %d leases are taken (max-leases)\r\n" % limit


def unavailable(reason: str) -> bytes:
    """The reply to a request that never left for the upstream: it was not run, and may be sent again."""
    return b"-ERR coalesce: upstream unavailable: " + reason.replace("\r", " ").replace("\n", " ").encode() + b"\r\n"
