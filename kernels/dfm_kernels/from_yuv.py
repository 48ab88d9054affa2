"""YUV 4:2:0 to RGB, BT.601 limited range, for training: converted, cropped, normalised in one pass.

Chroma is bilinear between its samples' places, the middles of their 2x2 pixels, and

    R = 255/219 (Y - 16) + 1.402 c,  c = 255/224 (Cr - 128);  b = 255/224 (Cb - 128)
    G = 255/219 (Y - 16) - 0.344136 b - 0.714136 c
    B = 255/219 (Y - 16) + 1.772 b                         (each clamped to 0 .. 255, not rounded)

then, where boxes are given, cropped and resized by the triangle filter of `crop.py`, and normalised
by (v / 255 - mean) / std. The layouts of the planes are those of `to_yuv.py`; NVDEC gives nv12.

Source: Recommendation ITU-R BT.601-7, sections 2.5.1 to 2.5.3; what swscale (with centred chroma)
and DALI compute, before they round.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dfm_kernels.crop import Taps, crop_reference, crop_taps
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
from dfm_kernels.to_yuv import Planes

__all__ = ["yuv_to_rgb", "yuv_to_rgb_reference", "yuv_to_rgb_traffic"]

BLOCK_P = 256  # output pixels of a program. Not yet tuned on a GPU.


def yuv_to_rgb_reference(
    frames: Tensor,
    *,
    boxes: Tensor | None = None,
    size: int | tuple[int, int] | None = None,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    planes: Planes = "i420",
) -> Tensor:
    """As `yuv_to_rgb`, in torch; computed in float32, or in float64 where that is asked for."""
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    colours = _full_colours(frames, planes, compute)  # (B, H, W, 3)
    if boxes is not None:
        colours = crop_reference(colours, boxes.cpu(), _side(size))
    return _finish(colours, mean, std, dtype, channels_last)


@jit
def _yuv_to_rgb_kernel(
    frames,
    first_y,
    weight_y,
    first_x,
    weight_x,
    out,
    height,
    width,
    out_height,
    out_width,
    taps_y,
    taps_x,
    scale_r,
    scale_g,
    scale_b,
    bias_r,
    bias_g,
    bias_b,
    out_c,
    out_p,
    IS_RESIZED: tl.constexpr,
    IS_NV12: tl.constexpr,
    IS_BYTES: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    pixels = out_height * out_width
    pixel_blocks = tl.cdiv(pixels, BLOCK_P)
    row = (tl.program_id(0) // pixel_blocks).to(tl.int64)
    pixel = (tl.program_id(0) % pixel_blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = pixel < pixels
    out_x, out_y = pixel % out_width, pixel // out_width
    half_width, half_height = width // 2, height // 2
    luma = frames + row * (height + half_height) * width
    blue = luma + height.to(tl.int64) * width
    if IS_NV12:
        red, chroma_x, chroma_y = blue + 1, 2, width
    else:
        red, chroma_x, chroma_y = blue + half_height * half_width, 1, half_width

    at_y, at_x = row * out_height + out_y, row * out_width + out_x
    if IS_RESIZED:
        from_y = tl.load(first_y + at_y, mask=inside, other=0)
        from_x = tl.load(first_x + at_x, mask=inside, other=0)
    else:
        from_y, from_x = out_y, out_x
    r = tl.zeros((BLOCK_P,), tl.float32)
    g, b = r, r
    for tap_y in range(0, taps_y):
        y = tl.minimum(tl.maximum(from_y + tap_y, 0), height - 1)
        near_y = y // 2
        far_y = near_y + 2 * (y % 2) - 1  # the chroma row on the pixel's side
        far_y = tl.minimum(tl.maximum(far_y, 0), half_height - 1)
        for tap_x in range(0, taps_x):
            x = tl.minimum(tl.maximum(from_x + tap_x, 0), width - 1)
            near_x = x // 2
            far_x = near_x + 2 * (x % 2) - 1
            far_x = tl.minimum(tl.maximum(far_x, 0), half_width - 1)
            # A pixel lies a quarter of a chroma sample from the near one: 9, 3, 3 and 1 sixteenths.
            nn = near_y * chroma_y + near_x * chroma_x
            nf = near_y * chroma_y + far_x * chroma_x
            fn = far_y * chroma_y + near_x * chroma_x
            ff = far_y * chroma_y + far_x * chroma_x
            cb = 0.5625 * tl.load(blue + nn, mask=inside, other=0).to(tl.float32)
            cb += 0.1875 * tl.load(blue + nf, mask=inside, other=0).to(tl.float32)
            cb += 0.1875 * tl.load(blue + fn, mask=inside, other=0).to(tl.float32)
            cb += 0.0625 * tl.load(blue + ff, mask=inside, other=0).to(tl.float32)
            cr = 0.5625 * tl.load(red + nn, mask=inside, other=0).to(tl.float32)
            cr += 0.1875 * tl.load(red + nf, mask=inside, other=0).to(tl.float32)
            cr += 0.1875 * tl.load(red + fn, mask=inside, other=0).to(tl.float32)
            cr += 0.0625 * tl.load(red + ff, mask=inside, other=0).to(tl.float32)
            grey = tl.load(luma + y * width + x, mask=inside, other=0).to(tl.float32)
            grey = (grey - 16.0) * 1.1643835616438356
            cb = (cb - 128.0) * 1.1383928571428572
            cr = (cr - 128.0) * 1.1383928571428572
            tap_r = tl.minimum(tl.maximum(grey + 1.402 * cr, 0.0), 255.0)
            tap_g = grey - 0.3441362862010221 * cb - 0.7141362862010221 * cr
            tap_g = tl.minimum(tl.maximum(tap_g, 0.0), 255.0)
            tap_b = tl.minimum(tl.maximum(grey + 1.772 * cb, 0.0), 255.0)
            if IS_RESIZED:
                share = tl.load(weight_x + at_x * taps_x + tap_x, mask=inside, other=0.0)
                share *= tl.load(weight_y + at_y * taps_y + tap_y, mask=inside, other=0.0)
                r += share * tap_r
                g += share * tap_g
                b += share * tap_b
            else:
                r, g, b = tap_r, tap_g, tap_b

    r, g, b = r * scale_r + bias_r, g * scale_g + bias_g, b * scale_b + bias_b
    if IS_BYTES:
        r, g, b = tl.floor(r + 0.5), tl.floor(g + 0.5), tl.floor(b + 0.5)
    where = out + row * 3 * pixels + pixel.to(tl.int64) * out_p
    tl.store(where, r.to(out.dtype.element_ty), mask=inside)
    tl.store(where + out_c, g.to(out.dtype.element_ty), mask=inside)
    tl.store(where + 2 * out_c, b.to(out.dtype.element_ty), mask=inside)


def yuv_to_rgb(
    frames: Tensor,
    *,
    boxes: Tensor | None = None,
    size: int | tuple[int, int] | None = None,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    planes: Planes = "i420",
) -> Tensor:
    """Stored or decoded pictures as a network wants them: converted, cropped, normalised.

    Args:
        frames: uint8 (B, H * 3 // 2, W); H and W even.
        boxes: (4,) for all or (B, 4): x0 y0 x1 y1 in pixel edges, as for `crop`; None keeps the
            pictures whole and at their size. Boxes on the host cost no synchronisation.
        size: side of the square output, or (h, w); with boxes.
        mean: per colour, of values in [0, 1].
        std: likewise.
        dtype: of the result; uint8 leaves `mean` and `std` out.
        channels_last: the memory format of a float result.
        planes: `i420` or `nv12`.

    Returns:
        float (B, 3, h, w), (v / 255 - mean) / std; or uint8 (B, h, w, 3), rounded half up.

    Raises:
        ValueError: another shape or dtype, odd sides, an empty box, or boxes without a size.
    """
    if (
        frames.dtype != torch.uint8
        or frames.ndim != 3
        or frames.shape[1] % 3
        or frames.shape[2] % 2
    ):
        raise ValueError(
            f"yuv_to_rgb: frames must be uint8 (B, H * 3 // 2, W) of even sides, got "
            f"{frames.dtype} {tuple(frames.shape)}"
        )
    if (boxes is None) != (size is None):
        raise ValueError("yuv_to_rgb: boxes need a size, and a size needs boxes")
    if not runs_kernel(frames) or dtype == torch.float64:
        return yuv_to_rgb_reference(
            frames,
            boxes=boxes,
            size=size,
            mean=mean,
            std=std,
            dtype=dtype,
            channels_last=channels_last,
            planes=planes,
        )
    taps = [] if boxes is None else _taps(frames, boxes, _side(size))
    return torch.ops.dfm.yuv_to_rgb(
        frames, taps, list(mean), list(std), dtype, channels_last, planes
    )


def yuv_to_rgb_traffic(
    rows: int,
    height: int,
    width: int,
    *,
    element_bytes: int,
    out: tuple[int, int] | None = None,
    taps: int = 1,
) -> Traffic:
    """One and a half bytes read per input pixel, three values written per output pixel.

    Per tap 30 for the colours and 6 for their weighted sums; 6 to normalise.
    """
    pixels = rows * height * width
    written = pixels if out is None else rows * out[0] * out[1]
    return Traffic(
        bytes=pixels * 3 // 2 + written * 3 * element_bytes,
        flops=written * (taps * taps * (30 + (6 if out else 0)) + 6),
    )


@torch.library.custom_op("dfm::yuv_to_rgb", mutates_args=())
def _yuv_to_rgb(
    frames: Tensor,
    taps: list[Tensor],
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
    channels_last: bool,
    planes: str,
) -> Tensor:
    if not launches_on(frames):
        return _by_taps(frames, taps, mean, std, dtype, channels_last, planes)
    rows, height, width = frames.shape[0], frames.shape[1] * 2 // 3, frames.shape[2]
    side = _side_of(frames, taps)
    first_y, weight_y, first_x, weight_x = taps or [frames] * 4
    is_bytes = dtype == torch.uint8
    out = _unwritten(frames, side, dtype, channels_last)
    if out.numel() == 0:
        return out
    scale = [1.0] * 3 if is_bytes else [1 / (255 * s) for s in std]
    bias = [0.0] * 3 if is_bytes else [-m / s for m, s in zip(mean, std, strict=True)]
    pixels = side[0] * side[1]
    frames = frames.contiguous()
    with on_device_of(frames):
        _yuv_to_rgb_kernel[(rows * blocks(pixels, BLOCK_P),)](
            frames,
            *(first_y, weight_y, first_x, weight_x),
            out,
            height,
            width,
            *side,
            *((weight_y.shape[2], weight_x.shape[2]) if taps else (1, 1)),
            *scale,
            *bias,
            *((1, 3) if is_bytes or channels_last else (pixels, 1)),
            IS_RESIZED=len(taps) > 0,
            IS_NV12=planes == "nv12",
            IS_BYTES=is_bytes,
            BLOCK_P=BLOCK_P,
        )
    return out


@_yuv_to_rgb.register_fake
def _(
    frames: Tensor,
    taps: list[Tensor],
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
    channels_last: bool,
    planes: str,
) -> Tensor:
    return _unwritten(frames, _side_of(frames, taps), dtype, channels_last)


@standard_form(torch.ops.dfm.yuv_to_rgb.default)
def _by_taps(
    frames: Tensor,
    taps: list[Tensor],
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
    channels_last: bool,
    planes: str,
) -> Tensor:
    """The operator in torch: `yuv_to_rgb_reference` with the resampling matrices given as taps."""
    colours = _full_colours(frames, "nv12" if planes == "nv12" else "i420", torch.float32)
    if taps:
        vertical = _matrices(Taps(*taps[:2]), colours.shape[1])
        horizontal = _matrices(Taps(*taps[2:]), colours.shape[2])
        colours = torch.einsum("byh,bhwc,bxw->byxc", vertical, colours, horizontal)
    return _finish(colours, mean, std, dtype, channels_last)


def _full_colours(frames: Tensor, planes: Planes, dtype: torch.dtype) -> Tensor:
    """(B, H * 3 // 2, W) to (B, H, W, 3) RGB, clamped to 0 .. 255, not rounded."""
    rows, height, width = frames.shape[0], frames.shape[1] * 2 // 3, frames.shape[2]
    halves = frames[:, height:].to(dtype)
    if planes == "nv12":
        chroma = halves.reshape(rows, height // 2, width // 2, 2).permute(0, 3, 1, 2)
    else:
        chroma = halves.reshape(rows, 2, height // 2, width // 2)
    chroma = F.interpolate(chroma, size=(height, width), mode="bilinear", align_corners=False)
    blue, red = ((chroma - 128) * (255 / 224)).unbind(dim=1)
    grey = (frames[:, :height].to(dtype) - 16) * (255 / 219)
    green = grey - (0.114 * 1.772 / 0.587) * blue - (0.299 * 1.402 / 0.587) * red
    return torch.stack([grey + 1.402 * red, green, grey + 1.772 * blue], dim=3).clamp(0, 255)


def _finish(
    colours: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """(B, h, w, 3) of 0 .. 255 to the layout and scale that are wanted."""
    if dtype == torch.uint8:
        return (colours + 0.5).floor().to(torch.uint8).contiguous()
    shift, scale = (
        torch.tensor(list(v), dtype=colours.dtype, device=colours.device) for v in (mean, std)
    )
    images = ((colours / 255 - shift) / scale).to(dtype).permute(0, 3, 1, 2)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return images.contiguous(memory_format=layout)


def _unwritten(
    frames: Tensor, side: tuple[int, int], dtype: torch.dtype, channels_last: bool
) -> Tensor:
    if dtype == torch.uint8:
        return frames.new_empty((frames.shape[0], *side, 3))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = (frames.shape[0], 3, *side)
    return torch.empty(shape, dtype=dtype, device=frames.device, memory_format=layout)


def _side_of(frames: Tensor, taps: list[Tensor]) -> tuple[int, int]:
    """Height and width of the output."""
    if taps:
        return taps[0].shape[1], taps[2].shape[1]
    return frames.shape[1] * 2 // 3, frames.shape[2]


def _side(size: int | tuple[int, int] | None) -> tuple[int, int]:
    if size is None:
        raise ValueError("yuv_to_rgb: boxes need a size")
    return (size, size) if isinstance(size, int) else size


def _taps(frames: Tensor, boxes: Tensor, side: tuple[int, int]) -> list[Tensor]:
    """`first` and `weight` of the rows, then of the columns, on the device of the frames."""
    rows, height, width = frames.shape[0], frames.shape[1] * 2 // 3, frames.shape[2]
    table = boxes.to(torch.float64)
    table = table.expand(rows, 4) if boxes.shape == (4,) else table
    is_box = table.shape == (rows, 4) and bool(
        (table.isfinite().all(1) & (table[:, 2:] > table[:, :2]).all(1)).all()
    )
    if not is_box:
        raise ValueError(
            f"yuv_to_rgb: boxes must be (4,) or ({rows}, 4) with x0 < x1 and y0 < y1, got "
            f"{tuple(boxes.shape)} {boxes.flatten()[:8].tolist()}"
        )
    x0, y0, x1, y1 = table.unbind(dim=1)
    found = (*crop_taps(height, y0, y1, side[0]), *crop_taps(width, x0, x1, side[1]))
    return [part.contiguous().to(frames.device, non_blocking=True) for part in found]


def _matrices(taps: Taps, length_in: int) -> Tensor:
    """(B, size, length_in) float32, with zeros."""
    reach = torch.arange(taps.weight.shape[2], device=taps.first.device)
    index = (taps.first[..., None] + reach).clamp(0, length_in - 1).to(torch.int64)
    matrix = taps.weight.new_zeros(*taps.first.shape, length_in)
    return matrix.scatter_add_(2, index, taps.weight)
