"""Coordinates, sampling and 2x2 matrices: the parts of FOMM that hold no weights.

Everything here is element by element, without a matrix product, so that a row's result does not
depend on where in its batch it stands.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def coordinate_grid(height: int, width: int, *, like: Tensor) -> Tensor:
    """(H, W, 2) positions (x, y); -1 and 1 are the centres of the first and last pixel.

    Args:
        height: rows, at least 2.
        width: columns, at least 2.
        like: gives dtype and device.
    """
    x = 2 * (torch.arange(width, dtype=like.dtype, device=like.device) / (width - 1)) - 1
    y = 2 * (torch.arange(height, dtype=like.dtype, device=like.device) / (height - 1)) - 1
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1)


def gaussian_heatmaps(centres: Tensor, height: int, width: int, *, variance: float) -> Tensor:
    """(B, K, H, W) bumps exp(-|z - centre|^2 / (2 variance)), of height 1 at their centre.

    Args:
        centres: (B, K, 2), (x, y) in [-1, 1].
        height: rows of the maps.
        width: columns of the maps.
        variance: in the same units, squared.
    """
    offset = coordinate_grid(height, width, like=centres) - centres[:, :, None, None]
    return torch.exp(-0.5 * offset.square().sum(dim=-1) / variance)


def inverse_2x2(matrices: Tensor) -> Tensor:
    """The inverses of (..., 2, 2) matrices in closed form, which also exports."""
    a, b, c, d = (matrices[..., i, j] for i in (0, 1) for j in (0, 1))
    adjugate = torch.stack([d, -b, -c, a], dim=-1).unflatten(-1, (2, 2))
    return adjugate / (a * d - b * c)[..., None, None]


def product_2x2(left: Tensor, right: Tensor) -> Tensor:
    """(..., 2, 2) times (..., 2, 2), broadcasting."""
    return (left.unsqueeze(-1) * right.unsqueeze(-3)).sum(dim=-2)


def sample(images: Tensor, grid: Tensor, *, align_corners: bool) -> Tensor:
    """Bilinear look-up; outside reads zero.

    Args:
        images: (B, C, H, W).
        grid: (B, h, w, 2), (x, y) in [-1, 1].
        align_corners: True is what `grid_sample` did when the published weights were trained
            (torch 1.0, before the flag existed) and what agrees with `coordinate_grid`; False is
            what the published code does on torch >= 1.3, which changed the default under it.

    Returns:
        (B, C, h, w).
    """
    return F.grid_sample(
        images, grid, mode="bilinear", padding_mode="zeros", align_corners=align_corners
    )


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
