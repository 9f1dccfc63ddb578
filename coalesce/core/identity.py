"""What a connection runs as, and the requests that change it.

A session that asks for another identity moves to the lane of that identity, where the request changes nothing; the
upstream judges it there, each time.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from coalesce.core.resp import pack

# The name of our shared connections, in the upstream's CLIENT LIST.
CONNECTION_NAME = b"coalesce"
# Redis: validateClientName.
NAME = re.compile(rb"[!-~]*")

_DATABASE = re.compile(rb"0|[1-9][0-9]{0,8}")


class Identity(NamedTuple):
    """What a connection runs as. Two sessions share a lane if and only if these are equal: nobody gains rights."""

    username: bytes | None  # None with a password: the old form, `AUTH password`
    password: bytes | None  # None: has not authenticated; such a connection runs as coalesce itself does
    database: int
    protocol: int  # 2 or 3

    def __repr__(self) -> str:
        who = "-" if self.password is None else (self.username or b"default").decode("latin-1")
        return f"<Identity {who} db={self.database} resp{self.protocol}>"


class Move(NamedTuple):
    """Where a request would take a session."""

    identity: Identity
    name: bytes | None  # what it would be called, if that is asked for too
    request: bytes  # in the form that is right for a shared connection
    authenticates: bool = False

    def __repr__(self) -> str:
        return f"<Move to {self.identity!r}>"  # the request may have a password


def move_of(identity: Identity, authenticated: bool, arguments: list[bytes]) -> Move | None:  # noqa: PLR0911 (a form a case)
    """Where AUTH, SELECT or HELLO would take a session; None for a form that is not known to the letter.

    Such a form may change half of what it says (HELLO 3 SETNAME name AUTH user wrong does name the connection before
    it is refused), so it gets a connection of its own to do it on.
    """
    match [arguments[0].upper(), *arguments[1:]]:
        case [b"SELECT", database] if _DATABASE.fullmatch(database):
            return Move(identity._replace(database=int(database)), None, pack(arguments))
        case [b"AUTH", password]:
            return Move(identity._replace(username=None, password=password), None, pack(arguments), authenticates=True)
        case [b"AUTH", username, password]:
            return Move(
                identity._replace(username=username, password=password), None, pack(arguments), authenticates=True
            )
        case [b"HELLO", (b"2" | b"3") as protocol, *options]:
            identity = identity._replace(protocol=int(protocol))
            request = [arguments[0], protocol]
            name = None
            authenticates = False
            while options:
                match [options[0].upper(), *options[1:]]:
                    case [b"AUTH", username, password, *rest]:
                        identity = identity._replace(username=username, password=password)
                        request += options[:3]
                        authenticates = True
                    case [b"SETNAME", asked, *rest] if NAME.fullmatch(asked) and not rest:
                        name = asked
                        request += [options[0], CONNECTION_NAME]
                    case _:
                        return None
                options = rest
            if name is not None and identity.password is None and not authenticated:
                return None  # refused for want of AUTH, and named all the same
            return Move(identity, name, pack(request), authenticates)
    return None
