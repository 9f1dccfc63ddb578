"""Where the program begins. What it can be told is in `command_line.py`.

Importing all of coalesce takes a fifth of a second, in which Control-C would end in a traceback of ours or of some
library's. So this module imports next to nothing, and sees to it first.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

# 128 and the number of SIGINT, as shells say it: interrupted before there was anything to drain.
INTERRUPTED = 130


def _end_at_once(number: int, frame: FrameType | None) -> None:
    del number, frame
    os._exit(INTERRUPTED)


def _keep_standard_streams() -> None:
    """Where one is closed, the next connection would be in its place, and be sent lines of the log."""
    for stream in range(3):
        try:
            os.fstat(stream)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free


def main() -> None:
    """The console script."""
    _keep_standard_streams()
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # (in the background, it may be ignored)
    if ours:
        signal.signal(signal.SIGINT, _end_at_once)
    from coalesce.cli.command_line import run_command_line  # noqa: PLC0415 (see above)

    try:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # from here on, there may be something to undo
        run_command_line()
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except BaseExceptionGroup as several:
        if several.split(KeyboardInterrupt)[1] is not None:
            raise
        raise SystemExit(INTERRUPTED) from None
    finally:
        if ours:
            signal.signal(signal.SIGINT, _end_at_once)  # at the end of the interpreter, too


if __name__ == "__main__":
    main()
