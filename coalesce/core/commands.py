"""What each command needs. An allow-list: a command known to be stateless rides a lane, anything unknown gets a lease.

Stateless means: the reply depends on nothing but the data set and the identity (credentials, database, protocol
version), and nothing of it stays with the connection. A command missing here is slower for its client and never wrong;
a command here by mistake hands one client's state to another. So a doubtful one stays out.

The flags that `COMMAND` reports help, and are not enough: Redis 6.2 has no `blocking` flag, WAIT has it only since 7.4,
XREAD has it even without BLOCK. `tests/system/test_commands.py` holds this table against every server found.
"""

from __future__ import annotations

import enum


class Need(enum.Enum):
    """What has to be done with a request, beyond passing it on."""

    RIDE = enum.auto()  # a place on the lane of the session's identity
    IDENTITY = enum.auto()  # AUTH, HELLO n, SELECT: a place on the lane of the *new* identity
    CLIENT_STATE = enum.auto()  # rides a lane in another form, because its state is the session's own
    QUIT = enum.auto()  # on a lane it would close the connection of everybody
    RESET = enum.auto()  # on a lane it would take everybody's identity away
    CLOSE = enum.auto()  # Redis closes without a word
    LEASE = enum.auto()  # a connection of its own


_STATELESS = """
    APPEND BITCOUNT BITFIELD BITFIELD_RO BITOP BITPOS COPY DBSIZE DECR DECRBY DEL DUMP ECHO EVAL EVALSHA EVALSHA_RO
    EVAL_RO EXISTS EXPIRE EXPIREAT EXPIRETIME FCALL FCALL_RO FLUSHALL FLUSHDB GEOADD GEODIST GEOHASH GEOPOS GEORADIUS
    GEORADIUSBYMEMBER GEORADIUSBYMEMBER_RO GEORADIUS_RO GEOSEARCH GEOSEARCHSTORE GET GETBIT GETDEL GETEX GETRANGE GETSET
    HDEL HEXISTS HEXPIRE HEXPIREAT HEXPIRETIME HGET HGETALL HGETDEL HGETEX HINCRBY HINCRBYFLOAT HKEYS HLEN HMGET HMSET
    HPERSIST HPEXPIRE HPEXPIREAT HPEXPIRETIME HPTTL HRANDFIELD HSCAN HSET HSETEX HSETNX HSTRLEN HTTL HVALS INCR INCRBY
    INCRBYFLOAT INFO KEYS LASTSAVE LCS LINDEX LINSERT LLEN LMOVE LMPOP LOLWUT LPOP LPOS LPUSH LPUSHX LRANGE LREM LSET
    LTRIM MGET MOVE MSET MSETNX PERSIST PEXPIRE PEXPIREAT PEXPIRETIME PFADD PFCOUNT PFMERGE PING PSETEX PTTL PUBLISH
    RANDOMKEY RENAME RENAMENX RESTORE ROLE RPOP RPOPLPUSH RPUSH RPUSHX SADD SCAN SCARD SDIFF SDIFFSTORE SET SETBIT SETEX
    SETNX SETRANGE SINTER SINTERCARD SINTERSTORE SISMEMBER SMEMBERS SMISMEMBER SMOVE SORT SORT_RO SPOP SPUBLISH
    SRANDMEMBER SREM SSCAN STRLEN SUBSTR SUNION SUNIONSTORE SWAPDB TIME TOUCH TTL TYPE UNLINK XACK XADD XAUTOCLAIM
    XCLAIM XDEL XLEN XPENDING XRANGE XREVRANGE XSETID XTRIM ZADD ZCARD ZCOUNT ZDIFF ZDIFFSTORE ZINCRBY ZINTER ZINTERCARD
    ZINTERSTORE ZLEXCOUNT ZMPOP ZMSCORE ZPOPMAX ZPOPMIN ZRANDMEMBER ZRANGE ZRANGEBYLEX ZRANGEBYSCORE ZRANGESTORE ZRANK
    ZREM ZREMRANGEBYLEX ZREMRANGEBYRANK ZREMRANGEBYSCORE ZREVRANGE ZREVRANGEBYLEX ZREVRANGEBYSCORE ZREVRANK ZSCAN ZSCORE
    ZUNION ZUNIONSTORE
"""

