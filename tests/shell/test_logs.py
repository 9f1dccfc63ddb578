"""What an exception says is not for the log: it may be what a client sent."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import subprocess
import sys
import tracemalloc
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from coalesce import logs
from coalesce.logs import Repeats, logging_to_stderr, traceback_without_texts

if TYPE_CHECKING:
    from collections.abc import Callable

ARGUMENTS = [b"AUTH", b"ada", b"ada-secret"]


def raised(raise_: Callable[[], object]) -> BaseException:
    try:
        raise_()
    except BaseException as problem:  # noqa: BLE001 (that is what is looked at)
        return problem
    raise AssertionError


def plain() -> None:
    raise KeyError(ARGUMENTS)


def caused() -> None:
    try:
        plain()
    except KeyError as problem:
        raise ValueError(f"what of {ARGUMENTS}?") from problem


def while_handled() -> None:
    try:
        plain()
    except KeyError:
        int(ARGUMENTS[2])


def grouped() -> None:
    group = ExceptionGroup(f"of {ARGUMENTS}", [raised(caused), ExceptionGroup(str(ARGUMENTS), [raised(plain)])])
    group.add_note(str(ARGUMENTS))
    raise group


def undecodable() -> None:
    b"ada-secret\xff".decode()


@pytest.mark.parametrize(
    ("fault", "types"),
    [
        (plain, ["KeyError"]),
        (caused, ["KeyError", "ValueError"]),
        (while_handled, ["KeyError", "ValueError"]),
        (grouped, ["ExceptionGroup", "KeyError", "ValueError", "ExceptionGroup", "KeyError"]),
        (undecodable, ["UnicodeDecodeError"]),
    ],
)
def test_types_and_places_without_texts(fault, types, capfd):
    text = traceback_without_texts(raised(fault))
    assert "ada" not in text.replace('b"ada-secret\\xff".decode()', "")  # the line of the source
    assert sorted(line.strip() for line in text.splitlines() if line.strip() in types) == sorted(types)
    assert f"in {fault.__name__}" in text
    with logging_to_stderr():
        logging.getLogger("coalesce").error("a fault", exc_info=raised(fault))
    said = capfd.readouterr().err
    assert text in said
    assert " ERROR a fault\n" in said


def test_the_words_for_a_number_of_the_system_stay():
    assert traceback_without_texts(raised(lambda: os.stat("/ada-secret"))).endswith(  # noqa: PTH116 (for its error)
        "FileNotFoundError: No such file or directory"
    )
    assert traceback_without_texts(OSError(*ARGUMENTS)).endswith("OSError")
    assert traceback_without_texts(ConnectionError(*ARGUMENTS)).endswith("ConnectionError")


def test_exceptions_that_cause_each_other_come_to_an_end():
    one, other = raised(plain), raised(caused)
    one.__cause__, other.__cause__ = other, one
    assert traceback_without_texts(one).count("Traceback") == 2


PRELUDE = """
import logging, threading, sys, trio
from coalesce import __main__, server
SECRET = [b"AUTH", b"ada-" + b"secret"]
async def ends(self):
    raise KeyError(SECRET)
async def ends_in_a_nursery(self):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends, self)
async def given_up(self):
    raise BaseExceptionGroup(str(SECRET), [GeneratorExit(SECRET)])
async def cannot_be_logged(self):
    logging.getLogger("coalesce").error("%d clients", SECRET)
    raise server.StartError("done")
async def ends_a_thread(self):
    def fault():
        raise KeyError(SECRET)
    thread = threading.Thread(target=fault)
    thread.start()
    await trio.to_thread.run_sync(thread.join)
    raise server.StartError("done")
async def ends_a_destructor(self):
    class Faulty:
        def __del__(self):
            raise KeyError(SECRET)
    Faulty()
    raise server.StartError("done")
"""


@contextmanager
def standard_error_in_a_pipe(size=4096):
    """The end that is read from, of a pipe that holds so many bytes."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, size)
    before = os.dup(2)
    os.dup2(writing, 2)
    os.close(writing)
    try:
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            yield pipe
    finally:
        os.dup2(before, 2)
        os.close(before)


def objects(text):
    """One a line, and nothing else."""
    return [json.loads(line) for line in text.splitlines()]


