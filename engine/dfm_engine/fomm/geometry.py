"""Coordinates, sampling and 2x2 matrices: the parts of FOMM that hold no weights.

Those that the kernels share come from `dfm_kernels.coordinates`; resizing is added here.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from dfm_kernels.coordinates import (
    coordinate_grid,
    gaussian_heatmaps,
    inverse_2x2,
    product_2x2,
    sample,
)

__all__ = [
    "coordinate_grid",
    "gaussian_heatmaps",
    "inverse_2x2",
    "product_2x2",
    "resize",
    "resize_grid",
    "sample",
]


def resize(maps: Tensor, height: int, width: int) -> Tensor:
    """(B, C, h, w) to (B, C, height, width), bilinear; the same tensor where the size is right.

    Half-pixel centres: `interpolate` has been align_corners=False in every torch that ever ran
    this model, unlike `grid_sample`.
    """
    if maps.shape[2:] == (height, width):
        return maps
    return F.interpolate(maps, size=(height, width), mode="bilinear", align_corners=False)


def resize_grid(grid: Tensor, height: int, width: int) -> Tensor:
    """(B, h, w, 2) to (B, height, width, 2), as `resize`."""
    if grid.shape[1:3] == (height, width):
        return grid
    return resize(grid.permute(0, 3, 1, 2), height, width).permute(0, 2, 3, 1)
