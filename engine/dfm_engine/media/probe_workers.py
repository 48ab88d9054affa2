"""Probe files in worker processes: one that takes FFmpeg down takes its worker, not the run.

Every worker is given a few files ahead and answers them in order, so when one dies the file to
blame is the first that it has not answered. The workers never import torch, ignore Ctrl-C (their
parent decides) and end with it. Nothing is committed here, so closing the generator kills them.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any

from dfm_engine.errors import EnvironmentUnfit, MediaError
from dfm_engine.media.probe import Probe, probe
from dfm_engine.recipe import Limits

CRASH_ATTEMPTS = 3
"""A file is given up after its probe has killed this many workers."""

AHEAD = 8
"""Files that a worker is given ahead: it goes on while its parent is busy, and the answers fit into
the pipe."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

Look = Callable[..., Any]


def probe_all(
    paths: Sequence[Path], *, limits: Limits, workers: int, look: Look = probe
) -> Iterator[tuple[int, Probe | MediaError, int]]:
    """Probe every file.

    Args:
        paths: files.
        limits: what a file may ask for.
        workers: processes.
        look: called in a worker as `look(path, limits=limits)`; importable by name.

    Yields:
        (index into `paths`, the probe, workers that died on it), in order of `paths`. A file that
        killed `CRASH_ATTEMPTS` of them gives a `MediaError` of kind `decoder-crash` instead.

    Raises:
        EnvironmentUnfit: the workers do not start.
    """
    waiting = deque(range(len(paths)))
    attempts = [0] * len(paths)
    found: dict[int, Probe | MediaError] = {}
    pool = [_Worker(look, limits) for _ in range(min(max(1, workers), len(paths)))]
    try:
        for index in range(len(paths)):
            while index not in found:
                for worker in pool:
                    worker.feed(waiting, paths)
                for ready in connection.wait([worker.pipe for worker in pool if worker.given]):
                    place = next(k for k, worker in enumerate(pool) if worker.pipe is ready)
                    worker = pool[place]
                    try:
                        outcome = worker.answer()
                    except (EOFError, OSError):
                        worker.check_started()
                        pool[place] = _Worker(look, limits)
                        culprit, *others = worker.given
                        waiting.extendleft(reversed(others))
                        attempts[culprit] += 1
                        if attempts[culprit] < CRASH_ATTEMPTS:
                            waiting.appendleft(culprit)
                        else:
                            found[culprit] = _crash(paths[culprit])
                    else:
                        if outcome is not None:
                            found[worker.given.popleft()] = outcome
            yield index, found.pop(index), attempts[index]
    finally:
        for worker in pool:
            worker.kill()


class _Worker:
    """One process, its pipe, and the files that it was given and has not answered."""

    def __init__(self, look: Look, limits: Limits) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.given: deque[int] = deque()
        self._is_ready = False
        self._process = context.Process(
            target=_serve, args=(theirs, look, limits, os.getpid()), daemon=True
        )
        self._process.start()
        theirs.close()

    def feed(self, waiting: deque[int], paths: Sequence[Path]) -> None:
        """Give it files ahead."""
        while waiting and len(self.given) < AHEAD:
            self.given.append(waiting.popleft())
            try:
                self.pipe.send(paths[self.given[-1]])
            except OSError:
                return  # it is gone, which its answer will tell

    def answer(self) -> Probe | MediaError | None:
        """What it has sent; None for the word that it is ready.

        Raises:
            EOFError, OSError: it is gone.
        """
        message = self.pipe.recv()
        self._is_ready = True
        return message

    def check_started(self) -> None:
        """Tell a worker that never got ready, which no file is to blame for."""
        self._process.join()
        if not self._is_ready:
            raise EnvironmentUnfit(
                f"a worker process for reading media did not start (exit status "
                f"{self._process.exitcode}); see the lines above, and `dfm-engine doctor`"
            )

    def kill(self) -> None:
        """End it at once."""
        self.pipe.close()
        self._process.kill()
        self._process.join()


def _serve(pipe: connection.Connection, look: Look, limits: Limits, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":  # elsewhere the end of the pipe tells
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        return
    try:
        pipe.send(None)
        while True:
            pipe.send(look(pipe.recv(), limits=limits))
    except (EOFError, OSError):
        return  # the parent has closed the pipe


def _crash(path: Path) -> MediaError:
    return MediaError(
        path,
        "decoder-crash",
        f"decoding it killed {CRASH_ATTEMPTS} worker processes; re-encode the file or leave it out",
    )
