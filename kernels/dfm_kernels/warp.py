"""Move features by a deformation and hide what the source never showed, in one pass.

    out[c](z) = occlusion(z) * sum over the 4 corners q of w_q(D(z)) features[c](q)

with the bilinear weights w of the position D(z), zero outside the picture. Unfused, the product
with the occlusion map reads and writes the whole map once more, and memory is what bounds it.

Source: FOMM (Siarohin et al. 2019), section 3.2, occlusion-aware warping.
"""

from __future__ import annotations

from typing import Any

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
    runs_kernel,
    standard_form,
    tl,
)
from dfm_kernels.warp_backward import warp_backward

__all__ = ["warp", "warp_reference", "warp_traffic"]

# (pixels, channels) of a program, for channels last and first. Channels last, a corner is read 128
# bits at a time, in 32 registers (sm_90, float16). Not yet tuned on a GPU.
TILES = {True: (16, 64), False: (64, 8)}


def warp_reference(
    features: Tensor, deformation: Tensor, occlusion_map: Tensor | None, *, align_corners: bool
) -> Tensor:
    """As `warp`, in torch; half precision is computed in float32."""
    compute = torch.promote_types(features.dtype, deformation.dtype)
    compute = torch.promote_types(compute, torch.float32)
    moved = sample(features.to(compute), deformation.to(compute), align_corners=align_corners)
    if occlusion_map is not None:
        moved = moved * occlusion_map.to(compute)
    return moved.to(features.dtype)


