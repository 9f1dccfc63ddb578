"""Every setting, declared once: for the command line, the environment, the file, `--print-config` and README's table.

What a value comes from, the first that there is: flag, environment, file (`config_file.py`), default (`config.py`).
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote_from_bytes

import click

from coalesce.config import (
    EMBEDDED,
    Config,
    TcpAddress,
    UnixAddress,
    Upstream,
    parse_address,
    parse_admin,
    parse_mode,
    parse_server_name,
    parse_upstream,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    Decorated = TypeVar("Decorated", bound="Callable[..., object]")

PREFIX = "COALESCE_"
# The variable that names the file. It is no setting: a file that named another would.
CONFIG_VARIABLE = f"{PREFIX}CONFIG"
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


class _Number(click.FloatRange):
    """Infinity is one: no limit. NaN is not, though no comparison with a bound says so."""

    name = "number"  # (in what click says of one that is none)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        return number


class _Count(click.IntRange):
    """One at least. At most what those who read /metrics and /status take as it is: to many, all numbers are floats."""

    name = "whole number"

    def __init__(self) -> None:
        super().__init__(min=1)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        count: int = super().convert(value, param, ctx)
        if count > 2**53:
            self.fail("it is at most 2^53, as those who read /metrics know no larger one", param, ctx)
        return count


def _upstream(text: str) -> Upstream | str:
    return EMBEDDED if text == EMBEDDED else parse_upstream(text)


FILE = _File(dir_okay=False)
ADMIN = _Parsed("address", parse_admin)
_ADDRESS = _Parsed("address", parse_address)
_MODE = _Parsed("mode", parse_mode)
_COUNT = _Count()
SECONDS = _Number(min=0)
SECONDS_OF_AN_HOUR = _Number(min=0, max=3600)
_SOME_SECONDS = _Number(min=0, min_open=True)
_SILENCE = _Number(min=0.1, max=3600)  # what the kernel's timers can keep


@dataclass(frozen=True)
class Option:
    """One setting. What is in backquotes is so in README alone."""

    name: str  # of the field of Config
    kind: click.ParamType[Any] | None  # None: on or off
    help: str  # one sentence
    more: str = ""  # how it goes on in README
    default: str = ""  # in words, where Config's own says nothing
    several: bool = False  # may be given more than once

    @property
    def key(self) -> str:
        """In the file."""
        return self.name.replace("_", "-")

    @property
    def flag(self) -> str:
        return f"--{self.key}"

    @property
    def variable(self) -> str:
        return f"{PREFIX}{self.name.upper()}"

    @property
    def default_value(self) -> Any:
        """None where there is none, and where that is the default."""
        value = _DEFAULTS[self.name]
        return None if value is dataclasses.MISSING else value

    def default_in_words(self) -> str:
        return self.default or str(plain(self.default_value))

    def declared(self) -> Callable[[Decorated], Decorated]:
        """As a decorator of click's."""
        sentence = self.help.replace("`", "")
        if self.kind is None:
            return click.option(self.flag, is_flag=True, envvar=self.variable, help=f"{sentence}.")
        shown = f"  [default: {self.default}]" if self.default and self.default not in {"none", "required"} else ""
        return click.option(
            self.flag,
            type=self.kind,
            default=None if self.several else self.default_value,
            multiple=self.several,
            show_default=not self.default,
            envvar=self.variable,
            help=f"{sentence}.{shown}",
            metavar="NUMBER" if isinstance(self.kind, click.IntRange | click.FloatRange) else None,
        )


