"""Clients that have to authenticate to coalesce itself, before it lends them its own credentials.

    LOCKED --- AUTH with a right password: answered here -----------+--> as every session
           --- AUTH or HELLO .. AUTH as a user of the upstream -----+
           --- HELLO .. AUTH with a right password: HELLO alone ----+    (these two go upstream, and unlock on success)
      ^                                                             |
      +------------------------------ RESET ------------------------+

The user `default`, and AUTH with a password alone, mean coalesce: the upstream's own default user is never asked for.
Nothing else of a locked session reaches the upstream, and the little that does goes to a connection with the client's
own credentials, or is a HELLO that coalesce's own are behind.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import coalesce.core.errors as replies
from coalesce.core.identity import CONNECTION_NAME, NAME, Move
from coalesce.core.resp import pack

if TYPE_CHECKING:
    from collections.abc import Callable

    from coalesce.core.identity import Identity

_INTEGER = re.compile(rb"0|-?[1-9][0-9]{0,18}")  # as Redis reads one (string2ll)


def knock(
    identity: Identity, locked: bool, arguments: list[bytes], judge: Callable[[bytes], bool]
) -> Move | bytes | None:
    """What becomes of AUTH or HELLO: the reply to it, or where it takes the session, with nothing of coalesce's own
    passwords in what travels. A move without a request is one that the upstream has no say in: its reply is +OK.

    None: not for this door, only where it is not locked.
    """
    if arguments[0].upper() == b"HELLO":
        return _hello(identity, locked, arguments, judge)
    match arguments[1:]:
        case [password]:
            username = None
        case [username, password]:
            pass
        case []:
            return replies.AUTH_ARITY
        case _:
            return replies.SYNTAX
    if _is_ours(username):
        if not judge(password):
            return replies.WRONG_PASSWORD
        return Move(identity._replace(username=None, password=None), None, b"", authenticates=True)
    return Move(identity._replace(username=username, password=password), None, pack(arguments), authenticates=True)


def _hello(
    identity: Identity, locked: bool, arguments: list[bytes], judge: Callable[[bytes], bool]
) -> Move | bytes | None:
    asked = _asked_by(arguments)
    if isinstance(asked, bytes) or asked.credentials is None:
        if not locked:
            return None
        return asked if isinstance(asked, bytes) else replies.NO_AUTH_HELLO
    username, password = asked.credentials
    request = arguments[:2]
    if _is_ours(username):
        if not judge(password):
            return replies.WRONG_PASSWORD
        identity = identity._replace(username=None, password=None)
    else:
        identity = identity._replace(username=username, password=password)
        request += [b"AUTH", username, password]
    if asked.name is not None:
        request += [b"SETNAME", CONNECTION_NAME]
    identity = identity._replace(protocol=int(arguments[1]))
    return Move(identity, asked.name, pack(request), authenticates=identity.password is not None)


class _Asked(NamedTuple):
    """What a HELLO asks for."""

    credentials: tuple[bytes, bytes] | None
    name: bytes | None


def _asked_by(arguments: list[bytes]) -> _Asked | bytes:
    """As `helloCommand` in `networking.c` of Redis 7.0 reads it; its refusal of what is wrong whoever asks."""
    credentials: tuple[bytes, bytes] | None = None
    name: bytes | None = None
    protocol, options = arguments[1:2], arguments[2:]
    if protocol and not _INTEGER.fullmatch(protocol[0]):
        return replies.PROTOCOL_NO_INTEGER
    if protocol and protocol[0] not in {b"2", b"3"}:
        return replies.NO_PROTOCOL
    while options:
        option = options[0].upper()
        if option == b"AUTH" and len(options) > 2:
            credentials = options[1], options[2]
            options = options[3:]
        elif option == b"SETNAME" and len(options) > 1:
            name = options[1]
            options = options[2:]
            if not NAME.fullmatch(name):
                return replies.BAD_NAME
        else:
            return replies.hello_option(options[0])
    return _Asked(credentials, name)


def _is_ours(username: bytes | None) -> bool:
    return username is None or username == b"default"


def answer_locked(identity: Identity, arguments: list[bytes], judge: Callable[[bytes], bool]) -> Move | bytes | None:
    """What becomes of a request of a locked session: the reply to it, or where it takes the session.

    None: it is closed without a word, as Redis does with HTTP.
    """
    match arguments[0].upper():
        case b"AUTH" | b"HELLO":
            return knock(identity, True, arguments, judge) or replies.NO_AUTH
        case b"RESET" if len(arguments) == 1:
            return replies.RESET
        case b"POST" | b"HOST:":
            return None
    return replies.NO_AUTH
