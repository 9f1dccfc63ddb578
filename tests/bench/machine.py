"""The machine that the figures belong to, and the file descriptors that it lets us have."""

import os
import platform
import resource
from importlib import metadata
from pathlib import Path

from .processes import first_line
from .targets import version_commands

# A proxy that gives each client an upstream connection of its own needs two for each of 5,000.
_DESCRIPTORS = 16_384


def raise_descriptor_limit() -> int:
    """The limit as it then is, for us and all that we start; it is never raised above the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft if soft != resource.RLIM_INFINITY else _DESCRIPTORS


class Neighbours:
    """How much of the machine others take, from construction on.

    They hardly change the CPU that a command takes, but throughput and latencies they do, and unevenly: a proxy needs a
    core more than the direct way.
    """

    def __init__(self) -> None:
        self._began = self._ticks()

    def share(self) -> float:
        """0 to 1 of all cores. Of what we started, only what has ended is known to be ours."""
        others, total = (now - then for now, then in zip(self._ticks(), self._began, strict=True))
        return max(0.0, others / total) if total else 0.0

    @staticmethod
    def _ticks() -> tuple[float, float]:
        """(taken by others, all) so far. proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal."""
        ticks = [int(field) for field in Path("/proc/stat").read_text().split(maxsplit=9)[1:9]]
        ours = sum(os.times()[:4]) * os.sysconf("SC_CLK_TCK")
        return sum(ticks) - ticks[3] - ticks[4] - ours, sum(ticks)


def facts() -> dict[str, str]:
    """Everything that a comparison with another run has to know."""
    found = {
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }
    found |= {package: metadata.version(package) for package in ("trio", "hiredis")}
    return found | {program: first_line(command) for program, command in version_commands().items()}
