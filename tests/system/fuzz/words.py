"""What requests are made of, for commands whose arguments have to make sense to get past the first error.

A template is a command as one would write it. A word may have alternatives (`NX|XX|`, the empty one leaves it out),
several arguments (`EX~100`), `+` at its end (one to three times), and places to be filled in, `<k>`: see
`generator.Filler`. Keys are few, and one in five is of another type than the command wants.

Nothing here may depend on the time that passes between two requests (a key expires in a day, or has expired already),
nor leave behind what a server chose at random (SPOP takes all, or from a set of one).
"""

from __future__ import annotations

KEYS = {
    b"s": (b"s1", b"s2", b"s3"),
    b"h": (b"h1", b"h2"),
    b"l": (b"l1", b"l2", b"l3"),
    b"t": (b"t1", b"t2", b"t3"),
    b"z": (b"z1", b"z2"),
    b"x": (b"x1", b"x2"),
    b"g": (b"g1",),
    b"p": (b"p1", b"p2"),
    b"b": (b"b1", b"b2"),
    b"odd": (b"", b"k\r\n", b"\x00\xff"),
}

VALUES = (b"", b"v", b"1", b"10", b"-3", b"3.25", b"a b", b"\r\n", b"+OK\r\n", b"$-1\r\n", b"*1\r\n", b"\x00\xff\xfe",
          b"foobar", b"99999999999", b"x" * 70)  # fmt: skip

# Numbers that are harmless wherever they stand: as a length they are refused, as a time they are past or far.
NUMBERS = (b"0", b"-1", b"99999999999", b"9223372036854775807", b"-9223372036854775808", b"9223372036854775808",
           b"1.5", b"abc", b"", b"nan")  # fmt: skip

STRINGS = """
SET <s> <v> NX|XX|||| GET||||| EX~100000|PX~99999999999|KEEPTTL|EXAT~99999999999|PXAT~1|||||
SET <s> <v>
SET <s> <v>
SET <s> <n>
GET <s>
GET <s>
GET <k>
GETSET <s> <v>
GETDEL <s>
GETEX <s> EX~100000|PERSIST|PXAT~1|EXAT~99999999999|
SETNX <s> <v>
SETEX <s> 100000|<bad> <v>
PSETEX <s> 99999999999|<bad> <v>
MSET <s>~<v>+
MSETNX <s>~<v>+
MGET <k>+
STRLEN <s>
APPEND <s> <v>
SETRANGE <s> <i>|5000 <v>
GETRANGE <s> <i> <i>
SUBSTR <s> <i> <i>
INCR <s>
DECR <s>
INCRBY <s> <n>
DECRBY <s> <n>
INCRBYFLOAT <s> 0.5|<n>
LCS <s> <s> LEN|IDX| WITHMATCHLEN|
SETBIT <b> <i>|100 0|1|<bad>
GETBIT <b> <i>
BITCOUNT <b> <i>~<i>|<i>~<i>~BIT||
BITPOS <b> 0|1 <i>||
BITOP AND|OR|XOR|NOT <b> <b>+
BITFIELD <b> GET~u8~<i>|SET~i5~#<i>~<n>|INCRBY~u2~100~1|OVERFLOW~FAIL~INCRBY~u2~100~<n>+
BITFIELD_RO <b> GET~u8~<i>
PFADD <p> <m>+
PFCOUNT <p>+
PFMERGE <p> <p>+
"""

HASHES = """
HSET <h> <f>~<v>+
HSET <h> <f>~<v>+
HMSET <h> <f>~<v>+
HSETNX <h> <f> <v>
HGET <h> <f>
HMGET <h> <f>+
HGETALL <h>
HGETALL <h>
HKEYS <h>
HVALS <h>
HLEN <h>
HDEL <h> <f>+
HEXISTS <h> <f>
HSTRLEN <h> <f>
HINCRBY <h> <f> <n>
HINCRBYFLOAT <h> <f> 1.5|<n>
HRANDFIELD <h> <i>|<i>~WITHVALUES|
HSCAN <h> 0 MATCH~*|MATCH~f*| COUNT~1000
"""

