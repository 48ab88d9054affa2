"""The frames of one video that a detector is to see, cut out as its training data were.

In: any file. Out: a `VideoFrames`. The file is probed first, by full decode. What is cropped
already is taken whole: a clip of a built data set, or any square picture of up to `WHOLE_PX`. In
anything else the face is found and boxed as a build does it (`faces.framing`), and frames near
which it was not seen are left out. Frames are chosen and cut as `dfm-engine prepare` does, so a
clip has the same pixels here and in a store. Whatever opens the file can be done by another
process (`video_reading`); networks stay here.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dfm_engine.clip import Box, FaceTrack, Pixels
from dfm_engine.columns import text_of_path
from dfm_engine.detect.video_reading import cut_frames, pictures_to_look_at, what_it_is
from dfm_engine.errors import FaceError, MediaError, UsageError
from dfm_engine.faces.box import clip_box
from dfm_engine.faces.framing import Detector, look_at_clip
from dfm_engine.faces.pictures import ClipRange, PyavReader
from dfm_engine.media.decoding_process import Decoding, decoding_here
from dfm_engine.media.probe import Probe
from dfm_engine.recipe import Clips, Faces, Limits
from dfm_engine.store.sampler import evenly_spaced

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
    decoding: Decoding = decoding_here,
) -> VideoFrames:
    """Read the frames of one video, or of a still picture, which has one.

    Args:
        path: of the file.
        frames: evenly spaced, at most; 0 is every frame.
        size_px: side of the frames.
        detector: finds faces.
        crop: `auto` as the module's docstring says, or one way for all files.
        limits: what the file may ask for.
        decoding: opens the file; this process where left out.

    Raises:
        MediaError: the file cannot be used whole.
        FaceError: no face to look at.
        WorkerDied: of `decoding`.
    """
    if crop not in CROPS:
        raise UsageError(f"--crop takes {', '.join(CROPS)}, found {crop!r}")
    limits = limits or Limits()
    (found,) = decoding.stream(what_it_is, path, limits)
    if found.verdict != "accept":
        raise MediaError(path, found.error or "corrupt", found.reason)
    if _is_cropped(found) if crop == "auto" else crop == "whole":
        numbers = evenly_spaced(found.frames or 1, frames)
        return _read(
            found, numbers, None, missed=0, size_px=size_px, limits=limits, decoding=decoding
        )
    clips = Clips(max_frames=limits.frames)
    settings = dataclasses.replace(Faces(), min_found_share=MIN_FOUND_SHARE)
    seen = look_at_clip(
        ClipRange(path=path, is_still=found.is_still, sha256=found.sha256),
        detector=detector,
        limits=limits,
        faces=settings,
        clips=clips,
        reader=_Elsewhere(decoding),
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
        decoding=decoding,
    )


class _Elsewhere(PyavReader):
    """The reader of a build, whose looks are drawn from another process."""

    def __init__(self, decoding: Decoding) -> None:
        self._decoding = decoding

    def look(
        self, clip: ClipRange, *, every_n: int, limits: Limits, clips: Clips
    ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """See `FrameReader.look`."""
        yield from self._decoding.stream(
            pictures_to_look_at, clip.path, clip, every_n, limits, clips
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
    decoding: Decoding,
) -> VideoFrames:
    pixels = np.stack(
        list(decoding.stream(cut_frames, found.path, found, numbers.tolist(), box, size_px, limits))
    )
    return VideoFrames(
        path=found.path,
        frames=pixels,
        numbers=numbers.astype(np.int64),
        missed=missed,
        crop="face" if box is not None else "whole",
        box=box,
        sha256=found.sha256 or "",
    )
