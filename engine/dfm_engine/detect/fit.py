"""Frames of any size as a detector takes them: the one step that every runner shares.

Resized by the crop rule of `dfm_kernels.crop` with the whole frame as the box, rounded half up,
and cut to the middle window where training saw windows. Exported graphs begin behind this step,
at uint8 (B, input_px, input_px, 3), so all runners see the same bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfm_engine.detect.detector import DetectorSpec
from dfm_engine.errors import ShapeError
from dfm_kernels.crop import crop_weights


class FrameFitter:
    """Fits frames to a spec on one device; weights of a size are computed once."""

    def __init__(self, spec: DetectorSpec, device: torch.device | str = "cpu") -> None:
        self.input_px = spec.input_px
        self.side_px = round(spec.input_px / spec.crop)  # as the training's own augmentation
        self.device = torch.device(device)
        self._weights: dict[int, Tensor] = {}

    def __call__(self, frames: Tensor) -> Tensor:
        """Fit frames.

        Args:
            frames: uint8 (B, S, S, 3), on any device.

        Returns:
            uint8 (B, input_px, input_px, 3), contiguous, on the device.

        Raises:
            ShapeError: another shape or dtype.
        """
        if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
            raise ShapeError(
                f"frames must be uint8 (B, S, S, 3), got {frames.dtype} {tuple(frames.shape)}"
            )
        if frames.shape[1] != frames.shape[2]:
            raise ShapeError(
                f"frames must be square, got {tuple(frames.shape)}: cut the face out first"
            )
        frames = frames.to(self.device)
        if frames.shape[1] != self.side_px:
            weights = self._axis(frames.shape[1])
            planes = frames.permute(0, 3, 1, 2).to(torch.float32)
            planes = torch.matmul(torch.matmul(weights, planes), weights.T)
            rounded = (planes + 0.5).floor_().clamp_(0, 255)
            frames = rounded.to(torch.uint8).permute(0, 2, 3, 1)
        first = (self.side_px - self.input_px) // 2
        window = slice(first, first + self.input_px)
        return frames[:, window, window].contiguous()

    def _axis(self, side: int) -> Tensor:
        if side not in self._weights:
            weights = crop_weights(side, 0.0, float(side), self.side_px, torch.float32)
            self._weights[side] = weights.to(self.device)
        return self._weights[side]
