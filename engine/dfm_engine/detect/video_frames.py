"""The frames of one video that a detector is to see, cut out as its training data were.

In: any file. Out: a `VideoFrames`. The file is probed first, by full decode. What is cropped
already is taken whole: a clip of a built data set, or any square picture of up to `WHOLE_PX`. In
anything else the face is found and boxed as a build does it (`faces.framing`), and frames near
which it was not seen are left out. Frames are chosen and cut as `dfm-engine prepare` does, so a
clip has the same pixels here and in a store.
"""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dfm_engine.clip import Box, FaceTrack, Pixels
from dfm_engine.columns import text_of_path
from dfm_engine.errors import FaceError, MediaError, UsageError
from dfm_engine.faces.box import clip_box
from dfm_engine.faces.framing import Detector, look_at_clip
from dfm_engine.faces.pictures import ClipRange
from dfm_engine.media.cropping import BoxCropper, middle_square
from dfm_engine.media.probe import Probe, probe
from dfm_engine.media.still import read_still
from dfm_engine.recipe import Clips, Faces, Limits
from dfm_engine.store.sampler import evenly_spaced
from dfm_engine.store.sampling import sample_clip

__all__ = ["CROPS", "WHOLE_PX", "Crop", "VideoFrames", "read_video", "shown_name"]

Crop = Literal["auto", "face", "whole"]
CROPS = ("auto", "face", "whole")
WHOLE_PX = 512
"""A larger square is more likely a camera's picture than a cropped face."""
MIN_FOUND_SHARE = 0.2
"""A build wants a face nearly throughout; a score can be had of less, and says how much."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VideoFrames:
    """What is shown to a detector of one video.

    Attributes:
        path: the file.
        frames: uint8 (T, S, S, 3).
        numbers: (T,) of the frames in the file.
        missed: frames that were chosen, and left out since the face was not seen near them.
        crop: how they were cut out.
        box: of the face, in pixels of the upright picture.
        sha256: of the file, hex.
    """

    path: Path
    frames: Pixels
    numbers: NDArray[np.int64]
    missed: int
    crop: Literal["face", "whole"]
    box: Box | None
    sha256: str

    def __repr__(self) -> str:
        return f"VideoFrames({os.fspath(self.path)!r}, frames={self.frames.shape})"


def read_video(
    path: Path,
    *,
    frames: int,
    size_px: int,
    detector: Detector,
    crop: Crop = "auto",
    limits: Limits | None = None,
) -> VideoFrames:
    """Read the frames of one video, or of a still picture, which has one.

    Args:
        path: of the file.
        frames: evenly spaced, at most; 0 is every frame.
        size_px: side of the frames.
        detector: finds faces.
        crop: `auto` as the module's docstring says, or one way for all files.
        limits: what the file may ask for.

    Raises:
        MediaError: the file cannot be used whole.
        FaceError: no face to look at.
    """
    if crop not in CROPS:
        raise UsageError(f"--crop takes {', '.join(CROPS)}, found {crop!r}")
    limits = limits or Limits()
    found = probe(path, limits=limits)
    if found.verdict != "accept":
        raise MediaError(path, found.error or "corrupt", found.reason)
    if _is_cropped(found) if crop == "auto" else crop == "whole":
        numbers = evenly_spaced(found.frames or 1, frames)
        return _read(found, numbers, None, missed=0, size_px=size_px, limits=limits)
    clips = Clips(max_frames=limits.frames)
    settings = dataclasses.replace(Faces(), min_found_share=MIN_FOUND_SHARE)
    seen = look_at_clip(
        ClipRange(path=path, is_still=found.is_still, sha256=found.sha256),
        detector=detector,
        limits=limits,
        faces=settings,
        clips=clips,
        must_move=False,
    )
    rate = (found.fps or clips.fps) / clips.fps  # the detector saw frames at the canonical rate
    total = found.frames or 1
    first = min(math.ceil(seen.first_frame * rate), total - 1)
    numbers = first + evenly_spaced(total - first, frames)
    shown = _is_shown(seen.track, (numbers / rate) - seen.first_frame)
    if not shown.any():
        raise FaceError(
            path, "face-lost", f"no face near any of {len(numbers)} evenly spaced frames"
        )
    return _read(
        found,
        numbers[shown],
        clip_box(seen.track, enlarge=settings.enlarge),
        missed=int((~shown).sum()),
        size_px=size_px,
        limits=limits,
    )


def shown_name(path: Path) -> str:
    """A file's name for a person: control characters and bytes that are no text are spelt out."""
    name = text_of_path(path)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def _is_cropped(found: Probe) -> bool:
    return found.width == found.height and (found.width or 0) <= WHOLE_PX


def _is_shown(track: FaceTrack, times: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether the look nearest to each time (in frames of the track) held the face."""
    looks = np.flatnonzero(track.looked_at)
    middles = (looks[1:] + looks[:-1]) / 2
    return track.found[looks[np.searchsorted(middles, times)]]


def _read(
    found: Probe,
    numbers: NDArray[np.integer],
    box: Box | None,
    *,
    missed: int,
    size_px: int,
    limits: Limits,
) -> VideoFrames:
    if found.is_still:
        picture = read_still(found.path, limits=limits)
        height, width, _ = picture.shape
        cut = BoxCropper(height, width, box or middle_square(height, width), size_px)
        pixels = cut(picture)[None]
    else:
        sample = sample_clip(
            found.path,
            kind="video",
            clip_frames=found.frames or 0,
            wanted=numbers.tolist(),
            box=box,
            sha256=found.sha256,
            size_px=size_px,
            layout="rgb24",
            limits=limits,
        )
        pixels = np.stack(list(sample.frames))
    return VideoFrames(
        path=found.path,
        frames=pixels,
        numbers=numbers.astype(np.int64),
        missed=missed,
        crop="face" if box is not None else "whole",
        box=box,
        sha256=found.sha256 or "",
    )
