"""What "refused" promises: it was not run. Of a transaction, too, all of it."""

from __future__ import annotations

import contextlib

from tests.system.processes import running_coalesce, running_server
from tests.system.wire import pack

# More than one read of a client brings (16 KiB), so it does not ride: a connection is lent for it.
LONG_TRANSACTION = b"".join(
    [pack("MULTI"), pack("INCR", "n"), pack("SET", "k", "x" * 30_000), pack("INCR", "n"), pack("EXEC")]
)


def test_a_transaction_refused_for_want_of_a_lease_runs_nothing(executable):
    with (
        running_server(executable) as upstream,
        running_coalesce(upstream.url, "--max-leases", "1", "--upstream-wait", "0.3") as coalesce,
        coalesce.connect() as holder,
        coalesce.connect() as client,
        upstream.connect() as control,
    ):
        assert holder.ask("MULTI") == b"+OK\r\n"
        client.send(LONG_TRANSACTION)
        assert client.reply().startswith(b"-ERR coalesce: all 1 leases are taken")
        with running_out_of_replies():
            client.replies(4)
        assert control.ask("GET", "n") == b"$-1\r\n"


def test_a_transaction_refused_by_an_upstream_that_takes_no_more_connections_runs_nothing(executable):
    """The shared connection stands, a new one is refused: `maxclients` of the upstream."""
    with (
        running_server(executable) as upstream,
        running_coalesce(upstream.url, "--upstream-wait", "0.3") as coalesce,
        coalesce.connect() as client,
        upstream.connect() as control,
    ):
        assert client.ask("PING") == b"+PONG\r\n"
        assert control.ask("CONFIG", "SET", "maxclients", 2) == b"+OK\r\n"
        client.send(LONG_TRANSACTION)
        assert client.reply().startswith(b"-ERR coalesce: upstream unavailable: ")
        with running_out_of_replies():
            client.replies(4)
        assert control.ask("GET", "n") == b"$-1\r\n"


def running_out_of_replies():
    """The client is closed: what is behind would have run without the transaction."""
    return contextlib.suppress(EOFError, ConnectionError)


def test_who_could_not_move_writes_nowhere_else(executable):
    """SELECT is answered by coalesce itself: what is behind it must not run in the database of before."""
    with (
        running_server(executable) as upstream,
        running_coalesce(upstream.url, "--upstream-wait", "0.3") as coalesce,
        coalesce.connect() as client,
        upstream.connect() as control,
    ):
        assert client.ask("PING") == b"+PONG\r\n"
        assert control.ask("CONFIG", "SET", "maxclients", 2) == b"+OK\r\n"
        client.send(pack("SELECT", 5) + pack("SET", "k", "v"))
        assert client.reply().startswith(b"-ERR coalesce: upstream unavailable: ")
        assert client.rest() == b""
        assert control.ask("DBSIZE") == b":0\r\n"
