"""The score of every frame: what a detector says of a store, before anything is concluded.

In: a runner and the clips of a store. Out: a `FrameScores`, which also goes to `scores.parquet`, so
that every number of an evaluation can be computed again, and others, without the networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfm_engine.columns import column, write_table
from dfm_engine.errors import CheckFailed
from dfm_engine.overlap import Ahead
from dfm_engine.store.augment import FusedAugment
from dfm_engine.store.sampler import evenly_spaced

if TYPE_CHECKING:
    from dfm_engine.detect.runner import DetectorRunner
    from dfm_engine.store.frames import Store
    from dfm_engine.store.index import StoredClip

__all__ = ["SCORES", "FrameScores", "score_store"]

SCORES = "scores.parquet"
COLUMNS = (
    column("path", "string", "file of the frame, below the data's folder"),
    column("clip_id", "string", "the same in every quality of one clip"),
    column("frame", "int32", "its number in the file"),
    column("label", "string", "real or fake"),
    column("action", "string", "facial action of a fake", null=True),
    column("quality", "string", "raw, c23 or c40", null=True),
    column("identity", "string", "who is seen"),
    column("split", "string", "train, val or test", null=True),
    column("p_fake", "float64", "probability of fake"),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrameScores:
    """Scores of the frames of some clips.

    Attributes:
        clips: every clip that has a frame here; one file, so one video, each.
        clip: (N,) int64, the place in `clips`.
        frame: (N,) int64, the frame's number in its file.
        p_fake: (N,) float64.
    """

    clips: Sequence[StoredClip]
    clip: NDArray[np.int64]
    frame: NDArray[np.int64]
    p_fake: NDArray[np.float64]

    def __repr__(self) -> str:
        return f"FrameScores(clips={len(self.clips)}, frames={len(self)})"

    def __len__(self) -> int:
        return len(self.p_fake)

    def of_clips(self) -> NDArray[np.float64]:
        """(clips,) the mean fake probability over the frames of every clip."""
        counts = np.bincount(self.clip, minlength=len(self.clips))
        return np.bincount(self.clip, self.p_fake, len(self.clips)) / counts

    def write(self, path: Path) -> None:
        """As Parquet, one row per frame.

        Raises:
            EnvironmentUnfit: it cannot be written.
        """
        write_table(COLUMNS, map(self._row, range(len(self))), path, kind="frame scores")

    def _row(self, index: int) -> dict[str, Any]:
        clip = self.clips[int(self.clip[index])]
        return {
            "path": clip.path,
            "clip_id": clip.clip_id,
            "frame": int(self.frame[index]),
            "label": clip.label,
            "action": clip.action,
            "quality": clip.quality,
            "identity": clip.identity,
            "split": clip.split,
            "p_fake": float(self.p_fake[index]),
        }


def score_store(
    runner: DetectorRunner,
    store: Store,
    clips: Sequence[StoredClip],
    *,
    frames: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> FrameScores:
    """Score evenly spaced frames of clips of a store, in the order of its rows.

    Args:
        runner: the detector.
        store: where the frames are.
        clips: of `store.index`.
        frames: per clip, of those stored; 0, or more than there are, is all.
        progress: called with (frames done, frames in all).

    Raises:
        CheckFailed: the detector gave something that is no probability.
    """
    taken = [evenly_spaced(clip.frames, frames) + clip.first_row for clip in clips]
    rows = np.concatenate([part.astype(np.int64) for part in taken])
    clip = np.repeat(np.arange(len(clips)), [len(part) for part in taken])
    pixels = _Pixels(store, runner.device)
    p_fake = np.empty(len(rows))
    starts = range(0, len(rows), runner.max_batch)
    batches = (store.read(rows[start : start + runner.max_batch]) for start in starts)
    with Ahead(batches, depth=1, name="read") as read:  # while the net runs
        for start, raw in zip(starts, read, strict=True):
            stop = start + runner.max_batch
            p_fake[start:stop] = runner.run(pixels(raw)).fake.double().cpu().numpy()
            progress(min(stop, len(rows)), len(rows))
    bad = np.flatnonzero(~((p_fake >= 0) & (p_fake <= 1)))
    if len(bad):
        first = int(bad[0])
        raise CheckFailed(
            f"scoring {clips[int(clip[first])].path}: {runner.name} gave {p_fake[first]} for a "
            f"frame, and {len(bad)} such in all; the weights {runner.weights_sha256[:12]} are "
            "damaged or do not bear this precision"
        )
    frame = store.index.frame[rows].astype(np.int64)
    return FrameScores(clips=tuple(clips), clip=clip, frame=frame, p_fake=p_fake)


class _Pixels:
    """Stored frames as RGB bytes on a device; an i420 store by the conversion of training."""

    def __init__(self, store: Store, device: torch.device) -> None:
        self.device = device
        self._convert: FusedAugment | None = None
        if store.meta.layout == "i420":
            self._convert = FusedAugment(
                store.meta,
                size_px=store.meta.size_px,
                mean=(0.0, 0.0, 0.0),
                std=(1.0, 1.0, 1.0),
                device=device,
                dtype=torch.float32,
                compiled=False,
            )

    def __call__(self, raw: NDArray[np.uint8]) -> Tensor:
        """Uint8 (B, S, S, 3)."""
        frames = torch.from_numpy(raw).to(self.device)
        if self._convert is None:
            return frames
        images = self._convert(frames).permute(0, 2, 3, 1)
        return (images * 255 + 0.5).floor_().clamp_(0, 255).to(torch.uint8)
