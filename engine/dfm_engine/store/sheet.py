"""Some of a store as one picture, so that a person sees at once what a network will be fed.

A line per clip: a few of each label and quality, qualities of one clip below each other, its frames
from left to right. Equal stores give equal bytes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dfm_engine.durable import write_durably
from dfm_engine.media.colour import RgbConverter
from dfm_engine.store.frames import Store
from dfm_engine.store.index import StoredClip

__all__ = ["NAME", "write_sheet"]

NAME = "sheet.png"
CLIPS_PER_LABEL, FRAMES = 2, 8
TILE_PX, GAP_PX, MARGIN_PX = 96, 2, 170
INK, PAPER = (40, 40, 40), (255, 255, 255)


def write_sheet(store: Store) -> None:
    """Draw `sheet.png` of an open store."""
    clips = _choose(store.index.clips)
    step = TILE_PX + GAP_PX
    columns = min(FRAMES, max((clip.frames for clip in clips), default=1))
    sheet = Image.new("RGB", (MARGIN_PX + columns * step, max(1, len(clips)) * step), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)
    converter = RgbConverter()
    for line, clip in enumerate(clips):
        words = [clip.label, clip.action, clip.quality, clip.split]
        text = f"{clip.identity[:22]}\n{' '.join(word for word in words if word)}"
        middle = line * step + TILE_PX // 2
        draw.multiline_text((MARGIN_PX - 6, middle), text, INK, font, anchor="rm", align="right")
        chosen = np.linspace(0, clip.frames - 1, min(columns, clip.frames)).round()
        rows = clip.first_row + chosen.astype(np.int64)
        for place, frame in enumerate(store.read(rows)):
            rgb = frame if store.meta.layout == "rgb24" else _to_rgb(frame, converter)
            tile = Image.fromarray(rgb).resize((TILE_PX, TILE_PX), Image.Resampling.LANCZOS)
            sheet.paste(tile, (MARGIN_PX + place * step, line * step))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", compress_level=3)
    write_durably(Path(store.path) / NAME, buffer.getbuffer())


def _choose(clips: Sequence[StoredClip]) -> list[StoredClip]:
    """A few clips of each label, of other identities and actions, each in all its qualities."""
    chosen: list[StoredClip] = []
    for label in ("real", "fake"):
        shown: list[str] = []
        seen: set[str] = set()
        for clip in clips:
            traits = {clip.identity, clip.action or clip.clip_id}
            if clip.label == label and not traits & seen and len(shown) < CLIPS_PER_LABEL:
                shown.append(clip.clip_id)
                seen |= traits
        chosen += [clip for clip in clips if clip.label == label and clip.clip_id in shown]
    return chosen


def _to_rgb(frame: NDArray[np.uint8], converter: RgbConverter) -> NDArray[np.uint8]:
    return converter.convert(VideoFrame.from_ndarray(frame, format="yuv420p"))
