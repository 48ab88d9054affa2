"""Animate many clips in full batches: sources and driving keypoints in, frames out.

A batch is filled with rows (frames) of whatever jobs are next, so that short clips cost no more
per frame than long ones. Every batch has the same number of rows, the last one padded, because a
convolution may round differently at another batch size: so a row's pixels depend on its own
source and keypoints alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from dfm_engine.backends import Runner
from dfm_engine.clip import Pixels
from dfm_engine.errors import EnvironmentUnfit, ShapeError
from dfm_engine.fomm.values import Keypoints, SourceFeatures
from dfm_engine.pixels import frames_from_images, images_from_frames


@dataclass(frozen=True, slots=True, kw_only=True)
class AnimationJob:
    """One clip to make.

    Attributes:
        key: the caller's name for it; not looked at here.
        source: one row of source features.
        kp_source: one row.
        kp_driving: T rows, already carried over to the source (`fomm.transfer`).
    """

    key: Hashable
    source: SourceFeatures
    kp_source: Keypoints
    kp_driving: Keypoints

    def __post_init__(self) -> None:
        if len(self.source) != 1 or len(self.kp_source) != 1 or len(self.kp_driving) == 0:
            raise ShapeError(
                f"job {self.key!r} needs one source row and at least one driving row, got "
                f"{len(self.source)} and {len(self.kp_source)} source rows, "
                f"{len(self.kp_driving)} driving rows"
            )


@dataclass(slots=True)
class _Progress:
    """A job under way; the first `done` of its `frames` are filled."""

    job: AnimationJob
    frames: Pixels
    done: int = 0

    @property
    def rows_left(self) -> int:
        return len(self.frames) - self.done


def animate_jobs(
    jobs: Iterable[AnimationJob],
    *,
    runner: Runner,
    batch_size: int,
    on_halved: Callable[[int], None] | None = None,
) -> Iterator[tuple[AnimationJob, Pixels]]:
    """Animate jobs one after the other, in batches that cross from one to the next.

    Holds the jobs of one batch and no more: the next is asked for when its rows are needed, and
    a finished one is handed on before that.

    Args:
        jobs: in the order wanted; asked for lazily.
        runner: holds the model.
        batch_size: rows in every batch; while the device has too little memory for it, halved.
        on_halved: told the new number before it is used.

    Yields:
        Each job with its frames, uint8 (T, H, W, 3) RGB, in the order of `jobs`.

    Raises:
        ShapeError: a batch size below 1, or a job whose shapes are not the model's.
        EnvironmentUnfit: the device has too little memory for one row.
    """
    if batch_size < 1:
        raise ShapeError(f"batch_size must be at least 1, got {batch_size}")

    def run_batch() -> None:
        nonlocal batch_size
        while True:
            try:
                return _run_batch(waiting, runner, batch_size)
            except torch.OutOfMemoryError as error:
                if batch_size == 1:
                    raise EnvironmentUnfit(
                        f"animating one row on {runner.device}: out of memory ({error}); free "
                        "some, or use --device cpu"
                    ) from None
            torch.cuda.empty_cache()
            batch_size //= 2
            if on_halved is not None:
                on_halved(batch_size)

    # Jobs with rows in, or waiting for, the next batch.
    waiting: deque[_Progress] = deque()
    for job in jobs:
        frames = np.empty((len(job.kp_driving), *runner.frame_size, 3), dtype=np.uint8)
        waiting.append(_Progress(job, frames))
        while sum(entry.rows_left for entry in waiting) >= batch_size:
            run_batch()
            yield from _finished(waiting)
    while waiting:
        run_batch()
        yield from _finished(waiting)


def prepare_source(frame: Pixels, *, runner: Runner) -> tuple[SourceFeatures, Keypoints]:
    """What a job needs of its source image, once per source.

    Args:
        frame: uint8 (H, W, 3) RGB at the runner's frame size.
        runner: holds the model.

    Returns:
        One row each, on the runner's device.
    """
    images = images_from_frames(frame[None], device=runner.device)
    return runner.source(images), runner.keypoints(images)


def prepare_driving(frames: Pixels, *, runner: Runner, batch_size: int) -> Keypoints:
    """Keypoints of every driving frame, once per driving clip, in padded batches of one size.

    Args:
        frames: uint8 (T, H, W, 3) RGB at the runner's frame size, T at least 1.
        runner: holds the model.
        batch_size: rows in every batch.

    Returns:
        T rows on the runner's device.
    """
    if len(frames) == 0:
        raise ShapeError("a driving clip needs at least one frame")
    parts = []
    for start in range(0, len(frames), batch_size):
        rows = np.arange(start, start + batch_size).clip(max=len(frames) - 1)
        parts.append(runner.keypoints(images_from_frames(frames[rows], device=runner.device)))
    return Keypoints.cat(parts)[: len(frames)]


def _run_batch(waiting: deque[_Progress], runner: Runner, batch_size: int) -> None:
    """Send the next rows, at most a batch of them, and store what comes back."""
    sources, kp_sources, kp_drivings, targets = [], [], [], []
    space = batch_size
    for entry in waiting:
        count = min(space, entry.rows_left)
        if count == 0:
            break
        rows = slice(entry.done, entry.done + count)
        sources.append(entry.job.source.expand(count))
        kp_sources.append(entry.job.kp_source.expand(count))
        kp_drivings.append(entry.job.kp_driving[rows])
        targets.append((entry, rows))
        space -= count
    if space:  # the last batch of all: repeat its last row
        sources.append(sources[-1][-1].expand(space))
        kp_sources.append(kp_sources[-1][-1].expand(space))
        kp_drivings.append(kp_drivings[-1][-1].expand(space))
    features, kp_source, kp_driving = (
        SourceFeatures.cat(sources).to(runner.device),
        Keypoints.cat(kp_sources).to(runner.device),
        Keypoints.cat(kp_drivings).to(runner.device),
    )
    pixels = frames_from_images(runner.animate(features, kp_source, kp_driving)).cpu().numpy()
    position = 0
    for entry, rows in targets:
        count = rows.stop - rows.start
        entry.frames[rows] = pixels[position : position + count]
        entry.done = rows.stop
        position += count


def _finished(waiting: deque[_Progress]) -> Iterator[tuple[AnimationJob, Pixels]]:
    while waiting and waiting[0].rows_left == 0:
        entry = waiting.popleft()
        yield entry.job, entry.frames