LISTS = """
RPUSH <l> <v>+
LPUSH <l> <v>+
RPUSH <l> 3 1 2
LPUSHX <l> <v>
RPUSHX <l> <v>
LPOP <l> <i>||
RPOP <l> <i>||
LRANGE <l> <i> <i>
LRANGE <l> 0 -1
LLEN <l>
LINDEX <l> <i>
LSET <l> <i> <v>
LINSERT <l> BEFORE|AFTER|<bad> <v> <v>
LREM <l> <i> <v>
LTRIM <l> <i> <i>
LPOS <l> <v> RANK~1|RANK~0|COUNT~0|MAXLEN~2||
LMOVE <l> <l> LEFT|RIGHT LEFT|RIGHT
RPOPLPUSH <l> <l>
LMPOP <c>~<l> LEFT|RIGHT COUNT~2|
SORT <l> ALPHA|LIMIT~0~2|DESC|BY~nosort|BY~s*|GET~#~GET~s*||
SORT <l> ALPHA STORE <l>
SORT_RO <l> ALPHA|
"""

SETS = """
SADD <t> <m>+
SADD <t> <m>+
SADD <t> <i>+
SREM <t> <m>+
SMEMBERS <t>
SCARD <t>
SISMEMBER <t> <m>
SMISMEMBER <t> <m>+
SMOVE <t> <t> <m>
SINTER <t>+
SUNION <t>+
SDIFF <t>+
SINTERSTORE <t> <t>+
SUNIONSTORE <t> <t>+
SDIFFSTORE <t> <t>+
SINTERCARD <c>~<t> LIMIT~1|
SRANDMEMBER <t> <i>|
SPOP <t> 1000
SSCAN <t> 0 COUNT~1000 MATCH~*|
SORT <t> ALPHA
"""

ZSETS = """
ZADD <z> NX|XX|GT||| CH|| <r>~<m>+
ZADD <z> <r>~<m>+
ZADD <z> INCR <r> <m>
ZINCRBY <z> <r> <m>
ZREM <z> <m>+
ZSCORE <z> <m>
ZMSCORE <z> <m>+
ZCARD <z>
ZCOUNT <z> -inf|(1|0 +inf|5
ZRANK <z> <m>
ZREVRANK <z> <m>
ZRANGE <z> <i> <i> WITHSCORES|REV|
ZRANGE <z> -inf +inf BYSCORE LIMIT~0~2| WITHSCORES|
ZRANGE <z> - + BYLEX
ZRANGEBYSCORE <z> -inf +inf WITHSCORES|
ZREVRANGEBYSCORE <z> +inf -inf
ZRANGEBYLEX <z> - [m
ZREVRANGEBYLEX <z> + -
ZLEXCOUNT <z> - +
ZREVRANGE <z> 0 -1 WITHSCORES|
ZRANGESTORE <z> <z> 0 1
ZPOPMIN <z> <i>||
ZPOPMAX <z> <i>||
ZMPOP <c>~<z> MIN|MAX COUNT~2|
ZREMRANGEBYRANK <z> 0 <i>
ZREMRANGEBYSCORE <z> 3 4
ZREMRANGEBYLEX <z> [a [b
ZUNION <c>~<z> WITHSCORES|
ZINTER <c>~<z> WITHSCORES|
ZDIFF <c>~<z> WITHSCORES|
ZUNIONSTORE <z> <c>~<z> AGGREGATE~MAX|
ZINTERSTORE <z> <c>~<z>
ZDIFFSTORE <z> <c>~<z>
ZINTERCARD <c>~<z> LIMIT~1|
ZRANDMEMBER <z> <i>|<i>~WITHSCORES|
ZSCAN <z> 0 COUNT~1000
GEOADD <g> NX|XX|| 13.361389~38.115556~Palermo|15.087269~37.502669~Catania|200~0~nowhere+
GEOPOS <g> Palermo Catania|<m>
GEODIST <g> Palermo Catania km|ft|
GEOHASH <g> Palermo <m>
GEOSEARCH <g> FROMLONLAT~15~37|FROMMEMBER~Palermo BYRADIUS~200~km|BYBOX~400~400~km ASC WITHCOORD| WITHDIST| WITHHASH|
GEOSEARCHSTORE <g> <g> FROMLONLAT~15~37 BYRADIUS~200~km STOREDIST|
GEORADIUS <g> 15 37 200 km ASC WITHDIST|STORE~<z>|
GEORADIUSBYMEMBER <g> Palermo 200 km ASC
"""

