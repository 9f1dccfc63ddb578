"""The claims of reliability, held against faults that are provoked for real, under load.

    python -m tests.system.reliability --kills 100
    python -m tests.system.reliability --seconds 600 [--seed N]

Many clients count up (`INCR`), each its own counter and one that all share: one by one, in pipelines, in transactions.
Each keeps books of what it sent, what was acknowledged and what was refused with "upstream unavailable", which promises
that it was not run. Afterwards, for each counter: acknowledged <= counter <= sent - refused; and along the way each
client's own counter grows by one with each reply, so nothing ran twice or out of order.

    accounting.py   the books, and the clients that keep them
    stage.py        an upstream that forgets nothing, perhaps a relay, coalesce, and the clients: what a fault acts upon
    relay.py        between coalesce and the upstream: cuts at a byte, delays, falls silent
    namespaces.py   an upstream in a network namespace of its own, whose packets can be dropped
    faults.py       kill, stop, cut, delay, silence, passwords and rights, no descriptors: what the long run mixes
"""
