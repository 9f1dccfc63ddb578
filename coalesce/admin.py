"""HTTP for operators: probes, metrics, status, and the few things that can be asked of a running coalesce.

    GET  /startup /readiness /liveness                 503 or 200, for whoever supervises
    GET  /metrics                                      for whoever collects
    GET  /status /                                     for whoever looks: see `_may_look`
    POST /quitquitquit /pause /resume                  for whoever may: see `_may_ask`

Parsed and served by hypercorn, on trio. Its tasks share the thread with the poller, so what they do is short.

The names of the probes, and of what ends it, are those of the Cloud SQL Auth Proxy.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import math
import re
import socket
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs

import hypercorn.config
import trio
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import wrap_app

from coalesce.metrics import Metrics
from coalesce.page import HEADERS, page
from coalesce.status import EVERY, Status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from hypercorn.events import Event
    from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope

    from coalesce.server import Server

log = logging.getLogger("coalesce.http")
log.setLevel(logging.WARNING)  # hypercorn says where it listens, and so do we

# Milliseconds until a connection whose other end takes nothing is closed, by the kernel: hypercorn would wait for ever.
_NEVER_READS = 5000
# Connections at a time. One more takes the place of the oldest: a probe and a scrape are soon over, who wants hundreds
# is not to keep them out, and descriptors are for clients. (hypercorn closes idle ones after 5 s.)
_CONNECTIONS = 32
# What says that somebody passed a request on.
_PASSED_ON = frozenset(("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"))
# What any name may stand before: it says little, and machines ask for it by a Service's name.
_FOR_MACHINES = frozenset(("/startup", "/readiness", "/liveness", "/metrics"))
# A name, or an address; IPv6 in brackets; perhaps a port.
_HOST = re.compile(r"(?:\[(?P<six>[0-9a-f:.]+)\]|(?P<name>[a-z0-9.-]+))(?::[0-9]*)?")
# Seconds without accepting after an error, such as no descriptor being left. (That is said where clients are accepted.)
_PAUSE = 0.1
# Seconds that /pause waits, if it does not say.
_PAUSE_TIMEOUT = 10.0
# Seconds that a request under way may take once coalesce has ended.
_LAST_REQUEST = 1.0


@asynccontextmanager
async def serving(admin: Admin, listeners: list[socket.socket]) -> AsyncIterator[None]:
    """Within it, the admin answers. Owns the listeners."""
    connections = _Connections(admin)
    raised: Exception | None = None
    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as accepting:
            accepting.start_soon(admin.sample)
            for sock in listeners:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _NEVER_READS)  # of whoever is accepted
                accepting.start_soon(connections.accept, sock, nursery)
            try:
                yield
            except Exception as problem:  # noqa: BLE001 (raised below, by itself, not as one of a group)
                raised = problem
            accepting.cancel_scope.cancel()
        await connections.end()
        nursery.cancel_scope.cancel()
    if raised is not None:
        raise raised


class _Connections:
    """Who has connected. hypercorn serves each; whom to let in, and the end of all, are decided here.

    (`hypercorn.trio.serve` does both, too. It lets in any number, and waits at its end for those who read nothing.)
    """

    def __init__(self, admin: Admin) -> None:
        self._app = wrap_app(admin.app, 0, "asgi")
        self._config = hypercorn.config.Config()
        self._config.errorlog = log
        self._config.include_server_header = False
        self._context = WorkerContext(None)
        self._streams: dict[trio.SocketStream, None] = {}  # the oldest first
        self._left = trio.lowlevel.ParkingLot()

    async def accept(self, sock: socket.socket, nursery: trio.Nursery) -> None:
        """Accepts until cancelled; closes the listener then."""
        async with trio.SocketListener(trio.socket.from_stdlib_socket(sock)) as listener:
            while True:
                try:
                    stream = await listener.accept()
                except OSError:
                    await trio.sleep(_PAUSE)
                    continue
                if len(self._streams) >= _CONNECTIONS:
                    self._close(next(iter(self._streams)))
                self._streams[stream] = None
                nursery.start_soon(self._serve, stream)

    async def _serve(self, stream: trio.SocketStream) -> None:
        try:
            # (Without TLS, a plain stream is what it takes.)
            await _Hypercorn(self._app, self._config, self._context, ConnectionState({}), stream)  # type: ignore[arg-type]
        except Exception as problem:  # noqa: BLE001 (what garbage comes to in hypercorn; our own are caught in `app`)
            logging.getLogger("coalesce").debug("admin: a connection is closed: %s", type(problem).__name__)
        finally:
            self._close(stream)

    def _close(self, stream: trio.SocketStream) -> None:
        """At once, also in the middle of a write; whoever waits for that is told."""
        stream.socket.close()
        self._streams.pop(stream, None)
        self._left.unpark_all()

    async def end(self) -> None:
        """Requests under way may take a moment more."""
        await self._context.terminated.set()
        with trio.move_on_after(_LAST_REQUEST):
            while self._streams:
                await self._left.park()
        for stream in list(self._streams):
            self._close(stream)


class _Hypercorn(TCPServer):
    """One connection of HTTP."""

    async def protocol_send(self, event: Event) -> None:
        """Nothing is sent while the connection is closed, by another task of hypercorn's: that tells all who wait.

        (Garbage in HTTP/2 closes it while an answer is under way; trio calls that a bug, and hypercorn logs it.)
        """
        with suppress(trio.BusyResourceError):
            await super().protocol_send(event)


class Answer(NamedTuple):
    """A reply of HTTP."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[bytes, bytes], ...] = ()


