"""What is made of files, and made anew when they change: certificates, and passwords of clients."""

from __future__ import annotations

import logging
import os
from time import monotonic
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("coalesce")

T = TypeVar("T")

# What changes when a file does, be it written to, moved in, given another mode, or a link that now leads elsewhere
# (Kubernetes); for each file, None where it can't be looked at.
Signature = list[tuple[int, ...] | None]

# Seconds between two attempts to read files that could not be used and have not changed since: what was wrong may have
# been here, such as that no descriptor was left.
_RETRY_EVERY = 1.0


class UnusableFileError(Exception):
    """A file that can't be used, and why, in one line."""


class WatchedFiles(Generic[T]):
    """What `load` makes of some files.

    Files that can't be used, because one is half written or the key is of another generation than the certificate,
    change nothing; that is said once, and tried again.
    """

    def __init__(self, load: Callable[[], T], files: tuple[str, ...], look_every: float = 0.0) -> None:
        """`look_every`: seconds between two looks at the files. Raises UnusableFileError, as `load` does."""
        self._load = load
        self._files = files
        self._look_every = look_every
        self._look_from = monotonic() + look_every
        self._loaded = signature(files)  # before reading them: what changes meanwhile is seen to have changed
        self._latest = load()
        self._failed: Signature | None = None  # at the last attempt, if it was in vain
        self._retry_from = 0.0
        self._said: tuple[Signature, str] | None = None

    def latest(self) -> T:
        """What the files say at this moment, or what they said when they could last be used."""
        now = monotonic()
        if now >= self._look_from:
            self._look_from = now + self._look_every
            seen = signature(self._files)
            if seen == self._loaded:
                self._failed = self._said = None
            elif seen != self._failed or now >= self._retry_from:
                self._read_again(seen, now)
        return self._latest

    def _read_again(self, seen: Signature, now: float) -> None:
        try:
            self._latest = self._load()
        except UnusableFileError as problem:
            self._failed = seen
            self._retry_from = now + _RETRY_EVERY
            if self._said != (seen, str(problem)):
                self._said = (seen, str(problem))
                log.warning("%s: what was read before stays in use", problem)
        else:
            self._loaded = seen
            self._failed = self._said = None
            log.info("read again: %s", ", ".join(self._files))


def signature(files: tuple[str, ...]) -> Signature:
    return [_stat(file) for file in files]


def _stat(file: str) -> tuple[int, ...] | None:
    try:
        found = os.stat(file)  # noqa: PTH116 (a Path would be made for each look)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
