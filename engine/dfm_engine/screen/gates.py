"""Was the action performed? One gate per action over the signals of a clip.

A gate is a list of claims, each a measured value against a limit of the `THRESHOLDS` table; the
action was performed if every claim holds. The verdict's score is the weakest claim's share of its
limit, so 1 is the border. Recipes override single limits (`[screen.thresholds.<action>]`).
Frame counts are frames at the canonical 25 frames/s.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dfm_engine.actions import Action
from dfm_engine.errors import RecipeError
from dfm_engine.screen.signals import Curve, Signals

__all__ = ["THRESHOLDS", "ActionVerdict", "check_action", "thresholds_for"]

Limits = Mapping[str, float]

# Angles in degrees from neutral, lengths in inter-ocular distances e, frames at 25 frames/s.
THRESHOLDS: dict[Action, dict[str, float]] = {
    Action.BLINK: {
        "eyes_shut": 0.68,  # both eyes' openness dips below this share of open
        "each_eye_shut": 0.8,  # ... and each single eye below this: a wink is no blink
        "recovered": 0.8,  # and comes back above this share
        "min_frames": 2,
        "max_frames": 25,
        "max_yaw_range_deg": 12,
        "max_pitch_range_deg": 10,
        "max_roll_range_deg": 10,
    },
    Action.OPEN_MOUTH: {
        "rise": 0.06,  # of the cavity's and teeth's share of the mouth patch
        "max_corner_lift": 0.025,  # teeth between lifted corners are a smile
        "min_frames": 5,
    },
    Action.YAW: {
        "peak_deg": 13,
        "range_deg": 22,  # one of the two
        "dominance": 1.0,  # yaw range over the larger of pitch and roll range
        "min_frames": 3,
    },
    Action.NOD: {
        "down_deg": 6,
        "return_share": 0.5,  # of the way down is taken back
        "max_frames": 22,  # below half of the way; who stays down longer does not nod
        "dominance": 0.8,
        "min_frames": 3,
    },
    Action.RIGHT_SLOPE: {"peak_deg": 10, "dominance": 0.8, "min_frames": 3},
    Action.LEFT_SLOPE: {"peak_deg": 10, "dominance": 0.8, "min_frames": 3},
    Action.LOOK_UP: {"up_deg": 6, "dominance": 0.8, "min_frames": 8},
    Action.SMILE: {
        "wider": 0.06,  # share of the neutral mouth width
        "lift": 0.025,
        "min_frames": 6,
        "max_mouth_open": 0.2,
        "max_pitch_down_deg": 10,
        "max_yaw_range_deg": 30,
    },
    Action.SURPRISE: {
        "mouth_rise": 0.05,
        "brow_lift": 0.05,
        "eyes_wider": 0.1,  # share above the neutral openness
        "claims": 2,  # this many of the three, at the same time
        "min_frames": 5,
    },
    Action.EMBARRASSMENT: {
        "down_deg": 5,
        "mouth_change": 0.02,  # share of the neutral width, or lift of the corners, either way
        "min_frames": 12,
        "max_mouth_open": 0.05,
    },
}
LOW_CONFIDENCE = frozenset({Action.EMBARRASSMENT})  # five points see no gaze and no blush


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionVerdict:
    """What a gate says of one clip.

    Attributes:
        action: the action that was asked for.
        performed: every claim holds.
        score: the weakest claim as a share of its limit, 0..2; below 1 fails.
        reason: the weakest claim in words.
        measurements: every claim's value by name.
        low_confidence: the gate is known to be weak.
    """

    action: Action
    performed: bool
    score: float
    reason: str
    measurements: dict[str, float] = field(default_factory=dict)
    low_confidence: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain values for the job's marker."""
        return {**asdict(self), "action": self.action.value}


class Claim(NamedTuple):
    """A measured value that must be at least (or at most) its limit."""

    name: str
    value: float
    limit: float
    at_most: bool = False

    @property
    def share(self) -> float:
        """How far the claim holds, 0..2; 1 is the border."""
        if self.at_most:
            return 2.0 if self.value <= 0 else min(2.0, self.limit / self.value)
        if self.limit <= 0:
            return 2.0 if self.value >= self.limit else 0.0
        return float(np.clip(self.value / self.limit, 0.0, 2.0))

    def __str__(self) -> str:
        word = "at most" if self.at_most else "at least"
        return f"{self.name} is {self.value:.3g}, needs {word} {self.limit:.3g}"


def check_action(
    signals: Signals,
    action: Action,
    thresholds: Mapping[str, Mapping[str, float]] | None = None,
) -> ActionVerdict:
    """Judge whether the clip of these signals performs the action.

    Args:
        signals: of the clip, at 25 frames/s.
        action: what should be seen.
        thresholds: overrides of `THRESHOLDS` by action and name (`recipe.Screen.thresholds`).

    Raises:
        RecipeError: an override names no known action or limit.
    """
    claims = _GATES[action](signals, thresholds_for(action, thresholds))
    weakest = min(claims, key=lambda claim: claim.share)
    performed = all(claim.share >= 1 for claim in claims)
    return ActionVerdict(
        action=action,
        performed=performed,
        score=round(weakest.share, 4),
        reason="performed" if performed else str(weakest),
        measurements={claim.name: round(float(claim.value), 4) for claim in claims},
        low_confidence=action in LOW_CONFIDENCE,
    )


