"""What the kernel says about a process: its CPU time and its resident memory (Linux)."""

import ctypes
import os
import time
from pathlib import Path

from .errors import BenchError

_libc = ctypes.CDLL(None)


class CpuClock:
    """The CPU time of one process, user and system, summed over its threads, those that have ended included.

    POSIX's clock_getcpuclockid(3). It reads the sum that /proc/<pid>/task/*/schedstat shows, but up to this very
    moment: those files are brought up to date by the scheduler's tick, 1 to 10 ms late for a thread that is running.
    """

    def __init__(self, pid: int) -> None:
        clock = ctypes.c_int()
        error = _libc.clock_getcpuclockid(ctypes.c_int(pid), ctypes.byref(clock))
        if error:
            raise BenchError(f"no CPU clock for process {pid}: {os.strerror(error)}")
        self._pid = pid
        self._clock = clock.value

    def nanoseconds(self) -> int:
        try:
            return time.clock_gettime_ns(self._clock)
        except OSError as error:
            raise BenchError(f"process {self._pid} ended while it was measured") from error


def resident_bytes(pid: int) -> int:
    """VmRSS. It holds no kernel memory: the buffers of the sockets are not in it."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024  # proc(5): the unit is always "kB", and means 1,024 bytes
    raise BenchError(f"process {pid} ended while it was measured")
