"""Files that change: what is made of them is made anew, also when that was not possible at the moment of change."""

from __future__ import annotations

import os
import resource
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from coalesce import tls, watched
from coalesce.config import Config, parse_upstream
from coalesce.passwords import ClientPasswords
from coalesce.watched import UnusableFileError, WatchedFiles
from tests.system.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

UPSTREAM = parse_upstream("127.0.0.1:1")


class Clock:
    """Stands until it is moved on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watched, "monotonic", clock)
    return clock


@contextmanager
def no_descriptors() -> Iterator[None]:
    """No file can be opened; those that are open stay so, and all can be looked at."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_passwords_that_could_not_be_read_when_they_changed_are_read_later(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "passwords"
    file.write_text("old\n")
    lets_in = ClientPasswords(str(file))
    file.write_text("replaced\n")
    with no_descriptors():
        assert not lets_in(b"replaced")
        assert lets_in(b"old")
        clock.now += 1
        assert lets_in(b"old")
    clock.now += 1
    assert lets_in(b"replaced")
    assert not lets_in(b"old")
    assert caplog.text.count("Too many open files") == 1
    assert "replaced" not in caplog.text


def test_a_certificate_that_could_not_be_read_when_it_changed_is_read_later(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority(tmp_path, "ours")
    own = authority.issue()
    certificates = tls.listener_certificates(Config(UPSTREAM, tls_cert=str(own.certificate), tls_key=str(own.key)))
    assert certificates is not None
    first = certificates.latest()
    authority.issue().copy_to(own)
    with no_descriptors():
        for _ in range(3):
            clock.now += 1
            assert certificates.latest() is first
    clock.now += 1
    assert certificates.latest() is not first
    assert caplog.text.count("Too many open files") == 1


class Source:
    """What is watched, and what goes wrong when it is read."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "file"
        self.file.write_text("one")
        self.problem = ""
        self.attempts = 0
        self.watched = WatchedFiles(self.load, (str(self.file),))

    def load(self) -> str:
        self.attempts += 1
        if self.problem:
            raise UnusableFileError(self.problem)
        return self.file.read_text()


def test_what_could_not_be_used_is_tried_again_once_a_second(tmp_path: Path, clock: Clock) -> None:
    source = Source(tmp_path)
    source.file.write_text("three")
    source.problem = "no"
    for _ in range(100):
        assert source.watched.latest() == "one"
    assert source.attempts == 2
    clock.now += 1
    for _ in range(100):
        assert source.watched.latest() == "one"
    assert source.attempts == 3
    source.problem = ""
    assert source.watched.latest() == "one"
    source.file.write_text("seventeen")  # ... and at once when there is something new
    assert source.watched.latest() == "seventeen"
    clock.now += 10
    assert source.watched.latest() == "seventeen"
    assert source.attempts == 4


def test_each_thing_that_is_wrong_is_said_once(tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    source = Source(tmp_path)
    for problem, size in (("ugly", 5), ("ugly", 5), ("odd", 5), ("odd", 7), ("odd", 7)):
        source.problem = problem
        if source.file.stat().st_size != size:
            source.file.write_text("x" * size)
        clock.now += 1
        assert source.watched.latest() == "one"
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"{problem}: what was read before stays in use" for problem in ("ugly", "odd", "odd")]


def test_a_change_that_leaves_size_and_time_is_seen(tmp_path: Path) -> None:
    """As `cp --preserve` leaves them, onto the same file."""
    source = Source(tmp_path)
    before = source.file.stat()
    while source.file.stat().st_ctime_ns == before.st_ctime_ns:  # the clock of a file system may have ticks
        source.file.write_text("two")
        os.utime(source.file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert source.watched.latest() == "two"
