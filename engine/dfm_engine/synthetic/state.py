"""What a face does: one row of numbers per frame, for an action or for talking idly.

States are free of identity, so that any face can be drawn in any driver's state. Signs: yaw
positive turns the nose to the image right, pitch positive turns it down, roll positive turns
the head clockwise as seen. The subject's own right is the image left (no mirror).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfm_engine.actions import Action
from dfm_engine.errors import ShapeError, UsageError

__all__ = ["STATE_FIELDS", "States", "action_states", "idle_states", "neutral_states"]

STATE_FIELDS: tuple[str, ...] = (
    "yaw_deg",
    "pitch_deg",
    "roll_deg",
    "shift_x",  # head units, to the image right
    "shift_y",  # head units, down
    "blink",  # 0 open .. 1 shut
    "eye_wide",  # 0 .. 1
    "gaze_x",  # -1 image left .. 1 image right
    "gaze_y",  # -1 up .. 1 down
    "brow",  # -1 lowered .. 1 raised
    "jaw",  # 0 shut .. 1 wide open
    "smile",  # 0 .. 1
    "mouth_width",  # -1 puckered .. 1 stretched
    "press",  # 0 .. 1, lips pressed together
    "blush",  # 0 .. 1
)
SHORTEST = 16  # frames; below it an action has no room for onset, peak and return

Curve = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class States:
    """Rows of `STATE_FIELDS`.

    Attributes:
        values: (T, len(STATE_FIELDS)) float32 on the CPU.
    """

    values: Tensor

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.shape[1] != len(STATE_FIELDS):
            raise ShapeError(
                f"state values must be (T, {len(STATE_FIELDS)}), got {tuple(self.values.shape)}"
            )

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        return f"States({len(self)} frames)"

    def __getitem__(self, rows: slice | Tensor | Sequence[int]) -> States:
        return States(self.values[rows])

    def column(self, name: str) -> Tensor:
        """One field over time, (T,) float32."""
        return self.values[:, STATE_FIELDS.index(name)]

    @staticmethod
    def join(parts: Sequence[States]) -> States:
        """Several clips' rows, one after the other."""
        return States(torch.cat([part.values for part in parts]))


def neutral_states(n_frames: int = 1) -> States:
    """A frontal face at rest, eyes open, mouth shut."""
    return States(torch.zeros(n_frames, len(STATE_FIELDS)))


def action_states(
    action: Action, n_frames: int = 45, seed: int = 0, *, fps: float = 25.0
) -> States:
    """One driving clip: neutral frames, the action, and back.

    The first 3 to 6 frames are neutral. Head and gaze sway a little all along; nothing else of
    the face moves but the action, so that no clip performs a second one by chance.

    Args:
        action: what is performed.
        n_frames: length, 40 to 50 as usual, at least 16.
        seed: decides speed, amplitude, side and sway.
        fps: frames per second, for durations that are natural constants (a blink's).

    Raises:
        UsageError: for fewer than 16 frames.
    """
    if n_frames < SHORTEST:
        raise UsageError(
            f"an action needs at least {SHORTEST} frames, asked for {n_frames}; lengthen the clip"
        )
    rng = np.random.default_rng([list(Action).index(action), seed, 2])
    curves = _sway(rng, n_frames, fps)
    lead = int(np.clip(round(0.11 * n_frames), 3, 6))
    tail = max(2, lead - 2)
    # progress through the action: 0 in the lead, 1 in the tail
    phase = np.clip((np.arange(n_frames) - lead + 1) / (n_frames - lead - tail), 0.0, 1.0)
    for name, curve in _ACTIONS[action](rng, phase, fps).items():
        curves[name] = curves[name] + curve
    return _states(curves)


def idle_states(n_frames: int, seed: int = 0, *, fps: float = 25.0) -> States:
    """A real-looking clip: talking in phrases, blinking, glancing, the head moving a little.

    The first frames are close to frontal with the mouth nearly shut.
    """
    rng = np.random.default_rng([seed, 3])
    time = np.arange(n_frames) / fps
    start = np.clip(time / 0.4, 0.0, 1.0)
    curves = _sway(rng, n_frames, fps)
    for name, amplitude in (("yaw_deg", 6.0), ("pitch_deg", 3.0), ("roll_deg", 2.5)):
        curves[name] = curves[name] + amplitude * start * _wander(rng, time, 0.12, 0.45)
    phrases = np.clip(0.5 + 1.5 * _wander(rng, time, 0.25, 0.6), 0.0, 1.0) * start
    syllables = 0.5 + 0.5 * np.sin(2 * np.pi * (rng.uniform(3, 4.5) * time + rng.random()))
    curves["jaw"] = phrases * (0.06 + 0.34 * syllables * (0.6 + 0.4 * _wander(rng, time, 1, 2)))
    curves["mouth_width"] = 0.55 * phrases * _wander(rng, time, 1.0, 2.4)
    curves["smile"] = np.clip(0.25 * _wander(rng, time, 0.1, 0.3), 0.0, None)
    curves["brow"] = 0.35 * start * _wander(rng, time, 0.2, 0.8)
    glance = np.round(_wander(rng, time, 0.2, 0.7) * 1.4) * 0.3
    curves["gaze_x"] = curves["gaze_x"] + glance
    at = rng.uniform(0.4, 2.0)
    while at < time[-1]:
        curves["blink"] = np.maximum(curves["blink"], _one_blink(time, at, 2 / 25))
        at += rng.uniform(1.8, 4.0)
    return _states(curves)


def _states(curves: dict[str, Curve]) -> States:
    table = np.stack([curves[name] for name in STATE_FIELDS], axis=1)
    return States(torch.from_numpy(table.astype(np.float32)))


