"""Read the features of many files, on all cores.

Threads do for a few files or cores: FFmpeg decodes without Python's lock. But each packet takes the
lock again, which is held for about 2 of the 9 ms that a file takes (28 pictures of 256 x 256, one
EPYC core), so that more than a handful of threads wait for each other. Beyond that processes read;
they import neither torch nor the rest of the engine.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

from dfm_engine.audit.features import FileFeatures, read_features
from dfm_engine.errors import MediaError
from dfm_engine.machine import read_cores

__all__ = ["read_all"]

ENOUGH_THREADS = 4
FILES_PER_PROCESS = 25  # to start one takes as long as to read so many

_log = logging.getLogger(__name__)


def read_all(paths: Sequence[Path], *, cores: int | None = None) -> Iterator[FileFeatures | str]:
    """Yield the features of each file in order, or why it cannot be read.

    Args:
        paths: the files.
        cores: to use; None is all that this process may use.
    """
    cores = int(read_cores()) if cores is None else cores
    processes = min(cores, len(paths) // FILES_PER_PROCESS)
    done = 0
    if processes > ENOUGH_THREADS:
        try:
            for features in _in_processes(paths, processes):
                yield features
                done += 1
        except (BrokenExecutor, OSError) as error:  # a file that ends them, or no room for them
            _log.warning("audit: its processes ended (%s); it reads file by file", error)
            for features in _one_by_one(paths[done:]):
                yield features
                done += 1
    with ThreadPoolExecutor(max(1, min(cores, ENOUGH_THREADS))) as pool:
        yield from pool.map(_features_or_reason, paths[done:])


def _pool(processes: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context("spawn"), initializer=_begin
    )


def _one_by_one(paths: Sequence[Path]) -> Iterator[FileFeatures | str]:
    """Each in one process, a new one where a file took it down; ends where none can be had."""
    left = iter(paths)
    while True:
        with _pool(1) as pool:
            try:
                pool.submit(os.getpid).result()
            except (BrokenExecutor, OSError):
                return
            for path in left:
                try:
                    yield pool.submit(_features_or_reason, path).result()
                except BrokenExecutor:
                    yield "the process that read it ended"
                    break
            else:
                return


def _in_processes(paths: Sequence[Path], processes: int) -> Iterator[FileFeatures | str]:
    pool = _pool(processes)
    try:
        yield from pool.map(_features_or_reason, map(Path, paths), chunksize=4)
    finally:
        pool.shutdown(cancel_futures=True)


def _features_or_reason(path: Path) -> FileFeatures | str:
    try:
        return read_features(path)
    except MediaError as error:
        return error.reason


def _begin() -> None:
    """Leave a Ctrl-C to the parent, and end with it however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
