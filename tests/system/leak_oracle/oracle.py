"""Starts all that a run takes, keeps its places taken, kills the upstream now and then, and closes the books."""

from __future__ import annotations

import contextlib
import random
import re
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from tests.system.processes import eventually, running_coalesce, running_server

from .client import Client
from .run import LeftBehindError, Run, Tally, server_options, texts_of
from .speaker import Helper

if TYPE_CHECKING:
    from tests.system.processes import Coalesce, Executable, RedisServer


LAST_WORDS = 2  # seconds that a process takes to end, once it has closed its connections
# Nothing subscribed to, no transaction open; neither blocked nor tracking nor a monitor.
CLEAN = re.compile(rb" flags=N .* sub=0 psub=0 ")  # (flags tell of a transaction; multi=0 is none on Valkey)


@dataclass(frozen=True)
class Plan:
    """What the command line says."""

    replies: int
    seed: int
    kill_every: float = 0  # seconds; 0: never
    clients: int = 100
    max_leases: int | None = None
    story_share: float = 0.05  # of what clients say
    direct: bool = False
    minutes: float | None = None  # then it ends, if not before


async def keep_a_place_taken(run: Run, seed: str) -> None:
    """One client after the other, until enough replies were checked."""
    chance = random.Random(seed)
    helper = Helper(run, chance)
    with contextlib.closing(helper):
        while not run.over:
            await Client(run, chance).live(helper)


async def kill_now_and_then(run: Run, upstream: RedisServer, coalesce: Coalesce | None, every: float) -> None:
    while True:
        await trio.sleep(every)
        with trio.CancelScope(shield=True):  # whoever looks at the end finds an upstream
            run.weather.mark += 1
            run.ledger.forget()
            upstream.kill()
            await trio.to_thread.run_sync(upstream.start)
            while coalesce is not None and not await trio.to_thread.run_sync(serves, coalesce):
                await trio.lowlevel.checkpoint()
            run.tally.kills += 1
            run.weather.mark += 1


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
        print(f"{run.tally.replies} replies, {run.tally.clients} clients, {run.tally.kills} kills", flush=True)


async def end_after(run: Run, seconds: float) -> None:
    await trio.sleep(seconds)
    run.time_is_up = True


async def let_them_talk(run: Run, upstream: RedisServer, coalesce: Coalesce | None, plan: Plan) -> None:
    async with trio.open_nursery() as around:
        around.start_soon(report_progress, run)
        if plan.minutes is not None:
            around.start_soon(end_after, run, plan.minutes * 60)
        if plan.kill_every:
            around.start_soon(kill_now_and_then, run, upstream, coalesce, plan.kill_every)
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

    Raises an exception group of WrongReplyError, or LeftBehindError, or LostElementError.
    """
    with running_server(executable, *server_options()) as upstream, contextlib.ExitStack() as stack:
        # Few leases: whoever waits for one has to get it, however long the queue.
        few = plan.max_leases
        flags = ["--max-leases", str(few), "--upstream-wait", "20"] if few is not None else []
        coalesce = None if plan.direct else stack.enter_context(running_coalesce(upstream.url, *flags))
        door = upstream if coalesce is None else coalesce
        places = (door.address, door.unix_path)
        run = Run(places, upstream.unix_path, texts_of(upstream), plan.replies, plan.story_share, plan.direct)
        try:
            trio.run(let_them_talk, run, upstream, coalesce, plan, strict_exception_groups=True)
        except ExceptionGroup as problem:
            if coalesce is not None and (last_words := last_words_of(coalesce)):
                raise RuntimeError(f"coalesce has ended:\n{last_words}") from problem
            raise
        nothing_is_left_behind(upstream)
        if coalesce is not None:
            code, stderr = coalesce.stop()
            assert code == 0, stderr
        with upstream.connect() as wire:
            run.ledger.balance(wire, run.tally)
    return run.tally
