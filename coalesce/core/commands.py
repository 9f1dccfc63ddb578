"""What each command needs. An allow-list: a command known to be stateless rides a lane, anything unknown gets a pin.

Stateless means: the reply depends on nothing but the data set and the identity (credentials, database, protocol
version), and nothing of it stays with the connection. A command missing here is slower for its client and never wrong;
a command here by mistake hands one client's state to another. So a doubtful one stays out.

A stateless command that keeps the upstream's one thread busy (KEYS, SORT, a script, BGSAVE's fork) rides all the same:
everybody waits for it, on whatever connection. One that keeps only its own client waiting, while the upstream goes on
with others, has no place on a lane, where the others would wait behind it.

The flags that `COMMAND` reports help, and are not enough: Redis 6.2 has no `blocking` flag, WAIT has it only since 7.4,
XREAD has it even without BLOCK, modules do not set it. `tests/system/test_commands.py` holds this table against every
server found: Redis 6.2 to 8.10, Valkey 7.2 to 9.1, and the modules that come with Redis 8 have a row for each command.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Need(enum.Enum):
    """What has to be done with a request, beyond passing it on."""

    RIDE = enum.auto()  # a place on the lane of the session's identity
    IDENTITY = enum.auto()  # AUTH, HELLO n, SELECT: a place on the lane of the *new* identity
    CLIENT_STATE = enum.auto()  # rides a lane in another form, because its state is the session's own
    QUIT = enum.auto()  # on a lane it would close the connection of everybody
    RESET = enum.auto()  # on a lane it would take everybody's identity away
    CLOSE = enum.auto()  # Redis closes without a word
    BORROW = enum.auto()  # a connection of its own, for this one request
    TRANSACTION = enum.auto()  # a connection of its own, until the transaction is over
    ASKING = enum.auto()  # a flag for the next command on the same connection
    WAIT = enum.auto()  # speaks of the connection that carried the session's writes
    SUBSCRIBE = enum.auto()  # several replies or none, and pushes from there on
    PIN = enum.auto()  # a connection of its own, for good


def _names(text: str) -> list[bytes]:
    return [name for line in text.splitlines() for name in line.partition("#")[0].encode().split()]


# In these strings a # begins a reason, and the rest of its line is no name.

_STATELESS = """
    # strings and bitmaps
    APPEND BITCOUNT BITFIELD BITFIELD_RO BITOP BITPOS DECR DECRBY DELEX DELIFEQ DIGEST GET GETBIT GETDEL GETEX GETRANGE
    GETSET INCR INCRBY INCRBYFLOAT INCREX LCS MGET MSET MSETEX MSETNX PSETEX SET SETBIT SETEX SETNX SETRANGE STRALGO
    STRLEN SUBSTR

    # keys of any type; the database that COPY and MOVE name is an argument
    COPY DBSIZE DEL DUMP EXISTS EXPIRE EXPIREAT EXPIRETIME KEYS MOVE PERSIST PEXPIRE PEXPIREAT PEXPIRETIME PTTL
    RANDOMKEY RENAME RENAMENX RESTORE SCAN SORT SORT_RO TOUCH TTL TYPE UNLINK
    RESTORE-ASKING  # ASKING and RESTORE in one: it needs no flag on the connection and leaves none
    CLUSTERSCAN  # its cursor is all there is to it, as SCAN's

    # hashes (HIMPORT: below)
    HDEL HEXISTS HEXPIRE HEXPIREAT HEXPIRETIME HGET HGETALL HGETDEL HGETEX HINCRBY HINCRBYFLOAT HKEYS HLEN HMGET HMSET
    HPERSIST HPEXPIRE HPEXPIREAT HPEXPIRETIME HPTTL HRANDFIELD HSCAN HSET HSETEX HSETNX HSTRLEN HTTL HVALS

    # lists
    LINDEX LINSERT LLEN LMOVE LMOVEM LMPOP LPOP LPOS LPUSH LPUSHX LRANGE LREM LSET LTRIM RPOP RPOPLPUSH RPUSH RPUSHX

    # sets
    SADD SCARD SDIFF SDIFFCARD SDIFFSTORE SINTER SINTERCARD SINTERSTORE SISMEMBER SMEMBERS SMISMEMBER SMOVE SPOP
    SRANDMEMBER SREM SSCAN SUNION SUNIONCARD SUNIONSTORE

    # sorted sets and places
    GEOADD GEODIST GEOHASH GEOPOS GEORADIUS GEORADIUSBYMEMBER GEORADIUSBYMEMBER_RO GEORADIUS_RO GEOSEARCH GEOSEARCHSTORE
    ZADD ZCARD ZCOUNT ZDIFF ZDIFFSTORE ZINCRBY ZINTER ZINTERCARD ZINTERSTORE ZLEXCOUNT ZMPOP ZMSCORE ZPOPMAX ZPOPMIN
    ZRANDMEMBER ZRANGE ZRANGEBYLEX ZRANGEBYSCORE ZRANGESTORE ZRANK ZREM ZREMRANGEBYLEX ZREMRANGEBYRANK ZREMRANGEBYSCORE
    ZREVRANGE ZREVRANGEBYLEX ZREVRANGEBYSCORE ZREVRANK ZSCAN ZSCORE ZUNION ZUNIONSTORE

    # streams (XREAD, XREADGROUP: below); the consumer of a group is an argument
    XACK XACKDEL XADD XAUTOCLAIM XCFGSET XCLAIM XDEL XDELEX XIDMPRECORD XLEN XNACK XPENDING XRANGE XREVRANGE XSETID
    XTRIM

    # HyperLogLog
    PFADD PFCOUNT PFMERGE

    # arrays; the cursor of ARINSERT, ARNEXT and ARSEEK is the key's
    ARCOUNT ARDEL ARDELRANGE ARGET ARGETRANGE ARGREP ARINFO ARINSERT ARLASTITEMS ARLEN ARMGET ARMSET ARNEXT AROP ARRING
    ARSCAN ARSEEK ARSET

    # scripts: what one does to its connection (SELECT, RESP3) ends with it, and nothing blocks in it
    EVAL EVALSHA EVALSHA_RO EVAL_RO FCALL FCALL_RO

    # the upstream itself; these answer at once, whatever they start
    BGREWRITEAOF BGSAVE ECHO INFO LASTSAVE LOLWUT PING PUBLISH ROLE SPUBLISH SWAPDB TIME
    UNWATCH  # on a shared connection nothing is watched

    # vector sets (VSIM: below); VADD CAS works in a thread, for no longer than VADD would
    VADD VCARD VDIM VEMB VGETATTR VINFO VISMEMBER VLINKS VRANDMEMBER VRANGE VREM VSETATTR

    # JSON
    JSON.ARRAPPEND JSON.ARRINDEX JSON.ARRINSERT JSON.ARRLEN JSON.ARRPOP JSON.ARRTRIM JSON.CLEAR JSON.DEL JSON.FORGET
    JSON.GET JSON.MERGE JSON.MGET JSON.MSET JSON.NUMINCRBY JSON.NUMMULTBY JSON.NUMPOWBY JSON.OBJKEYS JSON.OBJLEN
    JSON.RESP JSON.SET JSON.STRAPPEND JSON.STRLEN JSON.TOGGLE JSON.TYPE

    # search: what the main thread does itself (queries: below)
    FT.ADD FT.ALIASADD FT.ALIASDEL FT.ALIASLIST FT.ALIASUPDATE FT.ALTER FT.CREATE FT.DEL FT.DICTADD FT.DICTDEL
    FT.DICTDUMP FT.DROP FT.DROPINDEX FT.EXPLAIN FT.EXPLAINCLI FT.GET FT.INFO FT.MGET FT.SAFEADD FT.SPELLCHECK FT.SUGADD
    FT.SUGDEL FT.SUGGET FT.SUGLEN FT.SYNADD FT.SYNDUMP FT.SYNUPDATE FT.TAGVALS FT._ALIASADDIFNX FT._ALIASDELIFX
    FT._ALTERIFNX FT._CREATEIFNX FT._DROPIFX FT._DROPINDEXIFX FT._LIST

    # time series (TS.READ: below)
    TS.ADD TS.ALTER TS.CREATE TS.CREATERULE TS.DECRBY TS.DEL TS.DELETERULE TS.GET TS.INCRBY TS.INFO TS.MADD TS.MGET
    TS.MRANGE TS.MREVRANGE TS.NRANGE TS.NREVRANGE TS.QUERYINDEX TS.QUERYLABELS TS.RANGE TS.REVRANGE

    # probabilistic types; SCANDUMP's iterator is an argument, and the DEBUG of these two only describes a key
    BF.ADD BF.CARD BF.DEBUG BF.EXISTS BF.INFO BF.INSERT BF.LOADCHUNK BF.MADD BF.MEXISTS BF.RESERVE BF.SCANDUMP
    CF.ADD CF.ADDNX CF.COMPACT CF.COUNT CF.DEBUG CF.DEL CF.EXISTS CF.INFO CF.INSERT CF.INSERTNX CF.LOADCHUNK CF.MEXISTS
    CF.RESERVE CF.SCANDUMP
    CMS.INCRBY CMS.INFO CMS.INITBYDIM CMS.INITBYPROB CMS.MERGE CMS.QUERY
    TDIGEST.ADD TDIGEST.BYRANK TDIGEST.BYREVRANK TDIGEST.CDF TDIGEST.CREATE TDIGEST.INFO TDIGEST.MAX TDIGEST.MERGE
    TDIGEST.MIN TDIGEST.QUANTILE TDIGEST.RANK TDIGEST.RESET TDIGEST.REVRANK TDIGEST.TRIMMED_MEAN
    TOPK.ADD TOPK.COUNT TOPK.INCRBY TOPK.INFO TOPK.LIST TOPK.QUERY TOPK.RESERVE