def thresholds_for(
    action: Action, overrides: Mapping[str, Mapping[str, float]] | None = None
) -> dict[str, float]:
    """The limits of an action's gate with a recipe's overrides in place.

    Raises:
        RecipeError: an override names no known action or limit.
    """
    for name, values in (overrides or {}).items():
        if name not in [known.value for known in THRESHOLDS]:
            raise RecipeError(
                f"screen.thresholds: {name!r} is no action; known are "
                f"{', '.join(known.value for known in THRESHOLDS)}"
            )
        known_names = THRESHOLDS[Action(name)]
        for key in values:
            if key not in known_names:
                near = difflib.get_close_matches(key, known_names, n=1) or sorted(known_names)
                raise RecipeError(
                    f"screen.thresholds.{name}: unknown limit {key!r}; known: {', '.join(near)}"
                )
    return {**THRESHOLDS[action], **(overrides or {}).get(action.value, {})}


def _blink(signals: Signals, limits: Limits) -> list[Claim]:
    left, right = signals.eye_shares()
    both = (left + right) / 2
    depth, frames = _best_dip(both, np.maximum(left, right), limits)
    return [
        Claim("eyes_shut", depth, limits["eyes_shut"], at_most=True),
        Claim("shut_frames", frames, limits["min_frames"]),
        Claim(
            "yaw_range_deg",
            _range(signals.change("yaw")),
            limits["max_yaw_range_deg"],
            at_most=True,
        ),
        Claim(
            "pitch_range_deg",
            _range(signals.change("pitch")),
            limits["max_pitch_range_deg"],
            at_most=True,
        ),
        Claim(
            "roll_range_deg",
            _range(signals.change("roll")),
            limits["max_roll_range_deg"],
            at_most=True,
        ),
    ]


def _best_dip(both: Curve, wider: Curve, limits: Limits) -> tuple[float, int]:
    """Depth and length of the deepest dip of the right length that recovers on both sides.

    `wider` is the opener eye of each frame. Without such a dip: the smallest value seen, 0 frames.
    """
    best, frames = float(both.min(initial=1.0)), 0
    found = False
    for first, last in _runs(both <= limits["eyes_shut"]):
        length = last - first
        after = both[last:].max(initial=0.0)
        is_blink = (
            limits["min_frames"] <= length <= limits["max_frames"]
            and after >= limits["recovered"]
            and wider[first:last].min() <= limits["each_eye_shut"]
        )
        depth = float(both[first:last].min())
        if is_blink and (not found or depth < best):
            best, frames, found = depth, length, True
    return best, frames


def _open_mouth(signals: Signals, limits: Limits) -> list[Claim]:
    frames = int(limits["min_frames"])
    opened = signals.change("mouth_open")
    lift = float(np.median(signals.change("corner_lift")[_held_at(opened, frames)]))
    return [
        Claim("mouth_open_rise", _held(opened, frames), limits["rise"]),
        Claim("corner_lift", lift, limits["max_corner_lift"], at_most=True),
    ]


def _yaw(signals: Signals, limits: Limits) -> list[Claim]:
    frames = int(limits["min_frames"])
    yaw = signals.change("yaw")
    left, right = _held(-yaw, frames), _held(yaw, frames)
    peak = max(left, right, 0.0)
    swing = max(left, 0.0) + max(right, 0.0)
    reached = max(peak / limits["peak_deg"], swing / limits["range_deg"])
    return [
        Claim("yaw_peak_deg", reached * limits["peak_deg"], limits["peak_deg"]),
        Claim("yaw_dominance", _dominance(signals, "yaw"), limits["dominance"]),
    ]


def _nod(signals: Signals, limits: Limits) -> list[Claim]:
    pitch = signals.change("pitch")
    down = _held(pitch, int(limits["min_frames"]))
    lowest = int(pitch.argmax())
    back = down - float(pitch[lowest:].min())
    stay = max((last - first for first, last in _runs(pitch > down / 2)), default=0)
    return [
        Claim("pitch_down_deg", down, limits["down_deg"]),
        Claim("returned_share", back / max(down, 1e-3), limits["return_share"]),
        Claim("down_frames", stay, limits["max_frames"], at_most=True),
        Claim("pitch_dominance", _dominance(signals, "pitch"), limits["dominance"]),
    ]


def _look_up(signals: Signals, limits: Limits) -> list[Claim]:
    up = _held(-signals.change("pitch"), int(limits["min_frames"]))
    return [
        Claim("pitch_up_deg", up, limits["up_deg"]),
        Claim("pitch_dominance", _dominance(signals, "pitch"), limits["dominance"]),
    ]


