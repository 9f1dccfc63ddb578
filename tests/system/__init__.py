"""The whole program against real Redis and Valkey servers, over real sockets.

Reading order: `wire.py` (one client's socket, where a reply ends), `processes.py` (real servers and coalesce as
processes), `conftest.py` (which of them a test gets), then the tests. `leak_oracle.py` is a program too:
`python -m tests.system.leak_oracle --replies 1000000`.

Nothing here sleeps to wait for something: a wait is a poll with a deadline or a read from a socket with a timeout.
`COALESCE_TEST_COMMAND` (default: this interpreter with `-m coalesce`) names another build to test.
"""
