"""The whole program against real Redis and Valkey servers, over real sockets.

Reading order: `wire.py` (one client's socket, where a reply ends), `processes.py` (real servers and coalesce as
processes), `forge.py` (starts in a tenth of the time), `conftest.py` (which of them a test gets), then the
tests. Programs, too, each with a short version in the tests: `leak_oracle` (no reply, element or message reaches the
wrong client), `fuzz` (random sequences, directly and through coalesce), `soak` (what a coalesce holds after hours of
load), `mix` (what rides shared connections), `redis_py_suite` (redis-py's own tests).

Nothing here sleeps to wait for something: a wait is a poll with a deadline or a read from a socket with a timeout.
`COALESCE_TEST_COMMAND` (default: this interpreter with `-m coalesce`) names another build to test.
"""
