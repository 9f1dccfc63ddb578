"""What "refused" promises: it was not run. Of a transaction, too, all of it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from tests.system.processes import running_coalesce, running_server
from tests.system.wire import pack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.system.processes import Coalesce, Executable
    from tests.system.wire import Wire

# More than one read of a client brings (16 KiB), so it does not ride: a connection is lent for it.
LONG_TRANSACTION = b"".join(
    [pack("MULTI"), pack("INCR", "n"), pack("SET", "k", "x" * 30_000), pack("INCR", "n"), pack("EXEC")]
)


@contextlib.contextmanager
def served(executable: Executable, *flags: str) -> Iterator[tuple[Coalesce, Wire, Wire]]:
    """A coalesce of little patience, a client of it, and one of its upstream."""
    with (
        running_server(executable) as upstream,
        running_coalesce(upstream.url, "--upstream-wait", "0.3", *flags) as coalesce,
        coalesce.connect() as client,
        upstream.connect() as control,
    ):
        yield coalesce, client, control


def take_no_more(client: Wire, control: Wire) -> None:
    """The shared connection stands, a new one is refused: `maxclients` of the upstream."""
    assert client.ask("PING") == b"+PONG\r\n"
    assert control.ask("CONFIG", "SET", "maxclients", 2) == b"+OK\r\n"


def ran_nothing(client: Wire, control: Wire) -> bool:
    """The client is closed: what is behind would have run without the transaction."""
    with contextlib.suppress(EOFError, ConnectionError):
        client.replies(4)
    return control.ask("GET", "n") == b"$-1\r\n"


def test_a_transaction_refused_for_want_of_a_lease_runs_nothing(executable):
    with served(executable, "--max-leases", "1") as (coalesce, client, control), coalesce.connect() as holder:
        assert holder.ask("MULTI") == b"+OK\r\n"
        client.send(LONG_TRANSACTION)
        assert client.reply().startswith(b"-ERR coalesce: all 1 leases are taken")
        assert ran_nothing(client, control)


def test_a_transaction_refused_by_an_upstream_that_takes_no_more_connections_runs_nothing(executable):
    with served(executable) as (_, client, control):
        take_no_more(client, control)
        client.send(LONG_TRANSACTION)
        assert client.reply().startswith(b"-ERR coalesce: upstream unavailable: ")
        assert ran_nothing(client, control)


def test_who_could_not_move_writes_nowhere_else(executable):
    """SELECT is answered by coalesce itself: what is behind it must not run in the database of before."""
    with served(executable) as (_, client, control):
        take_no_more(client, control)
        client.send(pack("SELECT", 5) + pack("SET", "k", "v"))
        assert client.reply().startswith(b"-ERR coalesce: upstream unavailable: ")
        assert client.rest() == b""
        assert control.ask("DBSIZE") == b":0\r\n"
