"""Animate many clips in full batches: sources and driving keypoints in, frames out.

A batch is filled with rows (frames) of whatever jobs are next, so that short clips cost no more
per frame than long ones. Every batch has the same number of rows, the last one padded, because a
convolution may round differently at another batch size: so a row's pixels depend on its own
source and keypoints alone.

Where it can be, the host is one batch behind: while it takes one batch's frames, the next one is
computed. On a GPU the frames come by a stream of their own into pinned memory; on a CPU a runner
may take two batches at once, and no core waits for the last row of one before it begins the next.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dfm_engine.backends import Runner
from dfm_engine.clip import Pixels
from dfm_engine.errors import EnvironmentUnfit, ShapeError
from dfm_engine.fomm.values import Keypoints, SourceFeatures
from dfm_engine.pixels import frames_from_images, images_from_frames
from dfm_engine.torch_threads import adopt_threads
from dfm_kernels.to_yuv import rgb_to_yuv

IN_FLIGHT = {"cpu": 0, "cuda": 1}
"""Batches that may be on their way to the host while the next one is computed; to these come those
that a runner computes at once (`Runner.calls_at_once`), beyond one."""


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


class Animated(NamedTuple):
    """A clip that was made.

    Attributes:
        job: what was wanted.
        frames: uint8 (T, H, W, 3) RGB.
        i420: uint8 (T, H * 3 // 2, W), the same for the encoder, made where the frames were made;
            None on a CPU, where whoever encodes makes it.
    """

    job: AnimationJob
    frames: Pixels
    i420: Pixels | None


@dataclass(slots=True)
class _Progress:
    """A job under way: the first `sent` of its frames are on the way, the first `landed` here."""

    made: Animated
    sent: int = 0
    landed: int = 0

    @property
    def rows_left(self) -> int:
        return len(self.made.frames) - self.sent


Arrival = Callable[[], tuple[Tensor, Tensor | None]]
"""Waits for a batch: uint8 (B, H, W, 3) RGB, and (B, H * 3 // 2, W) I420 where that was made."""

_Compute = Callable[[SourceFeatures, Keypoints, Keypoints], Arrival]


@dataclass(frozen=True, slots=True)
class _Flight:
    """A batch on its way to the host.

    Attributes:
        parts: which of its rows are whose.
        arrived: waits for its frames.
    """

    parts: list[tuple[_Progress, slice]]
    arrived: Arrival

    def land(self) -> None:
        """Wait for it, and give the jobs their frames."""
        frames, i420 = self.arrived()
        position = 0
        for entry, rows in self.parts:
            count = rows.stop - rows.start
            batch = slice(position, position + count)
            entry.made.frames[rows] = frames[batch].numpy()
            if i420 is not None and entry.made.i420 is not None:
                entry.made.i420[rows] = i420[batch].numpy()
            entry.landed = rows.stop
            position += count


def animate_jobs(
    jobs: Iterable[AnimationJob],
    *,
    runner: Runner,
    batch_size: int,
    on_halved: Callable[[int], None] | None = None,
) -> Iterator[Animated]:
    """Animate jobs one after the other, in batches that cross from one to the next.

    Holds the jobs of one batch, or of two where the host is one behind: the next is asked for when
    its rows are needed, and a finished one is handed on before that; or, where the host is behind,
    once the batch behind its own is sent.

    Args:
        jobs: in the order wanted; asked for lazily.
        runner: holds the model.
        batch_size: rows in every batch; while the device has too little memory for it, halved.
        on_halved: told the new number before it is used.

    Yields:
        Each job with its frames, in the order of `jobs`.

    Raises:
        ShapeError: a batch size below 1, or a job whose shapes are not the model's.
        EnvironmentUnfit: the device has too little memory for one row.
    """
    if batch_size < 1:
        raise ShapeError(f"batch_size must be at least 1, got {batch_size}")
    on_gpu = torch.device(runner.device).type == "cuda"
    calls = runner.calls_at_once
    in_flight = IN_FLIGHT[torch.device(runner.device).type] + calls - 1
    height, width = runner.frame_size
    waiting: deque[_Progress] = deque()  # with rows to send, or on the way
    flights: deque[_Flight] = deque()

    def halve(error: torch.OutOfMemoryError) -> None:
        nonlocal batch_size
        if batch_size == 1:
            raise EnvironmentUnfit(
                f"animating one row on {runner.device}: out of memory ({error}); free "
                "some, or use --device cpu"
            ) from None
        torch.cuda.empty_cache()
        batch_size //= 2
        if on_halved is not None:
            on_halved(batch_size)

    def send() -> None:
        before = len(flights)
        while len(flights) == before:
            try:
                flights.append(_send(waiting, compute, batch_size, runner.device))
            except torch.OutOfMemoryError as error:
                halve(error)

    def land() -> None:
        """The first that is under way; where memory was short for it, those behind it go, too."""
        try:
            flights.popleft().land()
        except torch.OutOfMemoryError as error:
            for flight in flights:
                with contextlib.suppress(torch.OutOfMemoryError):
                    flight.arrived()
            flights.clear()
            for entry in waiting:
                entry.sent = entry.landed
            halve(error)

    with _opened(runner, calls) as compute:
        for job in jobs:
            rows = len(job.kp_driving)
            frames = np.empty((rows, height, width, 3), dtype=np.uint8)
            i420 = np.empty((rows, height * 3 // 2, width), dtype=np.uint8) if on_gpu else None
            waiting.append(_Progress(Animated(job, frames, i420)))
            while sum(entry.rows_left for entry in waiting) >= batch_size:
                send()
                while len(flights) > in_flight:
                    land()
                yield from _finished(waiting)
        while waiting:
            if any(entry.rows_left for entry in waiting):
                send()
            if len(flights) > in_flight or not any(entry.rows_left for entry in waiting):
                land()
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


def _send(
    waiting: deque[_Progress], compute: _Compute, batch_size: int, device: torch.device
) -> _Flight:
    """Begin with the next rows, at most a batch of them; they are here some time later."""
    sources, kp_sources, kp_drivings, parts = [], [], [], []
    space = batch_size
    for entry in waiting:
        count = min(space, entry.rows_left)
        if count == 0:
            continue  # all of it is on the way, or the batch is full
        job, rows = entry.made.job, slice(entry.sent, entry.sent + count)
        sources.append(job.source.expand(count))
        kp_sources.append(job.kp_source.expand(count))
        kp_drivings.append(job.kp_driving[rows])
        parts.append((entry, rows))
        space -= count
    if space:  # the last batch of all: repeat its last row
        sources.append(sources[-1][-1].expand(space))
        kp_sources.append(kp_sources[-1][-1].expand(space))
        kp_drivings.append(kp_drivings[-1][-1].expand(space))
    # Rows of one source share its features, and cores their cache: with a copy for each a build
    # made 7 % fewer frames.
    is_shared = len(sources) == 1 and torch.device(device).type == "cpu"
    arrived = compute(
        (sources[0] if is_shared else SourceFeatures.cat(sources)).to(device),
        Keypoints.cat(kp_sources).to(device),
        Keypoints.cat(kp_drivings).to(device),
    )
    for entry, rows in parts:  # nothing was sent if anything above failed
        entry.sent = rows.stop
    return _Flight(parts, arrived)


@contextlib.contextmanager
def _opened(runner: Runner, calls: int) -> Iterator[_Compute]:
    """What computes batches: on a GPU behind the host's back, on a CPU `calls` of them at once."""

    def frames_of(*batch: Any) -> Tensor:
        return frames_from_images(runner.animate(*batch))

    if torch.device(runner.device).type == "cuda":
        side = torch.cuda.Stream(runner.device)
        yield lambda *batch: _fetch_both(frames_of(*batch), side)
    elif calls == 1:
        yield lambda *batch: _here(frames_of(*batch))
    else:
        with ThreadPoolExecutor(calls, "batch", initializer=adopt_threads, initargs=(1,)) as pool:
            yield lambda *batch: _waited_for(pool.submit(frames_of, *batch))


def _here(frames: Tensor) -> Arrival:
    return lambda: (frames, None)


def _waited_for(frames: Future[Tensor]) -> Arrival:
    return lambda: (frames.result(), None)


def _fetch_both(frames: Tensor, side: torch.cuda.Stream) -> Arrival:
    """Frames and their I420 on their way to the host, while the current stream goes on."""
    i420 = rgb_to_yuv(frames)
    side.wait_stream(torch.cuda.current_stream(frames.device))
    with torch.cuda.stream(side):
        arrived = torch.cuda.Event()
        found = _fetch(frames, side), _fetch(i420, side)
        arrived.record()

    def wait() -> tuple[Tensor, Tensor]:
        arrived.synchronize()
        return found

    return wait


def _fetch(found: Tensor, stream: torch.cuda.Stream) -> Tensor:
    """Begin to copy to pinned memory, in the current stream, which this is."""
    host = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
    host.copy_(found, non_blocking=True)
    found.record_stream(stream)
    return host


def _finished(waiting: deque[_Progress]) -> Iterator[Animated]:
    while waiting and waiting[0].landed == len(waiting[0].made.frames):
        yield waiting.popleft().made
