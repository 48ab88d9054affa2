"""What happens to each sample of a batch: the policy's ranges, and what is drawn from them.

`draw` is a function of (seed, epoch, sample) alone; see `order`. In: a recipe's section and sample
numbers. Out: NumPy arrays, one row per sample. This module must never import torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm_engine.errors import RecipeError
from dfm_engine.store.order import Purpose, uniform

__all__ = ["LUMA", "AugmentPolicy", "Draws", "draw"]

FloatArray = NDArray[np.float64]

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in BT.601
_COLUMNS = 9  # numbers drawn per sample, in the order of `draw`


def _doc(default: Any, text: str) -> Any:
    return field(default=default, metadata={"doc": text})


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentPolicy:
    """What may happen to a sample; the default leaves it as it is."""

    horizontal_flip: float = _doc(0.0, "probability of a mirrored picture")
    crop: float = _doc(
        1.0, "side of the window that the network sees, as a share of the picture's: anywhere in "
        "training, in the middle otherwise",
    )  # fmt: skip
    scale: tuple[float, ...] = _doc((1.0, 1.0), "range of enlargement around the window's centre")
    rotate_deg: float = _doc(0.0, "largest turn to either side")
    brightness: float = _doc(0.0, "half width of the factor's range around 1")
    contrast: float = _doc(0.0, "likewise, around middle grey")
    saturation: float = _doc(0.0, "likewise, around the pixel's own grey")
    hue: float = _doc(0.0, "half width of the turn around the grey axis, in turns")

    def __post_init__(self) -> None:
        for name in ("horizontal_flip", "brightness", "contrast", "saturation"):
            _within(name, getattr(self, name), 0.0, 1.0)
        _within("crop", self.crop, 0.25, 1.0)
        _within("hue", self.hue, 0.0, 0.5)
        _within("rotate_deg", self.rotate_deg, 0.0, 180.0)
        if len(self.scale) != 2 or not 0.25 <= self.scale[0] <= self.scale[1] <= 4.0:
            raise RecipeError(
                f"augment.scale must be a rising pair within 0.25..4, found {list(self.scale)}"
            )

    @property
    def interpolates(self) -> bool:
        """Whether samples may fall between pixels."""
        return self.rotate_deg > 0 or tuple(self.scale) != (1.0, 1.0)

    @property
    def changes_colours(self) -> bool:
        """Whether pixels change their values."""
        return any((self.brightness, self.contrast, self.saturation, self.hue))


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise RecipeError(f"augment.{name} must be within {low}..{high}, found {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """What happens to each of B samples.

    Attributes:
        flip: (B,) bool, mirrored left to right.
        place: (B, 2) in [0, 1): where the window lies, as a share of its room: x, y.
        zoom: (B,) enlargement.
        angle_rad: (B,) turn; or None, and `zoom` is 1, where nothing falls between pixels.
        colours: (B, 3, 4) of RGB in [0, 1]: a matrix and what is added; None: they stay.
    """

    flip: NDArray[np.bool_]
    place: FloatArray
    zoom: FloatArray
    angle_rad: FloatArray | None
    colours: FloatArray | None

    def __len__(self) -> int:
        return len(self.flip)

    def __repr__(self) -> str:
        return f"Draws({len(self)} samples)"


def draw(policy: AugmentPolicy, *, seed: int, epoch: int, samples: NDArray[np.int64]) -> Draws:
    """Draw for the samples of a batch.

    Args:
        policy: the ranges.
        seed: of the run.
        epoch: 0 or more.
        samples: (B,) their names; what a sample gets does not depend on the others.
    """
    numbers = uniform(
        samples, seed=seed, epoch=epoch, purpose=Purpose.AUGMENT, columns=_COLUMNS
    )  # (B, 9)
    low, high = policy.scale
    spread = np.array([policy.brightness, policy.contrast, policy.saturation, policy.hue])
    around = np.array([1.0, 1.0, 1.0, 0.0])
    return Draws(
        flip=numbers[:, 0] < policy.horizontal_flip,
        place=numbers[:, 1:3],
        zoom=low + (high - low) * numbers[:, 3],
        angle_rad=np.radians(policy.rotate_deg) * (2 * numbers[:, 4] - 1)
        if policy.interpolates
        else None,
        colours=colour_transform(around + spread * (2 * numbers[:, 5:] - 1))
        if policy.changes_colours
        else None,
    )


def colour_transform(factors: FloatArray) -> FloatArray:
    """Hue, saturation, contrast and brightness as one affine map of RGB.

    Args:
        factors: (B, 4) factors of brightness, contrast, saturation, and turns of hue.

    Returns:
        (B, 3, 4): out = M rgb + t, of values in [0, 1]; to be clamped.
    """
    brightness, contrast, saturation, turns = factors.T[:, :, None, None]
    axis = np.full((3, 3), 1 / 3)
    cross = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    angle = 2 * np.pi * turns
    hue = np.cos(angle) * (np.eye(3) - axis) + axis + np.sin(angle) * cross  # Rodrigues
    grey = np.broadcast_to(np.array(LUMA), (3, 3))
    matrix = (saturation * np.eye(3) + (1 - saturation) * grey) @ hue
    matrix = brightness * contrast * matrix
    added = np.broadcast_to(brightness * (1 - contrast) / 2, (len(factors), 3, 1))
    return np.concatenate([matrix, added], axis=2)


def window_of(draws: Draws, *, side_px: int, size_px: int) -> NDArray[np.int64]:
    """(B, 2) first column and row of each window, whole pixels of a picture of `side_px`."""
    return np.floor(draws.place * (side_px - size_px + 1)).astype(np.int64)
