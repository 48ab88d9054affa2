"""The report in a real browser: every picture and clip loads, and nothing is asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dfmtest_browser import BROWSER, Browser

from dfm_engine.actions import Action
from dfm_engine.media.encode import encode_clip, rgb_to_i420
from dfm_engine.report import Confusion, Example, ReportData, StageTiming, write_report


def frames_of(seed: int, count: int = 25) -> np.ndarray:
    """A bright disc that moves over a coloured ground."""
    y, x = np.mgrid[:128, :128]
    frames = np.empty((count, 128, 128, 3), np.uint8)
    frames[:] = np.random.default_rng(seed).integers(40, 200, 3)
    for index in range(count):
        frames[index][(x - 30 - 2 * index) ** 2 + (y - 64) ** 2 < 500] = 240
    return frames


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    examples: list[Example] = []
    for index, action in enumerate(Action):
        clip = out / f"{action}.mp4"
        encode_clip(rgb_to_i420(frames_of(index)), clip, quality="c23", fps=25, comment="x" * 40)
        examples.append(
            Example(
                action=action,
                name=f"{index:016x}",
                source=frames_of(index)[0],
                driving=frames_of(index + 20),
                result=clip,
                real=clip,
                videos=(("fake, c23", clip),),
                passed=bool(index % 2),
                verdict="passed the screen",
            )
        )
    confusion = Confusion(
        actions=tuple(Action), passed=np.eye(10, dtype=int) * 3, tried=np.full(10, 4)
    )
    data = ReportData(
        recipe="browser",
        rows=[],
        wanted=dict.fromkeys(Action, 1),
        examples=examples,
        stages=[StageTiming(name="animate", busy_s=9.0, frames=250)],
        wall_s=10.0,
        facts={"device": "cpu"},
        banner="made up",
        confusion=confusion,
    )
    return write_report(out, data)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine"),
]


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (500, True)])
def test_every_picture_and_clip_loads_without_a_request(
    report: Path, browser: Browser, width: int, dark: bool
) -> None:
    seen = browser.look(report, width=width, dark=dark)
    assert seen["images"] == [True] * 40  # source, driving, result, real of ten actions
    assert len(seen["videos"]) == 10
    for size, duration_s, state in seen["videos"]:
        assert (size, duration_s) == (128, 1.0)
        assert state >= 2  # a frame is decoded
    assert seen["requests"] == []
    assert seen["blocked"] == []
    assert not seen["scrolls_sideways"]
    assert "animate bounds the run" in seen["text"]


def test_the_look_notices_what_is_wrong_and_the_policy_holds_requests_back(
    report: Path, browser: Browser, tmp_path: Path
) -> None:
    hits: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hits.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/x.png"
        wrong = f'<img src="{address}"><img src="data:image/jpeg;base64,AAAA">'
        wrong += '<video src="data:video/mp4;base64,AAAA"></video>'
        page = report.read_text(encoding="utf-8").replace("</main>", f"{wrong}</main>")
        copy = tmp_path / "wrong.html"
        copy.write_text(page, encoding="utf-8")
        seen = browser.look(copy)
        assert seen["images"][-2:] == [False, False]
        assert seen["videos"][-1][2] == 0
        assert seen["blocked"] == [address]
        assert hits == []
        copy.write_text(page.replace("img-src data:", "img-src *"), encoding="utf-8")
        assert browser.look(copy)["requests"] == [address]
        assert hits == ["/x.png"]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