STREAMS = """
XADD <x> <id> <f>~<v>+
XADD <x> <id> <f>~<v>+
XADD <x> * <f> <v>
XADD <x> NOMKSTREAM <id> <f> <v>
XADD <x> MAXLEN|MAXLEN~= 3 <id> <f> <v>
XLEN <x>
XRANGE <x> -|<id> +|<id> COUNT~2|
XREVRANGE <x> + -
XDEL <x> <id>+
XTRIM <x> MAXLEN|MAXLEN~= <i>
XREAD COUNT~2| STREAMS <x> 0|<id>|$
XREAD STREAMS <x> <x> 0 0
XGROUP CREATE <x> <gr> 0|$ MKSTREAM|
XGROUP CREATE <x> <gr> 0 MKSTREAM
XGROUP DESTROY <x> <gr>
XGROUP CREATECONSUMER <x> <gr> <co>
XGROUP DELCONSUMER <x> <gr> <co>
XGROUP SETID <x> <gr> 0
XREADGROUP GROUP <gr> <co> COUNT~2|NOACK| STREAMS <x> >
XREADGROUP GROUP <gr> <co> STREAMS <x> 0
XACK <x> <gr> <id>+
XCLAIM <x> <gr> <co> 0 <id> JUSTID|FORCE|
XAUTOCLAIM <x> <gr> <co> 0 0 COUNT~2| JUSTID|
XPENDING <x> <gr> -~+~10|
XINFO STREAM <x> FULL|
XINFO GROUPS <x>
XINFO CONSUMERS <x> <gr>
XSETID <x> <id>
"""

KEYSPACE = """
DEL <k>+
UNLINK <k>+
EXISTS <k>+
TOUCH <k>+
TYPE <k>
RENAME <k> <k>
RENAMENX <k> <k>
COPY <k> <k> REPLACE| DB~<db>|
MOVE <k> <db>
EXPIRE <k> 100000|99999999|-1|<bad> NX|XX|GT|LT|||
PEXPIRE <k> 99999999999|-1|<bad>
EXPIREAT <k> 99999999999|1|<bad>
PEXPIREAT <k> 99999999999999|1
TTL <k>
PTTL <k>
EXPIRETIME <k>
PEXPIRETIME <k>
PERSIST <k>
DUMP <k>
RESTORE <k> 0|99999999999|-1 <dump> REPLACE| ABSTTL|
OBJECT ENCODING|REFCOUNT|IDLETIME|FREQ|NOSUCH <k>
OBJECT HELP
MEMORY USAGE <k>
KEYS *|s*|[a-h]*
SCAN 0 MATCH~*| COUNT~1000 TYPE~string|
SCAN <i>
RANDOMKEY
DBSIZE
FLUSHDB ASYNC|SYNC|
FLUSHALL
SWAPDB <db> <db>
SORT <k> ALPHA|
"""

SCRIPTS = """
EVAL <lua> <nk>
EVAL <lua> <nk>
EVAL_RO <lua> <nk>
EVALSHA <sha> <nk>
EVALSHA_RO <sha> <nk>
SCRIPT LOAD <lua>
SCRIPT LOAD <lua>
SCRIPT EXISTS <sha>+
SCRIPT FLUSH ASYNC|SYNC|
SCRIPT SHOW|NOSUCH|HELP
SCRIPT KILL
FUNCTION LOAD REPLACE| <library>
FUNCTION LOAD REPLACE <library>
FUNCTION LIST WITHCODE|
FUNCTION DELETE lib|nosuch
FUNCTION FLUSH
FUNCTION STATS
FUNCTION KILL
FUNCTION DUMP
FCALL put|got|nosuch <nk>
FCALL_RO put|got <nk>
"""

# Said to servers that have them.
NEWER = """
HEXPIRE <h> 100000|-1|<bad> NX|XX|| FIELDS <c> <f>
HPEXPIRE <h> 99999999999|0 FIELDS <c> <f>
HEXPIREAT <h> 99999999999|1 FIELDS <c> <f>
HPEXPIREAT <h> 99999999999999|1 GT|LT|| FIELDS <c> <f>
HTTL <h> FIELDS <c> <f>
HPTTL <h> FIELDS <c> <f>
HEXPIRETIME <h> FIELDS <c> <f>
HPEXPIRETIME <h> FIELDS <c> <f>
HPERSIST <h> FIELDS <c> <f>
HGETDEL <h> FIELDS <c> <f>
HGETEX <h> EX~100000|PERSIST|| FIELDS <c> <f>
HSETEX <h> FNX|FXX|| EX~100000|KEEPTTL|| FIELDS <c> <f> <v>
XDELEX <x> KEEPREF|DELREF|ACKED IDS <c> <id>
XACKDEL <x> <gr> KEEPREF|DELREF|ACKED IDS <c> <id>
DELIFEQ <s> <v>
MSETEX <c> <s> <v> NX|XX|| EX~100000|KEEPTTL||
"""

