"""An admin whose `/status` says what a test wants: states that a real coalesce is in for a moment, or never."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from typing import TYPE_CHECKING, Any

from coalesce.admin.page import HEADERS, page
from coalesce.admin.wrong import what_is_wrong

from .processes import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

COLUMNS = (
    "commands_per_second",
    "mean_batch",
    "round_trips_saved_per_second",
    "round_trip_p50_us",
    "queue_wait_p50_us",
    "clients",
    "lanes",
    "leases_lent",
)


def nothing_yet() -> dict[str, Any]:
    """What is said before the first client."""
    return {
        "coalesce": {
            "version": "0.1.0",
            "commit": None,
            "python": "3.11.7",
            "pid": 4711,
            "started": "2026-11-21T13:00:00Z",
            "uptime_seconds": 2.5,
        },
        "state": "serving",
        "upstream": {
            "address": "redis.internal:6379",
            "software": "redis 7.0.15",
            "tls": False,
            "user": None,
            "database": 0,
        },
        "listen": ["127.0.0.1:6380"],
        "totals": {
            **dict.fromkeys(("commands", "batches", "round_trips_saved", "delivered", "swallowed", "failed"), 0),
            **dict.fromkeys(("refused", "own_commands", "clients_accepted", "clients_refused", "faults"), 0),
            **dict.fromkeys(("upstream_sent_bytes", "upstream_received_bytes"), 0),
            "lane_losses": dict.fromkeys(("closed", "reset", "silent", "desync", "fault", "replaced", "other"), 0),
            "dials": {"connected": 0, "refused": 0, "failed": 0},
            "protocol_errors": {"client": 0, "upstream": 0},
        },
        "clients": {
            **dict.fromkeys(("shared", "leased", "waiting", "pinned", "greeting"), 0),
            "limit": 10_000,
            "memory_bytes": 0,
            "memory_limit_bytes": 1 << 30,
        },
        "leases": {**dict.fromkeys(("dialling", "lent", "idle", "pinned", "waiting"), 0), "limit": 1000},
        "lanes": [],
        "now": {
            **dict.fromkeys(("commands_per_second", "batches_per_second", "round_trips_saved_per_second"), 0.0),
            **dict.fromkeys(("mean_batch", "round_trip_p50_us", "round_trip_p99_us"), None),
            **dict.fromkeys(("queue_wait_p50_us", "queue_wait_p99_us"), None),
        },
        "history": {"every_seconds": 1, "columns": list(COLUMNS), "samples": [[0.0, None, 0.0, None, None, 0, 0, 0]]},
        "limits": {},
        "settings": {"upstream": "redis.internal:6379", "max-clients": 10_000, "tls-cert": None, "unprotected": False},
    }


def lane(number: int, **more: Any) -> dict[str, Any]:
    return {
        "lane": f"u{number}",
        "kind": "shared",
        "state": "ready",
        "user": None,
        "database": 0,
        "protocol": 3,
        "sessions": 231,
        "unsent": 3,
        "in_flight": 41,
        "commands": 8_412_345,
        "batches": 261_034,
        "mean_batch": 32.23,
        "round_trip_us": 412.4,
        "connections": 1,
        "why": None,
        **more,
    }


def at_work() -> dict[str, Any]:
    """Two lanes under load, with a second in which nothing happened."""
    said = nothing_yet()
    said["totals"].update(
        commands=1_284_512_345, batches=38_123_456, round_trips_saved=1_246_388_889, delivered=1_284_501_200
    )
    said["totals"].update(swallowed=9_811, failed=41, refused=3, own_commands=120_041, clients_accepted=48_213)
    said["totals"].update(upstream_sent_bytes=88_123_456_789, upstream_received_bytes=1_536)
    said["totals"]["lane_losses"].update(closed=2, reset=1)
    said["totals"]["dials"].update(connected=1_312, failed=4)
    said["clients"].update(shared=231, leased=9, pinned=2, memory_bytes=12_345_678)
    said["leases"].update(lent=9, idle=4, pinned=2)
    said["lanes"] = [lane(0), lane(1, user="orders", database=3, kind="large", commands=1_204, round_trip_us=18_240.0)]
    said["now"].update(commands_per_second=98_356.4, batches_per_second=3_052.0, mean_batch=32.23)
    said["now"].update(round_trips_saved_per_second=95_304.4, round_trip_p50_us=412.4, round_trip_p99_us=1_240.0)
    said["now"].update(queue_wait_p50_us=38.0, queue_wait_p99_us=2_120_000.0)
    busy = [[90_000.0 + 10 * n, 30.0, 87_000.0, 400.0, 38.0, 242, 2, 9] for n in range(200)]
    busy[100] = [0.0, None, 0.0, None, None, 242, 2, 9]
    said["history"]["samples"] = busy
    return said


def in_trouble() -> dict[str, Any]:
    """No upstream, no lease, and a text of the upstream's that is as bad as it can be."""
    said = at_work()
    refused = "Connection refused (redis.internal:6379)"
    bad = "<img src=x onerror=alert(1)>\x1b[31m" + "W" * 200
    said["lanes"] = [
        lane(0, user="u" * 64, commands=123_456_789_012),
        lane(1, state="dialling", unsent=2, in_flight=0),
        lane(2, state="failing", unsent=1_204, why=refused, round_trip_us=None),
        lane(3, state="failing", unsent=0, why=refused, round_trip_us=None),
        lane(4, state="failing", unsent=1, why=bad, round_trip_us=None),
    ]
    said["leases"].update(lent=990, pinned=10, waiting=31)
    said["totals"]["faults"] = 3
    return said


class Admin:
    """Serves the page's files and what `says` is at the time."""

    def __init__(self, port: int | None = None) -> None:
        """On a port that it can come back on; by default, on any such."""
        self.says = at_work()
        admin = self

        class _Answers(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                files = page()
                if self.path == "/status":
                    wrong = what_is_wrong(admin.says)
                    self._answer("application/json", json.dumps(admin.says | {"wrong": wrong}).encode())
                elif self.path in files:
                    self._answer(files[self.path].content_type, files[self.path].body)
                else:
                    self.send_error(404)

            def _answer(self, content_type: str, body: bytes) -> None:
                self.send_response(200)
                for name, value in (*HEADERS, (b"content-type", content_type.encode())):
                    self.send_header(name.decode(), value.decode())
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                del arguments

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", free_port() if port is None else port), _Answers)
        self.port = self._server.server_port
        self.address = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.address}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def end(self) -> None:
        """Nobody listens there when this returns. Harmless when nobody did."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextlib.contextmanager
def running_admin(port: int | None = None) -> Iterator[Admin]:
    admin = Admin(port)
    try:
        yield admin
    finally:
        admin.end()
