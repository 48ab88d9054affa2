"""Probe files in worker processes: one that takes FFmpeg down takes its worker, not the run.

Every worker is given a few files ahead and answers them in order, so when one dies the file to
blame is the first that it has not answered. Workers that probe never import torch (those that
`framing_workers` has look at files here do). Nothing is committed here, so closing the generator
kills them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any

from dfm_engine.errors import MediaError
from dfm_engine.media.probe import probe
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
    begin: Callable[[], Look] | None = None,
    orders: Sequence[Any] | None = None,
    ahead: int = AHEAD,
    on_busy: Callable[[float], None] = lambda seconds: None,
) -> Generator[tuple[int, Any, int], None, None]:
    """Probe every file.

    Args:
        paths: files.
        limits: what a file may ask for.
        workers: processes.
        look: called in a worker as `look(path, limits=limits)`; importable by name.
        begin: makes `look` in each worker, before it is ready: for what has to be loaded first.
        orders: one per file, what `look` is called with in place of the path.
        ahead: files that a worker is given ahead.
        on_busy: told the seconds that a worker was busy with a file.

    Yields:
        (index into `paths`, the probe, workers that died on it), in order of `paths`. A file that
        killed `CRASH_ATTEMPTS` of them gives a `MediaError` of kind `decoder-crash` instead.

    Raises:
        EnvironmentUnfit: the workers do not start.
    """
    orders = paths if orders is None else orders
    waiting = deque(range(len(paths)))
    attempts = [0] * len(paths)
    found: dict[int, Any] = {}
    pool = [_Worker(look, limits, begin) for _ in range(min(max(1, workers), len(paths)))]
    try:
        for index in range(len(paths)):
            while index not in found:
                for worker in pool:
                    worker.feed(waiting, orders, ahead)
                for ready in connection.wait([worker.pipe for worker in pool if worker.given]):
                    place = next(k for k, worker in enumerate(pool) if worker.pipe is ready)
                    worker = pool[place]
                    try:
                        outcome = worker.receive()
                    except (EOFError, OSError):
                        worker.check_started()
                        pool[place] = _Worker(look, limits, begin)
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

    def __init__(self, look: Look, limits: Limits, begin: Callable[[], Look] | None) -> None:
        if begin is None:
            super().__init__(_serve, look, limits)
        else:
            super().__init__(_serve, limits, begin=begin)
        self.given: deque[int] = deque()

    def feed(self, waiting: deque[int], orders: Sequence[Any], ahead: int) -> None:
        """Give it files ahead."""
        while waiting and len(self.given) < ahead:
            self.given.append(waiting.popleft())
            try:
                self.pipe.send(orders[self.given[-1]])
            except OSError:
                return  # it is gone, which its answer will tell


def _serve(pipe: connection.Connection, look: Look, limits: Limits) -> None:
    while True:
        order, started = pipe.recv(), time.perf_counter()
        outcome = look(order, limits=limits)
        pipe.send((outcome, time.perf_counter() - started))


def crash(path: Path) -> MediaError:
    """What a file is given up with that has killed `CRASH_ATTEMPTS` processes."""
    return MediaError(
        path,
        "decoder-crash",
        f"decoding it killed {CRASH_ATTEMPTS} worker processes; re-encode the file or leave it out",
    )
