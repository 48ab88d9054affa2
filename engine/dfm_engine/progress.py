"""What a person sees while a build runs, and the stage timings that stay behind.

`Meters` counts work and busy seconds per stage; `Ticker` writes a line of them to stderr every few
seconds. The stage that was busy for the largest share of the time is the bottleneck.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Self, TextIO


@dataclass(slots=True)
class Meter:
    """One stage: how much it did and how long it was busy.

    Attributes:
        busy_s: seconds of work, summed over the stage's workers.
        workers: how many work side by side; the busy share is busy_s / (workers x wall).
        clips: items finished.
        frames: frames finished.
    """

    busy_s: float = 0.0
    workers: int = 1
    clips: int = 0
    frames: int = 0


@dataclass(slots=True)
class QueueFill:
    """How full a queue was, at moments an equal time apart.

    Attributes:
        room: items that can wait in it.
        peak: the most that did at one of the moments.
        items: waiting ones, summed over the moments.
        looks: moments.
    """

    room: int = 0
    peak: int = 0
    items: int = 0
    looks: int = 0

    @property
    def mean(self) -> float:
        """Items that waited, on average."""
        return self.items / self.looks if self.looks else 0.0

    def add(self, waiting: int, room: int) -> None:
        """One more moment."""
        self.room, self.peak = max(self.room, room), max(self.peak, waiting)
        self.items += waiting
        self.looks += 1


WATCH_S = 0.1
"""Seconds between two looks at the queues."""

MAX_SPANS = 50_000
"""Moments kept for a picture of the run; a longer run shows its beginning."""


class Meters:
    """The stages of a run, by name, in the order of their first use; for any number of threads.

    Attributes:
        stages: by name.
        started_s: of the run, on the monotonic clock.
        spans: (stage, start, end) of every stretch of work, seconds from the start of the run.
        queues: by name, how full each is now and can be.
        fills: by name, how full each was while `watched`.
    """

    def __init__(self, started_s: float | None = None) -> None:
        self.stages: dict[str, Meter] = {}
        self.started_s = time.monotonic() if started_s is None else started_s
        self.spans: list[tuple[str, float, float]] = []
        self.queues: dict[str, Callable[[], tuple[int, int]]] = {}
        self.fills: dict[str, QueueFill] = {}
        self._lock = threading.Lock()
        self._local = threading.local()  # blocks under way in this thread, outermost first

    def stage(self, name: str, *, workers: int = 1) -> Meter:
        """The meter of a stage, made at its first use."""
        return self.stages.setdefault(name, Meter(workers=workers))

    @contextmanager
    def busy(
        self, name: str, *, clips: int = 0, frames: int = 0, workers: int = 1
    ) -> Iterator[None]:
        """Count the time of a block as work of a stage, and its items once it succeeds.

        The stage's first block says how many work side by side.

        Stages pull from each other, so blocks nest: while an inner one runs the outer one's clock
        stands, and the stages' times never count a second of a thread twice.
        """
        meter = self.stage(name, workers=workers)
        with self._block(name):
            yield
            with self._lock:
                meter.clips += clips
                meter.frames += frames

    def waiting(self) -> AbstractContextManager[None]:
        """A block in which this thread waits for another: the clock of what is around it stands."""
        return self._block(None)

    def count(self, name: str, *, clips: int = 0, frames: int = 0) -> None:
        """Count items of a stage whose time is counted elsewhere."""
        meter = self.stage(name)
        with self._lock:
            meter.clips += clips
            meter.frames += frames

    def fill(self) -> dict[str, tuple[int, int]]:
        """Items waiting in each queue, and how many can."""
        return {name: read() for name, read in self.queues.copy().items()}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within the block the queues are looked at ten times a second; `fills` is what was seen.

        A queue that is empty holds up the stage behind it; one that is full, the stage before it.
        """
        done = threading.Event()

        def watch() -> None:
            while not done.wait(WATCH_S):
                for name, (waiting, room) in self.fill().items():
                    self.fills.setdefault(name, QueueFill()).add(waiting, room)

        thread = threading.Thread(target=watch, name="queues", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def queues_to_json(self) -> dict[str, dict[str, float | int]]:
        """Per queue that was watched: its room, the items waiting on average and at most."""
        return {
            name: {"room": fill.room, "mean": round(fill.mean, 2), "peak": fill.peak}
            for name, fill in self.fills.items()
        }

    @contextmanager
    def _block(self, name: str | None) -> Iterator[None]:
        blocks: list[tuple[str | None, float]] = self._local.__dict__.setdefault("blocks", [])
        now = time.monotonic()
        if blocks:
            self._add(*blocks[-1], now)
        blocks.append((name, now))
        try:
            yield
        finally:
            now = time.monotonic()
            self._add(*blocks.pop(), now)
            if blocks:
                blocks[-1] = (blocks[-1][0], now)

    def _add(self, name: str | None, start_s: float, end_s: float) -> None:
        if name is None:
            return
        with self._lock:
            self.stages[name].busy_s += end_s - start_s
            if len(self.spans) < MAX_SPANS and end_s > start_s:
                self.spans.append((name, start_s - self.started_s, end_s - self.started_s))

    @property
    def wall_s(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.started_s

    def bottleneck(self) -> str | None:
        """The stage that was busy for the largest share of its workers' time."""
        # A copy is one step for other threads; a list of pairs is many, between which they may add.
        shares = {name: m.busy_s / m.workers for name, m in self.stages.copy().items()}
        busiest = max(shares, key=lambda name: shares[name], default=None)
        return busiest if busiest and shares[busiest] > 0 else None

    def rate(self, name: str) -> float:
        """Frames per busy second of one worker of a stage; 0 while it has done none."""
        meter = self.stages.get(name)
        return meter.frames / meter.busy_s if meter and meter.busy_s > 0 else 0.0

    def to_json(self) -> dict[str, dict[str, float | int]]:
        """Per stage: clips, frames, busy seconds, frames per busy second, share of the wall."""
        wall = max(self.wall_s, 1e-9)
        return {
            name: {
                "clips": m.clips,
                "frames": m.frames,
                "workers": m.workers,
                "busy_s": round(m.busy_s, 3),
                "frames_per_busy_s": round(m.frames / m.busy_s, 1) if m.busy_s else 0.0,
                "busy_share": round(m.busy_s / (m.workers * wall), 4),
            }
            for name, m in self.stages.items()
        }


class Ticker:
    """Writes one line every few seconds while a block runs, and a last one at its end.

    Args:
        line: makes the text; called from a thread of its own, so it only reads.
        enabled: False is silence.
        interval_s: seconds between lines; None is 1 on a terminal, where the line is overwritten
            in place, and 10 elsewhere.
        stream: stderr, unless a test says otherwise.
    """

    def __init__(
        self,
        line: Callable[[], str],
        *,
        enabled: bool = True,
        interval_s: float | None = None,
        stream: TextIO | None = None,
    ) -> None:
        self._line = line
        self._stream = stream if stream is not None else sys.stderr
        self._is_tty = self._stream.isatty()
        self._enabled = enabled
        self._interval_s = interval_s or (1.0 if self._is_tty else 10.0)
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._enabled:
            self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()
            self._write(final=True)

    def _run(self) -> None:
        while not self._done.wait(self._interval_s):
            self._write()

    def _write(self, *, final: bool = False) -> None:
        text = self._line()
        if not text:
            return
        if self._is_tty:
            self._stream.write(f"\r\x1b[2K{text}" + ("\n" if final else ""))
        else:
            self._stream.write(text + "\n")
        self._stream.flush()


class Counter(Ticker):
    """A ticker for work that says how far it is: call it with (done, total)."""

    def __init__(self, name: str, unit: str) -> None:
        self._at = (0, 0)
        super().__init__(
            lambda: f"{name}  {self._at[0]}/{self._at[1]} {unit}" if self._at[1] else ""
        )

    def __call__(self, done: int, total: int) -> None:
        self._at = (done, total)


def duration(seconds: float) -> str:
    """`41 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
