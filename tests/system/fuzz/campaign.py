"""Sequence after sequence, on servers with and without a password; failures made short, and printed to be pasted."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from .driver import DifferenceError, Tally, running_sides
from .generator import Generator, commands_of
from .shrink import shrunk

if TYPE_CHECKING:
    from tests.system.processes import Executable

    from .driver import Sides
    from .generator import Command
    from .steps import Step

SHRINKING = 60.0  # seconds for one failure


class Campaign:
    """Two pairs of servers, one that wants a password; each seed has its own. To be closed."""

    def __init__(self, executable: Executable, *, proxy: bool = True) -> None:
        self._executable, self._proxy = executable, proxy
        self._running: dict[bool, tuple[Sides, contextlib.ExitStack]] = {}
        self._words: tuple[list[Command], list[bytes]] | None = None
        self.tally = Tally()

    def close(self) -> None:
        for locked in list(self._running):
            self._stop(locked=locked)

    def _stop(self, *, locked: bool) -> None:
        self._running.pop(locked)[1].close()

    def sides(self, *, locked: bool) -> Sides:
        if locked not in self._running:
            stack = contextlib.ExitStack()
            sides = stack.enter_context(running_sides(self._executable, self.tally, locked=locked, proxy=self._proxy))
            self._running[locked] = sides, stack
        return self._running[locked][0]

    def sequence(self, seed: int) -> tuple[list[Step], bool]:
        """What a seed stands for: the steps, and whether the servers want a password."""
        locked = seed % 3 == 0
        if self._words is None:
            sides = self.sides(locked=locked)
            self._words = commands_of(sides.commands()), sides.dumps()
        return Generator(seed, *self._words, self._executable, locked=locked).sequence(), locked

    def run(self, steps: list[Step], *, locked: bool) -> None:
        """DifferenceError, with the steps as a note, when the two differ; the next sequence gets new servers then."""
        try:
            self.sides(locked=locked).compare(steps)
        except DifferenceError as difference:
            difference.add_note("\n".join(map(repr, steps)))
            self._stop(locked=locked)  # its coalesce may be in any state now; one that left a traceback says so here
            raise

    def shrink(self, steps: list[Step], *, locked: bool) -> tuple[list[Step], DifferenceError | None]:
        """The shortest failing sequence found in its time, and how it fails; None when it doesn't fail again."""
        last: DifferenceError | None = None

        def fails(candidate: list[Step]) -> bool:
            nonlocal last
            try:
                self.run(candidate, locked=locked)
            except DifferenceError as difference:
                last = difference
                return True
            return False

        if not fails(steps):
            return steps, None
        return shrunk(steps, fails, SHRINKING), last