"""

# Commands that leave nothing behind on their connection, and have no place in a queue with others.
_ALONE = """
    # they block
    BLMOVE BLMOVEM BLMPOP BLPOP BRPOP BRPOPLPUSH BZMPOP BZPOPMAX BZPOPMIN

    # they work in a thread while only their client waits: many at once, but for those on one connection
    FT.AGGREGATE FT.HYBRID FT.PROFILE FT.SEARCH VSIM
    FLUSHALL FLUSHDB SFLUSH  # newer servers free in a thread, too

    # they take long, may not come back, or change what the upstream is to everybody
    FAILOVER MIGRATE PFSELFTEST REPLICAOF SAVE SHUTDOWN SLAVEOF TRIMSLOTS

    # outside of a transaction: an error, and each server words its own
    DISCARD EXEC
"""

_SUBSCRIBING = "PSUBSCRIBE PUNSUBSCRIBE SSUBSCRIBE SUBSCRIBE SUNSUBSCRIBE UNSUBSCRIBE"

# Commands that turn their connection into something else, or speak of it. What is not in this table is taken for one.
_PINNING = """
    MONITOR PSYNC REPLCONF SYNC  # a stream begins
    READONLY READWRITE  # a flag on the connection
    HIMPORT  # the field names it prepares are the connection's
    DEBUG FT.DEBUG PFDEBUG  # may do anything; some wait, some kill
