"""Who had the cores while something was timed: this process with its children, or others.

    with CoresWatch() as cores:
        build()
    cores.sentence()   # "... its own processes had 1.95 of 2 cores, others 0.02."

A rate taken on a machine that others use says little of the program; then the reader is told.
"""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["CoresWatch"]

STAT = Path("/proc/stat")
IDLE = (3, 4)  # of the columns of /proc/stat: idle, waiting for a disk
GUESTS = 8  # from here on columns repeat what is in others


class CoresWatch:
    """Measures a block; elsewhere than on Linux it knows nothing and says nothing.

    Attributes:
        own: cores that this process and its ended children were at work on, on average.
        others: cores that all other processes were, and what the host took; None where not known.
    """

    def __init__(self, stat: Path = STAT) -> None:
        self._stat = stat
        self.own = 0.0
        self.others: float | None = None

    def __enter__(self) -> Self:
        self._before = time.perf_counter(), _own_s(), _busy_s(self._stat)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        started_s, own_s, busy_s = self._before
        wall_s = time.perf_counter() - started_s
        self.own = (_own_s() - own_s) / wall_s
        busy = _busy_s(self._stat)
        if busy is not None and busy_s is not None:
            self.others = max(0.0, (busy - busy_s) / wall_s - self.own)

    def sentence(self, cores: float) -> str:
        """For the reader of a report; empty where nothing is known."""
        if self.others is None:
            return ""
        return (
            f"While it was built and verified, its own processes had {self.own:.2f} of "
            f"{cores:g} cores and others {self.others:.2f}."
        )


def _own_s() -> float:
    """Core-seconds of this process and of children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _busy_s(stat: Path) -> float | None:
    """Core-seconds of the whole machine since its start."""
    try:
        columns = [int(word) for word in stat.read_text().splitlines()[0].split()[1:]]
    except (OSError, ValueError, IndexError):
        return None
    busy = sum(value for place, value in enumerate(columns[:GUESTS]) if place not in IDLE)
    return busy / os.sysconf("SC_CLK_TCK")
