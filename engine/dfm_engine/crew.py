"""Threads of one core each that share out the rows of a batch.

    crew = Crew(cores)
    predictions = crew.map(predict_row, rows)

Threads inside a row meet at the end of every operation, and the slowest one, held up by an encoder
or by the scheduler, holds up all. Whole rows meet once a batch, and with two callers never: 1.2 to
1.4 times the frames of vox-256 on two cores of an AMD EPYC (2026-11-23). And a row that one core
computes has the same bits however many cores there are.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import torch

from dfm_engine.torch_threads import adopt_threads, one_thread

__all__ = ["Crew"]

T = TypeVar("T")
Task = tuple[bool, int, Callable[[], None]]


class Crew:
    """Calls a function for every row of a batch, on as many cores as it has threads.

    For any number of callers at once, who share the threads: no more cores are at work at batches
    than there are threads. Threads start with the first call and end with the crew.

    Args:
        threads: how many; None: as many as torch shares an operation among.
    """

    def __init__(self, threads: int | None = None) -> None:
        shared = torch.get_num_threads()  # also settles this thread's, before ours say 1
        self.threads = shared if threads is None else threads
        if self.threads < 1:
            raise ValueError(f"a crew needs at least 1 thread, got {threads}")
        self._executor = ThreadPoolExecutor(
            self.threads, thread_name_prefix="row", initializer=adopt_threads, initargs=(1,)
        )
        self._tasks: list[Task] = []  # a heap: urgent ones first, else in order
        self._lock = threading.Lock()
        self._numbers = itertools.count()

    def map(self, work: Callable[[int], T], rows: int, *, is_urgent: bool = False) -> list[T]:
        """What `work` returns for 0, 1, ..., `rows` - 1, each computed on one core.

        A row alone is computed by the calling thread. `work` says itself what belongs to a thread,
        such as `torch.inference_mode`.

        Args:
            work: called with a row's number, from several threads.
            rows: how many.
            is_urgent: before rows that are not, of other callers: those who wait for a few short
                rows are not to wait for a batch of long ones.

        Raises:
            Exception: what `work` raised, of the first such row; no row is under way by then.
        """
        if self.threads == 1 or rows == 1:
            with one_thread():
                return [work(row) for row in range(rows)]
        made: list[Future[T]] = [Future() for _ in range(rows)]
        with self._lock:
            for row, future in enumerate(made):
                task = (not is_urgent, next(self._numbers), _task(work, row, future))
                heapq.heappush(self._tasks, task)
        for _ in made:
            self._executor.submit(self._run_first)
        wait(made)
        return [future.result() for future in made]

    def close(self) -> None:
        """End the threads, after the rows under way."""
        self._executor.shutdown()

    def _run_first(self) -> None:
        with self._lock:
            *_, task = heapq.heappop(self._tasks)
        task()


def _task(work: Callable[[int], T], row: int, future: Future[Any]) -> Callable[[], None]:
    def run() -> None:
        try:
            future.set_result(work(row))
        except BaseException as error:  # the caller's: it is raised there
            future.set_exception(error)

    return run
