"""Faults of our own: each is said once, with whose it was, and counted for the closing line."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger("coalesce")


class Told(Protocol):
    """Whom a line of the log is about, by `str()`. `ids`: the same for machines, fields of that line."""

    @property
    def ids(self) -> dict[str, str]: ...


class Faults:
    """Those of one run."""

    def __init__(self) -> None:
        self.count = 0

    def say(self, whose: Told | str, fault: Exception, what_follows: str) -> None:
        """One more."""
        self.count += 1
        ids = None if isinstance(whose, str) else whose.ids
        log.error("%s: a fault in coalesce, %s", whose, what_follows, exc_info=fault, extra=ids)

    @contextmanager
    def contained(self, whose: Told | str, what_follows: str) -> Iterator[None]:
        """Within it, an exception is a fault of ours, and goes no further."""
        try:
            yield
        except Exception as fault:  # noqa: BLE001 (ours, whatever it is)
            self.say(whose, fault, what_follows)
