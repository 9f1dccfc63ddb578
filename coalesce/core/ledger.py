"""What became of the commands of one kind of connection: counted where something ends, and nowhere on the usual way.

    taken = refused + withdrawn + stranded      (never sent)      + unsent
          + failed + swallowed + delivered      (sent)            + in flight

Delivered is what is left over: of what was sent, all that is not in flight, has not failed, was not swallowed, and was
no request of our own. So a command that takes the usual way costs nothing here; its batch costs one addition.

Not in here are those of subscribers and pinned clients, whose replies do not pair with requests, and what is answered
without the upstream (QUIT; AUTH to coalesce).
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from coalesce.core.histogram import Histogram

if TYPE_CHECKING:
    from coalesce.core.lane import Lane


class Kind(enum.Enum):
    """Of an upstream connection."""

    SHARED = "shared"
    LARGE = "large"
    LEASED = "leased"


class Outcomes(NamedTuple):
    """Commands that clients have sent, by what became of them; each in one of these for good."""

    delivered: int  # the reply went to its caller
    swallowed: int  # the caller had left
    failed: int  # ... was closed, because the connection was lost, or by a fault of ours
    refused: int  # ... got an error of ours (or, if it asked for another identity, the upstream's); it was never sent


class Ledger:
    """Of one kind of connection. Lanes come and go, this stays."""

    __slots__ = ("batches", "failed", "own", "refused", "round_trips", "sent", "sizes", "stranded", "swallowed",
                 "waits", "withdrawn")  # fmt: skip

    def __init__(self) -> None:
        self.batches = 0
        self.sent = 0  # requests, our own among them
        # Ended, of those sent.
        self.own = 0  # ours: answered, or lost
        self.swallowed = 0
        self.failed = 0  # in flight when the connection was lost
        # Ended, of those never sent.
        self.refused = 0
        self.withdrawn = 0  # the caller had left
        self.stranded = 0  # the caller was closed: with its lease, or by a fault of ours

        # Of batches.
        self.sizes = Histogram()  # requests but one: so that a bucket's bound is in it
        self.round_trips = Histogram()  # microseconds until the first reply; of one batch at a time
        self.waits = Histogram()  # microseconds that the first request had been unsent

    def outcomes(self, in_flight: int) -> Outcomes:
        """`in_flight`: requests, on all connections of this kind."""
        delivered = self.sent - in_flight - self.own - self.swallowed - self.failed
        swallowed, failed = self.swallowed + self.withdrawn, self.failed + self.stranded
        return Outcomes(delivered, swallowed, failed, self.refused)


class Totals(NamedTuple):
    """What lanes have carried."""

    lanes: int = 0
    commands: int = 0
    batches: int = 0
    largest: int = 0  # batch
    own: int = 0  # commands, which no client asked for

    def and_(self, lane: Lane) -> Totals:
        """One lane more; one that has carried nothing was refused, or had no upstream."""
        return Totals(
            self.lanes + (lane.batches > 0),
            self.commands + lane.commands - lane.own,
            self.batches + lane.batches,
            max(self.largest, lane.largest),
            self.own + lane.own,
        )
