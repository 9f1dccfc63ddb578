"""Command line -> Config -> trio.run, and the commands beside it.

Exit codes, of all commands: 2 for a wrong setting; 130 when it was interrupted before there was anything to drain; and

    coalesce            0 after a clean drain, or when it was told to end before it had started; 1 when it could not
                        start, or a drain was cut short
    coalesce check      0 when the upstream can be used; 1 when it can't, with one line why
    coalesce wait       0 when it is ready; 1 when it is not in time
    coalesce top        0; 1 when nobody could be asked for the one frame that was wanted
    coalesce pause      0 when it is paused, and what was begun is finished; 3 when it is paused, and something of it is
                        not; 1 when it can't be asked, or is not paused
    coalesce resume     0 when it is not paused any more; 1 when it can't be asked
    coalesce shutdown   0 when it has ended; 1 when nobody could be asked, or it has not ended in time
"""

from __future__ import annotations

import logging
import os
import re
import sys
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import click
import trio

from coalesce.build import said
from coalesce.cli import run as running
from coalesce.cli.config_file import ConfigFile, ConfigFileError, InForce, read_config_file, written
from coalesce.cli.embedded import EmbeddedError
from coalesce.cli.options import (
    CONFIG_VARIABLE,
    FILE,
    OPTIONS,
    SECONDS,
    SECONDS_OF_AN_HOUR,
    SECTIONS,
    declare,
    unknown_variables,
)
from coalesce.config import TcpAddress, Upstream, contradiction
from coalesce.logs import CONTROLS, hide_texts_of_exceptions, logging_to_stderr, write
from coalesce.server import StartError

if TYPE_CHECKING:
    from collections.abc import Callable

    Answer = TypeVar("Answer")

log = logging.getLogger("coalesce")

_CONTEXT = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
    "allow_extra_args": True,  # to refuse them without repeating them
}
_EPILOG = (
    "Every setting can be given by an environment variable, too: COALESCE_UPSTREAM, COALESCE_MAX_CLIENTS, ... "
    '(several listeners: separated by spaces); and in the file of --config: upstream = "...", max-clients = 500, ... '
    "A flag goes before the environment, and that before the file."
)


class _Command(click.Command):
    """Its help has settings by section."""

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        option = super().get_help_option(ctx)
        if option is not None:
            option.callback = _show_help
        return option

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        records = {each.name: record for each in self.get_params(ctx) if (record := each.get_help_record(ctx))}
        for section, options in SECTIONS.items():
            if of_section := [records.pop(option.name) for option in options if option.name in records]:
                with formatter.section(section):
                    formatter.write_dl(of_section)
        with formatter.section("Options"):
            formatter.write_dl(list(records.values()))