"""

# Commands between the nodes of a cluster: no client sends them, and what they leave on a connection is not documented.
_INTERNAL = (b"_FT.", b"SEARCH.", b"TIMESERIES.")

# Commands whose first argument decides; HELP rides with each.
_BY_SUBCOMMAND = {
    b"ACL": {
        Need.RIDE: "CAT DRYRUN GENPASS GETUSER LIST LOG SAVE SETUSER USERS WHOAMI",
        # They close every connection of a user, maybe the lane that would carry them.
        Need.BORROW: "DELUSER LOAD",
    },
    b"BACKUP": {
        Need.RIDE: "LIST STATUS",
        Need.BORROW: "ABORT CLEANUP SEAL START",
    },
    b"CLIENT": {
        # The session that tracks is pinned, so on a lane GETREDIR and TRACKINGINFO truly have nothing to tell.
        Need.RIDE: "GETREDIR SETINFO TRACKINGINFO",
        Need.CLIENT_STATE: "GETNAME MAINT_NOTIFICATIONS SETNAME",
        # To end, hold up or release what those in the queue may be waiting for. And LIST names who asks only where the
        # connection has the client's name.
        Need.BORROW: "KILL LIST PAUSE UNBLOCK UNPAUSE",
        # ID and INFO are asked to name this very connection elsewhere; the others are flags on it.
        Need.PIN: "CACHING CAPA ID IMPORT-SOURCE INFO NO-EVICT NO-TOUCH REPLY TRACKING",
    },
    b"CLUSTER": {
        Need.RIDE: """
            COUNT-FAILURE-REPORTS COUNTKEYSINSLOT GETKEYSINSLOT GETSLOTMIGRATIONS INFO KEYSLOT LINKS MYID MYSHARDID
            NODES REPLICAS SHARDS SLAVES SLOT-STATS SLOTS
        """,
        # An operator's; none should queue behind keys that move.
        Need.BORROW: """
            ADDSLOTS ADDSLOTSRANGE BUMPEPOCH CANCELSLOTMIGRATIONS DELSLOTS DELSLOTSRANGE FAILOVER FLUSHSLOT FLUSHSLOTS
            FORGET MEET MIGRATESLOTS MIGRATION REPLICATE RESET SAVECONFIG SET-CONFIG-EPOCH SETSLOT
        """,
        Need.PIN: "SYNCSLOTS",  # makes the connection a stream of keys
    },
    b"COMMAND": {Need.RIDE: "COUNT DOCS GETKEYS GETKEYSANDFLAGS INFO LIST"},
    b"COMMANDLOG": {Need.RIDE: "GET LEN RESET"},
    b"CONFIG": {Need.RIDE: "GET RESETSTAT REWRITE SET"},
    b"FT.CONFIG": {Need.RIDE: "GET SET"},
    # A cursor is an index and a number, good on any connection; READ goes on with the query.
    b"FT.CURSOR": {Need.RIDE: "DEL GC", Need.BORROW: "READ"},
    b"FUNCTION": {
        Need.RIDE: "DELETE DUMP FLUSH LIST LOAD RESTORE",
        # To end, or report, the function that those in the queue may be waiting for.
        Need.BORROW: "KILL STATS",
    },
    # The tracking of hot keys is the upstream's: whoever comes may stop it and read what it found.
    b"HOTKEYS": {Need.RIDE: "GET RESET START STOP"},
    b"JSON.DEBUG": {Need.RIDE: "DEPTH FIELDS MEMORY"},
    b"LATENCY": {Need.RIDE: "DOCTOR GRAPH HISTOGRAM HISTORY LATEST RESET"},
    b"MEMORY": {Need.RIDE: "DOCTOR MALLOC-STATS PURGE STATS USAGE"},
    b"MODULE": {Need.RIDE: "LIST", Need.BORROW: "LOAD LOADEX UNLOAD"},
    b"OBJECT": {Need.RIDE: "ENCODING FREQ IDLETIME REFCOUNT"},
    b"PUBSUB": {Need.RIDE: "CHANNELS NUMPAT NUMSUB SHARDCHANNELS SHARDNUMSUB"},
    b"SCRIPT": {
        Need.RIDE: "EXISTS FLUSH LOAD SHOW",
        Need.BORROW: "KILL",  # as FUNCTION KILL
        Need.PIN: "DEBUG",  # changes how the connection runs scripts
    },
    b"SLOWLOG": {Need.RIDE: "GET LEN RESET"},
    b"XGROUP": {Need.RIDE: "CREATE CREATECONSUMER DELCONSUMER DESTROY SETID"},
    b"XINFO": {Need.RIDE: "CONSUMERS GROUPS STREAM"},
}

# Commands that block if they are told to, and ride otherwise: see `_blocks`.
_BY_OPTION = frozenset(b"TS.READ XREAD XREADGROUP".split())
# How many arguments each option of XREAD and XREADGROUP takes that does not make them block.
_XREAD_OPTIONS = {b"CLAIM": 1, b"COUNT": 1, b"GROUP": 2, b"MAXCOUNT": 1, b"MAXSIZE": 1, b"NOACK": 0}

# What may be answered with text that a client chose and that the upstream does not clear of line ends: see fence.py.
# Found by trying every row with line ends in its arguments; and all that modules bring, whose names have a dot.
_FENCED = _names("EVAL EVALSHA EVALSHA_RO EVAL_RO FCALL FCALL_RO")
_FENCED_SUBCOMMANDS = {b"FUNCTION": frozenset((b"LIST", b"LOAD", b"RESTORE")), b"SCRIPT": frozenset((b"LOAD", b"SHOW"))}

# What may block for as long as nobody does something: a client that leaves must not leave such a command behind.
BLOCKING = _BY_OPTION.union(
    b"BLMOVE BLMOVEM BLMPOP BLPOP BRPOP BRPOPLPUSH BZMPOP BZPOPMAX BZPOPMIN WAIT WAITAOF".split()
)

# What ends, holds up or releases others, or says what they wait for, in whatever database that is. While an upstream
# runs a script for long, it takes some of these, and no SELECT before: see lease.py.
_IN_ANY_DATABASE = {
    b"CLIENT": frozenset((b"KILL", b"PAUSE", b"UNBLOCK", b"UNPAUSE")),
    b"FUNCTION": frozenset((b"KILL", b"STATS")),
    b"SCRIPT": frozenset((b"KILL",)),
}
_ALL_IN_ANY_DATABASE = frozenset((b"FAILOVER", b"REPLICAOF", b"SHUTDOWN", b"SLAVEOF"))
# What begins and ends a transaction; each may be refused, so it is the reply that counts.
TRANSACTIONAL = frozenset(b"MULTI EXEC DISCARD WATCH UNWATCH".split())


_NEEDS = {
    **dict.fromkeys(_names(_STATELESS), Need.RIDE),
    **dict.fromkeys(_names(_ALONE), Need.BORROW),
    **dict.fromkeys(_names(_SUBSCRIBING), Need.SUBSCRIBE),
    **dict.fromkeys(_names(_PINNING), Need.PIN),
    b"MULTI": Need.TRANSACTION,
    b"WATCH": Need.TRANSACTION,
    b"ASKING": Need.ASKING,
    # On a connection that wrote nothing they answer at once: a promise that nobody keeps.
    b"WAIT": Need.WAIT,
    b"WAITAOF": Need.WAIT,
    b"AUTH": Need.IDENTITY,
    b"SELECT": Need.IDENTITY,
    b"HELLO": Need.IDENTITY,
    b"QUIT": Need.QUIT,
    b"RESET": Need.RESET,
    # HTTP by mistake or by malice (cross-protocol scripting): securityWarningCommand in Redis.
    b"POST": Need.CLOSE,
    b"HOST:": Need.CLOSE,
}
_SUBCOMMANDS = {
    name: {b"HELP": Need.RIDE} | {word: need for need, text in rows.items() for word in _names(text)}
    for name, rows in _BY_SUBCOMMAND.items()
}



def _spellings(names: Iterable[bytes]) -> frozenset[bytes]:
    """The two that clients use: what the hot path asks."""
    return frozenset(spelling for name in names for spelling in (name, name.lower()))


# The names that ride whatever their arguments: alone, and with a fence behind them.
_RIDING = {name for name, need in _NEEDS.items() if need is Need.RIDE}
RIDES = _spellings(name for name in _RIDING if name not in _FENCED and b"." not in name)
RIDES_FENCED = _spellings(_RIDING) - RIDES


def is_fenced(arguments: list[bytes]) -> bool:
    """Whether the reply may turn out to be more than one: see fence.py."""
    name = arguments[0].upper()
    if name in _FENCED_SUBCOMMANDS:
        return len(arguments) > 1 and arguments[1].upper() in _FENCED_SUBCOMMANDS[name]
    return name in _FENCED or b"." in name


def need_of(arguments: list[bytes]) -> Need:
    """What a request needs, by its name and, where that is not enough, its arguments."""
    name = arguments[0].upper()
    if name == b"HELLO" and len(arguments) == 1:
        return Need.RIDE  # it only asks
    if name in _BY_OPTION and _blocks(name, arguments):
        return Need.BORROW
    return row_of(name, arguments[1] if len(arguments) > 1 else None) or Need.PIN


def runs_in_any_database(arguments: list[bytes]) -> bool:
    """Whether a request that needs a connection of its own can do without the session's database."""
    name = arguments[0].upper()
    if name in _IN_ANY_DATABASE:
        return len(arguments) > 1 and arguments[1].upper() in _IN_ANY_DATABASE[name]
    return name in _ALL_IN_ANY_DATABASE


