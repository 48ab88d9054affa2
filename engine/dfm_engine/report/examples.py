"""Pick the animations that a report shows, from the manifest and the files that it names."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfm_engine.actions import Action
from dfm_engine.clip import Box
from dfm_engine.columns import Row, path_of_text
from dfm_engine.errors import MediaError
from dfm_engine.media.decode import read_frames, read_shown, read_still
from dfm_engine.report.data import Example
from dfm_engine.report.pictures import STRIP_FRAMES, Show, crop_box, evenly, side_by_side

_log = logging.getLogger(__name__)

Image = NDArray[np.uint8]
SHOWN_QUALITY = "c23"


def examples_from_manifest(
    out: Path,
    rows: Sequence[Row],
    *,
    real_root: Path,
    driving_root: Path,
    per_action: int = 2,
    refused_per_action: int = 1,
    frames: int = STRIP_FRAMES,
) -> list[Example]:
    """Examples of every action: kept animations, then refused ones whose raw clip was kept.

    Args:
        out: the data set's folder, which paths in the rows are relative to.
        rows: of the manifest.
        real_root: folder that source paths are relative to; a file that is gone leaves a gap in
            the sheet, no error.
        driving_root: the same for driving paths.
        per_action: kept animations per action, of different sources where there are some.
        refused_per_action: refused ones.
        frames: of each driving clip, evenly spread.
    """
    files = {(row["clip_id"], row["quality"]): row for row in rows if row["path"]}
    shown: list[Row] = []
    for action in Action:
        fakes = [
            row
            for (_, quality), row in files.items()
            if row["label"] == "fake"
            and row["action"] == action
            and quality == (SHOWN_QUALITY if row["outcome"] == "passed" else "raw")
        ]
        kept = _different_sources([row for row in fakes if row["outcome"] == "passed"])
        refused = _different_sources([row for row in fakes if row["outcome"] != "passed"])
        shown += (*kept[:per_action], *refused[:refused_per_action])

    def example(row: Row) -> Example:
        twin = files.get((row["pair_clip_id"] or "", SHOWN_QUALITY))
        return _example(out, row, twin, real_root, driving_root, frames)

    return side_by_side(example, shown)


def _different_sources(rows: list[Row]) -> list[Row]:
    """The rows with each source's first one before all second ones."""
    turn: dict[str, int] = {}
    keyed: list[tuple[int, int, Row]] = []
    for index, row in enumerate(rows):
        source = row["source_sha256"]
        keyed.append((turn.get(source, 0), index, row))
        turn[source] = turn.get(source, 0) + 1
    return [row for _, _, row in sorted(keyed, key=lambda item: item[:2])]


def _example(
    out: Path, row: Row, twin: Row | None, real_root: Path, driving_root: Path, frames: int
) -> Example:
    result = out / row["path"]
    videos = [(f"fake, {row['quality']}", result)]
    if twin is not None:
        videos.append((f"real, {SHOWN_QUALITY}", out / twin["path"]))
    passed = row["screen_passed"]
    if passed is None:
        verdict = "not screened"
    else:
        verdict = "passed the screen" if passed else f"refused: {row['screen_reasons']}"
        if passed is False and row["outcome"] == "passed":
            verdict += " (recorded only, kept)"
    return Example(
        action=Action(row["action"]),
        name=row["clip_id"],
        source=_source_image(row, real_root),
        driving=_driving_frames(row, driving_root, frames),
        result=result,
        real=None if twin is None else out / twin["path"],
        frames=row["frames"],
        videos=tuple(videos),
        verdict=verdict,
        passed=passed,
    )


def _source_image(row: Row, root: Path) -> Image | None:
    path = root / path_of_text(row["source_path"])
    box = Box(*(row[f"box_{edge}"] for edge in ("x0", "y0", "x1", "y1")))
    start_s = (row["source_frame"] or 0) / row["fps"]
    try:
        if row["source_is_still"]:
            return crop_box(read_still(path), box)
        return crop_box(next(read_frames(path, fps=row["fps"], start_s=start_s)), box)
    except (MediaError, StopIteration) as error:
        _log.warning("report: no source image of %s: %s", row["clip_id"], error)
        return None


def _driving_frames(row: Row, root: Path, count: int) -> NDArray[np.uint8] | None:
    if not row["driving_path"]:
        return None
    path = root / path_of_text(row["driving_path"])

    def draw() -> Iterator[Show]:
        return itertools.islice(_shown_range(path, row), row["frames"])

    try:
        frames = evenly(draw, expected=row["frames"], count=count)
    except MediaError as error:
        frames = _no_driving(row, error)
    if not frames:
        return None
    stacked = np.stack(frames)
    return np.ascontiguousarray(stacked[:, :, ::-1]) if row["driving_mirrored"] else stacked


def _shown_range(path: Path, row: Row) -> Iterator[Show]:
    """The frames of the range up to the first damage."""
    try:
        yield from read_shown(
            path,
            fps=row["fps"],
            start_s=row["driving_start_s"] or 0.0,
            end_s=row["driving_end_s"],
        )
    except MediaError as error:
        _no_driving(row, error)


def _no_driving(row: Row, error: MediaError) -> list[Image]:
    _log.warning("report: driving clip of %s: %s", row["clip_id"], error)
    return []
