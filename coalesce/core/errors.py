"""Exceptions by blame, and every reply that coalesce authors itself (I8).

A reply that does not come from here is the upstream's, byte for byte. The texts are Redis's own wherever Redis has
one, so that a client can't tell who refused it; their source is `networking.c` and `server.c` of Redis 7.0.
"""

from __future__ import annotations


def _flat(text: bytes) -> bytes:
    """Redis replaces line ends within an error, which would end the reply too early."""
    return text.replace(b"\r", b" ").replace(b"\n", b" ")


# How the reply begins to who speaks no RESP.
PROTOCOL_ERROR = b"-ERR Protocol error: "


class ClientError(Exception):
    """The client broke the protocol. `reply` is what Redis would say before it closes the connection."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.reply = PROTOCOL_ERROR + _flat(text.encode("latin-1")) + b"\r\n"


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

# How every reply begins that tells of coalesce's own troubles: the request was not run.
OURS = b"-ERR coalesce: "

# The reply to WAIT and WAITAOF where the upstream's own would speak of another connection's writes: see wait.py.
UNMARKED = OURS + b"can't tell what has been replicated: the upstream refused SWAPDB 0 0\r\n"

# What Redis says to those who have not authenticated.
NO_AUTH = b"-NOAUTH Authentication required.\r\n"
NO_AUTH_HELLO = (
    b"-NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> "
    b"<pass> option can be used to authenticate the client and select the RESP protocol version at the same time\r\n"
)
WRONG_PASSWORD = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"
AUTH_ARITY = b"-ERR wrong number of arguments for 'auth' command\r\n"
SYNTAX = b"-ERR syntax error\r\n"
NO_PROTOCOL = b"-NOPROTO unsupported protocol version\r\n"
PROTOCOL_NO_INTEGER = b"-ERR Protocol version is not an integer or out of range\r\n"
BAD_NAME = b"-ERR Client names cannot contain spaces, newlines or special characters.\r\n"


def hello_option(option: bytes) -> bytes:
    return b"-ERR Syntax error in HELLO option '" + _flat(option.partition(b"\0")[0]) + b"'\r\n"


def bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


# To who authenticates as a user of the upstream, where RESET would make it the user that coalesce's passwords guard.
OPEN_TO_ALL = OURS + b"the upstream's user default needs no password: so nobody can log in as another\r\n"


def no_lease(limit: int) -> bytes:
    """The reply to a request that needs a connection of its own when all of them are lent, and stay so."""
    return OURS + b"all %d leases are taken (max-leases)\r\n" % limit


def no_lane(limit: int) -> bytes:
    """The reply to a client that would be one identity too many, and may not have a connection of its own either."""
    return OURS + b"%d users, databases and protocol versions are in use (max-lanes)\r\n" % limit


def unavailable(reason: str) -> bytes:
    """The reply to a request that never left for the upstream: it was not run, and may be sent again."""
    return OURS + b"upstream unavailable: " + _flat(reason.encode()) + b"\r\n"
