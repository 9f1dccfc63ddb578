"""Leased connections whose replies do not pair with requests.

A **verdict** is waited for when a session asks for what would pin it: SUBSCRIBE has not one reply, MONITOR never stops,
CLIENT TRACKING sends pushes. If the upstream's first word is an error, nothing has changed, and the lease is given
back. Whatever else comes, the client keeps the connection for good, and these bytes are its first.

A **subscriber** may send and receive what it likes; its bytes pass as they are, in both directions. Only confirmations
are looked at: each tells to how many channels the connection is still subscribed. When it is to none, or when the
client asks for what has no place here, a PING of ours with a secret in it is sent behind everything else. Once that is
answered, everything before has been: nothing is owed, and the last count is true. Such a PING comes first of all, too:
a user who may not PING keeps the connection for good.

    subscribed to something, everything passes --- the last count is 0, or another kind of request ---> asked
               ^                                                                                          |
               +------------------------ answered: still subscribed --------------------------------------+
                                         answered: subscribed to nothing ---> the lease is clean
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import coalesce.core.errors as replies
from coalesce.core.errors import Desync
from coalesce.core.lane import STREAM_FROM
from coalesce.core.resp import CRLF, WITH_PUSHES, Passage, reply_end, skip_elements

if TYPE_CHECKING:
    from collections.abc import Callable

    from coalesce.core.exchange import Exchange
    from coalesce.core.session import Session


class Verdict:
    """Waits for the upstream's first word on a request that would pin."""

    def __init__(self, exchange: Exchange, session: Session) -> None:
        self.over = False  # nothing is under way, and nothing has changed
        self._exchange = exchange
        self._session = session
        self._refusal = b""

    def rest(self) -> bytes:
        """The beginning of a refusal, for whoever takes the connection over."""
        return self._refusal

    def receive(self, data: bytes) -> None:
        """Raises Desync."""
        session = self._session
        if not self._refusal and not data.startswith(b"-"):
            session.peer.write(data)
            self._exchange.accepted(session)
            return
        self._refusal += data
        line, found, more = self._refusal.partition(CRLF)
        if more:
            raise Desync("more than a refusal")
        if found:
            self.over = True
            assert session.lease is not None
            # (Who has not authenticated is told nothing but that, and that there is no such command.)
            session.lease.unproven = session.lane.authenticated
            session.owed -= 1
            session.write(line + found)
        elif len(self._refusal) >= STREAM_FROM:
            self._exchange.accepted(session)  # not worth waiting for its end: the client keeps the connection


# What confirmations begin with; those of shard channels have a count of their own.
_CHANNELS = [b"subscribe", b"unsubscribe", b"psubscribe", b"punsubscribe"]
_SHARD_CHANNELS = [b"ssubscribe", b"sunsubscribe"]
_AGGREGATES = {2: b"*", 3: b">"}


def _beginnings(protocol: int, names: list[bytes]) -> tuple[bytes, ...]:
    return tuple(b"%b3\r\n%b" % (_AGGREGATES[protocol], replies.bulk(name)) for name in names)


_CONFIRMATIONS = {protocol: _beginnings(protocol, _CHANNELS) for protocol in (2, 3)}
_SHARD_CONFIRMATIONS = {protocol: _beginnings(protocol, _SHARD_CHANNELS) for protocol in (2, 3)}


# What PING may be refused with, besides what a wrong form of it would be.
_REFUSALS = (b"-NOPERM", b"-NOAUTH", b"-BUSY", b"-LOADING", b"-MASTERDOWN", b"-MISCONF")


def _is_refusal(error: bytes) -> bool:
    return not error.startswith(b"-NOPERM") or b"'ping'" in error


# The end of a confirmation: to how many channels the connection is subscribed.
_COUNT = re.compile(rb"\r\n:([0-9]{1,18})\r\n")

# A confirmation of more bytes (of a channel's name) is not waited for.
_LONG_CONFIRMATION = 1024 * 1024


