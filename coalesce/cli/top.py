"""`coalesce top`: what the status page shows, in a terminal."""

from __future__ import annotations

import contextlib
import enum
import json
import os
import select
import signal
import sys
from http.client import OK
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from coalesce.admin.wrong import what_is_wrong
from coalesce.cli.ask import AskError, ask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

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
# Columns of a terminal that a status has to be showable in.
_USUAL = 80
# Columns that a chart needs for anybody to read it, and that who a lane runs as is left with.
_LEAST_CHART = 10
_LEAST_NAME = 20
# What else is said of a lane, what is dearest last: where there is no room, the first that are there are left out.
_DISPENSABLE = ("connections", "sessions", "unsent", "in flight", "commands", "owed", "least trip", "batch")
_LANE_STATES = {"ready": "good", "dialling": "notice", "failing": "error"}


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
        frame(status, _USUAL)
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
    """A frame a second, until q or Control-C. `once`, and where no terminal can be drawn anew: one. Raises AskError."""
    console = Console(highlight=False)
    if once or not console.is_terminal or console.is_dumb_terminal:
        console.print(frame(look(admin), console.width))
    else:
        _watch(admin, console)


def _watch(admin: TcpAddress, console: Console) -> None:
    shown: Status | None = None
    seen = 0.0
    while True:
        heard: _Heard | None = None
        with (
            contextlib.suppress(KeyboardInterrupt),
            _keys() as keys,
            Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live,
        ):
            while heard is None:
                due = monotonic() + _EVERY
                try:
                    shown, seen = look(admin), monotonic()
                    picture = frame(shown, console.width, console.height)
                except AskError as silence:
                    picture = _silent(str(silence), shown, monotonic() - seen, console)
                live.update(picture, refresh=True)
                heard = keys.heard(due)
        if heard is not _Heard.STOP:
            return
        signal.raise_signal(signal.SIGTSTP)  # whoever continues it finds it here


class _Heard(enum.Enum):
    """What ends watching."""

    END = enum.auto()
    STOP = enum.auto()  # for a while: Control-Z


class _Keys:
    """What is typed, where somebody types."""

    def __init__(self, descriptor: int | None, woken: int) -> None:
        """`woken`: what can be read from when a signal came."""
        self._descriptor = descriptor
        self._woken = woken

    def heard(self, until: float) -> _Heard | None:
        """Waits no longer than `until`, nor than until the terminal has another size."""
        watched = [self._woken] if self._descriptor is None else [self._woken, self._descriptor]
        while (left := until - monotonic()) > 0:
            ready = select.select(watched, [], [], left)[0]
            if self._descriptor in ready:
                typed = os.read(self._descriptor, 64)  # (past the buffer of `sys.stdin`, which `select` can't see)
                if b"q" in typed.lower() or (not typed and _is_gone(self._descriptor)):
                    return _Heard.END
            if self._woken in ready:
                return _Heard.STOP if signal.SIGTSTP in os.read(self._woken, 64) else None
        return None


def _is_gone(terminal: int) -> bool:
    """Whether nothing is ever typed there again."""
    look = select.poll()
    look.register(terminal, 0)
    return bool(look.poll(0))


@contextlib.contextmanager
def _keys() -> Iterator[_Keys]:
    """Within it, keys come as they are pressed, and are not shown; Control-C stays what it is."""
    with _signals() as woken:
        if not sys.stdin.isatty():
            yield _Keys(None, woken)
            return
        import termios  # noqa: PLC0415 (where there is a terminal, there is this)
        import tty  # noqa: PLC0415

        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
        tty.setcbreak(descriptor)
        mode = termios.tcgetattr(descriptor)
        mode[6][termios.VMIN] = 0  # what is typed before Control-Z is forgotten, and is not to be waited for
        termios.tcsetattr(descriptor, termios.TCSADRAIN, mode)
        try:
            yield _Keys(descriptor, woken)
        finally:
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """Within it, SIGTERM ends by an exception; what can be read tells of a new size, and of Control-Z, by number."""

    def end(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, end),
        signal.SIGWINCH: signal.signal(signal.SIGWINCH, lambda *_: None),
        signal.SIGTSTP: signal.signal(signal.SIGTSTP, lambda *_: None),
    }
    try:
        yield woken
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(woken)
        os.close(wake)


# --- a frame ----------------------------------------------------------------------------------------------------------


def frame(status: Status, width: int, height: int | None = None) -> RenderableType:
    """One look at it. Of lanes, as many as there is `height` for; by default, all."""
    wrong = what_is_wrong(status)
    parts: list[RenderableType] = [_head(status, wrong), Text()]
    parts += [Text(item["text"], style=_COLOURS[item["level"]]) for item in wrong]
    if wrong:
        parts.append(Text())
    parts += [_figures(status, width), Text(), _connections(status), Text()]
    room = None if height is None else height - _lines(Group(*parts), width)
    return Group(*parts, _lanes(status["lanes"], width, room))


