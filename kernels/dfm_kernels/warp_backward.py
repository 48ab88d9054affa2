"""The gradients of `warp.py`, in one pass.

With g the gradient of its output, w_q the four bilinear weights and p the position in pixels:

    d features[c](q) += w_q occlusion(z) g[c](z)                       (atomic: the order varies)
    d D(z)            = sum_c occlusion(z) g[c](z) d sample/dp dp/dD
    d occlusion(z)    = sum_c g[c](z) sample[c](z)
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfm_kernels.coordinates import lower_corner, read_corner, sample, to_pixels
from dfm_kernels.dispatch import (
    Traffic,
    blocks,
    is_channels_last,
    jit,
    launches_on,
    like_layout,
    on_device_of,
    tl,
)

__all__ = ["warp_backward", "warp_backward_reference", "warp_backward_traffic"]

# (pixels, channels at a time) of a program, for channels last and first. Not yet tuned on a GPU.
TILES = {True: (16, 32), False: (64, 8)}


def warp_backward_reference(
    gradient: Tensor,
    features: Tensor,
    deformation: Tensor,
    occlusion_map: Tensor | None,
    *,
    align_corners: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `warp_backward`, in torch; half precision is computed in float32."""
    compute = torch.promote_types(features.dtype, deformation.dtype)
    compute = torch.promote_types(compute, torch.float32)
    given, maps, grid = gradient.to(compute), features.to(compute), deformation.to(compute)
    to_occlusion = deformation.new_empty(0)
    if occlusion_map is not None:
        moved = sample(maps, grid, align_corners=align_corners)
        to_occlusion = (given * moved).sum(dim=1, keepdim=True).to(occlusion_map.dtype)
        given = given * occlusion_map.to(compute)
    bilinear, zeros = 0, 0
    to_maps, to_grid = torch.ops.aten.grid_sampler_2d_backward(
        given, maps, grid, bilinear, zeros, align_corners, [True, True]
    )
    to_features = like_layout(features, tuple(features.shape), features.dtype).copy_(to_maps)
    return to_features, to_grid.to(deformation.dtype), to_occlusion


