"""What an exception says is not for the log: it may be what a client sent."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from coalesce.logs import logging_to_stderr, traceback_without_texts

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
