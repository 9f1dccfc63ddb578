"""What can be asked of a running coalesce, by operators and by what works for them.

    GET  /startup /readiness /liveness                 503 or 200, for whoever supervises
    GET  /metrics                                      for whoever collects
    GET  /status /                                     for whoever looks: see `may_look`
    POST /quitquitquit /pause /resume                  for whoever may: see `why_not`

The names of the probes, and of what ends it, are those of the Cloud SQL Auth Proxy.
"""

from __future__ import annotations

import json
import math
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs

import trio

from coalesce.admin.access import Request, may_look, why_not
from coalesce.admin.figures import look
from coalesce.admin.metrics import Metrics
from coalesce.admin.page import HEADERS, page
from coalesce.admin.status import EVERY, Status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope

    from coalesce.server import Server

# What any name may stand before: it says little, and machines ask for it by a Service's name.
_FOR_MACHINES = frozenset(("/startup", "/readiness", "/liveness", "/metrics"))
# Seconds that /pause waits, if it does not say.
_PAUSE_TIMEOUT = 10.0


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


class Admin:
    """What is asked over HTTP, and what is answered. An ASGI application: `app`."""

    def __init__(self, server: Server, readiness_upstream: bool, settings: Mapping[str, object]) -> None:
        """`settings`: what /status says of them."""
        self._server = server
        self._readiness_upstream = readiness_upstream
        seen = partial(look, server)
        self._status = Status(seen, settings)
        self._metrics = Metrics(seen)
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
        with suppress(trio.BusyResourceError):  # hypercorn is closing the connection
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
        if request.path not in _FOR_MACHINES and not may_look(request):
            return _said(403, "this can be asked of an IP address or of localhost alone, not of another name")
        if method == "POST" and (refusal := why_not(request)):
            return _said(403, refusal)
        return await respond(request)

    async def _file(self, request: Request) -> Answer:
        """The page's own three, and nothing else of any directory."""
        file = self._page[request.path]
        return Answer(200, file.body, file.content_type, HEADERS)

    async def _startup(self, request: Request) -> Answer:
        del request
        why_not = self._server.why_not_started()
        return _said(200, "started") if why_not is None else _said(503, why_not)

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
