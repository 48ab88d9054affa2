"""Framing in processes of its own: beside a GPU, every core frames clips.

Of a framed clip a run needs the outcome alone, a few numbers. So a worker takes a file from end to
end: it probes it, looks for the face with MTCNN on the CPU and chooses the source frame, in one
thread of torch. Threads of this process would wait for Python's lock instead, MTCNN being hundreds
of small operations: 8 of them beside an H100 framed 625 frames/s on 16 cores, and were waiting for
the lock most of the time.

A worker that dies takes its file with it, at the third time, as one that probes does. A few files
are not worth the start of the workers, seconds each: threads of this process frame them with the
same framer, to the same bits. Importing this does not load torch.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from dfm_engine.clip import DrivingClip, FramedClip, SourceClip
from dfm_engine.errors import MediaError
from dfm_engine.media.probe import Probe, probe
from dfm_engine.media.probe_workers import probe_all
from dfm_engine.prepare import Framer, Prepared, look_at
from dfm_engine.progress import Meter, Meters
from dfm_engine.recipe import BuildRecipe, Limits

if TYPE_CHECKING:
    from dfm_engine.faces.framing import Detector
    from dfm_engine.faces.pictures import FrameReader

__all__ = ["FramingWorkers", "framer_of", "load_framer"]

AHEAD = 2
"""Files that a worker is given: the one that it is at and the next. More would lie with one worker
at the end while others have none."""

FILES_PER_WORKER = 2
"""With more than so many for each worker they are worth their start: about 3 s, as long as framing
half a dozen clips."""

SETTINGS = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "CUDA_VISIBLE_DEVICES": "",  # a context of each worker's would fill the GPU
}
"""Of a worker's environment, before it loads torch; NumPy is there by then, and has the threads
that this process's environment gives it, one by the command line."""

CLIPS_PER_VISIT = 500
"""Ranges of one file that go to a worker at once: orders and answers stay smaller than a pipe."""

Clip = SourceClip | DrivingClip
Visit = tuple[list[Prepared], dict[str, Meter]]
"""The outcomes of a file's clips, and what was done for them by stage."""


def framer_of(
    recipe: BuildRecipe, detector: Detector, *, size: int, reader: FrameReader | None = None
) -> Framer:
    """`frame_clip` with the settings of a build bound to it."""
    from dfm_engine.faces.framing import frame_clip

    def frame(clip: Clip) -> FramedClip:
        is_driving = isinstance(clip, DrivingClip)
        return frame_clip(
            clip.path,
            detector=detector,
            size=size,
            limits=recipe.limits,
            faces=recipe.faces,
            clips=recipe.clips,
            sources=None if is_driving else recipe.sources,
            start_s=clip.start_s if is_driving else 0.0,
            end_s=clip.end_s if is_driving else None,
            mirrored=is_driving and clip.mirrored,
            is_still=not is_driving and clip.is_still,
            sha256=clip.sha256,
            reader=reader,
        )

    return frame


def load_framer(recipe: BuildRecipe, size: int) -> Framer:
    """The framer of the workers: MTCNN on the CPU, PyAV."""
    from dfm_engine.faces.mtcnn import Mtcnn

    return framer_of(recipe, Mtcnn.load("cpu"), size=size)


@dataclass(frozen=True, slots=True, kw_only=True)
class FramingWorkers:
    """What the workers of a build are started with; none runs before `outcomes` is drawn.

    Attributes:
        recipe: of the build.
        size: side of the canonical frames.
        count: workers, at most.
        load: makes the framer from `recipe` and `size`; importable by name, from a module that
            loads torch, if at all, when it is called.
        name: what frames, for what must not be mixed with clips framed by something else.
    """

    recipe: BuildRecipe
    size: int
    count: int
    load: Callable[[BuildRecipe, int], Framer] = load_framer
    name: ClassVar[str] = "mtcnn cpu, pyav"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"framing needs at least 1 worker, got {self.count}")

    def framer(self) -> Framer:
        """What the workers frame with, for this process."""
        return self.load(self.recipe, self.size)

    def is_worth(self, files: int) -> bool:
        """Whether so many files are enough to start the workers for."""
        return files > FILES_PER_WORKER * self.count

    def outcomes(
        self, files: Sequence[Sequence[Clip]], *, meters: Meters
    ) -> Generator[tuple[Clip, Prepared], None, None]:
        """Probe and frame.

        Closing the generator ends the workers at once; they also end with the process, or with the
        thread that draws the first clip.

        Args:
            files: per file the clips that lie in it; a worker takes them all.
            meters: where the time goes.

        Yields:
            Each clip with its outcome, in order.

        Raises:
            EnvironmentUnfit: the workers do not start.
            RuntimeError: framing raised what no file is to blame for.
        """
        files = [
            clips[start : start + CLIPS_PER_VISIT]
            for clips in files
            for start in range(0, len(clips), CLIPS_PER_VISIT)
        ]
        count = min(self.count, len(files))
        for name in ("probe", "frame"):
            meters.stage(name, workers=count)
        found = probe_all(
            [clips[0].path for clips in files],
            orders=files,
            limits=self.recipe.limits,
            workers=count,
            begin=partial(_begin, self.load, self.recipe, self.size),
            ahead=AHEAD,
        )
        with closing(found):
            for index, answer, attempts in found:
                outcomes = _outcomes_of(answer, files[index], attempts, meters)
                yield from zip(files[index], outcomes, strict=True)


def _outcomes_of(
    answer: Visit | MediaError | str, clips: Sequence[Clip], attempts: int, meters: Meters
) -> list[Prepared]:
    if isinstance(answer, MediaError):
        return [Prepared.refused(clip, answer, attempts=attempts) for clip in clips]
    if isinstance(answer, str):
        raise RuntimeError(f"framing {os.fspath(clips[0].path)!r} failed in a worker:\n{answer}")
    outcomes, stages = answer
    for name, done in stages.items():
        meters.stage(name).busy_s += done.busy_s
        meters.count(name, clips=done.clips, frames=done.frames)
    return [o if o.is_usable else replace(o, attempts=attempts) for o in outcomes]


def _begin(
    load: Callable[[BuildRecipe, int], Framer], recipe: BuildRecipe, size: int
) -> Callable[..., Visit | str]:
    """What a worker calls for each file; loads the networks."""
    os.environ |= SETTINGS
    return partial(_visit, load(recipe, size))


def _visit(framer: Framer, clips: Sequence[Clip], *, limits: Limits) -> Visit | str:
    """A file's outcomes; or, where this code is to blame, what was raised."""
    meters = Meters()
    try:
        with meters.busy("probe", clips=1):
            probed: Probe = probe(clips[0].path, limits=limits)
        meters.count("probe", frames=probed.frames or 0)
        outcomes = [look_at(clip, probed, 0, framer, meters) for clip in clips]
    except Exception:
        return traceback.format_exc()
    return outcomes, meters.stages
