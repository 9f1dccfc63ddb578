"""Who looks at a coalesce while it is measured: a Prometheus, and a status page that is open."""

import http.client
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import BenchError

# Seconds between two questions; there are two to ask, so each is asked once a second.
_EVERY = 0.5
_TIMEOUT_SECONDS = 10.0
# What Prometheus 3 sends.
_ACCEPT = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
_QUESTIONS = ("/metrics", {"Accept": _ACCEPT}), ("/status", {})


class Scraper:
    """Asks over one connection, which is kept, as both do."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_SECONDS)
        self._questions = itertools.cycle(_QUESTIONS)

    def ask(self) -> None:
        """The one or the other, in turns. Raises BenchError."""
        path, headers = next(self._questions)
        try:
            self._connection.request("GET", path, headers=headers)
            answer = self._connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as problem:
            raise BenchError(f"the admin did not answer {path}: {problem!r}") from problem
        if answer.status != http.HTTPStatus.OK:
            raise BenchError(f"the admin answered {path} with {answer.status}")

    def close(self) -> None:
        self._connection.close()


@contextmanager
def scraped(port: int) -> Iterator[None]:
    """Within it, each question is asked once a second. Raises BenchError at its end if one was not answered."""
    over = threading.Event()
    failures: list[BenchError] = []

    def look() -> None:
        scraper = Scraper(port)
        try:
            while not over.wait(_EVERY):
                scraper.ask()
        except BenchError as problem:
            failures.append(problem)
        finally:
            scraper.close()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if failures:
        raise failures[0]
