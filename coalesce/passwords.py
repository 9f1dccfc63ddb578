"""Passwords in files: coalesce's own at the upstream, and those that clients authenticate with to coalesce.

No text in here has a password.
"""

from __future__ import annotations

import hmac
from pathlib import Path

from coalesce.watched import UnusableFileError, WatchedFiles

# Bytes. A file that is longer is not one of passwords.
_LONGEST = 1024 * 1024


class PasswordFileError(UnusableFileError):
    """A file that can't be used, and why, in a few words."""


def read_password(file: str) -> bytes:
    """The first line, without its line end. Raises PasswordFileError, whose text does not name the file."""
    password = _read(file).partition(b"\n")[0].removesuffix(b"\r")
    if not password:
        raise PasswordFileError("the first line of the file is empty")
    return password


class ClientPasswords:
    """The lines of a file, each a password; read again when it changes."""

    def __init__(self, file: str) -> None:
        """Raises PasswordFileError."""
        self._file = file
        self._passwords = WatchedFiles(self._load, (file,))

    def __call__(self, password: bytes) -> bool:
        """Whether it is one of those. How long that takes tells nothing but how many there are, and how long."""
        passwords = self._passwords.latest()
        return any([hmac.compare_digest(password, each) for each in passwords])  # noqa: C419 (all of them)

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
