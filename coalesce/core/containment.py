"""Where a fault of ours ends: with the one that it happened to. Whoever comes after that one is told all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from types import TracebackType


class Fallible(Protocol):
    """What a fault of ours can be the end of."""

    def fail(self, fault: Exception, /) -> None:
        """Ends it, and nothing else; says so. Raises the fault where it can't be told whose it is."""


class contained:  # noqa: N801 (read as `with contained(session)`; a generator would take three times as long)
    """Within it, an exception is a fault of ours, and ends nothing but whose it was."""

    __slots__ = ("_whose",)

    def __init__(self, whose: Fallible) -> None:
        self._whose = whose

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(fault, Exception):  # not a cancellation
            self._whose.fail(fault)
            return True
        return False
