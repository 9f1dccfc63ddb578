"""The bound over all clients together: what is held for each of them, and who has to go when that is too much.

As Redis's `maxmemory-clients`: the client that holds most is closed, and again, until the rest is within the bound. So
whoever is greedy harms himself alone, however many of him there are.

Whoever holds something says so whenever that changes, which is where bytes are kept: a client that keeps up with its
replies, and sends whole requests, is not in here. The look at the whole is taken at the end of a round of the poller,
where nobody is in the middle of anything; what one round brings comes on top of the bound.
"""

from __future__ import annotations

import contextlib
import ctypes
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from coalesce.poller import Poller


# Bytes that were held and no longer are, from which on they are returned.
_WORTH_RETURNING = 8 * 1024 * 1024
# The part of all time that may be spent on that. It takes up to half a millisecond a MB, in which nobody is served, and
# where there was much once, up to a tenth of a second each time.
_TIME_FOR_RETURNING = 0.01


class Holder(Protocol):
    """A client that something is held for, or was, and the requests that it left behind."""

    @property
    def ids(self) -> dict[str, str]:
        """For the log, as for `faults.Told`."""

    def evict(self, what: str, /) -> None:
        """Closes it, if it is not closed yet, and says why: `what` it held. Gives back what can be given back."""


class Memory:
    """What is held for whom. `limit`: bytes."""

    def __init__(self, limit: int, poller: Poller) -> None:
        self.limit = limit
        self.total = 0
        self._poller = poller
        self._held: dict[Holder, int] = {}
        self._called = False
        self._most = 0  # of the total, since what was free has been returned
        self._rests_until = 0.0

    def hold(self, holder: Holder, size: int) -> None:
        """From here on it holds so many bytes."""
        before = self._held.pop(holder, 0)
        if size:
            self._held[holder] = size
        self.total += size - before
        self._most = max(self._most, self.total)
        if self.total > self.limit and size > before and not self._called:
            self._called = True
            self._poller.at_end_of_round(self.relieve)

    def relieve(self) -> None:
        """Has those who hold most go, until the total is within the limit, or can't be made less.

        (What is on its way to the upstream can't: a request that was begun is sent to its end.)
        """
        self._called = False
        if self.total <= self.limit:
            return
        for holder, held in sorted(self._held.items(), key=lambda item: item[1], reverse=True):
            if self.total <= self.limit:
                return
            what = f"it held {held} bytes, the most, and all clients {self.total} (clients-memory: {self.limit})"
            with self._poller.faults.contained(holder, "while it was closed"):
                holder.evict(what)

    def return_to_system(self) -> None:
        """Has much that was held, and is no longer, returned to the system. To be called now and then.

        What is kept for clients is in pieces of the C library's heap. By itself it returns what lies at the end of the
        heap, and there is always somebody small who came last, so that all of it would stay.
        """
        now = perf_counter()
        fallen = self._most - self.total
        if now < self._rests_until or fallen < _WORTH_RETURNING or fallen < self.total:
            return
        self._most = self.total
        _trim()
        self._rests_until = now + (perf_counter() - now) / _TIME_FOR_RETURNING


def _trim() -> None:
    with contextlib.suppress(AttributeError):  # another C library than GNU's
        ctypes.CDLL(None).malloc_trim(0)
