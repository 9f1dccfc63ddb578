"""What a live coalesce says and is told, written as transcripts are: `--trace`.

    c7 >> GET <3>             client 7 sends a request         u0 << GET <3>       upstream connection 0 receives it
    u0 >> $<5>                ... and replies                  c7 << $<5>          client 7 receives that
    c7 ends, c7 departs       it sends no more; it is gone     c7 closed           coalesce closes it
    u1 connects - db=3 resp2  it stands, as this identity      u1 lost, u1 closed  it broke; coalesce closed it
    c7 pinned u1              u1 is its own from here on       admin pauses, resumes

`tests/transcripts` explains the notation, and plays it: a name and options come first, so that all of it is a
transcript as it stands. Nobody can play what is hidden (`--trace-values` shows it, but for credentials and frames of
over 16 KB), nor what happened because time went by. Values and keys are hidden, `<3>` stands for three bytes,
unless they are asked for (`--trace-values`); credentials always are: `<hidden>`.

Who traces takes the places of those who don't, as subclasses, when a server is made. Otherwise nothing in here is
imported, and nobody asks whether he is traced.
"""

from __future__ import annotations

import re
from dataclasses import fields
from typing import TYPE_CHECKING, Protocol

from coalesce.config import Config
from coalesce.connection import Connection
from coalesce.core.errors import PROTOCOL_ERROR, ClientError, UpstreamError
from coalesce.core.exchange import Exchange
from coalesce.core.resp import CRLF, WITH_PUSHES, LargeRequestError, Passage, RequestReader
from coalesce.downstream import Client
from coalesce.pin import Pin
from coalesce.tally import Lost

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from coalesce.core.lane import Lane, Link
    from coalesce.core.session import Session
    from coalesce.downstream import Clients

    class Show(Protocol):
        """How a frame is shown."""

        def __call__(self, raw: bytes, *, values: bool) -> str: ...

HIDDEN = b"<hidden>"
# Bytes of a frame that are kept to be shown; of a longer one, only how long it is.
_LONGEST = 16 * 1024
# What is a command's name, and not a password that somebody sent as one by mistake (most have more in them).
_NAME = re.compile(rb"[A-Za-z][A-Za-z0-9_.|-]{0,31}")
_WORD = re.compile(rb"[\x21-\x7e]+")
_TEXT = re.compile(rb"(?:[\x20-\x7e]*[\x21-\x7e])?")
_STATUS = re.compile(rb"\+(?:OK|PONG|QUEUED|RESET)\r\n")
_AGGREGATES = {ord("*"): 1, ord("~"): 1, ord(">"): 1, ord("%"): 2}
# Where what can't be read as a request may have credentials in it; and replies that tell some: CONFIG GET, ACL GETUSER,
# ACL LIST, and an error that repeats what was meant to be a password.
_MAY_HAVE_CREDENTIALS = re.compile(rb"AUTH|PASS|ACL|HELLO", re.IGNORECASE)
_TELLS_CREDENTIALS = re.compile(
    rb"requirepass|masterauth|-pass\b|\bpasswords\r\n|#[0-9a-f]{64}|ACL SETUSER modifier", re.IGNORECASE
)
_SECRET = re.compile(rb"\$32\r\n[0-9a-f]{32}\r\n")
_SECRET_IN_AN_ERROR = re.compile(rb"(HELLO option ')[0-9a-f]{32}'")
_REPLY = re.compile(rb"[-+:$*_#,(=!~%]")  # no push
_MULTI = re.compile(rb"\*1\r\n\$5\r\nMULTI\r\n", re.IGNORECASE)
# Settings that decide where a request goes.
_LIMITS = ("lane_limit", "client_limit", "max_lanes", "max_leases")


def heading(config: Config) -> list[str]:
    """What a transcript begins with: its name, and the options that it is to be played with."""
    usual = {field.name: field.default for field in fields(Config)}
    limits = [f"{name}={getattr(config, name)}" for name in _LIMITS if getattr(config, name) != usual[name]]
    door = [] if config.client_password_file is None else ["locked=1"]
    return ["== traced", " ".join(["options", "whole=1", *limits, *door])]


def show_identity(username: bytes | None, password: bytes | None, database: int, protocol: int) -> str:
    """As in `u1 connects - db=3 resp2`: user:password, or - for a connection that did not authenticate."""
    who = "-" if password is None else f"{(username or b'').decode()}:{password.decode()}"
    return f"{who} db={database} resp{protocol}"


