"""The one timing loop, and the rows that come of it.

    timings = measure({"ours": f, "theirs": g}, inputs, repeats=20, clock=clock_for("cuda"))
    row = Row.of("crop", timings["ours"], amount=frames, unit="frames/s", ...)

Variants are interleaved in one process, so that a machine that slows down slows all of them. Inputs
rotate, so that no call finds its own in the cache. What is stated is the median with its 5th and
95th percentile: a mean would count the one call that the operating system interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import torch

__all__ = ["Clock", "CudaClock", "HostClock", "Row", "StageRow", "Timing", "clock_for", "measure"]

FILL_CYCLES = 2_000_000  # of an idle kernel, about 1 ms: time for the host to get ahead

Input = TypeVar("Input")


class Clock(Protocol):
    """Marks moments and, once all is done, says how far apart two of them were."""

    def begin_round(self) -> None:
        """Called before the calls of each round."""
        ...

    def mark(self) -> Any:
        """This moment."""
        ...

    def seconds(self, start: Any, end: Any) -> float:
        """From one mark to another."""
        ...

    def cpu_seconds(self, start: Any, end: Any) -> float | None:
        """Of processor time, all threads of this process together; None where it says nothing."""
        ...


class HostClock:
    """The processor's clocks: of the wall, and of the work done by this process."""

    def begin_round(self) -> None:
        """Nothing to do."""

    def mark(self) -> tuple[float, float]:
        """Seconds on the wall and of work, from arbitrary starts."""
        return time.perf_counter(), time.process_time()

    def seconds(self, start: tuple[float, float], end: tuple[float, float]) -> float:
        """The difference on the wall."""
        return end[0] - start[0]

    def cpu_seconds(self, start: tuple[float, float], end: tuple[float, float]) -> float:
        """The difference of work."""
        return end[1] - start[1]


class CudaClock:
    """Events in the current stream: the device's time, without the host's.

    The host never waits between calls, and every round begins behind an idle kernel, so that the
    queue is full and a launch's cost does not show.
    """

    def begin_round(self) -> None:
        """Let the queue fill."""
        torch.cuda._sleep(FILL_CYCLES)

    def mark(self) -> torch.cuda.Event:
        """An event in the stream."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Waits for `end`."""
        end.synchronize()
        return start.elapsed_time(end) / 1000

    def cpu_seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> None:
        """The host only waits for the device."""


