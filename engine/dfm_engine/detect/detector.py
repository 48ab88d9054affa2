"""What every forgery detector is: an `nn.Module` with a spec, logits, and a class activation map.

Images go in normalised, (B, 3, S, S); logits come out. Index 1 is *fake* for two logits; one
logit is that of fake. Where the published weights say otherwise, they are turned on loading.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dfm_engine.errors import ShapeError, UsageError

Head = Literal["sigmoid", "softmax"]
Cam = Literal["exact", "contribution", "gradient"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorSpec:
    """What has to be known to feed a detector and to read what it says.

    Attributes:
        name: of the architecture; `create_detector` knows it.
        input_px: side S of the square input.
        mean: per channel, subtracted from pixels in [0, 1].
        std: per channel, what is left is divided by it.
        head: one logit and a sigmoid, or two and a softmax.
        cam: how its map is made; see `ForgeryDetector.logits_and_cam`.
        crop: the input is the middle window of a larger picture, of which its side is this share;
            training with random windows sets it.
    """

    name: str
    input_px: int
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    head: Head = "softmax"
    cam: Cam = "exact"
    crop: float = 1.0

    def __post_init__(self) -> None:
        if not (self.input_px > 0 and len(self.mean) == len(self.std) == 3 and min(self.std) > 0):
            raise UsageError(
                f"detector {self.name!r}: needs input_px above 0 and three means and deviations "
                f"above 0, found {self.input_px}, {self.mean}, {self.std}"
            )
        if not 0 < self.crop <= 1:
            raise UsageError(f"detector {self.name!r}: crop must be within 0..1, found {self.crop}")

    @property
    def logits(self) -> int:
        """How many the net gives: 1 or 2."""
        return 1 if self.head == "sigmoid" else 2


class ForgeryDetector(nn.Module):
    """A net that tells fake faces from real ones; subclasses fill in the four parts.

    Attributes:
        spec: how to feed it.
        weights_sha256: of the file; of the tensors where there was none.
    """

    def __init__(self, spec: DetectorSpec) -> None:
        super().__init__()
        self.spec = spec
        self.weights_sha256 = ""

    @property
    def head(self) -> nn.Module:
        """The layers behind the last feature map; everything else is the backbone."""
        raise NotImplementedError

    def features(self, images: Tensor) -> Tensor:
        """The last feature map, (B, C, h, w) (tokens: whatever `embed` takes)."""
        raise NotImplementedError

    def embed(self, features: Tensor) -> Tensor:
        """What the head sees of a feature map, (B, D)."""
        raise NotImplementedError

    def cam(self, features: Tensor) -> Tensor:
        """The map of each logit over a feature map, (B, logits, h, w)."""
        raise NotImplementedError

    def translate(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Entries of another project's file in this net's names and shapes."""
        return state

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (B, 1) or (B, 2), of normalised images (B, 3, S, S)."""
        return self.features_and_logits(images)[1]

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The last feature map and the logits."""
        self._check(images)
        features = self.features(images)
        return features, self.head(self.embed(features))

    def logits_and_cam(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and per logit where in the picture it comes from.

        In evaluation mode, for every picture and logit:

        - `exact` (global average pooling and a linear layer, which commute: the layer as a 1x1
          convolution): mean over the map + bias = logit;
        - `contribution` (a piecewise linear head, as Meso's): local gradient times activation;
          mean over the map + the bias terms that are active = logit;
        - `gradient` (any other net): the same product by backpropagation, a first-order
          approximation; it needs autograd, so it is not exported.

        Args:
            images: normalised, (B, 3, S, S).

        Returns:
            (B, logits) and (B, logits, h, w).

        Source: Zhou et al. 2016, Learning deep features for discriminative localization.
        """
        features, logits = self.features_and_logits(images)
        return logits, self.cam(features)

    def _check(self, images: Tensor) -> None:
        side = self.spec.input_px
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, side, side):
            raise ShapeError(
                f"{self.spec.name} takes images (B, 3, {side}, {side}), got {tuple(images.shape)}"
            )


def fake_probability(logits: Tensor) -> Tensor:
    """The probability of fake, (B,) in [0, 1], of logits (B, 1) or (B, 2).

    Raises:
        ShapeError: another shape.
    """
    if logits.ndim != 2 or logits.shape[1] not in (1, 2):
        raise ShapeError(f"logits must be (B, 1) or (B, 2), got {tuple(logits.shape)}")
    if logits.shape[1] == 1:
        return torch.sigmoid(logits[:, 0])
    return torch.sigmoid(logits[:, 1] - logits[:, 0])
