"""What opens the file of one video: generators that a process without torch can run.

In: a file, and what was found out about it. Out: the pieces that `video_frames` puts together. See
`media.decoding_process` for the process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfm_engine.clip import Box
from dfm_engine.faces.pictures import ClipRange, PyavReader
from dfm_engine.media.cropping import BoxCropper, middle_square
from dfm_engine.media.probe import Probe, probe
from dfm_engine.media.still import read_still
from dfm_engine.recipe import Clips, Limits
from dfm_engine.store.sampling import sample_clip

__all__ = ["cut_frames", "pictures_to_look_at", "what_it_is"]


def what_it_is(path: Path, limits: Limits) -> Iterator[Probe]:
    """Yield the probe of a file, by full decode."""
    yield probe(path, limits=limits)


def pictures_to_look_at(
    path: Path, clip: ClipRange, every_n: int, limits: Limits, clips: Clips
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield every n-th picture with its number, as a build looks at them.

    Raises:
        MediaError: the file does not decode.
    """
    return PyavReader().look(clip, every_n=every_n, limits=limits, clips=clips)


def cut_frames(
    path: Path,
    found: Probe,
    numbers: Sequence[int],
    box: Box | None,
    size_px: int,
    limits: Limits,
) -> Iterator[NDArray[np.uint8]]:
    """Yield chosen frames (S, S, 3), cut as those of a store are.

    Args:
        path: of the file.
        found: its probe.
        numbers: which frames, ascending; of a still picture there is one.
        box: what to cut out; None is the whole picture, of one that is not square its middle.
        size_px: side of the frames.
        limits: what the file may ask for.

    Raises:
        MediaError: the file does not decode, or is another than was probed.
    """
    if found.is_still:
        picture = read_still(path, limits=limits)
        height, width, _ = picture.shape
        yield BoxCropper(height, width, box or middle_square(height, width), size_px)(picture)
        return
    sample = sample_clip(
        path,
        kind="video",
        clip_frames=found.frames or 0,
        wanted=numbers,
        box=box,
        sha256=found.sha256,
        size_px=size_px,
        layout="rgb24",
        limits=limits,
    )
    yield from sample.frames
