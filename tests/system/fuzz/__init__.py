"""A differential fuzzer: random sequences of several connections, to a server and to its twin behind coalesce.

    python -m tests.system.fuzz --seconds 600 [--seed N] [--server NAME] [--keep-going] [--no-proxy]

Reading order: `steps.py` (what a sequence is), `driver.py` (how it is held with both, and how it is known that all has
been said), `compare.py` (what may differ, and why), `words.py` and `generator.py` (what is said), `shrink.py`. A
sequence that failed belongs into `tests/system/test_fuzz.py`, as it was printed.
"""