def clock_for(device: torch.device | str) -> Clock:
    """The clock of work on this device."""
    return CudaClock() if torch.device(device).type == "cuda" else HostClock()


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of each call of one variant, in order; `cpu_samples_s` of work, where known."""

    samples_s: tuple[float, ...]
    cpu_samples_s: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.samples_s:
            raise ValueError("a timing needs at least one sample")

    @property
    def median_s(self) -> float:
        """The middle."""
        return self._percentile(50)

    @property
    def p5_s(self) -> float:
        """One call in twenty is faster."""
        return self._percentile(5)

    @property
    def p95_s(self) -> float:
        """One call in twenty is slower."""
        return self._percentile(95)

    @property
    def cpu_s(self) -> float | None:
        """The middle, of work: core-seconds of a call."""
        return float(np.median(self.cpu_samples_s)) if self.cpu_samples_s else None

    def _percentile(self, percent: float) -> float:
        return float(np.percentile(self.samples_s, percent))


def measure(
    variants: Mapping[str, Callable[[Input], object]],
    inputs: Sequence[Input],
    *,
    repeats: int,
    warm_up: int = 1,
    clock: Clock | None = None,
) -> dict[str, Timing]:
    """Time variants of one computation against each other.

    A round calls every variant once, in order. Each variant walks through all inputs, from a start
    of its own; with at least twice as many inputs as variants, or one variant and two inputs, no
    call gets the input of the call before.

    Args:
        variants: what to call with an input, by name.
        inputs: equally costly ones.
        repeats: rounds that count.
        warm_up: rounds before them that do not.
        clock: of the device; the processor's where left out.

    Raises:
        ValueError: no variant, no input or no round.
    """
    if not variants or not inputs or repeats < 1:
        raise ValueError(
            f"measure needs variants, inputs and repeats, got {len(variants)}, {len(inputs)} and "
            f"{repeats}"
        )
    clock = clock or HostClock()
    marks: dict[str, list[tuple[Any, Any]]] = {name: [] for name in variants}
    apart = len(inputs) // len(variants)
    for turn in range(-warm_up, repeats):
        clock.begin_round()
        for place, (name, call) in enumerate(variants.items()):
            given = inputs[(turn + place * apart) % len(inputs)]
            start = clock.mark()
            call(given)
            end = clock.mark()
            if turn >= 0:
                marks[name].append((start, end))
    return {name: _timing(clock, pairs) for name, pairs in marks.items()}


def _timing(clock: Clock, pairs: Sequence[tuple[Any, Any]]) -> Timing:
    work = (clock.cpu_seconds(start, end) for start, end in pairs)
    return Timing(
        tuple(clock.seconds(start, end) for start, end in pairs),
        tuple(seconds for seconds in work if seconds is not None),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured rate, against what it could be.

    Attributes:
        name: what was measured.
        variant: which way of doing it; `name`, this, `device`, `shape`, `dtype` and `unit` are
            those of one row of a report alone, and the same in the next run (`compare`).
        device: `cpu` or `cuda`; the report's facts say which.
        shape: of the input of one call.
        dtype: of the input.
        median_s, p5_s, p95_s: of one call.
        cpu_s: core-seconds of one call, of this process; None on a GPU.
        repeats: calls that counted.
        rate: units of work a second, at the median.
        unit: of the rate, such as `frames/s`.
        ceiling: the rate that could not be passed; None where the row is itself a ceiling.
        ceiling_of: what the ceiling is.
        command: makes this row again.
        note: what else was seen, and may differ from run to run.
    """

    name: str
    variant: str
    device: str
    shape: tuple[int, ...]
    dtype: str
    median_s: float
    p5_s: float
    p95_s: float
    repeats: int
    rate: float
    unit: str
    ceiling: float | None = None
    ceiling_of: str = ""
    command: str = ""
    cpu_s: float | None = None
    note: str = ""

    @classmethod
    def of(
        cls,
        name: str,
        timing: Timing,
        *,
        amount: float,
        unit: str,
        shape: tuple[int, ...],
        dtype: str = "uint8",
        variant: str = "",
        device: str = "cpu",
        ceiling: float | None = None,
        ceiling_of: str = "",
        command: str = "",
        note: str = "",
    ) -> Self:
        """The row of a timing whose every call did `amount` units of work."""
        return cls(
            name=name,
            variant=variant,
            device=device,
            shape=shape,
            dtype=dtype,
            median_s=timing.median_s,
            p5_s=timing.p5_s,
            p95_s=timing.p95_s,
            repeats=len(timing.samples_s),
            rate=amount / timing.median_s,
            unit=unit,
            ceiling=ceiling,
            ceiling_of=ceiling_of,
            command=command,
            cpu_s=timing.cpu_s,
            note=note,
        )

    @property
    def way(self) -> str:
        """For a person: the variant, and the note."""
        return ", ".join(part for part in (self.variant, self.note) if part)

    @property
    def core_s(self) -> float | None:
        """Core-seconds of one unit of work."""
        return None if self.cpu_s is None else self.cpu_s / (self.rate * self.median_s)

    @property
    def share(self) -> float | None:
        """Of the ceiling, reached."""
        return self.rate / self.ceiling if self.ceiling else None

    def to_json(self) -> dict[str, Any]:
        """All fields, and the share."""
        return {**asdict(self), "shape": list(self.shape), "share": self.share}


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRow:
    """One stage of a run, timed by the run itself.

    Attributes:
        name: of the stage.
        clips, frames: what it did.
        workers: how many worked side by side.
        busy_s: seconds of work, summed over the workers.
        wall_s: of the whole run.
        ceiling: frames per busy second that its parts reach alone; None where not measured.
    """

    name: str
    clips: int
    frames: int
    workers: int
    busy_s: float
    wall_s: float
    ceiling: float | None = None

    @property
    def frames_per_busy_s(self) -> float | None:
        """None for a stage that counts no frames."""
        return self.frames / self.busy_s if self.frames and self.busy_s else None

    @property
    def share_of_wall(self) -> float:
        """Of the run's time, of one worker."""
        return self.busy_s / (self.workers * self.wall_s)

    @property
    def share_of_ceiling(self) -> float | None:
        """Of the rate that its parts reach alone."""
        rate = self.frames_per_busy_s
        return rate / self.ceiling if rate and self.ceiling else None

    def to_json(self) -> dict[str, Any]:
        """All fields, and the three numbers that follow from them."""
        return {
            **asdict(self),
            "frames_per_busy_s": self.frames_per_busy_s,
            "share_of_wall": self.share_of_wall,
            "share_of_ceiling": self.share_of_ceiling,
        }
