"""The shapes of load."""

from dataclasses import dataclass

from .targets import COALESCE_SCRAPED, COALESCE_TCP, TARGETS, TLS_TARGETS, TWEMPROXY, Target

IDLE_CLIENTS = 5000
MANY_CLIENTS = 5000
# Each of the many clients and some for the process itself.
DESCRIPTORS_FOR_MANY = MANY_CLIENTS + 200


@dataclass(frozen=True)
class Scenario:
    """`clients` connections, each with `pipeline` commands under way at a time."""

    name: str
    clients: int
    pipeline: int = 1
    targets: tuple[Target, ...] = TARGETS
    # How many commands the trial run before the first round takes. It should last about 0.1 s.
    trial_commands: int = 10_000
    # All that takes part shares one core, see `processes.one_core`.
    one_core: bool = False
    # How many times as long as another's a run is.
    lasting: float = 1

    @property
    def least_commands(self) -> int:
        """For each client enough that most of the run lies between its first commands and its last."""
        return 40 * self.clients * self.pipeline


LONE = Scenario("1", 1, trial_commands=2_000)
LONE_ON_ONE_CORE = Scenario("1-core", 1, trial_commands=2_000, one_core=True)
FIFTY = Scenario("50", 50)
TWO_HUNDRED = Scenario("200", 200, targets=(*TARGETS, *TLS_TARGETS))
PIPELINED = Scenario("50x16", 50, pipeline=16, trial_commands=50_000)
# redis-benchmark takes 4 s to connect these (it pauses 50 ms after every 64), so only who is compared takes part.
MANY = Scenario("5000", MANY_CLIENTS, targets=(COALESCE_TCP, TWEMPROXY))
# Who looks at it does so every half a second: a run has to have some of that in it.
FIFTY_SCRAPED = Scenario("50-scraped", 50, targets=(COALESCE_TCP, COALESCE_SCRAPED), lasting=4)
TWO_HUNDRED_SCRAPED = Scenario("200-scraped", 200, targets=(COALESCE_TCP, COALESCE_SCRAPED), lasting=4)
SCENARIOS = (LONE, LONE_ON_ONE_CORE, FIFTY, TWO_HUNDRED, PIPELINED, MANY, FIFTY_SCRAPED, TWO_HUNDRED_SCRAPED)

# Not a load: what 5,000 clients cost that are connected and quiet.
MEMORY = "memory"
# Nor this: how soon a coalesce serves, and how large it is when it idles.
START = "start"
STARTS = 10
