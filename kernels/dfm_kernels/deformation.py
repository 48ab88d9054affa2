"""Mix the sparse motions into one deformation, and open the occlusion map.

    mask_k(z)      = softmax over k = 0 .. K of logits_k(z)
    deformation(z) = sum_k mask_k(z) T_k(z)                    (absolute sampling positions)
    occlusion(z)   = sigmoid(logit(z))

with the affine motions T_k of `sparse_motion.py`, computed again from the keypoints: six numbers
per motion in place of a (B, K+1, H, W, 2) grid. All three stay in float32 whatever the networks
run in: half precision would misplace a sample by up to half a pixel.

Source: FOMM (Siarohin et al. 2019), equation 8 and section 3.2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dfm_kernels.coordinates import (
    Keypoints,
    Points,
    affine_motions,
    affine_of,
    by_rows,
    check_keypoints,
    grid_position,
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

__all__ = ["MixedMotions", "mix_motions", "mix_motions_reference", "mix_motions_traffic"]

# Pixels of a program, which holds all K + 1 motions of each: 44 registers, 83 for 128 (sm_90). Not
# yet tuned on a GPU.
BLOCK_P = 32


class MixedMotions(NamedTuple):
    """One motion of every pixel.

    Attributes:
        deformation: (B, H, W, 2), where in the source each position is looked up.
        mask: (B, K+1, H, W), the share of each motion.
        occlusion_map: (B, 1, H, W) in [0, 1], 0 hides; None without its logits.
    """

    deformation: Tensor
    mask: Tensor
    occlusion_map: Tensor | None


def mix_motions_reference(
    mask_logits: Tensor,
    occlusion_logits: Tensor | None,
    kp_source: Keypoints,
    kp_driving: Keypoints,
) -> MixedMotions:
    """As `mix_motions`, in torch; half precision is computed in float32."""
    kp_source = widened(kp_source, mask_logits.dtype)
    kp_driving = widened(kp_driving, mask_logits.dtype)
    motions = affine_motions(kp_source, kp_driving, *mask_logits.shape[2:])
    mask = torch.softmax(mask_logits.to(motions.dtype), dim=1)  # (B, K+1, H, W)
    return MixedMotions(
        deformation=(motions * mask[..., None]).sum(dim=1),
        mask=mask,
        occlusion_map=None
        if occlusion_logits is None
        else torch.sigmoid(occlusion_logits.to(motions.dtype)),
    )


@jit
def _mix_motions_kernel(
    mask_logits,
    occlusion_logits,
    source,
    driving,
    source_jacobian,
    driving_jacobian,
    deformation,
    mask,
    occlusion_map,
    points,
    height,
    width,
    logits_b,
    logits_k,
    logits_y,
    logits_x,
    occlusion_b,
    occlusion_y,
    occlusion_x,
    source_b,
    driving_b,
    source_jacobian_b,
    driving_jacobian_b,
    mask_b,
    mask_k,
    mask_p,
    HAS_JACOBIAN: tl.constexpr,
    HAS_OCCLUSION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    pixels = height * width
    pixel_blocks = tl.cdiv(pixels, BLOCK_P)
    row = (tl.program_id(0) // pixel_blocks).to(tl.int64)
    pixel = (tl.program_id(0) % pixel_blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    in_picture = pixel < pixels
    x_index, y_index = pixel % width, pixel // width
    pixel, across, down = pixel.to(tl.int64), x_index.to(tl.int64), y_index.to(tl.int64)
    motion = tl.arange(0, BLOCK_K)[None, :]
    is_motion = motion <= points
    inside = in_picture[:, None] & is_motion

    at = row * logits_b + (down * logits_y + across * logits_x)[:, None]
    at += motion.to(tl.int64) * logits_k
    logits = tl.load(mask_logits + at, mask=inside, other=0.0).to(tl.float32)
    logits = tl.where(is_motion, logits, float("-inf"))
    share = tl.exp(logits - tl.max(logits, axis=1, keep_dims=True))
    share = share / tl.sum(share, axis=1, keep_dims=True)

    xx, xy, yx, yy, source_x, source_y, driving_x, driving_y = affine_of(
        source + row * source_b,
        driving + row * driving_b,
        source_jacobian + row * source_jacobian_b,
        driving_jacobian + row * driving_jacobian_b,
        motion - 1,
        (motion >= 1) & is_motion,
        HAS_JACOBIAN,
    )
    from_x = grid_position(x_index, width)[:, None] - driving_x
    from_y = grid_position(y_index, height)[:, None] - driving_y
    x = tl.sum(share * (xx * from_x + xy * from_y + source_x), axis=1)
    y = tl.sum(share * (yx * from_x + yy * from_y + source_y), axis=1)

    where = deformation + (row * pixels + pixel) * 2
    tl.store(where, x, mask=in_picture)
    tl.store(where + 1, y, mask=in_picture)
    at = row * mask_b + pixel[:, None] * mask_p + motion.to(tl.int64) * mask_k
    tl.store(mask + at, share, mask=inside)
    if HAS_OCCLUSION:
        at = row * occlusion_b + down * occlusion_y + across * occlusion_x
        logit = tl.load(occlusion_logits + at, mask=in_picture, other=0.0).to(tl.float32)
        shown = 1.0 / (1.0 + tl.exp(-logit))
        tl.store(occlusion_map + row * pixels + pixel, shown, mask=in_picture)


def mix_motions(
    mask_logits: Tensor,
    occlusion_logits: Tensor | None,
    kp_source: Keypoints,
    kp_driving: Keypoints,
) -> MixedMotions:
    """Mix the K + 1 affine motions position by position, and open the occlusion map.

    The kernel has no backward; where gradients are wanted, the reference computes.

    Args:
        mask_logits: (B, K+1, H, W) of any float dtype, in any layout; index 0 is the background.
        occlusion_logits: (B, 1, H, W), or None for a model made without.
        kp_source: B rows of K points.
        kp_driving: likewise.

    Returns:
        float32 or, from float64, that.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    if mask_logits.ndim != 4 or mask_logits.shape[1] != kp_source.value.shape[1] + 1:
        raise ValueError(
            f"mix_motions: the mask's logits must be (B, K+1, H, W) matching keypoints "
            f"{tuple(kp_source.value.shape)}, got {tuple(mask_logits.shape)}"
        )
    check_keypoints("mix_motions", kp_source, kp_driving, mask_logits.shape[0])
    wanted = (mask_logits.shape[0], 1, *mask_logits.shape[2:])
    if occlusion_logits is not None and occlusion_logits.shape != wanted:
        raise ValueError(
            f"mix_motions: the occlusion's logits must be {wanted}, got "
            f"{tuple(occlusion_logits.shape)}"
        )
    points = kp_source.value, kp_source.jacobian, kp_driving.value, kp_driving.jacobian
    if not runs_kernel(mask_logits, occlusion_logits, *points):
        return mix_motions_reference(mask_logits, occlusion_logits, kp_source, kp_driving)
    mixed = MixedMotions(*torch.ops.dfm.mix_motions(mask_logits, occlusion_logits, *points))
    return mixed._replace(occlusion_map=None) if occlusion_logits is None else mixed


