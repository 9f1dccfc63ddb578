"""A rolling restart, in the orders that Kubernetes has: nobody sees an error that a direct connection would not.

A Pod is an application, which ends as a good one does (it stops taking work, and waits for the replies to what it has
asked), and its coalesce. The next Pod serves before the last one is told to end.
"""

from __future__ import annotations

import json
from contextlib import suppress
from signal import SIGINT, SIGTERM
from time import monotonic
from typing import TYPE_CHECKING

import pytest

from .admin import ADMIN, ask, post
from .processes import eventually, running_coalesce, running_server
from .redis_py_load import RedisPyLoad
from .reliability.accounting import Load
from .reliability.stage import FORGETS_NOTHING
from .versions import NEWEST

if TYPE_CHECKING:
    from .processes import Coalesce, RedisServer

CLIENTS = 30


@pytest.fixture(scope="session", params=[NEWEST], ids=str)
def executable(request):
    return request.param


class Application:
    """Of one Pod."""

    def __init__(self, coalesce: Coalesce) -> None:
        eventually(lambda: ask(coalesce, "/startup").status == 200)  # what gates it in Kubernetes
        self.coalesce = coalesce
        self.load = Load([coalesce.address, coalesce.unix_path], CLIENTS)
        self.load.start()

    def ends(self) -> None:
        """Returns when it has; raises what went wrong for it."""
        self.load.finish()

    def told(self) -> tuple[int, int, int]:
        """Refused, closed before it was done, and never answered."""
        entries = [entry for client in self.load.all for entry in client.books.values()]
        return self.load.refused(), self.load.closed, sum(entry.unknown for entry in entries)


def counted(upstream: RedisServer, *applications: Application) -> None:
    """What was run is what was acknowledged, in all Pods together."""
    with upstream.connect() as control:
        for key in ("shared", *(client.own for client in applications[0].load.all)):
            books = [client.books for each in applications for client in each.load.all]
            acknowledged = sum(book[key].acknowledged for book in books if key in book)
            value = control.ask("GET", key)
            assert (0 if value == b"$-1\r\n" else int(value.split()[1])) == acknowledged, key


@pytest.mark.parametrize("by", ["SIGTERM", "quitquitquit"])
def test_first_the_application_and_then_its_sidecar(executable, by):
    """A native sidecar (an init container that is restarted always) is told to end when the application has."""
    with running_server(executable, *FORGETS_NOTHING) as upstream:
        for _ in range(2):
            with running_coalesce(upstream.url, *ADMIN) as coalesce:
                application = Application(coalesce)
                application.load.go_on(5)
                application.ends()
                post(coalesce, "/quitquitquit") if by == "quitquitquit" else coalesce.signal(SIGTERM)
                code, stderr = coalesce.wait()
                assert code == 0, stderr
                assert application.told() == (0, 0, 0)
                counted(upstream, application)
            with upstream.connect() as control:
                control.ask("FLUSHALL")


def test_redis_py_in_one_pod_after_the_other(executable):
    """The next serves before the last is told to end; nobody needs its retries."""
    with running_server(executable) as upstream:
        for _ in range(3):
            with running_coalesce(upstream.url, *ADMIN) as coalesce, RedisPyLoad(coalesce.port, 12) as load:
                load.go_on(6)
                load.ends()
                code, stderr = coalesce.stop()
                assert code == 0, stderr
            with upstream.connect() as control:
                control.ask("FLUSHALL")


def test_both_at_once(executable):
    """The old style: two containers side by side. The application goes on to ask for as long as its end takes, on the
    connections that it has and on new ones; coalesce was told how long that may be.
    """
    with (
        running_server(executable, *FORGETS_NOTHING) as upstream,
        running_coalesce(upstream.url, *ADMIN, "--sigterm-delay", "60") as coalesce,
    ):
        application = Application(coalesce)
        application.load.go_on(5)
        coalesce.signal(SIGTERM)
        eventually(lambda: ask(coalesce, "/readiness").status == 503)
        application.load.go_on(50)
        with coalesce.connect() as late:
            assert late.ask("PING") == b"+PONG\r\n"
        application.ends()
        assert application.told() == (0, 0, 0)
        counted(upstream, application)
        coalesce.signal(SIGTERM)  # (and not the whole delay)
        code, stderr = coalesce.wait()
        assert code == 0, stderr


def test_the_delay_ends_by_itself(executable):
    with running_server(executable) as upstream, running_coalesce(upstream.url, "--sigterm-delay", "0.5") as coalesce:
        with coalesce.connect() as client:
            coalesce.signal(SIGTERM)
            before = monotonic()
            with suppress(EOFError, ConnectionError):
                while client.ask("PING") == b"+PONG\r\n":
                    pass
            assert monotonic() - before > 0.4
        code, stderr = coalesce.wait()
        assert code == 0, stderr


@pytest.mark.parametrize("ended_by", ["SIGINT", "quitquitquit"])
def test_a_delay_is_for_sigterm_alone(executable, ended_by):
    """Who asks for the end by name has nobody to wait for; also while SIGTERM's delay is under way."""
    with running_server(executable) as upstream:
        for _ in range(2):
            with running_coalesce(upstream.url, *ADMIN, "--sigterm-delay", "60") as coalesce:
                if ended_by == "SIGINT":
                    coalesce.signal(SIGINT)
                else:
                    coalesce.signal(SIGTERM)
                    eventually(lambda at=coalesce: ask(at, "/readiness").status == 503)
                    assert json.loads(ask(coalesce, "/status").body)["state"] == "draining"
                    assert post(coalesce, "/pause").status == 409
                    post(coalesce, "/quitquitquit")
                code, stderr = coalesce.wait()
                assert code == 0, stderr


def test_both_at_once_without_a_delay(executable):
    """The application waits for replies when the sidecar is told to end: it gets them all.

    (Who goes on to ask after that finds the connection closed, at a place where no reply is due.)
    """
    with running_server(executable, *FORGETS_NOTHING) as upstream, running_coalesce(upstream.url, *ADMIN) as coalesce:
        application = Application(coalesce)
        application.load.go_on(5)
        application.load.stop_sending()
        coalesce.signal(SIGTERM)
        code, stderr = coalesce.wait()
        assert code == 0, stderr
        application.ends()
        refused, _, unanswered = application.told()
        assert (refused, unanswered) == (0, 0)
        counted(upstream, application)