SECTIONS: dict[str, tuple[Option, ...]] = {
    "The upstream": (
        Option(
            "upstream",
            _Parsed("address", _upstream),
            "`host[:port]`, `redis://[user[:password]@]host[:port][/db]`, `rediss://...` (TLS), `unix:///path`, "
            "or `embedded` for a private Redis",
            default="required",
        ),
        Option(
            "upstream_password_file",
            FILE,
            "Its first line is coalesce's own password at the upstream",
            ". It is read for each new connection. The user is the URL's: `redis://user@host`",
            default="none",
        ),
        Option(
            "upstream_wait",
            SECONDS,
            "Seconds that requests wait for the next connection after an upstream connection is lost, and for a lease",
        ),
        Option(
            "start_timeout",
            SECONDS,
            "Seconds to go on trying at the start while the upstream can't be reached",
            "; 0: one attempt. What does not pass by itself (a password or a certificate is refused) ends it at once",
        ),
        Option(
            "connect_timeout",
            _SOME_SECONDS,
            "Seconds for an attempt to connect to the upstream, and for a client's TLS handshake",
        ),
        Option(
            "max_dials", _SOME_SECONDS, "Attempts to connect to the upstream in a second", ", beyond a burst of 100"
        ),
        Option(
            "upstream_silence",
            _SILENCE,
            "Seconds without a sign of life from the upstream's host until its connections are given up",
        ),
    ),
    "TLS to the upstream": (
        Option(
            "upstream_ca",
            FILE,
            "File of the authorities that may have signed the upstream's certificate",
            default="the system's",
        ),
        Option("upstream_cert", FILE, "Certificate to show to the upstream", default="none"),
        Option("upstream_key", FILE, "Its key", default="none"),
        Option(
            "upstream_sni",
            _Parsed("name", parse_server_name),
            "Name that the upstream is asked for by, and that its certificate has to be for",
            default="the host",
        ),
        Option(
            "tls_insecure",
            None,
            "Do not verify the upstream's certificate",
            ": whoever is on the way can read and change everything",
        ),
    ),
    "Clients": (
        Option(
            "listen",
            _ADDRESS,
            "`host:port` (port 0 picks one) or `unix:///path`; repeatable",
            ". Of a name: each address that this host has. In the environment: separated by spaces; in the file: a "
            "list. What is given replaces the default",
            default="127.0.0.1:6380",
            several=True,
        ),
        Option(
            "socket_mode",
            _MODE,
            "Mode of unix sockets, as in `0660`",
            ". Who may write to one may connect",
            default="by the umask",
        ),
        Option(
            "client_password_file",
            FILE,
            "Clients have to authenticate to coalesce, each with one of its lines",
            default="none",
        ),
        Option(
            "unprotected",
            None,
            "Let whoever reaches a TCP listener use what only coalesce has",
            ": credentials, or access to the upstream",
        ),
        Option(
            "tls_cert",
            FILE,
            "Certificate of the TCP listeners, which then speak TLS",
            ", all of them, and nothing else; unix sockets stay plain",
            default="none",
        ),
        Option("tls_key", FILE, "Its key", default="none"),
        Option(
            "tls_client_ca",
            FILE,
            "File of authorities: each client has to show a certificate that one of them has signed",
            default="none",
        ),
        Option(
            "client_silence",
            _SILENCE,
            "Seconds until a client whose host is silent is given up",
            ", while something sent to it is not acknowledged, or while the client has a connection of its own or "
            "waits for one",
        ),
    ),
    "Limits": (
        Option(
            "max_clients",
            _COUNT,
            "Clients at a time; one more is refused as Redis does",
            ". Each takes a file descriptor, and coalesce raises its limit as far as it may",
        ),
        Option(
            "max_lanes",
            _COUNT,
            "Shared upstream connections, one for each user, database and protocol version",
            ". Clients beyond that get a connection each; with `--client-password-file`, only users whose password was "
            "right count, and never those with a password of coalesce's",
        ),
        Option(
            "max_leases",
            _COUNT,
            "Connections of a client's own, lent or kept, at a time",
            ". Who needs one more waits for `--upstream-wait`",
        ),
        Option(
            "lane_limit",
            _COUNT,
            "Requests owed on one upstream connection before its clients must wait",
            ". What one read of each client brings may come on top",
        ),
        Option(
            "client_limit",
            _COUNT,
            "Requests owed to one client from which on it is not read",
            ". What one read brings may come on top",
        ),
        Option(
            "outbox_limit",
            _COUNT,
            "Bytes of replies kept for a client that does not read",
            ", as a plain number. At half of it, it is not read from either; beyond, it is closed",
        ),
        Option(
            "clients_memory",
            _COUNT,
            "Bytes held for all clients together; beyond, those that hold most are closed",
            ", one after the other: see below",
        ),
    ),
    "Operation": (
        Option("admin", ADMIN, "`host:port` of HTTP for operators (status page, probes, metrics), or `off`"),
        Option("readiness_upstream", None, "`/readiness` fails while there is no upstream"),
        Option(
            "sigterm_delay",
            SECONDS,
            "Seconds after SIGTERM in which clients are served as before, and let in",
            ", for an application that is told to end at the same time; `/readiness` fails meanwhile. A second signal "
            "drains at once",
        ),
        Option(
            "drain_timeout",
            SECONDS,
            "Seconds to finish what is owed after that, or after SIGINT",
            ". A second signal ends at once",
        ),
    ),
    "The log": (
        Option("log_format", click.Choice(["human", "json"]), "Lines for people, or a JSON object each"),
        Option(
            "log_level", click.Choice(["debug", "info", "warning", "error"]), "What is below it is left out of the log"
        ),
        Option(
            "trace",
            None,
            "Print all conversations to standard output, as transcripts without keys and values",
            ": `tests/transcripts` says how to read them",
        ),
        Option("trace_values", None, "The same with keys and values", "; passwords are never shown"),
    ),
}
OPTIONS = {option.name: option for options in SECTIONS.values() for option in options}


