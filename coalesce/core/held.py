"""What the core holds for a client: bytes that count as its own, from when they were read until they have gone.

- what its reader holds, and the request that waits while it settles, moves or borrows;
- its large requests on lanes, until they are answered: unsent, on their way, or run. What has been answered has left.

Small requests on lanes count as nobody's. All of them together are bounded another way (UNSENT_LIMIT): nobody is read.

A client that leaves takes with it all but its large requests on shared lanes. These go on to be its own, for nobody
else is to pay for them. Those that have not left can be withdrawn: a PING takes their place in the FIFO (I4), and its
reply is swallowed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coalesce.core.lease import Lease
    from coalesce.core.session import Session


def weigh(session: Session) -> None:
    """Tells the peer what is held for it, if that is not what it was."""
    held = session.held
    if session.reader is not None:
        held += session.reader.weight
    if session.waiting:
        held += sum(map(len, session.waiting))
    if session.lease is not None:
        held += session.lease.held
    if held != session.told:
        session.told = held
        session.peer.hold(held)


class Large:
    """A place in the FIFO for a large request. Its bytes are held on account of the session, or of its lease."""

    __slots__ = ("_account", "_size", "owed", "session")

    def __init__(self, session: Session, account: Session | Lease, size: int) -> None:
        self.session = session
        self._account = account
        self._size = size
        account.held += size
        self.owed = 0
        session.owed += 1

    def release(self) -> None:
        """The bytes are not held any more."""
        self._account.held -= self._size
        self._size = 0
        weigh(self.session)

    def write(self, data: bytes) -> None:
        session = self.session
        session.owed -= not self.owed
        self.release()
        session.write(data)

    def write_more(self, data: bytes) -> None:
        session = self.session
        session.owed -= not self.owed
        session.write_more(data)

    def lost(self) -> None:
        self.release()
        self.session.lost()

    def fail(self, fault: Exception) -> None:
        self.release()
        self.session.fail(fault)
