"""The command line: `python -m tests.system.reliability`."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter

from tests.system.processes import executables

from . import faults
from .stage import on_stage


def main() -> int:
    parser = argparse.ArgumentParser(description="Exactly-once accounting while faults happen.")
    parser.add_argument("--kills", type=int, default=0, help="kill -9 and restart so many times")
    parser.add_argument("--seconds", type=float, default=0.0, help="mix all faults for so long")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--server", choices=[str(each) for each in executables()], default=str(executables()[-1]))
    chosen = parser.parse_args()
    if not chosen.kills and not chosen.seconds:
        parser.error("one of --kills and --seconds")
    executable = next(each for each in executables() if str(each) == chosen.server)
    print(f"{executable}, seed {chosen.seed}", flush=True)
    chance = random.Random(chosen.seed)
    seen: Counter[str] = Counter()
    begin = time.monotonic()
    mixed = chosen.seconds > 0
    flags = ["--upstream-wait", "0.3"] if mixed else []
    users = ("ada", "bob") if mixed else ()
    with on_stage(
        executable, *flags, relay=mixed, exact=not mixed, clients=chosen.clients, seed=chosen.seed, users=users
    ) as stage:
        while time.monotonic() < begin + chosen.seconds or seen["kill"] < chosen.kills:
            fault = chance.choice(faults.ALL) if mixed else faults.kill
            if fault is faults.kill and mixed:
                faults.kill(stage, away=chance.choice([0.0, 0.0, 0.6]))
            else:
                fault(stage)
            seen[fault.__name__] += 1
            stage.load.go_on(chance.randint(1, 20))
            if seen.total() % 20 == 0:
                print(
                    f"{time.monotonic() - begin:.0f} s: {dict(seen)}, {sum(stage.load.acknowledged())} acknowledged",
                    flush=True,
                )
        verdict = stage.finish()
        torn = stage.load.torn
    faulty = ", ".join(f"{count} {name}{'s' if name == 'kill' and count > 1 else ''}" for name, count in seen.items())
    print(f"{verdict}\n{faulty}; {torn} torn transactions; the books balance; {time.monotonic() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
