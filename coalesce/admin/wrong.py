"""What is wrong with a running coalesce, in plain words, from what `/status` says. Shown by the page and by `top`.

A level says how much it matters now: `error`, somebody is not served; `warning`, somebody was not, or will not be;
`notice`, it is meant to be so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Of the memory for clients, from which on there is not much left.
_FULL = 0.9

_STATES = {
    "starting": ("notice", "Starting: clients are not accepted yet."),
    "paused": ("warning", "Paused: new commands wait until coalesce resume (POST /resume)."),
    "draining": ("warning", "Draining: it was told to end, and does once --sigterm-delay is over and nothing is owed."),
}


def what_is_wrong(status: Mapping[str, Any]) -> list[dict[str, str]]:
    """`{"level": .., "text": ..}`, what matters most first; empty where all is well."""
    order = ("error", "warning", "notice")
    found = [{"level": level, "text": text} for level, text in _found(status)]
    return sorted(found, key=lambda item: order.index(item["level"]))


def _found(status: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if status["state"] in _STATES:
        yield _STATES[status["state"]]
    yield from _of_lanes(status["lanes"])
    yield from _of_limits(status["clients"], status["leases"])
    totals = status["totals"]
    if totals["faults"]:
        yield "warning", f"{_times(totals['faults'], 'fault')} of coalesce's own since the start: see its log."
    if errors := totals["protocol_errors"].get("upstream", 0):
        yield "warning", f"{_times(errors, 'reply', 'replies')} of the upstream could not be read since the start."


def _of_lanes(lanes: list[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """By reason: when the upstream is gone, all lanes say the same."""
    reasons: dict[str, list[Mapping[str, Any]]] = {}
    for lane in lanes:
        if lane["state"] == "failing":
            reasons.setdefault(lane["why"] or "no reason is known yet", []).append(lane)
    for why, those in reasons.items():
        who = f"Lane {those[0]['lane']} has" if len(those) == 1 else f"{len(those):,} lanes have"
        waiting = sum(lane["unsent"] for lane in those)
        held = f" ({_times(waiting, 'request')} waiting)" if waiting else ""
        yield "error", f"{who} no connection to the upstream{held}: {why}"


def _of_limits(clients: Mapping[str, int], leases: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    taken = leases["dialling"] + leases["lent"] + leases["pinned"]
    if leases["waiting"] and taken >= leases["limit"]:
        who = _times(leases["waiting"], "client waits", "clients wait")
        yield "error", f"All {leases['limit']:,} leases are taken, and {who} for one (--max-leases)."
    if sum(clients[state] for state in ("shared", "leased", "waiting", "pinned", "greeting")) >= clients["limit"]:
        yield "error", f"All {clients['limit']:,} places for clients are taken: more are refused (--max-clients)."
    held, most = clients["memory_bytes"], clients["memory_limit_bytes"]
    if held >= _FULL * most:
        yield "error", (
            f"Clients hold {held / most:.0%} of the memory that there is for them: those that hold most are closed "
            "(--clients-memory)."
        )


def _times(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
