"""Does the animation move as its driving clip does?

The rule that needs no idea of the action: the curves that carry the action are correlated
between driving clip and animation. Several curves count as one motion, each in units of
what its gate asks for, so that degrees and shares weigh alike.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm_engine.actions import Action
from dfm_engine.errors import ShapeError
from dfm_engine.screen.signals import Channel, Signals

__all__ = ["CHANNELS", "Agreement", "agreement"]

# What carries each action, and the amount of change that weighs 1 (the gate's order of size).
CHANNELS: dict[Action, dict[Channel, float]] = {
    Action.BLINK: {"eyes": 0.3},
    Action.OPEN_MOUTH: {"mouth_open": 0.08},
    Action.YAW: {"yaw": 15.0},
    Action.NOD: {"pitch": 10.0},
    Action.RIGHT_SLOPE: {"roll": 12.0},
    Action.LEFT_SLOPE: {"roll": 12.0},
    Action.LOOK_UP: {"pitch": 10.0},
    Action.SMILE: {"mouth_width": 0.08, "corner_lift": 0.06},
    Action.SURPRISE: {"mouth_open": 0.08, "brow_lift": 0.05, "eyes": 0.3},
    Action.EMBARRASSMENT: {"pitch": 5.0, "mouth_width": 0.06},
}
# Surprise is judged by two signs of three; so is its motion: brows behind hair or glasses are lost.
BEST_OF: dict[Action, int] = {Action.SURPRISE: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How the motion of an animation compares with its driving clip's.

    Attributes:
        correlation: normalised cross-correlation, -1..1; 0 where one of the two does not move.
        amplitude_ratio: motion of the animation over the driving clip's.
        frames: how many frames were compared.
    """

    correlation: float
    amplitude_ratio: float
    frames: int

    def to_json(self) -> dict[str, Any]:
        """Plain values for the job's marker."""
        return asdict(self)


def agreement(driving: Signals, result: Signals, action: Action) -> Agreement:
    """Compare the curves that carry the action, frame by frame from the first.

    Each curve is taken from its own mean, so an offset between two faces costs nothing; the
    ratio is that of the root mean squares.

    Raises:
        ShapeError: one of the two is empty.
    """
    frames = min(len(driving), len(result))
    if not frames:
        raise ShapeError("agreement needs at least one frame on both sides, found none")
    one, other = _motion(driving, action, frames), _motion(result, action, frames)
    kept = BEST_OF.get(action, len(one))
    correlation = max(
        _correlation(one[list(rows)], other[list(rows)])
        for rows in combinations(range(len(one)), kept)
    )
    size = float(np.linalg.norm(one))
    ratio = float(np.linalg.norm(other)) / size if size > 1e-9 else 0.0
    return Agreement(
        correlation=round(correlation, 4), amplitude_ratio=round(ratio, 4), frames=frames
    )


def _correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Normalised, of two motions (curves, T); 0 if one of them stands still."""
    product = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float((one * other).sum()) / product if product > 1e-9 else 0.0


def _motion(signals: Signals, action: Action, frames: int) -> NDArray[np.float64]:
    rows = [
        signals.change(channel)[:frames].astype(np.float64) / unit
        for channel, unit in CHANNELS[action].items()
    ]
    curves = np.stack(rows)
    return curves - curves.mean(1, keepdims=True)
