"""The leak oracle for a few seconds; a long run is `python -m tests.system.leak_oracle`."""

from __future__ import annotations

import random
import sys

import pytest

from .leak_oracle.channels import Ears
from .leak_oracle.client import Client
from .leak_oracle.oracle import CLOSING, PASSING, Plan, run_oracle
from .leak_oracle.run import MOVE, POP, Ledger, LostElementError, Run, Tally, Texts, WrongReplyError
from .leak_oracle.speaker import Closed, Exchange
from .versions import NEWEST, with_newest, with_oldest_and_newest
from .wire import bulk

RIDERS_MOMENTS = {"idle", "mid-request", "in flight", "mid-reply"}


def test_no_reply_reaches_the_wrong_client(executable):
    tally = run_oracle(executable, Plan(60_000, seed=1, kill_every=1))
    assert tally.replies >= 60_000
    assert tally.faults["kill"] >= 1
    assert {f"{moment} ({how})" for moment in RIDERS_MOMENTS for how in ("close", "reset")} <= tally.departures.keys()


@with_oldest_and_newest
def test_many_stories_and_few_leases(executable):
    """What is new here is the queue for a lease, of which the server knows nothing."""
    tally = run_oracle(executable, Plan(20_000, seed=2, kill_every=0, clients=60, max_leases=12, story_share=0.3))
    assert len(tally.stories) >= 10, tally
    assert tally.messages > 100


def test_every_fault_in_turn():
    """Each once: a kill, cuts of three kinds, a stop, a silence, a slow link."""
    plan = Plan(sys.maxsize, seed=4, fault_every=0.05, clients=60, max_leases=25, story_share=0.15, rounds=1)
    tally = run_oracle(NEWEST, plan)
    assert tally.faults.keys() == {*CLOSING, *PASSING}
    assert tally.closed_by_a_fault > 0


def test_every_fault_in_turn_while_an_operator_pauses_and_looks():
    """A pause excuses nothing, and the figures are right at any time."""
    plan = Plan(
        sys.maxsize, seed=5, fault_every=0.3, clients=60, max_leases=15, story_share=0.15, rounds=1, pauses=True
    )
    tally = run_oracle(NEWEST, plan)
    assert tally.pauses > 0
    assert tally.faults.keys() == {*CLOSING, *PASSING}


@with_newest
def test_the_oracle_is_right_about_a_direct_connection(executable):
    """Of whichever version: what it checks here is itself."""
    run_oracle(executable, Plan(30_000, seed=3, kill_every=0.5, story_share=0.3, direct=True))


@pytest.fixture
def client() -> Client:
    """A client that has asked three times and is about to be told something."""
    run = Run(places=(), upstream="", texts=Texts(b"", b"", b"", b"", b"", {}, {}), target=1)
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
        bulk("a") + b"+QUEUED\r\n",
        bulk("a") + b"$-1\r\n",
        bulk("a") + b"-ERR coalesce: upstream is away\r\n",
        bulk("a") + b"*3\r\n" + bulk("message") + bulk("channel") + bulk("x"),
        bulk("a") + bulk("v") + b"+PONG\r\n+PONG\r\n",
        bulk("a") + bulk("v") + b"+PONG\r\n+",
    ],
)
def test_the_oracle_takes_nothing_else(client, data):
    with pytest.raises(WrongReplyError):
        tell(client, data)


def test_a_kill_excuses_a_lost_value_and_no_other(client):
    client.run.weather.mark, client.run.weather.last_kill = 2, 1
    assert tell(client, bulk("a") + b"$-1\r\n") is False
    with pytest.raises(WrongReplyError):
        tell(client, b"$-1\r\n")


def test_a_cut_excuses_no_lost_value(client):
    client.run.weather.mark = 2
    with pytest.raises(WrongReplyError):
        tell(client, bulk("a") + b"$-1\r\n")


def test_a_closed_connection_needs_an_excuse(client):
    with pytest.raises(WrongReplyError):
        client.closed()
    client.run.weather.mark = 1
    with pytest.raises(Closed):
        client.closed()


def test_a_kill_excuses_a_close_only_where_something_was_held(client):
    client.hold()
    client.run.weather.mark = 2
    client.begin(client.batch)
    with pytest.raises(Closed):
        client.closed()
    client.release()
    with pytest.raises(WrongReplyError):
        client.closed()


@pytest.fixture
def ears(client: Client) -> Ears:
    client.resp3 = False
    ears = Ears(client)
    client.hear = ears.hear
    return ears


def test_messages_come_in_order(client, ears):
    ears.due += [ears.message("c", "1"), ears.message("c", "2")]
    assert not tell(client, bulk("a") + ears.message("c", "1") + bulk("v"))
    assert tell(client, ears.message("c", "2") + b"+PONG\r\n")
    with pytest.raises(WrongReplyError, match="not due"):
        tell(client, ears.message("c", "3"))


def test_news_without_a_gap(client, ears):
    ears.last["news"], ears.asked["news"] = 0, 4
    tell(client, ears.message("news", "5"))
    tell(client, ears.message("news", "6"))
    with pytest.raises(WrongReplyError, match="out of order"):
        tell(client, ears.message("news", "8"))


def test_the_first_news_may_not_be_missed(client, ears):
    ears.last["news"], ears.asked["news"] = 0, 4
    with pytest.raises(WrongReplyError, match="out of order"):
        tell(client, ears.message("news", "6"))


class Books:
    """An upstream whose queues hold what a test says."""

    def __init__(self, **queues: list[str]) -> None:
        self.queues = queues
        self.database = 0

    def ask(self, name: str, *arguments: str | int) -> bytes:
        match name:
            case "SELECT":
                self.database = arguments[0]
                return b"+OK\r\n"
            case "KEYS":
                keys = [f"shared:{queue.replace('_', ':')}" for queue in self.queues] if self.database == 0 else []
                return b"*%d\r\n" % len(keys) + b"".join(map(bulk, keys))
            case _:
                elements = self.queues[str(arguments[0]).removeprefix("shared:").replace(":", "_")]
                return b"*%d\r\n" % len(elements) + b"".join(map(bulk, elements))


@pytest.fixture
def ledger() -> Ledger:
    ledger = Ledger()
    ledger.offered = {"a", "b"}
    ledger.pushed = {"a", "b"}
    return ledger


def test_books_that_balance(ledger):
    assert ledger.take("a", 1) is None
    ledger.balance(Books(pop=["b"]), Tally())
    ledger.balance(Books(taken_1=["a"], move=["b"]), Tally())


def test_nothing_is_got_twice_or_from_nowhere(ledger):
    assert ledger.take("a", 1) is None
    assert ledger.take("a", 2) is not None
    assert ledger.take("c", 2) is not None


def test_the_departed_may_take_one_each(ledger):
    ledger.left_blocked = {1: MOVE, 2: POP}
    tally = Tally()
    ledger.balance(Books(taken_1=["a"]), tally)
    assert tally.handed_to_the_departed == 2
    with pytest.raises(LostElementError):
        ledger.balance(Books(taken_1=["a", "b"]), Tally())


@pytest.mark.parametrize("queues", [{}, {"pop": ["b"]}, {"pop": ["a", "a", "b"]}, {"taken_3": ["a"], "pop": ["b"]}])
def test_books_that_do_not_balance(ledger, queues):
    with pytest.raises(LostElementError):
        ledger.balance(Books(**queues), Tally())
