"""RGB to YUV 4:2:0, BT.601 limited range, for the encoder: in one pass, on the device.

The image is first made 8-bit as every frame of the project is (255 v, rounded half to even,
clamped; what is not a number is black). Then in integers, with weights of 2^-16, and a chroma
sample as the mean of its 2x2 pixels, in whose middle it sits:

    Y  = 16  + ( 16829 R + 33039 G +  6416 B) / 2^16      (rounded half up)
    Cb = 128 + ( -9714 R - 19070 G + 28784 B) / 2^16      (R, G, B: means of 2x2)
    Cr = 128 + ( 28784 R - 24103 G -  4681 B) / 2^16

Integers, so that every device gives the bytes that the CPU's converter gives. Two layouts of the
planes: `i420` (Y, Cb, Cr one below the other, what FFmpeg calls yuv420p) and `nv12` (Y, then Cb and
Cr interleaved).

Source: Recommendation ITU-R BT.601-7, sections 2.5.1 to 2.5.3.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dfm_kernels.dispatch import (
    Traffic,
    blocks,
    jit,
    launches_on,
    on_device_of,
    runs_kernel,
    standard_form,
    tl,
)

__all__ = ["Planes", "rgb_to_yuv", "rgb_to_yuv_reference", "rgb_to_yuv_traffic"]

Planes = Literal["i420", "nv12"]

# Times 2^16; written out once more in the kernel, which sees no tuples.
LUMA = (16829, 33039, 6416)
BLUE_DIFFERENCE = (-9714, -19070, 28784)
RED_DIFFERENCE = (28784, -24103, -4681)

BLOCK_X = 256  # columns of a program, in two rows. Not yet tuned on a GPU.


def rgb_to_yuv_reference(images: Tensor, *, planes: Planes = "i420") -> Tensor:
    """As `rgb_to_yuv`, in torch."""
    if images.dtype != torch.uint8:
        wide = images.to(torch.promote_types(images.dtype, torch.float32))
        images = (wide * 255).round().clamp(0, 255).nan_to_num(nan=0.0).permute(0, 2, 3, 1)
    colours = images.to(torch.int32)  # (B, H, W, 3)
    luma = _weigh(colours, LUMA, offset=16, shift=16)
    rows = colours[:, 0::2] + colours[:, 1::2]
    sums = rows[:, :, 0::2] + rows[:, :, 1::2]  # of 2x2 pixels
    chroma = [
        _weigh(sums, weights, offset=128, shift=18) for weights in (BLUE_DIFFERENCE, RED_DIFFERENCE)
    ]
    stacked = torch.stack(chroma, dim=1 if planes == "i420" else -1)
    width = images.shape[2]
    below = stacked.reshape(images.shape[0], images.shape[1] // 2, width)
    return torch.cat([luma, below], dim=1).to(torch.uint8)


@jit
def _rounded(values, IS_BYTES: tl.constexpr):
    """0 .. 255 as int32."""
    if IS_BYTES:
        whole = values.to(tl.int32)
    else:
        scaled = values.to(tl.float32) * 255.0
        scaled = tl.where(scaled == scaled, scaled, 0.0)
        scaled = tl.minimum(tl.maximum(scaled, 0.0), 255.0)
        # 1.5 * 2^23, after which a float32 has no fraction left: rounds half to even.
        whole = ((scaled + 12582912.0) - 12582912.0).to(tl.int32)
    return whole


@jit
def _sum_2x2(values, HALF: tl.constexpr):
    """(2, 2 HALF) to (HALF,)."""
    return tl.sum(tl.reshape(tl.sum(values, axis=0), (HALF, 2)), axis=1)


@jit
def _rgb_to_yuv_kernel(
    images,
    out,
    height,
    width,
    images_b,
    images_c,
    images_y,
    images_x,
    IS_BYTES: tl.constexpr,
    IS_NV12: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    half: tl.constexpr = BLOCK_X // 2
    pairs = height // 2
    row = (tl.program_id(0) // pairs).to(tl.int64)
    pair = tl.program_id(0) % pairs
    y = (2 * pair + tl.arange(0, 2)[:, None]).to(tl.int64)
    x = tl.program_id(1) * BLOCK_X + tl.arange(0, BLOCK_X)[None, :]
    mask = x < width
    at = images + row * images_b + y * images_y + x.to(tl.int64) * images_x
    red = _rounded(tl.load(at, mask=mask, other=0), IS_BYTES)
    green = _rounded(tl.load(at + images_c, mask=mask, other=0), IS_BYTES)
    blue = _rounded(tl.load(at + 2 * images_c, mask=mask, other=0), IS_BYTES)

    out += row * (height + pairs) * width
    luma = (16829 * red + 33039 * green + 6416 * blue + (16 << 16) + (1 << 15)) >> 16
    tl.store(out + y * width + x, luma.to(tl.uint8), mask=mask)

    red, green, blue = _sum_2x2(red, half), _sum_2x2(green, half), _sum_2x2(blue, half)
    cb = (-9714 * red - 19070 * green + 28784 * blue + (128 << 18) + (1 << 17)) >> 18
    cr = (28784 * red - 24103 * green - 4681 * blue + (128 << 18) + (1 << 17)) >> 18
    column = tl.program_id(1) * half + tl.arange(0, half)
    chroma = out + height.to(tl.int64) * width
    if IS_NV12:
        chroma += pair.to(tl.int64) * width + 2 * column
        apart = 1
    else:
        chroma += pair.to(tl.int64) * (width // 2) + column
        apart = pairs * (width // 2)
    tl.store(chroma, cb.to(tl.uint8), mask=column < width // 2)
    tl.store(chroma + apart, cr.to(tl.uint8), mask=column < width // 2)


def rgb_to_yuv(images: Tensor, *, planes: Planes = "i420") -> Tensor:
    """Pictures as the encoder wants them: the bytes of `media.encode.rgb_to_i420`, on the device.

    No resizing: a generator draws at the canonical size.

    Args:
        images: float (B, 3, H, W) in [0, 1] in any layout, or uint8 (B, H, W, 3); RGB, full
            range, H and W even.
        planes: `i420` or `nv12`.

    Returns:
        uint8 (B, H * 3 // 2, W).

    Raises:
        ValueError: another shape or dtype, or odd sides.
    """
    is_bytes = images.dtype == torch.uint8
    if images.ndim != 4 or images.shape[3 if is_bytes else 1] != 3:
        raise ValueError(
            "rgb_to_yuv: images must be float (B, 3, H, W) or uint8 (B, H, W, 3), got "
            f"{images.dtype} {tuple(images.shape)}"
        )
    height, width = images.shape[1:3] if is_bytes else images.shape[2:]
    if not (is_bytes or images.is_floating_point()) or height % 2 or width % 2:
        raise ValueError(
            f"rgb_to_yuv: 4:2:0 needs float or uint8 pictures of even sides, got {images.dtype} "
            f"{width}x{height}"
        )
    if runs_kernel(images.detach()):
        return torch.ops.dfm.rgb_to_yuv(images.detach(), planes)
    return rgb_to_yuv_reference(images, planes=planes)


def rgb_to_yuv_traffic(rows: int, height: int, width: int, *, element_bytes: int) -> Traffic:
    """Three values read and one and a half bytes written per pixel."""
    pixels = rows * height * width
    return Traffic(bytes=pixels * (6 * element_bytes + 3) // 2, flops=pixels * 17)


@torch.library.custom_op("dfm::rgb_to_yuv", mutates_args=())
def _rgb_to_yuv(images: Tensor, planes: str) -> Tensor:
    if not launches_on(images):
        return rgb_to_yuv_reference(images, planes="nv12" if planes == "nv12" else "i420")
    is_bytes = images.dtype == torch.uint8
    maps = images.permute(0, 3, 1, 2) if is_bytes else images
    rows, _, height, width = maps.shape
    out = images.new_empty((rows, height * 3 // 2, width), dtype=torch.uint8)
    if out.numel() == 0:
        return out
    with on_device_of(images):
        # No fused multiply-add: 255 v is rounded before it is rounded to an integer.
        _rgb_to_yuv_kernel[(rows * (height // 2), blocks(width, BLOCK_X))](
            maps,
            out,
            height,
            width,
            *maps.stride(),
            IS_BYTES=is_bytes,
            IS_NV12=planes == "nv12",
            BLOCK_X=BLOCK_X,
            enable_fp_fusion=False,
        )
    return out


@_rgb_to_yuv.register_fake
def _(images: Tensor, planes: str) -> Tensor:
    rows, height, width = (
        images.shape[:3] if images.dtype == torch.uint8 else (images.shape[0], *images.shape[2:])
    )
    return images.new_empty((rows, height * 3 // 2, width), dtype=torch.uint8)


@standard_form(torch.ops.dfm.rgb_to_yuv.default)
def _(images: Tensor, planes: str) -> Tensor:
    return rgb_to_yuv_reference(images, planes="nv12" if planes == "nv12" else "i420")


def _weigh(colours: Tensor, weights: tuple[int, int, int], *, offset: int, shift: int) -> Tensor:
    total = torch.zeros_like(colours[..., 0])
    for channel, weight in enumerate(weights):
        total = total + colours[..., channel] * weight
    return (total + ((offset << shift) + (1 << (shift - 1)))) >> shift