def _said(status: int, line: str) -> Answer:
    return Answer(status, f"{line}\n".encode())


def _told(status: int, what: dict[str, object]) -> Answer:
    return Answer(status, json.dumps(what).encode() + b"\n", "application/json")


def _seconds(query: str, name: str, default: float) -> float | None:
    """A number of seconds among the arguments of a request; None: it is none."""
    match parse_qs(query, keep_blank_values=True).get(name):
        case None:
            return default
        case [text]:
            with suppress(ValueError):
                number = float(text)
                return number if 0 <= number < math.inf else None
    return None


class Request(NamedTuple):
    """What is asked, and by whom."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    client: str | None  # its address,
    server: str | None  # ... and the one that it reached


class Admin:
    """What is asked over HTTP, and what is answered. An ASGI application: `app`."""

    def __init__(self, server: Server, readiness_upstream: bool, settings: Mapping[str, object]) -> None:
        """`settings`: what /status says of them."""
        self._server = server
        self._readiness_upstream = readiness_upstream
        self._status = Status(server.figures, settings)
        self._metrics = Metrics(server.figures)
        self._routes: dict[str, tuple[str, Callable[[Request], Awaitable[Answer]]]] = {
            "/startup": ("GET", self._startup),
            "/readiness": ("GET", self._readiness),
            "/liveness": ("GET", self._liveness),
            "/metrics": ("GET", self._expose),
            "/status": ("GET", self._say_status),
            "/quitquitquit": ("POST", self._quit),
            "/pause": ("POST", self._pause),
            "/resume": ("POST", self._resume),
        }
        self._page = page()
        self._routes |= dict.fromkeys(self._page, ("GET", self._file))

    async def sample(self) -> None:
        """Keeps the history of /status, until cancelled."""
        while True:
            with self._server.faults.contained("admin: history", "this second is missing"):
                self._status.sample()
            await trio.sleep(EVERY)

    async def app(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """ASGI: <https://asgi.readthedocs.io/en/latest/specs/www.html>."""
        del receive
        if scope["type"] != "http":
            return
        try:
            answer = await self._answer(_request(scope))
        except Exception as fault:  # noqa: BLE001 (ours, whatever it is)
            self._server.faults.say(f"admin {scope['path']!r}", fault, "that request fails")
            answer = _said(500, "a fault in coalesce: see its log")
        headers = [(b"content-type", answer.content_type.encode()), (b"content-length", b"%d" % len(answer.body))]
        headers += [(b"cache-control", b"no-store"), *answer.headers]
        body = b"" if scope["method"] == "HEAD" else answer.body
        with suppress(trio.BusyResourceError):  # hypercorn is closing the connection, after bad HTTP/2
            await send({"type": "http.response.start", "status": answer.status, "headers": headers, "trailers": False})
            await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _answer(self, request: Request) -> Answer:
        route = self._routes.get(request.path)
        if route is None:
            there_are = ", ".join(path for path in self._routes if path not in self._page)
            return _said(404, f"there is no such page; there are / and {there_are}")
        method, respond = route
        if request.method != method and (request.method, method) != ("HEAD", "GET"):
            return _said(405, f"this wants {method}")._replace(headers=((b"allow", method.encode()),))
        if request.path not in _FOR_MACHINES and not _may_look(request):
            return _said(403, "this can be asked of an IP address or of localhost alone, not of another name")
        if method == "POST" and (why_not := _why_not(request)):
            return _said(403, why_not)
        return await respond(request)

    async def _file(self, request: Request) -> Answer:
        """The page's own three, and nothing else of any directory."""
        file = self._page[request.path]
        return Answer(200, file.body, file.content_type, HEADERS)

    async def _startup(self, request: Request) -> Answer:
        del request
        return _said(200, "started") if self._server.started else _said(503, "starting")

    async def _liveness(self, request: Request) -> Answer:
        """That this is answered is the answer. It never depends on the upstream: a restart would not mend that."""
        del request
        return _said(200, "alive")

    async def _readiness(self, request: Request) -> Answer:
        del request
        why_not = self._server.why_not_ready()
        if why_not is None and self._readiness_upstream:
            why_not = self._server.why_no_upstream()
        return _said(200, "ready") if why_not is None else _said(503, why_not)

    async def _expose(self, request: Request) -> Answer:
        text, content_type = self._metrics.exposed(request.headers.get("accept", ""))
        return Answer(200, text, content_type)

    async def _say_status(self, request: Request) -> Answer:
        del request
        return Answer(200, self._status.said(), "application/json")

    async def _quit(self, request: Request) -> Answer:
        del request
        self._server.end()
        return _said(200, "draining")

    async def _pause(self, request: Request) -> Answer:
        """It lasts until /resume, whatever the answer is, and whether anybody is there to get it."""
        timeout = _seconds(request.query, "timeout", _PAUSE_TIMEOUT)
        if timeout is None:
            return _said(400, "timeout is to be a number of seconds, from 0 on")
        left = await self._server.pause(timeout)
        if left is None:
            return _said(409, "resumed meanwhile" if not self._server.why_not_ready() else "draining")
        return _told(504 if left.ends else 200, {"paused": True, **left._asdict()})

    async def _resume(self, request: Request) -> Answer:
        del request
        self._server.resume()
        return _told(200, {"paused": False})


