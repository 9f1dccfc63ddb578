"""What each command needs."""

from __future__ import annotations

from collections import Counter

import pytest

from coalesce.core import commands
from coalesce.core.commands import BLOCKING, RIDES, TRANSACTIONAL, Need, need_of, row_of

NEEDS = {
    Need.RIDE: [
        "GET k", "get k", "GeT k", "SET k v EX 10", "PING", "ECHO x", "DEL a b", "EVALSHA abc 0", "UNWATCH",
        "PUBLISH c m", "SPUBLISH c m", "INFO server", "HELLO", "hello", "COMMAND", "command", "COMMAND DOCS get",
        "CONFIG GET maxmemory", "config set x y", "Client SetInfo LIB-NAME x", "CLIENT GETREDIR",
        "client trackinginfo", "CLIENT HELP", "OBJECT ENCODING k", "object help", "SCRIPT LOAD x", "script exists a",
        "SCRIPT FLUSH SYNC", "XINFO STREAM s", "ACL WHOAMI", "ACL SETUSER u on", "XGROUP CREATE s g $", "KEYS *",
        "SORT k BY w_* GET d_*", "BGSAVE", "SWAPDB 0 1", "RESTORE-ASKING k 0 x", "LATENCY RESET", "CLUSTER SLOTS",
        "cluster countkeysinslot 1", "MODULE LIST", "HOTKEYS START METRICS 1 CPU", "BACKUP STATUS", "ARSEEK k 3",
        "json.get k", "JSON.DEBUG MEMORY k", "FT.INFO i", "ft.cursor DEL i 1", "FT.CONFIG GET *", "ts.mrange - + k",
        "BF.ADD k x", "CF.DEBUG k", "cms.query k x", "TOPK.LIST k", "TDIGEST.MIN k", "VADD k VALUES 1 1 e CAS",
    ],
    Need.IDENTITY: ["AUTH p", "auth u p", "SELECT 1", "select x", "HELLO 3", "Hello 2 AUTH u p SETNAME n", "HELLO 4"],
    Need.CLIENT_STATE: ["CLIENT SETNAME n", "client setname", "Client GetName", "CLIENT MAINT_NOTIFICATIONS ON"],
    Need.QUIT: ["QUIT", "quit", "QUIT now"],
    Need.RESET: ["RESET", "reset"],
    Need.CLOSE: ["POST / HTTP/1.1", "post", "Host: x", "HOST: x"],
    Need.BORROW: [
        "EXEC", "DISCARD", "exec now", "BLPOP k 0", "blmove a b LEFT LEFT 0", "BZPOPMIN k 0", "BLMPOP 0 1 k LEFT",
        "BLMOVEM a b LEFT LEFT 0", "BRPOPLPUSH a b 0", "SHUTDOWN", "FAILOVER", "REPLICAOF no one", "FLUSHALL",
        "flushdb ASYNC", "SAVE", "MIGRATE h 1 k 0 9", "CLIENT KILL ID 1", "CLIENT PAUSE 1", "client unpause",
        "CLIENT UNBLOCK 1", "CLIENT LIST", "SCRIPT KILL", "FUNCTION KILL", "function stats", "ACL DELUSER u",
        "acl load", "CLUSTER FAILOVER", "cluster reset", "MODULE LOAD x", "BACKUP SEAL", "FT.SEARCH i q",
        "ft.aggregate i q", "FT.CURSOR READ i 1", "VSIM k ELE e",
    ],
    Need.TRANSACTION: ["MULTI", "multi", "MULTI now", "WATCH k", "watch", "Watch a b"],
    Need.ASKING: ["ASKING", "asking", "ASKING x"],
    Need.WAIT: ["WAIT 1 0", "wait 1 0", "WAITAOF 1 0 0", "WAIT"],
    Need.SUBSCRIBE: [
        "SUBSCRIBE c", "psubscribe c", "SSUBSCRIBE c", "UNSUBSCRIBE", "PUNSUBSCRIBE p", "sunsubscribe", "SUBSCRIBE",
    ],
    Need.PIN: [
        "MONITOR", "SYNC", "PSYNC ? -1", "REPLCONF ACK 0", "READONLY", "readwrite", "HIMPORT PREPARE f a", "himport",
        "DEBUG SLEEP 1", "DEBUG HELP", "PFDEBUG GETREG k", "CLIENT ID", "CLIENT INFO", "CLIENT REPLY OFF",
        "client capa redirect", "CLIENT IMPORT-SOURCE ON", "CLIENT NO-EVICT on", "CLIENT NO-TOUCH on",
        "CLIENT TRACKING on", "CLIENT CACHING yes", "SCRIPT DEBUG yes", "CLUSTER SYNCSLOTS x", "FT.DEBUG GIT_SHA",
        "_FT.SEARCH i q", "timeseries.HELLO", "search.CLUSTERSET x",
        "CLIENT", "SCRIPT", "ACL", "CONFIG", "OBJECT", "CLIENT NOSUCH", "COMMAND NOSUCH", "JSON.DEBUG NOSUCH",
        "NOSUCHCOMMAND", "GETX", "G", "JSON.", "$5",
    ],
}  # fmt: skip
TABLE = [(need, line) for need, lines in NEEDS.items() for line in lines]

READS = {
    Need.RIDE: [
        "XREAD STREAMS s 0", "XREAD COUNT 5 STREAMS s 0", "xread count 5 streams s 0", "XREAD", "XREAD COUNT",
        "XREADGROUP GROUP g c COUNT 1 STREAMS s >", "xreadgroup group g c noack streams s >",
        "XREADGROUP GROUP g c CLAIM 5 MAXCOUNT 9 MAXSIZE 9 STREAMS s >",
        # keys named BLOCK, behind STREAMS
        "XREAD STREAMS block 0", "xread count 5 streams BLOCK 0", "XREADGROUP GROUP g c STREAMS a BLOCK > >",
        # a group or a consumer named BLOCK
        "XREADGROUP GROUP BLOCK c STREAMS s >", "XREADGROUP GROUP g block STREAMS s >",
        "TS.READ k 0", "ts.read k - MAX_COUNT 5", "TS.READ BLOCK 0", "TS.READ k BLOCK", "TS.READ",
    ],
    Need.BORROW: [
        "XREAD BLOCK 0 STREAMS s $", "xread count 5 block 0 streams s $", "XREAD COUNT 5 BLOCK 0", "XREAD BLOCK",
        "XREADGROUP GROUP g c block 5 STREAMS s >", "XREADGROUP BLOCK 5 GROUP g c STREAMS s >",
        # a group or a consumer named STREAMS, with the option behind it
        "XREADGROUP GROUP STREAMS c BLOCK 0 STREAMS s >", "XREADGROUP GROUP g STREAMS BLOCK 0 STREAMS s >",
        # an option that is not known may be followed by any word
        "XREAD NEWOPTION STREAMS BLOCK 0 STREAMS s $",
        "TS.READ k 0 BLOCK 0 1", "ts.read k + MAX_COUNT 5 block 0 1",
    ],
}  # fmt: skip
READ_TABLE = [(need, line) for need, lines in READS.items() for line in lines]


def ids(table: list[tuple[Need, str]]) -> list[str]:
    return [f"{need.name}-{line}" for need, line in table]


@pytest.mark.parametrize(("need", "line"), TABLE, ids=ids(TABLE))
def test_need(need: Need, line: str) -> None:
    assert need_of(line.encode().split()) is need


@pytest.mark.parametrize(("need", "line"), READ_TABLE, ids=ids(READ_TABLE))
def test_what_an_option_makes_block(need: Need, line: str) -> None:
    assert need_of(line.encode().split()) is need


def test_every_need_has_a_case() -> None:
    assert set(NEEDS) == set(Need)


def test_odd_names_get_a_connection_of_their_own() -> None:
    assert need_of([b""]) is Need.PIN
    assert need_of([b"GET\0"]) is Need.PIN
    assert need_of([b" GET", b"k"]) is Need.PIN
    assert need_of([b"\xff\xfe"]) is Need.PIN
    assert need_of([b"#"]) is Need.PIN  # begins a reason in the table


def test_what_rides_unseen_rides_with_any_arguments() -> None:
    """The hot path asks RIDES alone, so no name in it may have an argument that decides."""
    for name in RIDES:
        for arguments in ([], [b"BLOCK", b"0"], [b"k", b"0", b"BLOCK"], [b"KILL"], [b"3"]):
            assert need_of([name, *arguments]) is Need.RIDE


@pytest.mark.parametrize(
    "name",
    [b"XREAD", b"XREADGROUP", b"TS.READ", b"CLIENT", b"HELLO", b"AUTH", b"SELECT", b"QUIT", b"COMMAND", b"SCRIPT"],
)
def test_what_needs_a_look_is_looked_at(name: bytes) -> None:
    assert name not in RIDES
    assert name.lower() not in RIDES


def test_what_blocks_never_rides() -> None:
    assert {name: need_of([name, b"k", b"0", b"BLOCK"]) for name in BLOCKING} == {
        name: Need.WAIT if name.startswith(b"WAIT") else Need.BORROW for name in BLOCKING
    }


def test_what_begins_or_ends_a_transaction_is_alone_but_for_unwatch() -> None:
    assert {name for name in TRANSACTIONAL if need_of([name]) is Need.RIDE} == {b"UNWATCH"}


def test_not_known_and_known_to_pin_are_told_apart() -> None:
    assert row_of(b"MONITOR") is row_of(b"Client", b"reply") is row_of(b"DEBUG", b"JMAP") is Need.PIN
    assert row_of(b"NOSUCH") is row_of(b"CLIENT", b"NOSUCH") is row_of(b"OBJECT") is None


def test_no_command_stands_in_two_places() -> None:
    """The later one would win in silence."""
    groups = [commands._STATELESS, commands._ALONE, commands._SUBSCRIBING, commands._PINNING]
    named = Counter(name for group in groups for name in commands._names(group))
    named.update([*commands._BY_SUBCOMMAND, *commands._BY_OPTION])
    for container, rows in commands._BY_SUBCOMMAND.items():
        named.update(container + b" " + word for text in rows.values() for word in commands._names(text))
    assert [name for name, times in named.items() if times > 1] == []