def show_request(raw: bytes, *, values: bool) -> str:
    """One request, as it follows `>>` of a client and `<<` of an upstream connection."""
    arguments = _arguments(raw)
    if not arguments:
        return _literal(raw, values=values and not _MAY_HAVE_CREDENTIALS.search(raw))
    canonical = _packed(arguments) == raw
    shown = _without_credentials(arguments)
    if not values:
        name = shown[0].decode() if _NAME.fullmatch(shown[0]) else f"<{len(shown[0])}>"
        return " ".join([name, *(it.decode() if it == HIDDEN else f"<{len(it)}>" for it in shown[1:])])
    if (canonical or shown != arguments) and all(map(_WORD.fullmatch, shown)) and not shown[0].startswith(b"b'"):
        return " ".join(it.decode() for it in shown)
    return _literal(_packed(shown) if shown != arguments else raw, values=True)


def _arguments(raw: bytes) -> list[bytes] | None:
    """As Redis would read them, none of an empty line or array; None: it is not one request."""
    reader = RequestReader()
    reader.feed(raw)
    try:
        arguments = reader.next_request(authenticated=True)
    except (ClientError, LargeRequestError):
        return None
    return None if reader.held else arguments or []


def show_reply(raw: bytes, *, values: bool) -> str:
    """One reply, as it follows `>>` of an upstream connection and `<<` of a client. Raises ValueError: it is none."""
    values = values and not _TELLS_CREDENTIALS.search(raw)
    words: list[str] = []
    position = 0
    plain = True
    while position < len(raw):
        end = raw.index(CRLF, position)
        kind, line = raw[position], raw[position:end]
        if not line:
            raise ValueError("no reply")
        position = end + 2
        if kind in b"$=!" and not line.startswith(b"$-"):
            value = raw[position : position + int(line[1:])]
            position += len(value) + 2
            plain = plain and _TEXT.fullmatch(value) is not None
            words.append(f"{line.decode()} {value.decode('latin-1')}" if values else f"{chr(kind)}<{len(value)}>")
        elif kind in _AGGREGATES or line in {b"$-1", b"_"} or _STATUS.fullmatch(line + CRLF):
            words.append(line.decode())
        else:
            plain = plain and (kind in b":#" or position == len(raw)) and _TEXT.fullmatch(line) is not None
            words.append(line.decode("latin-1") if values else _hidden_line(line))
    plain = plain and (len(words) == 1 or not any(word[0] in "+-,(" for word in words))
    return " ".join(words).rstrip() if plain or not values else _literal(raw, values=True)


def _hidden_line(line: bytes) -> str:
    """Of an error, its code stays."""
    code, space, text = line.partition(b" ")
    if line.startswith(b"-") and _NAME.fullmatch(code[1:]):
        return f"{code.decode()} <{len(text)}>" if space else code.decode()
    return f"{chr(line[0])}<{len(line) - 1}>"


def _literal(raw: bytes, *, values: bool) -> str:
    # (With a double quote in it, `repr` always takes the single ones around it.)
    return "b'" + repr(b'"' + raw)[3:] if values else f"<{len(raw)}>"


def _packed(arguments: list[bytes]) -> bytes:
    return b"*%d\r\n" % len(arguments) + b"".join(b"$%d\r\n%b\r\n" % (len(it), it) for it in arguments)


def _without_credentials(arguments: list[bytes]) -> list[bytes]:
    """As Redis's own MONITOR leaves them out."""
    name = arguments[0].upper()
    upper = [it.upper() for it in arguments]
    hidden: list[int] = []
    if name == b"AUTH":
        hidden = list(range(1, len(arguments)))
    elif name in {b"HELLO", b"MIGRATE"}:
        for word, count in ((b"AUTH", 2 if name == b"HELLO" else 1), (b"AUTH2", 2)):
            hidden += [at + more for at, it in enumerate(upper) if it == word for more in range(1, count + 1)]
    elif upper[:2] == [b"ACL", b"SETUSER"]:
        hidden = list(range(2, len(arguments)))
    elif upper[:2] == [b"CONFIG", b"SET"] and any(b"PASS" in it or b"AUTH" in it for it in upper):
        hidden = list(range(3, len(arguments)))
    elif name == b"SENTINEL" and any(b"PASS" in it for it in upper):
        hidden = list(range(2, len(arguments)))
    return [HIDDEN if at in hidden else it for at, it in enumerate(arguments)]


def _shows_no_credentials(begun: bytes) -> bool:
    """(Credentials may be in the half that is here. An inline request has too many ways to say them.)"""
    upper = begun.upper()
    return not any(word in upper for word in (b"AUTH", b"HELLO", b"MIGRATE", b"ACL", b"CONFIG"))