def mix_motions_traffic(
    rows: int, points: int, height: int, width: int, *, element_bytes: int
) -> Traffic:
    """Logits read once; mask, deformation and occlusion map written once, in 32 bits.

    Per pixel and motion: 4 for the softmax, 8 for the affine map, 4 for the sum; 4 for the sigmoid.
    """
    pixels = rows * height * width
    maps = points + 1
    return Traffic(
        bytes=pixels * ((maps + 1) * element_bytes + (maps + 3) * 4) + rows * points * 12 * 4,
        flops=pixels * (maps * 16 + 4),
    )


@torch.library.custom_op("dfm::mix_motions", mutates_args=())
def _mix_motions(
    mask_logits: Tensor,
    occlusion_logits: Tensor | None,
    source: Tensor,
    source_jacobian: Tensor | None,
    driving: Tensor,
    driving_jacobian: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    kp_source, kp_driving = Points(source, source_jacobian), Points(driving, driving_jacobian)
    if launches_on(mask_logits):
        return _launch(mask_logits, occlusion_logits, kp_source, kp_driving)
    outputs = _plain(mask_logits, occlusion_logits, kp_source, kp_driving)
    unwritten = _unwritten(mask_logits, occlusion_logits, outputs[1].dtype)
    return outputs[0], unwritten[1].copy_(outputs[1]), outputs[2]


@_mix_motions.register_fake
def _(
    mask_logits: Tensor,
    occlusion_logits: Tensor | None,
    source: Tensor,
    source_jacobian: Tensor | None,
    driving: Tensor,
    driving_jacobian: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(mask_logits.dtype, torch.float32)
    return _unwritten(mask_logits, occlusion_logits, dtype)


@standard_form(torch.ops.dfm.mix_motions.default)
def _(
    mask_logits: Tensor,
    occlusion_logits: Tensor | None,
    source: Tensor,
    source_jacobian: Tensor | None,
    driving: Tensor,
    driving_jacobian: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    kp_source, kp_driving = Points(source, source_jacobian), Points(driving, driving_jacobian)
    return _plain(mask_logits, occlusion_logits, kp_source, kp_driving)


def _plain(
    mask_logits: Tensor, occlusion_logits: Tensor | None, kp_source: Points, kp_driving: Points
) -> tuple[Tensor, Tensor, Tensor]:
    """The reference, with nothing for an absent occlusion map: operators return tensors."""
    mixed = mix_motions_reference(mask_logits, occlusion_logits, kp_source, kp_driving)
    absent = mask_logits.new_empty(0, dtype=torch.float32)
    return (
        mixed.deformation,
        mixed.mask,
        absent if mixed.occlusion_map is None else mixed.occlusion_map,
    )


def _unwritten(
    mask_logits: Tensor, occlusion_logits: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    rows, _, height, width = mask_logits.shape
    shape = (0,) if occlusion_logits is None else (rows, 1, height, width)
    return (
        mask_logits.new_empty((rows, height, width, 2), dtype=dtype),
        like_layout(mask_logits, tuple(mask_logits.shape), dtype),
        mask_logits.new_empty(shape, dtype=dtype),
    )


def _launch(
    mask_logits: Tensor, occlusion_logits: Tensor | None, kp_source: Points, kp_driving: Points
) -> tuple[Tensor, Tensor, Tensor]:
    rows, maps, height, width = mask_logits.shape
    pixels = height * width
    outputs = _unwritten(mask_logits, occlusion_logits, torch.float32)
    if mask_logits.numel() == 0:
        return outputs
    source, driving = by_rows(kp_source.value), by_rows(kp_driving.value)
    has_jacobian = kp_source.jacobian is not None and kp_driving.jacobian is not None
    source_jacobian = source if kp_source.jacobian is None else by_rows(kp_source.jacobian)
    driving_jacobian = driving if kp_driving.jacobian is None else by_rows(kp_driving.jacobian)
    occlusion = mask_logits if occlusion_logits is None else occlusion_logits
    is_last = is_channels_last(mask_logits)
    with on_device_of(mask_logits):
        _mix_motions_kernel[(rows * blocks(pixels, BLOCK_P),)](
            mask_logits,
            occlusion,
            source,
            driving,
            source_jacobian,
            driving_jacobian,
            *outputs,
            maps - 1,
            height,
            width,
            *mask_logits.stride(),
            *(occlusion.stride(0), occlusion.stride(2), occlusion.stride(3)),
            source.stride(0),
            driving.stride(0),
            source_jacobian.stride(0),
            driving_jacobian.stride(0),
            *((maps * pixels, 1, maps) if is_last else (maps * pixels, pixels, 1)),
            HAS_JACOBIAN=has_jacobian,
            HAS_OCCLUSION=occlusion_logits is not None,
            BLOCK_P=BLOCK_P,
            BLOCK_K=1 << (maps - 1).bit_length(),
        )
    return outputs
