"""The command line: `python -m tests.system.leak_oracle`."""

from __future__ import annotations

import argparse
import sys
import time

from tests.system.processes import executables

from .oracle import Plan, run_oracle
from .run import LeftBehindError, LostElementError, WrongFigureError, WrongReplyError

# A fault often enough to meet everything, seldom enough that most of a second is fair weather; a quarter of the clients
# get a connection of their own at a time, and so most stories begin in a queue.
ALL_FAULTS = {"kill_every": 0.0, "fault_every": 1.5, "max_leases": 25, "story_share": 0.15}
ALL_FAULTS_MEAN = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in ALL_FAULTS.items())


def main() -> int:
    parser = argparse.ArgumentParser(description="No reply ever reaches the wrong client: try to prove it wrong.")
    parser.add_argument("--replies", type=int, help="to be checked; 1000000 where --minutes says nothing either")
    parser.add_argument("--minutes", type=float, help="end after so many")
    parser.add_argument("--all-faults", action="store_true", help=ALL_FAULTS_MEAN)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--kill-every", type=float, default=5.0, metavar="SECONDS", help="0: never")
    parser.add_argument("--fault-every", type=float, default=0.0, metavar="SECONDS", help="any kind, through a relay")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--max-leases", type=int, metavar="N", help="coalesce's option; few make clients queue")
    parser.add_argument("--story-share", type=float, default=0.05, help="how often a client needs its own connection")
    parser.add_argument("--pauses", action="store_true", help="an operator pauses, resumes and scrapes at any time")
    parser.add_argument("--direct", action="store_true", help="without coalesce: what fails then is the oracle's fault")
    parser.add_argument("--server", choices=[str(each) for each in executables()], default=str(executables()[-1]))
    chosen = parser.parse_args()
    settings = vars(chosen)
    server = settings.pop("server")
    if settings.pop("all_faults"):
        settings |= ALL_FAULTS
    if chosen.replies is None:
        settings["replies"] = 1_000_000 if chosen.minutes is None else sys.maxsize
    executable = next(each for each in executables() if str(each) == server)
    print(f"{executable}, seed {chosen.seed}", flush=True)
    begin = time.monotonic()
    try:
        tally = run_oracle(executable, Plan(**settings))
    except* (WrongReplyError, LeftBehindError, LostElementError, WrongFigureError) as wrong:
        for each in wrong.exceptions:
            print(f"LEAK or loss: {each}", file=sys.stderr)
        raise
    seconds = time.monotonic() - begin
    print(f"{tally}\nnot one wrong reply, {seconds:.0f} s, {tally.replies / seconds:.0f} replies a second")
    return 0


if __name__ == "__main__":
    sys.exit(main())