class Subscriber:
    """A session that is subscribed to channels, or is about to be. `secret` gives a new one each time."""

    def __init__(self, exchange: Exchange, session: Session, secret: Callable[[], bytes]) -> None:
        self._exchange = exchange
        self._session = session
        protocol = session.lane.identity.protocol
        self._confirmations = _CONFIRMATIONS[protocol]
        self._shard_confirmations = _SHARD_CONFIRMATIONS[protocol]
        self._channels = self._shard_channels = 0
        self.over = False  # nothing is subscribed to, nothing under way
        self._secret = secret
        self._answers: tuple[bytes, ...] = ()  # to the PING that is under way
        self.opening = True  # the reply to a PING of ours is still to come, and the connection can't be handed on
        self._asked = False
        self._tail = b""  # the beginning of a frame
        self._passage: Passage | None = None  # of a large frame that is being passed on

    @property
    def _subscribed(self) -> bool:
        return bool(self._channels or self._shard_channels)

    def open(self, request: bytes) -> None:
        """The request that begins it."""
        self._exchange.send(self._session.lane, self._ping() + request)

    def ask(self) -> None:
        """Makes the session owe nothing only when all that it sent has been answered."""
        if not self._asked:
            self._asked = True
            self._session.owed += 1
            if not self.opening:
                self._exchange.send(self._session.lane, self._ping())

    @property
    def waits(self) -> bool:
        """Whether a PING of ours is under way: the connection can't be handed on."""
        return self.opening or self._asked

    def _ping(self) -> bytes:
        """A PING with a secret of its own: MONITOR shows those that have been."""
        token = replies.bulk(self._secret())
        # In RESP2 the reply has another form as long as there are subscriptions.
        self._answers = (token, b"*2\r\n$4\r\npong\r\n" + token)
        return b"*2\r\n$4\r\nPING\r\n" + token

    def rest(self) -> bytes:
        """The beginning of a frame, for whoever takes the connection over."""
        return self._tail

    def receive(self, data: bytes) -> None:
        """Passes on what came, and looks at it. Raises Desync."""
        data = self._tail + data
        self._tail = b""
        if self.opening:
            data = self._open(data)
        if data:
            self._pass(data)

    def _open(self, data: bytes) -> bytes:
        """What lies behind the first answer, once that is whole."""
        end = reply_end(data)
        if end < 0:
            if len(data) >= STREAM_FROM:
                raise Desync("no answer to our PING")
            self._tail = data
            return b""
        self.opening = False
        if data[:end] in self._answers:
            if self._asked:
                self._exchange.send(self._session.lane, self._ping())
            return data[end:]
        self._tail = data[end:]
        self._session.owed -= self._asked
        self._exchange.accepted(self._session)
        return b""

    def _pass(self, data: bytes) -> None:  # noqa: C901 (one walk over the frames)
        position = start = 0
        answered = looked = long = False
        while position < len(data):
            if self._passage is not None:
                position = self._passage.skip(data, position)
                if not self._passage.over:
                    break
                self._passage = None
                continue
            end, outstanding, passing = skip_elements(data, position, 1, WITH_PUSHES)
            if outstanding or passing:
                if len(data) - position < STREAM_FROM or self._is_confirmation(data, position):
                    long = len(data) - position > _LONG_CONFIRMATION
                    break
                self._passage = Passage(WITH_PUSHES)
                continue
            looked = True
            if self._asked and data[position:end] in self._answers:
                self._session.peer.write(data[start:position])
                self._asked, answered, start = False, True, end
            else:
                self._look(data, position, end)
            position = end
        self._tail = data[position:]
        if position > start:
            self._session.peer.write(data[start:position])
        if long:
            self._give_up()
        elif answered:
            self._answered()
        elif looked and not self._subscribed and not self._asked:
            self._exchange.unsubscribed(self._session)

    def _give_up(self) -> None:
        if self.waits:
            raise Desync("a confirmation without an end")
        self._exchange.accepted(self._session)

    def _answered(self) -> None:
        self.over = not self._subscribed
        if self.over and (self._tail or self._passage is not None):
            raise Desync("more than was asked for")
        self._session.owed -= 1
        self._exchange.answered(self._session)

    def _is_confirmation(self, data: bytes, position: int) -> bool:
        return data.startswith(self._confirmations + self._shard_confirmations, position)

    def _look(self, data: bytes, position: int, end: int) -> None:
        """Takes the count from a confirmation: its last element, an integer.

        In RESP2, while nothing is subscribed to, data may look like one. They can cost their own client its lease, at
        most: with something subscribed to, RESP2 sends no data, and RESP3 marks confirmations as pushes.
        """
        if data.startswith(self._confirmations, position):
            self._channels = _count(data, position, end, self._channels)
        elif data.startswith(self._shard_confirmations, position):
            self._shard_channels = _count(data, position, end, self._shard_channels)
        elif self._asked and data.startswith(_REFUSALS, position) and _is_refusal(data[position:end]):
            raise Desync("our own PING was refused")  # or a request of the client: never guess


def _count(data: bytes, position: int, end: int, otherwise: int) -> int:
    """What a confirmation ends with; data that only begin like one have something else there."""
    at = data.rfind(b"\r\n:", position, end)
    found = _COUNT.fullmatch(data, at, end) if at >= 0 else None
    return int(found[1]) if found else otherwise
