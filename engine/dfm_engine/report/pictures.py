"""Frames and files as data URIs: strips of small pictures, source images, playable clips."""

from __future__ import annotations

import base64
import functools
import io
import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dfm_engine.clip import Box, Pixels
from dfm_engine.errors import MediaError
from dfm_engine.machine import read_cores

Frame = NDArray[np.uint8]
Show = Callable[[], Frame]
A = TypeVar("A")
B = TypeVar("B")

_log = logging.getLogger(__name__)

STRIP_FRAMES = 6
LARGEST_PX = 128  # height of a frame in a strip, at the best level of detail
_GAP_PX = 2


def side_by_side(work: Callable[[A], B], items: Sequence[A]) -> list[B]:
    """What `work` gives for each item, in order; on all cores, for decoding takes no lock."""
    with ThreadPoolExecutor(max(1, min(int(read_cores()), len(items)))) as pool:
        return list(pool.map(work, items))


def evenly(
    draw: Callable[[], Iterable[Show]], *, expected: int | None, count: int = STRIP_FRAMES
) -> list[Frame]:
    """About `count` frames of a stream, evenly spaced, first and last included, small.

    Only these are converted and made small; of the others none is held.

    Args:
        draw: begins the stream, each frame as what gives it (`read_shown`).
        expected: how many frames it has, where that is known; if it has others, it is drawn twice.
        count: of the frames that are wanted; a shorter stream gives all.
    """
    total, picked = _pick(draw(), _places(expected or 0, count))
    if total != expected:
        # Not past the last frame: behind it lies what ended the stream, and was reported.
        _, picked = _pick(itertools.islice(draw(), total), _places(total, count))
    return picked


def _places(total: int, count: int) -> frozenset[int]:
    if total <= count:
        return frozenset(range(total))
    return frozenset(np.linspace(0, total - 1, count).round().astype(int).tolist())


def _pick(stream: Iterable[Show], places: frozenset[int]) -> tuple[int, list[Frame]]:
    """How many frames there are, and those at `places`, small."""
    total = 0
    picked: list[Frame] = []
    for show in stream:
        if total in places:
            picked.append(shrink(show(), LARGEST_PX))
        total += 1
    return total, picked


def load_strip(
    frames: Pixels | Path | None, *, expected: int | None = None, count: int = STRIP_FRAMES
) -> list[Frame]:
    """The frames of a strip; none where the file cannot be read.

    Args:
        frames: uint8 (T, H, W, 3), or a file.
        expected: frames of the file, where that is known.
        count: of the frames that are wanted.
    """
    if frames is None:
        return []
    if not isinstance(frames, Path):
        return [shrink(frames[k], LARGEST_PX) for k in sorted(_places(len(frames), count))]
    from dfm_engine.media.decode import read_shown

    try:
        return evenly(functools.partial(read_shown, frames), expected=expected, count=count)
    except MediaError as error:
        _log.warning("report: %s", error)
        return []


def shrink(frame: Frame, height_px: int) -> Frame:
    """A frame of at most this height, its shape kept."""
    height, width = frame.shape[:2]
    if height <= height_px:
        return np.ascontiguousarray(frame)
    size = (max(1, round(width * height_px / height)), height_px)
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))


def crop_box(picture: Frame, box: Box) -> Frame:
    """The part of a picture in a box, to whole pixels, the border repeated outside."""
    height, width = picture.shape[:2]
    columns = np.arange(round(box.x0), max(round(box.x1), round(box.x0) + 1)).clip(0, width - 1)
    lines = np.arange(round(box.y0), max(round(box.y1), round(box.y0) + 1)).clip(0, height - 1)
    return picture[lines[:, None], columns]


def strip_uri(frames: list[Frame], *, height_px: int, jpeg_quality: int) -> tuple[str, int, int]:
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
