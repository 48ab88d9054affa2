"""Of the numbers that a shortcut used, the one that tells most by itself, in words.

A flag says that there is a difference; this says where to look for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dfm_engine.audit.features import GRID, PICTURE_TYPES, RING

__all__ = ["BORDER", "CODEC", "CONTAINER", "FIRST_FRAME", "most_telling"]

_TYPES = dict(zip(PICTURE_TYPES, "IPB", strict=True))

CODEC = (
    "log of the mean packet",
    "mean log of the packets",
    "spread of the log of the packets",
    "log of the first packet",
    "first packet against the others",
    "largest packet against the others",
    "smallest packet against the others",
    "change of the log from packet to packet",
    "share of key frames",
    *(f"share of {kind} pictures" for kind in _TYPES.values()),
    *(f"quantiser of {kind} pictures" for kind in _TYPES.values()),
    "mean quantiser",
    "spread of the quantiser over pictures",
    "spread of the quantiser within pictures",
)
CONTAINER = (
    "frames",
    "duration in s",
    "frame rate",
    "time base",
    "start in s",
    "streams",
    "tags",
    "bytes of the comment",
    "width",
    "height",
)
FIRST_FRAME = (
    *(f"luma of square {x + 1}, {y + 1} of {GRID}" for y in range(GRID) for x in range(GRID)),
    *(
        f"{plane} of square {x + 1}, {y + 1} of {GRID // 2}"
        for plane in ("Cb", "Cr")
        for y in range(GRID // 2)
        for x in range(GRID // 2)
    ),
)
BORDER = (
    *(
        f"{what} of ring {depth + 1}"
        for what in ("luma", "spread", "step to the next", "roughness")
        for depth in range(RING)
    ),
    *(f"change over time of ring {depth + 1}" for depth in range(RING)),
    *(f"{plane} of ring {depth + 1}" for plane in ("Cb", "Cr") for depth in range(2)),
)


def most_telling(
    features: NDArray[np.float64], names: Sequence[str], is_fake: NDArray[np.bool_]
) -> str:
    """Say which number splits the classes best.

    Args:
        features: (N, F).
        names: of the F numbers.
        is_fake: (N,), both classes.

    Returns:
        Its name, the medians of both classes, and how often a fake has the larger one of a fake
        and a real file (or the smaller one, if that is more often); "" where nothing varies.
    """
    if features.shape[1] != len(names):
        raise ValueError(f"{features.shape[1]} numbers, {len(names)} names")
    fake, real = features[is_fake], features[~is_fake]
    above = np.array([_share_above(f, r) for f, r in zip(fake.T, real.T, strict=True)])  # (F,)
    varies = np.ptp(features, axis=0) > 1e-9
    if not varies.any():
        return ""
    apart = np.abs(np.median(fake, 0) - np.median(real, 0))
    apart /= np.maximum(np.sqrt((fake.var(0) + real.var(0)) / 2), 1e-9)
    split = np.where(varies, np.abs(above - 0.5), -1.0)
    best = int(np.lexsort((apart, split))[-1])  # of those that split alike the furthest apart
    share, word = above[best], "larger"
    if share < 0.5:
        share, word = 1 - share, "smaller"
    return (
        f"{names[best]}: {np.median(fake[:, best]):.4g} in fakes, {np.median(real[:, best]):.4g} "
        f"in real clips ({word} in {share:.0%} of pairs)"
    )


def _share_above(values: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """In what share of pairs a value is the larger one; equal ones count half."""
    ordered = np.sort(others)
    below = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    return float(below.mean() / (2 * len(others)))
