"""Data sets of drifting colour blobs, clean or with one planted leak, and rows of a manifest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dfm_engine.clip import Pixels, Quality
from dfm_engine.columns import Row
from dfm_engine.media import encode

SIDE, FRAMES = 64, 12


def blob_clip(person: int, take: int) -> Pixels:
    """uint8 (T, S, S, 3): two soft blobs in a person's colours, moving as the take says."""
    who = np.random.default_rng(person)
    how = np.random.default_rng((person, take))
    colours = who.uniform(40, 230, (3, 3))
    start, step = how.uniform(16, 48, (2, 2)), how.uniform(-1, 1, (2, 2))
    y, x = np.mgrid[:SIDE, :SIDE]
    frames = np.empty((FRAMES, SIDE, SIDE, 3), np.uint8)
    for t in range(FRAMES):
        picture = np.broadcast_to(colours[2], (SIDE, SIDE, 3)).copy()
        for blob in range(2):
            cx, cy = start[blob] + t * step[blob]
            weight = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 200.0)[..., None]
            picture = picture * (1 - weight) + colours[blob] * weight
        picture += how.normal(0, 3, picture.shape)
        frames[t] = np.clip(picture, 0, 255)
    return frames


def make_set(
    out: Path,
    *,
    people: int = 12,
    pairs: int = 1,
    qualities: tuple[Quality, ...] = ("c23",),
    change_fake: Callable[[Pixels], Pixels] = lambda frames: frames,
    fake_encoder: dict[str, str] | None = None,
    fake_comment: str = "",
) -> list[Row]:
    """Encode pairs that differ in nothing but their motion, and in the leak that is asked for."""
    rows: list[Row] = []
    for person in range(people):
        for pair in range(pairs):
            twin = f"{person:08x}{pair:08x}"
            for label in ("real", "fake"):
                clip = twin if label == "real" else f"{person:08x}{pair + 100:08x}"
                frames = blob_clip(person, 2 * pair + (label == "fake"))
                if label == "fake":
                    frames = change_fake(frames)
                i420 = encode.rgb_to_i420(frames)
                for quality in qualities:
                    path = Path("data") / label / f"{clip}.{quality}.mp4"
                    options = encode.ENCODER[quality]
                    comment = "x" * 64
                    if label == "fake":
                        options, comment = options | (fake_encoder or {}), comment + fake_comment
                    data = encode._mux(i420, options=options, fps=25, comment=comment)
                    (out / path).parent.mkdir(parents=True, exist_ok=True)
                    (out / path).write_bytes(data)
                    facts = {"label": label, "identity": f"person {person}", "quality": quality}
                    rows.append(row(clip, twin, str(path), len(data), **facts))
    return rows


def row(clip: str, twin: str, path: str | None, size_bytes: int, **facts: Any) -> Row:
    """What an audit reads of a manifest's row."""
    values = {
        "clip_id": clip,
        "pair_clip_id": twin if facts["label"] == "fake" else None,
        "path": path,
        "size_bytes": size_bytes,
        "outcome": "passed",
        "is_extra": False,
    }
    return values | facts
