"""The pictures of a clip that framing needs, behind one seam: on the CPU, or decoded on a GPU.

In: a `ClipRange`. Out: every n-th picture to look for the face, and later the whole clip cut to its
box. `PyavReader` is the one of every machine; `store.dali_reader.DaliReader` decodes with NVDEC
what NVDEC takes. Which of the two is used changes pixels by a rounding here and there, so it is
chosen once per run, where the networks are loaded, and is a part of the run's contract.

Importing this does not load torch, which cutting needs and looking does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from dfm_engine.clip import Box, DrivingClip, Pixels, SourceClip
from dfm_engine.errors import MediaError
from dfm_engine.media.decode import read_shown, read_still
from dfm_engine.recipe import Clips, Limits

if TYPE_CHECKING:
    from dfm_kernels.crop import Cropper

__all__ = ["ClipRange", "FrameReader", "PyavReader", "no_frame_after"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipRange:
    """Which pictures of a file are meant.

    Attributes:
        path: a video file, or a picture with `is_still`.
        start_s, end_s: the range, half-open, in seconds from the first picture.
        mirrored: pictures are flipped left to right as they are read.
        is_still: a picture; it gives one frame.
        sha256: of a file that was found whole, hex; None where nobody looked.
    """

    path: Path
    start_s: float = 0.0
    end_s: float | None = None
    mirrored: bool = False
    is_still: bool = False
    sha256: str | None = None

    @classmethod
    def of(cls, clip: SourceClip | DrivingClip) -> ClipRange:
        """What a listed clip means."""
        if isinstance(clip, SourceClip):
            return cls(path=clip.path, is_still=clip.is_still, sha256=clip.sha256)
        return cls(
            path=clip.path,
            start_s=clip.start_s,
            end_s=clip.end_s,
            mirrored=clip.mirrored,
            sha256=clip.sha256,
        )

    def read(self, *, limits: Limits, clips: Clips) -> Iterator[NDArray[np.uint8]]:
        """Yield its pictures (H, W, 3) at the canonical rate, `clips.max_frames` at most.

        Raises:
            MediaError: the file does not decode.
        """
        return (show() for show in self.shown(limits=limits, clips=clips))

    def shown(self, *, limits: Limits, clips: Clips) -> Iterator[Callable[[], NDArray[np.uint8]]]:
        """Yield what gives each picture of `read`: see `media.decode.read_shown`."""
        if self.is_still:
            still = read_still(self.path, limits=limits)
            pictures = iter([lambda: still])
        else:
            pictures = read_shown(
                self.path, fps=clips.fps, limits=limits, start_s=self.start_s, end_s=self.end_s
            )
        for show in islice(pictures, clips.max_frames):
            yield partial(_mirrored, show) if self.mirrored else show


class FrameReader(Protocol):
    """Reads pictures of clips; `name`, with a version where it counts, is in a run's contract."""

    name: str

    def look(
        self, clip: ClipRange, *, every_n: int, limits: Limits, clips: Clips
    ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield (number, upright picture) of every n-th frame from 0 on, and of the last frame.

        Raises:
            MediaError: the file does not decode.
        """
        ...

    def crop(
        self,
        clip: ClipRange,
        box: Box,
        *,
        size: int,
        limits: Limits,
        clips: Clips,
        first_frame: int,
    ) -> Pixels:
        """Cut every frame from `first_frame` on: uint8 (T, size, size, 3).

        Raises:
            MediaError: the file does not decode, or holds no such frame.
        """
        ...


class PyavReader:
    """Decodes and cuts on the CPU."""

    name = "pyav"  # its version is in the contract anyway

    def look(
        self, clip: ClipRange, *, every_n: int, limits: Limits, clips: Clips
    ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """See `FrameReader.look`; holds one picture, and converts none in vain."""
        index = -1
        last: Callable[[], NDArray[np.uint8]] | None = None
        for index, show in enumerate(clip.shown(limits=limits, clips=clips)):
            if index % every_n == 0:
                yield index, show()
            last = show
        if last is not None and index % every_n:
            yield index, last()

    def crop(
        self,
        clip: ClipRange,
        box: Box,
        *,
        size: int,
        limits: Limits,
        clips: Clips,
        first_frame: int,
    ) -> Pixels:
        """See `FrameReader.crop`; holds one picture and the cut frames."""
        import torch

        from dfm_engine.torch_threads import one_thread
        from dfm_kernels.crop import Cropper

        # Pages of it that no frame reaches are never touched, so the length may be generous.
        frames = np.empty((1 if clip.is_still else clips.max_frames, size, size, 3), np.uint8)
        count = 0
        cropper: Cropper | None = None
        with one_thread():
            for index, picture in enumerate(clip.read(limits=limits, clips=clips)):
                if index < first_frame:
                    continue
                if cropper is None:
                    cropper = Cropper(picture.shape[0], picture.shape[1], box, size)
                frame = torch.from_numpy(np.require(picture, requirements="W"))
                frames[count] = cropper(frame).numpy()
                count += 1
        if not count:
            raise no_frame_after(clip.path, first_frame)
        return frames[:count]


def _mirrored(show: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(show()[:, ::-1])


def no_frame_after(path: Path, first_frame: int) -> MediaError:
    """What a clip is that became shorter since it was looked at."""
    return MediaError(
        path,
        "empty-range",
        f"holds no frame after frame {first_frame}; it held some before: do not change inputs "
        "during a run",
    )
