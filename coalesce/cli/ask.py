"""What is asked of a coalesce that runs, over its admin HTTP: by its commands wait, pause, resume, shutdown, top."""

from __future__ import annotations

import http.client
import json
import socket
from contextlib import suppress
from ipaddress import ip_address
from threading import Timer
from time import monotonic, sleep

from coalesce.config import TcpAddress
from coalesce.core.pause import Unfinished

# Seconds between two looks.
_LOOK_EVERY = 0.1
# Seconds that one answer may take.
_ANSWER = 5.0
# What coalesce says when it is so; others have such endpoints, too.
_YES = {"/readiness": "ready", "/startup": "started", "/quitquitquit": "draining"}
# Bytes of one. Most are single lines; /status has a hundred lanes and five minutes of history.
_LONGEST = 16 * 1024 * 1024


class AskError(Exception):
    """It can't be asked, or did not become as it was to become: why, in one line."""


class NoAnswerError(AskError):
    """`nobody`: nobody listens there."""

    def __init__(self, why: str, nobody: bool) -> None:
        super().__init__(why)
        self.nobody = nobody


def wait_until_ready(admin: TcpAddress, probe: str, timeout: float) -> None:
    """Returns when the probe has succeeded. Raises AskError when it has not in so many seconds."""
    ends = monotonic() + timeout
    while True:
        try:
            status, said = _ask(admin, "GET", f"/{probe}", ends)
        except NoAnswerError as problem:
            status, said = 0, str(problem)
        if status == http.client.OK and said == _YES[f"/{probe}"]:
            return
        if status == http.client.OK:
            said = _not_coalesce(admin)  # (or not yet: it may come to listen there)
        if monotonic() + _LOOK_EVERY > ends:
            raise AskError(f"not ready after {timeout:g} s: {said}")
        sleep(_LOOK_EVERY)


def pause(admin: TcpAddress, timeout: float) -> tuple[str, bool]:
    """It is paused now: what to say of it, and whether what was begun is finished. Raises AskError when it is not, or
    nobody knows.
    """
    try:
        status, said = ask(admin, "POST", f"/pause?timeout={timeout}", timeout + _ANSWER)
    except NoAnswerError as problem:
        if problem.nobody:
            raise
        raise AskError(f"{problem}; it may be paused all the same, until coalesce resume") from None
    if status == http.client.CONFLICT:
        raise AskError(f"{admin} is not paused: {_line(said)}")
    if status not in {http.client.OK, http.client.GATEWAY_TIMEOUT}:
        raise AskError(f"{admin} refuses: {_line(said)}")
    left = _unfinished(admin, said)
    closed = {"blocked": left.blocked, "subscribed": left.subscribed, "pinned": left.pinned}
    held = "paused: commands are held until coalesce resume"
    if left.ends:
        begun = {"in flight": left.in_flight, "in a transaction": left.in_transaction}
        lost = _counted(begun | closed)
        return f"{held}; not finished after {timeout:g} s, so the upstream's end would cut off {lost}", False
    lost = f", and its end cuts off {_counted(closed)}" if any(closed.values()) else ""
    return f"{held}; nothing is in flight, so the upstream can be replaced{lost}", True


def _unfinished(admin: TcpAddress, said: bytes) -> Unfinished:
    """Raises AskError."""
    try:
        told = json.loads(said)
        left = Unfinished(*(told[name] for name in Unfinished._fields))
    except (LookupError, RecursionError, TypeError, ValueError):
        left = Unfinished(-1)
    if not all(type(count) is int and count >= 0 for count in left):
        raise AskError(_not_coalesce(admin))
    return left


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def resume(admin: TcpAddress) -> str:
    """It is not paused now: what to say of it. Raises AskError when it can't be asked."""
    status, said = ask(admin, "POST", "/resume")
    if status != http.client.OK:
        raise AskError(f"{admin} refuses: {_line(said)}")
    return "resumed: nothing is held any more"


def shut_down(admin: TcpAddress, timeout: float) -> None:
    """Returns when it has drained and ended. Raises AskError when it can't be asked, or takes longer."""
    ends = monotonic() + timeout
    status, said = _ask(admin, "POST", "/quitquitquit", ends)
    if status != http.client.OK:
        raise AskError(f"{admin} refuses: {said}")
    if said != _YES["/quitquitquit"]:
        raise AskError(_not_coalesce(admin))
    while monotonic() + _LOOK_EVERY <= ends:
        sleep(_LOOK_EVERY)
        try:
            status, said = _ask(admin, "GET", "/readiness", ends)
        except NoAnswerError as problem:
            if problem.nobody:
                return
        else:
            if said != _YES["/quitquitquit"]:  # another one, which whoever supervises it has started
                return
    raise AskError(f"still draining after {timeout:g} s")


def ask(admin: TcpAddress, method: str, path: str, timeout: float = _ANSWER) -> tuple[int, bytes]:
    """The status, and what was said, within so many seconds. Follows nobody elsewhere. Raises NoAnswerError."""
    where = _reachable(admin)
    connection = http.client.HTTPConnection(where.host, where.port, timeout=timeout)
    try:
        connection.connect()
    except OSError as problem:
        why = f"can't ask {where} (--admin): {problem.strerror or problem}"
        raise NoAnswerError(why, isinstance(problem, ConnectionRefusedError)) from None
    late = Timer(timeout, _cut, [connection.sock])  # (a socket's own timeout begins anew with each byte)
    late.start()
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read(_LONGEST)
    except (OSError, http.client.HTTPException):
        raise NoAnswerError(f"can't ask {where} (--admin): no answer of HTTP", nobody=False) from None
    finally:
        late.cancel()
        connection.close()


def _cut(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _ask(admin: TcpAddress, method: str, path: str, ends: float) -> tuple[int, str]:
    """What is said in a line."""
    status, said = ask(admin, method, path, max(0.1, min(_ANSWER, ends - monotonic())))
    return status, _line(said) or f"HTTP {status}"


def _not_coalesce(admin: TcpAddress) -> str:
    return f"who answers at {admin} is not coalesce"


def _line(said: bytes) -> str:
    text = said.decode("latin-1").strip().partition("\n")[0]
    return "".join(each for each in text if each.isprintable())


def _reachable(listener: TcpAddress) -> TcpAddress:
    """Where one that listens there can be asked from its host."""
    try:
        if ip_address(listener.host).is_unspecified:
            return TcpAddress("::1" if ":" in listener.host else "127.0.0.1", listener.port)
    except ValueError:
        pass
    return listener
