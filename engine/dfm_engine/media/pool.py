"""Encoding beside the generator: worker processes, shared memory, a bounded queue.

    with EncodePool(workers=14, queue_clips=4) as pool:
        future = pool.submit(frames, outputs={"raw": path, "c23": path}, comment=..., fps=25)
        files = future.result()  # {"raw": EncodedFile, ...}

x264 takes most of a build's processor time, so clips are encoded by processes that know nothing of
torch, one x264 thread each. `submit` copies the frames into shared memory and returns; it blocks
while `workers + queue_clips` clips are under way, which is what holds the generator back.

A worker that dies (killed, out of memory, a crash in the encoder) fails the one job it had started
with `WorkerDied`; a new worker takes its place and nobody else notices. The shared memory has no
name (memfd), so nothing of it outlives the processes, however they end.
"""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from dfm_engine import errors
from dfm_engine.clip import Pixels, Quality
from dfm_engine.errors import DfmError, EnvironmentUnfit, ShapeError, WorkerDied
from dfm_engine.media.encode import EncodedFile

_log = logging.getLogger(__name__)

MAX_FAILED_STARTS = 3
"""Workers in a row that end before they are ready; then the pool gives up."""

EncodeFuture = Future[dict[Quality, EncodedFile]]


@dataclass(slots=True, kw_only=True)
class WorkerStats:
    """What one place of the pool has done so far.

    Attributes:
        pid: of the process in that place now, 0 before the first is ready.
        is_busy: it is at a job.
        clips, frames: encoded, all qualities of a clip counting once.
        busy_s: time spent on them.
        deaths: processes lost in that place.
    """

    pid: int = 0
    is_busy: bool = False
    clips: int = 0
    frames: int = 0
    busy_s: float = 0.0
    deaths: int = 0


@dataclass(slots=True)
class _Job:
    buffer: int
    request: dict[str, Any]
    future: EncodeFuture = field(default_factory=Future)

    @property
    def name(self) -> str:
        return Path(next(iter(self.request["outputs"].values()))).name


