"""Command line -> Config -> trio.run.

Exit codes: 0 after a clean drain; 1 when coalesce could not start, or a drain was cut short; 2 for a wrong flag.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import re
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import click
import trio

from coalesce.config import (
    EMBEDDED,
    Address,
    Config,
    TcpAddress,
    Upstream,
    contradiction,
    parse_address,
    parse_admin,
    parse_mode,
    parse_server_name,
    parse_upstream,
)
from coalesce.downstream import open_listeners
from coalesce.embedded import EmbeddedError, embedded_server
from coalesce.logs import hide_texts_of_exceptions, logging_to_stderr
from coalesce.server import Server, StartError, Summary

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

log = logging.getLogger("coalesce")
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Config)}


class _Parsed(click.ParamType[object]):
    """A value read by a function that raises ValueError."""

    def __init__(self, name: str, parse: Callable[[str], object]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> object:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as problem:
            self.fail(str(problem), param, ctx)


class _File(click.Path):
    """Whether it can be used is seen when it is. But a variable that was not set is no file, and guards nothing."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("is empty", param, ctx)
        return super().convert(value, param, ctx)


_FILE = _File(dir_okay=False)


class _Number(click.FloatRange):
    """Infinity is one: no limit. NaN is not, though no comparison with a bound says so."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        return number


def _upstream(text: str) -> Upstream | str:
    return EMBEDDED if text == EMBEDDED else parse_upstream(text)


def _option(name: str, kind: click.ParamType[Any], what: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    default = _DEFAULTS[name.removeprefix("--").replace("-", "_")]
    return click.option(name, type=kind, default=default, show_default=True, help=what)


@click.command(
    context_settings={
        "auto_envvar_prefix": "COALESCE",
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "allow_extra_args": True,  # to refuse them without repeating them
    },
    epilog="Every option can be set by an environment variable: COALESCE_UPSTREAM, COALESCE_MAX_CLIENTS, ... "
    "(several listeners: separated by spaces).",
)
@click.option(
    "--upstream",
    type=_Parsed("address", _upstream),
    required=True,
    metavar="ADDRESS",
    help="host:port, redis://[user[:password]@]host[:port][/db], rediss://... for TLS, unix:///path, "
    "or 'embedded' for a private Redis.",
)
@click.option(
    "--listen",
    type=_Parsed("address", parse_address),
    multiple=True,
    metavar="ADDRESS",
    help="host:port (port 0 picks one) or unix:///path; repeatable.  [default: 127.0.0.1:6380]",
)
@_option("--admin", _Parsed("address", parse_admin), "host:port of HTTP for operators (probes, metrics), or 'off'.")
@click.option("--readiness-upstream", is_flag=True, help="/readiness fails while there is no upstream.")
@_option("--socket-mode", _Parsed("mode", parse_mode), "Mode of unix sockets, as in 0660.  [default: by the umask]")
@_option("--upstream-password-file", _FILE, "Its first line is coalesce's own password at the upstream.")
@_option("--client-password-file", _FILE, "Clients have to authenticate with one of its lines.")
@click.option("--unprotected", is_flag=True, help="Let whoever reaches a TCP listener use what only coalesce has.")
@_option("--max-clients", click.IntRange(min=1), "Clients at a time; one more is refused as Redis does.")
@_option("--lane-limit", click.IntRange(min=1), "Requests owed on one upstream connection before clients must wait.")
@_option("--client-limit", click.IntRange(min=1), "Requests owed to one client before it is not read from.")
@_option("--max-leases", click.IntRange(min=1), "Connections lent to one client each, at a time.")
@_option("--max-lanes", click.IntRange(min=1), "Shared upstream connections, one for each identity.")
@_option("--outbox-limit", click.IntRange(min=1), "Bytes of replies kept for a client that does not read.")
@_option("--clients-memory", click.IntRange(min=1), "Bytes held for all clients; those that hold most are closed.")
@_option("--upstream-wait", _Number(min=0), "Seconds that requests wait for a lost upstream.")
@_option(
    "--connect-timeout",
    _Number(min=0, min_open=True),
    "Seconds for an attempt to connect, and for a TLS handshake.",
)
@_option(
    "--upstream-silence", _Number(min=0.1, max=3600), "Seconds until an upstream whose host is silent is given up."
)
@_option("--client-silence", _Number(min=0.1, max=3600), "Seconds until a client whose host is silent is given up.")
@_option("--max-dials", _Number(min=0, min_open=True), "Attempts to connect in a second.")
@_option("--drain-timeout", _Number(min=0), "Seconds to finish what is owed after SIGTERM or SIGINT.")
@_option("--upstream-ca", _FILE, "Authorities that the upstream's certificate is verified by.  [default: the system's]")
@_option("--upstream-cert", _FILE, "Certificate to show to the upstream.")
@_option("--upstream-key", _FILE, "Its key.")
@_option("--upstream-sni", _Parsed("name", parse_server_name), "Name of the upstream in its certificate.")
@click.option("--tls-insecure", is_flag=True, help="Do not verify the upstream's certificate.")
@_option("--tls-cert", _FILE, "Certificate of the TCP listeners, which then speak TLS; unix sockets stay plain.")
@_option("--tls-key", _FILE, "Its key.")
@_option("--tls-client-ca", _FILE, "Authorities of clients' certificates, which then are required.")
@_option("--log-format", click.Choice(["human", "json"]), "Lines of the log for people, or an object each.")
@_option("--log-level", click.Choice(["debug", "info", "warning", "error"]), "What the log leaves out is below it.")
@click.option("--trace", is_flag=True, help="Print the conversation to standard output, without keys and values.")
@click.option("--trace-values", is_flag=True, help="The same with keys and values.")
@click.version_option(version("coalesce"), prog_name="coalesce", allow_from_autoenv=False)
def command(upstream: Upstream | str, listen: tuple[Address, ...], **more: object) -> None:
    """A transparent pipelining proxy for Redis and Valkey.

    Point clients at it, and nothing else changes: what they have in flight travels to the upstream in batches on few
    connections.
    """
    settings: dict[str, object] = dict(more)
    if listen:
        settings["listen"] = listen
    _look_at_the_command_line(click.get_current_context(), upstream)
    if problem := contradiction(upstream if isinstance(upstream, Upstream) else None, settings):
        raise click.UsageError(problem)
    form = str(settings["log_format"])
    with logging_to_stderr(str(settings["log_level"]).upper(), form):
        try:
            summary = trio.run(_run, upstream, settings)
        except (StartError, EmbeddedError) as problem:
            trouble = str(problem)
        except Exception:  # ours, whatever it is
            log.exception("a fault in coalesce ends it")
            trouble = "it could not go on: see above"
        else:
            log.info("%s", summary)
            trouble = ""
        if trouble and form == "json":
            log.error("%s", trouble)
    if trouble and form != "json":
        click.echo(f"coalesce: {trouble}", err=True)
    sys.exit(0 if not trouble and summary.clean else 1)


def _look_at_the_command_line(ctx: click.Context, upstream: Upstream | str) -> None:
    """Everybody on the host sees it, so it may have no password. Raises UsageError, which repeats nothing of it."""
    if ctx.args:
        raise click.UsageError("there are only flags, and something more was given: is it for --upstream?")
    if (
        isinstance(upstream, Upstream)
        and upstream.password is not None
        and ctx.get_parameter_source("upstream") is click.core.ParameterSource.COMMANDLINE
    ):
        raise click.UsageError(
            "--upstream with a password: ps shows the command line to everybody. Give the URL in COALESCE_UPSTREAM "
            "(/proc/PID/environ is for its owner alone), or the password in a file by --upstream-password-file"
        )


async def _run(upstream: Upstream | str, settings: dict[str, object]) -> Summary:
    async with AsyncExitStack() as stack:
        if not isinstance(upstream, Upstream):
            upstream = Upstream(await stack.enter_async_context(embedded_server()))
        config = Config(upstream, **settings)  # type: ignore[arg-type]
        server = Server(config)
        if config.admin is not None:
            await stack.enter_async_context(_administered(server, config.admin, config.readiness_upstream))
        return await server.serve()


@asynccontextmanager
async def _administered(server: Server, address: TcpAddress, readiness_upstream: bool) -> AsyncIterator[None]:
    """Within it, the server can be asked over HTTP. Raises StartError."""
    from coalesce.admin import Admin, serving  # noqa: PLC0415 (time and memory, for those who want it)

    try:
        listeners, really = open_listeners(address)
    except OSError as problem:
        raise StartError(f"can't listen on {address} (--admin): {problem.strerror or problem}") from None
    async with serving(Admin(server, readiness_upstream), listeners):
        log.info("admin on http://%s", really)
        yield


def _environment_variable(problem: click.BadParameter) -> str | None:
    """The variable that the wrong value came from, if it was not a flag."""
    ctx, param = problem.ctx, problem.param
    if ctx is None or param is None or param.name is None:
        return None
    if ctx.get_parameter_source(param.name) is not click.core.ParameterSource.ENVIRONMENT:
        return None
    return f"{ctx.auto_envvar_prefix}_{param.name.upper()}"


def _like_a_flag(text: str) -> str:
    return re.sub(r"[^a-z-].*", "..", text, flags=re.DOTALL)


def main() -> None:
    """The console script. What is wrong with the command line is said in one line, like everything that goes wrong."""
    hide_texts_of_exceptions()
    try:
        command.main(standalone_mode=False)
    except click.ClickException as problem:
        if isinstance(problem, click.BadParameter):
            problem.param_hint = _environment_variable(problem) or problem.param_hint
        if isinstance(problem, click.NoSuchOption):
            # `--upstream:redis://..` is one, as a whole.
            problem = click.NoSuchOption(_like_a_flag(problem.option_name), possibilities=problem.possibilities)
        click.echo(f"coalesce: {problem.format_message()} (see coalesce --help)", err=True)
        sys.exit(problem.exit_code)
    except click.Abort:  # Control-C before anything runs
        sys.exit(1)


if __name__ == "__main__":
    main()
