"""Fakes that more than one test needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coalesce.core.lane import Identity


class RecordingPeer:
    """A client as the core sees it. Records. Reads as a real one does: not while it is told not to."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity  # what a lease has to run as
        self.written = b""
        self.reading = True
        self.closed = False
        self.leased: bytes | None = None

    def write(self, data: bytes) -> None:
        self.written += data

    write_more = write

    def read(self, wanted: bool) -> None:
        self.reading = wanted

    def close(self) -> None:
        self.closed = True

    def lease(self, identity: Identity, name: bytes, pending: bytes) -> None:
        assert (identity, name) == (self.identity, b"")
        self.leased = pending
