"""Between the pixels that stages pass on and the images that models compute with.

The one place of this conversion: uint8 (B, H, W, 3) RGB on the one side, float (B, 3, H, W) in
[0, 1] on the other, on any device.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfm_engine.errors import ShapeError
from dfm_kernels.to_yuv import rgb_to_yuv


def images_from_frames(
    frames: NDArray[np.uint8] | Tensor, *, device: torch.device | str = "cpu"
) -> Tensor:
    """Frames as a model wants them: v times 1/255.

    The bytes travel to the device, a quarter of what the floats would be.

    Args:
        frames: uint8 (B, H, W, 3); a writable or read-only array, or a tensor anywhere.
        device: where the images shall be.

    Returns:
        float32 (B, 3, H, W), contiguous.

    Raises:
        ShapeError: not uint8 (B, H, W, 3).
    """
    if isinstance(frames, np.ndarray):
        frames = torch.from_numpy(frames if frames.flags.writeable else frames.copy())
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise ShapeError(
            f"frames must be uint8 (B, H, W, 3), got {frames.dtype} {tuple(frames.shape)}"
        )
    # A product: CUDA turns a division by a number into one, and the CPU does not (1 ulp apart).
    return frames.to(device).permute(0, 3, 1, 2).contiguous().to(torch.float32) * (1 / 255)


def frames_from_images(images: Tensor) -> Tensor:
    """Predictions as pixels: 255 p, rounded to nearest, half to even, clamped.

    What is not a number becomes black: a singular jacobian costs its frame, which then fails
    every screening, and no run.

    Args:
        images: float (B, 3, H, W).

    Returns:
        uint8 (B, H, W, 3), contiguous, on the device of `images`.

    Raises:
        ShapeError: not float (B, 3, H, W).
    """
    if not images.is_floating_point() or images.ndim != 4 or images.shape[1] != 3:
        raise ShapeError(
            f"images must be float (B, 3, H, W), got {images.dtype} {tuple(images.shape)}"
        )
    scaled = (images.float() * 255).round().clamp(0, 255).nan_to_num(nan=0.0)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def i420_from_images(images: Tensor) -> Tensor:
    """Predictions as the encoder wants them: `media.encode.rgb_to_i420` of `frames_from_images`.

    In one pass on a GPU, from where half the bytes then travel; the same bytes on every device.

    Args:
        images: float (B, 3, H, W); H and W even.

    Returns:
        uint8 (B, H * 3 // 2, W), contiguous, on the device of `images`.

    Raises:
        ShapeError: not float (B, 3, H, W), or odd sides.
    """
    if not images.is_floating_point():
        raise ShapeError(f"images must be float (B, 3, H, W), got {images.dtype}")
    try:
        return rgb_to_yuv(images)
    except ValueError as error:
        raise ShapeError(str(error)) from error
