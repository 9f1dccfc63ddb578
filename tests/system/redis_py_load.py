"""Load by redis-py, as applications use it, and without its retries: each error that it sees is one too many."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from .processes import DEADLINE, eventually

if TYPE_CHECKING:
    from types import TracebackType

# What ends at once where there is nothing to take; seconds.
_LONG = 5


class Counting(threading.Thread):
    """One client: counts up in every way that there is, and leaves its connection now and then."""

    def __init__(self, number: int, port: int, stopping: threading.Event) -> None:
        super().__init__(daemon=True)
        self.key = f"counter{number}"
        self.counted = 0
        self.error: Exception | None = None
        self._queue = f"queue{number}"
        self._stopping = stopping
        self._client = redis.Redis(
            port=port,
            db=number % 3,
            protocol=2 + number % 2,
            client_name=f"client{number}",
            socket_timeout=2 * DEADLINE,
            retry=Retry(NoBackoff(), 0),
        )

    def run(self) -> None:
        ways = (self._plain, self._whole, self._watched, self._queued, self._scripted, self._anew)
        with self._client:
            try:
                while not self._stopping.is_set():
                    ways[self.counted % len(ways)]()
            except Exception as error:  # noqa: BLE001 (told by the test)
                self.error = error

    def _count(self, value: object) -> None:
        self.counted += 1
        assert value == self.counted, f"{self.key} is {value}, and should be {self.counted}"

    def _plain(self) -> None:
        self._count(self._client.incr(self.key))

    def _whole(self) -> None:
        with self._client.pipeline() as pipeline:
            self._count(pipeline.incr(self.key).get(self.key).execute()[0])

    def _watched(self) -> None:
        with self._client.pipeline() as pipeline:
            pipeline.watch(self.key)
            before = int(pipeline.get(self.key) or 0)
            pipeline.multi()
            self._count(pipeline.set(self.key, before + 1).get(self.key).execute()[0] and before + 1)

    def _queued(self) -> None:
        self._client.rpush(self._queue, self.counted)
        taken = self._client.blpop([self._queue], timeout=_LONG)
        assert taken is not None
        assert int(taken[1]) == self.counted
        self._plain()

    def _scripted(self) -> None:
        self._count(self._client.eval("return redis.call('INCR', KEYS[1])", 1, self.key))

    def _anew(self) -> None:
        self._client.connection_pool.disconnect()
        self._plain()


class RedisPyLoad:
    """So many of them, from entering it until `ends`."""

    def __init__(self, port: int, clients: int) -> None:
        self._stopping = threading.Event()
        self.all = [Counting(number, port, self._stopping) for number in range(clients)]

    def __enter__(self) -> Self:
        for client in self.all:
            client.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, it: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Each finishes what it has begun."""
        self._stopping.set()

    def go_on(self, times: int) -> None:
        """Returns when each has counted so far once more, or has met an error."""
        goal = {client: client.counted + times for client in self.all}
        eventually(lambda: all(client.error or client.counted >= goal[client] for client in self.all))

    def ends(self) -> None:
        """Raises the first error that one of them has met."""
        self.stop()
        for client in self.all:
            client.join(2 * DEADLINE)
            assert not client.is_alive()
        for client in self.all:
            if client.error is not None:
                raise client.error
