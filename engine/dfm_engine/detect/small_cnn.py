"""A small convolutional net of our own: trains on one core in a minute, for tests and the demo.

It claims nothing but that a training works. Strided convolutions with batch norm, global average
pooling, one linear layer, so its class activation map is exact. Beside the picture it sees what a
3x3 blur takes away from it: what a generator leaves out is fine texture, and with few people in the
training set a net that must find it by itself learns the people instead (five identities of the
demo: 0.75 of unseen frames right, with the picture alone 0.66).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfm_engine.detect.detector import DetectorSpec, ForgeryDetector

_WIDTHS = (16, 32, 48, 64)
_GAIN = 16.0  # brings the detail of camera noise to the size of the picture's own variation


class SmallCnn(ForgeryDetector):
    """Four stages of 3x3 convolutions with stride 2; 47,394 parameters."""

    def __init__(self, spec: DetectorSpec) -> None:
        super().__init__(spec)
        binomial = torch.tensor([0.25, 0.5, 0.25])
        kernel = -torch.outer(binomial, binomial)
        kernel[1, 1] += 1
        self.detail: Tensor
        self.register_buffer("detail", (_GAIN * kernel).repeat(3, 1, 1, 1))
        layers: list[nn.Module] = []
        before = 6
        for width in _WIDTHS:
            conv = nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        self.backbone = nn.Sequential(*layers)
        self.classifier = nn.Linear(before, spec.logits)

    @property
    def head(self) -> nn.Linear:
        """The linear layer."""
        return self.classifier

    def features(self, images: Tensor) -> Tensor:
        """(B, 64, S/16, S/16); the outermost pixels have no detail and are left out."""
        detail = F.conv2d(images, self.detail, groups=3)  # (B, 3, S - 2, S - 2)
        return self.backbone(torch.cat([images[:, :, 1:-1, 1:-1], detail], 1))

    def embed(self, features: Tensor) -> Tensor:
        """The mean of every map, (B, 64)."""
        return features.mean((2, 3))

    def cam(self, features: Tensor) -> Tensor:
        """See `ForgeryDetector.logits_and_cam`: exact."""
        return F.conv2d(features, self.head.weight[:, :, None, None])


def small_cnn_spec(input_px: int = 256) -> DetectorSpec:
    """Pixels in [-1, 1]."""
    half = (0.5, 0.5, 0.5)
    return DetectorSpec(name="small-cnn", input_px=input_px, mean=half, std=half)
