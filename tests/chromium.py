"""A page in headless Chromium, driven over the DevTools protocol: messages of JSON, each ended by a zero byte, through two pipes."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

# Chromium reads commands from file descriptor 3 and answers on 4. No sandbox: the tests may run as root, on a page of their own.
_OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--remote-debugging-pipe"),
)


class PageError(AssertionError):
    """The page's script failed."""


class Browser:
    """One page. errors: what it threw or wrote to the console as an error; requests: the addresses that it asked for."""

    def __init__(self, profile: Path) -> None:
        assert PROGRAM is not None
        to_browser, self._commands = os.pipe()
        self._answers, from_browser = os.pipe()
        descriptors = f"exec \"$0\" \"$@\" 3<&{to_browser} 4>&{from_browser}"
        command = ["bash", "-c", descriptors, PROGRAM, *_OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            command, pass_fds=(to_browser, from_browser), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(from_browser)
        self._unread, self._number, self._session = b"", 0, None
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._commands)  # Chromium ends when its commands do
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._answers)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command; what happens until it is there is kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters} | ({"sessionId": self._session} if self._session else {})
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self._keep(answer)
        if "error" in answer:
            raise PageError(f"{method}: {answer['error']['message']}")
        return dict(answer["result"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            found = os.read(self._answers, 1 << 16)
            if not found:
                raise PageError(f"{PROGRAM} ended")
            self._unread += found
        message, self._unread = self._unread.split(b"\0", 1)
        return dict(json.loads(message))

    def _keep(self, event: dict[str, Any]) -> None:
        method, found = event.get("method"), event.get("params", {})
        self._events.append(event)
        if method == "Runtime.exceptionThrown":
            self.errors.append(found["exceptionDetails"].get("exception", {}).get("description", str(found)))
        elif method == "Runtime.consoleAPICalled" and found["type"] in ("error", "warning", "assert"):
            self.errors.append(str(found["args"]))
        elif method == "Log.entryAdded" and found["entry"]["level"] in ("error", "warning"):
            self.errors.append(found["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(found["request"]["url"])

    def open(self, path: Path, width: int = 1280, height: int = 900, *, is_dark: bool = False, has_script: bool = True) -> None:
        """Load a file into a window of that size, in CSS pixels, and wait until it is loaded."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}])
        self.send("Emulation.setScriptExecutionDisabled", value=not has_script)
        self._events.clear()
        self.send("Page.navigate", url=path.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self._events):
            self._keep(self._next())

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, after its promise."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True)
        if "exceptionDetails" in found:
            raise PageError(found["exceptionDetails"]["exception"].get("description", expression))
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """A key of the keyboard, for what has the focus."""
        codes = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9}
        text = {"text": "\r"} if key == "Enter" else {}
        pressed = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
        self.send("Input.dispatchKeyEvent", type="keyDown", **pressed, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **pressed)

    def screenshot(self, path: Path, *, is_whole: bool = False) -> None:
        found = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=is_whole)
        path.write_bytes(base64.b64decode(found["data"]))