def declare(options: Iterable[Option]) -> Callable[[Decorated], Decorated]:
    """A command has these, in this order."""

    def decorate(function: Decorated) -> Decorated:
        for option in reversed(list(options)):
            function = option.declared()(function)
        return function

    return decorate


# Values, as they are given


def plain(value: Any) -> Any:
    """A setting's value as it would be given, without a password: for TOML, JSON and README. None stays None."""
    if isinstance(value, tuple):
        return [plain(each) for each in value]
    if isinstance(value, Upstream):
        return _upstream_url(value)
    return str(value) if isinstance(value, TcpAddress | UnixAddress) else value


def _upstream_url(upstream: Upstream) -> str:
    if not upstream.tls and not upstream.database and upstream.username is None and upstream.password is None:
        return str(upstream.address)
    user = "" if upstream.username is None else f"{quote_from_bytes(upstream.username, safe='')}@"
    database = f"/{upstream.database}" if upstream.database else ""
    return f"redis{'s' if upstream.tls else ''}://{user}{upstream.address}{database}"


def as_given(option: Option, value: Any) -> Any:
    """The same for one whose way of writing the value's type does not tell."""
    if value is None:
        return "off" if option.kind is ADMIN else None
    return f"{value:04o}" if option.kind is _MODE else plain(value)


def settings_in_force(config: Config) -> dict[str, Any]:
    """Each flag's value as it would be given, in what JSON knows; None where there is none. Without secrets."""
    settings = {option.key: as_given(option, getattr(config, name)) for name, option in OPTIONS.items()}
    return {key: str(value) if value == math.inf else value for key, value in settings.items()}


# Names that are none


def nearest(name: str, known: Iterable[str]) -> str:
    """The one that was meant, as far as that can be told."""
    import difflib  # noqa: PLC0415 (for those who mistype)

    return difflib.get_close_matches(name, list(known), n=1, cutoff=0)[0]


# A Service called `coalesce` gives every container of its namespace COALESCE_SERVICE_HOST, COALESCE_PORT,
# COALESCE_PORT_6380_TCP_ADDR and so on (Kubernetes, and Docker's links before it), one called `coalesce-x` the same
# with COALESCE_X_. <https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables>
_OF_A_SERVICE = re.compile(
    r"(COALESCE(?:_[A-Z0-9_]+?)??)_"
    r"(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT(?:_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?)"
)


def unknown_variables(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Those that look like a setting of ours and are none, each with the nearest that is one."""
    known = [option.variable for option in OPTIONS.values()] + [CONFIG_VARIABLE]
    for name in environment:
        if not name.startswith(PREFIX) or name in known or _is_of_a_service(name, environment):
            continue
        # (What is no name at all is not repeated: it may be something that was meant to be a value.)
        yield name if re.fullmatch(r"[A-Z0-9_]{1,60}", name) else f"{PREFIX}..", nearest(name, known)


def _is_of_a_service(name: str, environment: Mapping[str, str]) -> bool:
    found = _OF_A_SERVICE.fullmatch(name)
    # With more in the name it may be a mistake (COALESCE_LISTEN_PORT), unless there is such a Service.
    return found is not None and (found[1] == "COALESCE" or f"{found[1]}_SERVICE_HOST" in environment)
