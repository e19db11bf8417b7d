"""A real Chromium, told what to do over its own protocol. Where there is none, the tests that want it are skipped."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium_or_skip() -> str:
    """Where Chromium is; skips the test where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium here: the pages are not looked at in a browser (Debian: apt-get install chromium)")
    return found


class Browser:
    """A Chromium without a window."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """What the browser answers. Fails when it refuses."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        self._connection.send(json.dumps(message if session is None else {**message, "sessionId": session}))
        while True:
            answer = json.loads(self._connection.recv(timeout=30))
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def wait_for(self, event: str, session: str) -> dict[str, Any]:
        """The next event of this name."""
        while True:
            for position, told in enumerate(self.events):
                if told.get("method") == event and told.get("sessionId") == session:
                    parameters: dict[str, Any] = self.events.pop(position)["params"]
                    return parameters
            self.events.append(json.loads(self._connection.recv(timeout=30)))

    def tab(self) -> Tab:
        """A tab of a visitor who was never here before."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, session)
        for domain in ("Page", "Runtime", "Network", "Log"):
            tab.call(f"{domain}.enable")
        return tab


class Tab:
    """A tab of the browser."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **parameters)

    def go(self, url: str) -> int:
        """Goes there; the status of the page."""
        self._browser.events.clear()
        self.call("Page.navigate", url=url)
        return self._arrived()

    def press(self, selector: str) -> int:
        """Clicks what leads to another page; its status."""
        self._browser.events.clear()
        self.click(selector)
        return self._arrived()

    def enter(self, selector: str, text: str) -> int:
        """Types into a field, and Enter; the status of the page that comes."""
        self.run(f"document.querySelector({selector!r}).focus()")
        self.call("Input.insertText", text=text)
        self._browser.events.clear()
        self.key("Enter", text="\r")
        return self._arrived()

    def key(self, key: str, **more: Any) -> None:
        code = {"Enter": 13, "Tab": 9}[key]
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)

    def click(self, selector: str) -> None:
        """Clicks with the mouse in the middle of the first element of this kind."""
        find = f"document.querySelector({selector!r})"
        self.run(f"{find}.scrollIntoView({{block: 'center'}})")
        box = self.run(f"(box => [box.x + box.width / 2, box.y + box.height / 2])({find}.getBoundingClientRect())")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression, which no page of ours could run itself."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def size(self, width: int, height: int = 900) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )

    def show_as(self, media: str = "screen", scheme: str = "light") -> None:
        """media: screen or print. scheme: light or dark."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)

    def forbid_scripts(self) -> None:
        self.call("Emulation.setScriptExecutionDisabled", value=True)

    def picture(self, path: Path) -> None:
        """A picture of the whole page."""
        picture = self.call("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(picture["data"]))

    def cookies(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.call("Network.getCookies")["cookies"]
        return found

    @property
    def url(self) -> str:
        return str(self.run("location.href"))

    @property
    def text(self) -> str:
        """What the page says."""
        return str(self.run("document.body.innerText"))

    @property
    def complaints(self) -> list[str]:
        """What the browser itself had to say of the page, as that its policy refused something."""
        told = [event["params"] for event in self._browser.events if event.get("sessionId") == self._session]
        return [event["entry"]["text"] for event in told if "entry" in event]

    def _arrived(self) -> int:
        status = 0
        while True:
            answered = self._browser.wait_for("Network.responseReceived", self._session)
            if answered["type"] == "Document":
                status = answered["response"]["status"]
                break
        self._browser.wait_for("Page.loadEventFired", self._session)
        return status


@contextmanager
def browsing(chromium: str, folder: Path) -> Iterator[Browser]:
    """A browser that is gone afterwards. folder: an empty one for its profile."""
    options = ["--headless=new", "--remote-debugging-port=0", f"--user-data-dir={folder}", "--hide-scrollbars"]
    options += ["--no-first-run", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
    options += ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium wants it of root, as in a container
    running = subprocess.Popen([chromium, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        noted = folder / "DevToolsActivePort"
        until = time.monotonic() + 60
        while not noted.exists() or "\n" not in noted.read_text():
            assert running.poll() is None, f"Chromium ended with {running.returncode}"
            assert time.monotonic() < until, "Chromium did not start within a minute"
            time.sleep(0.05)
        port, path = noted.read_text().split("\n")[:2]
        with connect(f"ws://127.0.0.1:{port}{path}", max_size=None, proxy=None) as connection:
            yield Browser(connection)
    finally:
        running.terminate()
        running.wait(30)