class EncodePool:
    """Worker processes that encode clips; see the module's docstring. Close it, or use `with`."""

    def __init__(self, workers: int, *, queue_clips: int = 2) -> None:
        """Start the workers without waiting for them.

        Args:
            workers: processes, about one per processor core that is to spare.
            queue_clips: clips that may wait besides those being encoded. Shared memory is
                `(workers + queue_clips)` times the largest clip, T * H * W * 3 bytes.

        Raises:
            ValueError: no workers, or a negative queue.
        """
        if workers < 1 or queue_clips < 0:
            raise ValueError(
                f"workers must be >= 1 and queue_clips >= 0, got {workers}, {queue_clips}"
            )
        self._buffers = [_Buffer() for _ in range(workers + queue_clips)]
        self._free = list(range(len(self._buffers)))
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closing: Literal["no", "drain", "now"] = "no"
        self._broken: EnvironmentUnfit | None = None
        self._stats = [WorkerStats() for _ in range(workers)]
        self._workers: list[_Worker | None] = [None] * workers
        # A worker must be started by a thread that outlives it: the kernel's "die with your
        # parent" means the thread that forked.
        self._threads = [
            threading.Thread(target=self._serve, args=(place,), name=f"encode-{place}", daemon=True)
            for place in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self, frames: Pixels, *, outputs: Mapping[Quality, Path], comment: str, fps: int
    ) -> EncodeFuture:
        """Hand over a clip; blocks while the queue is full. `frames` may be reused on return.

        Args:
            frames: uint8 (T, H, W, 3) RGB, even sides; or what `encode.rgb_to_i420` makes of it,
                (T, H * 3 // 2, W), where that was made on the way.
            outputs: where each wanted quality goes; they are encoded in this order.
            comment: from `encode.provenance_comment`.
            fps: frames per second.

        Returns:
            A future of one EncodedFile per quality. It raises WorkerDied, or EnvironmentUnfit when
            a file cannot be written; files of earlier qualities may then exist.

        Raises:
            ShapeError: frames of another shape or type.
            EnvironmentUnfit: the workers do not start.
            RuntimeError: the pool is closed.
        """
        is_rgb, is_i420 = frames.ndim == 4 and frames.shape[3] == 3, frames.ndim == 3
        if not (is_rgb or is_i420) or frames.dtype != np.uint8 or not frames.size:
            raise ShapeError(
                "frames must be uint8 (T, H, W, 3) RGB or (T, H * 3 // 2, W) I420, got "
                f"{frames.dtype} {frames.shape}"
            )
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._closing != "no" or self._broken)
            if self._broken:
                raise self._broken
            if self._closing != "no":
                raise RuntimeError("submit on an EncodePool that is closed")
            buffer = self._free.pop()
        try:
            self._buffers[buffer].write(frames)
        except BaseException:
            self._release(buffer)
            raise
        request = {
            "buffer": buffer,
            "shape": frames.shape,
            "fps": fps,
            "comment": comment,
            "outputs": {quality: os.fspath(path) for quality, path in outputs.items()},
        }
        job = _Job(buffer, request)
        with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()
        return job.future

    @property
    def stats(self) -> tuple[WorkerStats, ...]:
        """One entry per place; alive until the pool closes, final after."""
        return tuple(self._stats)

    @property
    def queued(self) -> int:
        """Clips waiting for a worker."""
        return len(self._jobs)

    def close(self, *, drain: bool = True) -> None:
        """End the workers; with `drain` after all that was submitted, else at once.

        Without `drain`, futures of waiting jobs are cancelled and those of running ones raise
        WorkerDied.
        """
        with self._changed:
            self._closing = "drain" if drain else "now"
            dropped = [] if drain else list(self._jobs)
            if not drain:
                self._jobs.clear()
                for worker in self._workers:
                    if worker is not None:
                        worker.process.kill()
            self._changed.notify_all()
        for job in dropped:
            job.future.cancel()
        for thread in self._threads:
            thread.join()
        for buffer in self._buffers:
            buffer.close()

    def __enter__(self) -> EncodePool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(drain=error is None)

    def _serve(self, place: int) -> None:
        """One place of the pool: keep a worker, feed it, replace it."""
        stats = self._stats[place]
        worker = self._start(place)
        while worker and (job := self._next()):
            stats.is_busy = True
            while worker:
                try:
                    answer = worker.encode(job.request)
                except _NotStarted:  # it was dead already: not this job's doing
                    stats.deaths += 1
                    worker = self._start(place, is_needed=True)
                except WorkerDied as error:
                    stats.deaths += 1
                    _log.warning("%s", error)
                    self._release(job.buffer)
                    job.future.set_exception(error)
                    worker = self._start(place)
                    break
                else:
                    self._release(job.buffer)
                    _resolve(job, answer, stats)
                    break
            else:
                self._release(job.buffer)
                job.future.set_exception(self._broken or _closed(job))
            stats.is_busy = False
        if worker:
            worker.stop()

    def _start(self, place: int, *, is_needed: bool = False) -> _Worker | None:
        """A worker that is ready, or None if the pool is broken or needs no more of them."""
        found = ""
        for _ in range(MAX_FAILED_STARTS):
            with self._changed:
                is_last_call = self._closing == "drain" and not (self._jobs or is_needed)
                if self._broken or self._closing == "now" or is_last_call:
                    return None
                try:
                    worker = _Worker(self._buffers)
                except OSError as error:
                    found = str(error)
                    continue
                self._workers[place] = worker
            if worker.is_ready():
                self._stats[place].pid = worker.process.pid
                return worker
            found = cause_of_end(worker.process.returncode)
        self._break(
            EnvironmentUnfit(
                f"{MAX_FAILED_STARTS} encode workers in a row did not start ({found}); "
                "try: python -c 'import dfm_engine.media.encode_worker', which should be silent"
            )
        )
        return None

    def _next(self) -> _Job | None:
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._jobs or self._closing != "no" or self._broken)
                if not self._jobs or self._broken:
                    return None
                job = self._jobs.popleft()
                if job.future.set_running_or_notify_cancel():
                    return job
                self._free.append(job.buffer)
                self._changed.notify_all()

    def _release(self, buffer: int) -> None:
        with self._changed:
            self._free.append(buffer)
            self._changed.notify_all()

    def _break(self, error: EnvironmentUnfit) -> None:
        with self._changed:
            self._broken = self._broken or error
            waiting = list(self._jobs)
            self._jobs.clear()
            self._changed.notify_all()
        for job in waiting:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(error)


