"""What is to be taken of which clip: the options of a store, and the plan that follows from them.

In: the listed clips, and for those of a plain folder what a look at them found (`looks`). Out: the
clips of every shard. Which clips share a shard depends on the list and the number of frames alone.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dfm_engine.clip import QUALITIES, Box, Quality
from dfm_engine.errors import UsageError
from dfm_engine.interrupts import StopRequest
from dfm_engine.machine import PACKAGES, installed
from dfm_engine.recipe import Limits
from dfm_engine.store.listing import DataListing, ListedClip
from dfm_engine.store.looks import (
    Crop,
    Look,
    add_faces,
    crop_of_store,
    find_face,
    look_at_clips,
)
from dfm_engine.store.meta import RESAMPLER, Layout, StoreMeta
from dfm_engine.store.sampler import ClipToSample, evenly_spaced

__all__ = [
    "PlannedClip",
    "PrepareOptions",
    "deal_out",
    "plan_clips",
    "settings_of",
    "versions_of",
]

SHARD_ROWS = 1024  # 200 MB of 256 x 256 rgb24: what a killed run loses at most
CLIPS_OF_ALL_FRAMES = 8  # per shard, where all frames are stored


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareOptions:
    """What a store is asked for.

    Attributes:
        data: a built data set, or a folder of clips or of folders of pictures (`listing`).
        out: the store.
        frames: evenly spaced frames of each clip; 0, or more than it has, is all.
        size_px: side of the stored frames.
        layout: `rgb24` or `i420`.
        crop: `face`, by the box of a build; `whole`, or its middle square; `auto`: whole where
            every clip is square. Clips of a built data set are always whole.
        qualities: of a built data set, which files.
        reader, identity_csv, identity_regex: how a plain folder is read (`listing.list_data`).
        device: auto, cpu or cuda: where faces are looked for.
    """

    data: Path
    out: Path
    frames: int
    size_px: int = 256
    layout: Layout = "rgb24"
    crop: Crop = "auto"
    qualities: tuple[Quality, ...] = QUALITIES
    reader: str = "auto"
    identity_csv: Path | None = None
    identity_regex: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.frames < 0:
            raise UsageError(f"--frames is 0 (all) or more, found {self.frames}")
        if self.layout not in ("rgb24", "i420"):
            raise UsageError(f"--layout takes rgb24 or i420, found {self.layout!r}")
        if not 16 <= self.size_px <= 2048 or self.size_px % 2:
            raise UsageError(f"--size is an even number from 16 to 2048, found {self.size_px}")
        if self.crop not in ("auto", "face", "whole"):
            raise UsageError(f"--crop takes auto, face or whole, found {self.crop!r}")
        if not self.qualities or not set(self.qualities) <= set(QUALITIES):
            raise UsageError(
                f"--quality takes {', '.join(QUALITIES)}, found {', '.join(self.qualities)!r}"
            )

    @property
    def meta(self) -> StoreMeta:
        """Of a store without frames."""
        return StoreMeta(
            size_px=self.size_px,
            layout=self.layout,
            frames_per_clip=self.frames,
            versions=versions_of("pyav"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedClip:
    """A listed clip, and what is to be taken of it.

    Attributes:
        listed: what it is.
        clip_frames: pictures in its file.
        first_frame: the first that may be taken.
        box: what is cut out; None is the whole picture, or its middle square.
        refusal: why nothing is, or None.
    """

    listed: ListedClip
    clip_frames: int = 0
    first_frame: int = 0
    box: Box | None = None
    refusal: Look | None = None

    def wanted(self, frames: int) -> NDArray[np.int32]:
        """The numbers of the frames to store, of `frames` asked for."""
        spaced = evenly_spaced(self.clip_frames - self.first_frame, frames)
        return spaced + np.int32(self.first_frame)

    def to_sample(self, place: int, frames: int) -> ClipToSample:
        """As a sampler wants it."""
        return ClipToSample(
            place=place,
            path=self.listed.file,
            kind=self.listed.kind,
            clip_frames=self.clip_frames,
            wanted=self.wanted(frames),
            box=self.box,
            sha256=self.listed.sha256,
        )


def settings_of(
    options: PrepareOptions, data: DataListing, *, decode: str, limits: Limits
) -> dict[str, Any]:
    """All that must not change while a folder is filled, as JSON values."""
    return {
        "frames": options.frames,
        "size_px": options.size_px,
        "layout": options.layout,
        "crop": "whole" if data.is_built else options.crop,
        "resampler": RESAMPLER,
        "decode": decode,
        "versions": versions_of(decode),
        "limits": asdict(limits),
        "reader": data.reader,
        "quality": list(options.qualities) if data.is_built else None,
        "clips": len(data.clips),
        "clips_sha256": data.digest(),
    }


def plan_clips(
    options: PrepareOptions,
    data: DataListing,
    looks_folder: Path,
    *,
    limits: Limits,
    workers: int,
    stop: StopRequest,
    seen: Callable[[str, int, int, int], None] = lambda stage, done, total, unusable: None,
) -> list[PlannedClip]:
    """Look at the clips that nothing vouches for, and say what is to be taken of every one.

    Args:
        options: what is wanted.
        data: the listed clips.
        looks_folder: where looks are kept.
        limits: what a file may ask for.
        workers: processes that decode.
        stop: polled after each clip.
        seen: told the stage, the clips done and in all, and how many cannot be used.

    Returns:
        One entry per listed clip, in their order.

    Raises:
        Interrupted: `stop` was set.
    """
    unknown = [clip for clip in data.clips if clip.clip_frames is None]
    looks: dict[str, tuple[ListedClip, Look]] = {}
    crop: Literal["face", "whole"] = "whole"
    unusable = 0
    if unknown:
        found = look_at_clips(unknown, looks_folder, limits=limits, workers=workers)
        for done, (clip, look) in enumerate(found):
            looks[clip.key] = clip, look
            unusable += not look.is_usable
            seen("look", done + 1, len(unknown), unusable)
            stop.raise_if_set()
        found_looks = [look for _, look in looks.values()]
        crop = crop_of_store(options.crop, found_looks, looks_folder)
    if crop == "face":
        usable = [clip.key for clip, look in looks.values() if look.is_usable]
        found = add_faces(
            [looks[key] for key in usable], looks_folder, lambda: find_face(options.device, limits)
        )
        for done, (clip, look) in enumerate(found):
            looks[clip.key] = clip, look
            unusable += not look.is_usable
            seen("face", done + 1, len(usable), unusable)
            stop.raise_if_set()
    return [_planned(clip, looks.get(clip.key), crop) for clip in data.clips]


def deal_out(plan: Sequence[PlannedClip], frames: int) -> tuple[tuple[PlannedClip, ...], ...]:
    """The usable clips of every shard; a shard may have none."""
    each = max(1, SHARD_ROWS // frames) if frames else CLIPS_OF_ALL_FRAMES
    return tuple(
        tuple(clip for clip in plan[start : start + each] if clip.refusal is None)
        for start in range(0, len(plan), each)
    )


def _planned(
    clip: ListedClip, known: tuple[ListedClip, Look] | None, crop: Literal["face", "whole"]
) -> PlannedClip:
    if known is None:
        assert clip.clip_frames is not None
        return PlannedClip(listed=clip, clip_frames=clip.clip_frames)
    _, look = known
    if not look.is_usable:
        return PlannedClip(listed=clip, refusal=look)
    if crop == "whole":
        return PlannedClip(listed=clip, clip_frames=look.frames)
    return PlannedClip(
        listed=clip, clip_frames=look.frames, first_frame=look.first_frame, box=look.box
    )


def versions_of(decode: str) -> dict[str, str]:
    """Of what decides the bytes; of DALI where that decodes."""
    found = {name: importlib.metadata.version(name) for name in ("dfm-engine", "av", "numpy")}
    if decode == "dali":
        found |= {k: v for k, v in installed(PACKAGES).items() if k.startswith("nvidia-dali")}
    return found
