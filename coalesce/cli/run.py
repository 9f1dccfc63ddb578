"""A run, of a server with its admin, or of a check; with a private upstream where none is named."""

from __future__ import annotations

import errno
import logging
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from coalesce.cli.embedded import embedded_server
from coalesce.cli.options import settings_in_force
from coalesce.config import Config, Upstream
from coalesce.listening import open_listeners
from coalesce.server import Server, StartError, Summary

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from coalesce.config import TcpAddress

log = logging.getLogger("coalesce")


async def run(upstream: Upstream | str, settings: dict[str, object]) -> Summary:
    """Raises StartError and EmbeddedError, as the check does."""
    async with _configured(upstream, settings) as config, AsyncExitStack() as stack:
        server = Server(config)
        if config.admin is not None:
            await stack.enter_async_context(_administered(server, config, config.admin))
        return await server.serve()


@asynccontextmanager
async def _administered(server: Server, config: Config, address: TcpAddress) -> AsyncIterator[None]:
    """Within it, the server can be asked over HTTP. Raises StartError."""
    from coalesce.admin.http import serving  # noqa: PLC0415 (time and memory, for those who want it)
    from coalesce.admin.routes import Admin  # noqa: PLC0415

    try:
        listeners, really = open_listeners(address)
    except OSError as problem:
        why = f"can't listen on {address} (--admin): {problem.strerror or problem}"
        if problem.errno == errno.EADDRINUSE:
            why += "; a second coalesce on a host wants another port, or --admin off"
        raise StartError(why) from None
    admin = Admin(server, config.readiness_upstream, settings_in_force(config))
    async with serving(admin, listeners):
        log.info("admin on http://%s", really)
        yield


async def check(upstream: Upstream | str, settings: dict[str, object]) -> str:
    """What the upstream is like, in lines."""
    from coalesce.cli import check as checking  # noqa: PLC0415 (for those who ask)

    async with _configured(upstream, settings) as config:
        return checking.report(await checking.check(config))


@asynccontextmanager
async def _configured(upstream: Upstream | str, settings: dict[str, object]) -> AsyncIterator[Config]:
    """`upstream` is one, or the word for a private one, which then lives as long as this."""
    async with AsyncExitStack() as stack:
        if not isinstance(upstream, Upstream):
            upstream = Upstream(await stack.enter_async_context(embedded_server()))
        yield Config(upstream, **settings)  # type: ignore[arg-type]
