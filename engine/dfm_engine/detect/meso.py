"""Meso-4 and MesoInception-4 as published, with the maps of their piecewise linear head.

Every stage is convolution (with bias) -> ReLU -> batch norm (eps 1e-3) -> max pooling. Ports that
leave out the ReLU inside the inception branches, or the biases, cannot hold the published weights.

Source: Afchar et al. 2018, MesoNet: a compact facial video forgery detection network.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfm_engine.detect.detector import DetectorSpec, ForgeryDetector

_NORM_EPS = 1e-3  # Keras' default; torch's is 1e-5
_SLOPE = 0.1


class Inception(nn.Module):
    """Four branches side by side: 1x1, and 3x3 behind 1x1 with dilation 1, 2 and 3."""

    def __init__(self, channels: int, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        first, *others = widths
        self.branch1 = nn.ModuleList([nn.Conv2d(channels, first, 1)])
        self.branch2, self.branch3, self.branch4 = (
            nn.ModuleList(
                [
                    nn.Conv2d(channels, width, 1),
                    nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation),
                ]
            )
            for dilation, width in enumerate(others, start=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, sum of widths, H, W), after ReLU."""
        results: list[Tensor] = []
        for branch in (self.branch1, self.branch2, self.branch3, self.branch4):
            y = x
            for conv in branch:
                y = F.relu(conv(y))
            results.append(y)
        return torch.cat(results, 1)


class _Conv(nn.Sequential):
    """A convolution that keeps the size, and its ReLU."""

    def __init__(self, before: int, after: int, kernel: int) -> None:
        conv = nn.Conv2d(before, after, kernel, padding=kernel // 2)
        super().__init__(OrderedDict(conv=conv, relu=nn.ReLU()))


class Meso(ForgeryDetector):
    """Four stages, and a head of two dense layers with a LeakyReLU between them.

    Max pooling by 2, 2, 2 and 4 leaves 16 maps of S/32; the published S is 256.
    """

    def __init__(self, spec: DetectorSpec, stages: list[tuple[nn.Module, int]]) -> None:
        super().__init__(spec)
        parts: list[tuple[str, nn.Module]] = []
        for index, ((layer, width), pool) in enumerate(zip(stages, (2, 2, 2, 4), strict=True), 1):
            parts += [
                (f"stage{index}", layer),
                (f"norm{index}", nn.BatchNorm2d(width, eps=_NORM_EPS, momentum=0.01)),
                (f"pool{index}", nn.MaxPool2d(pool)),
            ]
        self.backbone = nn.Sequential(OrderedDict(parts))
        self.side = spec.input_px // 32
        self.width = stages[-1][1]
        self.classifier = nn.Sequential(
            OrderedDict(
                dropout1=nn.Dropout(0.5),
                dense1=nn.Linear(self.width * self.side**2, 16),
                relu=nn.LeakyReLU(_SLOPE),
                dropout2=nn.Dropout(0.5),
                dense2=nn.Linear(16, 1),
            )
        )
        for module in self.modules():  # as Keras starts them: Glorot, biases zero
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    @property
    def head(self) -> nn.Module:
        """Both dense layers."""
        return self.classifier

    def features(self, images: Tensor) -> Tensor:
        """(B, 16, S/32, S/32)."""
        return self.backbone(images)

    def embed(self, features: Tensor) -> Tensor:
        """The map's values in a row, channels first."""
        return features.flatten(1)

    def cam(self, features: Tensor) -> Tensor:
        """See `ForgeryDetector.logits_and_cam`: contribution, in closed form.

        Behind the features, dropout off, logit = w2 D (W1 f + b1) + b2, where D holds the slope of
        every hidden unit at this picture. So the gradient is W1' D w2, and each value of f adds
        its own product. In standard operators, so that it exports.
        """
        dense1, dense2 = self.classifier.dense1, self.classifier.dense2
        assert isinstance(dense1, nn.Linear)
        assert isinstance(dense2, nn.Linear)
        hidden = dense1(features.flatten(1))  # (B, 16)
        one = torch.ones_like(hidden)
        gradient = (torch.where(hidden > 0, one, _SLOPE * one) * dense2.weight) @ dense1.weight
        contribution = (gradient * features.flatten(1)).unflatten(1, features.shape[1:])
        return contribution.sum(1, keepdim=True) * self.side**2  # (B, 1, h, w)


def meso_spec(name: str, input_px: int = 256) -> DetectorSpec:
    """Pixels divided by 255, no more; one logit."""
    return DetectorSpec(name=name, input_px=input_px, head="sigmoid", cam="contribution")


def meso4(spec: DetectorSpec) -> Meso:
    """Four plain convolutions."""
    convs = ((3, 8, 3), (8, 8, 5), (8, 16, 5), (16, 16, 5))
    return Meso(spec, [(_Conv(*conv), conv[1]) for conv in convs])


def mesoinception4(spec: DetectorSpec) -> Meso:
    """Two inception modules, two plain convolutions."""
    return Meso(
        spec,
        [
            (Inception(3, (1, 4, 4, 2)), 11),
            (Inception(11, (2, 4, 4, 2)), 12),
            (_Conv(12, 16, 5), 16),
            (_Conv(16, 16, 5), 16),
        ],
    )
