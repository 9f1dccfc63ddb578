"""What a command costs: directly, through coalesce, and through the proxies that coalesce is measured against.

    python -m tests.bench            7 to 8 minutes; --quick takes 2

It is a benchmark, not a test: it always exits with 0 once it has measured, and says which bars were missed. All that it
starts runs on loopback, on free ports and in a temporary directory, and is ended by pid.

How a figure comes about
------------------------
                         load (redis-benchmark)
                           |            |
                           |          proxy      <- proxy CPU per command, memory
                           |            |
                         upstream (redis-server) <- upstream CPU per command, commands processed

A *target* is one way to reach the upstream, a *scenario* is one shape of load. In each round every scenario visits
every target, in an order that rotates from round to round, because a small machine drifts (frequency, neighbours) by
more than what is to be seen. So a ratio is only ever taken within one round, and then the median of the rounds.
Absolute figures are medians over the rounds too, and mean nothing on another machine.

- *CPU per command* is the kernel's CPU time of the process, all its threads, user and system, over the commands that
  the upstream counted in the same span (`load.py` says which span, and why not the whole run). The kernel bills the
  delivery of a loopback packet to whoever sent it, so the upstream's share contains waking its reader.
- Every visit has a fresh proxy process: none profits from its heap or its warm connections, and the closing line of
  coalesce gives the mean batch of that visit alone.
- coalesce runs without its admin, but where what that costs is measured: `coalesce-scraped` has it, and is asked for
  /metrics and for /status once a second.
- GET and SET run one after the other with 64-byte values. CPU and throughput are those of both together, p50 and p99
  the mean of the two.

Reading order: `__main__`, `scenarios`, `targets`, `measure`, `load`, `bars`, `report`; below them `processes`,
`address`, `scrape`, `accounting` and `machine`.
"""