class Frames:
    """Cuts what comes in any pieces into requests, or into replies. What is neither comes out as it is, and nothing of
    what follows it.
    """

    def __init__(self, *, requests: bool) -> None:
        self._requests = requests
        self._rest = b""
        self._passage: Passage | None = None
        self._in_line = False  # in the middle of an inline request
        self._kept: list[bytes] = []
        self._size = 0  # bytes of the frame that is under way
        self._broken = False

    def feed(self, data: bytes) -> Iterator[bytes | int]:
        """Whole frames; of one that is too long, its length, and of what can't be read, too."""
        data = self._rest + data
        self._rest = b""
        while data:
            if self._broken:
                yield len(data)
                return
            if self._requests and self._passage is None and (self._in_line or not data.startswith(b"*")):
                end = data.find(b"\n") + 1
                self._in_line = not end
                self._keep(data[: end or len(data)])
                if not end:
                    return
                data = data[end:]
                yield self._whole()
                continue
            passage = self._passage = self._passage or Passage(WITH_PUSHES)
            try:
                position = passage.skip(data)
            except UpstreamError:
                self._broken = True
                self._keep(data)
                yield self._whole()
                return
            self._keep(data[:position])
            data = data[position:]
            if not passage.over:
                self._rest = data
                return
            self._passage = None
            whole = self._whole()
            self._broken = self._requests and isinstance(whole, bytes) and _arguments(whole) is None
            yield whole

    def _keep(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size <= _LONGEST:
            self._kept.append(piece)

    def _whole(self) -> bytes | int:
        whole = b"".join(self._kept) if self._size <= _LONGEST else self._size
        self._kept, self._size = [], 0
        return whole

    def begun(self) -> bytes | int:
        """The frame whose end has not come; of one that is too long, its length."""
        size = self._size + len(self._rest)
        return b"".join([*self._kept, self._rest]) if size <= _LONGEST else size


class Tracer:
    """Says what it is told, a line each."""

    def __init__(self, say: Callable[[str], None], *, values: bool) -> None:
        self.say = say
        self._values = values
        self._frames: dict[str, Frames] = {}  # of each end and direction

    def heard(self, who: str, data: bytes, *, requests: bool, sent: bool, most: int | None = None) -> None:
        """`sent`: by coalesce. `most`: how many replies can be right; None: any number.

        What means something else in pieces is one line, if values are shown: a transaction, which rides a lane only as
        a whole, and replies that are about to be a desync, of which none is handed out.
        """
        verb = "<<" if sent else ">>"
        frames = list(self._frames.setdefault(f"{who} {verb}", Frames(requests=requests)).feed(data))
        show = show_request if requests else show_reply
        texts = [self._shown(who, frame, show) for frame in frames]
        whole = [frame for frame in frames if isinstance(frame, bytes)]
        if self._values and not sent and len(frames) == len(whole) > 1:
            is_transaction = requests and any(map(_MULTI.match, whole))
            is_desync = most is not None and (len(whole) > most or not all(map(_REPLY.match, whole)))
            hides = any(HIDDEN.decode() in text for text in texts) or any(map(_TELLS_CREDENTIALS.search, whole))
            if (is_desync or is_transaction) and not hides:
                texts = [_literal(self._disguised(who, b"".join(whole)), values=True)]
        for text in texts:
            self.say(f"{who} {verb} {text}")

    @staticmethod
    def _disguised(who: str, data: bytes) -> bytes:
        """The secrets of fences are those of the players."""
        if who[0] != "u":
            return data
        return _SECRET_IN_AN_ERROR.sub(rb"\1secret'", _SECRET.sub(b"$6\r\nsecret\r\n", data))

    def _shown(self, who: str, frame: bytes | int, show: Show) -> str:
        if isinstance(frame, int):
            return f"<{frame}>"
        ours = self._disguised(who, frame)
        try:
            return show(ours, values=self._values)
        except ValueError:
            # (A request that can't be read may have credentials anywhere.)
            values = self._values and show is show_reply and not _TELLS_CREDENTIALS.search(ours)
            return _literal(ours, values=values)

    def refused(self, who: str, reply: bytes) -> None:
        """The upstream does not let a connection in; whoever asked for it is told the same."""
        self.say(f"{who} refuses {show_reply(reply, values=self._values)}")

    def over(self, who: str, *verbs: str) -> None:
        """What is half said will not be finished, and is said as it is."""
        for verb in verbs or ("<<", ">>"):
            frames = self._frames.pop(f"{who} {verb}", None)
            begun = b"" if frames is None else frames.begun()
            if isinstance(begun, int):
                self.say(f"{who} {verb} <{begun}>")
            elif begun:
                is_request = (who[0] == "c") == (verb == ">>")
                may_be_shown = _shows_no_credentials(begun) and (begun[:1] == b"*" or not is_request)
                self.say(f"{who} {verb} {_literal(begun, values=self._values and may_be_shown)}")


def _client(session: Session) -> str:
    return f"c{session.peer.number}" if isinstance(session.peer, Client) else "c?"


def traced(tracer: Tracer) -> tuple[type[Exchange], type[Client], type[Connection], type[Pin]]:  # noqa: C901 (four classes)
    """Those that tell the tracer."""

    class TracedExchange(Exchange):
        def receive(self, session: Session, data: bytes) -> None:
            tracer.heard(_client(session), data, requests=True, sent=False)
            super().receive(session, data)

        def end_of_input(self, session: Session) -> None:
            if session.reading:
                tracer.say(f"{_client(session)} ends")
            super().end_of_input(session)

        def connected(self, lane: Lane, link: Link, round_trip: float) -> None:
            if not lane.number and not lane.connections:
                self._say_options(lane)
            else:
                username, password, database, protocol = lane.identity
                user = None if username is None else HIDDEN
                who = show_identity(user, None if password is None else HIDDEN, database, protocol)
                tracer.say(f"u{lane.number} connects {who}")
            super().connected(lane, link, round_trip)

        def _say_options(self, lane: Lane) -> None:
            """What the handshake of the first connection told."""
            told = {"primary": lane.primary, "unauthenticated": not lane.authenticated}
            options = [f"{name}=1" for name, value in told.items() if value]
            if options:
                tracer.say(" ".join(["options", *options]))

        def refuse(self, lane: Lane, reply: bytes) -> None:
            tracer.refused(f"u{lane.number}", reply)
            super().refuse(lane, reply)

        def replies(self, lane: Lane, data: bytes, now: float) -> None:
            lease = self.leases.of[lane] if lane.exclusive else None
            most = len(lane.in_flight) if lease is None or lease.stream is None else None
            tracer.heard(f"u{lane.number}", data, requests=False, sent=False, most=most)
            super().replies(lane, data, now)

        def pause(self) -> None:
            if not self.paused:
                tracer.say("admin pauses")
            super().pause()

        def go_on(self, now: float) -> None:
            if self.paused:
                tracer.say("admin resumes")
            super().go_on(now)

    class TracedClient(Client):
        __slots__ = ("_is_broken",)

        def __init__(self, clients: Clients, sock: socket.socket, origin: str) -> None:
            self._is_broken = False
            super().__init__(clients, sock, origin)

        def write(self, data: bytes) -> None:
            if data.startswith(PROTOCOL_ERROR):
                tracer.over(f"c{self.number}", ">>")  # what is wrong with it was seen before its end
            tracer.heard(f"c{self.number}", data, requests=False, sent=True)
            super().write(data)

        def write_more(self, data: bytes) -> None:
            tracer.heard(f"c{self.number}", data, requests=False, sent=True)
            if self._outbox is None:
                super().write(data)
            else:
                self._keep(data)

        def close(self) -> None:
            if not self._is_broken:
                tracer.over(f"c{self.number}")
                tracer.say(f"c{self.number} closed")
            super().close()

        def pin(self, lane: Lane, pending: bytes) -> None:
            tracer.say(f"c{self.number} pinned u{lane.number}")
            tracer.heard(f"u{lane.number}", pending, requests=True, sent=True)
            super().pin(lane, pending)

        def _break(self) -> None:
            self._is_broken = True
            tracer.over(f"c{self.number}")
            tracer.say(f"c{self.number} departs")
            super()._break()

    class TracedConnection(Connection):
        def send(self, batch: bytes) -> None:
            tracer.heard(f"u{self._lane.number}", batch, requests=True, sent=True)
            super().send(batch)

        def lose(self, why: str, reason: Lost) -> None:
            if not self.lost.is_set():
                tracer.over(f"u{self._lane.number}")
                ours = not why or reason is Lost.DESYNC  # whoever plays it comes to the same end
                tracer.say(f"u{self._lane.number} {'closed' if ours else 'lost'}")
            super().lose(why, reason)

    class TracedPin(Pin):
        _lost = False

        def took(self, data: bytes, *, from_upstream: bool) -> None:
            client, lane = self.ids["client"], self.ids["lane"]
            source, sink = (lane, client) if from_upstream else (client, lane)
            tracer.heard(source, data, requests=not from_upstream, sent=False)
            tracer.heard(sink, data, requests=not from_upstream, sent=True)
            super().took(data, from_upstream=from_upstream)

        def over(self, *, from_upstream: bool) -> None:
            if from_upstream:
                self._lost = True
                tracer.over(self.ids["lane"])
                tracer.say(f"{self.ids['lane']} lost")
            else:
                tracer.say(f"{self.ids['client']} ends")
            super().over(from_upstream=from_upstream)

        async def run(self) -> None:
            try:
                await super().run()
            finally:
                if not self._lost:
                    tracer.over(self.ids["lane"])
                    tracer.say(f"{self.ids['lane']} closed")
                tracer.over(self.ids["client"])
                tracer.say(f"{self.ids['client']} closed")

    return TracedExchange, TracedClient, TracedConnection, TracedPin
