"""Clips and stills to upright RGB frames.

Frames come out one at a time, in constant memory, at a constant rate or as stored, and only from
undamaged files: the first damage raises. Rotation (display matrix, EXIF), non-square pixels, edit
lists, odd timestamps, colour matrix and range are all applied here, so that nothing after this
module needs to know about files. docs/inputs.md states every rule with an example.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from dfm_engine.errors import MediaError
from dfm_engine.media.colour import RgbConverter, colour_of
from dfm_engine.media.reader import ClipReader
from dfm_engine.media.still import read_still
from dfm_engine.media.timeline import resample
from dfm_engine.recipe import Limits

__all__ = ["NativeFrame", "read_frames", "read_native_frames", "read_shown", "read_still"]


@dataclass(frozen=True, slots=True, eq=False)
class NativeFrame:
    """One stored frame: its index from 0, its time from the first frame, upright RGB (H, W, 3)."""

    index: int
    pts_s: float
    rgb: NDArray[np.uint8]


def read_frames(
    path: str | os.PathLike[str],
    *,
    fps: float | None = 25,
    limits: Limits | None = None,
    start_s: float = 0.0,
    end_s: float | None = None,
) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of a clip, or of a range of it.

    Frame k is what stands on the screen at `start_s + k / fps` once every picture is moved to its
    nearest slot (`timeline.resample`). A repeated picture is the same array again: copy it before
    writing into it. Reading stops at the end of the range; what lies behind is not checked.

    Args:
        path: a video file.
        fps: constant rate of the output, or None for every stored frame, whatever its time.
        limits: what the file may ask for.
        start_s: start of the range, in seconds from the first frame.
        end_s: end of the range (half-open), or None for the end of the clip.

    Yields:
        uint8 (H, W, 3), RGB, full range, upright, square pixels, contiguous.

    Raises:
        MediaError: kinds in docs/inputs.md; `empty-range` if the range holds no frame.
    """
    if fps is None:
        for native in read_native_frames(path, limits=limits, start_s=start_s, end_s=end_s):
            yield native.rgb
        return
    for show in read_shown(path, fps=fps, limits=limits, start_s=start_s, end_s=end_s):
        yield show()


def read_shown(
    path: str | os.PathLike[str],
    *,
    fps: float = 25,
    limits: Limits | None = None,
    start_s: float = 0.0,
    end_s: float | None = None,
) -> Iterator[Callable[[], NDArray[np.uint8]]]:
    """Yield for each frame of `read_frames` what gives it, for those who need only some of them.

    Converting to RGB takes most of the time of a small H.264 picture. A repeated picture is the
    same callable again. One gives its frame also after the next was drawn, and at the end.
    """
    _check_range(path, start_s, end_s)
    with ClipReader(path, limits=limits) as clip:
        convert = _Convert(clip)
        shown = 0
        last: VideoFrame | None = None
        show: Callable[[], NDArray[np.uint8]] | None = None
        timed = clip.pictures()
        for frame in resample(timed, clip.timeline, fps=fps, start_s=start_s, end_s=end_s):
            if show is None or frame is not last:
                last, show = frame, functools.cache(functools.partial(convert, frame))
            yield show
            shown += 1
        if shown == 0:
            raise _empty(clip, start_s)


def read_native_frames(
    path: str | os.PathLike[str],
    *,
    limits: Limits | None = None,
    start_s: float = 0.0,
    end_s: float | None = None,
) -> Iterator[NativeFrame]:
    """Yield every stored frame whose time lies in [start_s, end_s); see `read_frames`."""
    _check_range(path, start_s, end_s)
    with ClipReader(path, limits=limits) as clip:
        convert = _Convert(clip)
        shown = 0
        for index, (frame, pts_s) in enumerate(clip.pictures()):
            if end_s is not None and pts_s >= end_s:
                break
            if pts_s >= start_s:
                yield NativeFrame(index, pts_s, convert(frame))
                shown += 1
        if shown == 0:
            raise _empty(clip, start_s)


class _Convert:
    """The converter of one clip, after a look at its colour matrix."""

    def __init__(self, clip: ClipReader) -> None:
        self._clip = clip
        self._rgb = RgbConverter()

    def __call__(self, frame: VideoFrame) -> NDArray[np.uint8]:
        colour = colour_of(frame)
        if not colour.is_supported:
            raise MediaError(
                self._clip.path,
                "unsupported-codec",
                f"has colour matrix {colour.matrix}, which is not read; re-encode it as BT.709",
            )
        aspect: Fraction | None = self._clip.aspect
        return self._rgb.convert(frame, aspect=aspect)


def _check_range(path: str | os.PathLike[str], start_s: float, end_s: float | None) -> None:
    if start_s < 0 or (end_s is not None and end_s <= start_s):
        raise MediaError(
            path, "empty-range", f"the range {start_s:g} to {end_s} s holds nothing; mend the range"
        )


def _empty(clip: ClipReader, start_s: float) -> MediaError:
    return MediaError(
        clip.path,
        "empty-range",
        f"the range starts at {start_s:g} s, the clip ends at {clip.timeline.end_s:.2f} s",
    )
