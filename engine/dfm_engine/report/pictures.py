"""Frames and files as data URIs: strips of small pictures, source images, playable clips."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dfm_engine.clip import Box, Pixels
from dfm_engine.errors import MediaError

_log = logging.getLogger(__name__)

STRIP_FRAMES = 6
LARGEST_PX = 128  # height of a frame in a strip, at the best level of detail
_GAP_PX = 2


def evenly(frames: Iterable[NDArray[np.uint8]], count: int = STRIP_FRAMES) -> list[NDArray]:
    """About `count` frames of a stream, evenly spaced, first and last included, small.

    Holds small copies of every frame, so a stream of any length may be of any size.
    """
    small = [shrink(frame, LARGEST_PX) for frame in frames]
    if len(small) <= count:
        return small
    places = np.linspace(0, len(small) - 1, count).round().astype(int)
    return [small[place] for place in places]


def load_strip(
    frames: Pixels | Path | None, *, count: int = STRIP_FRAMES
) -> list[NDArray[np.uint8]]:
    """The frames of a strip; none where the file cannot be read."""
    if frames is None:
        return []
    if not isinstance(frames, Path):
        return evenly(iter(frames), count)
    from dfm_engine.media.decode import read_frames

    try:
        return evenly(read_frames(frames), count)
    except MediaError as error:
        _log.warning("report: %s", error)
        return []


def shrink(frame: NDArray[np.uint8], height_px: int) -> NDArray[np.uint8]:
    """A frame of at most this height, its shape kept."""
    height, width = frame.shape[:2]
    if height <= height_px:
        return np.ascontiguousarray(frame)
    size = (max(1, round(width * height_px / height)), height_px)
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))


def crop_box(picture: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """The part of a picture in a box, to whole pixels, the border repeated outside."""
    height, width = picture.shape[:2]
    columns = np.arange(round(box.x0), max(round(box.x1), round(box.x0) + 1)).clip(0, width - 1)
    lines = np.arange(round(box.y0), max(round(box.y1), round(box.y0) + 1)).clip(0, height - 1)
    return picture[lines[:, None], columns]


def strip_uri(
    frames: list[NDArray[np.uint8]], *, height_px: int, jpeg_quality: int
) -> tuple[str, int, int]:
    """Frames side by side as a JPEG; (data URI, width, height)."""
    small = [shrink(frame, height_px) for frame in frames]
    height = max(frame.shape[0] for frame in small)
    width = sum(frame.shape[1] for frame in small) + _GAP_PX * (len(small) - 1)
    sheet = Image.new("RGB", (width, height), (128, 128, 128))
    left = 0
    for frame in small:
        sheet.paste(Image.fromarray(frame), (left, 0))
        left += frame.shape[1] + _GAP_PX
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=jpeg_quality, optimize=True)
    return _uri("image/jpeg", buffer.getvalue()), width, height


def video_uri(path: Path, *, max_bytes: int) -> str | None:
    """A clip as a data URI, None where it is gone or its URI would be longer than `max_bytes`."""
    try:
        if (path.stat().st_size + 2) // 3 * 4 + 32 > max_bytes:
            return None
        return _uri("video/mp4", path.read_bytes())
    except OSError as error:
        _log.warning("report: %s: %s", path, error)
        return None


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