@jit
def _warp_backward_kernel(
    gradient,
    features,
    deformation,
    occlusion_map,
    to_features,
    to_deformation,
    to_occlusion,
    channels,
    height,
    width,
    out_pixels,
    gradient_b,
    gradient_c,
    gradient_p,
    features_b,
    features_c,
    features_y,
    features_x,
    to_features_b,
    to_features_c,
    to_features_y,
    to_features_x,
    HAS_OCCLUSION: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    WANTS_FEATURES: tl.constexpr,
    WANTS_POSITIONS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    pixel_blocks = tl.cdiv(out_pixels, BLOCK_P)
    row = (tl.program_id(0) // pixel_blocks).to(tl.int64)
    pixel = (tl.program_id(0) % pixel_blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    in_picture = pixel < out_pixels
    pixel = pixel.to(tl.int64)

    position = deformation + (row * out_pixels + pixel) * 2
    x = tl.load(position, mask=in_picture, other=0.0).to(tl.float32)
    y = tl.load(position + 1, mask=in_picture, other=0.0).to(tl.float32)
    x0, fx = lower_corner(to_pixels(x, width, ALIGN_CORNERS), width)
    y0, fy = lower_corner(to_pixels(y, height, ALIGN_CORNERS), height)
    x0, fx, y0, fy = x0[:, None], fx[:, None], y0[:, None], fy[:, None]
    if HAS_OCCLUSION:
        shown = tl.load(occlusion_map + row * out_pixels + pixel, mask=in_picture, other=0.0)
        shown = shown.to(tl.float32)[:, None]
    else:
        shown = tl.full((BLOCK_P, 1), 1.0, tl.float32)

    along_x = tl.zeros((BLOCK_P,), tl.float32)
    along_y = tl.zeros((BLOCK_P,), tl.float32)
    of_shown = tl.zeros((BLOCK_P,), tl.float32)
    for start in range(0, channels, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)[None, :]
        mask = in_picture[:, None] & (channel < channels)
        channel = channel.to(tl.int64)
        where = gradient + row * gradient_b + channel * gradient_c + pixel[:, None] * gradient_p
        given = tl.load(where, mask=mask, other=0.0).to(tl.float32)
        if WANTS_POSITIONS:
            image = features + row * features_b + channel * features_c
            a = read_corner(image, x0, y0, width, height, features_x, features_y, mask)
            b = read_corner(image, x0 + 1, y0, width, height, features_x, features_y, mask)
            c = read_corner(image, x0, y0 + 1, width, height, features_x, features_y, mask)
            d = read_corner(image, x0 + 1, y0 + 1, width, height, features_x, features_y, mask)
            moved = (a * (1 - fx) + b * fx) * (1 - fy) + (c * (1 - fx) + d * fx) * fy
            of_shown += tl.sum(given * moved, axis=1)
            along_x += tl.sum(given * shown * ((b - a) * (1 - fy) + (d - c) * fy), axis=1)
            along_y += tl.sum(given * shown * ((c - a) * (1 - fx) + (d - b) * fx), axis=1)
        if WANTS_FEATURES:
            target = to_features + row * to_features_b + channel * to_features_c
            share = given * shown
            for corner in tl.static_range(4):  # pyright: ignore[reportGeneralTypeIssues]
                qx, qy = x0 + corner % 2, y0 + corner // 2
                weight = (fx if corner % 2 else 1 - fx) * (fy if corner // 2 else 1 - fy)
                inside = (qx >= 0) & (qx < width) & (qy >= 0) & (qy < height) & mask
                where = target + qy.to(tl.int64) * to_features_y + qx.to(tl.int64) * to_features_x
                tl.atomic_add(where, share * weight, mask=inside, sem="relaxed")
    if WANTS_POSITIONS:
        if ALIGN_CORNERS:  # pixels per unit of the grid
            along_x, along_y = along_x * (0.5 * (width - 1)), along_y * (0.5 * (height - 1))
        else:
            along_x, along_y = along_x * (0.5 * width), along_y * (0.5 * height)
        where = to_deformation + (row * out_pixels + pixel) * 2
        tl.store(where, along_x, mask=in_picture)
        tl.store(where + 1, along_y, mask=in_picture)
        if HAS_OCCLUSION:
            tl.store(to_occlusion + row * out_pixels + pixel, of_shown, mask=in_picture)


@torch.library.custom_op("dfm::warp_backward", mutates_args=())
def warp_backward(
    gradient: Tensor,
    features: Tensor,
    deformation: Tensor,
    occlusion_map: Tensor | None,
    align_corners: bool,
    wants_features: bool,
    wants_positions: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `warp` in its three inputs.

    Args:
        gradient: (B, C, h, w), of its output.
        features: as given to `warp`; so are the next three.
        deformation: see there.
        occlusion_map: see there.
        align_corners: see there.
        wants_features: whether the first is needed; else it is zero.
        wants_positions: whether either of the others is needed; else they are not written.

    Returns:
        Like `features`, `deformation` and `occlusion_map`; the last empty without one.
    """
    if not launches_on(features) or _must_repeat():
        return warp_backward_reference(
            gradient, features, deformation, occlusion_map, align_corners=align_corners
        )
    return _launch(
        gradient,
        features,
        deformation,
        occlusion_map,
        align_corners,
        wants_features,
        wants_positions,
    )


@warp_backward.register_fake
def _(
    gradient: Tensor,
    features: Tensor,
    deformation: Tensor,
    occlusion_map: Tensor | None,
    align_corners: bool,
    wants_features: bool,
    wants_positions: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        like_layout(features, features.shape, features.dtype),
        torch.empty_like(deformation, memory_format=torch.contiguous_format),
        torch.empty_like(occlusion_map, memory_format=torch.contiguous_format)
        if occlusion_map is not None
        else deformation.new_empty(0),
    )


def warp_backward_traffic(
    rows: int, channels: int, height: int, width: int, *, element_bytes: int
) -> Traffic:
    """Of the backward in all three inputs: 32-bit sums, read and written, for the features."""
    pixels = rows * height * width
    values = pixels * channels
    return Traffic(
        bytes=values * (2 * element_bytes + 8) + pixels * 6 * 4, flops=values * 40 + pixels * 10
    )


def _must_repeat() -> bool:
    """Whether torch was told to raise rather than to compute in varying order."""
    is_warning = torch.is_deterministic_algorithms_warn_only_enabled()
    return torch.are_deterministic_algorithms_enabled() and not is_warning


def _launch(
    gradient: Tensor,
    features: Tensor,
    deformation: Tensor,
    occlusion_map: Tensor | None,
    align_corners: bool,
    wants_features: bool,
    wants_positions: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    _, channels, height, width = features.shape
    rows = features.shape[0]
    pixels = deformation.shape[1] * deformation.shape[2]
    is_last = is_channels_last(features)
    layout = torch.channels_last if is_last else torch.contiguous_format
    gradient = gradient.contiguous(memory_format=layout)  # its pixels then have one stride
    grid, float32 = deformation.contiguous(), torch.float32
    # Sums in float32: hundreds of half-precision additions would lose the small ones.
    to_features = like_layout(features, tuple(features.shape), float32).zero_()
    to_deformation = torch.empty_like(grid, dtype=float32)
    to_occlusion = grid.new_empty(0 if occlusion_map is None else rows * pixels, dtype=float32)
    block_p, block_c = TILES[is_last]
    if gradient.numel():
        with on_device_of(features):
            _warp_backward_kernel[(rows * blocks(pixels, block_p),)](
                gradient,
                features,
                grid,
                grid if occlusion_map is None else occlusion_map.contiguous(),
                to_features,
                to_deformation,
                to_occlusion,
                channels,
                height,
                width,
                pixels,
                *((channels * pixels, 1, channels) if is_last else (channels * pixels, pixels, 1)),
                *features.stride(),
                *to_features.stride(),
                HAS_OCCLUSION=occlusion_map is not None,
                ALIGN_CORNERS=align_corners,
                WANTS_FEATURES=wants_features,
                WANTS_POSITIONS=wants_positions,
                BLOCK_P=block_p,
                BLOCK_C=block_c,
            )
    if occlusion_map is not None:
        to_occlusion = to_occlusion.view(occlusion_map.shape).to(occlusion_map.dtype)
    return to_features.to(features.dtype), to_deformation.to(deformation.dtype), to_occlusion
