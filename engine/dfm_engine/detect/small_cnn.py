"""A small convolutional net of our own: trains on one core in seconds, for tests and the demo.

It claims nothing but that a training works: strided convolutions with batch norm, global average
pooling, one linear layer, so its class activation map is exact.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dfm_engine.detect.detector import DetectorSpec, ForgeryDetector

_WIDTHS = (16, 32, 48, 64)


class SmallCnn(ForgeryDetector):
    """Four stages of 3x3 convolutions with stride 2; about 49,000 parameters."""

    def __init__(self, spec: DetectorSpec) -> None:
        super().__init__(spec)
        layers: list[nn.Module] = []
        before = 3
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
        """(B, 64, S/16, S/16)."""
        return self.backbone(images)

    def embed(self, features: Tensor) -> Tensor:
        """The mean of every map, (B, 64)."""
        return features.mean((2, 3))

    def cam(self, features: Tensor) -> Tensor:
        """See `ForgeryDetector.logits_and_cam`: exact."""
        return F.conv2d(features, self.head.weight[:, :, None, None])


def small_cnn_spec(input_px: int = 128) -> DetectorSpec:
    """Pixels in [-1, 1]."""
    half = (0.5, 0.5, 0.5)
    return DetectorSpec(name="small-cnn", input_px=input_px, mean=half, std=half)