SERVER = """
PING
PING <v>
ECHO <v>
TIME
LASTSAVE
ROLE
INFO server|nosuch|
COMMAND COUNT
COMMAND INFO get|nosuch+
COMMAND GETKEYS MSET|GET|NOSUCH <k>~<v>
COMMAND GETKEYSANDFLAGS SET <k> <v>
COMMAND DOCS get|nosuch
COMMAND LIST FILTERBY PATTERN getr*|FILTERBY~ACLCAT~hyperloglog
COMMAND HELP
CONFIG GET maxmemory*|hz|nosuch
CONFIG SET maxmemory-samples|nosuch 5
CONFIG SET notify-keyspace-events KEA|A
CONFIG RESETSTAT
LATENCY RESET|LATEST|HELP
SLOWLOG GET|LEN|RESET|HELP
MEMORY DOCTOR|STATS|HELP
ACL WHOAMI
ACL WHOAMI
ACL USERS
ACL LIST
ACL CAT hyperloglog|nosuch|
ACL GETUSER alice|nosuch
ACL DRYRUN alice|bob get|set|flushall s1|l1
ACL GENPASS 32|
ACL LOG RESET|
ACL HELP
CLUSTER INFO|NODES|KEYSLOT~<k>
WAIT 0 0|100
WAITAOF 0 0 0
READONLY
READWRITE
ASKING
"""

CLIENT = """
CLIENT GETNAME
CLIENT GETNAME
CLIENT SETNAME <name>
CLIENT SETNAME <name>
CLIENT SETINFO LIB-NAME|LIB-VER|NOSUCH <name>
CLIENT ID
CLIENT INFO
CLIENT LIST TYPE~normal|ID~1|NOSUCH|
CLIENT GETREDIR
CLIENT TRACKINGINFO
CLIENT NO-EVICT ON|OFF|NOSUCH
CLIENT NO-TOUCH ON|OFF
CLIENT UNBLOCK 99999999999
CLIENT CACHING YES|NO
CLIENT HELP
CLIENT NOSUCH
CLIENT
"""

IDENTITY = """
SELECT <db>
SELECT <db>
SELECT <bad>
HELLO 2|3
HELLO 2|3
HELLO 3
HELLO |4|<bad>
HELLO 2|3 SETNAME <name>
HELLO 2|3 AUTH~default~sesame|AUTH~fuzz~fuzz-pw|AUTH~bob~bob-pw|AUTH~alice~wrong SETNAME~<name>||
AUTH fuzz fuzz-pw
AUTH bob bob-pw
AUTH alice alice-pw
AUTH alice|off|nosuch wrong|off-pw
AUTH sesame|wrong
AUTH default sesame|x
RESET
"""

TRANSACTIONS = """
MULTI
EXEC
DISCARD
WATCH <k>+
UNWATCH
"""

CHANNELS = """
SUBSCRIBE <ch>+
SUBSCRIBE <ch>+
PSUBSCRIBE <pat>+
SSUBSCRIBE <ch>+
UNSUBSCRIBE <ch>|
PUNSUBSCRIBE <pat>|
SUNSUBSCRIBE <ch>|
PUBLISH <ch> <v>
PUBLISH <ch> <v>
PUBLISH <ch> <v>
SPUBLISH <ch> <v>
PUBSUB CHANNELS c*|
PUBSUB NUMSUB <ch>+
PUBSUB NUMPAT
PUBSUB SHARDCHANNELS
PUBSUB SHARDNUMSUB <ch>
"""

TRACKING = """
CLIENT TRACKING ON|OFF BCAST|BCAST~PREFIX~s|OPTIN|OPTOUT|NOLOOP||
CLIENT TRACKING ON
CLIENT CACHING YES|NO
"""

REPLIES_OFF = """
CLIENT REPLY ON|OFF|SKIP
CLIENT REPLY SKIP|ON
"""

# <to> is short on some connections, so that it ends by itself, and endless on others, where somebody else ends it.
BLOCKING = """
BLPOP <l>+ <to>
BRPOP <l>+ <to>
BLMOVE <l> <l> LEFT|RIGHT LEFT|RIGHT <to>
BRPOPLPUSH <l> <l> <to>
BLMPOP <to> <c>~<l> LEFT COUNT~2|
BZPOPMIN <z>+ <to>
BZPOPMAX <z>+ <to>
BZMPOP <to> <c>~<z> MIN
XREAD BLOCK <ms> STREAMS <x> $|0
XREADGROUP GROUP <gr> <co> BLOCK <ms> STREAMS <x> >
WAIT 1 <ms>
BLPOP <l> abc|-1
"""

