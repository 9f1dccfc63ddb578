"""WAIT and WAITAOF, which speak of what was written *on this connection*: the truth, though writes ride lanes.

On a connection that has written nothing they answer at once, whatever the replicas have: a false promise of
durability. What a connection waits for is an offset of the replication stream that the upstream notes for it (`woff`).
So before the request, something that moves this mark to the present goes down the leased connection: then it waits for
everything that was written before by anybody, this client's own writes among it. It can take longer than a direct
connection, and never promises more than is so.

Up to Redis 7.0 any command moves the mark (`processCommand`), since 7.2 only one that was replicated (`call`). `SWAPDB
0 0` is replicated and changes nothing. Where it is refused, and the upstream is not known to be older than 7.2, the
answer can't be vouched for, and the client is told so.

One case is left: from 7.2 on, a client that wrote, was pinned since (CLIENT TRACKING, a subscription in RESP3), and has
written nothing after that, is answered at once. To move the mark whenever a client is pinned would be a replicated
command for each of them, and nearly none ever waits.

Why the session does not take over the lane's connection, which carried its writes: its neighbours' writes rode that
connection, too. The first of them to WAIT would take it away from under all others, whose own WAIT would then speak of
a connection that has written nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import coalesce.core.errors as replies
from coalesce.core.lane import Ours
from coalesce.core.resp import pack

if TYPE_CHECKING:
    from coalesce.core.lane import Caller
    from coalesce.core.lease import Lease
    from coalesce.core.session import Session

_ANY_COMMAND_MARKS_UNTIL = (7, 2)


class _Mark(Ours):
    """A place in the FIFO for a request of ours that moves the mark, if it is answered like this."""

    def __init__(self, lease: Lease, answer: bytes) -> None:
        super().__init__(lease.lane)
        self.moved = False
        self._lease = lease
        self._answer = answer
        lease.marks += 1

    def write(self, data: bytes) -> None:
        self.count()
        self.moved = data == self._answer
        self._lease.marks -= 1

    def write_more(self, data: bytes) -> None:
        """Of a reply that is no mark, as long as it is."""
        del data
        self.count()

    def lost(self) -> None:
        """The session is told."""


class _Waiting:
    """A place in the FIFO for the request itself."""

    def __init__(self, session: Session, lease: Lease, marks: list[_Mark]) -> None:
        self.session = session
        self._lease = lease
        self._marks = marks
        self._reply = b""
        self.owed = 0
        session.owed += 1
        lease.blocking += 1
        lease.waits += 1

    def write(self, data: bytes) -> None:
        self._reply += data
        if self.owed:
            return
        self.session.owed -= 1
        self._lease.waits -= 1
        self._lease.unblocked()
        vouched = any(mark.moved for mark in self._marks) or self._reply.startswith(b"-")
        self.session.write(self._reply if vouched else replies.UNMARKED)

    write_more = write

    def lost(self) -> None:
        self.session.lost()

    def fail(self, fault: Exception) -> None:
        self.session.fail(fault)


def requests(session: Session, lease: Lease, arguments: list[bytes]) -> list[tuple[bytes, Caller]]:
    """What goes down the leased connection, in order."""
    swapped, pinged = _Mark(lease, replies.OK), _Mark(lease, replies.PONG)
    version = lease.lane.version
    marks = [swapped, pinged] if version is not None and version < _ANY_COMMAND_MARKS_UNTIL else [swapped]
    return [
        (pack([b"SWAPDB", b"0", b"0"]), swapped),
        (pack([b"PING"]), pinged),
        (pack(arguments), _Waiting(session, lease, marks)),
    ]
