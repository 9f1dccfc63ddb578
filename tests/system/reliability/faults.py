"""Faults, each a function of the stage: when it returns, the fault is over, though not what it did to the clients.

The leak oracle provokes them, too: a stage is whatever has an upstream, and perhaps a relay before it.
"""

from __future__ import annotations

import contextlib
import random
import resource
import threading
from signal import SIGCONT, SIGSTOP
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    from tests.system.processes import Coalesce, RedisServer

    from .accounting import Load
    from .relay import Relay


class Stage(Protocol):
    """What a fault acts upon."""

    @property
    def upstream(self) -> RedisServer: ...

    @property
    def relay(self) -> Relay | None: ...


class LoadedStage(Stage, Protocol):
    """With clients on it, some of whom are users."""

    @property
    def coalesce(self) -> Coalesce: ...

    @property
    def load(self) -> Load: ...


def last(seconds: float) -> None:
    """A fault that is to last for some time has nothing else to wait for."""
    threading.Event().wait(seconds)


def kill(stage: Stage, away: float = 0.0) -> None:
    """kill -9, and a restart from what the file has."""
    stage.upstream.kill()
    last(away)
    stage.upstream.start()


def stop(stage: Stage, seconds: float = 1.0) -> None:
    """SIGSTOP: alive, and answers nothing; the kernel goes on to take bytes for it."""
    stop_process(stage.upstream.process, seconds)


def stop_process(process: subprocess.Popen[bytes] | None, seconds: float) -> None:
    """SIGSTOP, and SIGCONT after so long."""
    assert process is not None
    process.send_signal(SIGSTOP)
    try:
        last(seconds)
    finally:
        process.send_signal(SIGCONT)


def cut(stage: Stage) -> None:
    """Every connection to the upstream, wherever it is just now, by a FIN or a reset."""
    assert stage.relay is not None
    stage.relay.by_reset = random.random() < 0.5
    stage.relay.cut()


def cut_somewhere(stage: Stage, at_most: int = 2000, seconds: float = 0.1) -> None:
    """Every connection, each after some bytes more of its requests or its replies; after so long at the latest."""
    assert stage.relay is not None
    stage.relay.by_reset = random.random() < 0.5
    stage.relay.cut_within(at_most, random.Random())
    last(seconds)
    stage.relay.cut()


def cut_in_silence(stage: Stage, seconds: float = 0.2) -> None:
    """Nothing passes for a time, and what was said in it is lost with the connections."""
    assert stage.relay is not None
    stage.relay.fall_silent()
    last(seconds)
    cut(stage)
    stage.relay.speak()


def be_silent(stage: Stage, seconds: float = 0.5) -> None:
    """Nothing passes for a time, and then all of it."""
    assert stage.relay is not None
    stage.relay.fall_silent()
    last(seconds)
    stage.relay.speak()


def be_slow(stage: Stage, seconds: float = 0.5) -> None:
    """A round trip of 50 ms, and 1 to 20 ms by chance for each piece."""
    assert stage.relay is not None
    stage.relay.delay, stage.relay.jitter = 0.025, (0.001, 0.020)
    last(seconds)
    stage.relay.delay, stage.relay.jitter = 0.0, (0.0, 0.0)


def rotate_passwords(stage: LoadedStage) -> None:
    """Those who are in stay in; who comes is told that the old one is wrong, and tries the new one."""
    for user, (first, *_) in stage.load.users.items():
        new = f"{user}-{random.getrandbits(32)}"
        stage.load.users[user] = [first, new]  # (the first: a kill brings it back)
        _set_user(stage, user, "resetpass", f">{new}")


def take_rights(stage: LoadedStage, seconds: float = 0.2) -> None:
    """Who is a user may not write for a time."""
    for user in stage.load.users:
        _set_user(stage, user, "-@write")
    last(seconds)
    for user in stage.load.users:
        _set_user(stage, user, "+@write")


def delete_users(stage: LoadedStage, seconds: float = 0.1) -> None:
    """The upstream closes their connections; then they come back."""
    with stage.upstream.connect() as control:
        for user in stage.load.users:
            assert control.ask("ACL", "DELUSER", user) == b":1\r\n"
    last(seconds)
    for user, passwords in stage.load.users.items():
        _set_user(stage, user, "on", f">{passwords[-1]}", "~*", "+@all")


def _set_user(stage: LoadedStage, user: str, *rules: str) -> None:
    with stage.upstream.connect() as control:
        assert control.ask("ACL", "SETUSER", user, *rules) == b"+OK\r\n"


@contextlib.contextmanager
def no_descriptors(pid: int) -> Iterator[None]:
    """The process keeps what it has, and gets none anew, not even for one that it closes."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (1, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


def run_out_of_descriptors(stage: LoadedStage, seconds: float = 0.3) -> None:
    """coalesce, while all its connections to the upstream break: clients that come and connections anew compete."""
    with no_descriptors(stage.coalesce.pid), stage.upstream.connect() as control:
        control.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        last(seconds)


ALL: list[Callable[[LoadedStage], None]] = [
    kill,
    stop,
    cut,
    cut_somewhere,
    cut_in_silence,
    be_silent,
    be_slow,
    rotate_passwords,
    take_rights,
    delete_users,
    run_out_of_descriptors,
]
