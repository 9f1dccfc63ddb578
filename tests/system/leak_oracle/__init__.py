"""The leak oracle: no reply, no message and no element ever reaches the wrong client, and none is lost.

    python -m tests.system.leak_oracle --replies 1000000 [--seed N] [--kill-every SECONDS] [--max-leases N]
    python -m tests.system.leak_oracle --replies 10000000                ten millions: about 7 minutes on two cores
    python -m tests.system.leak_oracle --minutes 10 --all-faults         every fault there is, for so long

Many clients write and read values that only they can know, in pipelines of random length cut at random places, and
check every byte that comes back. They depart at random moments (idle, in the middle of a request, with requests in
flight, in the middle of a reply, at every point of a transaction, blocked, subscribed; by a FIN or a reset) and others
take their places at once, while the upstream is killed and started again. With `--all-faults` a relay is between, which
cuts connections (at once, after some bytes more, after a silence; by a FIN or a reset), falls silent and dawdles, and
the upstream is stopped for a while, too (`tests/system/reliability/faults.py`). One wrong byte ends the run.

Most of what they say rides; now and then one tells a **story**, which needs a connection of its own for a while:

    transactions.py   WATCH, MULTI, EXEC: step by step, in conflict, aborted, abandoned
    queues.py         pops that block; an element reaches exactly one client, or is still in its list at the end
    channels.py       publish/subscribe: every message between the subscription and its end, in order, and no other
    identities.py     a wrong password
    pins.py           CLIENT TRACKING, MONITOR, CLIENT INFO: connections that are kept for good

What has to come from somebody else (a push, a message, a write to a watched key) comes from the place's helper, whose
connection is an ordinary one through the same coalesce.

What may be different because of a kill or a cut, and only then:
- a client with requests in flight is closed, as is one that was in the middle of something on a connection of its own;
  so it hears no more messages, and what was popped for it may be lost with the connection, one element for each;
- a reply is an error of coalesce's (the upstream stayed away) or -LOADING.
Because of a kill only:
- a value from before it is gone, so its reader gets either the value or null, never anything else.
Whatever only takes time (a stop, a silence, a slow link) changes nothing. `Weather` tells which excuse holds. A client
that is closed in fair weather counts as a failure too.

With `--direct` the clients talk to the upstream itself: whatever fails then is the oracle's own mistake. It also tells
how many elements are handed to clients that have just left without any proxy.
"""
