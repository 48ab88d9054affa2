"""Coordinates, 2x2 matrices, affine motions and sampling: what several operators share.

Positions are (x, y) in [-1, 1]; -1 and 1 are the centres of the first and last pixel. The first
half is torch, element by element and without a matrix product, so that a row's result does not
depend on where in its batch it stands; the second half is the same for kernels, in float32.

Source: FOMM (Siarohin et al. 2019), equations 4 and 6.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from dfm_kernels.dispatch import jit, tl

__all__ = [
    "Keypoints",
    "affine_motions",
    "check_keypoints",
    "coordinate_grid",
    "gaussian_heatmaps",
    "inverse_2x2",
    "product_2x2",
    "sample",
]


class Keypoints(Protocol):
    """Points and, unless the model is made without, the affine map around each.

    Attributes:
        value: (B, K, 2).
        jacobian: (B, K, 2, 2) or None.
    """

    @property
    def value(self) -> Tensor: ...
    @property
    def jacobian(self) -> Tensor | None: ...


class Points(NamedTuple):
    """`Keypoints` of one's own."""

    value: Tensor
    jacobian: Tensor | None


def widened(points: Keypoints, dtype: torch.dtype) -> Points:
    """In the wider of their own precision, another and float32."""
    wide = torch.promote_types(torch.promote_types(points.value.dtype, dtype), torch.float32)
    return Points(
        points.value.to(wide), None if points.jacobian is None else points.jacobian.to(wide)
    )


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


def affine_motions(kp_source: Keypoints, kp_driving: Keypoints, height: int, width: int) -> Tensor:
    """(B, K+1, H, W, 2): where each affine motion looks in the source; index 0 is the identity.

    T_k(z) = J_source J_driving^-1 (z - driving_k) + source_k (equation 4), without jacobians
    z - driving_k + source_k.
    """
    grid = coordinate_grid(height, width, like=kp_driving.value)
    offset = grid - kp_driving.value[:, :, None, None]  # (B, K, H, W, 2)
    if kp_source.jacobian is not None and kp_driving.jacobian is not None:
        affine = product_2x2(kp_source.jacobian, inverse_2x2(kp_driving.jacobian))
        columns = affine[:, :, None, None].unbind(dim=-1)  # two (B, K, 1, 1, 2)
        # Two products and a sum: eight times as fast on a CPU as multiply and reduce, same bits.
        offset = columns[0] * offset[..., :1] + columns[1] * offset[..., 1:]
    motions = offset + kp_source.value[:, :, None, None]
    # No len() anywhere: it would fix the batch of a traced program.
    return torch.cat([grid.expand(motions.shape[0], 1, -1, -1, -1), motions], dim=1)


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


def check_keypoints(what: str, kp_source: Keypoints, kp_driving: Keypoints, rows: int) -> None:
    """Refuse keypoints that do not fit each other or the batch.

    Raises:
        ValueError: another shape than (B, K, 2) and (B, K, 2, 2), or jacobians of one side only.
    """
    shapes = [tuple(points.value.shape) for points in (kp_source, kp_driving)]
    if shapes[0] != shapes[1] or len(shapes[0]) != 3 or shapes[0][::2] != (rows, 2):
        raise ValueError(f"{what}: keypoints must both be ({rows}, K, 2), got {shapes}")
    jacobians = [points.jacobian for points in (kp_source, kp_driving)]
    found = [None if jacobian is None else tuple(jacobian.shape) for jacobian in jacobians]
    if found not in ([None, None], [(*shapes[0], 2)] * 2):
        raise ValueError(
            f"{what}: jacobians must be {(*shapes[0], 2)} twice or absent, got {found}"
        )


def by_rows(points: Tensor) -> Tensor:
    """Each row of it contiguous; rows may repeat (stride 0), which costs nothing."""
    inner = points.stride()[1:]
    packed = (4, 2, 1) if points.ndim == 4 else (2, 1)
    return points if inner == packed else points.contiguous()


@jit
def grid_position(index, size):
    """A pixel's index to [-1, 1]."""
    return 2.0 * (index.to(tl.float32) / (size - 1)) - 1.0


@jit
def to_pixels(position, size, ALIGN_CORNERS: tl.constexpr):
    """[-1, 1] to pixels, by either convention."""
    if ALIGN_CORNERS:
        pixels = (position + 1.0) * 0.5 * (size - 1)
    else:
        pixels = ((position + 1.0) * size - 1.0) * 0.5
    return pixels


@jit
def lower_corner(pixels, size):
    """The index at or below a coordinate, kept within -2 .. size, and the fraction above it.

    A coordinate that is not finite has the fraction NaN: its sample is NaN, as torch's is on a CPU.
    """
    low = tl.floor(pixels)
    return tl.minimum(tl.maximum(low, -2.0), size * 1.0).to(tl.int32), pixels - low


@jit
def read_corner(image, x, y, width, height, stride_x, stride_y, mask):
    """One of the four pixels around a coordinate, float32; zero outside."""
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height) & mask
    where = image + y.to(tl.int64) * stride_y + x.to(tl.int64) * stride_x
    return tl.load(where, mask=inside, other=0.0).to(tl.float32)


@jit
def affine_of(
    source, driving, source_jacobian, driving_jacobian, point, mask, HAS_JACOBIAN: tl.constexpr
):
    # The affine map of T_k and its two points: A = J_source J_driving^-1, row by row. The first
    # four are pointers to a row of K points or matrices; `point` is a block of k, and where `mask`
    # says that it is none, T is the identity and both points are zero.
    source_x = tl.load(source + 2 * point, mask=mask, other=0.0).to(tl.float32)
    source_y = tl.load(source + 2 * point + 1, mask=mask, other=0.0).to(tl.float32)
    driving_x = tl.load(driving + 2 * point, mask=mask, other=0.0).to(tl.float32)
    driving_y = tl.load(driving + 2 * point + 1, mask=mask, other=0.0).to(tl.float32)
    if HAS_JACOBIAN:
        a = tl.load(driving_jacobian + 4 * point, mask=mask, other=1.0).to(tl.float32)
        b = tl.load(driving_jacobian + 4 * point + 1, mask=mask, other=0.0).to(tl.float32)
        c = tl.load(driving_jacobian + 4 * point + 2, mask=mask, other=0.0).to(tl.float32)
        d = tl.load(driving_jacobian + 4 * point + 3, mask=mask, other=1.0).to(tl.float32)
        determinant = a * d - b * c
        s00 = tl.load(source_jacobian + 4 * point, mask=mask, other=1.0).to(tl.float32)
        s01 = tl.load(source_jacobian + 4 * point + 1, mask=mask, other=0.0).to(tl.float32)
        s10 = tl.load(source_jacobian + 4 * point + 2, mask=mask, other=0.0).to(tl.float32)
        s11 = tl.load(source_jacobian + 4 * point + 3, mask=mask, other=1.0).to(tl.float32)
        xx = s00 * (d / determinant) + s01 * (-c / determinant)
        xy = s00 * (-b / determinant) + s01 * (a / determinant)
        yx = s10 * (d / determinant) + s11 * (-c / determinant)
        yy = s10 * (-b / determinant) + s11 * (a / determinant)
    else:
        xy = tl.zeros_like(source_x)
        yx = xy
        xx = xy + 1.0
        yy = xx
    return xx, xy, yx, yy, source_x, source_y, driving_x, driving_y
