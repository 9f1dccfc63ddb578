"""The status page: three files, which a browser loads from the admin and from nowhere else."""

from __future__ import annotations

from importlib.resources import files
from typing import NamedTuple

# Nothing from elsewhere, nothing inline, nothing sent elsewhere, in nobody's frame. (data: is the icon.)
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


class File(NamedTuple):
    """One of them, as a browser wants it."""

    content_type: str
    body: bytes


def page() -> dict[str, File]:
    """By path. Read once: what is served does not change under a page that is open."""
    here = files(__name__)
    return {
        "/": File("text/html; charset=utf-8", here.joinpath("index.html").read_bytes()),
        "/page.css": File("text/css; charset=utf-8", here.joinpath("page.css").read_bytes()),
        "/page.js": File("text/javascript; charset=utf-8", here.joinpath("page.js").read_bytes()),
    }
