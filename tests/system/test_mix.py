"""What clients of today do, nearly all of it on shared connections."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import mix
from .processes import closing_line, running_coalesce
from .versions import with_oldest_and_newest

if TYPE_CHECKING:
    from .processes import RedisServer


@with_oldest_and_newest
def test_nearly_everything_rides(fresh_upstream: RedisServer) -> None:
    """What rides is coalesce's decision, whichever server it is."""
    with running_coalesce(fresh_upstream.url) as coalesce:
        counts = mix.run(fresh_upstream, coalesce, clients=200, rounds=20)
        said = closing_line(coalesce.stop()[1])
    assert not counts.wrong, counts.wrong[:3]
    changes = 2 * 200  # HELLO and SELECT ride, too: on the lane they lead to
    assert said.commands - changes <= counts.stateless
    assert said.commands >= 0.99 * counts.stateless
    # One for each identity; one for what all begin as; alice's way to her own leads through nobody else's.
    assert said.lanes == 1 + len(mix.KINDS) - 1, said
    assert said.leases <= 200
