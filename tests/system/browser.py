"""Chromium without a screen, driven by its own protocol over a pair of pipes: nothing to install but Debian's package.

<https://chromedevtools.github.io/devtools-protocol/>: JSON, a NUL behind each message, fd 3 to it and fd 4 from it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, Any

from .processes import DEADLINE, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

CHROMIUM = shutil.which("chromium")

_FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # tests may run as root; what is loaded is our own
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # whatever it would like to call home
)


class Tab:
    """One page, and what it complained of."""

    def __init__(self, to: int, back: int) -> None:
        self._to = to
        self._back = back
        self._left = b""
        self._last = 0
        self._session: str | None = None
        self.complaints: list[str] = []
        self.asked: list[str] = []  # URLs
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """Its result, once it is there."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + DEADLINE
        while (answer := self._read(until)).get("id") != self._last:
            self._note(answer)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def look(self, width: int, height: int, scheme: str) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        eventually(lambda: self.run("location.href") == url and self.run("document.readyState") == "complete")

    def run(self, expression: str) -> Any:
        """The value of an expression of JavaScript."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def picture(self) -> bytes:
        """PNG of the whole page."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def _note(self, event: dict[str, Any]) -> None:
        what = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(what["exceptionDetails"]))
            case "Runtime.consoleAPICalled":
                self.complaints.append(json.dumps(what["args"]))
            case "Log.entryAdded":
                self.complaints.append(f"{what['entry']['text']} {what['entry'].get('url')}")
            case "Network.requestWillBeSent":
                self.asked.append(what["request"]["url"])

    def _read(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._left:
            ready, _, _ = select.select([self._back], [], [], max(0, until - time.monotonic()))
            if not ready:
                raise TimeoutError("Chromium does not answer")
            chunk = os.read(self._back, 1 << 20)
            if not chunk:
                raise ConnectionError("Chromium has ended")
            self._left += chunk
        message, _, self._left = self._left.partition(b"\0")
        return json.loads(message)


@contextlib.contextmanager
def tab() -> Iterator[Tab]:
    """Of a Chromium of its own, with a profile that is gone afterwards."""
    assert CHROMIUM is not None
    theirs, to = os.pipe()
    back, theirs_too = os.pipe()
    with tempfile.TemporaryDirectory(prefix="coal-chromium-", ignore_cleanup_errors=True) as profile:
        # Its numbers of descriptors are fixed, and only bash moves one of two digits.
        moved = ["bash", "-c", f'exec "$0" "$@" 3<&{theirs} 4>&{theirs_too}', CHROMIUM, *_FLAGS]
        process = subprocess.Popen(
            [*moved, f"--user-data-dir={profile}"],
            pass_fds=(theirs, theirs_too),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"HOME": profile},
        )
        os.close(theirs)
        os.close(theirs_too)
        try:
            yield Tab(to, back)
        finally:
            os.close(to)  # it ends when nobody drives it any more
            os.close(back)
            try:
                process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(DEADLINE)
