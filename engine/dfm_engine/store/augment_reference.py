"""What `FusedAugment` computes, in float64, one sample and one channel after another.

For tests: it shares with the fused step what was drawn and the two definitions it is built on (the
crop rule's weights, the BT.601 matrix), and no other line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfm_engine.store.augment import i420_to_rgb_matrix
from dfm_engine.store.draws import Draws, FloatArray, window_of
from dfm_kernels.crop import crop_weights

if TYPE_CHECKING:
    from dfm_engine.store.meta import StoreMeta

__all__ = ["fused_augment_reference"]


def fused_augment_reference(
    raw: Tensor,
    draws: Draws | None,
    meta: StoreMeta,
    *,
    size_px: int,
    mean: Sequence[float],
    std: Sequence[float],
    crop: float = 1.0,
) -> Tensor:
    """What `FusedAugment` computes, in float64, slowly and one thing after another.

    Args:
        raw: as there.
        draws: as there.
        meta: of the store.
        size_px: side of the images.
        mean: as there.
        std: as there.
        crop: as there.

    Returns:
        (B, 3, size, size) float64.
    """
    side = round(size_px / crop)
    weights = crop_weights(meta.size_px, 0.0, float(meta.size_px), side, torch.float64)
    centre = np.full((len(raw), 2), (side - size_px) // 2)
    window = centre if draws is None else window_of(draws, side_px=side, size_px=size_px)
    images: list[Tensor] = []
    for index, frame in enumerate(raw.cpu()):
        picture = torch.from_numpy(_rgb_reference(frame.numpy(), meta.layout))  # (3, S, S)
        whole = torch.stack([weights @ channel @ weights.T for channel in picture]).numpy()
        columns, rows = _sampled_at(draws, index, window[index], size_px)
        image = np.stack([_bilinear(channel, columns, rows) for channel in whole]) / 255
        if draws is not None and draws.colours is not None:
            matrix = draws.colours[index]
            image = np.einsum("oc,chw->ohw", matrix[:, :3], image) + matrix[:, 3, None, None]
            image = image.clip(0, 1)
        normalised = (image - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
        images.append(torch.from_numpy(normalised))
    return torch.stack(images)


def _rgb_reference(frame: NDArray[np.uint8], layout: str) -> FloatArray:
    if layout == "rgb24":
        return frame.transpose(2, 0, 1).astype(np.float64)
    side = frame.shape[1]
    luma, *chroma = np.split(frame.reshape(-1), [side * side, side * side * 5 // 4])
    centres = (np.arange(side) + 0.5) / 2 - 0.5  # of the pixels, in chroma samples
    columns, rows = np.meshgrid(centres, centres)
    planes = [luma.reshape(side, side).astype(np.float64)]
    planes += [
        _bilinear(plane.reshape(side // 2, side // 2).astype(np.float64), columns, rows)
        for plane in chroma
    ]
    matrix, added = i420_to_rgb_matrix()
    rgb = np.einsum("oc,chw->ohw", matrix, np.stack(planes)) + added[:, None, None]
    return rgb.clip(0, 255)


def _sampled_at(
    draws: Draws | None, index: int, window: NDArray[np.int64], size_px: int
) -> tuple[FloatArray, FloatArray]:
    """Column and row (of pixel centres: whole numbers) that every pixel of the image shows."""
    across = np.arange(size_px) - (size_px - 1) / 2
    x, y = np.meshgrid(across, across)
    if draws is not None:
        x = -x if draws.flip[index] else x
        if draws.angle_rad is not None:
            angle, zoom = draws.angle_rad[index], draws.zoom[index]
            x, y = (
                (math.cos(angle) * x - math.sin(angle) * y) / zoom,
                (math.sin(angle) * x + math.cos(angle) * y) / zoom,
            )
    middle = window + (size_px - 1) / 2
    return x + middle[0], y + middle[1]


def _bilinear(plane: FloatArray, columns: FloatArray, rows: FloatArray) -> FloatArray:
    """(h, w) values of a plane between its samples; outside, its border's."""
    height, width = plane.shape
    columns, rows = columns.clip(0, width - 1), rows.clip(0, height - 1)
    left = np.floor(columns).astype(np.int64).clip(0, max(0, width - 2))
    top = np.floor(rows).astype(np.int64).clip(0, max(0, height - 2))
    right, below = (left + 1).clip(max=width - 1), (top + 1).clip(max=height - 1)
    x, y = columns - left, rows - top
    upper = plane[top, left] * (1 - x) + plane[top, right] * x
    lower = plane[below, left] * (1 - x) + plane[below, right] * x
    return upper * (1 - y) + lower * y
