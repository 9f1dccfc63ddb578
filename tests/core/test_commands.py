"""What each command needs."""

from __future__ import annotations

import pytest

from coalesce.core.commands import RIDES, Need, need_of

NEEDS = {
    Need.RIDE: [
        "GET k", "get k", "GeT k", "SET k v EX 10", "PING", "ECHO x", "DEL a b", "EVALSHA abc 0", "FLUSHALL",
        "PUBLISH c m", "INFO server", "HELLO", "hello", "COMMAND", "command", "COMMAND DOCS get",
        "CONFIG GET maxmemory", "config set x y", "CLIENT LIST", "Client SetInfo LIB-NAME x", "OBJECT ENCODING k",
        "SCRIPT LOAD x", "script exists a", "XINFO STREAM s", "ACL WHOAMI", "XGROUP CREATE s g $",
        "XREAD STREAMS s 0", "XREAD COUNT 5 STREAMS s 0", "xread count 5 streams BLOCK 0", "XREAD STREAMS block 0",
        "XREADGROUP GROUP g c COUNT 1 STREAMS s >", "XREAD",
    ],
    Need.IDENTITY: ["AUTH p", "auth u p", "SELECT 1", "select x", "HELLO 3", "Hello 2 AUTH u p SETNAME n", "HELLO 4"],
    Need.CLIENT_STATE: [
        "CLIENT SETNAME n", "client setname", "Client GetName", "CLIENT MAINT_NOTIFICATIONS ON",
    ],
    Need.QUIT: ["QUIT", "quit", "QUIT now"],
    Need.RESET: ["RESET", "reset"],
    Need.CLOSE: ["POST / HTTP/1.1", "post", "Host: x", "HOST: x"],
    Need.LEASE: [
        "MULTI", "EXEC", "WATCH k", "SUBSCRIBE c", "psubscribe c", "SSUBSCRIBE c", "MONITOR", "SYNC", "PSYNC ? -1",
        "BLPOP k 0", "BLMOVE a b LEFT LEFT 0", "BZPOPMIN k 0", "BLMPOP 0 1 k LEFT", "WAIT 1 0", "WAITAOF 1 0 0",
        "SHUTDOWN", "DEBUG SLEEP 1", "ASKING", "READONLY", "READWRITE", "FAILOVER", "REPLICAOF no one",
        "CLIENT ID", "CLIENT INFO", "CLIENT REPLY OFF", "CLIENT KILL ID 1", "CLIENT PAUSE 1", "CLIENT UNPAUSE",
        "CLIENT UNBLOCK 1", "CLIENT NO-EVICT on", "CLIENT NO-TOUCH on", "CLIENT TRACKING on", "CLIENT CACHING yes",
        "CLIENT", "SCRIPT KILL", "SCRIPT DEBUG yes", "SCRIPT", "FUNCTION KILL", "FUNCTION STATS", "ACL", "CONFIG",
        "XREAD BLOCK 0 STREAMS s $", "xread count 5 block 0 streams s $", "XREADGROUP GROUP g c block 5 STREAMS s >",
        "XREAD COUNT 5 BLOCK 0", "NOSUCHCOMMAND", "GETX", "G", "HIMPORT x", "COMMAND NOSUCH", "OBJECT", "$5",
    ],
}  # fmt: skip
TABLE = [(need, line) for need, lines in NEEDS.items() for line in lines]


@pytest.mark.parametrize(("need", "line"), TABLE, ids=[f"{need.name}-{line}" for need, line in TABLE])
def test_need(need: Need, line: str) -> None:
    assert need_of(line.encode().split()) is need


def test_every_need_has_a_case() -> None:
    assert set(NEEDS) == set(Need)


def test_odd_names_get_a_lease() -> None:
    assert need_of([b""]) is Need.LEASE
    assert need_of([b"GET\0"]) is Need.LEASE
    assert need_of([b" GET", b"k"]) is Need.LEASE
    assert need_of([b"\xff\xfe"]) is Need.LEASE


def test_what_rides_unseen_rides_with_any_arguments() -> None:
    """The hot path asks RIDES alone, so no name in it may have an argument that decides."""
    for name in RIDES:
        for arguments in ([], [b"BLOCK", b"0"], [b"KILL"], [b"3"]):
            assert need_of([name, *arguments]) is Need.RIDE


@pytest.mark.parametrize("name", [b"XREAD", b"CLIENT", b"HELLO", b"AUTH", b"SELECT", b"QUIT", b"COMMAND", b"SCRIPT"])
def test_what_needs_a_look_is_looked_at(name: bytes) -> None:
    assert name not in RIDES
    assert name.lower() not in RIDES
