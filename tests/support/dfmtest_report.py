"""Rows of a manifest, the page that a report makes of them, and pictures to tell apart."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dfm_engine.manifest import COLUMNS
from dfm_engine.report import (
    ReportData,
    write_report,
)


def row(clip: str, **values) -> dict:
    base = {column.name: None for column in COLUMNS}
    base |= {"clip_id": clip, "label": "fake", "outcome": "passed", "action": "smile"}
    base |= {"is_extra": False, "split": "train", "screen_passed": True}
    return base | values


def files(clip: str, **values) -> list[dict]:
    sizes = {"raw": 1000, "c23": 100, "c40": 10}
    return [row(clip, quality=q, size_bytes=size, **values) for q, size in sizes.items()]


def low(value: float) -> str:
    return f"smile not performed: width is {value}, needs at least 1.08"


ROWS = [
    *files("a", split="train"),
    *files("b", split="test", is_extra=True),
    *files("c", screen_passed=False, screen_reasons=low(1.01), split="val"),  # recorded only
    row(
        "d",
        outcome="refused",
        screen_passed=False,
        screen_reasons=f"{low(0.9)}; frozen",
        split=None,
    ),
    *files("e", action="nod", screen_passed=None, split=None),
    *files("ra", label="real", action=None, screen_passed=None),
]


class Page(HTMLParser):
    """What a page holds: tags with attributes, and the text outside the style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] != "style":
            self.words.append(data)

    def all(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attributes for name, attributes in self.tags if name == tag)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def written(out: Path, **changes: Any) -> Page:
    values: dict[str, Any] = {"recipe": "test", "rows": ROWS} | changes
    path = write_report(out, ReportData(**values))
    assert path == out / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def gradient(count: int, size: int = 64) -> np.ndarray:
    """Frame k has the grey value 10 * k."""
    frames = np.zeros((count, size, size, 3), np.uint8)
    return frames + (10 * np.arange(count, dtype=np.uint8))[:, None, None, None]


def picture_of(uri: str | None) -> np.ndarray:
    assert uri is not None
    kind, _, data = uri.partition(";base64,")
    assert kind == "data:image/jpeg"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
