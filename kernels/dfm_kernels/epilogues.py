"""What stands behind a convolution, in one pass over its output; channels last.

    affine_relu      relu(scale x + shift)                            a norm before a convolution
    bias_relu_pool   mean over 2x2 of relu(x + bias)                  a down block's end
    bias_relu_cat    [relu(x + bias), skip, 0 ...]                    an up block's end in a U-Net
    residual         s = x + update + bias,  relu(scale s + shift)    between two residual blocks

A convolution of tensor cores leaves these passes over memory as a quarter of a half-precision
network's time; one after the other, as modules, they are half of it. Computed in float32, rounded
once. They take channels last alone, as such convolutions do: with another layout, without a GPU or
where gradients are wanted, the references compute.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

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

__all__ = [
    "affine_relu",
    "affine_relu_reference",
    "bias_relu_cat",
    "bias_relu_cat_reference",
    "bias_relu_pool",
    "bias_relu_pool_reference",
    "epilogue_traffic",
    "residual",
    "residual_reference",
]

BLOCK, WARPS = 2048, 8  # values of a program: eight 16-bit ones a thread


def affine_relu_reference(x: Tensor, scale: Tensor | None, shift: Tensor) -> Tensor:
    """As `affine_relu`, in torch; half precision is computed in float32."""
    wide = _wide(x)
    moved = wide if scale is None else wide * _channels(scale, wide)
    return torch.relu(moved + _channels(shift, wide)).to(x.dtype)


def bias_relu_pool_reference(x: Tensor, bias: Tensor) -> Tensor:
    """As `bias_relu_pool`, in torch; half precision is computed in float32."""
    wide = _wide(x)
    return F.avg_pool2d(torch.relu(wide + _channels(bias, wide)), 2).to(x.dtype)


def bias_relu_cat_reference(x: Tensor, bias: Tensor, skip: Tensor, channels: int) -> Tensor:
    """As `bias_relu_cat`, in torch."""
    both = torch.cat([affine_relu_reference(x, None, bias), skip], dim=1)
    return F.pad(both, (0, 0, 0, 0, 0, max(0, channels - both.shape[1])))


def residual_reference(
    x: Tensor, update: Tensor, bias: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """As `residual`, in torch; half precision is computed in float32."""
    wide = _wide(x)
    total = wide + update.to(wide.dtype) + _channels(bias, wide)
    activated = torch.relu(total * _channels(scale, wide) + _channels(shift, wide))
    return total.to(x.dtype), activated.to(x.dtype)


@jit
def _affine_relu_kernel(
    x, scale, shift, out, count, HAS_SCALE: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    channel = at % C
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_SCALE:
        value *= tl.load(scale + channel).to(tl.float32)
    value += tl.load(shift + channel).to(tl.float32)
    tl.store(out + at, tl.maximum(value, 0.0), mask=inside)


@jit
def _bias_relu_pool_kernel(
    x, bias, out, count, height, width, out_height, out_width, C: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    channel, pixel = at % C, at // C
    across, down = pixel % out_width, pixel // out_width % out_height
    picture = pixel // out_width // out_height
    upper = x + (((picture * height + 2 * down) * width + 2 * across) * C + channel)
    lower = upper + width.to(tl.int64) * C
    add = tl.load(bias + channel).to(tl.float32)
    a = tl.maximum(tl.load(upper, mask=inside, other=0.0).to(tl.float32) + add, 0.0)
    b = tl.maximum(tl.load(upper + C, mask=inside, other=0.0).to(tl.float32) + add, 0.0)
    c = tl.maximum(tl.load(lower, mask=inside, other=0.0).to(tl.float32) + add, 0.0)
    d = tl.maximum(tl.load(lower + C, mask=inside, other=0.0).to(tl.float32) + add, 0.0)
    tl.store(out + at, ((a + b) + (c + d)) * 0.25, mask=inside)


@jit
def _bias_relu_cat_kernel(
    x,
    bias,
    skip,
    out,
    count,
    C: tl.constexpr,
    SKIPPED: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    channel, pixel = at % CHANNELS, at // CHANNELS
    inside = at < count
    is_new, is_old = inside & (channel < C), inside & (channel >= C) & (channel < C + SKIPPED)
    new = tl.load(x + pixel * C + channel, mask=is_new, other=0.0).to(tl.float32)
    new += tl.load(bias + channel, mask=is_new, other=0.0).to(tl.float32)
    old = tl.load(skip + pixel * SKIPPED + (channel - C), mask=is_old, other=0.0).to(tl.float32)
    tl.store(out + at, tl.where(is_new, tl.maximum(new, 0.0), old), mask=inside)


@jit
def _residual_kernel(
    x,
    update,
    bias,
    scale,
    shift,
    total,
    activated,
    count,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    channel = at % C
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(update + at, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(bias + channel).to(tl.float32)
    tl.store(total + at, value, mask=inside)
    value = value * tl.load(scale + channel).to(tl.float32) + tl.load(shift + channel).to(
        tl.float32
    )
    tl.store(activated + at, tl.maximum(value, 0.0), mask=inside)


def affine_relu(x: Tensor, scale: Tensor | None, shift: Tensor) -> Tensor:
    """relu(scale x + shift), channel by channel.

    Args:
        x: (B, C, H, W) of any float dtype.
        scale: (C,); None is one.
        shift: (C,).

    Returns:
        As x.

    Raises:
        ValueError: not as many numbers as channels.
    """
    _check("affine_relu", x, *(() if scale is None else (scale,)), shift)
    if not _runs(x, scale, shift):
        return affine_relu_reference(x, scale, shift)
    return torch.ops.dfm.affine_relu(x, scale, shift)


def bias_relu_pool(x: Tensor, bias: Tensor) -> Tensor:
    """The mean over 2x2 of relu(x + bias); an odd last row or column is left out.

    Args:
        x: (B, C, H, W) of any float dtype; H and W at least 2.
        bias: (C,).

    Returns:
        (B, C, H // 2, W // 2) in the dtype of x.

    Raises:
        ValueError: not as many numbers as channels.
    """
    _check("bias_relu_pool", x, bias)
    if not _runs(x, bias):
        return bias_relu_pool_reference(x, bias)
    return torch.ops.dfm.bias_relu_pool(x, bias)


def bias_relu_cat(x: Tensor, bias: Tensor, skip: Tensor, *, channels: int = 0) -> Tensor:
    """relu(x + bias), behind it the skip, behind that zeros.

    Args:
        x: (B, C, H, W) of any float dtype.
        bias: (C,).
        skip: (B, D, H, W) in the dtype of x.
        channels: at least so many come out: convolutions want a multiple of 8.

    Returns:
        (B, max(C + D, channels), H, W).

    Raises:
        ValueError: not as many numbers as channels, or a skip of another size or dtype.
    """
    _check("bias_relu_cat", x, bias)
    if skip.dtype != x.dtype or (skip.shape[0], *skip.shape[2:]) != (x.shape[0], *x.shape[2:]):
        raise ValueError(
            f"bias_relu_cat: the skip must be {x.dtype} of the size of {tuple(x.shape)}, got "
            f"{skip.dtype} {tuple(skip.shape)}"
        )
    if not _runs(x, bias, skip):
        return bias_relu_cat_reference(x, bias, skip, channels)
    return torch.ops.dfm.bias_relu_cat(x, bias, skip, channels)


def residual(
    x: Tensor, update: Tensor, bias: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """The sum s = x + update + bias, and relu(scale s + shift), what the next block begins with.

    Args:
        x: (B, C, H, W) of any float dtype.
        update: as x, what the block's last convolution gave without its bias.
        bias: (C,), of that convolution.
        scale: (C,), of the next block's first norm.
        shift: (C,), likewise.

    Returns:
        Both, as x. The second is computed from the sum before that is rounded.

    Raises:
        ValueError: not as many numbers as channels, or an update unlike x.
    """
    _check("residual", x, bias, scale, shift)
    if update.shape != x.shape or update.dtype != x.dtype:
        raise ValueError(
            f"residual: the update must be {x.dtype} {tuple(x.shape)}, got {update.dtype} "
            f"{tuple(update.shape)}"
        )
    if not _runs(x, update, bias, scale, shift):
        return residual_reference(x, update, bias, scale, shift)
    return torch.ops.dfm.residual(x, update, bias, scale, shift)


def epilogue_traffic(values: int, *, read: float, written: float, element_bytes: int) -> Traffic:
    """Of a pass over so many values.

    Args:
        values: of the convolution's output.
        read: values read for each of them.
        written: values written for each.
        element_bytes: of one.
    """
    return Traffic(bytes=round(values * (read + written)) * element_bytes, flops=4 * values)


@torch.library.custom_op("dfm::affine_relu", mutates_args=())
def _affine_relu(x: Tensor, scale: Tensor | None, shift: Tensor) -> Tensor:
    if not _launches(x):
        return _like(x, affine_relu_reference(x, scale, shift))
    out = torch.empty_like(x)
    with on_device_of(x):
        _affine_relu_kernel[(blocks(x.numel(), BLOCK),)](
            x,
            shift if scale is None else scale,
            shift,
            out,
            x.numel(),
            HAS_SCALE=scale is not None,
            C=x.shape[1],
            BLOCK=BLOCK,
            num_warps=WARPS,
        )
    return out


@torch.library.custom_op("dfm::bias_relu_pool", mutates_args=())
def _bias_relu_pool(x: Tensor, bias: Tensor) -> Tensor:
    if not _launches(x):
        return _like(x, bias_relu_pool_reference(x, bias))
    rows, channels, height, width = x.shape
    out = _last(x, (rows, channels, height // 2, width // 2))
    with on_device_of(x):
        _bias_relu_pool_kernel[(blocks(out.numel(), BLOCK),)](
            x,
            bias,
            out,
            out.numel(),
            height,
            width,
            height // 2,
            width // 2,
            C=channels,
            BLOCK=BLOCK,
            num_warps=WARPS,
        )
    return out


@torch.library.custom_op("dfm::bias_relu_cat", mutates_args=())
def _bias_relu_cat(x: Tensor, bias: Tensor, skip: Tensor, channels: int) -> Tensor:
    if not (_launches(x) and _is_dense_last(skip)):
        return _like(x, bias_relu_cat_reference(x, bias, skip, channels))
    rows, new, height, width = x.shape
    out = _last(x, (rows, max(new + skip.shape[1], channels), height, width))
    with on_device_of(x):
        _bias_relu_cat_kernel[(blocks(out.numel(), BLOCK),)](
            x,
            bias,
            skip,
            out,
            out.numel(),
            C=new,
            SKIPPED=skip.shape[1],
            CHANNELS=out.shape[1],
            BLOCK=BLOCK,
            num_warps=WARPS,
        )
    return out


@torch.library.custom_op("dfm::residual", mutates_args=())
def _residual(
    x: Tensor, update: Tensor, bias: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    if not (_launches(x) and _is_dense_last(update)):
        total, activated = residual_reference(x, update, bias, scale, shift)
        return _like(x, total), _like(x, activated)
    total, activated = torch.empty_like(x), torch.empty_like(x)
    with on_device_of(x):
        _residual_kernel[(blocks(x.numel(), BLOCK),)](
            x,
            update,
            bias,
            scale,
            shift,
            total,
            activated,
            x.numel(),
            C=x.shape[1],
            BLOCK=BLOCK,
            num_warps=WARPS,
        )
    return total, activated


@_affine_relu.register_fake
def _(x: Tensor, scale: Tensor | None, shift: Tensor) -> Tensor:
    return torch.empty_like(x)


@_bias_relu_pool.register_fake
def _(x: Tensor, bias: Tensor) -> Tensor:
    return _last(x, (*x.shape[:2], x.shape[2] // 2, x.shape[3] // 2))


@_bias_relu_cat.register_fake
def _(x: Tensor, bias: Tensor, skip: Tensor, channels: int) -> Tensor:
    return _last(x, (x.shape[0], max(x.shape[1] + skip.shape[1], channels), *x.shape[2:]))


@_residual.register_fake
def _(
    x: Tensor, update: Tensor, bias: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


standard_form(torch.ops.dfm.affine_relu.default)(affine_relu_reference)
standard_form(torch.ops.dfm.bias_relu_pool.default)(bias_relu_pool_reference)
standard_form(torch.ops.dfm.bias_relu_cat.default)(bias_relu_cat_reference)
standard_form(torch.ops.dfm.residual.default)(residual_reference)


def _runs(x: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernel takes these maps, channels last, and numbers per channel."""
    if not runs_kernel(x, *others):
        return False
    return _is_dense_last(x) and all(
        other.is_contiguous() if other.ndim == 1 else _is_dense_last(other)
        for other in others
        if other is not None
    )


def _launches(x: Tensor) -> bool:
    return launches_on(x) and _is_dense_last(x)


def _is_dense_last(maps: Tensor) -> bool:
    """Nothing between the channels of a pixel and those of the next one."""
    return maps.numel() > 0 and maps.is_contiguous(memory_format=torch.channels_last)


def _last(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _like(x: Tensor, found: Tensor) -> Tensor:
    """As the operator's fake says that it comes: torch holds them to it."""
    if found.shape == x.shape:
        return torch.empty_like(x).copy_(found)
    return _last(x, tuple(found.shape)).copy_(found)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _channels(numbers: Tensor, like: Tensor) -> Tensor:
    return numbers.to(like.dtype)[:, None, None]


def _check(what: str, x: Tensor, *numbers: Tensor) -> None:
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"{what}: maps must be float (B, C, H, W), got {x.dtype} {tuple(x.shape)}")
    for each in numbers:
        if each.shape != x.shape[1:2]:
            raise ValueError(
                f"{what}: {x.shape[1]} channels need as many numbers, got {tuple(each.shape)}"
            )
