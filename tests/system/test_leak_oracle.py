"""The leak oracle for a few seconds; a long run is `python -m tests.system.leak_oracle`."""

from __future__ import annotations

import random

import pytest

from . import leak_oracle
from .leak_oracle import Client, Exchange, Run, WrongReplyError
from .wire import bulk


def test_no_reply_reaches_the_wrong_client(executable):
    tally = leak_oracle.run_oracle(executable, 100_000, seed=1, kill_every=1, clients=100)
    assert tally.replies >= 100_000
    assert tally.kills >= 1
    assert len(tally.departures) == 8, tally  # four moments, each by close and by reset


@pytest.fixture
def client() -> Client:
    """A client that has asked three times and is about to be told something."""
    run = Run(coalesce=None, error_template=b"", target=1)
    client = Client(run, random.Random(1))
    echo, get = Exchange(b"ECHO a", bulk("a")), Exchange(b"GET k", bulk("v"), (b"$-1\r\n",))
    client.begin([echo, get, Exchange(b"PING", b"+PONG\r\n")])
    return client


def tell(client: Client, data: bytes) -> bool:
    client.received += data
    return client.checked()


def test_the_oracle_takes_what_is_right_in_any_pieces(client):
    whole = bulk("a") + bulk("v") + b"+PONG\r\n"
    assert [tell(client, whole[at : at + 1]) for at in range(len(whole))] == [False] * (len(whole) - 1) + [True]
    assert client.run.tally.replies == 3


@pytest.mark.parametrize(
    "data",
    [
        bulk("v"),
        bulk("a") + b"+PONG\r\n",
        bulk("a") + b"$-1\r\n",
        bulk("a") + b"-ERR coalesce: upstream is away\r\n",
        bulk("a") + bulk("v") + b"+PONG\r\n+PONG\r\n",
        bulk("a") + bulk("v") + b"+PONG\r\n+",
    ],
)
def test_the_oracle_takes_nothing_else(client, data):
    with pytest.raises(WrongReplyError):
        tell(client, data)


def test_a_kill_excuses_a_lost_value_and_no_other(client):
    client.run.weather.mark = 2
    assert tell(client, bulk("a") + b"$-1\r\n") is False
    with pytest.raises(WrongReplyError):
        tell(client, b"$-1\r\n")


def test_a_closed_connection_needs_an_excuse(client):
    with pytest.raises(WrongReplyError):
        client.excused()
    client.run.weather.mark = 1
    assert client.excused() is False