class _NotStarted(Exception):
    """The worker was gone before it took the job."""


class _Worker:
    """One process and its two pipes."""

    def __init__(self, buffers: list[_Buffer]) -> None:
        descriptors = [buffer.descriptor for buffer in buffers]
        arguments = [str(number) for number in (os.getpid(), *descriptors)]
        single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "dfm_engine.media.encode_worker", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=descriptors,
            process_group=0,  # a terminal's Ctrl-C goes to the parent alone
            env={**os.environ, **single},
        )

    def is_ready(self) -> bool:
        """Wait until it has said so, or ended."""
        return self._answer() is not None

    def encode(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run one job.

        Raises:
            _NotStarted: the process had ended before.
            WorkerDied: it ended during the job.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request).encode("ascii") + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self._answer()
            raise _NotStarted from None
        if self._answer() is None:
            raise _NotStarted
        answer = self._answer()
        if answer is None:
            name = Path(next(iter(request["outputs"].values()))).name
            raise WorkerDied(
                f"encoding {name}", self.process.pid, cause_of_end(self.process.returncode)
            )
        return answer

    def _answer(self) -> dict[str, Any] | None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line.endswith(b"\n"):
            return json.loads(line)
        self.stop()
        return None

    def stop(self) -> None:
        """Let it end by itself, and wait."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # an unsent job was not started
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


class _Buffer:
    """Shared memory for one clip, growing with the largest; nameless, so it cannot leak."""

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self.descriptor = os.memfd_create("dfm-frames")
        else:
            with tempfile.TemporaryFile() as file:
                self.descriptor = os.dup(file.fileno())
        self._memory: mmap.mmap | None = None

    def write(self, frames: Pixels) -> None:
        if self._memory is None or len(self._memory) < frames.nbytes:
            if self._memory is not None:
                self._memory.close()
            os.ftruncate(self.descriptor, frames.nbytes)
            self._memory = mmap.mmap(self.descriptor, frames.nbytes)
        target = np.frombuffer(self._memory, np.uint8, frames.size).reshape(frames.shape)
        np.copyto(target, frames)

    def close(self) -> None:
        if self._memory is not None:
            self._memory.close()
            self._memory = None
        os.close(self.descriptor)


def _resolve(job: _Job, answer: dict[str, Any], stats: WorkerStats) -> None:
    if "error" in answer:
        kind = getattr(errors, answer["error"])
        job.future.set_exception(kind(f"encoding {job.name}: {answer['message']}"))
        return
    stats.clips += 1
    stats.frames += job.request["shape"][0]
    stats.busy_s += answer["busy_s"]
    files = answer["files"]
    job.future.set_result(
        {
            quality: EncodedFile(**{**files[quality], "path": Path(path)})
            for quality, path in job.request["outputs"].items()
        }
    )


def cause_of_end(status: int) -> str:
    """What ended a process, by its exit status."""
    if status >= 0:
        return f"exited with {status}"
    hint = "; was memory short?" if -status == signal.SIGKILL else ""
    return f"killed by {signal.Signals(-status).name}{hint}"


def _closed(job: _Job) -> DfmError:
    return DfmError(f"encoding {job.name}: the pool was closed before it was done")
