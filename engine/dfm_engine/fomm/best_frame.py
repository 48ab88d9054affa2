"""The driving frame whose pose is nearest the source's, from five facial landmarks.

Relative motion starts best from a frame in which the driving person looks as the source does. The
published script uses 68 landmarks of another detector; the same search on five is coarser, and
needs no second network.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dfm_engine.errors import DfmError, ShapeError
from dfm_engine.fomm.transfer import hull_area


def find_best_frame(source: NDArray[np.floating], driving: NDArray[np.floating]) -> int:
    """Index of the driving frame nearest the source in pose; of equals, the first.

    Each set of points is centred on its mean and divided by the square root of its hull's area,
    so place and size do not count; the distance is the sum of squared differences.

    Args:
        source: (5, 2) landmarks, (x, y) in any unit.
        driving: (T, 5, 2), order and unit likewise; a frame without a face has NaN and is passed
            over.

    Raises:
        ShapeError: other shapes.
        DfmError: the source's points span no area, or no driving frame has points that do.
    """
    if source.ndim != 2 or driving.ndim != 3 or driving.shape[1:] != source.shape:
        raise ShapeError(
            f"landmarks must be (N, 2) and (T, N, 2), got {source.shape} and {driving.shape}"
        )
    wanted = normalise_landmarks(source[None])[0]
    distances = np.square(normalise_landmarks(driving) - wanted).sum(axis=(1, 2))
    if not np.isfinite(wanted).all() or not np.isfinite(distances).any():
        who = "driving" if np.isfinite(wanted).all() else "source"
        raise DfmError(
            f"best-frame search: no {who} landmarks that span an area; "
            "start from frame 0, or exclude the clip"
        )
    return int(np.argmin(np.where(np.isfinite(distances), distances, np.inf)))


def normalise_landmarks(landmarks: NDArray[np.floating]) -> NDArray[np.float64]:
    """(T, N, 2) centred on the mean and divided by sqrt(hull area); NaN where there is no area."""
    points = np.asarray(landmarks, dtype=np.float64)
    points = points - points.mean(axis=1, keepdims=True)
    areas = np.array([hull_area(row) for row in points])
    roots = np.sqrt(np.where(areas > 0, areas, np.nan))
    return points / roots[:, None, None]


def playback_runs(best: int, frames: int) -> tuple[list[int], list[int]]:
    """The two runs of the published script: from the best frame to the end, and back to the start.

    Its result is `reverse(backward) + forward[1:]`, which is every frame once, in order. Transfer
    has no memory beyond the initial frame, so animating frames 0..T-1 in order with the best
    frame as the initial one gives the same clip in one run.

    Raises:
        ShapeError: `best` is not one of the frames.
    """
    if not 0 <= best < frames:
        raise ShapeError(f"best frame {best} is not within 0..{frames - 1}")
    return list(range(best, frames)), list(range(best, -1, -1))
