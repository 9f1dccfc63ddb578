"""Starts all that a run takes, keeps its places taken, provokes a fault now and then, and closes the books."""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
import re
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from tests.system.admin import ADMIN
from tests.system.processes import eventually, running_coalesce, running_server
from tests.system.reliability import faults
from tests.system.reliability.relay import Relay

from .client import Client
from .operator import Operator
from .run import LeftBehindError, Run, Tally, server_options, texts_of
from .speaker import Helper

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.system.processes import Coalesce, Executable, RedisServer
    from tests.system.reliability.relay import Link
    from tests.system.wire import Address


LAST_WORDS = 2  # seconds that a process takes to end, once it has closed its connections
# Nothing subscribed to, no transaction open; neither blocked nor tracking nor a monitor.
CLEAN = re.compile(rb" flags=N .* sub=0 psub=0 ")  # (flags tell of a transaction; multi=0 is none on Valkey)


@dataclass(frozen=True)
class Plan:
    """What the command line says."""

    replies: int
    seed: int
    kill_every: float = 0  # seconds; 0: never
    fault_every: float = 0  # seconds, in the mean; 0: never. Any of those below, and a relay is between for them
    clients: int = 100
    max_leases: int | None = None
    story_share: float = 0.05  # of what clients say
    direct: bool = False
    minutes: float | None = None  # then it ends, if not before
    rounds: int | None = None  # of all faults: then, too
    pauses: bool = False  # by the admin, at any time, while its figures are looked at


async def keep_a_place_taken(run: Run, seed: str) -> None:
    """One client after the other, until enough replies were checked."""
    chance = random.Random(seed)
    helper = Helper(run, chance)
    with contextlib.closing(helper):
        while not run.over:
            await Client(run, chance).live(helper)


@dataclass
class Scene:
    """What the faults act upon: `reliability.faults.Stage`."""

    upstream: RedisServer
    relay: Relay | None
    coalesce: Coalesce | None


# Short ones: whoever waits for a fault to be over checks no replies.
CLOSING: dict[str, Callable[[Scene], None]] = {
    "kill": faults.kill,
    "cut": faults.cut,
    "cut somewhere": faults.cut_somewhere,
    "cut in silence": functools.partial(faults.cut_in_silence, seconds=0.1),
}
PASSING: dict[str, Callable[[Scene], None]] = {
    "stop": functools.partial(faults.stop, seconds=0.2),
    "silence": functools.partial(faults.be_silent, seconds=0.2),
    "slow link": functools.partial(faults.be_slow, seconds=0.3),
}


async def kill_now_and_then(run: Run, scene: Scene, every: float) -> None:
    while True:
        await trio.sleep(every)
        await provoke(run, scene, "kill")


async def provoke_now_and_then(run: Run, scene: Scene, plan: Plan) -> None:
    """Any fault; each of them once a round."""
    chance = random.Random(f"{plan.seed}/faults")
    for number in itertools.count(1):
        for name in chance.sample(kinds := [*CLOSING, *PASSING], len(kinds)):
            await trio.sleep(plan.fault_every * chance.uniform(0.5, 1.5))
            await provoke(run, scene, name)
        if number == plan.rounds:
            run.time_is_up = True
            return


async def provoke(run: Run, scene: Scene, name: str) -> None:
    """When this returns, the fault is over, and so is the weather that it made."""
    run.tally.faults[name] += 1
    with trio.CancelScope(shield=True):  # whoever looks at the end finds an upstream
        if name in PASSING:
            await trio.to_thread.run_sync(PASSING[name], scene)
            return
        run.weather.mark += 1
        if name == "kill":
            run.weather.last_kill = run.weather.mark
            run.ledger.forget()
        standing = [] if scene.relay is None else [*scene.relay.links]
        await trio.to_thread.run_sync(CLOSING[name], scene)
        if name == "kill" and scene.relay is not None:
            # One that had been begun, and came through only when the upstream was there again, would stay: and who
            # waits on it for what the kill took is not given it anew before the weather is fair.
            await trio.to_thread.run_sync(scene.relay.cut, standing)
        try:
            await trio.to_thread.run_sync(eventually, lambda: all_gone(scene, standing))
        except TimeoutError as problem:
            problem.add_note(f"after {name}, of {standing}")
            problem.add_note("" if scene.coalesce is None else scene.coalesce.stderr[-2000:])
            raise
        while scene.coalesce is not None and not await trio.to_thread.run_sync(serves, scene.coalesce):
            await trio.lowlevel.checkpoint()
        run.weather.mark += 1


