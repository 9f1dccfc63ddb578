"""Authorities and certificates for tests, in files as programs want them."""

from __future__ import annotations

import datetime as dt
import itertools
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trustme

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Pair:
    """A certificate with its chain, and its key."""

    certificate: Path
    key: Path

    def copy_to(self, other: Pair) -> None:
        """Moves copies into the place of another pair, as a renewal does: there is never half a file."""
        for source, target in ((self.key, other.key), (self.certificate, other.certificate)):
            fresh = target.with_suffix(".fresh")
            fresh.write_bytes(source.read_bytes())
            fresh.replace(target)


class Authority:
    """Signs certificates. `file` holds its own."""

    def __init__(self, directory: Path, name: str) -> None:
        self._authority = trustme.CA(organization_name=name)
        self._directory = directory
        self._name = name
        self._numbers = itertools.count()
        self.file = directory / f"{name}.pem"
        self._authority.cert_pem.write_to_path(str(self.file))

    def issue(self, *names: str, expired: bool = False) -> Pair:
        """A new pair, for 127.0.0.1 when no names are given."""
        ends = dt.datetime(2020, 1, 1, tzinfo=dt.UTC) if expired else None
        begins = dt.datetime(2019, 1, 1, tzinfo=dt.UTC) if expired else None
        issued = self._authority.issue_cert(*(names or ("127.0.0.1",)), not_after=ends, not_before=begins)
        stem = self._directory / f"{self._name}-{next(self._numbers)}"
        pair = Pair(stem.with_suffix(".crt"), stem.with_suffix(".key"))
        pair.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(str(pair.key))
        return pair

    def trusting(self, own: Pair | None = None) -> ssl.SSLContext:
        """A client's context that trusts this authority alone."""
        context = ssl.create_default_context(cafile=str(self.file))
        if own is not None:
            context.load_cert_chain(own.certificate, own.key)
        return context
