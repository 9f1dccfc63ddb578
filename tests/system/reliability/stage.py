"""What a fault acts upon: an upstream that keeps all it has acknowledged, perhaps a relay, coalesce, and clients."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.system.processes import Coalesce, Executable, RedisServer, eventually, running_coalesce, running_server

from .accounting import Load, Verdict
from .relay import Relay

if TYPE_CHECKING:
    from collections.abc import Iterator

# Whatever was acknowledged is in the file, and a killed server leaves no child behind that rewrites it.
FORGETS_NOTHING = ("--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0")


@dataclass
class Stage:
    """Load runs on it, from `on_stage` until `finish`."""

    upstream: RedisServer
    relay: Relay | None
    coalesce: Coalesce
    load: Load

    def finish(self) -> Verdict:
        """Everybody is served again, then stops; the books balance. Raises what went wrong."""
        self.load.go_on()
        self.load.finish()
        return self.balance()

    def balance(self) -> Verdict:
        """For when the load has been finished already."""
        # Behind a cut connection the upstream may still read what had reached it.
        eventually(self._upstream_is_quiet)
        with self.upstream.connect() as control:
            return self.load.balance(control)

    def _upstream_is_quiet(self) -> bool:
        with self.upstream.connect() as control:
            clients = control.ask("CLIENT", "LIST").split(b"\n")
        return not any(
            b" qbuf=0 " not in line for line in clients if line.startswith(b"id=") and b"cmd=client" not in line
        )


@contextlib.contextmanager
def on_stage(  # noqa: PLR0913 (each has its default)
    executable: Executable,
    *flags: str,
    relay: bool = False,
    clients: int = 50,
    exact: bool = True,
    seed: int = 1,
    users: tuple[str, ...] = (),
) -> Iterator[Stage]:
    """`users`: a part of the clients are these, whose first password is their name."""
    # In the command line, since a kill forgets all else: then it is the first password again.
    known = [word for user in users for word in ("--user", user, "on", f">{user}", "~*", "+@all")]
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(running_server(executable, *FORGETS_NOTHING, *known))
        between = stack.enter_context(Relay(upstream.address)) if relay else None
        where = between.url if between is not None else upstream.url
        coalesce = stack.enter_context(running_coalesce(where, *flags))
        passwords = {user: [user] for user in users}
        load = Load([coalesce.address, coalesce.unix_path], clients, seed, exact, users=passwords)
        try:
            load.start()
            yield Stage(upstream, between, coalesce, load)
        finally:
            load.stopping.set()
            if between is not None:
                between.speak()
