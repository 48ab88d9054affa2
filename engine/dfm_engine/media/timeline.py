"""When each picture of a clip is shown, and which picture a fixed rate shows when.

Stored timestamps start anywhere, pause, repeat, jump back or are missing. `Timeline` turns them
into seconds from the first shown picture, strictly increasing in the decoder's output order;
`resample` turns those into a constant rate. No picture is blended with another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TypeVar

__all__ = ["FALLBACK_PERIOD_S", "Timeline", "resample"]

FALLBACK_PERIOD_S = 0.04  # 25 pictures/s, the canonical rate, where a clip states none

_TIE_S = 1e-6  # keeps a picture that lies exactly between two slots from wavering by rounding

P = TypeVar("P")


class Timeline:
    """Seconds from the first picture, one per picture.

    A timestamp that does not lie after its predecessor restarts the clock one period after it, and
    later ones count from there; a missing one is one period after its predecessor. The period is
    the last gap seen, else the stated length of the picture, else 1/25 s.

    Attributes:
        end_s: when the last picture placed ends.
        restarts: how often the clock had to be restarted.
        least_gap_s, largest_gap_s: between pictures, repaired gaps left out.
    """

    def __init__(self) -> None:
        self.end_s = 0.0
        self.restarts = 0
        self.least_gap_s = math.inf
        self.largest_gap_s = 0.0
        self._origin_s = 0.0
        self._last_s: float | None = None
        self._gap_s = 0.0

    def place(self, pts_s: float | None, stated_s: float) -> float:
        """The time of the next picture.

        Args:
            pts_s: its timestamp in seconds on the stream's own clock, or None.
            stated_s: its stated length in seconds; 0 is unknown.
        """
        if self._last_s is None:
            self._origin_s = pts_s or 0.0
            time_s = 0.0
            length_s = stated_s
        else:
            time_s = -math.inf if pts_s is None else pts_s - self._origin_s
            length_s = stated_s
            if time_s <= self._last_s + 1e-9:
                # Where timestamps stand still, the stated lengths come from the same bad table.
                stated = stated_s if pts_s is None else 0.0
                length_s = self._gap_s or stated or FALLBACK_PERIOD_S
                time_s = self._last_s + length_s
                if pts_s is not None:
                    self._origin_s = pts_s - time_s
                    self.restarts += 1
            else:
                self._gap_s = time_s - self._last_s
                self.least_gap_s = min(self.least_gap_s, self._gap_s)
                self.largest_gap_s = max(self.largest_gap_s, self._gap_s)
        self._last_s = time_s
        self.end_s = time_s + (length_s or self._gap_s or FALLBACK_PERIOD_S)
        return time_s

    @property
    def last_s(self) -> float:
        """Time of the last picture placed; 0 before the first."""
        return self._last_s or 0.0

    @property
    def is_variable(self) -> bool:
        """Gaps differ by more than a container's rounding to milliseconds explains."""
        return self.largest_gap_s > 1.25 * self.least_gap_s + 1e-9


def resample(
    timed: Iterable[tuple[P, float]],
    timeline: Timeline,
    *,
    fps: float,
    start_s: float = 0.0,
    end_s: float | None = None,
) -> Iterator[P]:
    """Yield the picture to show at `start_s + k / fps`, for k = 0, 1, ...

    A picture at time t belongs to its nearest slot, floor((t - start_s) * fps + 1/2), ties going
    up; slot k shows the last picture that belongs to it or to an earlier slot. So a pause repeats
    a picture, and a faster rate drops some. The number of slots is the length of the range times
    `fps`, rounded; the range ends at `end_s` or with the last picture's end. A clip shorter than
    half a slot still gives one.

    Args:
        timed: pictures with their times, increasing; drawn no further than needed.
        timeline: the one that placed them; its `end_s` is read when `timed` is exhausted.
        fps: pictures per second to yield.
        start_s: start of the range.
        end_s: end of the range (half-open), or None for the end of the clip.
    """
    wanted = math.inf if end_s is None else max(1, _slot(end_s - start_s, fps))
    done = 0
    held: P | None = None
    for picture, time_s in timed:
        slot = _slot(time_s - start_s, fps)
        if held is not None:
            for _ in range(done, int(min(slot, wanted))):
                yield held
                done += 1
        if done >= wanted:
            return
        held = picture
    left = _slot(timeline.end_s - start_s, fps)
    if start_s == 0:
        left = max(1, left)
    if held is not None:
        for _ in range(done, int(min(left, wanted))):
            yield held


def _slot(time_s: float, fps: float) -> int:
    return math.floor((time_s + _TIE_S) * fps + 0.5)
