"""Open a page in a headless Chromium and look at it, through its debugging pipe.

The page is the file as it is: scripts that look at it come through the pipe and change nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
TIMEOUT_S = 90.0

# Chromium reads commands from descriptor 3 and writes answers to descriptor 4.
_LAUNCH = "import os, sys; r, w = map(int, sys.argv[1:3]); os.dup2(r, 13); os.dup2(w, 14); "
_LAUNCH += "os.dup2(13, 3); os.dup2(14, 4); os.execv(sys.argv[3], sys.argv[3:])"

_BEFORE = """
window.__blocked = [];
addEventListener("securitypolicyviolation", event => window.__blocked.push(event.blockedURI));
"""
_LOOK = """
(async () => {
  const videos = [...document.querySelectorAll("video")];
  const ready = video => new Promise(done => {
    if (video.readyState >= 2 || video.error) return done();
    video.addEventListener("loadeddata", done);
    video.addEventListener("error", done);
    video.preload = "auto";
    video.load();
  });
  await Promise.all(videos.map(ready));
  const images = [...document.querySelectorAll("img")];
  return {
    images: images.map(image => image.complete && image.naturalWidth > 0),
    videos: videos.map(video => [video.videoWidth, video.duration, video.readyState]),
    blocked: window.__blocked,
    scrolls_sideways: document.documentElement.scrollWidth > innerWidth,
    text: document.body.innerText,
  };
})()
"""


class Browser:
    """One Chromium for the length of a `with` block."""

    def __init__(self, profile: Path) -> None:
        assert BROWSER is not None
        child_reads, self._write = os.pipe()
        self._read, child_writes = os.pipe()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", _LAUNCH, str(child_reads), str(child_writes)),
                *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
                *("--disable-background-networking", "--disable-dev-shm-usage", "--mute-audio"),
                *("--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"),
            ],
            pass_fds=(child_reads, child_writes),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(child_reads)
        os.close(child_writes)
        self._buffer = b""
        self._count = 0
        self._events: list[dict[str, Any]] = []

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._write)  # Chromium ends when its pipe does
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)

    def look(self, page: Path, *, width: int = 1200, dark: bool = False) -> dict[str, Any]:
        """Open a page; what its pictures, clips, policy and requests came to."""
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for command in ("Page.enable", "Network.enable"):
            self._ask(command, session=session)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self._ask("Emulation.setDeviceMetricsOverride", session=session, **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", session=session, features=[scheme])
        self._ask("Page.addScriptToEvaluateOnNewDocument", session=session, source=_BEFORE)
        self._events.clear()
        self._ask("Page.navigate", session=session, url=page.as_uri())
        self._wait("Page.loadEventFired")
        answer = self._ask(
            "Runtime.evaluate",
            session=session,
            expression=_LOOK,
            awaitPromise=True,
            returnByValue=True,
        )
        urls = [
            event["params"]["request"]["url"]
            for event in self._events
            if event["method"] == "Network.requestWillBeSent"
        ]
        self._ask("Target.closeTarget", targetId=target)
        requests = [url for url in urls if not url.startswith("data:") and url != page.as_uri()]
        return {**answer["result"]["value"], "requests": requests}

    def _ask(self, method: str, *, session: str | None = None, **params: Any) -> dict[str, Any]:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._events.append(answer)

    def _wait(self, method: str) -> None:
        end = time.monotonic() + TIMEOUT_S
        while not any(event.get("method") == method for event in self._events):
            assert time.monotonic() < end, f"no {method} within {TIMEOUT_S:g} s"
            self._events.append(self._receive())

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            piece = os.read(self._read, 1 << 16)
            assert piece, "the browser ended"
            self._buffer += piece
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)
