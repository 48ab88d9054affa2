"""Made-up signals and simple drawn faces for the screen's tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from dfm_engine.screen.signals import Signals

FRAMES = 50
MakeSignals = Callable[..., Signals]


@pytest.fixture
def neutral() -> Signals:
    """A face at rest: every curve constant, away from zero where faces are."""
    flat = np.zeros(FRAMES, np.float32)
    return Signals(
        yaw_deg=flat + 2,
        pitch_deg=flat + 5,
        pitch_nose_deg=flat - 3,
        roll_deg=flat - 1,
        eye_left=flat + 1.2,
        eye_right=flat + 0.9,
        mouth_dark=flat + 0.03,
        mouth_teeth=flat + 0.01,
        mouth_width=flat + 0.8,
        corner_lift=flat - 0.55,
        brow_lift=flat,
        found_share=1.0,
        still_share=0.0,
        sharpness=5.0,
    )


@pytest.fixture
def moved(neutral: Signals) -> MakeSignals:
    """`moved(yaw_deg=curve)` adds curves to the face at rest; eyes are multiplied."""

    def make(**curves: np.ndarray) -> Signals:
        changed = {}
        for name, curve in curves.items():
            base = getattr(neutral, name)
            changed[name] = (base * (1 + curve) if name.startswith("eye") else base + curve).astype(
                np.float32
            )
        return replace(neutral, **changed)

    return make


@pytest.fixture
def bump() -> Callable[..., np.ndarray]:
    """A plateau between two frames with ramps of `ramp` frames."""

    def make(height: float, first: int = 15, last: int = 35, ramp: int = 4) -> np.ndarray:
        time = np.arange(FRAMES)
        up = np.clip((time - first) / ramp, 0, 1)
        down = np.clip((last - time) / ramp, 0, 1)
        return height * np.minimum(up, down)

    return make
