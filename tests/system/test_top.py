"""`coalesce top`, as a program: in a pipe, and in a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from typing import TYPE_CHECKING

import pytest

from coalesce.cli.top import _keys

from .processes import DEADLINE, ROOT, coalesce_command, environment, eventually, free_port
from .said import Admin, at_work, in_trouble, lane, nothing_yet, running_admin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .forge import Said

    Once = Callable[..., Said]

TOP = [*coalesce_command(), "top"]


@pytest.fixture
def admin() -> Iterator[Admin]:
    with running_admin() as admin:
        yield admin


@pytest.fixture
def once(ask: Callable[..., Said]) -> Callable[..., Said]:
    """Exit code, what it printed, and what it complained of."""

    def once(*arguments: str, columns: int = 120, **more: str) -> Said:
        return ask("top", *arguments, COLUMNS=str(columns), **more)

    return once


def lines(printed: str) -> list[str]:
    """Without the charts and their scale, and with one blank between words."""
    return [re.sub(r"\s+", " ", re.sub(r"[▁-█].*", "", line)).strip() for line in printed.splitlines()]


def test_one_frame_in_a_pipe(admin: Admin, once: Once) -> None:
    code, printed, complaint = once("--once", "--admin", admin.address)
    assert (code, complaint) == (0, "")
    shown = lines(printed)
    assert shown[0].startswith("coalesce 0.1.0 serving up 2 s 127.0.0.1:6380 → redis.internal:6379 (redis 7.0.15)")
    for line in (
        "commands a second 98,356 1,284,512,345 since the start",
        "commands in a batch 32.2 3,052 batches a second",
        "round trips saved a second 95,304 97.0% of all commands",
        "round trip, p50 412 µs p99 1.24 ms",
        "queue wait, p50 38 µs p99 2.1 s",
        "clients 242 of 10,000 231 shared, 9 leased, 2 pinned; 11.8 MiB",
        "lanes 2 2 ready, 6 unsent, 82 in flight, 3 lost",
        "leases 11 of 1,000 9 lent, 2 pinned, 4 idle",
        "u0 ready no user, db 0, RESP3 231 3 41 32.2 412 µs 1 8,412,345",
        "u1 (large) ready orders, db 3, RESP3 231 3 41 32.2 18.2 ms 1 1,204",
    ):
        assert line in shown
    assert "\x1b" not in printed  # no colours where nobody sees them


def test_the_charts_are_the_history(admin: Admin, once: Once) -> None:
    samples = admin.says["history"]["samples"] = admin.says["history"]["samples"][:4]
    for sample, value in zip(samples, (0.0, None, 50.0, 100.0), strict=True):
        sample[1] = value
    for sample, wait in zip(samples, (12_340.0, 100.0, 50.0, 100.0), strict=True):
        sample[4] = wait  # one slow second does not flatten the others
    code, printed, _ = once("--once", "--admin", admin.address)
    assert code == 0
    (batch,) = (line for line in printed.splitlines() if line.startswith("commands in a batch"))
    assert re.findall(r"[▁-█][▁-█ ]*[▁-█]", batch) == ["▁ ▅█"]
    assert batch.endswith(" 100.0")
    (waits,) = (line for line in printed.splitlines() if line.startswith("queue wait"))
    assert re.search(r" ██▅█ +12\.3 ms$", waits)
    assert re.search(r"  last 4 s +at most$", printed, re.MULTILINE)


@pytest.mark.parametrize(
    ("columns", "heading", "figures"),
    [
        (60, "batch", "32.2"),
        (80, "owed batch least trip", "44 32.2 412 µs"),
        (90, "owed batch least trip commands", "44 32.2 412 µs 123,456,789,012"),
        (
            120,
            "sessions unsent in flight batch least trip connections commands",
            "231 3 41 32.2 412 µs 1 123,456,789,012",
        ),
    ],
)
def test_figures_are_never_cut(admin: Admin, once: Once, columns: int, heading: str, figures: str) -> None:
    """What there is no room for is left out, or is who a lane runs as."""
    admin.says["lanes"] += [lane(2, user="a-service-account-of-somebody", commands=123_456_789_012)]
    admin.says["totals"]["commands"] = 123_456_789_012
    _, printed, _ = once("--once", "--admin", admin.address, columns=columns)
    assert all(len(line) <= columns for line in printed.splitlines())
    shown = lines(printed)
    assert any(line.startswith("commands a second 98,356") for line in shown)
    assert "round trip, p50 412 µs p99 1.24 ms" in shown
    assert f"lane state runs as {heading}" in shown
    (row,) = (line for line in shown if line.startswith("u2 ready a-service-acc"))
    assert row.endswith(f"… {figures}")


def test_what_is_wrong_is_said_and_obeyed_by_no_terminal(admin: Admin, once: Once) -> None:
    admin.says = in_trouble()
    _, printed, _ = once("--once", "--admin", admin.address, columns=400)
    assert "serving, with trouble" in printed
    assert "2 lanes have no connection to the upstream (1,204 requests waiting): Connection refused" in printed
    assert "<img src=x onerror=alert(1)>?[31mWWW" in printed
    assert "\x1b" not in printed


def test_before_the_first_command(admin: Admin, once: Once) -> None:
    admin.says = nothing_yet()
    code, printed, _ = once("--once", "--admin", admin.address)
    assert code == 0
    assert "No lane yet" in printed
    assert "None" not in printed


def test_no_answer_is_exit_code_1(once: Once) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    complaint = f"coalesce: can't ask {nobody} (--admin): Connection refused\n"
    assert once("--once", COALESCE_ADMIN=nobody) == (1, "", complaint)


def test_off_is_nobody_to_ask(once: Once) -> None:
    code, _, complaint = once("--once", "--admin", "off")
    assert code == 2
    assert "the admin is off" in complaint


class Terminal:
    """A program in a terminal of 120 by 40."""

    def __init__(self, *command: str, **more: str) -> None:
        self.ours, self.theirs = pty.openpty()
        theirs = self.theirs
        self.resize(120, 40)
        self.before = termios.tcgetattr(theirs)
        self.shown = ""
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            # (Its size is the terminal's, and not what whoever runs the tests has.)
            env=environment(**{"TERM": "xterm-256color", "COLUMNS": "", "LINES": "", **more}),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            # The terminal's Control-C goes to whoever it is the terminal of.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 (before any thread of the child's)
        )

    def resize(self, columns: int, rows: int) -> None:
        """Whose terminal it is is told by a signal."""
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def shows(self, what: str) -> None:
        """TimeoutError if it does not."""
        eventually(lambda: self._read() and what in self.shown)

    def press(self, keys: bytes) -> None:
        os.write(self.ours, keys)

    def ended(self) -> int:
        """Its exit code; everything it wrote is in `shown`."""
        eventually(lambda: self._read() and self.process.poll() is not None)
        self._read()
        return self.process.returncode

    def _read(self) -> bool:
        while select.select([self.ours], [], [], 0)[0]:
            self.shown += os.read(self.ours, 1 << 16).decode("utf-8", "replace")
        return True


@contextlib.contextmanager
def terminal(*command: str, **more: str) -> Iterator[Terminal]:
    opened = Terminal(*command, **more)
    try:
        yield opened
    finally:
        if opened.process.poll() is None:
            opened.process.send_signal(signal.SIGKILL)
        opened.process.wait(DEADLINE)
        os.close(opened.ours)
        os.close(opened.theirs)


def test_a_terminal_that_can_only_be_written_to_gets_one_frame(admin: Admin) -> None:
    with terminal(*TOP, "--admin", admin.address, TERM="dumb") as opened:
        assert opened.ended() == 0
        assert "98,356" in opened.shown
        assert "\x1b" not in opened.shown


def test_as_many_lanes_as_there_is_room_for_at_any_size(admin: Admin) -> None:
    """Without colours, as NO_COLOR wants it. <https://no-color.org>"""
    admin.says["lanes"] = [lane(number) for number in range(128)]
    with terminal(*TOP, "--admin", admin.address, NO_COLOR="1") as opened:
        opened.shows("and 103 more")  # 40 lines; all else takes 15
        assert "u24 " in opened.shown
        assert "u25 " not in opened.shown
        opened.shown = ""
        opened.resize(80, 24)
        opened.shows("and 119 more")
        frame = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", opened.shown.rpartition("coalesce ")[2])
        assert all(len(line) <= 80 for line in frame.splitlines())
        assert not re.search(r"\x1b\[[\d;]*3[0-7]", opened.shown)
        opened.process.terminate()
        assert opened.ended() == 128 + signal.SIGTERM
        assert opened.shown.rstrip().endswith(("\x1b[?25h", "\x1b[?1049l"))
        assert termios.tcgetattr(opened.theirs) == opened.before


