"""What the upstream holds for a connection, we hold for a session: CLIENT SETNAME, GETNAME, MAINT_NOTIFICATIONS.

The upstream is asked all the same, in a form that changes nothing for others: so the reply keeps its place among the
others, and it is the upstream that refuses what this user may not do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import coalesce.core.errors as replies
from coalesce.core.identity import CONNECTION_NAME, NAME

if TYPE_CHECKING:
    from collections.abc import Callable

    from coalesce.core.session import Session


class Form(NamedTuple):
    """A request in the form in which it travels, and what becomes of its reply."""

    arguments: list[bytes]
    rewrite: Callable[[bytes], bytes]


def shared_form(session: Session, arguments: list[bytes]) -> Form | None:
    """How a request about client state travels on a lane; None for a wrong form, which the upstream refuses."""
    match [arguments[1].upper(), *arguments[2:]]:
        case [b"SETNAME", name] if NAME.fullmatch(name):
            return Form([*arguments[:2], CONNECTION_NAME], lambda reply: _renamed(session, name, reply))
        case [b"GETNAME"]:
            return Form(arguments, lambda reply: _named(session, reply))
        case [b"MAINT_NOTIFICATIONS", *_]:
            # Where it is known, it would send pushes down the lane. Saying no is what upstreams without it do.
            return Form([*arguments[:2], b"OFF"], _refused)
    return None


def _renamed(session: Session, name: bytes, reply: bytes) -> bytes:
    if reply == replies.OK:
        session.name = name
    return reply


def _named(session: Session, reply: bytes) -> bytes:
    if reply.startswith(b"-"):
        return reply
    if session.name:
        return replies.bulk(session.name)
    return replies.NO_NAME_RESP3 if session.lane.identity.protocol == 3 else replies.NO_NAME_RESP2


def _refused(reply: bytes) -> bytes:
    return reply if reply.startswith(b"-") else replies.NO_MAINT_NOTIFICATIONS


class Rewritten:
    """A place in the FIFO for a request that was sent in another form: the reply is `rewrite(reply)`."""

    __slots__ = ("_parts", "_rewrite", "owed", "session")

    def __init__(self, session: Session, rewrite: Callable[[bytes], bytes]) -> None:
        self.session = session
        self._rewrite = rewrite
        self._parts = b""
        self.owed = 0
        session.owed += 1

    def write(self, data: bytes) -> None:
        self._parts += data
        if not self.owed:
            self.session.owed -= 1
            self.session.write(self._rewrite(self._parts))

    write_more = write

    def lost(self) -> None:
        self.session.lost()

    def fail(self, fault: Exception) -> None:
        self.session.fail(fault)
