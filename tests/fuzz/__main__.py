"""The command line: see `tests/fuzz/__init__.py`."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .corpus import TARGETS, lines_of_core, load, reduced

# Seconds for one input, before it counts as a hang. The slowest sound ones take a tenth of one.
PATIENCE = 20
# What a mutation may insert. Comparisons within a dict or a set tell the fuzzer nothing.
WORDS = {
    "requests": b"""
        GET SET ECHO PING MGET DEL get set MULTI EXEC DISCARD WATCH UNWATCH multi exec BLPOP XREAD BLOCK STREAMS
        XREADGROUP GROUP COUNT NOACK SUBSCRIBE UNSUBSCRIBE PSUBSCRIBE PUNSUBSCRIBE SSUBSCRIBE SUNSUBSCRIBE subscribe
        unsubscribe CLIENT SETNAME GETNAME SETINFO ID LIST REPLY ON OFF SKIP MAINT_NOTIFICATIONS TRACKING KILL HELLO 2 3
        AUTH good bad SELECT 0 1 99 RESET QUIT POST Host: MONITOR STRANGE WAIT WAITAOF ASKING SWAPDB FLUSHALL ACL
        CLUSTER CONFIG FROBNICATE EVAL PUBLISH
    """.split(),
    "replies": [],
}
FRAMES = {
    "requests": [
        b"*1\r\n$4\r\nPING\r\n", b"*2\r\n$3\r\nGET\r\n$1\r\n\xfc\r\n",
        b"*2\r\n$4\r\nECHO\r\n$1\r\n\xfc\r\n",
        b"*3\r\n$3\r\nSET\r\n$1\r\n\xfc\r\n$2\r\n\r\n\r\n", b"*1\r\n$5\r\nMULTI\r\n", b"*1\r\n$4\r\nEXEC\r\n",
        b"*2\r\n$9\r\nSUBSCRIBE\r\n$1\r\nc\r\n", b"*1\r\n$11\r\nUNSUBSCRIBE\r\n",
        b"*2\r\n$4\r\nAUTH\r\n$4\r\ngood\r\n",
        b"*2\r\n$6\r\nSELECT\r\n$1\r\n1\r\n", b"GET \xfc\r\n", b"ECHO '\xfc'\n", b"MULTI\r\n", b"EXEC\r\n",
        b"WATCH k\r\n",
        b"SUBSCRIBE c\r\n", b"UNSUBSCRIBE\r\n", b'SET \xfc "\\x41"\r\n', b"'a'\x0b", b"\x0b",
        b"*0\r\n", b"*-1\r\n", b"*1048577\r\n",
        b"*2147483648\r\n", b"$-1\r\n", b"$16385\r\n", b"$66001\r\n", b"\xfek\xff",
        b"\xff\x04", b"\xff\x05", b"\xff\x0c", b"\xff\x00",
        b"\xff\x01", b"*11\r\n", b"\xfd\x10\x01", b"\\x", b"\0", b"\r", b"\n", b"\r\n",
    ],
    "replies": [
        b"+OK\r\n", b"-ERR\r\n", b":1\r\n", b"_\r\n", b"#t\r\n", b",1.5\r\n", b"(1\r\n", b"$1\r\na\r\n", b"$0\r\n\r\n",
        b"$-1\r\n", b"*-1\r\n", b"*0\r\n", b"*1\r\n", b"*2\r\n", b"~1\r\n", b"%1\r\n", b"|1\r\n", b">1\r\n",
        b"=4\r\ntxt:",
        b"!3\r\nERR\r\n", b"$1024\r\n", b"$1023\r\n", b"$16384\r\n", b"$20000\r\n", b"*1025\r\n", b"*?\r\n", b"$?\r\n",
        b";4\r\n", b".\r\n", b"9223372036854775807", b"9223372036854775808", b"-2", b"+1", b"01", b"1_0",
        b"\xff\x00", b"\xfex\x40", b"\xfd\x04\x40", b"\xfd\x05\x10", b"\r\n", b"\r", b"\n", b"\xfea\x50\r\n",
    ],
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("again", nargs="*", type=Path, help="play these inputs, and nothing else")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--keep", type=Path, metavar="FILE", help="for the smallest set of inputs that reaches as much")
    chosen = parser.parse_args()
    if chosen.again:
        for path in chosen.again:
            print(path.read_bytes())
            TARGETS[chosen.target](path.read_bytes())
        return 0
    return campaign(chosen.target, chosen.seconds, chosen.seed, chosen.keep)


def campaign(target: str, seconds: int, seed: int, keep: Path | None) -> int:
    """Fuzzes in a process of its own, as it ends by exiting; 1 when an input failed, which is printed."""
    with tempfile.TemporaryDirectory(prefix="coalesce-fuzz-") as directory:
        corpus = Path(directory) / "corpus"
        found = Path(directory) / "found"
        for each in (corpus, found):
            each.mkdir()
        for number, script in enumerate(load(target)):
            (corpus / f"seed-{number}").write_bytes(script)
        words = Path(directory) / "words"
        words.write_text("\n".join(f'"{_escaped(word)}"' for word in _words(target)))
        ended = subprocess.run(
            [
                sys.executable, "-m", "tests.fuzz.engine", target, f"-seed={seed}", f"-max_total_time={seconds}",
                f"-artifact_prefix={found}/", f"-dict={words}", f"-timeout={PATIENCE}", "-max_len=2048",
                "-print_final_stats=1", "-verbosity=1", "-rss_limit_mb=1024", str(corpus),
            ],
            timeout=seconds + 120, check=False,
        )  # fmt: skip
        for path in found.iterdir():
            print(f"{path.name.partition('-')[0]}: found with seed {seed}; for tests/fuzz/corpus/{target}.txt:")
            print(path.read_bytes())
        if ended.returncode == 0:
            _report(target, [path.read_bytes() for path in corpus.iterdir()], keep)
        return 1 if ended.returncode else 0


def _words(target: str) -> list[bytes]:
    bulks = [b"$%d\r\n%b\r\n" % (len(word), word) for word in WORDS[target]]
    counts = [b"*%d\r\n" % count for count in range(1, 5)] if bulks else []
    return [*WORDS[target], *bulks, *counts, *FRAMES[target]]


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def _report(target: str, scripts: list[bytes], keep: Path | None) -> None:
    kept, branches = reduced(target, scripts)
    lines = lines_of_core()
    for name in sorted({name for name, _ in lines}):
        all_of_it = {number for file, number in lines if file == name}
        reached = {number for file, _, number in branches if file == name} & all_of_it
        print(f"{name:20} {len(reached):4} of {len(all_of_it):4} lines")
    print(f"{len(scripts)} inputs in the corpus; {len(kept)} of them reach all {len(branches)} branches")
    if keep is not None:
        keep.write_text("".join(f"{script!r}\n" for script in kept))


if __name__ == "__main__":
    sys.exit(main())