def _sway(rng: np.random.Generator, n_frames: int, fps: float) -> dict[str, Curve]:
    time = np.arange(n_frames) / fps
    curves = {name: np.zeros(n_frames) for name in STATE_FIELDS}
    for name, amplitude in (
        ("yaw_deg", 0.8), ("pitch_deg", 0.6), ("roll_deg", 0.6),
        ("shift_x", 0.006), ("shift_y", 0.005), ("gaze_x", 0.05), ("gaze_y", 0.04),
    ):  # fmt: skip
        curves[name] = amplitude * _wander(rng, time, 0.2, 0.8)
    return curves


def _wander(rng: np.random.Generator, time: Curve, low_hz: float, high_hz: float) -> Curve:
    """A smooth aimless signal within [-1, 1]."""
    rates, offsets = rng.uniform(low_hz, high_hz, 3), rng.uniform(0, 2 * np.pi, 3)
    return np.sin(2 * np.pi * np.outer(time, rates) + offsets).sum(axis=1) / 3


def _smooth(x: Curve | float) -> Curve:
    x = np.clip(x, 0.0, 1.0)
    return x * x * (3 - 2 * x)


def _hold(phase: Curve, rise: float = 0.25, fall: float = 0.25) -> Curve:
    """0 -> 1, stay, -> 0."""
    return _smooth(phase / rise) * _smooth((1 - phase) / fall)


def _one_blink(time: Curve, shut_from_s: float, shut_for_s: float) -> Curve:
    closing, opening = 0.09, 0.13  # s; lids fall faster than they rise
    down = _smooth((time - shut_from_s + closing) / closing)
    up = _smooth((time - shut_from_s - shut_for_s) / opening)
    return down * (1 - up)


def _side(rng: np.random.Generator) -> float:
    return 1.0 if rng.random() < 0.5 else -1.0


def _blink(rng: np.random.Generator, phase: Curve, fps: float) -> dict[str, Curve]:
    time = np.arange(len(phase)) / fps
    first, last = (int(np.argmax(phase > 0)), int(np.argmax(phase >= 1.0)))
    span = (last - first) / fps
    count = 2 if span > 1.0 and rng.random() < 0.5 else 1
    shut_for = float(rng.integers(3, 6)) / 25
    blink = np.zeros_like(phase)
    for k in range(count):
        centre = first / fps + span * ((k + 0.5) / count + rng.uniform(-0.06, 0.06))
        blink = np.maximum(blink, _one_blink(time, centre - shut_for / 2, shut_for))
    return {"blink": blink}


def _open_mouth(rng: np.random.Generator, phase: Curve, fps: float) -> dict[str, Curve]:
    return {"jaw": rng.uniform(0.8, 1.0) * _hold(phase, 0.28, 0.25)}


def _yaw(rng: np.random.Generator, phase: Curve, fps: float) -> dict[str, Curve]:
    swing = np.sin(2 * np.pi * _smooth(phase) ** 0.9)
    return {"yaw_deg": _side(rng) * rng.uniform(25, 30) * swing}


def _nod(rng: np.random.Generator, phase: Curve, fps: float) -> dict[str, Curve]:
    cycles = 2 if len(phase) >= 36 else 1
    return {"pitch_deg": rng.uniform(15, 19) * 0.5 * (1 - np.cos(2 * np.pi * cycles * phase))}


def _slope(side: float) -> Callable[[np.random.Generator, Curve, float], dict[str, Curve]]:
    def tilt(rng: np.random.Generator, phase: Curve, fps: float) -> dict[str, Curve]:
        return {"roll_deg": side * rng.uniform(18, 22) * _hold(phase, 0.3, 0.3)}

    return tilt


def _look_up(rng: np.random.Generator, phase: Curve, fps: float) -> dict[str, Curve]:
    hold = _hold(phase, 0.3, 0.28)
    return {"pitch_deg": -rng.uniform(20, 24) * hold, "gaze_y": -0.6 * hold}


def _smile(rng: np.random.Generator, phase: Curve, fps: float) -> dict[str, Curve]:
    return {"smile": rng.uniform(0.85, 1.0) * _hold(phase, 0.28, 0.25)}


def _surprise(rng: np.random.Generator, phase: Curve, fps: float) -> dict[str, Curve]:
    hold = _hold(phase, 0.16, 0.3)
    return {
        "brow": rng.uniform(0.85, 1.0) * hold,
        "eye_wide": rng.uniform(0.8, 1.0) * hold,
        "jaw": rng.uniform(0.5, 0.65) * hold,
        "mouth_width": -0.45 * hold,
        "pitch_deg": -2.0 * hold,
    }


def _embarrassment(rng: np.random.Generator, phase: Curve, fps: float) -> dict[str, Curve]:
    hold = _hold(phase, 0.3, 0.25)
    return {
        "pitch_deg": rng.uniform(10, 14) * hold,
        "yaw_deg": _side(rng) * rng.uniform(2, 5) * hold,
        "gaze_y": 0.8 * hold,
        "smile": rng.uniform(0.35, 0.5) * hold,
        "press": rng.uniform(0.8, 1.0) * hold,
        "blush": rng.uniform(0.7, 1.0) * hold,
    }


_ACTIONS: dict[Action, Callable[[np.random.Generator, Curve, float], dict[str, Curve]]] = {
    Action.BLINK: _blink,
    Action.OPEN_MOUTH: _open_mouth,
    Action.YAW: _yaw,
    Action.NOD: _nod,
    Action.RIGHT_SLOPE: _slope(-1.0),  # the subject's right is the image left: counter-clockwise
    Action.LEFT_SLOPE: _slope(1.0),
    Action.LOOK_UP: _look_up,
    Action.SMILE: _smile,
    Action.SURPRISE: _surprise,
    Action.EMBARRASSMENT: _embarrassment,
}
