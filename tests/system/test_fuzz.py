"""The fuzzer for a few seconds, what it has found before, and that it would find something."""

from __future__ import annotations

import contextlib
import hashlib
import random
from typing import TYPE_CHECKING

import pytest

from .differences import share
from .fuzz.campaign import Campaign
from .fuzz.compare import first_difference
from .fuzz.driver import DifferenceError
from .fuzz.shrink import shrunk
from .fuzz.steps import Step
from .processes import executables
from .wire import bulk, pack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .processes import Executable

# As printed by `python -m tests.system.fuzz`; name: (steps, whether the servers want a password).
ONCE_DIFFERENT: dict[str, tuple[list[Step], bool]] = {
    # Without replies, only the state of the server tells when a blocked command is over.
    "blocked without a reply": (
        [
            Step(3, ((b"CLIENT", b"REPLY", b"OFF"),)),
            Step(3, ((b"BLMOVE", b"l1", b"l2", b"LEFT", b"LEFT", b"0.01"),), waits=True),
            Step(3, ((b"CLIENT", b"REPLY", b"ON"),)),
        ],
        False,
    ),
    "hello in a transaction": ([Step(1, ((b"MULTI",), (b"HELLO",), (b"EXEC",), (b"SUBSCRIBE",)))], False),
    "an array that stays too short": (
        [
            Step(1, ((b"MULTI",), (b"CLIENT", b"REPLY", b"SKIP"), (b"HELLO",), (b"EXEC",))),
            Step(1, ((b"PING",), (b"PING",))),
        ],
        False,
    ),
    # One turn of the server's loop directly, and two behind coalesce: a lane's and a lease's.
    "invalidated in two turns": (
        [
            Step(0, ((b"HELLO", b"3"), (b"CLIENT", b"TRACKING", b"ON", b"BCAST"))),
            Step(1, ((b"LPUSH", b"l1", b"a"), (b"BLMOVE", b"l1", b"l2", b"LEFT", b"LEFT", b"0"))),
        ],
        False,
    ),
    # The user of before may not CLIENT SETNAME, which a connection that is lent was named by.
    "a name from before": (
        [
            Step(0, ((b"HELLO", b"3", b"SETNAME", b"n2"),)),
            Step(0, ((b"AUTH", b"bob", b"bob-pw"),)),
            Step(0, ((b"MULTI",),)),
            Step(0, ((b"auth", b"default", b"x"), (b"EXEC",), (b"Client", b"GETNAME"))),
        ],
        False,
    ),
    # It ended the program: the last element is no count.
    "data that look like a confirmation": (
        [
            Step(
                1,
                (
                    (b"RPUSH", b"l1", b"subscribe", b"x", b"y"),
                    (b"UNSUBSCRIBE",),
                    (b"LRANGE", b"l1", b"0", b"-1"),
                    (b"PING",),
                ),
            )
        ],
        False,
    ),
    "unsubscribed in any order": ([Step(1, ((b"SUBSCRIBE", b"a", b"b", b"c", b"d"), (b"UNSUBSCRIBE",)))], False),
}


@pytest.fixture(scope="module")
def campaign(executable: Executable) -> Iterator[Campaign]:
    with contextlib.closing(Campaign(executable)) as campaign:
        yield campaign


@pytest.mark.parametrize("part", range(2))
def test_random_sequences(campaign: Campaign, executable: Executable, part: int) -> None:
    """Each server has other ones: what coalesce would get wrong with all of them need not be tried with all of them."""
    begin = 40 * executables().index(executable) + 20 * part
    for seed in range(begin, begin + share(20, executable)):
        steps, locked = campaign.sequence(seed)
        try:
            campaign.run(steps, locked=locked)
        except DifferenceError as difference:
            difference.add_note(f"seed {seed}")
            raise


@pytest.mark.parametrize("name", ONCE_DIFFERENT)
def test_what_was_once_different(campaign: Campaign, name: str) -> None:
    steps, locked = ONCE_DIFFERENT[name]
    campaign.run(steps, locked=locked)


def test_a_seed_stands_for_one_sequence(campaign: Campaign) -> None:
    steps, locked = campaign.sequence(11)
    random.random()  # nobody else's chance matters
    assert campaign.sequence(11) == (steps, locked)
    assert eval(repr(steps)) == steps  # noqa: S307  (printed to be pasted)


