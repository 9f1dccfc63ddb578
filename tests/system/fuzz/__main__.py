"""See `tests/system/fuzz/__init__.py`."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import time

from tests.system.processes import executables

from .campaign import Campaign
from .driver import DifferenceError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.system.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument(
        "--seed", type=int, default=int(time.time()), help="of the first sequence; the next has the next"
    )
    names = [str(each) for each in executables()]
    parser.add_argument("--server", default=names[-1], help=f"the beginning of one of {', '.join(names)}")
    parser.add_argument("--keep-going", action="store_true", help="not only until the first difference")
    parser.add_argument(
        "--no-proxy", action="store_true", help="both directly: nothing may differ, or a rule is missing"
    )
    chosen = parser.parse_args()
    executable = next(each for each in executables() if str(each).startswith(chosen.server))
    print(f"{executable}, seed {chosen.seed}", flush=True)
    begin = last = time.monotonic()
    failures = 0
    with contextlib.closing(Campaign(executable, proxy=not chosen.no_proxy)) as campaign:
        for seed in itertools.count(chosen.seed):
            now = time.monotonic()
            if now - begin > chosen.seconds or (failures and not chosen.keep_going):
                break
            if now - last > 10:
                last = now
                print(f"{now - begin:.0f} s: {campaign.tally}, {failures} differ", flush=True)
            steps, locked = campaign.sequence(seed)
            try:
                campaign.run(steps, locked=locked)
            except DifferenceError as difference:
                failures += 1
                print(f"\nseed {seed}{', locked' if locked else ''}: {difference}", flush=True)
                shorter, again = campaign.shrink(steps, locked=locked)
                print(f"shrunk: {again}" if again else "it does not fail again; the whole of it:")
                print("\n".join(f"    {step!r}," for step in shorter), flush=True)
    print(f"{time.monotonic() - begin:.0f} s: {campaign.tally}, {failures} differ")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
