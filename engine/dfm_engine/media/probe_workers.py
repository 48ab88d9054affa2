"""Probe files in worker processes: one that takes FFmpeg down takes its worker, not the run.

Every worker is given a few files ahead and answers them in order, so when one dies the file to
blame is the first that it has not answered. The workers never import torch. Nothing is committed
here, so closing the generator kills them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any

from dfm_engine.errors import MediaError
from dfm_engine.media.probe import Probe, probe
from dfm_engine.media.reading_process import CRASH_ATTEMPTS, ReadingProcess
from dfm_engine.recipe import Limits

__all__ = ["AHEAD", "CRASH_ATTEMPTS", "crash", "probe_all"]

AHEAD = 8
"""Files that a worker is given ahead: it goes on while its parent is busy, and the answers fit into
the pipe."""

Look = Callable[..., Any]


def probe_all(
    paths: Sequence[Path],
    *,
    limits: Limits,
    workers: int,
    look: Look = probe,
    on_busy: Callable[[float], None] = lambda seconds: None,
) -> Generator[tuple[int, Probe | MediaError, int], None, None]:
    """Probe every file.

    Args:
        paths: files.
        limits: what a file may ask for.
        workers: processes.
        look: called in a worker as `look(path, limits=limits)`; importable by name.
        on_busy: told the seconds that a worker was busy with a file.

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
                        outcome = worker.receive()
                    except (EOFError, OSError):
                        worker.check_started()
                        pool[place] = _Worker(look, limits)
                        culprit, *others = worker.given
                        waiting.extendleft(reversed(others))
                        attempts[culprit] += 1
                        if attempts[culprit] < CRASH_ATTEMPTS:
                            waiting.appendleft(culprit)
                        else:
                            found[culprit] = crash(paths[culprit])
                    else:
                        if outcome is not None:
                            found[worker.given.popleft()], busy_s = outcome
                            on_busy(busy_s)
            yield index, found.pop(index), attempts[index]
    finally:
        for worker in pool:
            worker.kill()


class _Worker(ReadingProcess):
    """One process, and the files that it was given and has not answered."""

    def __init__(self, look: Look, limits: Limits) -> None:
        super().__init__(_serve, look, limits)
        self.given: deque[int] = deque()

    def feed(self, waiting: deque[int], paths: Sequence[Path]) -> None:
        """Give it files ahead."""
        while waiting and len(self.given) < AHEAD:
            self.given.append(waiting.popleft())
            try:
                self.pipe.send(paths[self.given[-1]])
            except OSError:
                return  # it is gone, which its answer will tell


def _serve(pipe: connection.Connection, look: Look, limits: Limits) -> None:
    while True:
        path, started = pipe.recv(), time.perf_counter()
        outcome = look(path, limits=limits)
        pipe.send((outcome, time.perf_counter() - started))


def crash(path: Path) -> MediaError:
    """What a file is given up with that has killed `CRASH_ATTEMPTS` processes."""
    return MediaError(
        path,
        "decoder-crash",
        f"decoding it killed {CRASH_ATTEMPTS} worker processes; re-encode the file or leave it out",
    )
