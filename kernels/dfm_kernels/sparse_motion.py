"""Keypoints to the input of the dense motion network, in one pass.

For k = 0 .. K, with index 0 the background, which does not move:

    T_0(z) = z,   T_k(z) = J_source,k J_driving,k^-1 (z - driving_k) + source_k
    heat_0 = 0,   heat_k(z) = g(z - driving_k) - g(z - source_k),   g(d) = exp(-|d|^2 / (2 var))
    out[k] = [heat_k, source(T_k(z))]                      (1 + C channels, k-major)

In torch the K + 1 grids, the moved sources and their concatenation are all written and read again:
at vox-256 they are 3.3 times the output. Here each output value is computed where it is stored.

Source: FOMM (Siarohin et al. 2019), equations 4, 6 and section 3.2.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dfm_kernels.coordinates import (
    Keypoints,
    Points,
    affine_motions,
    affine_of,
    by_rows,
    check_keypoints,
    gaussian_heatmaps,
    grid_position,
    lower_corner,
    read_corner,
    sample,
    to_pixels,
    widened,
)
from dfm_kernels.dispatch import (
    Traffic,
    blocks,
    is_channels_last,
    jit,
    launches_on,
    like_layout,
    on_device_of,
    runs_kernel,
    standard_form,
    tl,
)

__all__ = ["sparse_motion", "sparse_motion_reference", "sparse_motion_traffic"]

# (pixels, channels) of a program, for channels last and first. 64 covers the 44 channels of the
# published models, so that a pixel is written whole. Four values a thread need 56 registers, 16
# need 168 (sm_90), too many to hide a gather behind other programs. Not yet tuned on a GPU.
TILES = {True: (8, 64), False: (64, 8)}


def sparse_motion_reference(
    small: Tensor,
    kp_source: Keypoints,
    kp_driving: Keypoints,
    *,
    variance: float,
    align_corners: bool,
    least_channels: int = 0,
) -> Tensor:
    """As `sparse_motion`, in torch; half precision is computed in float32."""
    kp_source, kp_driving = widened(kp_source, small.dtype), widened(kp_driving, small.dtype)
    height, width = small.shape[2:]
    motions = affine_motions(kp_source, kp_driving, height, width)  # (B, K+1, h, w, 2)
    driving = gaussian_heatmaps(kp_driving.value, height, width, variance=variance)
    heat = driving - gaussian_heatmaps(kp_source.value, height, width, variance=variance)
    heat = torch.cat([torch.zeros_like(heat[:, :1]), heat], dim=1)[:, :, None]
    # The motions of a row are stacked below each other, so the source is not copied K+1 times.
    moved = sample(small.to(motions.dtype), motions.flatten(1, 2), align_corners=align_corners)
    moved = moved.unflatten(2, (motions.shape[1], height)).transpose(1, 2)  # (B, K+1, C, h, w)
    maps = torch.cat([heat, moved], dim=2).flatten(1, 2).to(small.dtype)
    return F.pad(maps, (0, 0, 0, 0, 0, max(0, least_channels - maps.shape[1])))


@jit
def _sparse_motion_kernel(
    small,
    source,
    driving,
    source_jacobian,
    driving_jacobian,
    out,
    points,
    channels,
    out_channels,
    height,
    width,
    minus_half_over_variance,
    small_b,
    small_c,
    small_y,
    small_x,
    source_b,
    driving_b,
    source_jacobian_b,
    driving_jacobian_b,
    out_b,
    out_c,
    out_p,
    HAS_JACOBIAN: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    pixels = height * width
    pixel_blocks = tl.cdiv(pixels, BLOCK_P)
    row = (tl.program_id(0) // pixel_blocks).to(tl.int64)
    pixel = (tl.program_id(0) % pixel_blocks) * BLOCK_P + tl.arange(0, BLOCK_P)[:, None]
    to = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]  # output channel
    point = to // (channels + 1) - 1  # -1 is the background
    channel = to % (channels + 1) - 1  # -1 is the heatmap
    is_map = to < (points + 1) * (channels + 1)  # zeros behind them
    mask = (pixel < pixels) & is_map

    xx, xy, yx, yy, source_x, source_y, driving_x, driving_y = affine_of(
        source + row * source_b,
        driving + row * driving_b,
        source_jacobian + row * source_jacobian_b,
        driving_jacobian + row * driving_jacobian_b,
        point,
        (point >= 0) & (point < points),
        HAS_JACOBIAN,
    )
    x = grid_position(pixel % width, width)
    y = grid_position(pixel // width, height)
    from_x, from_y = x - driving_x, y - driving_y
    x0, fx = lower_corner(
        to_pixels(xx * from_x + xy * from_y + source_x, width, ALIGN_CORNERS), width
    )
    y0, fy = lower_corner(
        to_pixels(yx * from_x + yy * from_y + source_y, height, ALIGN_CORNERS), height
    )
    image = small + row * small_b + channel.to(tl.int64) * small_c
    looked_up = mask & (channel >= 0)
    a = read_corner(image, x0, y0, width, height, small_x, small_y, looked_up)
    b = read_corner(image, x0 + 1, y0, width, height, small_x, small_y, looked_up)
    c = read_corner(image, x0, y0 + 1, width, height, small_x, small_y, looked_up)
    d = read_corner(image, x0 + 1, y0 + 1, width, height, small_x, small_y, looked_up)
    moved = (a * (1 - fx) + b * fx) * (1 - fy) + (c * (1 - fx) + d * fx) * fy

    # The background has both points at zero: its two bumps cancel.
    away_x, away_y = x - source_x, y - source_y
    heat = tl.exp((from_x * from_x + from_y * from_y) * minus_half_over_variance)
    heat -= tl.exp((away_x * away_x + away_y * away_y) * minus_half_over_variance)
    where = out + row * out_b + to.to(tl.int64) * out_c + pixel.to(tl.int64) * out_p
    value = tl.where(is_map, tl.where(channel < 0, heat, moved), 0.0)
    tl.store(where, value, mask=(pixel < pixels) & (to < out_channels))


def sparse_motion(
    small: Tensor,
    kp_source: Keypoints,
    kp_driving: Keypoints,
    *,
    variance: float,
    align_corners: bool,
    least_channels: int = 0,
) -> Tensor:
    """What the dense motion network looks at: K + 1 heatmaps, each before its moved source.

    The kernel has no backward; where gradients are wanted, the reference computes.

    Args:
        small: (B, C, h, w) sources at the network's size, any float dtype and layout; rows may be
            expanded.
        kp_source: B rows of K points.
        kp_driving: likewise.
        variance: of the bumps, in units of the grid, squared.
        align_corners: as for `warp`.
        least_channels: at least so many come out, zeros behind the others: tensor cores want a
            multiple of 8.

    Returns:
        (B, (K+1)*(C+1), h, w) in the dtype of `small`, channels last where that is; computed in
        float32 at least.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    if small.ndim != 4 or not small.is_floating_point():
        raise ValueError(
            f"sparse_motion: the small source must be float (B, C, h, w), got {small.dtype} "
            f"{tuple(small.shape)}"
        )
    check_keypoints("sparse_motion", kp_source, kp_driving, small.shape[0])
    source, driving = Points(kp_source.value, kp_source.jacobian), kp_driving
    if runs_kernel(small, *source, driving.value, driving.jacobian):
        return torch.ops.dfm.sparse_motion(
            small,
            *source,
            driving.value,
            driving.jacobian,
            variance,
            align_corners,
            least_channels,
        )
    return sparse_motion_reference(
        small,
        kp_source,
        kp_driving,
        variance=variance,
        align_corners=align_corners,
        least_channels=least_channels,
    )


