"""Who answers at --admin may be anybody: where nobody else listens, any process of the host may."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from coalesce.cli.ask import AskError, NoAnswerError, ask, pause, resume, shut_down, wait_until_ready
from coalesce.cli.top import look
from coalesce.config import TcpAddress

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

TIMEOUT = 0.5


@contextmanager
def answering(pieces: Iterable[bytes]) -> Iterator[tuple[TcpAddress, list[bytes]]]:
    """Somebody who says this to each in turn, whatever is asked. And what it was asked."""
    heard: list[bytes] = []
    ended = threading.Event()

    def answer(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                sock, _ = listener.accept()
                with sock, suppress(OSError):
                    sock.settimeout(TIMEOUT)
                    heard.append(sock.recv(65536))
                    for piece in pieces:
                        sock.sendall(piece)
                        ended.wait(0.01)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=[listener], daemon=True)
        thread.start()
        try:
            yield TcpAddress(*listener.getsockname()), heard
        finally:
            ended.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def reply(status: str, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_it_is_not_led_elsewhere(code):
    with answering([reply("200 OK", b"ready\n")]) as (elsewhere, heard):
        for place in (f"http://{elsewhere}/", "file:///etc/passwd", f"ftp://{elsewhere}/"):
            with answering([reply(f"{code} Elsewhere", b"", f"Location: {place}")]) as (admin, _):
                assert ask(admin, "GET", "/readiness", 5.0) == (code, b"")
                with pytest.raises(AskError):
                    wait_until_ready(admin, "readiness", 0.2)
                for question in (shut_down, pause):
                    with pytest.raises(AskError):
                        question(admin, 0.2)
                with pytest.raises(AskError):
                    resume(admin)
        assert heard == []


@pytest.mark.parametrize("said", [b"", b"OK\n", b"<!doctype html>\n"], ids=repr)
def test_somebody_else_who_says_yes_to_everything_is_neither_ready_nor_ended(said):
    """The sidecar that these endpoints have their names from, or a page for all paths that there are."""
    with answering([reply("200 OK", said)]) as (admin, _):
        with pytest.raises(AskError, match=f"who answers at {admin} is not coalesce"):
            wait_until_ready(admin, "readiness", 0.2)
        with pytest.raises(AskError, match=f"who answers at {admin} is not coalesce"):
            shut_down(admin, 0.2)


def test_what_is_answered_without_a_word_has_its_number_said():
    with answering([reply("502 Bad Gateway", b"")]) as (admin, _):
        with pytest.raises(AskError, match=r"not ready after 0\.2 s: HTTP 502$"):
            wait_until_ready(admin, "readiness", 0.2)
        with pytest.raises(AskError, match=r"refuses: HTTP 502$"):
            shut_down(admin, 0.2)


@pytest.mark.parametrize(
    "beginning", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n"], ids=repr
)
def test_an_answer_that_dribbles_takes_no_longer_than_it_may(beginning):
    with answering(itertools.chain([beginning], itertools.repeat(b"x"))) as (admin, _):
        began = time.monotonic()
        with suppress(NoAnswerError):
            ask(admin, "GET", "/status", TIMEOUT)
        assert time.monotonic() < began + 5 * TIMEOUT


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[" * 100_000,
        b'{"coalesce":' * 5000,
        b'{"coalesce": {}}',
        json.dumps({"coalesce": [], "state": 1, "upstream": {}, "lanes": [{}]}).encode(),
    ],
    ids=lambda body: repr(body[:20]),
)
def test_what_is_no_status_is_said_in_one_line(body):
    with answering([reply("200 OK", body)]) as (admin, _), pytest.raises(AskError, match=str(admin)):
        look(admin)


LEFT = {"paused": True, "in_flight": 0, "in_transaction": 0, "blocked": 0, "subscribed": 0, "pinned": 0}


@pytest.mark.parametrize(
    "said",
    [b"", b"{", b"[]", b"null", b"7", b"[" * 100_000, b"{}"]
    + [json.dumps(LEFT | {"pinned": wrong}).encode() for wrong in (None, "1", -1, 0.5, True, [1])],
    ids=lambda said: said[:80].decode(),
)
def test_who_says_no_numbers_is_not_coalesce(said):
    with (
        answering([reply("200 OK", said)]) as (admin, _),
        pytest.raises(AskError, match=f"who answers at {admin} is not coalesce"),
    ):
        pause(admin, 0.2)


def test_a_pause_without_an_answer_may_be_one():
    with answering([b""]) as (admin, heard):
        with pytest.raises(AskError, match="it may be paused all the same"):
            pause(admin, 0.5)
        assert heard[0].startswith(b"POST /pause?timeout=0.5 ")
    with pytest.raises(AskError, match=r"Connection refused$"):
        pause(admin, 0.5)


def test_who_refuses_says_why():
    with answering([reply("403 Forbidden", b"this can be asked from this host alone\n")]) as (admin, _):
        for question in (lambda: pause(admin, 0.2), lambda: resume(admin)):
            with pytest.raises(AskError, match=f"{admin} refuses: this can be asked from this host alone"):
                question()
    with (
        answering([reply("409 Conflict", b"draining\n")]) as (admin, _),
        pytest.raises(AskError, match=f"{admin} is not paused: draining"),
    ):
        pause(admin, 0.2)
