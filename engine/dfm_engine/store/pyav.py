"""Frames of clips by PyAV, in worker processes: the sampler of a machine without NVDEC.

Every worker reads one clip at a time on one thread (`sampling.sample_clip`) and hands frames back
through shared memory, a ring of parts. Clips are handed out in order and used in order; a worker
whose ring is full waits, so memory is bounded by the workers and not by the clips or their length.

A worker that dies (FFmpeg crashed, memory ran out) takes the clip it was at with it: that one is
tried again by another, `CRASH_ATTEMPTS` times in all. The shared memory has no name (memfd), so
nothing of it outlives the processes. They die with the thread that draws from `sample`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import mmap
import os
import selectors
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dfm_engine.errors import EnvironmentUnfit, MediaError
from dfm_engine.media.probe_workers import CRASH_ATTEMPTS
from dfm_engine.recipe import Limits
from dfm_engine.store.meta import Layout, StoreMeta
from dfm_engine.store.sampler import ClipToSample, Refused, Sampled

__all__ = ["PyavSampler"]

SLOTS, PART_ROWS = 4, 16  # 12 MB a worker for 256 x 256 rgb24
AHEAD = 2  # clips that a worker is given before it has finished the first


class PyavSampler:
    """Samples clips in `workers` processes; see the module's docstring.

    Args:
        size_px, layout: of the store.
        workers: processes, one per core.
        limits: what a file may ask for.
    """

    name: Literal["pyav"] = "pyav"

    def __init__(
        self, *, size_px: int, layout: Layout, workers: int, limits: Limits | None = None
    ) -> None:
        meta = StoreMeta(size_px=size_px, layout=layout, frames_per_clip=0)
        self._workers = max(1, workers)
        self._settings = {
            "size_px": size_px,
            "layout": layout,
            "shape": [SLOTS, PART_ROWS, *meta.frame_shape],
            "limits": dataclasses.asdict(limits or Limits()),
        }

    def sample(self, clips: Iterable[ClipToSample]) -> Iterator[Sampled | Refused]:
        """See `FrameSampler.sample`."""
        run = _Run(iter(clips), self._settings, self._workers)
        try:
            yield from run.results()
        finally:
            run.end()


@dataclass(eq=False, slots=True)
class _Job:
    """A clip under way: its answers that nobody has used yet."""

    clip: ClipToSample
    answers: deque[dict[str, Any]] = field(default_factory=deque)
    worker: _Worker | None = None
    used_rows: int = 0  # handed on already; a second attempt begins behind them
    attempts: int = 0

    def order(self) -> dict[str, Any]:
        clip = self.clip
        return {
            "path": os.fspath(clip.path),
            "kind": clip.kind,
            "clip_frames": clip.clip_frames,
            "wanted": clip.wanted.tolist(),
            "box": clip.box,
            "sha256": clip.sha256,
            "skip": self.used_rows,
        }


class _Run:
    """One call of `sample`."""

    def __init__(
        self, clips: Iterator[ClipToSample], settings: dict[str, Any], workers: int
    ) -> None:
        self._clips = clips
        self._settings = settings
        self._selector = selectors.DefaultSelector()
        self._again: deque[_Job] = deque()  # to be handed out before any other
        self._order: deque[_Job] = deque()  # handed out, not used up
        self._pool: list[_Worker] = []
        self._wanted_workers = workers
        self._is_dry = False

    def results(self) -> Iterator[Sampled | Refused]:
        self._hand_out()
        while self._order:
            job = self._order[0]
            while not job.answers:
                self._listen()
            yield from self._use(job)

    def end(self) -> None:
        for worker in self._pool:
            worker.kill()
        self._selector.close()

    def _use(self, job: _Job) -> Iterator[Sampled | Refused]:
        """Hand on one answer of the job at the head."""
        answer = job.answers.popleft()
        if "refused" in answer:
            self._order.popleft()
            yield Refused(
                clip=job.clip,
                error=MediaError(job.clip.path, *answer["refused"]),
                attempts=job.attempts,
            )
            return
        is_last = "sha256" in answer
        if is_last:
            self._order.popleft()
        worker: _Worker = answer["worker"]
        job.used_rows += answer["part"]
        yield Sampled(
            clip=job.clip,
            frames=worker.part(answer["number"])[: answer["part"]],
            is_last=is_last,
            sha256=answer.get("sha256", ""),
        )
        worker.free()

    def _hand_out(self) -> None:
        """Give every worker something to do; start one where there is more to do than workers."""
        while True:
            idle = min(self._pool, key=lambda worker: len(worker.given), default=None)
            if idle is None or (idle.given and len(self._pool) < self._wanted_workers):
                job = self._next_job()
                if job is None:
                    return
                self._start().take(job)
            elif len(idle.given) < AHEAD:
                job = self._next_job()
                if job is None:
                    return
                idle.take(job)
            else:
                return

    def _next_job(self) -> _Job | None:
        if self._again:
            return self._again.popleft()
        if self._is_dry or len(self._order) >= self._wanted_workers * (SLOTS + AHEAD):
            return None
        clip = next(self._clips, None)
        if clip is None:
            self._is_dry = True
            return None
        job = _Job(clip)
        self._order.append(job)
        return job

    def _start(self) -> _Worker:
        worker = _Worker(self._settings)
        self._pool.append(worker)
        self._selector.register(worker.output, selectors.EVENT_READ, worker)
        return worker

    def _listen(self) -> None:
        for key, _ in self._selector.select():
            worker: _Worker = key.data
            if not worker.hear():
                self._selector.unregister(worker.output)
                self._pool.remove(worker)
                self._bury(worker)
        self._hand_out()

    def _bury(self, worker: _Worker) -> None:
        """Blame the clip that a dead worker was at, and hand its others out again."""
        worker.kill()
        if not worker.is_ready:
            raise EnvironmentUnfit(
                f"a worker process for reading media did not start (exit status "
                f"{worker.process.returncode}); see the lines above, and `dfm-engine doctor`"
            )
        if not worker.given:
            return
        culprit, *others = worker.given
        self._again.extendleft(reversed(others))
        culprit.attempts += 1
        culprit.answers.clear()  # parts that were not used: the next attempt gives them again
        if culprit.attempts < CRASH_ATTEMPTS:
            self._again.appendleft(culprit)
            return
        reason = (
            f"decoding it killed {CRASH_ATTEMPTS} worker processes; re-encode the file or leave "
            "it out"
        )
        culprit.answers.append({"refused": ["decoder-crash", reason]})


class _Worker:
    """One process, its shared memory, and the clips that it was given and has not finished."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.given: deque[_Job] = deque()
        self.is_ready = False
        self._heard = b""
        self._parts = 0
        shape = settings["shape"]
        descriptor = _nameless()
        os.ftruncate(descriptor, int(np.prod(shape)))
        self._memory = np.frombuffer(mmap.mmap(descriptor, int(np.prod(shape))), np.uint8).reshape(
            shape
        )
        arguments = [str(os.getpid()), str(descriptor), json.dumps(settings)]
        single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "dfm_engine.store.pyav_worker", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[descriptor],
                process_group=0,  # a terminal's Ctrl-C goes to the parent alone
                env={**os.environ, **single},
            )
        except OSError as error:
            raise EnvironmentUnfit(f"a worker process did not start: {error}") from error
        finally:
            os.close(descriptor)
        assert self.process.stdout is not None
        self.output = self.process.stdout

    def take(self, job: _Job) -> None:
        """Give it a clip."""
        job.worker = self
        self.given.append(job)
        self._send(job.order())

    def free(self) -> None:
        """It may use its oldest part again."""
        self._send({"free": 1})

    def part(self, number: int) -> NDArray[np.uint8]:
        """A part that it filled, by its number."""
        return self._memory[number % SLOTS]

    def hear(self) -> bool:
        """Sort what it has said into its jobs; False if it is gone."""
        piece = os.read(self.output.fileno(), 1 << 16)
        *lines, self._heard = (self._heard + piece).split(b"\n")
        for line in lines:
            answer = json.loads(line)
            if "ready" in answer:
                self.is_ready = True
                continue
            if "part" in answer:
                answer |= {"worker": self, "number": self._parts}
                self._parts += 1
            self.given[0].answers.append(answer)
            if "sha256" in answer or "refused" in answer:
                self.given.popleft()
        return bool(piece)

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self.process.wait()

    def _send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        # Where it is gone, its silence will tell.
        with contextlib.suppress(BrokenPipeError, ValueError):
            self.process.stdin.write(json.dumps(message).encode("ascii") + b"\n")
            self.process.stdin.flush()


def _nameless() -> int:
    """A descriptor of memory without a name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("dfm-frames")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
