"""The pure core: bytes in, bytes out. No trio, no sockets, no clock, no logging and not one `async` in here.

What the core needs of the outside is handed to it: callables to write with, and the time as an argument.
A lint rule (`tests/core/test_purity.py`) holds this package to it.
"""