def _request(scope: Any) -> Request:
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value  # said twice, it is neither
    client, server = scope["client"], scope["server"]
    return Request(
        scope["method"],
        scope["path"],
        scope["query_string"].decode("latin-1"),
        headers,
        client[0] if client else None,
        server[0] if server else None,
    )


def _why_not(request: Request) -> str | None:
    """Why a request may not change anything, if it may not.

    It has to come from this host (in Kubernetes: from this Pod), by loopback on both ends: a proxy in the Pod may use a
    loopback address when it passes on what came from elsewhere (Istio: 127.0.0.6), or says so in a header. And not from
    a page in somebody's browser, which can send to loopback, too, by a name of its own that leads there.
    """
    if not all(end is not None and _is_loopback(end) for end in (request.client, request.server)):
        return "this can be asked from this host alone, by a loopback address"
    if not _PASSED_ON.isdisjoint(request.headers):
        return "this can't be asked through a proxy"
    host = request.headers.get("host", "").lower()
    found = _HOST.fullmatch(host)
    if found is None or not (found["name"] == "localhost" or _is_loopback(found["name"] or found["six"])):
        return "this can be asked of localhost or 127.0.0.1 alone"
    if request.headers.get("sec-fetch-site", "none") not in {"same-origin", "none"}:
        return "this can't be asked by another site's page"
    origin = request.headers.get("origin")
    if origin is not None and origin.lower() != f"http://{host}":
        return "this can't be asked by another site's page"
    return None


def _may_look(request: Request) -> bool:
    """Whether it was asked of an address, or of localhost: not of a name that somebody's page has led here (DNS
    rebinding), for the browser would let that page read the answer.
    """
    found = _HOST.fullmatch(request.headers.get("host", "").lower())
    if found is None or found["name"] == "localhost":
        return found is not None
    try:
        ipaddress.ip_address(found["name"] or found["six"])
    except ValueError:
        return False
    return True


def _is_loopback(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback
