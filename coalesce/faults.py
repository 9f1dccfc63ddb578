"""Faults of our own: each is said once, with whose it was, and counted for the closing line."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger("coalesce")


class Faults:
    """Those of one run."""

    def __init__(self) -> None:
        self.count = 0

    def say(self, whose: str, fault: Exception, what_follows: str) -> None:
        """One more."""
        self.count += 1
        log.error("%s: a fault in coalesce, %s", whose, what_follows, exc_info=fault)

    @contextmanager
    def contained(self, whose: str, what_follows: str) -> Iterator[None]:
        """Within it, an exception is a fault of ours, and goes no further."""
        try:
            yield
        except Exception as fault:  # noqa: BLE001 (ours, whatever it is)
            self.say(whose, fault, what_follows)