def test_a_difference_is_found(campaign: Campaign) -> None:
    asks = [Step(0, ((b"PING",), (b"CONFIG", b"GET", b"maxmemory-samples")))]
    campaign.run(asks, locked=False)
    control = campaign.sides(locked=False).through.control
    assert control.ask("CONFIG", "SET", "maxmemory-samples", 9) == b"+OK\r\n"
    with pytest.raises(DifferenceError, match="step 0: connection 0, reply 1 of 2: "):
        campaign.run(asks, locked=False)
    campaign.run(asks, locked=False)  # with new servers


def test_data_that_differ_are_found(campaign: Campaign) -> None:
    """Though every reply is the same: a script stores what INFO says of the process."""
    writes_its_own = b"redis.replicate_commands() redis.call('SET', 'k', redis.call('INFO', 'server')) return 1"
    load = (b"SCRIPT", b"LOAD", writes_its_own)
    run = (b"EVALSHA", hashlib.sha1(writes_its_own, usedforsecurity=False).hexdigest().encode(), b"0")
    with pytest.raises(DifferenceError, match="the data differ"):
        campaign.run([Step(0, (load, run))], locked=False)


def test_a_sequence_is_made_short() -> None:
    guilty = (b"GET", b"s1")
    steps = [Step(0, ((b"SET", b"s1", b"v"), guilty), cuts=(5,)), Step(1, ((b"PING",), guilty, (b"PING",)))]
    assert shrunk(steps, lambda candidate: any(guilty in step.requests for step in candidate), 10) == [
        Step(1, (guilty,))
    ]


@pytest.mark.parametrize(
    ("expected", "got", "alike"),
    [
        ([b"k", b"l"], [b"k", b"k", b"l"], True),
        ([b"k", b"l"], [b"k", b"k"], False),
        ([b"k"], [], False),
    ],
)
def test_broadcast_invalidations(expected: list[bytes], got: list[bytes], *, alike: bool) -> None:
    """How many there are may differ, but not of what."""
    both = [[b">2\r\n$10\r\ninvalidate\r\n*1\r\n" + bulk(key) for key in keys] for keys in (expected, got)]
    asked = [(b"CLIENT", b"TRACKING", b"ON", b"BCAST")]
    assert (first_difference(*both, asked, 1) is None) == alike
    assert first_difference(*both, [(b"CLIENT", b"TRACKING", b"ON")], 1) is not None


@pytest.mark.parametrize(
    ("request_", "expected", "got", "alike"),
    [
        ((b"SMEMBERS", b"t"), b"*2\r\n:1\r\n:2\r\n", b"*2\r\n:2\r\n:1\r\n", True),
        ((b"SMEMBERS", b"t"), b"*2\r\n:1\r\n:2\r\n", b"*2\r\n:2\r\n:3\r\n", False),
        ((b"LRANGE", b"l"), b"*2\r\n:1\r\n:2\r\n", b"*2\r\n:2\r\n:1\r\n", False),
        ((b"TTL", b"k"), b":100\r\n", b":99\r\n", True),
        ((b"TTL", b"k"), b":100\r\n", b":-1\r\n", False),
        ((b"GET", b"k"), b":100\r\n", b":99\r\n", False),
        ((b"SRANDMEMBER", b"t"), bulk("a"), bulk("b"), True),
        ((b"SRANDMEMBER", b"t"), bulk("a"), b"$-1\r\n", False),
        ((b"SRANDMEMBER", b"t"), b"-ERR a\r\n", b"-ERR b\r\n", False),
        ((b"XADD", b"x"), bulk("1795227201172-0"), bulk("1795227201173-0"), True),
        ((b"XADD", b"x"), bulk("1-1"), bulk("1-2"), False),
    ],
)
def test_what_may_differ(request_: tuple[bytes, ...], expected: bytes, got: bytes, alike: bool) -> None:
    assert (first_difference([expected], [got], [request_], 0) is None) == alike
    assert first_difference([expected, b"+OK\r\n"], [got], [request_, pack("PING")], 0) is not None
