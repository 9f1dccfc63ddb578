"""Plays a transcript over real sockets: coalesce itself between clients and an upstream that follows the script."""

from __future__ import annotations

import socket
import struct
import tempfile
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import hiredis
import trio

from coalesce.config import Config, TcpAddress, Upstream
from coalesce.server import Server
from coalesce.trace import show_identity as identity
from tests.transcripts.notation import DOOR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.transcripts.notation import Step, Transcript

# Seconds for one step. Nothing here takes a tenth of it, even on a busy machine.
_DEADLINE = 5
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_HELLO = b"*4\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$6\r\n7.0.15\r\n"
_HELLO_PRIMARY = b"*6" + _HELLO.removeprefix(b"*4") + b"$4\r\nrole\r\n$6\r\nmaster\r\n"
_INCOMPLETE = object()


class Peer:
    """A socket, and what was received on it and not looked at yet."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.received = b""

    async def expect(self, data: bytes) -> None:
        while len(self.received) < len(data):
            chunk = await self.stream.receive_some()
            assert chunk, f"closed, after {self.received!r}"
            self.received += chunk
        assert self.received.startswith(data), f"expected {data!r}, got {self.received!r}"
        self.received = self.received[len(data) :]

    async def expect_close(self) -> None:
        try:
            chunk = await self.stream.receive_some()
        except trio.BrokenResourceError:
            return
        assert not chunk, f"open, and received {chunk!r}"

    async def reset(self) -> None:
        self.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        await self.stream.aclose()


class Upstream_:  # noqa: N801 (Upstream is the product's)
    """The upstream's listener. Every connection is led through the handshake, and then follows the script."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self._listener = listener
        self.refusal: bytes | None = None
        self.unauthenticated = False
        self.primary = False

    @property
    def port(self) -> int:
        port: int = self._listener.socket.getsockname()[1]
        return port

    async def accept(self, refusal: bytes = b"") -> tuple[Peer, str]:  # noqa: C901 (a request a case)
        """The next connection, and the identity that it was made to run as."""
        peer = Peer(await self._listener.accept())
        reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        username = password = None
        database, protocol = 0, 2
        greeted = False
        while True:
            request = reader.gets()
            if request is _INCOMPLETE and greeted:  # all of the handshake comes in one piece, HELLO near its end
                return peer, identity(username, password, database, protocol)
            if request is _INCOMPLETE:
                chunk = await peer.stream.receive_some()
                assert chunk, "hung up in the handshake"
                reader.feed(chunk)
                continue
            reply = b"+OK\r\n"
            match request:
                case [b"AUTH", *who]:
                    username, password = [None, *who][-2:]
                case [b"HELLO", version, *_]:
                    protocol = int(version)
                    greeted = True
                    reply = _HELLO_PRIMARY if self.primary else _HELLO
                    if self.unauthenticated:
                        reply = b"-NOAUTH HELLO must be called...\r\n"
                case [b"PING"]:
                    reply = b"-NOAUTH Authentication required.\r\n"
                case [b"SELECT", number]:
                    database = int(number)
                case [b"CONFIG", *_]:
                    reply = b"*2\r\n$18\r\nproto-max-bulk-len\r\n$9\r\n536870912\r\n"
                case _:
                    raise AssertionError(f"in the handshake: {request}")
            if refusal and (request[0] in {b"AUTH", b"SELECT"} or protocol == 3):
                reply = refusal
            await peer.stream.send_all(reply)
            if reply == refusal and request[0] == b"AUTH":  # nothing else comes
                return peer, ""


class SocketPlayer:
    def __init__(self, transcript: Transcript, cut: Callable[[bytes], Iterable[bytes]]) -> None:
        self._transcript = transcript
        self._cut = cut
        self._peers: dict[str, Peer] = {}
        self._address = TcpAddress("127.0.0.1", 0)

    async def play(self) -> None:
        with tempfile.TemporaryDirectory(prefix="coal-") as directory:
            await self._play_all(Path(directory))

    async def _play_all(self, directory: Path) -> None:
        options = dict(self._transcript.options)
        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        self._upstream = Upstream_(listener)
        self._upstream.unauthenticated = bool(options.pop("unauthenticated", 0))
        self._upstream.primary = bool(options.pop("primary", 0))
        options.pop("whole", None)
        if options.pop("locked", 0):
            passwords = directory / "passwords"
            passwords.write_bytes(b"other\n%b\n" % DOOR)
            options["client_password_file"] = str(passwords)  # type: ignore[assignment]
        config = Config(
            Upstream(TcpAddress("127.0.0.1", self._upstream.port)),
            listen=(self._address,),
            hold_below=0,  # so that the script may keep a reply back and still see the next request
            **options,  # type: ignore[arg-type]
        )
        async with listener, trio.open_nursery() as nursery, AsyncExitStack() as stack:
            with trio.fail_after(_DEADLINE):
                nursery.start_soon(self._accept_first)
                server = self._server = Server(config, lambda: b"secret")
                stack.enter_context(server.poller.others_in_a_hurry())
                self._address = (await nursery.start(server.serve))[0]
                while "u0" not in self._peers:
                    await trio.lowlevel.checkpoint()
            for step in self._transcript.steps:
                try:
                    with trio.fail_after(_DEADLINE):
                        await self._play(step)
                except (AssertionError, trio.TooSlowError) as problem:
                    raise AssertionError(f"{self._transcript.name}: {step.line}: {problem!r}") from problem
            left = {who: peer.received for who, peer in self._peers.items() if peer.received}
            assert not left, f"received and not written down: {left}"
            for peer in self._peers.values():
                await peer.stream.aclose()
            nursery.cancel_scope.cancel()

    async def _accept_first(self) -> None:
        """coalesce looks at its upstream before it listens, and then dials its first lane."""
        first, _ = await self._upstream.accept()
        await first.expect_close()
        await first.stream.aclose()
        self._peers["u0"], _ = await self._upstream.accept()

    async def _play(self, step: Step) -> None:  # noqa: C901, PLR0912 (a step a case)
        who = step.who
        if who[0] == "c" and who not in self._peers:
            self._peers[who] = Peer(await trio.open_tcp_stream(self._address.host, self._address.port))
        match who[0], step.verb:
            case _, ">>":
                with suppress(trio.BrokenResourceError):  # closed by coalesce before all was sent
                    for chunk in self._cut(step.data):
                        await self._peers[who].stream.send_all(chunk)
            case _, "<<":
                await self._peers[who].expect(step.data)
            case "c", "ends":
                await self._peers[who].stream.send_eof()
            case "c", "departs":
                await self._peers.pop(who).reset()
            case _, "closed":
                await self._peers[who].expect_close()
            case "c", "pinned":
                pass  # the connection is the one that it had
            case "u", "connects":
                if who in self._peers:
                    await self._peers[who].expect_close()
                    await self._peers[who].stream.aclose()
                self._peers[who], became = await self._upstream.accept()
                assert not step.rest or became == step.rest
            case "u", "refuses":
                refused, _ = await self._upstream.accept(step.data)
                await refused.stream.aclose()  # or the next dial might use it, which the script takes for a new one
            case "u", "lost":
                await self._peers.pop(who).reset()
            case "a", "pauses":
                await self._server.pause(0)
            case "a", "resumes":
                self._server.resume()
            case _:
                raise ValueError(step.line)
