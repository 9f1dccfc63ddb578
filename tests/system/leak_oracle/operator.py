"""An operator who pauses and resumes at any time, and looks at the figures meanwhile: do the books balance?

A pause excuses nothing: nobody is closed for one, refused, or told anything else. What is held is answered afterwards.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import trio
from prometheus_client.parser import text_string_to_metric_families

from tests.system.admin import ask, post
from tests.system.processes import eventually

from .run import WrongFigureError

if TYPE_CHECKING:
    from tests.system.processes import Coalesce

# What is not over when all clients have left; all other states of clients and leases are to be empty then.
_STAYS = {'leases{"idle"}'}


class Operator:
    """Of one coalesce."""

    def __init__(self, coalesce: Coalesce, seed: int) -> None:
        self._coalesce = coalesce
        self._chance = random.Random(f"{seed}/operator")
        self._before: dict[str, float] = {}
        self.pauses = 0

    async def pause_now_and_then(self) -> None:
        """Long ones and short ones; some are begun or ended twice, or ended before all is finished."""
        chance = self._chance
        while True:
            await trio.sleep(chance.uniform(0.0, 1.0))
            with trio.CancelScope(shield=True):  # who looks at the end finds it resumed
                self.pauses += 1
                async with trio.open_nursery() as asking:
                    for _ in range(chance.choice((1, 1, 1, 2))):
                        asking.start_soon(self._ask_for, f"/pause?timeout={chance.choice((0, 0.02, 0.2, 1.0))}")
                    if chance.random() < 0.5:
                        await trio.sleep(chance.uniform(0.0, 0.5))
                        asking.start_soon(self._ask_for, "/resume")
                await trio.sleep(chance.choice((0.0, 0.0, 0.1, 0.3)))
                await self._ask_for("/resume")

    async def _ask_for(self, path: str) -> None:
        answer = await trio.to_thread.run_sync(post, self._coalesce, path)
        if answer.status not in {200, 409, 504}:
            raise WrongFigureError(f"{path} is answered with {answer}")

    async def look_now_and_then(self) -> None:
        while True:
            await trio.to_thread.run_sync(self.look)
            await trio.sleep(self._chance.uniform(0.0, 0.1))

    def look(self) -> dict[str, float]:
        """The figures. Raises WrongFigureError: one is negative, or a counter has gone back."""
        assert ask(self._coalesce, "/status").told["state"] in {"serving", "paused"}
        found, counters = {}, set()
        for family in text_string_to_metric_families(ask(self._coalesce, "/metrics").body.decode()):
            for sample in family.samples:
                name = sample.name.removeprefix("coalesce_")
                labels = ",".join(f'"{value}"' for value in sample.labels.values())
                found[f"{name}{{{labels}}}"] = sample.value
                if family.type in {"counter", "histogram"}:
                    counters.add(f"{name}{{{labels}}}")
        wrong = [f"{name} is {value}" for name, value in found.items() if value < 0]
        wrong += [
            f"{name} was {self._before[name]} and is {found[name]}"
            for name in counters & self._before.keys()
            if found[name] < self._before[name]
        ]
        if wrong:
            raise WrongFigureError(", ".join(wrong))
        self._before = found
        return found

    def close_the_books(self) -> None:
        """When all clients have left, nothing is under way any more. Raises WrongFigureError."""
        left: dict[str, float] = {}

        def nothing_is_left() -> bool:
            nonlocal left
            left = {
                name: value
                for name, value in self.look().items()
                if value and name not in _STAYS and name.startswith(("requests_", "clients{", "leases{", "paused"))
            }
            return not left

        try:
            eventually(nothing_is_left)
        except TimeoutError:
            raise WrongFigureError(f"all clients have left, and still there are {left}") from None
        figures = self.look()
        if figures["faults_total{}"]:
            raise WrongFigureError(f"{figures['faults_total{}']} faults: {self._coalesce.stderr[-5000:]}")
        sent = figures["batch_commands_sum{}"]  # on shared connections, our own among them
        ended = sum(
            value for name, value in figures.items()
            if name.startswith("commands_total{") and '"leased"' not in name and '"refused"' not in name
        )  # fmt: skip
        if ended + figures["own_commands_total{}"] < sent:
            raise WrongFigureError(f"{sent} commands were sent, and {ended} have ended")
