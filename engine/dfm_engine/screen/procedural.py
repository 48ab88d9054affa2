"""Clips of procedural faces for tuning and judging the gates: their action is known exactly.

Seeds are the unit of separation: limits were tuned on `TUNING_SEEDS`, numbers are reported on
`TEST_SEEDS`. One seed gives ten clips, one per action, each of another identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from dfm_engine.actions import Action
from dfm_engine.clip import Pixels
from dfm_engine.recipe import Screen
from dfm_engine.screen.confusion import Confusion, confusion_matrix
from dfm_engine.screen.look import Detector
from dfm_engine.screen.signals import measure
from dfm_engine.synthetic import Identity, action_states, render

__all__ = ["TEST_SEEDS", "TUNING_SEEDS", "procedural_clips", "procedural_confusion"]

TUNING_SEEDS = range(0, 24)
TEST_SEEDS = range(100, 106)
FIRST_IDENTITY = 1000  # seeds of identities count from here


def procedural_clips(
    seeds: Iterable[int], *, size: int = 128, frames: int = 45
) -> Iterator[tuple[Action, Pixels]]:
    """Driving clips of every action, uint8 (T, size, size, 3); ten for each seed."""
    actions = list(Action)
    for seed in seeds:
        for index, action in enumerate(actions):
            identity = Identity.draw(FIRST_IDENTITY + seed * len(actions) + index)
            rendered = render(identity, action_states(action, n_frames=frames, seed=seed), size)
            yield action, np.ascontiguousarray(rendered.frames.cpu().numpy())


def procedural_confusion(
    detector: Detector,
    seeds: Iterable[int] = TEST_SEEDS,
    *,
    settings: Screen | None = None,
    size: int = 128,
) -> Confusion:
    """Render, measure and judge; about 1.2 s of one core for each clip of 128 pixels."""
    settings = settings or Screen()
    clips = (
        (action, measure(frames, detector, every_n=settings.every_n))
        for action, frames in procedural_clips(seeds, size=size)
    )
    return confusion_matrix(clips, settings.thresholds)