def _right_slope(signals: Signals, limits: Limits) -> list[Claim]:
    return _slope(-signals.change("roll"), signals, limits)


def _left_slope(signals: Signals, limits: Limits) -> list[Claim]:
    return _slope(signals.change("roll"), signals, limits)


def _slope(roll: Curve, signals: Signals, limits: Limits) -> list[Claim]:
    return [
        Claim("roll_peak_deg", _held(roll, int(limits["min_frames"])), limits["peak_deg"]),
        Claim("roll_dominance", _dominance(signals, "roll"), limits["dominance"]),
    ]


def _smile(signals: Signals, limits: Limits) -> list[Claim]:
    frames = int(limits["min_frames"])
    width, lift = signals.change("mouth_width"), signals.change("corner_lift")
    both = np.minimum(width / limits["wider"], lift / limits["lift"])
    smiling = _held(both, frames)
    at = _held_at(both, frames)
    opened = float(np.median(signals.change("mouth_open")[at]))
    down = _held(signals.change("pitch"), 3)
    return [
        Claim("smile", smiling, 1.0),
        Claim("mouth_wider", float(width[at].min()), limits["wider"]),
        Claim("corner_lift", float(lift[at].min()), limits["lift"]),
        Claim("mouth_open_rise", opened, limits["max_mouth_open"], at_most=True),
        Claim("pitch_down_deg", down, limits["max_pitch_down_deg"], at_most=True),
        Claim(
            "yaw_range_deg",
            _range(signals.change("yaw")),
            limits["max_yaw_range_deg"],
            at_most=True,
        ),
    ]


def _surprise(signals: Signals, limits: Limits) -> list[Claim]:
    neutral = slice(0, signals.neutral_frames)
    eyes = signals.change("eyes")
    parts = np.stack(
        [
            signals.change("mouth_open") / limits["mouth_rise"],
            signals.change("brow_lift") / limits["brow_lift"],
            (eyes - np.median(eyes[neutral])) / limits["eyes_wider"],
        ]
    )
    frames, count = int(limits["min_frames"]), int(limits["claims"])
    together = np.sort(parts, axis=0)[::-1][count - 1]  # the weakest of the best `count`
    at = _held_at(together, frames)
    return [
        Claim("surprise", _held(together, frames), 1.0),
        *(
            Claim(name, float(np.median(part[at])), -np.inf)
            for name, part in zip(("mouth", "brows", "eyes"), parts, strict=True)
        ),
    ]


def _embarrassment(signals: Signals, limits: Limits) -> list[Claim]:
    frames = int(limits["min_frames"])
    pitch = signals.change("pitch")
    at = _held_at(pitch, frames)
    width, lift = (float(np.median(signals.change(c)[at])) for c in ("mouth_width", "corner_lift"))
    opened = float(np.median(signals.change("mouth_open")[at]))
    return [
        Claim("pitch_down_deg", _held(pitch, frames), limits["down_deg"]),
        Claim("mouth_change", max(abs(width), abs(lift)), limits["mouth_change"]),
        Claim("mouth_open_rise", opened, limits["max_mouth_open"], at_most=True),
    ]


_GATES: dict[Action, Callable[[Signals, Limits], list[Claim]]] = {
    Action.BLINK: _blink,
    Action.OPEN_MOUTH: _open_mouth,
    Action.YAW: _yaw,
    Action.NOD: _nod,
    Action.RIGHT_SLOPE: _right_slope,
    Action.LEFT_SLOPE: _left_slope,
    Action.LOOK_UP: _look_up,
    Action.SMILE: _smile,
    Action.SURPRISE: _surprise,
    Action.EMBARRASSMENT: _embarrassment,
}


def _held(curve: Curve, frames: int) -> float:
    """The highest level that the curve keeps for this many frames in a row."""
    if len(curve) < frames:
        return float(curve.min(initial=0.0))
    windows = np.lib.stride_tricks.sliding_window_view(curve, max(1, frames))
    return float(windows.min(1).max())


def _held_at(curve: Curve, frames: int) -> slice:
    """Where it does."""
    if len(curve) < frames:
        return slice(0, len(curve))
    windows = np.lib.stride_tricks.sliding_window_view(curve, max(1, frames))
    first = int(windows.min(1).argmax())
    return slice(first, first + max(1, frames))


def _range(curve: Curve) -> float:
    """Swing of a curve, single outliers left out."""
    return float(np.percentile(curve, 98) - np.percentile(curve, 2))


def _dominance(signals: Signals, channel: str) -> float:
    """Range of one angle over the larger of the other two; jitter below 2 degrees is none."""
    ranges = {name: _range(signals.change(name)) for name in ("yaw", "pitch", "roll")}
    own = ranges.pop(channel)
    return own / max(*ranges.values(), 2.0)


def _runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Half-open ranges in which the mask is true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(first), int(last)) for first, last in zip(edges[::2], edges[1::2], strict=True)]
