"""A client of the admin: HTTP as operators' tools speak it."""

from __future__ import annotations

import http.client
import json
import re
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics

from .processes import DEADLINE, eventually

if TYPE_CHECKING:
    from .processes import Coalesce

ADMIN = ("--admin", "127.0.0.1:0")
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class Answer(NamedTuple):
    """A reply of HTTP."""

    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def told(self) -> dict[str, object]:
        """What it says in JSON."""
        found = json.loads(self.body)
        assert isinstance(found, dict)
        return found


def admin_address(coalesce: Coalesce) -> tuple[str, int]:
    """Where it listens for operators."""
    found = eventually(lambda: re.search(r"admin on http://(\S+):(\d+)", coalesce.stderr))
    return found[1].strip("[]"), int(found[2])


def ask(
    coalesce: Coalesce, path: str, method: str = "GET", headers: dict[str, str] | None = None
) -> Answer:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection(*admin_address(coalesce), timeout=DEADLINE)
    try:
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        return Answer(answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()})
    finally:
        connection.close()


def post(coalesce: Coalesce, path: str, **headers: str) -> Answer:
    return ask(coalesce, path, "POST", {name.replace("_", "-"): value for name, value in headers.items()})


def metrics(coalesce: Coalesce) -> dict[str, float]:
    """By name and labels, in the order of their names: `commands_total shared delivered`."""
    text = ask(coalesce, "/metrics", headers={"Accept": OPENMETRICS}).body.decode()
    return {
        " ".join([sample.name.removeprefix("coalesce_"), *(value for _, value in sorted(sample.labels.items()))]):
        sample.value
        for family in read_openmetrics(text)
        for sample in family.samples
    }  # fmt: skip
