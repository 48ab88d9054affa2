"""The encode pool as a build uses it: started when needed, each clip tried until it is given up.

with Encoders(folder, workers=2, fps=25) as encoders:
    order = Order(...)
    encoders.begin(order)            # returns while the clip is encoded
    files = encoders.finish(order)   # waits; None once the clip went into quarantine
"""

from __future__ import annotations

import contextlib
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from dfm_engine.clip import Pixels, Quality
from dfm_engine.columns import text_of_path
from dfm_engine.errors import DfmError, WorkerDied
from dfm_engine.jobs import Label, RunFolder
from dfm_engine.media.encode import EncodedFile
from dfm_engine.media.pool import EncodeFuture, EncodePool
from dfm_engine.progress import Meters

QUEUE_CLIPS = 2
"""Clips that may wait for a worker."""


@dataclass(slots=True, kw_only=True, eq=False)
class Order:
    """A clip to encode.

    Attributes:
        clip_id, label, action: decide where the files go.
        frames: uint8 (T, H, W, 3) RGB, or (T, H * 3 // 2, W) I420.
        qualities: the files wanted; with none of them there is nothing to do.
        comment: for the container.
        blamed: the input file to name if its workers die.
        future: of the attempt under way.
    """

    clip_id: str
    label: Label
    action: str | None
    frames: Pixels
    qualities: tuple[Quality, ...]
    comment: str
    blamed: Path
    future: EncodeFuture | None = field(default=None)

    @property
    def is_done(self) -> bool:
        """Whether `finish` will not wait."""
        return not self.qualities or (self.future is not None and self.future.done())


class Encoders:
    """An `EncodePool` that starts with the first clip, and the attempts at each clip.

    Args:
        folder: of the run.
        workers: processes.
        fps: of every clip.
    """

    def __init__(self, folder: RunFolder, *, workers: int, fps: int) -> None:
        self._folder = folder
        self._workers = workers
        self._fps = fps
        self._pool: EncodePool | None = None

    def start(self) -> EncodePool:
        """Start the workers unless they are, without waiting for them."""
        if self._pool is None:
            self._pool = EncodePool(self._workers, queue_clips=QUEUE_CLIPS)
        return self._pool

    def begin(self, order: Order) -> None:
        """Hand a clip to the pool; blocks while its queue is full."""
        if not order.qualities:
            return
        order.future = self.start().submit(
            order.frames,
            outputs=dict(zip(order.qualities, self._paths(order), strict=True)),
            comment=order.comment,
            fps=self._fps,
        )

    def finish(self, order: Order) -> dict[Quality, EncodedFile] | None:
        """The files of a clip, tried again while its worker dies; None once it is given up.

        Raises:
            EnvironmentUnfit: a file cannot be written.
        """
        while order.qualities:
            if order.future is None:
                self.begin(order)
            assert order.future is not None
            try:
                return order.future.result()
            except WorkerDied as error:
                order.future = None
                blamed = text_of_path(order.blamed.name)
                row = self._folder.quarantine.record_death(order.clip_id, error, path=blamed)
                if row is not None:
                    self.remove(order)
                    return None
        return {}

    def remove(self, order: Order) -> None:
        """Delete what was written of a clip that will not be committed."""
        if order.future is not None:
            with contextlib.suppress(DfmError, CancelledError):  # whatever became of it
                order.future.result()
        for path in self._paths(order):
            path.unlink(missing_ok=True)

    @property
    def queued(self) -> int:
        """Clips waiting for a worker."""
        return self._pool.queued if self._pool else 0

    def take_times(self, meters: Meters) -> None:
        """Write what the workers did so far into their stage."""
        if self._pool is None:
            return
        stats = self._pool.stats
        meter = meters.stage("encode", workers=len(stats))
        meter.busy_s = sum(place.busy_s for place in stats)
        meter.clips = sum(place.clips for place in stats)
        meter.frames = sum(place.frames for place in stats)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.close(drain=error is None)

    def _paths(self, order: Order) -> list[Path]:
        return [
            self._folder.media_path(order.label, order.action, order.clip_id, quality)
            for quality in order.qualities
        ]
