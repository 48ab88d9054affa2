"""Write `report.html`: one file that asks for nothing else, within a budget of bytes.

Text and charts always fit. Pictures are made smaller and fewer until they take at most half of the
budget; playable clips fill the rest, one per action in turn, so every action gets its first before
any gets a second. What was left out is said in the page. The page runs no script, and its content
policy forbids every request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfm_engine.actions import Action
from dfm_engine.durable import write_durably
from dfm_engine.report.data import Example, ReportData
from dfm_engine.report.markup import Child, Markup, element
from dfm_engine.report.page import clipped, render
from dfm_engine.report.pictures import (
    LARGEST_PX,
    load_strip,
    shrink,
    side_by_side,
    strip_uri,
    video_uri,
)

NAME = "report.html"
MAX_BYTES = 20_000_000


@dataclass(frozen=True, slots=True)
class _Level:
    """How much detail the pictures have: frame height, JPEG quality, examples per action."""

    height_px: int
    jpeg_quality: int
    per_action: int


_LEVELS = (_Level(128, 82, 4), _Level(96, 75, 2), _Level(64, 60, 1), _Level(0, 0, 0))


@dataclass(frozen=True, slots=True)
class _Loaded:
    """An example with its frames read, small."""

    example: Example
    source: NDArray[np.uint8] | None
    strips: tuple[tuple[str, list[NDArray[np.uint8]]], ...]


@dataclass(frozen=True, slots=True)
class _Drawn:
    """An example with its pictures as elements."""

    example: Example
    source: Markup | None
    strips: tuple[tuple[str, Markup], ...]


def write_report(out: Path, data: ReportData, *, max_bytes: int = MAX_BYTES) -> Path:
    """Write the report of a data set into its folder.

    A picture or clip that cannot be read leaves a gap, never an error.

    Args:
        out: the data set's folder.
        data: what to show.
        max_bytes: size that the file stays within. The text alone takes about 0.1 MB, with a long
            quarantine up to 0.5 MB; below that the file is as large as its text.

    Returns:
        Path of the file.

    Raises:
        EnvironmentUnfit: the folder cannot be written, or the disk is full.
    """
    loaded = side_by_side(_load, data.examples)
    chosen: list[_Drawn] = []
    for level in _LEVELS:
        chosen = [_draw(item, level) for item in _first_of_each(loaded, level.per_action)]
        page = render(data, _sheets(chosen, {}))
        if len(page.encode()) <= max_bytes // 2:
            break
    plain_bytes = len(render(data, _sheets(chosen, {}), note="x" * 300).encode())
    videos = _choose_videos(chosen, max_bytes - plain_bytes)
    wanted = {path for item in loaded for _, path in item.example.videos}
    note = _note(len(loaded) - len(chosen), len(wanted) - len(videos))
    page = render(data, _sheets(chosen, videos), note=note)
    path = out / NAME
    write_durably(path, page.encode())
    return path


def _load(example: Example) -> _Loaded:
    strips = [
        ("driving", load_strip(example.driving, expected=example.frames)),
        ("result", load_strip(example.result, expected=example.frames)),
        ("real", load_strip(example.real, expected=example.frames)),
    ]
    source = None if example.source is None else shrink(example.source, LARGEST_PX)
    return _Loaded(example, source, tuple((name, frames) for name, frames in strips if frames))


def _draw(item: _Loaded, level: _Level) -> _Drawn:
    name = item.example.action.replace("_", " ")
    source = None
    if item.source is not None:
        source = _picture([item.source], level, f"source image of {item.example.name}")
    strips: list[tuple[str, Markup]] = []
    for kind, frames in item.strips:
        alt = f"{len(frames)} frames of the {kind} clip, {name}, evenly spaced"
        strips.append((kind, _picture(frames, level, alt)))
    return _Drawn(item.example, source, tuple(strips))


def _first_of_each(loaded: Sequence[_Loaded], count: int) -> list[_Loaded]:
    seen: dict[Action, int] = {}
    chosen: list[_Loaded] = []
    for item in loaded:
        action = item.example.action
        seen[action] = seen.get(action, 0) + 1
        if seen[action] <= count:
            chosen.append(item)
    return chosen


def _choose_videos(chosen: Sequence[_Drawn], budget: int) -> dict[Path, str]:
    """Data URIs of the clips that fit, dealt to the actions in turn."""
    queues: dict[Action, list[Path]] = {}
    for item in chosen:
        queue = queues.setdefault(item.example.action, [])
        queue += [path for _, path in item.example.videos if path not in queue]
    uris: dict[Path, str] = {}
    markup_bytes = 400  # of the element around a URI
    share = max(budget // 10, 0)  # no clip may take the place of all others
    while any(queues.values()):
        for queue in queues.values():
            if not queue:
                continue
            path = queue.pop(0)
            room = min(share, budget - markup_bytes)
            uri = None if path in uris else video_uri(path, max_bytes=room)
            if uri is not None:
                uris[path] = uri
                budget -= len(uri) + markup_bytes
    return uris


def _sheets(chosen: Sequence[_Drawn], videos: dict[Path, str]) -> dict[Action, list[Markup]]:
    """The sheets of every action; a clip that several examples share is played in the first."""
    sheets: dict[Action, list[Markup]] = {}
    videos = dict(videos)
    for item in chosen:
        sheets.setdefault(item.example.action, []).append(_sheet(item, videos))
    return sheets


def _sheet(item: _Drawn, videos: dict[Path, str]) -> Markup:
    """One example; takes the clips that it plays out of `videos`."""
    example = item.example
    name = example.action.replace("_", " ")
    css = {True: "pill good", False: "pill bad", None: "pill muted"}[example.passed]
    head = element(
        "div",
        element("h3", name),
        element("span", clipped(example.verdict), class_=css) if example.verdict else None,
        element("span", example.name, class_="path muted"),
        class_="head",
    )
    source: Child = element("span", "no source image", class_="muted")
    if item.source is not None:
        source = element(
            "figure",
            item.source,
            element("figcaption", "source"),
        )
    cells: list[Markup] = []
    for kind, picture in item.strips:
        cells += [element("span", kind), picture]
    players = [
        element(
            "figure",
            element(
                "video",
                src=videos.pop(path),
                controls=True,
                muted=True,
                loop=True,
                playsinline=True,
                preload="metadata",
                aria_label=f"{caption}, {name}",
            ),
            element("figcaption", caption),
        )
        for caption, path in example.videos
        if path in videos
    ]
    return element(
        "div",
        head,
        element("div", source, *players, class_="clips"),
        element("div", *cells, class_="strips"),
        class_="card sheet",
    )


def _picture(frames: list[NDArray[np.uint8]], level: _Level, alt: str) -> Markup:
    uri, width, height = strip_uri(
        frames, height_px=level.height_px, jpeg_quality=level.jpeg_quality
    )
    return element("img", src=uri, width=width, height=height, alt=alt)


def _note(examples: int, videos: int) -> str:
    left = [
        f"{count} {what}" for count, what in ((examples, "examples"), (videos, "clips")) if count
    ]
    return f"To keep this file small, {' and '.join(left)} are left out." if left else ""