def _lines(what: RenderableType, width: int) -> int:
    return len(Console(width=width).render_lines(what, pad=False))


def _silent(why: str, last: Status | None, age: float, console: Console) -> RenderableType:
    if last is None:
        return Text(f"coalesce: {why}", style="red")
    said = Text(f"coalesce: {why}. What is below is {_span(age)} old.\n", style="red")
    return Group(said, frame(last, console.width, console.height - _lines(said, console.width)))


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
    column: str  # of the history
    shown: Callable[[float | None], str]
    note: str


def _figures(status: Status, width: int) -> RenderableType:
    """One a line: now, and the last of its history that there is room for."""
    now, totals, history = status["now"], status["totals"], status["history"]
    saved = f"{totals['round_trips_saved'] / totals['commands']:.1%} of all commands" if totals["commands"] else ""
    since = f"{totals['commands']:,} since the start"
    batches = f"{_rate(now['batches_per_second'])} batches a second"
    figures = [
        _Figure("commands a second", "commands_per_second", _rate, since),
        _Figure("commands in a batch", "mean_batch", _mean, batches),
        _Figure("round trips saved a second", "round_trips_saved_per_second", _rate, saved),
        _Figure("round trip, p50", "round_trip_p50_us", _duration, f"p99 {_duration(now['round_trip_p99_us'])}"),
        _Figure("queue wait, p50", "queue_wait_p50_us", _duration, f"p99 {_duration(now['queue_wait_p99_us'])}"),
    ]
    values = [figure.shown(now[figure.column]) for figure in figures]
    taken = max(len(figure.name) for figure in figures) + max(map(len, values)) + 4
    notes = [figure.note if len(figure.note) <= width - taken else "" for figure in figures]
    taken += max(map(len, notes)) + 2
    charts = [_series(history, figure.column) for figure in figures]
    mosts = [figure.shown(_most(series)) for figure, series in zip(figures, charts, strict=True)]
    # (What is the most depends on how much is shown, and that on how wide the most is: of the whole history, then.)
    beside = max(len("at most"), *map(len, mosts)) + 2
    room = width - taken
    scaled = room >= _LEAST_CHART + beside
    if scaled:
        room -= beside
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(style="bold", justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    if room < _LEAST_CHART:
        for figure, value, note in zip(figures, values, notes, strict=True):
            table.add_row(figure.name, value, note)
        return table
    table.add_column(style="cyan", no_wrap=True, min_width=room)
    table.add_column(style="dim", justify="right", no_wrap=True)
    shown = min(room, len(history["samples"]))
    rows: list[list[str | Text]] = [
        ["", "", "", Text(f"last {_span(shown * history['every_seconds'])}", style="dim default"), "at most"]
    ]
    for figure, value, note, series in zip(figures, values, notes, charts, strict=True):
        rows.append(
            [figure.name, value, note, _bars(series[-room:], figure.column), figure.shown(_most(series[-room:]))]
        )
    if not scaled:
        table.columns.pop()
    for row in rows:
        table.add_row(*row[: len(table.columns)])
    return table


def _series(history: Mapping[str, Any], column: str) -> list[float | None]:
    place = history["columns"].index(column)
    return [sample[place] for sample in history["samples"]]


def _most(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _bars(values: Sequence[float | None], column: str) -> str:
    """From nothing to the most there is; where there is no value, there is no bar."""
    top = _most(values) or 1
    if column.endswith("_us") and (usual := _usually(values)) and top > 3 * usual:
        top = usual
    return "".join(_BARS[0] if value is None else _BARS[1 + round(min(1, value / top) * 7)] for value in values)


def _usually(values: Sequence[float | None]) -> float:
    """What it is at most, but for one in twenty: a single slow second would flatten all the others."""
    known = sorted(value for value in values if value is not None)
    return known[int(0.95 * (len(known) - 1))] if known else 0


def _connections(status: Status) -> RenderableType:
    clients, leases, lanes = status["clients"], status["leases"], status["lanes"]
    client_states = ("shared", "leased", "waiting", "pinned", "greeting")
    lease_states = ("lent", "pinned", "dialling", "idle", "waiting")
    lane_counts = {state: sum(lane["state"] == state for lane in lanes) for state in _LANE_STATES}
    lane_counts["unsent"] = sum(lane["unsent"] for lane in lanes)
    lane_counts["in flight"] = sum(lane["in_flight"] for lane in lanes)
    lane_counts["lost"] = sum(status["totals"]["lane_losses"].values())
    taken = leases["lent"] + leases["pinned"] + leases["dialling"]
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(style="bold", justify="right")
    table.add_column(no_wrap=True)
    table.add_column()
    everybody = sum(clients[state] for state in client_states)
    held = _bytes(clients["memory_bytes"])
    table.add_row("clients", f"{everybody:,}", f"of {clients['limit']:,}", f"{_counts(clients, client_states)}; {held}")
    table.add_row("lanes", f"{len(lanes):,}", "", _counts(lane_counts, tuple(lane_counts)))
    table.add_row("leases", f"{taken:,}", f"of {leases['limit']:,}", _counts(leases, lease_states))
    return table


def _counts(by: Mapping[str, int], states: tuple[str, ...]) -> str:
    return ", ".join(f"{by[state]:,} {state}" for state in states if by[state]) or "none"


def _lanes(lanes: Sequence[Mapping[str, Any]], width: int, room: int | None) -> RenderableType:
    """`room`: lines; where it is not enough, the last one says how many more there are."""
    if not lanes:
        return Text("No lane yet: the first client opens one.", style="dim")
    failing_first = sorted(lanes, key=lambda lane: lane["state"] != "failing")
    if room is None or len(lanes) < room:
        return _table(failing_first, width)
    if room < 3:
        return Text(f"{len(lanes):,} lanes, and no room for them", style="dim")
    shown = room - 2
    return Group(_table(failing_first[:shown], width), Text(f"and {len(lanes) - shown:,} more", style="dim"))


def _table(lanes: Sequence[Mapping[str, Any]], width: int) -> RenderableType:
    figures: dict[str, list[str]] = {
        "sessions": [f"{lane['sessions']:,}" for lane in lanes],
        "unsent": [f"{lane['unsent']:,}" for lane in lanes],
        "in flight": [f"{lane['in_flight']:,}" for lane in lanes],
        "owed": [f"{lane['unsent'] + lane['in_flight']:,}" for lane in lanes],
        "batch": [_mean(lane["mean_batch"]) for lane in lanes],
        "least trip": [_duration(lane["round_trip_us"]) for lane in lanes],  # on this connection
        "connections": [f"{lane['connections']:,}" for lane in lanes],
        "commands": [f"{lane['commands']:,}" for lane in lanes],
    }
    first = {
        "lane": [f"{lane['lane']} (large)" if lane["kind"] == "large" else lane["lane"] for lane in lanes],
        "state": [lane["state"] for lane in lanes],
    }
    who = [f"{lane['user'] or 'no user'}, db {lane['database']}, RESP{lane['protocol']}" for lane in lanes]
    widths = {name: max(map(len, (name, *column))) for name, column in (first | figures).items()}
    widths["state"] = max(map(len, _LANE_STATES))

    left_out = {"owed"}
    wanted = min(_LEAST_NAME, max(map(len, who)))
    for name in _DISPENSABLE:
        if _beside(widths, left_out, width) >= wanted:
            break
        left_out.add(name)
        if name == "unsent":  # both become one
            left_out.add("in flight")
            left_out.remove("owed")
    room = max(0, _beside(widths, left_out, width))  # where there is not enough, it is taken from who, not from figures
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("lane", no_wrap=True, min_width=widths["lane"])
    table.add_column("state", no_wrap=True, min_width=widths["state"])
    table.add_column("runs as", no_wrap=True, max_width=room)
    shown = [name for name in figures if name not in left_out]
    for name in shown:
        table.add_column(name, no_wrap=True, min_width=widths[name], justify="right")
    for place, lane in enumerate(lanes):
        state = Text(lane["state"], style=_COLOURS[_LANE_STATES[lane["state"]]])
        table.add_row(
            Text(first["lane"][place]), state, Text(_cut(who[place], room)), *(figures[name][place] for name in shown)
        )
    return table


def _beside(widths: Mapping[str, int], left_out: set[str], width: int) -> int:
    """Columns that are left beside these."""
    return width - sum(wide + 2 for name, wide in widths.items() if name not in left_out)


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: room - 1]}…"


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


def _bytes(value: float) -> str:
    units = ("bytes", "KiB", "MiB", "GiB", "TiB")
    power = 0
    while value >= 1023.5 and power < len(units) - 1:
        value /= 1024
        power += 1
    digits = 0 if not power or value >= 99.5 else 1 if value >= 9.95 else 2
    return f"{value:,.{digits}f} {units[power]}"


def _span(seconds: float) -> str:
    """The two largest units that there is something of."""
    whole = int(seconds)
    units = ((whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s"))
    begun = next((place for place, (value, _) in enumerate(units) if value), len(units) - 1)
    return " ".join(f"{value:,} {unit}" for value, unit in units[begun : begun + 2] if value) or "0 s"
