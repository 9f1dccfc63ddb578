"""The file of settings, in TOML: what `--config` reads and `--print-config` writes.

Its keys are the flags' names, with - or _. No error text repeats a value: it may be a password.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coalesce.cli.options import OPTIONS, SECTIONS, Option, as_given, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Bytes. A file that is longer is not one of settings.
_LONGEST = 1024 * 1024
# Of a whole number, by TOML's own rules. (Python takes any, and then writes none that has over 4,300 digits.)
_BITS = 64


class ConfigFileError(Exception):
    """What is wrong with the file, in one line that names it."""


@dataclass(frozen=True)
class ConfigFile:
    """What it says, by the names of Config's fields; types are right, values have not been looked at."""

    path: str
    values: dict[str, Any]
    everybody_may_read: bool


def read_config_file(path: str) -> ConfigFile:
    """Raises ConfigFileError."""
    # (What has been taken for the file by mistake may be an upstream.)
    shown = "the file of --config" if "://" in path else path
    try:
        with Path(path).open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            data = opened.read(_LONGEST + 1)
    except OSError as problem:
        raise ConfigFileError(f"can't read {shown}: {problem.strerror or problem}") from None
    if len(data) > _LONGEST:
        raise ConfigFileError(f"{shown} is too long for a file of settings")
    try:
        return ConfigFile(path, _checked(_parsed(data)), bool(mode & stat.S_IROTH))
    except ConfigFileError as problem:
        raise ConfigFileError(f"{shown}: {problem}") from None


def _parsed(data: bytes) -> dict[str, Any]:
    import tomllib  # noqa: PLC0415 (for those who have such a file)

    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError:
        raise ConfigFileError("not TOML: it is not in UTF-8") from None
    except RecursionError:
        raise ConfigFileError("not TOML of settings: nested too deeply") from None
    except ValueError as problem:  # (also of a number with thousands of digits)
        found = re.search(r"\(at (line [0-9]+, column [0-9]+|end of document)\)$", str(problem))
        raise ConfigFileError(f"not TOML{f': see {found[1]}' if found else ''}") from None


def _checked(document: dict[str, Any]) -> dict[str, Any]:
    by_key = {option.key: option for option in OPTIONS.values()}
    values: dict[str, Any] = {}
    for given, value in document.items():
        option = by_key.get(given.replace("_", "-"))
        if option is None:
            # (What is no name at all is not repeated.)
            shown = repr(given) if re.fullmatch(r"[A-Za-z0-9_-]{1,60}", given) else "a key"
            raise ConfigFileError(f"{shown} is no setting; the nearest is {nearest(given, by_key)!r}")
        if option.name in values:
            raise ConfigFileError(f"{option.key} is there twice, with - and with _")
        values[option.name] = _of_the_right_type(option, value)
    return values


def _of_the_right_type(option: Option, value: Any) -> Any:
    what, is_right = _type_of(option)
    if option.several:
        several = [value] if isinstance(value, str) else value
        if isinstance(several, list) and several and all(map(is_right, several)):
            return several
        raise ConfigFileError(f"{option.key} is to be {what}, or a list of such")
    if not is_right(value):
        raise ConfigFileError(f"{option.key} is to be {what}")
    return value


def _type_of(option: Option) -> tuple[str, Callable[[Any], bool]]:
    """In words, and a test: `true` is no number, nor is "5", nor 5.5 a count."""
    if option.kind is None:
        return "true or false", lambda value: isinstance(value, bool)
    if isinstance(option.kind, click.IntRange):
        return "a whole number", lambda value: type(value) is int and value.bit_length() < _BITS
    if isinstance(option.kind, click.FloatRange):
        return "a number", _is_number
    return "a string", lambda value: isinstance(value, str) and "\0" not in value  # (which no path may have)


def _is_number(value: Any) -> bool:
    if type(value) not in {int, float}:
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True


@dataclass(frozen=True)
class InForce:
    """A setting's value, and where it came from."""

    value: Any
    source: str
    has_password: bool = False


def written(settings: Mapping[str, InForce]) -> str:
    """All of them, by names of Config's fields. What it can't say is in comments: secrets, and that there is none."""
    lines: list[str] = []
    for section, options in SECTIONS.items():
        lines += ["", f"# {section}"] if lines else [f"# {section}"]
        lines += [_line(option, settings[option.name]) for option in options]
    return "\n".join(lines)


def _line(option: Option, setting: InForce) -> str:
    import tomli_w  # noqa: PLC0415 (for those who ask)

    value = as_given(option, setting.value)
    if value is None or value == []:
        words = option.default_in_words()
        return f"# {option.key} is not set  # {words if words == 'required' else f'{setting.source}: {words}'}"
    try:
        values = [tomli_w.dumps({"x": each}).removeprefix("x = ").strip() for each in value] if option.several else []
        text = f"[{', '.join(values)}]" if option.several else tomli_w.dumps({"x": value}).removeprefix("x = ").strip()
        text.encode()
    except UnicodeEncodeError:
        return f"# {option.key} is no text  # {setting.source}"
    if setting.has_password:
        return f"# {option.key} = {text}  # {setting.source}; its password is left out, so it is for you to give"
    return f"{option.key} = {text}  # {setting.source}"
