"""`coalesce top`: what the status page shows, in a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
from http.client import OK
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from coalesce.admin.wrong import what_is_wrong
from coalesce.cli.ask import AskError, ask

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import RenderableType

    from coalesce.config import TcpAddress

    Status = Mapping[str, Any]

# Seconds from one frame to the next; /status has a new sample as often.
_EVERY = 1.0
# Seconds that an answer may take.
_PATIENCE = 3.0

_NONE = "-"
_BARS = " ▁▂▃▄▅▆▇█"
_COLOURS = {"error": "red", "warning": "yellow", "notice": "blue", "good": "green"}
_STATES = {"starting": "notice", "serving": "good", "paused": "warning", "draining": "warning"}
# Columns of a terminal that all of a lane's figures need, and all but one.
_WIDE = 110
_NARROW = 90
_LANE_STATES = {"dialling": "notice", "ready": "good", "failing": "error"}


def look(admin: TcpAddress) -> Status:
    """What /status says. Raises AskError."""
    code, body = ask(admin, "GET", "/status", _PATIENCE)
    if code != OK:
        raise AskError(f"{admin} answers with HTTP {code} to /status")
    try:
        status = _printable(json.loads(body))
    except (ValueError, RecursionError):
        status = None
    if not isinstance(status, dict) or "coalesce" not in status:
        raise AskError(f"who answers at {admin} is not coalesce")
    try:
        frame(status, _WIDE)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        raise AskError(f"what {admin} answers is no status that can be shown: another version's?") from None
    return cast("Status", status)


def _printable(value: Any) -> Any:
    """The same, with nothing in it that a terminal would obey: an upstream says what it likes of itself."""
    match value:
        case str():
            return "".join(character if character.isprintable() else "?" for character in value)
        case dict():
            return {key: _printable(each) for key, each in value.items()}
        case list():
            return [_printable(each) for each in value]
    return value


def top(admin: TcpAddress, once: bool) -> None:
    """A frame a second, until q or Control-C. `once`, and where nobody looks at a terminal: one. Raises AskError."""
    console = Console(highlight=False)
    if once or not console.is_terminal:
        console.print(frame(look(admin), console.width))
    else:
        _watch(admin, console)


def _watch(admin: TcpAddress, console: Console) -> None:
    shown: Status | None = None
    seen = 0.0
    with (
        contextlib.suppress(KeyboardInterrupt),
        Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live,
        _keys() as keys,
    ):
        while True:
            due = monotonic() + _EVERY
            try:
                shown, seen = look(admin), monotonic()
                live.update(frame(shown, console.width), refresh=True)
            except AskError as silence:
                live.update(_silent(str(silence), shown, monotonic() - seen, console.width), refresh=True)
            if keys.pressed(b"qQ", due):
                return


class _Keys:
    """What is typed, where somebody types."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def pressed(self, wanted: bytes, until: float) -> bool:
        """Whether one of these was, waiting no longer than `until`."""
        while (left := until - monotonic()) > 0:
            if self._descriptor is None:
                sleep(left)
            elif select.select([self._descriptor], [], [], left)[0]:
                typed = os.read(self._descriptor, 64)  # (past the buffer of `sys.stdin`, which `select` can't see)
                if not typed or any(key in typed for key in wanted):  # or the terminal is gone
                    return True
        return False


@contextlib.contextmanager
def _keys() -> Iterator[_Keys]:
    """Within it, keys come as they are pressed, and are not shown; Control-C stays what it is."""
    if not sys.stdin.isatty():
        yield _Keys(None)
        return
    import termios  # noqa: PLC0415 (where there is a terminal, there is this)
    import tty  # noqa: PLC0415

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield _Keys(descriptor)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


# --- a frame ----------------------------------------------------------------------------------------------------------


