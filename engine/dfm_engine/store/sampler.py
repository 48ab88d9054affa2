"""What fills a store: a `FrameSampler` is told which frames of which clips, and hands them on.

In: `ClipToSample`s, in the order of the store. Out: for each, in that order, either its frames
(`Sampled`; a long clip in several parts) or why there are none (`Refused`). A sampler never raises
for a bad clip, holds a bounded number of clips, and gives the same bytes in every run.

`pyav.PyavSampler` is the one for processors; `fill.choose_sampler` is where `--decode` picks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from dfm_engine.clip import Box
from dfm_engine.errors import MediaError

__all__ = ["ClipToSample", "FrameSampler", "Refused", "Sampled", "evenly_spaced"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClipToSample:
    """Which frames of a clip are wanted, and how they are cut out.

    Attributes:
        place: counts the clips given to one sampler.
        path: a video file, or a folder of pictures.
        kind: which of the two.
        clip_frames: how many pictures it has, in order of showing; one that has another number is
            to be refused.
        wanted: (n,) int32, ascending, below `clip_frames`.
        box: what to cut out, in pixels of the upright picture; None is the whole picture, of one
            that is not square its middle square.
        sha256: what the file must have, hex; None where that is not known.
    """

    place: int
    path: Path
    kind: Literal["video", "pictures"] = "video"
    clip_frames: int
    wanted: NDArray[np.int32]
    box: Box | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sampled:
    """Frames of a clip.

    Attributes:
        clip: whose they are.
        frames: uint8 (n, *frame_shape), contiguous, of `wanted`, in order; valid until the next
            item is drawn.
        is_last: no part of this clip follows. Until then the clip can still be refused.
        sha256: of the file that was read, hex (see `StoredClip`); of the last part.
    """

    clip: ClipToSample
    frames: NDArray[np.uint8]
    is_last: bool = True
    sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Refused:
    """A clip that gives no frames; parts of it that were handed on do not count.

    Attributes:
        clip: which one.
        error: kind and reason (docs/inputs.md).
        attempts: workers that died on it.
    """

    clip: ClipToSample
    error: MediaError
    attempts: int = 0


class FrameSampler(Protocol):
    """Reads frames of clips."""

    @property
    def name(self) -> Literal["pyav", "dali"]:
        """As `meta.json` calls it."""
        ...

    def sample(self, clips: Iterable[ClipToSample]) -> Iterator[Sampled | Refused]:
        """Yield every clip's frames, or why it has none, in the order of `clips`.

        `clips` is drawn no further ahead than needed. Closing the iterator ends what it started.

        Raises:
            EnvironmentUnfit: nothing can be read on this machine.
        """
        ...


def evenly_spaced(clip_frames: int, frames: int) -> NDArray[np.int32]:
    """The frames to take of a clip: the middles of equal parts, the same for both labels.

    Middles, because the first frame of an animation is its source image almost as it was: a
    detector must not live on it.

    Args:
        clip_frames: how many it has.
        frames: how many are wanted; 0, or more than it has, is all of them.

    Returns:
        (n,) int32, ascending, without repeats.
    """
    if frames <= 0 or frames >= clip_frames:
        return np.arange(clip_frames, dtype=np.int32)
    places = np.arange(frames, dtype=np.int64)
    return ((2 * places + 1) * clip_frames // (2 * frames)).astype(np.int32)
