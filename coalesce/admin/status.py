"""What /status says, as JSON: what is going on, in figures that a person reads, and the last five minutes."""

from __future__ import annotations

import json
import os
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from coalesce.admin.process import this_process
from coalesce.admin.wrong import what_is_wrong
from coalesce.build import build_info
from coalesce.core.histogram import quantile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from coalesce.admin.figures import Figures, LaneFigures
    from coalesce.core.histogram import Histogram

# Seconds between two samples, and how many are kept.
EVERY = 1.0
_KEPT = 300
_COLUMNS = [
    "commands_per_second", "mean_batch", "round_trips_saved_per_second", "round_trip_p50_us", "queue_wait_p50_us",
    "clients", "lanes", "leases_lent",
]  # fmt: skip


class _Sample(NamedTuple):
    """What has been counted until then."""

    time: float  # seconds that it had run
    sent: int  # commands, in batches
    batches: int
    round_trips: list[int]
    waits: list[int]


class Status:
    """What /status says of what `look` sees. `settings`: by their flags' names, without secrets."""

    def __init__(self, look: Callable[[], Figures], settings: Mapping[str, object]) -> None:
        self._look = look
        self._settings = settings
        self._last: _Sample | None = None
        self._now: dict[str, float | None] = dict.fromkeys(_NOW)
        self._history: deque[list[float | None]] = deque(maxlen=_KEPT)
        self._started = _started()

    def sample(self) -> None:
        """To be called every second. One row more of the history, but for the first time."""
        figures = self._look()
        sizes = figures.batch_commands
        sent = sizes.total + sum(sizes.counts)
        sample = _Sample(
            figures.uptime, sent, sum(sizes.counts), figures.round_trips.counts, figures.queue_waits.counts
        )
        before, self._last = self._last, sample
        if before is None:
            return
        self._now = now = _between(before, sample)
        clients = sum(figures.clients.values())
        row = {**now, "clients": clients, "lanes": len(figures.lanes), "leases_lent": figures.leases["lent"]}
        self._history.append([row[column] for column in _COLUMNS])

    def said(self) -> bytes:
        """JSON."""
        figures = self._look()
        upstream = figures.upstream
        user = upstream.username
        said: dict[str, Any] = {
            "coalesce": {
                **build_info()._asdict(),
                "pid": os.getpid(),
                "started": self._started,
                "uptime_seconds": round(figures.uptime, 3),
            },
            "state": figures.state.value,
            "upstream": {
                "address": str(upstream.address),
                "software": figures.software,
                "tls": upstream.tls,
                "user": None if user is None else user.decode(errors="replace"),
                "database": upstream.database,
            },
            "listen": figures.listen,
            "totals": _totals(figures),
            "clients": {
                **figures.clients,
                "limit": figures.clients_limit,
                "memory_bytes": figures.clients_memory,
                "memory_limit_bytes": figures.clients_memory_limit,
            },
            "leases": {**figures.leases, "waiting": figures.leases_waiting, "limit": figures.leases_limit},
            "lanes": [_lane(lane) for lane in figures.lanes],
            "now": self._now,
            "history": {"every_seconds": 1, "columns": _COLUMNS, "samples": list(self._history)},
            "limits": {
                name: self._settings[name]
                for name in (
                    "max-clients", "lane-limit", "client-limit", "max-leases", "max-lanes", "outbox-limit",
                    "clients-memory",
                )
            },
            "settings": self._settings,
        }  # fmt: skip
        said["wrong"] = what_is_wrong(said)
        return json.dumps(said).encode() + b"\n"


_NOW = (
    "commands_per_second", "batches_per_second", "mean_batch", "round_trips_saved_per_second", "round_trip_p50_us",
    "round_trip_p99_us", "queue_wait_p50_us", "queue_wait_p99_us",
)  # fmt: skip


def _between(before: _Sample, after: _Sample) -> dict[str, float | None]:
    seconds = max(after.time - before.time, 1e-6)
    sent, batches = after.sent - before.sent, after.batches - before.batches
    round_trips = _difference(after.round_trips, before.round_trips)
    waits = _difference(after.waits, before.waits)
    said = (
        sent / seconds, batches / seconds, sent / batches if batches else None, (sent - batches) / seconds,
        quantile(round_trips, 0.5), quantile(round_trips, 0.99), quantile(waits, 0.5), quantile(waits, 0.99),
    )  # fmt: skip
    return {name: None if value is None else round(value, 2) for name, value in zip(_NOW, said, strict=True)}


def _difference(after: list[int], before: list[int]) -> list[int]:
    return [later - earlier for later, earlier in zip(after, before, strict=True)]


def _totals(figures: Figures) -> dict[str, object]:
    outcomes = figures.outcomes.values()
    sizes: Histogram = figures.batch_commands
    return {
        "commands": figures.commands,
        "batches": figures.batches,
        "round_trips_saved": sizes.total,  # commands less batches
        "delivered": sum(each.delivered for each in outcomes),
        "swallowed": sum(each.swallowed for each in outcomes),
        "failed": sum(each.failed for each in outcomes),
        "refused": sum(each.refused for each in outcomes),
        "own_commands": figures.own_commands,
        "clients_accepted": figures.clients_accepted,
        "clients_refused": figures.clients_refused,
        "lane_losses": figures.lane_losses,
        "dials": figures.dials,
        "protocol_errors": figures.protocol_errors,
        "faults": figures.faults,
        "upstream_sent_bytes": figures.sent,
        "upstream_received_bytes": figures.received,
    }


def _lane(lane: LaneFigures) -> dict[str, object]:
    return {
        "lane": f"u{lane.number}",
        "kind": lane.kind.value,
        "state": lane.state,
        "user": lane.user,
        "database": lane.database,
        "protocol": lane.protocol,
        "sessions": lane.sessions,
        "unsent": lane.unsent,
        "in_flight": lane.in_flight,
        "commands": lane.commands,
        "batches": lane.batches,
        "mean_batch": round(lane.commands / lane.batches, 2) if lane.batches else None,
        "round_trip_us": None if lane.round_trip is None else round(lane.round_trip * 1e6, 1),
        "connections": lane.connections,
        "why": lane.why,
    }


def _started() -> str | None:
    """When this process was, by the kernel's account: no clock is read for it. None where the kernel does not say."""
    process = this_process()
    return None if process is None else datetime.fromtimestamp(process.started, UTC).isoformat(timespec="seconds")
