"""The discriminator: used while training with the adversarial loss (vox-adv), never to animate.

Source: FOMM (Siarohin et al. 2019), supplementary C; least-squares GAN, no sigmoid at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfm_engine.errors import ShapeError
from dfm_engine.fomm.blocks import width
from dfm_engine.fomm.config import FommConfig
from dfm_engine.fomm.geometry import gaussian_heatmaps
from dfm_engine.fomm.values import Keypoints


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What one scale's discriminator says.

    Attributes:
        features: the output of each block, for feature matching.
        prediction_map: (B, 1, h, w), 1 means real; not squashed.
    """

    features: tuple[Tensor, ...]
    prediction_map: Tensor


class Discriminator(nn.Module):
    """One patch discriminator per scale, under `discs.<scale with '-' for '.'>`."""

    def __init__(self, config: FommConfig) -> None:
        super().__init__()
        self.scales = config.discriminator.scales
        self.discs = nn.ModuleDict(
            {_key(scale): PatchDiscriminator(config) for scale in self.scales}
        )

    def forward(
        self, pyramid: Mapping[float, Tensor], keypoints: Keypoints | None = None
    ) -> dict[float, Judgement]:
        """Judge an image at every scale.

        Args:
            pyramid: scale -> (B, 3, H, W); only the discriminator's own scales are looked at.
            keypoints: of the driving frame; needed where the configuration says `use_kp`.
        """
        return {scale: self.discs[_key(scale)](pyramid[scale], keypoints) for scale in self.scales}


class PatchDiscriminator(nn.Module):
    """4x4 convolutions without padding, each but the last followed by an average of 2x2."""

    def __init__(self, config: FommConfig) -> None:
        super().__init__()
        part = config.discriminator
        self.kp_variance = part.kp_variance
        self.use_kp = part.use_kp
        widths = [
            width(level, block_expansion=part.block_expansion, max_features=part.max_features)
            for level in range(part.num_blocks + 1)
        ]
        widths[0] = config.num_channels + (config.num_kp if part.use_kp else 0)
        self.down_blocks = nn.ModuleList(
            DiscriminatorBlock(
                before,
                after,
                has_norm=level > 0,
                has_pool=level < part.num_blocks - 1,
                has_spectral_norm=part.sn,
            )
            for level, (before, after) in enumerate(pairwise(widths))
        )
        self.conv = _spectral(nn.Conv2d(widths[-1], 1, 1), part.sn)

    def forward(self, images: Tensor, keypoints: Keypoints | None = None) -> Judgement:
        """(B, 3, H, W), and the driving keypoints where `use_kp`, to a judgement."""
        x = images
        if self.use_kp:
            if keypoints is None:
                raise ShapeError("this discriminator has use_kp: pass the driving keypoints too")
            heat = gaussian_heatmaps(keypoints.value, *x.shape[2:], variance=self.kp_variance)
            x = torch.cat([x, heat], dim=1)
        features = []
        for block in self.down_blocks:
            x = block(x)
            features.append(x)
        return Judgement(features=tuple(features), prediction_map=self.conv(x))


class DiscriminatorBlock(nn.Module):
    """Convolution, instance norm (not in the first), LeakyReLU 0.2, average (not in the last)."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        has_norm: bool,
        has_pool: bool,
        has_spectral_norm: bool,
    ) -> None:
        super().__init__()
        self.conv = _spectral(nn.Conv2d(channels_in, channels_out, 4), has_spectral_norm)
        self.norm = nn.InstanceNorm2d(channels_out, affine=True) if has_norm else None
        self.has_pool = has_pool

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H-3, W-3), halved where there is a pool."""
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        x = F.leaky_relu(x, 0.2)
        return F.avg_pool2d(x, 2) if self.has_pool else x


def _spectral(conv: nn.Conv2d, wanted: bool) -> nn.Module:
    # The old form: published checkpoints hold weight_orig, weight_u and weight_v. The newer
    # parametrisation has other keys.
    return torch.nn.utils.spectral_norm(conv) if wanted else conv


def _key(scale: float) -> str:
    return f"{scale:g}".replace(".", "-")