def sparse_motion_traffic(
    rows: int, points: int, channels: int, height: int, width: int, *, element_bytes: int
) -> Traffic:
    """The small source read once, the output written once, the keypoints.

    Per pixel and motion: 2 x 4 for the affine map, 20 for both bumps, 10 for the weights, and 9
    per channel.
    """
    pixels = rows * height * width
    maps = points + 1
    return Traffic(
        bytes=pixels * (channels + maps * (channels + 1)) * element_bytes + rows * points * 12 * 4,
        flops=pixels * maps * (38 + 9 * channels),
    )


@torch.library.custom_op("dfm::sparse_motion", mutates_args=())
def _sparse_motion(
    small: Tensor,
    source: Tensor,
    source_jacobian: Tensor | None,
    driving: Tensor,
    driving_jacobian: Tensor | None,
    variance: float,
    align_corners: bool,
    least_channels: int = 0,
) -> Tensor:
    kp_source, kp_driving = Points(source, source_jacobian), Points(driving, driving_jacobian)
    if launches_on(small):
        return _launch(small, kp_source, kp_driving, variance, align_corners, least_channels)
    out = sparse_motion_reference(
        small,
        kp_source,
        kp_driving,
        variance=variance,
        align_corners=align_corners,
        least_channels=least_channels,
    )
    return like_layout(small, tuple(out.shape), out.dtype).copy_(out)