def all_gone(scene: Scene, links: list[Link]) -> bool:
    """Or somebody may still be closed when the weather is fair again."""
    return scene.relay is None or not {*links} & {*scene.relay.links}


def serves(coalesce: Coalesce) -> bool:
    """Whether a new client gets its PONG; one that came at the wrong moment is closed instead."""
    try:
        with coalesce.connect() as wire:
            return wire.ask("PING") == b"+PONG\r\n"
    except (EOFError, ConnectionError):
        return False


async def report_progress(run: Run) -> None:
    while True:
        await trio.sleep(10)
        tally = run.tally
        print(f"{tally.replies} replies, {tally.clients} clients, {tally.faults.total()} faults", flush=True)


async def end_after(run: Run, seconds: float) -> None:
    await trio.sleep(seconds)
    run.time_is_up = True


async def let_them_talk(run: Run, scene: Scene, plan: Plan, operator: Operator | None) -> None:
    async with trio.open_nursery() as around:
        around.start_soon(report_progress, run)
        if operator is not None:
            around.start_soon(operator.pause_now_and_then)
            around.start_soon(operator.look_now_and_then)
        if plan.minutes is not None:
            around.start_soon(end_after, run, plan.minutes * 60)
        if plan.kill_every:
            around.start_soon(kill_now_and_then, run, scene, plan.kill_every)
        if plan.fault_every:
            around.start_soon(provoke_now_and_then, run, scene, plan)
        async with trio.open_nursery() as places:
            for place in range(plan.clients):
                places.start_soon(keep_a_place_taken, run, f"{plan.seed}/{place}")
        around.cancel_scope.cancel()


def nothing_is_left_behind(upstream: RedisServer) -> None:
    """Once all clients have left, no connection is in the middle of anything. Raises LeftBehindError."""
    with upstream.connect() as wire:
        own = b"id=%b " % wire.ask("CLIENT", "ID")[1:-2]

        def in_use() -> list[str]:
            lines = [line for line in wire.ask("CLIENT", "LIST").splitlines() if line.startswith(b"id=")]
            return [line.decode() for line in lines if not line.startswith(own) and not CLEAN.search(line)]

        try:
            eventually(lambda: not in_use())
        except TimeoutError:
            raise LeftBehindError("\n  ".join(["connections that nobody uses any more", *in_use()])) from None


def last_words_of(coalesce: Coalesce) -> str:
    """What a coalesce said that has ended by itself, or is about to; nothing when it goes on."""
    try:
        return coalesce.wait(LAST_WORDS)[1]
    except subprocess.TimeoutExpired:
        return ""


def run_oracle(executable: Executable, plan: Plan) -> Tally:
    """Returns once `replies` were checked and the books balance.

    Raises an exception group of WrongReplyError, or LeftBehindError, LostElementError, or WrongFigureError.
    """
    with running_server(executable, *server_options()) as upstream, contextlib.ExitStack() as stack:
        # Few leases: whoever waits for one has to get it, however long the queue.
        few = plan.max_leases
        flags = ["--max-leases", str(few), "--upstream-wait", "20"] if few is not None else []
        relay = stack.enter_context(Relay(upstream.address)) if plan.fault_every else None
        where = upstream.url if relay is None else relay.url
        flags += ADMIN if plan.pauses else ()
        coalesce = None if plan.direct else stack.enter_context(running_coalesce(where, *flags))
        operator = None if coalesce is None or not plan.pauses else Operator(coalesce, plan.seed)
        places: tuple[Address, ...]
        if coalesce is not None:
            places = (coalesce.address, coalesce.unix_path)
        else:
            places = (upstream.address, upstream.unix_path) if relay is None else (relay.address,)
        run = Run(places, upstream.unix_path, texts_of(upstream), plan.replies, plan.story_share, plan.direct)
        run.ledger.held = operator is not None
        try:
            scene = Scene(upstream, relay, coalesce)
            trio.run(let_them_talk, run, scene, plan, operator, strict_exception_groups=True)
        except ExceptionGroup as problem:
            if coalesce is not None and (last_words := last_words_of(coalesce)):
                raise RuntimeError(f"coalesce has ended:\n{last_words}") from problem
            raise
        nothing_is_left_behind(upstream)
        if operator is not None:
            operator.close_the_books()
            run.tally.pauses = operator.pauses
        if coalesce is not None:
            code, stderr = coalesce.stop()
            assert code == 0, stderr
        with upstream.connect() as wire:
            run.ledger.balance(wire, run.tally)
    return run.tally