@jit
def _warp_kernel(
    features,
    deformation,
    occlusion_map,
    out,
    channels,
    height,
    width,
    out_pixels,
    features_b,
    features_c,
    features_y,
    features_x,
    out_b,
    out_c,
    out_p,
    HAS_OCCLUSION: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    pixel_blocks = tl.cdiv(out_pixels, BLOCK_P)
    row = (tl.program_id(0) // pixel_blocks).to(tl.int64)
    pixel = (tl.program_id(0) % pixel_blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    in_picture = pixel < out_pixels
    pixel = pixel.to(tl.int64)

    position = deformation + (row * out_pixels + pixel) * 2
    x = tl.load(position, mask=in_picture, other=0.0).to(tl.float32)
    y = tl.load(position + 1, mask=in_picture, other=0.0).to(tl.float32)
    x0, fx = lower_corner(to_pixels(x, width, ALIGN_CORNERS), width)
    y0, fy = lower_corner(to_pixels(y, height, ALIGN_CORNERS), height)
    x0, fx, y0, fy = x0[:, None], fx[:, None], y0[:, None], fy[:, None]

    mask = in_picture[:, None] & (channel < channels)
    image = features + row * features_b + channel.to(tl.int64) * features_c
    a = read_corner(image, x0, y0, width, height, features_x, features_y, mask)
    b = read_corner(image, x0 + 1, y0, width, height, features_x, features_y, mask)
    c = read_corner(image, x0, y0 + 1, width, height, features_x, features_y, mask)
    d = read_corner(image, x0 + 1, y0 + 1, width, height, features_x, features_y, mask)
    moved = (a * (1 - fx) + b * fx) * (1 - fy) + (c * (1 - fx) + d * fx) * fy
    if HAS_OCCLUSION:
        shown = tl.load(occlusion_map + row * out_pixels + pixel, mask=in_picture, other=0.0)
        moved = moved * shown.to(tl.float32)[:, None]
    where = out + row * out_b + channel.to(tl.int64) * out_c + pixel[:, None] * out_p
    tl.store(where, moved, mask=mask)


def warp(
    features: Tensor, deformation: Tensor, occlusion_map: Tensor | None, *, align_corners: bool
) -> Tensor:
    """Warp source features into the driving pose and hide what the source never showed.

    Differentiable in all three. The kernel's backward adds to the features' gradient atomically,
    so its last bits vary from run to run; where torch is told to be deterministic, the reference
    computes it (and raises what torch raises).

    Args:
        features: (B, C, H, W) of any float dtype, in any layout; rows may be expanded.
        deformation: (B, h, w, 2) sampling grid, (x, y) in [-1, 1]; outside reads zero.
        occlusion_map: (B, 1, h, w) in [0, 1], 0 hides; None hides nothing.
        align_corners: whether -1 and 1 are the outermost pixels' centres, or their outer edges.

    Returns:
        (B, C, h, w) in the dtype of `features`, channels last where those are; computed in
        float32 at least.

    Raises:
        ValueError: the three disagree on B, h or w, or have other shapes.
    """
    _check(features, deformation, occlusion_map)
    if not runs_kernel(features, deformation, occlusion_map, has_backward=True):
        return warp_reference(features, deformation, occlusion_map, align_corners=align_corners)
    return torch.ops.dfm.warp(features, deformation, occlusion_map, align_corners)


def warp_traffic(
    rows: int,
    channels: int,
    height: int,
    width: int,
    *,
    element_bytes: int,
    has_occlusion: bool = True,
    grid_bytes: int = 4,
) -> Traffic:
    """Of features and output of one size, each touched once.

    Per output value 3 interpolations (3 flops each) and the occlusion; per pixel its 4 weights.
    """
    pixels = rows * height * width
    values = pixels * channels
    return Traffic(
        bytes=2 * values * element_bytes + pixels * (2 + has_occlusion) * grid_bytes,
        flops=values * (9 + has_occlusion) + pixels * 10,
    )


@torch.library.custom_op("dfm::warp", mutates_args=())
def _warp(
    features: Tensor, deformation: Tensor, occlusion_map: Tensor | None, align_corners: bool
) -> Tensor:
    if not launches_on(features):
        out = warp_reference(features, deformation, occlusion_map, align_corners=align_corners)
        return like_layout(features, tuple(out.shape), out.dtype).copy_(out)
    return _launch(features, deformation, occlusion_map, align_corners)


@_warp.register_fake
def _(
    features: Tensor, deformation: Tensor, occlusion_map: Tensor | None, align_corners: bool
) -> Tensor:
    shape = (*features.shape[:2], *deformation.shape[1:3])
    return like_layout(features, shape, features.dtype)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, deformation, occlusion_map, ctx.align_corners = inputs
    ctx.save_for_backward(features, deformation, occlusion_map)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    features, deformation, occlusion_map = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    gradients = warp_backward(
        gradient,
        features,
        deformation,
        occlusion_map,
        ctx.align_corners,
        wanted[0],
        wanted[1] or wanted[2],
    )
    return *(g if want else None for g, want in zip(gradients, wanted, strict=False)), None


_warp.register_autograd(_differentiate, setup_context=_remember)


@standard_form(torch.ops.dfm.warp.default)
def _(features: Tensor, deformation: Tensor, occlusion_map: Tensor | None, align_corners: bool):
    return warp_reference(features, deformation, occlusion_map, align_corners=align_corners)


def _check(features: Tensor, deformation: Tensor, occlusion_map: Tensor | None) -> None:
    if features.ndim != 4 or not features.is_floating_point():
        raise ValueError(
            f"warp: features must be float (B, C, H, W), got {features.dtype} "
            f"{tuple(features.shape)}"
        )
    rows, sizes = features.shape[0], deformation.shape[1:3]
    if deformation.ndim != 4 or deformation.shape[::3] != (rows, 2):
        raise ValueError(
            f"warp: deformation must be (B, h, w, 2) matching features {tuple(features.shape)}, "
            f"got {tuple(deformation.shape)}"
        )
    if occlusion_map is not None and occlusion_map.shape != (rows, 1, *sizes):
        raise ValueError(
            f"warp: the occlusion map must be {(rows, 1, *sizes)} matching deformation "
            f"{tuple(deformation.shape)}, got {tuple(occlusion_map.shape)}"
        )


def _launch(
    features: Tensor, deformation: Tensor, occlusion_map: Tensor | None, align_corners: bool
) -> Tensor:
    rows, channels, height, width = features.shape
    deformation = deformation.contiguous()
    pixels = deformation.shape[1] * deformation.shape[2]
    out = like_layout(features, (rows, channels, *deformation.shape[1:3]), features.dtype)
    if out.numel() == 0:
        return out
    is_last = is_channels_last(features)
    block_p, block_c = TILES[is_last]
    with on_device_of(features):
        _warp_kernel[(rows * blocks(pixels, block_p), blocks(channels, block_c))](
            features,
            deformation,
            deformation if occlusion_map is None else occlusion_map.contiguous(),
            out,
            channels,
            height,
            width,
            pixels,
            *features.stride(),
            *((channels * pixels, 1, channels) if is_last else (channels * pixels, pixels, 1)),
            HAS_OCCLUSION=occlusion_map is not None,
            ALIGN_CORNERS=align_corners,
            BLOCK_P=block_p,
            BLOCK_C=block_c,
        )
    return out