@_sparse_motion.register_fake
def _(
    small: Tensor,
    source: Tensor,
    source_jacobian: Tensor | None,
    driving: Tensor,
    driving_jacobian: Tensor | None,
    variance: float,
    align_corners: bool,
    least_channels: int = 0,
) -> Tensor:
    maps = (source.shape[1] + 1) * (small.shape[1] + 1)
    shape = (small.shape[0], max(maps, least_channels), *small.shape[2:])
    return like_layout(small, shape, small.dtype)


@standard_form(torch.ops.dfm.sparse_motion.default)
def _(
    small: Tensor,
    source: Tensor,
    source_jacobian: Tensor | None,
    driving: Tensor,
    driving_jacobian: Tensor | None,
    variance: float,
    align_corners: bool,
    least_channels: int = 0,
) -> Tensor:
    return sparse_motion_reference(
        small,
        Points(source, source_jacobian),
        Points(driving, driving_jacobian),
        variance=variance,
        align_corners=align_corners,
        least_channels=least_channels,
    )


def _launch(
    small: Tensor,
    kp_source: Points,
    kp_driving: Points,
    variance: float,
    align_corners: bool,
    least_channels: int,
) -> Tensor:
    rows, channels, height, width = small.shape
    points = kp_source.value.shape[1]
    maps, pixels = max((points + 1) * (channels + 1), least_channels), height * width
    is_last = is_channels_last(small)
    out = like_layout(small, (rows, maps, height, width), small.dtype)
    if out.numel() == 0:
        return out
    source, driving = by_rows(kp_source.value), by_rows(kp_driving.value)
    has_jacobian = kp_source.jacobian is not None and kp_driving.jacobian is not None
    source_jacobian = source if kp_source.jacobian is None else by_rows(kp_source.jacobian)
    driving_jacobian = driving if kp_driving.jacobian is None else by_rows(kp_driving.jacobian)
    block_p, block_c = TILES[is_last]
    with on_device_of(small):
        _sparse_motion_kernel[(rows * blocks(pixels, block_p), blocks(maps, block_c))](
            small,
            source,
            driving,
            source_jacobian,
            driving_jacobian,
            out,
            points,
            channels,
            maps,
            height,
            width,
            -0.5 / variance,
            *small.stride(),
            source.stride(0),
            driving.stride(0),
            source_jacobian.stride(0),
            driving_jacobian.stride(0),
            *((maps * pixels, 1, maps) if is_last else (maps * pixels, pixels, 1)),
            HAS_JACOBIAN=has_jacobian,
            ALIGN_CORNERS=align_corners,
            BLOCK_P=block_p,
            BLOCK_C=block_c,
        )
    return out
