"""Detector runners without a network: what they say of a picture can be computed by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from dfm_engine.detect.detector import DetectorSpec
from dfm_engine.detect.runner import DetectorOutput


class PixelRunner:
    """Says fake by the difference of the lower left quarter and the rest of a picture.

    p = sigmoid(gain * (mean of the quarter - mean of the rest) / 255 + bias); its map of fake is
    2 x 2 and has all of the logit but the bias in the lower left.
    """

    name = "pixels-cpu"
    weights_sha256 = "ab" * 32
    device = torch.device("cpu")

    def __init__(self, *, gain: float = 200.0, bias: float = 0.0, two: bool = False) -> None:
        head = "softmax" if two else "sigmoid"
        self.spec = DetectorSpec(name="pixels", input_px=32, head=head, cam="exact")
        self.gain, self.bias, self.two = gain, bias, two
        self.max_batch = 7
        self.batches: list[int] = []

    def run(self, frames: Tensor) -> DetectorOutput:
        assert frames.dtype == torch.uint8
        assert frames.ndim == 4
        assert 0 < len(frames) <= self.max_batch
        self.batches.append(len(frames))
        half = frames.shape[1] // 2
        pixels = frames.double()
        quarter = pixels[:, half:, :half].mean((1, 2, 3))
        others = (pixels.mean((1, 2, 3)) * 4 - quarter) / 3
        evidence = self.gain * (quarter - others) / 255
        cam = torch.zeros(len(frames), 1, 2, 2)
        cam[:, 0, 1, 0] = 4 * evidence
        logits = (evidence + self.bias)[:, None].float()
        if self.two:
            return DetectorOutput(
                torch.cat([-logits / 2, logits / 2], 1), torch.cat([-cam / 2, cam / 2], 1)
            )
        return DetectorOutput(logits, cam)
