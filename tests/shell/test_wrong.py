"""What the page and `coalesce top` say is wrong, and that they say nothing while nothing is."""

from __future__ import annotations

from typing import Any

import pytest

from coalesce.admin.wrong import what_is_wrong
from tests.system.said import at_work, in_trouble, lane, nothing_yet


@pytest.mark.parametrize("says", [nothing_yet, at_work])
def test_nothing(says: Any) -> None:
    assert what_is_wrong(says()) == []


def texts(says: dict[str, Any]) -> list[tuple[str, str]]:
    return [(item["level"], item["text"]) for item in what_is_wrong(says)]


def test_lanes_that_fail_for_the_same_reason_are_one_line() -> None:
    says = at_work()
    says["lanes"] = [
        lane(0, state="failing", why="Connection refused", unsent=1),
        lane(1, state="failing", why="Connection refused", unsent=0),
        lane(2, state="failing", why="NOAUTH Authentication required.", unsent=0),
        lane(3, state="failing", why=None, unsent=5),
        lane(4, state="dialling", unsent=9),
    ]
    assert texts(says) == [
        ("error", "2 lanes have no connection to the upstream (1 request waiting): Connection refused"),
        ("error", "Lane u2 has no connection to the upstream: NOAUTH Authentication required."),
        ("error", "Lane u3 has no connection to the upstream (5 requests waiting): no reason is known yet"),
    ]


def test_leases_are_missing_only_when_all_are_taken() -> None:
    says = at_work()
    says["leases"].update(dialling=1, lent=997, pinned=1, waiting=1)
    assert texts(says) == []
    says["leases"].update(pinned=2)
    assert texts(says) == [("error", "All 1,000 leases are taken, and 1 client waits for one (--max-leases).")]
    says["leases"].update(waiting=0)
    assert texts(says) == []


def test_no_room_for_clients() -> None:
    says = at_work()
    says["clients"].update(shared=9_990, leased=4, waiting=3, pinned=2, greeting=0)
    assert texts(says) == []
    says["clients"].update(greeting=1, memory_bytes=int(0.95 * (1 << 30)))
    (room, memory) = texts(says)
    assert room == ("error", "All 10,000 places for clients are taken: more are refused (--max-clients).")
    assert memory[0] == "error"
    assert memory[1].startswith("Clients hold 95% of the memory that there is for them")


def test_what_matters_most_comes_first() -> None:
    says = in_trouble() | {"state": "starting"}
    says["totals"]["protocol_errors"]["upstream"] = 1
    assert [level for level, _ in texts(says)] == ["error", "error", "error", "warning", "warning", "notice"]
    assert texts(says)[3:5] == [
        ("warning", "3 faults of coalesce's own since the start: see its log."),
        ("warning", "1 reply of the upstream could not be read since the start."),
    ]
