"""What coalesce asks on a shared lane for itself, with nobody who waits for the answer.

A PING, so that a lane with nothing to say is neither closed (`timeout`) nor dead unseen; and a HELLO, whose reply says
whether the upstream still is the primary. What goes with somebody's request is in fence.py and
wait.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coalesce.core.lane import Ours
from coalesce.core.resp import pack

if TYPE_CHECKING:
    from coalesce.core.lane import Caller, Lane

# What HELLO is answered, in part.
ROLE_PRIMARY = b"\r\nrole\r\n$6\r\nmaster\r\n"
ROLE_REPLICA = b"\r\nrole\r\n$7\r\nreplica\r\n"
# Seconds between two questions whether the upstream of a lane is still the primary, where no connection is dialled.
_ASK_EVERY = 1.0


def still_there(lane: Lane) -> tuple[bytes, Caller]:
    """A request that any reply will do for, and its place in the FIFO."""
    return pack([b"PING"]), _Nobody(lane)


def may_ask_role(lane: Lane, now: float, *, at_once: bool) -> bool:
    """Whether the question is not under way, has not just been answered, and makes a difference."""
    if lane.link is None or not lane.primary or lane.asked:
        return False
    return at_once or now - lane.asked_at >= _ASK_EVERY


def role(lane: Lane, now: float) -> tuple[bytes, Caller]:
    """By what nobody is refused, and what changes nothing. A lane that turns out to be a replica's is `turned_away`."""
    lane.asked = True
    lane.asked_at = now
    return pack([b"HELLO", b"%d" % lane.identity.protocol]), _Role(lane)


class _Nobody(Ours):
    """A place in the FIFO for our own PING."""

    __slots__ = ()

    def write(self, data: bytes) -> None:
        """Any reply will do."""
        del data
        self.count()

    write_more = write

    def lost(self) -> None:
        """Nobody is told."""


class _Role(Ours):
    """A place in the FIFO of a lane for our own HELLO: the reply says whether the upstream is a replica."""

    __slots__ = ()

    def write(self, data: bytes) -> None:
        self.count()
        self.lane.asked = False
        if ROLE_REPLICA in data:
            self.lane.turned_away = True

    write_more = write

    def lost(self) -> None:
        self.lane.asked = False