class _Run(_Command):
    """Its help has the other commands, too."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(80)) for name, command in COMMANDS.items()])


def _show_help(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    del param
    if value:
        _say(ctx.get_help())
        ctx.exit()


def _read_the_file(ctx: click.Context, param: click.Parameter, path: str | None) -> None:
    """What it says goes before the defaults. Raises UsageError."""
    del param
    if path is None:
        return
    try:
        file = read_config_file(path)
    except ConfigFileError as problem:
        raise click.UsageError(str(problem)) from None
    ctx.meta[_FILE_READ] = file
    ctx.default_map = file.values


_FILE_READ = f"{__name__}.file"
_config = click.option(
    "--config",
    type=FILE,
    envvar=CONFIG_VARIABLE,
    is_eager=True,  # it has defaults of the others
    expose_value=False,
    callback=_read_the_file,
    help="File of settings, in TOML: keys are flags' names.",
)


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    del param
    if value:
        _say(said())
        ctx.exit()


_version = click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version, the commit it was built from, and what it runs on, and exit.",
)


@click.command(cls=_Run, context_settings=_CONTEXT, epilog=_EPILOG)
@declare(OPTIONS.values())
@_config
@click.option("--print-config", is_flag=True, help="Print the settings in force, as such a file, and exit.")
@_version
def run(print_config: bool, **given: Any) -> None:
    """A transparent pipelining proxy for Redis and Valkey.

    Point clients at it, and nothing else changes: what they have in flight travels to the upstream in batches on few
    connections.
    """
    ctx = click.get_current_context()
    if print_config and given["upstream"] is None:
        _look_at_what_is_no_flag(ctx)
        _say(_in_force(ctx, given))
        return
    upstream, settings = _settings(ctx, dict(given))
    if print_config:
        _say(_in_force(ctx, given))
        return
    form = str(settings["log_format"])
    with logging_to_stderr(_level(settings), form):
        _warn()
        try:
            summary = trio.run(running.run, upstream, settings)
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
        _complain(trouble)
    sys.exit(0 if not trouble and summary.clean else 1)


@click.command(cls=_Command, context_settings=_CONTEXT)
@declare(OPTIONS.values())
@_config
def check(**given: Any) -> None:
    """Dial the upstream, and say what is found there.

    Its version, round trip, TLS and certificate, the user that coalesce is there, and the limits that matter to shared
    connections. With the settings that a run would have, whose files are looked at, too. Exit codes: 0; 1 when it can't
    be used, with one line why.
    """
    upstream, settings = _settings(click.get_current_context(), given)
    with logging_to_stderr(_level(settings), str(settings["log_format"])):
        _warn()
        try:
            found = trio.run(running.check, upstream, settings)
        except (StartError, EmbeddedError) as problem:
            _complain(str(problem))
            sys.exit(1)
    _say(found)


# The exit code of a pause in which something is not finished.
_NOT_FINISHED = 3

_of_a_running_one = declare(
    [replace(OPTIONS["admin"], help="`host:port` of the admin HTTP of the coalesce that is asked")]
)


def _within(seconds: float) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(
        "--timeout", type=SECONDS, default=seconds, show_default=True, metavar="NUMBER", help="Seconds it may take."
    )


@click.command(cls=_Command, context_settings=_CONTEXT)
@_of_a_running_one
@_config
@_within(30.0)
@click.option(
    "--for", "probe", type=click.Choice(["readiness", "startup"]), default="readiness", show_default=True,
    help="Which probe has to succeed.",
)  # fmt: skip
def wait(admin: TcpAddress | None, timeout: float, probe: str) -> None:
    """Wait until a coalesce is ready for clients. Exit codes: 0; 1 when it is not in time."""
    from coalesce.cli.ask import wait_until_ready  # noqa: PLC0415 (for those who ask)

    _ask(wait_until_ready, _asked(admin), probe, timeout)


@click.command(cls=_Command, context_settings=_CONTEXT)
@_of_a_running_one
@_config
@click.option(
    "--timeout", type=SECONDS_OF_AN_HOUR, default=10.0, show_default=True, metavar="NUMBER",
    help="Seconds to wait for what was begun.",
)  # fmt: skip
def pause(admin: TcpAddress | None, timeout: float) -> None:
    """Have a coalesce hold commands, so that its upstream can be replaced.

    What was begun is finished. Clients wait, until coalesce resume: also when this was interrupted, or nobody saw its
    answer. Exit codes: 0 when all is finished; 3 when it is paused, and something is not finished; 1 when it can't be
    asked, or is not paused.
    """
    from coalesce.cli.ask import pause as ask_to_pause  # noqa: PLC0415 (for those who ask)

    line, finished = _ask(ask_to_pause, _asked(admin), timeout)
    _say(line)
    sys.exit(0 if finished else _NOT_FINISHED)


@click.command(cls=_Command, context_settings=_CONTEXT)
@_of_a_running_one
@_config
def resume(admin: TcpAddress | None) -> None:
    """Have a coalesce that is paused go on. Exit codes: 0, also when it was not paused; 1 when it can't be asked."""
    from coalesce.cli.ask import resume as ask_to_resume  # noqa: PLC0415 (for those who ask)

    _say(_ask(ask_to_resume, _asked(admin)))


@click.command(cls=_Command, context_settings=_CONTEXT)
@_of_a_running_one
@_config
@_within(30.0)
def shutdown(admin: TcpAddress | None, timeout: float) -> None:
    """Have a coalesce drain and end. Exit codes: 0 when it has; 1 when it can't be asked, or takes longer."""
    from coalesce.cli.ask import shut_down  # noqa: PLC0415 (for those who ask)

    _ask(shut_down, _asked(admin), timeout)


@click.command(cls=_Command, context_settings=_CONTEXT)
@_of_a_running_one
@_config
@click.option("--once", is_flag=True, help="Print one frame and end; as where standard output is no terminal.")
def top(admin: TcpAddress | None, once: bool) -> None:
    """Show what a coalesce does, live; q ends it. Exit codes: 0; 1 when one frame can't be had."""
    from coalesce.cli.top import top as show  # noqa: PLC0415 (for those who look)

    _ask(show, _asked(admin), once)


COMMANDS: dict[str, click.Command] = {
    "check": check,
    "wait": wait,
    "top": top,
    "pause": pause,
    "resume": resume,
    "shutdown": shutdown,
}


def _asked(admin: TcpAddress | None) -> TcpAddress:
    """Raises UsageError."""
    _look_at_what_is_no_flag(click.get_current_context())
    if admin is None:
        raise click.UsageError("there is nobody to ask: the admin is off")
    if not admin.port:
        raise click.UsageError("--admin is to say where the coalesce to ask has its admin HTTP: host:port")
    return admin


def _ask(question: Callable[..., Answer], *arguments: object) -> Answer:
    """Ends with 1 where there is no answer."""
    from coalesce.cli.ask import AskError  # noqa: PLC0415 (for those who ask)

    try:
        return question(*arguments)
    except AskError as problem:
        _complain(str(problem))
        sys.exit(1)


def _settings(ctx: click.Context, given: dict[str, Any]) -> tuple[Upstream | str, dict[str, object]]:
    """The upstream, and the other fields of Config. Raises UsageError."""
    upstream: Upstream | str | None = given.pop("upstream")
    settings: dict[str, object] = given
    if not settings["listen"]:
        del settings["listen"]
    _look_at_what_is_no_flag(ctx)
    if upstream is None:
        raise click.MissingParameter(ctx=ctx, param_hint="'--upstream'", param_type="option")
    _look_for_a_password(ctx, upstream)
    if problem := contradiction(upstream if isinstance(upstream, Upstream) else None, settings):
        raise click.UsageError(problem)
    return upstream, settings


