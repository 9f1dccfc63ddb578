"""What the differential test says to a server and to coalesce: named lists of byte chunks.

A chunk is one write, and the next one follows when the chunk's replies are in. Replies have to be the same each time
they are asked for, so: no random members, no times, no set with several members, no blocking that ends by a timeout.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from .differences import drops_auth_errors, may_fail_to_authenticate, reads_its_own_way
from .wire import pack

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .processes import Executable

Conversation = list[bytes]

HELLO_3 = pack("HELLO", 3)


def one_write(*requests: bytes) -> Conversation:
    return [b"".join(requests)]


def words(text: str) -> bytes:
    """A request from words without quotes."""
    return pack(*text.split())


def each(*requests: str) -> Conversation:
    """Every request in a write of its own."""
    return [words(request) for request in requests]


def with_both_protocols(conversations: dict[str, Conversation]) -> dict[str, Conversation]:
    """Each as it stands, and after HELLO 3."""
    in_resp3 = {f"resp3 {name}": [HELLO_3, *chunks] for name, chunks in conversations.items()}
    return conversations | in_resp3


LUA_TYPES = {
    "integer": "return 42",
    "negative": "return -42",
    "string": "return 'text'",
    "empty string": "return ''",
    "status": "return redis.status_reply('FINE')",
    "error": "return redis.error_reply('MINE own words')",
    "raised error": "return redis.call('NOSUCH')",
    "nil": "return nil",
    "true": "return true",
    "false": "return false",
    "empty array": "return {}",
    "array cut by nil": "return {1, 2, nil, 4}",
    "nested arrays": "return {1, {2, {3, {4, {}, {'five', {6}}}}}, {}}",
    "forty levels": "local t = {} for i = 1, 40 do t = {i, t} end return t",
    "double": "redis.setresp(3) return {double = 3.25}",
    "map": "redis.setresp(3) return {map = {field = 'value'}}",
    "set": "redis.setresp(3) return {set = {member = true}}",
    "resp3 true": "redis.setresp(3) return true",
    "resp3 false": "redis.setresp(3) return false",
    "resp3 nil": "redis.setresp(3) return nil",
    "big number": "redis.setresp(3) return {big_number = '123456789012345678901234567890'}",
    "verbatim": "redis.setresp(3) return {verbatim_string = {string = 'text', format = 'txt'}}",
    "infinity": "redis.setresp(3) return {double = math.huge}",
    "mixed": "redis.setresp(3) return {1, {map = {a = {double = 0.5}}}, {set = {x = true}}, true, 'end'}",
}

DEBUG_TYPES = ["string", "integer", "double", "null", "array", "set", "map", "attrib", "push", "verbatim", "true",
               "false", "bignum"]  # fmt: skip

REPLY_TYPES = with_both_protocols(
    {f"lua {name}": [pack("EVAL", script, 0)] for name, script in LUA_TYPES.items()}
    | {f"debug {kind}": [words(f"DEBUG PROTOCOL {kind}"), words("PING after")] for kind in DEBUG_TYPES}
    | {
        "all lua types in one write": one_write(*(pack("EVAL", script, 0) for script in LUA_TYPES.values())),
        "strings": each("SET k v", "GET k", "GET missing", "SET k v XX GET", "STRLEN k", "GETRANGE k 5 9",
                        "SET e x NX"),
        "empty value": [pack("SET", "k", ""), pack("GET", "k"), pack("SET", "", "empty key"), pack("GET", "")],
        "multiple keys": each("MSET a 1 b 2", "MGET a missing b", "EXISTS a b c", "DEL a b c", "MGET a"),
        "hashes": each("HSET h a 1", "HGETALL h", "HGETALL missing", "HMGET h a b", "HRANDFIELD h 1 WITHVALUES"),
        "lists": each("RPUSH l 1 2 3", "LRANGE l 0 -1", "LRANGE missing 0 -1", "LPOP l 2", "LPOP missing 2",
                      "LPOS l 3"),
        "sets": each("SADD s member", "SMEMBERS s", "SMISMEMBER s member other", "SINTER s missing", "SPOP s 1"),
        "sorted sets": each("ZADD z 1.5 a 2 b", "ZRANGE z 0 -1 WITHSCORES", "ZSCORE z a", "ZSCORE z c", "ZINCRBY z 1 a",
                            "ZPOPMIN z", "ZRANDMEMBER missing", "ZMSCORE z b c", "ZADD z INCR NX 1 b"),
        "streams": each("XADD x 1-1 f v", "XADD x 1-2 f w", "XRANGE x - +", "XREAD COUNT 1 STREAMS x 0",
                        "XREAD STREAMS x $",
                        "XGROUP CREATE x g 0", "XREADGROUP GROUP g me STREAMS x >", "XPENDING x g", "XACK x g 1-1",
                        "XADD x 1-1 f late", "XREAD BLOCK 1000 STREAMS x 0"),
        "geo": each("GEOADD g 13.361389 38.115556 Palermo", "GEOPOS g Palermo missing",
                    "GEOSEARCH g FROMLONLAT 15 37 BYRADIUS 200 km ASC WITHCOORD WITHDIST"),
        "bits": each("SETBIT b 7 1", "BITCOUNT b", "BITFIELD b GET u8 0 INCRBY u2 100 1", "PFADD p a b", "PFCOUNT p"),
        "scans": each("SET k v", "SCAN 0", "HSCAN missing 0", "KEYS *", "TYPE k", "TYPE missing", "OBJECT ENCODING k"),
        "command table": each("COMMAND INFO get set nosuch", "COMMAND COUNT", "COMMAND GETKEYS MSET a 1 b 2",
                              "COMMAND DOCS get", "COMMAND LIST FILTERBY PATTERN getr*"),
        "configuration": each("CONFIG GET maxmemory-policy", "CONFIG SET maxmemory-samples 5", "CONFIG GET nosuch",
                              "CONFIG SET nosuch 1", "MEMORY USAGE missing", "LATENCY RESET", "SLOWLOG GET 0"),
        "waiting for replicas": each("SET k v", "WAIT 0 100"),
        "a list to block on that isn't empty": each("RPUSH l a b", "BLPOP l 0", "BRPOPLPUSH l m 0",
                                                    "BLMPOP 1 1 l LEFT"),
        "ten thousand members": [pack("RPUSH", "l", *range(10_000)), words("LRANGE l 0 -1"), words("PING")],
    }
)  # fmt: skip

ERRORS = with_both_protocols(
    {
        "wrong type": each("SET k v", "LPUSH k x", "HGET k f", "INCR k", "PING"),
        "wrong arity": each("GET", "GET a b", "SET k", "ECHO", "PING a b", "HSET h f", "EVAL", "MGET", "PING"),
        "unknown command": each("NOSUCH", "nosuch a b", "GETT k", "PING"),
        "unknown command with much to repeat": [pack("NOSUCH", "x" * 300, "y" * 300, *range(50)), words("PING")],
        "unknown command with line ends": [pack("NO\r\nSUCH", "a\r\n+OK\r\n"), pack("PING")],
        "unknown subcommand": each("CLIENT NOSUCH", "CONFIG NOSUCH", "SCRIPT NOSUCH", "OBJECT NOSUCH k", "PING"),
        "syntax": each("SET k v NOSUCH", "SET k v EX 0", "SET k v EX abc", "ZADD z abc m", "XADD x 0-0 f v", "PING"),
        "scripts": [pack("EVALSHA", "0" * 40, 0), pack("EVAL", "not lua", 0), pack("EVAL", "return 1", "x"),
                    pack("EVAL", "return 1", 5), pack("EVAL", "error('mine')", 0), pack("PING")],
        "empty command name": [pack(""), pack("", "x"), pack("PING")],
        "a name with a NUL": [pack("GE\0T", "k"), pack("PING")],
        "errors between good ones in one write": one_write(
            *map(words, ("SET k v", "LPUSH k x", "GET k", "NOSUCH", "GET", "GET k", "PING"))),
    }
)  # fmt: skip

SHAPES = {
    "inline": [b"PING\r\n", b"SET k v\r\n", b"GET k\r\n", b"DEL k missing\r\n"],
    "inline in one write": [b"SET k v\r\nGET k\r\nPING\r\nGET missing\r\n"],
    "inline, bare line feeds": [b"PING\nPING\n\n\r\n\nECHO x\n"],
    "inline, spaces": [b"   PING   \r\n", b"\tECHO\t \tx\r\n", b"   \r\n", b" \t \r\nPING\r\n", b"ECHO\x0b\x0cx\r\n"],
    "inline, quotes": [b'SET k "a b"\r\n', b"GET k\r\n", b"SET 'k' 'it\\'s'\r\n", b"GET k\r\n", b'ECHO ""\r\n'],
    "inline, escapes": [b'ECHO "\\x41\\n\\r\\t\\b\\a\\q\\"\\\\"\r\n', b"ECHO '\\x41\\n'\r\n", b'ECHO "\\xzz"\r\n'],
    "inline, quote inside a word": [b'ECHO a"b\r\n'],
    "inline, text right behind a quote": [b'ECHO "a"b\r\n'],
    "inline, quote not closed in single quotes": [b"ECHO 'a\r\n"],
    "inline, carriage return inside": [b"ECHO a\rb\r\n", b"ECHO a\r\r\n"],
    "inline, NUL": [b"ECHO a\0b\r\n", b"\0PING\r\n", b"PING\0\r\n", b"PING\r\n"],
    "inline, bytes over 127": [b"ECHO \xff\xfe\xc3\xa9\r\n", b"\xff\xfe\r\n"],
    "inline, many words": [b"DEL" + b" k" * 1000 + b"\r\n"],
    "inline, long": [b"ECHO " + b"x" * 50_000 + b"\r\n"],
    "inline and arrays in turns": [b"PING\r\n" + pack("ECHO", "a") + b"ECHO b\r\n" + pack("PING")],
    "empty array": [b"*0\r\n", b"*0\r\n*0\r\nPING\r\n"],
    "null array": [b"*-1\r\n", b"*-1\r\nPING\r\n", b"*-7\r\nPING\r\n"],
    "empty line between arrays": [pack("PING") + b"\r\n" + pack("PING")],
    "mixed case": [pack("pInG"), pack("sEt", "K", "v"), pack("GeT", "K"), b"gEt K\r\n", pack("Client", "GetName")],
    "binary with line ends": [pack("SET", b"k\r\n\0", b"\r\n$3\r\nabc\r\n*1\r\n"), pack("GET", b"k\r\n\0")],
    "every byte value": [pack("SET", "k", bytes(range(256))), pack("GET", "k"), pack("ECHO", bytes(range(256)))],
    "a megabyte": [pack("SET", "k", b"\r\n" * 524_288), words("GET k"), words("STRLEN k"), words("PING")],
    "a megabyte ten times in one write": [pack("SET", "k", b"x" * 1_000_000), words("GET k") * 10 + words("PING")],
    "a thousand in one write": one_write(*(pack("ECHO", "x" * (number % 100)) for number in range(1000))),
    "a thousand arguments": [pack("RPUSH", "l", *range(1000)), words("LLEN l")],
    "a value that ends at sixteen kilobytes": [pack("ECHO", "x" * size) for size in range(16_360, 16_390)],
    "leading zeroes in lengths": [b"*02\r\n$4\r\nECHO\r\n$1\r\na\r\n", b"*2\r\n$4\r\nECHO\r\n$01\r\na\r\n"],
    "plus sign in a count": [b"*+1\r\n$4\r\nPING\r\n"],
    "plus sign in a length": [b"*1\r\n$+4\r\nPING\r\n"],
    "space in a count": [b"*1 \r\n$4\r\nPING\r\n"],
    "minus zero": [b"*-0\r\nPING\r\n"],
    "line feed alone after a count": [b"*1\n$4\r\nPING\r\n", b"\r\nPING\r\n"],
    # Redis skips two bytes behind a value, whatever they are: what a proxy reads otherwise there is smuggled.
    "other bytes where a value's line ends": [b"*1\r\n$4\r\nPINGxx", b"*2\r\n$4\r\nECHOxx$1\r\nayy", pack("PING")],
    "a value longer than told": [b"*2\r\n$4\r\nECHO\r\n$3\r\nabcde*1\r\n$4\r\nPING\r\n"],
    "another request inside a value's slack": [b"*2\r\n$4\r\nECHO\r\n$1\r\na*1" + b"\r\n$4\r\nPING\r\n"],
    "a bulk string as a request": [b"$4\r\nPING\r\n", b"$5\r\nabcde\r\n"],
    "reply types as requests": [b"+PING\r\n", b":1\r\n", b"-ERR\r\n", b"_\r\n", b"#t\r\n", b"%1\r\n", b">1\r\n",
                                b"~1\r\n"],
}  # fmt: skip

STATE = with_both_protocols(
    {
        "select": each("SELECT 1", "SET k one", "SELECT 0", "GET k", "SELECT 1", "GET k", "DBSIZE"),
        "select in one write": one_write(
            *map(words, ("SET k zero", "SELECT 1", "SET k one", "SELECT 0", "GET k", "SELECT 1", "GET k", "PING"))),
        "select, odd forms": [words("SELECT 16"), words("SELECT -1"), words("SELECT abc"), words("SELECT 1 2"),
                              words("SELECT"), pack("SELECT", ""), pack("SELECT", " 1"), pack("SELECT", "1 "),
                              words("SELECT 01"), words("SELECT +1"), words("SELECT 1.0"),
                              words("SELECT 99999999999999999999"), words("SET k v"), words("SELECT 0"),
                              words("GET k")],
        "a failed select changes nothing": each("SELECT 3", "SET k three", "SELECT 99", "GET k", "SELECT abc", "GET k"),
        "swapdb and move": each("SET k v", "MOVE k 1", "GET k", "SWAPDB 0 1", "GET k", "SWAPDB 0 1", "FLUSHDB ASYNC"),
        "names": each("CLIENT GETNAME", "CLIENT SETNAME mine", "CLIENT GETNAME", "CLIENT SETNAME other",
                      "client getname"),
        "names, odd forms": [pack("CLIENT", "SETNAME", "two words"), pack("CLIENT", "SETNAME", "line\nend"),
                             pack("CLIENT", "SETNAME", "mine"), pack("CLIENT", "SETNAME", "bad name"),
                             words("CLIENT GETNAME"), pack("CLIENT", "SETNAME", ""), words("CLIENT GETNAME"),
                             words("CLIENT SETNAME"), words("CLIENT SETNAME a b"), words("CLIENT GETNAME a"),
                             pack("CLIENT", "SETNAME", "\xe9"), words("CLIENT GETNAME"), words("CLIENT")],
        # The last reply but one is coalesce's to change; what comes next has to wait for the last one all the same.
        **{
            f"name, echo, {last}, in one write": one_write(*map(words, ("CLIENT GETNAME", "ECHO x", last, "PING")))
            for last in ("QUIT", "RESET", "SELECT 1", "SELECT 99", "HELLO 3", "AUTH nobody x", "MULTI", "SUBSCRIBE a",
                         "NOSUCH")
        },
        "rename, echo, rename, in one write": one_write(*map(words, (
            "CLIENT SETNAME a", "ECHO x", "CLIENT GETNAME", "ECHO y", "CLIENT SETNAME b", "CLIENT GETNAME", "RESET",
            "CLIENT GETNAME", "ECHO z", "SELECT 1", "CLIENT GETNAME", "ECHO z", "MULTI", "CLIENT GETNAME", "EXEC"))),
        "setinfo": each("CLIENT SETINFO LIB-NAME lib", "CLIENT SETINFO lib-ver 1.2", "CLIENT SETINFO nosuch x",
                        "CLIENT SETINFO LIB-NAME", "client setinfo LIB-NAME lib", "CLIENT SETINFO"),
        "setinfo with spaces": [pack("CLIENT", "SETINFO", "LIB-NAME", "two words"), pack("PING")],
        "maintenance notifications": each("CLIENT MAINT_NOTIFICATIONS ON", "client Maint_Notifications on",
                                          "CLIENT MAINT_NOTIFICATIONS ON moving-endpoint-type internal-ip",
                                          "CLIENT MAINT_NOTIFICATIONS OFF", "CLIENT MAINT_NOTIFICATIONS", "PING"),
        "how redis-py opens": one_write(words("CLIENT SETINFO LIB-NAME redis-py"), words("CLIENT SETINFO LIB-VER 8.1"),
                                        words("CLIENT MAINT_NOTIFICATIONS ON"), words("SELECT 2"), words("GET k")),
        "other client commands": each("CLIENT NO-EVICT on", "CLIENT NO-EVICT off", "CLIENT TRACKINGINFO",
                                      "CLIENT CACHING YES", "CLIENT UNPAUSE", "CLIENT GETREDIR",
                                      "CLIENT KILL ID 999999"),
        "replies off": [words("CLIENT REPLY OFF"), words("SET k v"), words("CLIENT REPLY ON"), words("GET k")],
        "replies skipped": one_write(*map(words, ("PING a", "CLIENT REPLY SKIP", "PING b", "PING c", "GET k"))),
        "transaction": each("MULTI", "SET k v", "GET k", "INCR n", "EXEC", "GET k"),
        "transaction in one write": one_write(*map(words, ("MULTI", "SET k v", "GET k", "EXEC", "GET k", "PING"))),
        "transaction, discarded": each("MULTI", "SET k v", "DISCARD", "GET k", "DISCARD", "EXEC"),
        "transaction, aborted": each("MULTI", "NOSUCH", "SET k", "SET k v", "EXEC", "GET k"),
        "transaction, odd forms": each("MULTI", "MULTI", "WATCH k", "EXEC", "MULTI x", "EXEC", "WATCH", "UNWATCH",
                                       "PING"),
        "transaction, empty": each("MULTI", "EXEC"),
        "transaction with select": each("MULTI", "SELECT 1", "SET k v", "EXEC", "GET k", "SELECT 0", "GET k"),
        "transaction with names": each("MULTI", "CLIENT SETNAME mine", "CLIENT GETNAME", "EXEC", "CLIENT GETNAME"),
        "transaction that blocks for nothing": each("MULTI", "BLPOP missing 0", "XREAD BLOCK 0 STREAMS x $", "EXEC"),
        "transaction, error inside": each("SET k v", "MULTI", "LPUSH k x", "GET k", "EXEC", "PING"),
        "watch": each("SET k v", "WATCH k", "SET k w", "MULTI", "GET k", "EXEC", "WATCH k", "MULTI", "GET k", "EXEC"),
        "subscribe": each("SUBSCRIBE a b", "PSUBSCRIBE p*", "PING", "PING text", "UNSUBSCRIBE a", "GET k",
                          "UNSUBSCRIBE", "PUNSUBSCRIBE", "GET k", "PING"),
        "unsubscribe from nothing": each("UNSUBSCRIBE", "PUNSUBSCRIBE x", "PING"),
        "publish to oneself": each("SUBSCRIBE a", "PUBLISH a hello", "UNSUBSCRIBE a", "PUBLISH a hello"),
        "tracking": each("CLIENT TRACKING ON", "GET k", "SET k v", "CLIENT TRACKING OFF", "GET k"),
        "script caching": [pack("SCRIPT", "LOAD", "return 'x'"), pack("SCRIPT", "EXISTS", "0" * 40),
                           words("SCRIPT KILL"),
                           words("SCRIPT FLUSH"), pack("EVALSHA", "0" * 40, 0)],
        "reset": each("SELECT 3", "CLIENT SETNAME mine", "RESET", "CLIENT GETNAME", "SET k v", "SELECT 3", "GET k",
                      "GET none"),
        "reset in the middle of things": each("MULTI", "SET k v", "RESET", "GET k", "EXEC", "SUBSCRIBE a", "RESET",
                                              "GET k"),
        "reset in one write": one_write(*map(words, ("SELECT 3", "RESET", "PING", "SET k v", "GET k"))),
        "reset with an argument": each("RESET now", "PING"),
        "reset, mixed case": [words("SELECT 3"), b"rEsEt\r\n", words("GET k")],
        # What a client does that has lost its way: each server says it in its own words.
        "exec and discard without multi": each("EXEC", "DISCARD", "EXEC x", "DISCARD x", "SET k v", "GET k"),
        "exec without multi, in one write": one_write(*map(words, ("SET k v", "EXEC", "GET k", "DISCARD", "GET k"))),
        "multi in multi": each("MULTI", "SET k v", "MULTI", "GET k", "EXEC", "EXEC", "GET k"),
        "multi in multi, in one write": one_write(*map(words, ("MULTI", "SET k v", "MULTI", "GET k", "EXEC", "GET k"))),
        "watch in multi": each("WATCH k", "MULTI", "WATCH k", "UNWATCH", "SET k v", "EXEC", "GET k"),
        "watch in multi, in one write": one_write(*map(words, ("MULTI", "WATCH k", "SET k v", "EXEC", "GET k"))),
        "subscribe in multi": each("MULTI", "SUBSCRIBE a", "PSUBSCRIBE p*", "GET k", "EXEC", "PUBLISH a x", "GET k",
                                   "UNSUBSCRIBE", "PUNSUBSCRIBE", "GET k"),
        "subscribe in multi, discarded": each("MULTI", "SUBSCRIBE a", "DISCARD", "PUBLISH a x", "GET k"),
        "unsubscribe in multi": each("MULTI", "UNSUBSCRIBE", "UNSUBSCRIBE a", "EXEC", "GET k"),
        "select out of range in multi": each("MULTI", "SELECT 99", "SELECT abc", "SELECT 2", "SET k two", "EXEC",
                                             "GET k", "SELECT 0", "GET k"),
        "select out of range in one write": one_write(*map(words, (
            "SELECT 2", "SET k two", "SELECT 99", "GET k", "SELECT -1", "GET k", "SELECT 0", "GET k"))),
        "select out of range while watching": each("SET k v", "WATCH k", "SELECT 99", "GET k", "MULTI", "GET k", "EXEC",
                                                   "GET k"),
        "wrong password in one write with moves": one_write(*map(words, (
            "AUTH alice wrong", "SELECT 1", "SET k one", "GET k", "SELECT 0", "GET k"))),
        "wrong password while moving": each("SELECT 1", "SET k one", "AUTH alice wrong", "GET k", "HELLO 3", "AUTH x y",
                                            "GET none", "SELECT 2", "AUTH alice", "GET k", "SELECT 1", "GET k"),
        "wrong password while watching": each("WATCH k", "AUTH alice wrong", "MULTI", "AUTH bob wrong", "SET k v",
                                              "GET k", "DISCARD", "AUTH alice wrong", "GET k"),
        "wrong password while subscribed": each("SUBSCRIBE a", "AUTH alice wrong", "SELECT 1", "UNSUBSCRIBE", "GET k",
                                                "ACL WHOAMI"),
        "refused while subscribed": each("SUBSCRIBE a", "GET k", "SET k v", "MULTI", "EXEC", "DISCARD", "WATCH k",
                                         "SELECT 1", "SELECT 99", "NOSUCH", "GET", "CLIENT GETNAME", "PUBLISH a x",
                                         "UNSUBSCRIBE a", "GET k"),
        "refused while subscribed, what asks for another connection": each("SUBSCRIBE a", "BLPOP l 0.01", "READONLY",
                                                                           "SCRIPT KILL", "UNSUBSCRIBE", "GET k"),
        "refused while subscribed, in one write": one_write(*map(words, (
            "SUBSCRIBE a", "GET k", "MULTI", "PING", "UNSUBSCRIBE a", "GET k", "PING"))),
        "hello with a bad version in multi": each("MULTI", "HELLO 4", "SET k v", "HELLO abc", "EXEC", "GET none",
                                                  "GET k"),
        "hello with a bad version while watching": each("WATCH k", "HELLO 9", "MULTI", "HELLO 3 NOSUCH", "EXEC",
                                                        "GET none"),
        "hello with a bad version while subscribed": each("SUBSCRIBE a", "HELLO 9", "HELLO 3", "UNSUBSCRIBE a",
                                                          "GET none"),
        "reset in multi": each("SELECT 2", "MULTI", "SET k v", "RESET", "EXEC", "DISCARD", "GET k", "SELECT 2",
                               "GET k"),
        "reset in multi, in one write": one_write(*map(words, (
            "SELECT 2", "MULTI", "SET k v", "RESET", "EXEC", "GET k", "PING"))),
        "reset with an argument in multi": each("MULTI", "RESET now", "SET k v", "EXEC", "GET k"),
        "quit in multi, what follows is lost": one_write(*map(words, ("MULTI", "SET k v", "QUIT", "EXEC", "PING"))),
        "quit in multi that has queued": each("MULTI", "SET k v", "QUIT"),
        "quit while watching": each("WATCH k", "QUIT"),
        "readonly": each("READONLY", "READWRITE", "ASKING", "CLUSTER INFO", "PING"),
        "quit": each("PING", "QUIT"),
        "quit, what follows is lost": one_write(words("SET k v"), words("GET k"), words("QUIT"), words("PING")),
        "quit, inline and mixed case": [b"PING\r\nqUiT\r\nPING\r\n"],
        "quit with an argument": each("QUIT now"),
        "quit from a transaction": each("MULTI", "QUIT"),
        "quit from subscribed": each("SUBSCRIBE a", "QUIT"),
    }
)  # fmt: skip

HELLOS = {
    "bare": each("HELLO", "GET missing"),
    "bare after 3": each("HELLO 3", "HELLO", "GET missing"),
    "2": each("HELLO 2", "GET missing"),
    "3": each("HELLO 3", "GET missing", "HELLO 3"),
    "3 then 2": each("HELLO 3", "GET missing", "HELLO 2", "GET missing"),
    "3 and more in one write": one_write(HELLO_3, words("SET k v"), words("GET k"), words("GET missing"),
                                         words("HGETALL h")),
    "back and forth in one write": one_write(*[HELLO_3, words("GET missing"), words("HELLO 2"),
                                               words("GET missing")] * 3),
    "4": each("HELLO 4", "GET missing"),
    "1": each("HELLO 1", "GET missing"),
    "abc": each("HELLO abc", "GET missing"),
    "empty version": [pack("HELLO", ""), words("GET missing")],
    "03": each("HELLO 03", "GET missing"),
    "+3": each("HELLO +3", "GET missing"),
    "huge": each("HELLO 99999999999999999999", "GET missing"),
    "lower case": each("hello 3 setname mine", "CLIENT GETNAME"),
    "inline": [b"HELLO 3\r\n", b"GET missing\r\n"],
    "setname": each("HELLO 3 SETNAME mine", "CLIENT GETNAME"),
    "setname with spaces": [pack("HELLO", 3, "SETNAME", "two words"), words("CLIENT GETNAME"), words("GET missing")],
    "setname without a name": each("HELLO 3 SETNAME", "GET missing"),
    "setname empty": [words("CLIENT SETNAME mine"), pack("HELLO", 2, "SETNAME", ""), words("CLIENT GETNAME")],
    "nosuch option": each("HELLO 3 NOSUCH", "GET missing"),
    "auth without its words": each("HELLO 3 AUTH", "HELLO 3 AUTH default", "GET missing"),
    "auth of the default user": each("HELLO 3 AUTH default anything", "GET missing", "ACL WHOAMI"),
    "auth of nobody": each("HELLO 3 AUTH nobody anything", "GET missing", "ACL WHOAMI"),
    "auth of a user": each("HELLO 3 AUTH alice alice-pw", "ACL WHOAMI", "GET missing", "GET alice:missing"),
    "auth of a user, wrong": each("HELLO 3 AUTH alice wrong", "ACL WHOAMI", "GET missing"),
    "auth and setname": each("HELLO 3 AUTH alice alice-pw SETNAME mine", "ACL WHOAMI", "CLIENT GETNAME"),
    "setname and auth": each("HELLO 3 SETNAME mine AUTH alice alice-pw", "ACL WHOAMI", "CLIENT GETNAME"),
    "wrong auth and setname": each("HELLO 3 SETNAME mine AUTH alice wrong", "ACL WHOAMI", "CLIENT GETNAME",
                                   "GET missing"),
    "auth and bad setname": [pack("HELLO", 3, "AUTH", "alice", "alice-pw", "SETNAME", "two words"), words("ACL WHOAMI"),
                             words("CLIENT GETNAME"), words("GET missing")],
    "auth given twice": each("HELLO 3 AUTH alice wrong AUTH alice alice-pw", "ACL WHOAMI"),
    "wrong version with good auth": each("HELLO 4 AUTH alice alice-pw", "ACL WHOAMI", "GET missing"),
    "keeps the database": each("SELECT 4", "SET k four", "HELLO 3", "GET k", "HELLO 2 AUTH default x", "GET k"),
    "setname before auth": each("HELLO 3 SETNAME mine", "AUTH alice alice-pw", "CLIENT GETNAME"),
    "within a transaction": each("MULTI", "HELLO 3", "EXEC", "GET missing"),
    "reset goes back to 2": each("HELLO 3", "GET missing", "RESET", "GET missing"),
}  # fmt: skip

AUTHS = with_both_protocols(
    {
        "password of the default user": each("AUTH sesame", "ACL WHOAMI", "GET missing"),
        "wrong password": each("AUTH wrong", "ACL WHOAMI", "GET missing"),
        "user and password": each("AUTH alice alice-pw", "ACL WHOAMI", "GET alice:k", "GET bob:k", "SET alice:k v"),
        "user and wrong password": each("AUTH alice wrong", "ACL WHOAMI", "AUTH alice alice-pw", "ACL WHOAMI"),
        "nobody": each("AUTH nobody x", "ACL WHOAMI"),
        "disabled user": each("AUTH off off-pw", "ACL WHOAMI"),
        "default by name": each("AUTH default sesame", "ACL WHOAMI", "GET missing"),
        "no password": each("AUTH", "ACL WHOAMI"),
        "too many words": each("AUTH a b c", "AUTH a b c d", "ACL WHOAMI"),
        "empty password": [pack("AUTH", ""), pack("AUTH", "alice", ""), words("ACL WHOAMI")],
        "inline and mixed case": [b"aUtH alice alice-pw\r\n", b"ACL WHOAMI\r\n"],
        "binary password": [pack("AUTH", b"\0\r\n\xff"), pack("AUTH", b"alice\0", "alice-pw"), words("ACL WHOAMI")],
        "a failed one changes nothing": each("AUTH alice alice-pw", "AUTH bob wrong", "ACL WHOAMI", "GET bob:k",
                                             "GET alice:k"),
        "one after the other": each("AUTH alice alice-pw", "ACL WHOAMI", "AUTH bob bob-pw", "ACL WHOAMI",
                                    "GET alice:k"),
        "in one write": one_write(words("AUTH alice alice-pw"), words("SELECT 2"), words("GET alice:k"),
                                  words("GET bob:k"),
                                  words("AUTH bob bob-pw"), words("GET alice:k"), words("GET bob:k"),
                                  words("ACL WHOAMI")),
        "the database stays": each("AUTH bob bob-pw", "SELECT 5", "SET bob:k v", "AUTH alice alice-pw", "GET alice:k",
                                   "AUTH bob bob-pw", "GET bob:k"),
        "a user without a command": each("AUTH bob bob-pw", "FLUSHALL", "CONFIG GET maxmemory", "SELECT 1",
                                         "DEBUG PROTOCOL null"),
        "within a transaction": each("AUTH alice alice-pw", "MULTI", "AUTH bob bob-pw", "ACL WHOAMI", "EXEC",
                                     "ACL WHOAMI"),
        "reset logs out": each("AUTH alice alice-pw", "ACL WHOAMI", "RESET", "ACL WHOAMI", "GET k"),
        "who am I": each("ACL WHOAMI", "ACL CAT nosuch", "ACL NOSUCH"),
        "hello needs auth where a password is set": each("HELLO 3", "HELLO 2", "HELLO", "GET missing"),
        "hello with auth": each("HELLO 3 AUTH alice alice-pw", "ACL WHOAMI", "GET alice:k", "GET bob:k"),
        "hello with wrong auth": each("HELLO 3 AUTH alice wrong", "ACL WHOAMI", "HELLO 2 AUTH bob bob-pw",
                                      "ACL WHOAMI"),
        "before auth": each("GET k", "NOSUCH", "GET", "SELECT 1", "CLIENT SETNAME mine", "CLIENT GETNAME", "MULTI",
                            "EXEC",
                            "SUBSCRIBE a", "CLIENT SETINFO LIB-NAME x", "CLIENT MAINT_NOTIFICATIONS ON", "RESET",
                            "PING"),
        "quit before auth": each("QUIT"),
    }
)  # fmt: skip

# Each of these ends the connection, or leaves it waiting for bytes that never come.
BAD_INPUT = {
    "unbalanced quotes": [b'SET k "v\r\n'],
    "unbalanced single quotes": [b"SET k 'v\r\n"],
    "unbalanced quotes behind good requests": [words("PING") + b"GET k\r\n" + b'SET k "v\r\n' + words("PING")],
    "too long inline": [b"x" * 100_000],
    "too long inline that ends": [b"ECHO " + b"x" * 200_000 + b"\r\nPING\r\n"],
    "too long inline in pieces": [b"x" * 30_000] * 3,
    "too long multibulk count": [b"*" + b"1" * 100_000],
    "too long bulk length": [b"*1\r\n$" + b"1" * 100_000],
    "count of letters": [b"*abc\r\n"],
    "count of nothing": [b"*\r\n"],
    "count with a fraction": [b"*1.5\r\n$4\r\nPING\r\n"],
    "count over 32 bits": [b"*2147483648\r\n"],
    "count over 64 bits": [b"*99999999999999999999\r\n"],
    "count over a million": [b"*1048577\r\n"],
    "count over a million, in pieces": [b"*10", b"4857", b"7\r", b"\n"],
    "a large count and little else": [b"*1000000\r\n$4\r\nPING\r\n"],
    "length of letters": [b"*1\r\n$abc\r\n"],
    "length of nothing": [b"*1\r\n$\r\n"],
    "length below zero": [b"*1\r\n$-1\r\n"],
    "length below zero, later": [b"*2\r\n$4\r\nECHO\r\n$-1\r\n"],
    "length over 512 MB": [b"*2\r\n$4\r\nECHO\r\n$536870913\r\n"],
    "length over 64 bits": [b"*2\r\n$4\r\nECHO\r\n$99999999999999999999\r\n"],
    "length over 512 MB behind a good request": [words("PING") + b"*2\r\n$4\r\nECHO\r\n$536870913\r\n"],
    "integer inside": [b"*1\r\n:5\r\n"],
    "simple string inside": [b"*2\r\n$4\r\nECHO\r\n+a\r\n"],
    "array inside": [b"*1\r\n*1\r\n$4\r\nPING\r\n"],
    "deep arrays": [b"*1\r\n" * 1000],
    "null inside": [b"*2\r\n$4\r\nECHO\r\n_\r\n"],
    "NUL for a type": [b"*1\r\n\0"],
    "line end for a type": [b"*1\r\n\r\n$4\r\nPING\r\n"],
    "byte over 127 for a type": [b"*1\r\n\xff4\r\nPING\r\n"],
    "a value shorter than told": [b"*1\r\n$4\r\nPIN\r\n*1\r\n$4\r\nPING\r\n"],
    "what follows is not read": [b"*abc\r\n" + words("SET k v") + words("PING")],
    "many replies before it": [words("PING") * 500 + b"*abc\r\n"],
    "http post": [b"POST / HTTP/1.1\r\n"],
    "http post, whole": [b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nPIN"],
    "http host": [b"Host: localhost\r\n"],
    "http host, mixed case": [b"hOsT: localhost\r\n"],
    # In two writes: Redis throws away the replies to what came in the same read as the Host line, a matter of timing.
    "http get": [b"GET / HTTP/1.1\r\n", b"Host: localhost\r\n\r\n"],
    "http post in an array": [pack("pOsT", "/", "HTTP/1.1")],
    "http host in an array": [pack("HOST:")],
    "http post later": [words("PING"), b"POST / HTTP/1.1\r\n"],
    "http post in a transaction": [words("MULTI"), b"POST / HTTP/1.1\r\n"],
    "an unfinished request": [b"*2\r\n$4\r\nECHO\r\n$5\r\nab"],
    "tls hello": [bytes.fromhex("16030100a5010000a10303") + bytes(range(150)) + b"\r\n"],
    "after hello 3": [HELLO_3, b"*abc\r\n"],
    "in a transaction": [words("MULTI"), words("SET k v"), b"*abc\r\n"],
    "while subscribed": [words("SUBSCRIBE a"), b"*abc\r\n"],
    "while subscribed, unbalanced": [words("SUBSCRIBE a"), b'PING "\r\n'],
}

# Before AUTH Redis takes at most 10 arguments of at most 16384 bytes.
BAD_INPUT_BEFORE_AUTH = {
    "ten arguments": [pack("DEL", *range(9)), words("PING")],
    "eleven arguments": [pack("DEL", *range(10)), words("PING")],
    "16384 bytes": [pack("ECHO", "x" * 16_384), words("PING")],
    "16385 bytes": [pack("ECHO", "x" * 16_385), words("PING")],
    "inline of eleven words": [b"DEL 1 2 3 4 5 6 7 8 9 10\r\n", b"PING\r\n"],
    "eleven arguments right behind a good auth": [words("AUTH sesame"), pack("DEL", *range(10)), words("PING")],
    "eleven arguments behind auth in one write": one_write(
        words("AUTH sesame"), pack("DEL", *range(10)), words("PING")
    ),
    "eleven arguments behind a wrong auth": [words("AUTH wrong"), pack("DEL", *range(10)), words("PING")],
    "eleven arguments behind hello": [words("HELLO 3 AUTH alice alice-pw"), pack("MGET", *range(10)), words("PING")],
    "eleven arguments after reset": [words("AUTH sesame"), words("RESET"), pack("DEL", *range(10)), words("PING")],
    "http post": [b"POST / HTTP/1.1\r\n"],
    "unbalanced quotes": [b'AUTH "sesame\r\n'],
    "count of letters": [b"*abc\r\n"],
}


NO_LINE_END = "it refuses a length or a value without a line end"
BYTE_255 = "it leaves a byte 255 out of an inline request"
READ_ITS_OWN_WAY = {
    "inline, text right behind a quote": "it takes that for a part of the argument",
    **dict.fromkeys(("inline, bytes over 127", "letters 4", "noise 9", "noise 10"), BYTE_255),
    **dict.fromkeys(("other bytes where a value's line ends", "a value longer than told", "a value shorter than told",
                     "another request inside a value's slack", "damaged 2", "damaged 4", "letters 11"), NO_LINE_END),
}  # fmt: skip


def known_difference(name: str, executable: Executable, *, whole: bool) -> str | None:
    """Why a conversation is another one behind coalesce, written as it stands (`whole`) or byte by byte."""
    if name.endswith("AUTH nobody x, in one write") and whole and drops_auth_errors(executable):
        return "it drops the error behind other replies"
    return READ_ITS_OWN_WAY.get(name) if reads_its_own_way(executable) else None


def random_bytes() -> Iterable[tuple[str, Conversation]]:
    """Noise, noise with line ends, and requests with a few bytes changed; always the same ones."""
    for seed in range(12):
        chance = random.Random(seed)
        yield f"noise {seed}", [chance.randbytes(400) + b"\r\n"]
        letters = b"*$:+-\r\n\r\n0123456789PINGECHO \"'\\x\0\xff"
        yield f"letters {seed}", [bytes(chance.choices(letters, k=400)) + b"\r\n"]
        damaged = bytearray(b"".join(pack("ECHO", "x" * chance.randrange(20)) for _ in range(10)))
        for _ in range(2):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        yield f"damaged {seed}", [bytes(damaged)]


# What random conversations are made of: requests that ride a lane, that coalesce answers itself, that change the
# identity, that need a connection of their own. Some twice, so that most conversations go on for a while.
LANE = ["PING", "GET k", "SET k v", "GET big", "GET big", "MGET big k big", "INCR n", "ECHO a", "ECHO b", "GET nobody",
        "LRANGE l 0 -1", "RPUSH l x", "LPUSH k x", "GET", "PING x", "EVAL return{1,{2}} 0",
        "SETRANGE big 300000 end"]  # fmt: skip
LOCAL = ["CLIENT GETNAME", "CLIENT SETNAME mine", "CLIENT SETNAME other", "CLIENT SETINFO LIB-NAME x",
         "CLIENT MAINT_NOTIFICATIONS ON", "CLIENT GETNAME x"]  # fmt: skip
IDENTITY = ["SELECT 1", "SELECT 0", "SELECT 99", "HELLO 3", "HELLO 2", "HELLO 4", "HELLO", "HELLO 3 SETNAME named",
            "AUTH alice wrong", "AUTH default x", "HELLO 3 AUTH alice wrong", "RESET", "AUTH alice alice-pw",
            "AUTH sesame", "HELLO 2 AUTH bob bob-pw", "HELLO 3 AUTH default sesame", "ACL WHOAMI",
            "ACL WHOAMI"]  # fmt: skip
# CLIENT REPLY OFF isn't among them: a request without a reply may be executed when the next conversation has begun.
OWN = ["MULTI", "EXEC", "DISCARD", "WATCH k", "SUBSCRIBE a", "UNSUBSCRIBE", "NOSUCH", "BLPOP l 0",
       "XREAD BLOCK 0 STREAMS k 0", "DEBUG PROTOCOL map", "QUIT"]  # fmt: skip


def random_conversation(seed: int, executable: Executable) -> Conversation:
    """Two to fourteen requests of all kinds in one to three writes; always the same for a seed and a server."""
    chance = random.Random(seed)
    kinds = chance.choices([LANE, LOCAL, IDENTITY, OWN], weights=[10, 4, 3, 1], k=chance.randrange(2, 15))
    texts = [chance.choice(kind) for kind in kinds]
    if drops_auth_errors(executable):
        texts = texts[:1] + [text for text in texts[1:] if not may_fail_to_authenticate(tuple(text.encode().split()))]
    requests = [words(text) for text in texts]
    cuts = sorted(chance.randrange(len(requests)) for _ in range(chance.choice((0, 0, 1, 2))))
    writes = [requests[start:end] for start, end in zip([0, *cuts], [*cuts, len(requests)], strict=True)]
    return [b"".join(write) for write in writes if write]
