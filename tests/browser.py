"""A headless Chromium, driven through its DevTools protocol over a pair of pipes; no driver and no port."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


def program() -> str | None:
    """The browser's path, or None where there is none."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


class Tab:
    """One page and what it has reported so far: every address that it asked for, every message on its console."""

    def __init__(self, sending: int, receiving: int) -> None:
        self._sending, self._receiving = os.fdopen(sending, "wb"), os.fdopen(receiving, "rb")
        self._numbers, self._session, self._rest = itertools.count(1), "", b""
        self._contexts: dict[str, int] = {}
        self.requested: list[str] = []
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._sending.write(json.dumps(message).encode() + b"\0")
        self._sending.flush()
        while (answer := self._read()).get("id") != number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._receiving.fileno(), 1 << 20)
            if not part:
                raise RuntimeError("the browser has ended")
            self._rest += part
        text, self._rest = self._rest.split(b"\0", 1)
        message = json.loads(text)
        method, values = message.get("method"), message.get("params", {})
        if method == "Runtime.executionContextCreated" and values["context"]["auxData"]["isDefault"]:
            self._contexts[values["context"]["auxData"]["frameId"]] = values["context"]["id"]
        elif method == "Network.requestWillBeSent":
            self.requested.append(values["request"]["url"])
        elif method == "Log.entryAdded":
            self.complaints.append(values["entry"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(str(values["args"]))
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(values["exceptionDetails"]))
        return message

    def open(self, page: Path | str) -> None:
        """Load a file or an address."""
        self.call("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        while self._read().get("method") != "Page.loadEventFired":
            pass

    def run(self, script: str, *, framed: bool = False) -> Any:
        """The value of an expression in the page, or in the only frame in it, be that of another origin."""
        where = {}
        if framed:
            (child,) = self.call("Page.getFrameTree")["frameTree"]["childFrames"]
            where["contextId"] = self._contexts[child["frame"]["id"]]
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, **where)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        code = {"Enter": 13, "Tab": 9}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def scheme(self, name: str) -> None:
        """Whether the reader prefers "light" or "dark"."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def width(self, pixels: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=pixels, height=900, deviceScaleFactor=1, mobile=pixels < 600
        )


@contextlib.contextmanager
def tab(profile: Path) -> Iterator[Tab]:
    """A browser with one tab; `profile` is an empty folder for what it keeps."""
    pipe_end, sending = os.pipe()
    receiving, back = os.pipe()
    path = program()
    assert path is not None
    # The browser reads descriptor 3 and writes descriptor 4; a shell puts them there.
    start = f'exec "$0" "$@" 3<&{pipe_end} 4>&{back}'
    arguments = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-features=IsolateSandboxedIframes",  # in a process of its own a frame would be another target
        "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
        f"--user-data-dir={profile}",
    ]  # fmt: skip
    process = subprocess.Popen(
        ["bash", "-c", start, path, *arguments], pass_fds=(pipe_end, back), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(pipe_end)
    os.close(back)
    try:
        opened = Tab(sending, receiving)
        yield opened
        opened._session = ""
        opened.call("Browser.close")
        process.wait(20)
    finally:
        process.kill()
        process.wait()
