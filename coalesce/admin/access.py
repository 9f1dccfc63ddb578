"""Who may ask the admin for what: there is no password, so it depends on where a request comes from."""

from __future__ import annotations

import re
from typing import NamedTuple

from coalesce.listening import ip

# What says that somebody passed a request on.
_PASSED_ON = frozenset(("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"))
# A name, or an address; IPv6 in brackets; perhaps a port.
_HOST = re.compile(r"(?:\[(?P<six>[0-9a-f:.]+)\]|(?P<name>[a-z0-9.-]+))(?::[0-9]*)?")


class Request(NamedTuple):
    """What is asked, and by whom."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    client: str | None  # its address,
    server: str | None  # ... and the one that it reached


def why_not(request: Request) -> str | None:
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


def may_look(request: Request) -> bool:
    """Whether it was asked of an address, or of localhost: not of a name that somebody's page has led here (DNS
    rebinding), for the browser would let that page read the answer.
    """
    found = _HOST.fullmatch(request.headers.get("host", "").lower())
    if found is None or found["name"] == "localhost":
        return found is not None
    try:
        ip(found["name"] or found["six"])
    except ValueError:
        return False
    return True


def _is_loopback(address: str) -> bool:
    try:
        return ip(address).is_loopback
    except ValueError:
        return False