@pytest.mark.parametrize("keys", [b"q", b"\x03"], ids=["q", "Control-C"])
def test_it_ends_by_a_key_and_leaves_the_terminal_as_it_was(admin: Admin, keys: bytes) -> None:
    with terminal(*TOP, "--admin", admin.address) as opened:
        opened.shows("98,356")
        opened.press(b"x\x1b[A")  # no other key does anything
        opened.shown = ""
        # Stopped, it gives the terminal back. (Nobody could continue it here, so the kernel lets it go on at once.)
        opened.press(b"\x1a")
        opened.shows("\x1b[?1049l")
        opened.shown = opened.shown.rpartition("\x1b[?1049l")[2]
        opened.shows("98,356")
        assert "\x1b[?1049h" in opened.shown
        admin.says["now"]["commands_per_second"] = 1234.0
        opened.shows("1,234")
        opened.press(keys)
        assert opened.ended() == 0
        assert opened.shown.rstrip().endswith(("\x1b[?25h", "\x1b[?1049l"))  # the cursor, and what was there before
        assert "Traceback" not in opened.shown
        assert termios.tcgetattr(opened.theirs) == opened.before


def test_a_key_that_control_z_takes_back_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal forgets what was typed before Control-Z, also where that was seen already."""
    ours, theirs = pty.openpty()
    try:
        select_really = select.select

        def select_and_forget(*arguments: object) -> object:
            ready = select_really(*arguments)  # type: ignore[arg-type]
            termios.tcflush(theirs, termios.TCIFLUSH)
            return ready

        with open(theirs, encoding="utf-8", closefd=False) as stdin:
            monkeypatch.setattr("sys.stdin", stdin)
            before = termios.tcgetattr(theirs)
            with _keys() as keys:
                os.write(ours, b"q")
                monkeypatch.setattr("select.select", select_and_forget)
                assert keys.heard(time.monotonic() + 0.1) is None
                monkeypatch.undo()
                os.write(ours, b"q")
                assert keys.heard(time.monotonic() + 10) is not None
            assert termios.tcgetattr(theirs) == before
    finally:
        os.close(ours)
        os.close(theirs)


def test_it_says_when_there_is_no_answer_and_goes_on(admin: Admin) -> None:
    with terminal(*TOP, "--admin", admin.address) as opened:
        opened.shows("98,356")
        admin.end()
        opened.shows(f"can't ask {admin.address} (--admin): Connection refused. What is below is")
        with running_admin(admin.port) as again:
            again.says = at_work() | {"state": "paused"}
            opened.shows("Paused: new commands wait until coalesce resume (POST /resume).")
            opened.press(b"q")
            assert opened.ended() == 0
