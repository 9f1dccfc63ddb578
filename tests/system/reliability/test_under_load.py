"""Exactly-once accounting while faults happen: see the package's docstring for what is compared."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.system.processes import ROOT, closing_line, eventually

from . import faults
from .accounting import BooksError
from .stage import on_stage


def test_without_a_fault_everything_is_acknowledged_and_nobody_closed(executable):
    with on_stage(executable) as stage:
        verdict = stage.finish()
        assert (verdict.unacknowledged, verdict.refused, verdict.closed) == (0, 0, 0)
        assert verdict.acknowledged == verdict.sent >= 50


def test_a_killed_upstream_runs_nothing_twice_and_loses_nothing_acknowledged(executable):
    with on_stage(executable) as stage:
        for _ in range(3):
            faults.kill(stage)
            stage.load.go_on(5)
        verdict = stage.finish()
        assert verdict.closed > 0  # so there was something in flight


def test_what_is_refused_while_the_upstream_stays_away_was_not_run(executable):
    with on_stage(executable, "--upstream-wait", "0.2") as stage:
        faults.kill(stage, away=1.0)
        assert stage.finish().refused > 0


def test_a_stopped_upstream_loses_nothing_and_closes_nobody(executable):
    with on_stage(executable) as stage:
        faults.stop(stage, 1.0)
        verdict = stage.finish()
        assert (verdict.unacknowledged, verdict.refused, verdict.closed) == (0, 0, 0)


@pytest.mark.parametrize("by_reset", [False, True], ids=["FIN", "reset"])
def test_cut_connections_run_nothing_twice(executable, by_reset):
    with on_stage(executable, relay=True, exact=False) as stage:
        assert stage.relay is not None
        stage.relay.by_reset = by_reset
        for _ in range(3):
            stage.relay.cut()
            stage.load.go_on(2)
        assert stage.finish().closed > 0


def test_a_slow_link_with_jitter_loses_nothing_and_closes_nobody(executable):
    with on_stage(executable, relay=True) as stage:
        assert stage.relay is not None
        stage.relay.delay, stage.relay.jitter = 0.025, (0.001, 0.020)
        stage.load.go_on(5)
        verdict = stage.finish()
        assert (verdict.unacknowledged, verdict.refused, verdict.closed) == (0, 0, 0)


def test_a_link_that_is_silent_for_a_while_loses_nothing_and_closes_nobody(executable):
    with on_stage(executable, relay=True) as stage:
        faults.be_silent(stage, 1.0)
        verdict = stage.finish()
        assert (verdict.unacknowledged, verdict.refused, verdict.closed) == (0, 0, 0)


def test_without_descriptors_nothing_runs_twice(executable):
    """Connections to the upstream break when no other can be made; clients that come then have to wait."""
    with on_stage(executable, "--upstream-wait", "0.2") as stage:
        faults.run_out_of_descriptors(stage, 0.5)
        verdict = stage.finish()
        assert verdict.closed > 0
        assert verdict.refused > 0


def test_sigterm_answers_all_that_was_sent_before_it(executable):
    """The clients fall silent, with requests on their way, and then it is told to end: each one run is acknowledged."""
    with on_stage(executable) as stage:
        stage.load.stop_sending()
        stage.coalesce.signal(signal.SIGTERM)
        stage.load.finish()
        code, stderr = stage.coalesce.wait()
        assert code == 0, stderr
        closing_line(stderr)
        assert stage.balance().unacknowledged == 0


def test_sigterm_under_load_runs_nothing_that_it_does_not_answer(executable):
    """Nobody stops for it: each gets its replies and is closed, and what was not answered was not run."""
    with on_stage(executable) as stage:
        stage.coalesce.signal(signal.SIGTERM)
        code, stderr = stage.coalesce.wait()
        assert code == 0, stderr
        stage.load.stopping.set()
        eventually(lambda: not any(client.thread.is_alive() for client in stage.load.all))
        # Who connects again when nobody listens any more is told so; anything else that went wrong counts.
        told = ConnectionRefusedError | ConnectionResetError | FileNotFoundError
        wrong = [it for it in stage.load.problems if not isinstance(it, told)]
        assert wrong == []
        assert stage.balance().unacknowledged == 0


def test_the_books_find_a_request_that_was_run_twice(executable):
    """So the accounting is worth something: one more than was sent, one less than was acknowledged."""
    with on_stage(executable, clients=2) as stage:
        stage.load.finish()
        with stage.upstream.connect() as control:
            stage.load.balance(control)
            for change in ("INCR", "DECR", "DECR"):
                control.ask(change, "counter0")
            with pytest.raises(BooksError, match="counter0"):
                stage.load.balance(control)
    with on_stage(executable, clients=2) as stage:
        with stage.upstream.connect() as control:
            control.ask("INCR", "counter1")
        with pytest.raises(BooksError, match="counter1: went from"):
            eventually(stage.load.check)


def test_the_long_version_runs():
    command = [sys.executable, "-m", "tests.system.reliability", "--kills", "1", "--clients", "10"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=40, check=False)
    assert told.returncode == 0, told.stderr
    assert "1 kill" in told.stdout