def _level(settings: dict[str, object]) -> str:
    return str(settings["log_level"]).upper()


def _look_at_what_is_no_flag(ctx: click.Context) -> None:
    """Raises UsageError, which repeats nothing of it: it may be a URL with a password."""
    for name in COMMANDS:
        if name in ctx.args[:1]:
            raise click.UsageError(f"a command comes first: coalesce {name} ...")
    if ctx.args:
        commands = ", ".join(COMMANDS)
        raise click.UsageError(
            f"what was given is neither a flag nor one of {commands}: is it for --upstream?"
        )


def _look_for_a_password(ctx: click.Context, upstream: Upstream | str) -> None:
    """Where everybody on the host sees it, there may be none. Raises UsageError."""
    if not isinstance(upstream, Upstream) or upstream.password is None:
        return
    source = ctx.get_parameter_source("upstream")
    if source is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError(
            "--upstream with a password: ps shows the command line to everybody. Give the URL in COALESCE_UPSTREAM "
            "(/proc/PID/environ is for its owner alone), or the password in a file by --upstream-password-file"
        )
    file: ConfigFile | None = ctx.meta.get(_FILE_READ)
    if source is click.core.ParameterSource.DEFAULT_MAP and file is not None and file.everybody_may_read:
        raise click.UsageError(
            f"{file.path} has a password, and everybody on this host may read it: take that right away (chmod o-r), "
            "or give the password in a file by --upstream-password-file"
        )


def _in_force(ctx: click.Context, given: dict[str, Any]) -> str:
    """The settings as a file that says so."""
    settings = {}
    for name, option in OPTIONS.items():
        source = ctx.get_parameter_source(name)
        assert source is not None
        value = given[name] if given[name] != () else option.default_value
        has_password = isinstance(value, Upstream) and value.password is not None
        settings[name] = InForce(value, _SOURCES[source], has_password)
    file: ConfigFile | None = ctx.meta.get(_FILE_READ)
    read = "" if file is None else f"# File: {file.path!a}\n\n"
    return f"{read}{written(settings)}"


_SOURCES = {
    click.core.ParameterSource.COMMANDLINE: "flag",
    click.core.ParameterSource.ENVIRONMENT: "environment",
    click.core.ParameterSource.DEFAULT_MAP: "file",
    click.core.ParameterSource.DEFAULT: "default",
}


def _say(text: str) -> None:
    """To standard output. Ends with 1 where nobody takes it."""
    try:
        click.echo(text)
    except OSError as problem:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 (what Python flushes at its end)
        _complain(f"can't write to standard output: {problem.strerror}")
        sys.exit(1)


def _complain(what: str) -> None:
    """In one line, whatever is in it (a file's name may be anything). Where nobody takes it, the exit code says it."""
    with suppress(OSError):
        write(f"coalesce: {what.translate(CONTROLS)}\n")


def _warn() -> None:
    for name, known in unknown_variables(os.environ):
        log.warning("%s in the environment is no setting of coalesce's; the nearest is %s", name, known)


def _where_it_came_from(problem: click.BadParameter) -> str | None:
    """The variable that the wrong value is from, or the file's key, if it was not a flag."""
    ctx, param = problem.ctx, problem.param
    if ctx is None or param is None or param.name is None:
        return None
    source = ctx.get_parameter_source(param.name)
    if source is click.core.ParameterSource.ENVIRONMENT:
        return str(param.envvar)
    file: ConfigFile | None = ctx.meta.get(_FILE_READ)
    if source is click.core.ParameterSource.DEFAULT_MAP and file is not None:
        return f"{OPTIONS[param.name].key} in {file.path}"
    return None


def _like_a_flag(text: str) -> str:
    return re.sub(r"[^a-z-].*", "..", text, flags=re.DOTALL)


def run_command_line() -> None:
    """What is wrong with it is said in one line, like everything that goes wrong. Ends with SystemExit."""
    hide_texts_of_exceptions()
    command: click.Command = run
    name, arguments = "coalesce", sys.argv[1:]
    if arguments and arguments[0] in COMMANDS:
        command = COMMANDS[arguments[0]]
        name, arguments = f"coalesce {arguments[0]}", arguments[1:]
    try:
        command.main(arguments, prog_name=name, standalone_mode=False)
    except click.ClickException as problem:
        if isinstance(problem, click.BadParameter):
            problem.param_hint = _where_it_came_from(problem) or problem.param_hint
        if isinstance(problem, click.NoSuchOption):
            # `--upstream:redis://..` is one, as a whole.
            problem = click.NoSuchOption(_like_a_flag(problem.option_name), possibilities=problem.possibilities)
        _complain(f"{problem.format_message()} (see {name} --help)")
        sys.exit(problem.exit_code)
    except click.Abort:
        raise KeyboardInterrupt from None