def frame(status: Status, width: int) -> RenderableType:
    """One look at it."""
    wrong = what_is_wrong(status)
    parts: list[RenderableType] = [_head(status, wrong), Text()]
    parts += [Text(item["text"], style=_COLOURS[item["level"]]) for item in wrong]
    if wrong:
        parts.append(Text())
    parts += [_figures(status, width), Text(), _connections(status), Text(), _lanes(status["lanes"], width)]
    return Group(*parts)


def _silent(why: str, last: Status | None, age: float, width: int) -> RenderableType:
    if last is None:
        return Text(f"coalesce: {why}", style="red")
    return Group(Text(f"coalesce: {why}. What is below is {_span(age)} old.\n", style="red"), frame(last, width))


def _head(status: Status, wrong: Sequence[Mapping[str, str]]) -> RenderableType:
    coalesce, upstream, state = status["coalesce"], status["upstream"], status["state"]
    software = upstream["software"] or "not reached yet"
    trouble = state == "serving" and any(item["level"] == "error" for item in wrong)
    level = "error" if trouble else _STATES[state]
    head = Text.assemble(
        ("coalesce", "bold"),
        f" {coalesce['version']}  ",
        ("serving, with trouble" if trouble else state, f"bold {_COLOURS[level]}"),
        f"  up {_span(coalesce['uptime_seconds'])}  ",
        (f"{', '.join(status['listen'])} → {upstream['address']} ({software})", "dim"),
    )
    head.no_wrap, head.overflow = True, "ellipsis"
    return head


class _Figure(NamedTuple):
    name: str
    value: str
    note: str
    column: str


def _figures(status: Status, width: int) -> RenderableType:
    """One a line: now, and the last of its history that there is room for."""
    now, totals = status["now"], status["totals"]
    saved = f"{totals['round_trips_saved'] / totals['commands']:.1%} since the start" if totals["commands"] else ""
    lines = [
        _Figure(
            "commands a second",
            _rate(now["commands_per_second"]),
            f"{totals['commands']:,} since the start",
            "commands_per_second",
        ),
        _Figure(
            "commands in a batch",
            _mean(now["mean_batch"]),
            f"{_rate(now['batches_per_second'])} batches a second",
            "mean_batch",
        ),
        _Figure(
            "round trips saved a second",
            _rate(now["round_trips_saved_per_second"]),
            saved,
            "round_trips_saved_per_second",
        ),
        _Figure(
            "upstream round trip",
            _duration(now["round_trip_p50_us"]),
            f"p99 {_duration(now['round_trip_p99_us'])}",
            "round_trip_p50_us",
        ),
        _Figure(
            "queue wait",
            _duration(now["queue_wait_p50_us"]),
            f"p99 {_duration(now['queue_wait_p99_us'])}",
            "queue_wait_p50_us",
        ),
    ]
    table = Table.grid(padding=(0, 2))
    names, values, notes = (max(len(line[part]) for line in lines) for part in range(3))
    table.add_column(style="dim", no_wrap=True, min_width=names)
    table.add_column(style="bold", justify="right", no_wrap=True, min_width=values)
    table.add_column(no_wrap=True)
    table.add_column(style="cyan", no_wrap=True)
    taken = names + values + notes + 6
    history = status["history"]
    for line in lines:
        place = history["columns"].index(line.column)
        recent = [sample[place] for sample in history["samples"]]
        table.add_row(line.name, line.value, line.note, _bars(recent, width - taken))
    return table


def _bars(values: Sequence[float | None], room: int) -> str:
    """The last `room` of them, from nothing to the most there is; where there is no value, there is no bar."""
    if room < 10:  # nothing that anybody could read
        return ""
    shown = values[-room:]
    most = max((value for value in shown if value is not None), default=0) or 1
    return "".join(_BARS[0] if value is None else _BARS[1 + round(value / most * 7)] for value in shown)