def test_an_object_a_line_for_machines(capfd):
    log = logging.getLogger("coalesce")
    with logging_to_stderr(form="json"):
        log.warning("%s left %d bytes", "client c7", 3, extra={"client": "c7", "address": "[::1]:5", "lane": "u0"})
        log.info('a line\nand "another"')
        log.error("a fault", exc_info=raised(grouped))
        log.debug("nobody wants to know")
    said = objects(capfd.readouterr().err)
    for each in said:
        assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", each.pop("time"))
    told, line, fault = said
    assert told == {
        "level": "WARNING", "message": "client c7 left 3 bytes", "client": "c7", "address": "[::1]:5", "lane": "u0"
    }  # fmt: skip
    assert line == {"level": "INFO", "message": 'a line\nand "another"'}
    text = fault.pop("traceback")
    assert fault == {"level": "ERROR", "message": "a fault"}
    assert text.count("Traceback (most recent call last):") > 1
    assert "in grouped" in text
    assert "ada" not in text


def test_an_event_is_one_line_for_people_too(capfd):
    with logging_to_stderr():
        logging.getLogger("coalesce").info("a line\nand %s", "\x1b[2Janother\u2028")
    assert capfd.readouterr().err.endswith(" INFO a line\\x0aand \\x1b[2Janother\\x2028\n")


def test_levels(capfd):
    with logging_to_stderr("WARNING"):
        logging.getLogger("coalesce").info("nobody wants to know")
        logging.getLogger("coalesce").warning("somebody does")
    assert re.fullmatch(r"[\d ,:-]+ WARNING somebody does\n", capfd.readouterr().err)


@pytest.mark.parametrize("form", ["human", "json"])
def test_nobody_waits_for_who_reads_and_what_is_dropped_is_counted(form):
    with standard_error_in_a_pipe() as pipe, logging_to_stderr(form=form) as log:
        for number in range(5000):
            logging.getLogger("coalesce").info(f"line {number} is there")  # noqa: G004 (no two alike)
        assert 3000 < log.dropped < 4000
        first = log.dropped
        read = b""
        while read.count(b" is there") < 5000 - first:
            read += pipe.read(65536)
        logging.getLogger("coalesce").info("and on it goes")
        while b"and on it goes" not in read:
            read += pipe.read(65536)
        assert log.dropped == first
    said = re.findall(rb"(\d+) lines of this log were dropped: nobody read it", read)
    assert said == [b"%d" % first]
    assert len(re.findall(rb"line \d+ is there", read)) == 5000 - first


def test_lines_that_can_not_be_written_are_counted():
    before = os.dup(2)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, 2)
    os.close(full)
    try:
        with logging_to_stderr() as log:
            for number in range(3):
                logging.getLogger("coalesce").info("%d", number)
            log.stop()
            assert logs.dropped() == 3
    finally:
        os.dup2(before, 2)
        os.close(before)


def test_standard_error_that_whoever_shares_it_made_non_blocking_loses_nothing():
    """Node does so with pipes. A line of over 4 KiB would be cut in two."""
    with standard_error_in_a_pipe() as pipe, logging_to_stderr() as log:
        os.set_blocking(2, False)
        for number in range(100):
            logging.getLogger("coalesce").info(f"{number} {'x' * 5000} ends")  # noqa: G004 (no two alike)
        logging.getLogger("coalesce").info("all of it")
        read = b""
        while b"all of it\n" not in read and (more := pipe.read(65536)):
            read += more
        assert logs.dropped() == log.dropped == 0
    assert len(re.findall(rb"(?m) x{5000} ends$", read)) == 100


def record(template, *arguments, exc_info=None):
    return logging.LogRecord("coalesce", logging.WARNING, "", 0, template, arguments, exc_info)


def said_of(records):
    return [each.getMessage() for each in records]