def may_block(arguments: list[bytes] | None) -> bool:
    """Whether the reply may never come. None: there is no request."""
    if not arguments:
        return False
    return arguments[0].upper() in BLOCKING and need_of(arguments) is not Need.RIDE


def is_endless(arguments: list[bytes] | None) -> bool:
    """Whether a drain can't wait for what a request asks for. None: there is no request."""
    if not arguments:
        return False
    return may_block(arguments) or need_of(arguments) in {Need.SUBSCRIBE, Need.WAIT}


def may_have_no_reply(arguments: list[bytes]) -> bool:
    """CLIENT REPLY OFF and SKIP, REPLCONF ACK: there is no verdict to wait for, and no place for an error of ours."""
    words = [argument.upper() for argument in arguments[:2]]
    return words == [b"CLIENT", b"REPLY"] or words[:1] == [b"REPLCONF"]


def row_of(name: bytes, subcommand: bytes | None = None) -> Need | None:
    """What the table says of a command; None if it has no such row, so that the command is pinned for not being known.

    A command with subcommands has a row for each, and none for itself. For one that an option makes block, the row says
    what it needs without.
    """
    name = name.upper()
    if name in _NEEDS:
        return _NEEDS[name]
    if name in _SUBCOMMANDS and subcommand is not None:
        return _SUBCOMMANDS[name].get(subcommand.upper())
    if name in _BY_OPTION or name == b"COMMAND":
        return Need.RIDE
    return Need.PIN if name.startswith(_INTERNAL) else None


def _blocks(name: bytes, arguments: list[bytes]) -> bool:
    if name == b"TS.READ":  # key timestamp [options]
        return b"BLOCK" in (argument.upper() for argument in arguments[3:])
    # Options end where STREAMS begins, and behind it are keys. But a group or a consumer may be named STREAMS, too, so
    # each option is stepped over together with what belongs to it. One that is not known is taken for the worst.
    position = 1
    while position < len(arguments):
        option = arguments[position].upper()
        if option == b"STREAMS":
            return False
        if option not in _XREAD_OPTIONS:
            return True
        position += 1 + _XREAD_OPTIONS[option]
    return False