# Commands whose first argument decides.
_STATELESS_SUBCOMMANDS = {
    b"ACL": "CAT DELUSER DRYRUN GENPASS GETUSER LIST LOAD LOG SAVE SETUSER USERS WHOAMI",
    # CLIENT ID and INFO speak of the connection; KILL, PAUSE, UNPAUSE, UNBLOCK must not stand in a queue.
    b"CLIENT": "LIST SETINFO",
    b"COMMAND": "COUNT DOCS GETKEYS GETKEYSANDFLAGS INFO LIST",
    b"CONFIG": "GET RESETSTAT REWRITE SET",
    # KILL must not queue behind the function that it is to end, nor STATS behind the one that it is to report.
    b"FUNCTION": "DELETE DUMP FLUSH LIST LOAD RESTORE",
    b"LATENCY": "DOCTOR GRAPH HISTOGRAM HISTORY LATEST RESET",
    b"MEMORY": "DOCTOR MALLOC-STATS PURGE STATS USAGE",
    b"OBJECT": "ENCODING FREQ IDLETIME REFCOUNT",
    b"PUBSUB": "CHANNELS NUMPAT NUMSUB SHARDCHANNELS SHARDNUMSUB",
    # KILL as FUNCTION KILL; DEBUG changes how the connection runs scripts.
    b"SCRIPT": "EXISTS FLUSH LOAD SHOW",
    b"SLOWLOG": "GET LEN RESET",
    b"XGROUP": "CREATE CREATECONSUMER DELCONSUMER DESTROY SETID",
    b"XINFO": "CONSUMERS GROUPS STREAM",
}
# What may block: a client that leaves must not leave such a command behind.
BLOCKING = frozenset(
    b"BLMOVE BLMPOP BLPOP BRPOP BRPOPLPUSH BZMPOP BZPOPMAX BZPOPMIN WAIT WAITAOF XREAD XREADGROUP".split()
)

_STATE_OF_THE_SESSION = frozenset((b"SETNAME", b"GETNAME", b"MAINT_NOTIFICATIONS"))

_NEEDS = dict.fromkeys(_STATELESS.encode().split(), Need.RIDE) | {
    b"AUTH": Need.IDENTITY,
    b"SELECT": Need.IDENTITY,
    b"HELLO": Need.IDENTITY,
    b"QUIT": Need.QUIT,
    b"RESET": Need.RESET,
    # HTTP by mistake or by malice (cross-protocol scripting): securityWarningCommand in Redis.
    b"POST": Need.CLOSE,
    b"HOST:": Need.CLOSE,
}
_SUBCOMMANDS = {name: frozenset(words.encode().split()) for name, words in _STATELESS_SUBCOMMANDS.items()}

# The names that ride whatever their arguments, in the two spellings that clients use: what the hot path asks.
RIDES = frozenset(spelling for name, need in _NEEDS.items() if need is Need.RIDE for spelling in (name, name.lower()))


def need_of(arguments: list[bytes]) -> Need:
    """What a request needs, by its name and, where that is not enough, its arguments."""
    name = arguments[0].upper()
    known = _NEEDS.get(name)
    if known is not None:
        return Need.RIDE if name == b"HELLO" and len(arguments) == 1 else known  # a bare HELLO only asks
    if name == b"COMMAND" and len(arguments) == 1:
        return Need.RIDE
    if name in _SUBCOMMANDS and len(arguments) > 1:
        subcommand = arguments[1].upper()
        if name == b"CLIENT" and subcommand in _STATE_OF_THE_SESSION:
            return Need.CLIENT_STATE
        return Need.RIDE if subcommand in _SUBCOMMANDS[name] else Need.LEASE
    if name in {b"XREAD", b"XREADGROUP"}:
        # Options end where STREAMS begins, behind it are keys. A group or consumer named BLOCK costs a lease.
        words = [argument.upper() for argument in arguments[1:]]
        options = words[: words.index(b"STREAMS")] if b"STREAMS" in words else words
        return Need.LEASE if b"BLOCK" in options else Need.RIDE
    return Need.LEASE