def test_of_lines_alike_there_are_a_few_and_then_one_a_period_that_counts_them():
    repeats = Repeats()
    assert [repeats.admit(record("%s left", number), now=0.0) for number in range(25)] == [True] * 10 + [False] * 15
    assert repeats.admit(record("%s came", 1), now=1.0)  # another
    assert repeats.ends == 10.0
    assert repeats.summaries(9.9) == []
    assert said_of(repeats.summaries(10.0)) == ["15 more like this in the last 10 seconds: 24 left"]
    assert repeats.summaries(12.0) == []  # once; and the other had none
    assert not repeats.admit(record("%s left", 25), now=13.0)  # it goes on, and so do the summaries
    assert said_of(repeats.summaries(20.0)) == ["1 more like this in the last 10 seconds: 25 left"]
    assert repeats.summaries(30.0) == []
    assert repeats.ends is None
    assert repeats.admit(record("%s left", 26), now=31.0)  # after a period without any it begins anew


def test_at_the_end_what_has_been_counted_is_said():
    repeats = Repeats()
    for _ in range(12):
        repeats.admit(record("100%"), now=5.0)
    assert said_of(repeats.summaries(8.0, at_end=True)) == ["2 more like this in the last 3 seconds: 100%"]


def test_faults_from_different_places_are_not_alike():
    repeats = Repeats()
    for way in (plain, undecodable):
        problem = raised(way)
        fault = record("%s: a fault", "c1", exc_info=(type(problem), problem, None))
        assert [repeats.admit(fault, now=0.0) for _ in range(11)] == [True] * 10 + [False]


def test_a_summary_comes_in_its_time_also_when_nothing_follows(monkeypatch):
    monkeypatch.setattr(logs, "_PERIOD", 0.2)
    with standard_error_in_a_pipe() as pipe, logging_to_stderr():
        for number in range(13):
            logging.getLogger("coalesce").warning("client c%d is closed", number)
        read = b""
        while b"more like this" not in read:
            read += pipe.read(65536)
        assert re.findall(rb"WARNING (.*) more like this in the last 0 seconds: client c(\d+) is closed\n", read) == [
            (b"3", b"12")
        ]


@pytest.mark.parametrize(
    "way", ["ends", "ends_in_a_nursery", "given_up", "cannot_be_logged", "ends_a_thread", "ends_a_destructor"]
)
def test_what_escapes_is_told_without_its_text(way):
    program = f"{PRELUDE}\nserver.Server.serve = {way}\nsys.argv[1:] = ['--upstream', '127.0.0.1:1']\n__main__.main()"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 1
    assert ("a line of the log could not be made" if way == "cannot_be_logged" else "a fault in") in ended.stderr
    assert "Traceback" in ended.stderr
    kind = {"given_up": "GeneratorExit", "cannot_be_logged": "TypeError"}.get(way, "KeyError")
    assert f"{kind}\n" in ended.stderr
    assert "ada-secret" not in ended.stderr


def test_a_trace_that_nobody_reads_is_bounded():
    """Its lines may be long. (Nothing is written here: as when standard output is a pipe that is full.)"""
    log = logs.Log(logging.Formatter())
    tracemalloc.start()
    try:
        for number in range(2000):
            log.trace(f"c1 << {number:060000}")
        assert 30_000_000 > tracemalloc.get_traced_memory()[0] > 1_000_000
    finally:
        tracemalloc.stop()
    assert log.dropped > 1000


def test_gaps_in_a_trace_cost_the_log_nothing(capfd):
    """Each time that the reader of the trace was too slow, and is quick again, there is a line about it."""
    with logging_to_stderr() as log:
        for _ in range(1100):
            log.dropped += 1
            log.trace("c1 >> PING")
        logging.getLogger("coalesce").warning("still said")
    said = capfd.readouterr()
    assert said.out.count("# 1 lines were dropped: nobody read them\nc1 >> PING\n") == 1100
    assert "still said" in said.err


def test_machines_are_told_of_everything_in_objects():
    """What ends it, what can't be said, what went wrong at the start: each is one, with its traceback in a field."""
    flags = ["--upstream", "127.0.0.1:1", "--admin", "off", "--log-format", "json"]
    for way in ("ends", "cannot_be_logged", "ends_a_thread", "ends_a_destructor"):
        program = f"{PRELUDE}\nserver.Server.serve = {way}\nsys.argv[1:] = {flags}\n__main__.main()"
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False)
        assert ended.returncode == 1
        said = objects(ended.stderr)
        assert {each["level"] for each in said} == {"ERROR"}
        assert ["Traceback" in each.get("traceback", "") for each in said] == [True, False], said
        assert "ada-secret" not in ended.stderr