LUA = (
    b"return 1",
    b"return {KEYS, ARGV, {1, {2}}}",
    b"return redis.call('SET', KEYS[1], 'lua')",
    b"return redis.call('GET', KEYS[1])",
    b"redis.call('RPUSH', KEYS[1], 'a', 'b') return redis.status_reply('FINE')",
    b"return redis.call('INCR', KEYS[1])",
    b"return redis.pcall('NOSUCH')",
    b"return redis.error_reply('MINE own')",
    b"redis.setresp(3) return {map = {a = {double = 0.5}}}",
    b"return not lua",
    b"redis.call('PUBLISH', 'c1', 'from lua') return false",
    b"return redis.call('BLPOP', KEYS[1], 0)",
    b"#!lua flags=no-writes\nreturn redis.call('SET', KEYS[1], 'x')",
    b"return redis.call('SUBSCRIBE', 'c1')",
)

LIBRARY = b"""#!lua name=lib
redis.register_function('put', function(keys, args) return redis.call('SET', keys[1], 'fn') end)
redis.register_function{function_name='got', callback=function(keys, args) return redis.call('GET', keys[1]) end,
                        flags={'no-writes'}}
"""

UNKNOWN = (b"NOSUCH", b"GETT", b"", b"\x00", b"NO\r\nSUCH", b"n" * 200, b"set ", b"SUBSCRIB", b"MULTI2")

# Nothing in these two that Valkey 9 reads its own way: see `tests/system/differences.py`.
INLINE = (
    b"PING\r\n", b"PING\n", b"SET s1 v\r\n", b"GET s1\r\n", b'SET s2 "a b\\r\\n"\r\n', b"ECHO 'x y'\r\n", b"\r\n",
    b"  \r\n", b"NOSUCH a b\r\n", b"MULTI\r\n", b"EXEC\r\n", b"SUBSCRIBE c1\r\n", b"GET\r\n", b"HELLO 3\r\n",
    b"CLIENT GETNAME\r\n", b"*0\r\n", b"*-1\r\n",
)  # fmt: skip

# The server says what is wrong, and closes.
MALFORMED = (
    b"*1\r\n$-5\r\n", b"*x\r\n", b"*1\r\n:1\r\n", b'SET s1 "open\r\n', b"*2\r\n$3\r\nGET\r\n$x\r\n",
    b"*99999999999\r\n", b"POST / HTTP/1.1\r\n", b"Host: x\r\n",
)  # fmt: skip

# name: why the fuzzer never says it by itself
EXCLUDED = {
    b"SHUTDOWN": "ends the server",
    b"DEBUG": "can stop or crash the server",
    **dict.fromkeys((b"SYNC", b"PSYNC", b"REPLCONF"), "makes the connection a replica's"),
    **dict.fromkeys((b"REPLICAOF", b"SLAVEOF", b"FAILOVER"), "makes the server a replica"),
    **dict.fromkeys((b"SAVE", b"BGSAVE", b"BGREWRITEAOF"), "forks, so that replies depend on time"),
    b"MODULE": "loads code",
    b"MIGRATE": "connects to other servers",
    b"MONITOR": "shows the control connections, and coalesce's own commands",
    b"LOLWUT": "draws at random",
    b"CONFIG": "breaks the server; harmless ones are written out",
    b"ACL": "breaks the users; harmless ones are written out",
    b"CLIENT": "KILL, PAUSE: by hand only",
    b"LATENCY": "figures; written out",
    b"PFDEBUG": "for Redis's own tests",
    b"PFSELFTEST": "for Redis's own tests, and slow",
    b"SPOP": "leaves different data behind; harmless ones are written out",
    b"SCAN": "a cursor is a place in a hash table; written out",
    b"SORT": "stores what is equal in any order; written out",
    b"FUNCTION": "RESTORE, KILL: written out",
    b"SCRIPT": "DEBUG: written out",
    b"WAIT": "blocks; written out",
    b"WAITAOF": "blocks; written out",
    b"XREAD": "may block; written out",
    b"XREADGROUP": "may block; written out",
    **dict.fromkeys((b"POST", b"HOST:"), "drops what was not written yet; written out"),
    b"QUIT": "at the end of a sequence",
    **dict.fromkeys((b"EXPIRE", b"PEXPIRE", b"SETEX", b"PSETEX", b"GETEX", b"RESTORE", b"RESTORE-ASKING", b"EXPIREAT",
                     b"PEXPIREAT"), "a time that is neither past nor far; written out"),
    **dict.fromkeys((b"BLPOP", b"BRPOP", b"BLMOVE", b"BRPOPLPUSH", b"BLMPOP", b"BZPOPMIN", b"BZPOPMAX", b"BZMPOP"),
                    "blocks; written out"),
}  # fmt: skip
