"""Passwords in files: coalesce's own at the upstream, and those that clients authenticate with to coalesce.

No text in here has a password.
"""

from __future__ import annotations

import hmac
import logging
from pathlib import Path

from coalesce.tls import signature

log = logging.getLogger("coalesce")

# Bytes. A file that is longer is not one of passwords.
_LONGEST = 1024 * 1024


class PasswordFileError(Exception):
    """A file that can't be used, and why, in a few words."""


def read_password(file: str) -> bytes:
    """The first line, without its line end. Raises PasswordFileError, whose text does not name the file."""
    password = _read(file).partition(b"\n")[0].removesuffix(b"\r")
    if not password:
        raise PasswordFileError("the first line of the file is empty")
    return password


class ClientPasswords:
    """The lines of a file, each a password; read again when it changes.

    A file that can't be used then changes nothing, and is said once.
    """

    def __init__(self, file: str) -> None:
        """Raises PasswordFileError."""
        self._file = file
        self._seen = signature((file,))  # before reading it: what changes meanwhile is seen to have changed
        self._passwords = self._load()

    def __call__(self, password: bytes) -> bool:
        """Whether it is one of those. How long that takes tells nothing but how many there are, and how long."""
        seen = signature((self._file,))
        if seen != self._seen:
            self._seen = seen
            try:
                self._passwords = self._load()
            except PasswordFileError as problem:
                log.warning("%s: those known stay in use", problem)
            else:
                log.info("%s read again", self._file)
        return any([hmac.compare_digest(password, each) for each in self._passwords])  # noqa: C419 (all of them)

    def _load(self) -> list[bytes]:
        try:
            lines = [line.removesuffix(b"\r") for line in _read(self._file).split(b"\n")]
        except PasswordFileError as problem:
            raise PasswordFileError(f"can't use the clients' passwords in {self._file}: {problem}") from None
        passwords = [line for line in lines if line]
        if not passwords:
            raise PasswordFileError(f"can't use the clients' passwords in {self._file}: there is none")
        return passwords


def _read(file: str) -> bytes:
    try:
        with Path(file).open("rb") as opened:
            data = opened.read(_LONGEST + 1)
    except OSError as problem:
        raise PasswordFileError(f"the file can't be read: {problem.strerror or problem}") from None
    if len(data) > _LONGEST:
        raise PasswordFileError("the file is too long")
    return data