def _connections(status: Status) -> RenderableType:
    clients, leases, lanes = status["clients"], status["leases"], status["lanes"]
    client_states = ("shared", "leased", "waiting", "pinned", "greeting")
    lease_states = ("lent", "pinned", "dialling", "idle", "waiting")
    lane_states = {state: sum(lane["state"] == state for lane in lanes) for state in _LANE_STATES}
    taken = leases["lent"] + leases["pinned"] + leases["dialling"]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(style="bold", justify="right")
    table.add_column()
    table.add_column()
    everybody = sum(clients[state] for state in client_states)
    held = f"{clients['memory_bytes'] / 2**20:,.1f} MiB"
    table.add_row("clients", f"{everybody:,}", f"of {clients['limit']:,}", f"{_counts(clients, client_states)}; {held}")
    table.add_row("lanes", f"{len(lanes):,}", "", _counts(lane_states, tuple(lane_states)))
    table.add_row("leases", f"{taken:,}", f"of {leases['limit']:,}", _counts(leases, lease_states))
    return table


def _counts(by: Mapping[str, int], states: tuple[str, ...]) -> str:
    return ", ".join(f"{by[state]:,} {state}" for state in states if by[state]) or "none"


def _lanes(lanes: Sequence[Mapping[str, Any]], width: int) -> RenderableType:
    if not lanes:
        return Text("No lane yet: the first client opens one.", style="dim")
    columns = {
        "sessions": lambda lane: f"{lane['sessions']:,}",
        "unsent": lambda lane: f"{lane['unsent']:,}",
        "in flight": lambda lane: f"{lane['in_flight']:,}",
        "owed": lambda lane: f"{lane['unsent'] + lane['in_flight']:,}",
        "batch": lambda lane: _mean(lane["mean_batch"]),
        "least trip": lambda lane: _duration(lane["round_trip_us"]),  # on this connection
        "commands": lambda lane: f"{lane['commands']:,}",
    }
    left_out = {"owed"} if width >= _WIDE else {"unsent", "in flight"} | ({"sessions"} if width < _NARROW else set())
    shown = [name for name in columns if name not in left_out]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    rows = [
        [
            Text(f"{lane['lane']} (large)" if lane["kind"] == "large" else lane["lane"]),
            Text(lane["state"], style=_COLOURS[_LANE_STATES[lane["state"]]]),
            Text(f"{lane['user'] or 'no user'}, db {lane['database']}, RESP{lane['protocol']}"),
            *(Text(columns[name](lane)) for name in shown),
        ]
        for lane in sorted(lanes, key=lambda lane: lane["state"] != "failing")
    ]
    for place, name in enumerate(["lane", "state", "runs as", *shown]):
        # Where there is no room, it is taken from who it runs as, and not from figures.
        least = None if name == "runs as" else max(len(name), *(len(row[place]) for row in rows))
        table.add_column(name, no_wrap=True, min_width=least, justify="right" if name in columns else "left")
    for row in rows:
        table.add_row(*row)
    return table


def _rate(value: float | None) -> str:
    if value is None:
        return _NONE
    return f"{value:,.1f}" if 0 < value < 10 else f"{value:,.0f}"


def _mean(value: float | None) -> str:
    return _NONE if value is None else f"{value:,.1f}"


def _duration(microseconds: float | None) -> str:
    if microseconds is None:
        return _NONE
    if microseconds < 999.5:
        return f"{microseconds:.0f} µs"
    if microseconds < 999_500:
        milliseconds = microseconds / 1e3
        return f"{milliseconds:.{2 if milliseconds < 9.995 else 1 if milliseconds < 99.95 else 0}f} ms"
    return f"{microseconds / 1e6:,.1f} s"


def _span(seconds: float) -> str:
    """The two largest units that there is something of."""
    whole = int(seconds)
    units = ((whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s"))
    begun = next((place for place, (value, _) in enumerate(units) if value), len(units) - 1)
    return " ".join(f"{value:,} {unit}" for value, unit in units[begun : begun + 2] if value) or "0 s"
