"""Pairs of frames for FOMM training: what every source of pairs offers, and shares.

A batch is a pure function of (seed, step): nothing remembers what was drawn before, so a resumed
run sees what an uninterrupted one would have. `store_pairs` reads clips, `procedural_pairs` draws
people.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dfm_engine.fomm import augment
from dfm_engine.fomm.equivariance import draw_warp
from dfm_engine.fomm.train_recipe import TrainFommRecipe
from dfm_engine.fomm.train_step import Batch


class Pairs(Protocol):
    """Where batches come from."""

    steps_per_epoch: int

    def batch(
        self, step: int, *, rows: int, frame_px: int, supervision: float, plain: bool = False
    ) -> Batch:
        """The batch of a step, on the training device.

        Args:
            step: counted from 0 over the whole training.
            rows: pairs.
            frame_px: side of the frames.
            supervision: share of the landmark terms that applies.
            plain: without colour jitter, as the model is used later.
        """
        ...

    def sample(self, *, rows: int, frame_px: int) -> Batch:
        """Fixed pairs that training does not see, for sheets and validation; no augmentation."""
        ...

    def describe(self) -> dict[str, object]:
        """Facts for the record of a run."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


def as_images(frames: Tensor, frame_px: int) -> Tensor:
    """uint8 (N, 3, S, S) to float32 in [0, 1], shrunk by area where `frame_px` is below S."""
    images = frames.to(torch.float32) / 255
    if images.shape[-1] != frame_px:
        images = F.adaptive_avg_pool2d(images, frame_px)
    return images


def draw_augmentation(
    recipe: TrainFommRecipe, rows: int, rng: np.random.Generator, *, plain: bool
) -> augment.Draw:
    """The recipe's augmentation; `plain` keeps the flips and leaves the colours."""
    wanted = recipe.augment
    strength = 0.0 if plain else 1.0
    return augment.draw(
        rows,
        rng=rng,
        time_flip=wanted.time_flip,
        horizontal_flip=wanted.horizontal_flip,
        brightness=strength * wanted.brightness,
        contrast=strength * wanted.contrast,
        saturation=strength * wanted.saturation,
        hue=strength * wanted.hue,
    )


def warp_fields(
    recipe: TrainFommRecipe, rows: int, rng: np.random.Generator, device: torch.device
) -> dict[str, Tensor]:
    """The batch's fields for the equivariance terms; none where the recipe leaves them out."""
    weights = recipe.losses
    if not (weights.equivariance_value or weights.equivariance_jacobian):
        return {}
    warp = draw_warp(
        rows,
        rng=rng,
        sigma_affine=weights.sigma_affine,
        sigma_tps=weights.sigma_tps,
        points_tps=weights.points_tps,
    ).to(device)
    return {
        "theta": warp.theta,
        "control_points": warp.control_points,
        "control_params": warp.control_params,
    }
