"""Text with line ends in it that comes back raw in an error: it may not become the neighbours' replies (core/fence.py).

Which requests that is goes by the server; none is known for Redis 6.2. Each is tried on a direct connection first.
"""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

import pytest

from .admin import ADMIN, metrics
from .processes import running_coalesce, running_server
from .wire import bulk, pack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .processes import Coalesce, Executable, RedisServer

# The text is the beginning of a bulk string that swallows the next reply, and a whole reply behind it.
MORE = r"a\r\n$6\r\nFORGED\r\n+x"
RAW = "a\r\n$6\r\nFORGED\r\n+x"
ATTEMPTS = {
    "the flags of a script": ("EVAL", f'#!lua "flags={MORE}"\nreturn 1', 0),
    "... to be loaded": ("SCRIPT", "LOAD", f'#!lua "flags={MORE}"\nreturn 1'),
    "... of functions": ("FUNCTION", "LOAD", f'#!lua name=l "{MORE}"\nreturn 1'),
    "what a script raises": ("EVAL", "error({err=ARGV[1]})", 0, RAW),
    "... otherwise": ("EVAL", "error(ARGV[1])", 0, RAW),
    "a name that is not there": ("EVAL", f'return _G["{MORE}"]', 0),
    "a pattern": ("FUNCTION", "LIST", RAW),
    "the flags of a script, in a transaction": ("EVAL", f'#!lua "flags={MORE}"\nreturn 1', 0),
    "what a script raises, in a transaction": ("EVAL", "error({err=ARGV[1]})", 0, RAW),
}
VICTIMS = 5
ROUNDS = 3


@pytest.fixture(scope="module")
def pair(executable: Executable) -> Iterator[tuple[RedisServer, Coalesce]]:
    with running_server(executable) as server, running_coalesce(server.url, *ADMIN) as coalesce:
        yield server, coalesce
        code, stderr = coalesce.stop()
        assert code == 0, stderr


@contextlib.contextmanager
def standing_still(server: RedisServer) -> Iterator[None]:
    """So that what is asked meanwhile is run in one go."""
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.process.send_signal(signal.SIGCONT)


def has_more_than_one_reply(server: RedisServer, *attempt: str | int) -> bool:
    with server.connect() as wire:
        wire.send(pack(*attempt) + pack("ECHO", "the end"))
        return wire.replies(2)[1] != bulk("the end")


def ask_for_secrets(server: RedisServer, coalesce: Coalesce, database: int, attempt: bytes) -> int:
    """Clients that ask behind an attempt get what is theirs, or are closed. How many were closed."""
    closed = 0
    with contextlib.ExitStack() as stack:
        evil, *victims = [stack.enter_context(coalesce.connect()) for _ in range(VICTIMS + 1)]
        assert evil.ask("SELECT", database) == b"+OK\r\n"
        for number, victim in enumerate(victims):
            victim.send(pack("SELECT", database) + pack("SET", f"k{number}", f"secret of {number}"))
            assert victim.replies(2) == [b"+OK\r\n"] * 2
        with standing_still(server):
            evil.send(attempt)
            for number, victim in enumerate(victims):
                victim.send(pack("GET", f"k{number}"))
        for number, victim in enumerate(victims):
            try:
                assert victim.reply() == bulk(f"secret of {number}")
            except EOFError:
                closed += 1
    return closed


@pytest.mark.parametrize("what", ATTEMPTS)
def test_a_reply_that_is_more_than_one_is_nobody_elses(pair, what):
    """Each in a database of its own, as it is the identity that is set apart."""
    server, coalesce = pair
    attempt, in_transaction = ATTEMPTS[what], "in a transaction" in what
    request = pack("MULTI") + pack("GET", "k0") + pack(*attempt) + pack("EXEC") if in_transaction else pack(*attempt)
    database = list(ATTEMPTS).index(what) + 1
    before = metrics(coalesce)
    closed = [ask_for_secrets(server, coalesce, database, request) for _ in range(ROUNDS)]
    breaks = has_more_than_one_reply(server, *attempt)
    assert sum(map(bool, closed)) <= breaks, "once, and then it is set apart"
    after = metrics(coalesce)
    counted = ("lane_losses_total desync", "protocol_errors_total upstream")
    lost, broken = (after[name] - before[name] for name in counted)
    assert bool(broken) == breaks
    # Once it is set apart, it is no lane that is lost; nor, in some transactions, before.
    assert (breaks and not in_transaction) <= lost <= broken
