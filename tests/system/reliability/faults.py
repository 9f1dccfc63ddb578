"""Faults, each a function of the stage: when it returns, the fault is over, though not what it did to the clients.

The leak oracle provokes them, too: a stage is whatever has an upstream, and perhaps a relay before it.
"""

from __future__ import annotations

import random
import threading
from signal import SIGCONT, SIGSTOP
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from tests.system.processes import RedisServer

    from .relay import Relay


class Stage(Protocol):
    """What a fault acts upon."""

    @property
    def upstream(self) -> RedisServer: ...

    @property
    def relay(self) -> Relay | None: ...


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


ALL: list[Callable[[Stage], None]] = [kill, stop, cut, cut_somewhere, cut_in_silence, be_silent, be_slow]
