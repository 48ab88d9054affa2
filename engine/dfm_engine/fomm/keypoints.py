"""The keypoint detector: where the K points of a face are, and the local affine map around each.

Source: FOMM (Siarohin et al. 2019), section 3.1; keys and sizes of the published checkpoints.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dfm_engine.fomm.blocks import Hourglass, antialias
from dfm_engine.fomm.config import FommConfig
from dfm_engine.fomm.values import Keypoints
from dfm_kernels import softargmax


class KeypointDetector(nn.Module):
    """Anti-alias, hourglass, two 7x7 heads, soft-argmax.

    The heads have no padding (`pad` 0), so a 64x64 map gives a 58x58 heatmap, and the
    coordinates of the soft-argmax span [-1, 1] over those 58 positions.
    """

    def __init__(self, config: FommConfig) -> None:
        super().__init__()
        part = config.kp_detector
        self.temperature = part.temperature
        self.num_kp = config.num_kp
        self.predictor = Hourglass(
            config.num_channels,
            block_expansion=part.block_expansion,
            num_blocks=part.num_blocks,
            max_features=part.max_features,
        )
        features = self.predictor.channels_out
        self.kp = nn.Conv2d(features, config.num_kp, 7, padding=part.pad)
        self.jacobian: nn.Conv2d | None = None
        if config.estimate_jacobian:
            maps = 1 if part.single_jacobian_map else config.num_kp
            self.jacobian = nn.Conv2d(features, 4 * maps, 7, padding=part.pad)
            with torch.no_grad():  # training starts from the identity
                self.jacobian.weight.zero_()
                self.jacobian.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 1.0]).repeat(maps))  # pyright: ignore[reportOptionalMemberAccess]
        self.down = antialias(config.num_channels, part.scale_factor)

    def forward(self, images: Tensor) -> Keypoints:
        """(B, 3, H, W) in [0, 1] to keypoints of B rows; trains and infers alike."""
        small = images if self.down is None else self.down(images)
        features = self.predictor(small)
        jacobian_map = None if self.jacobian is None else self.jacobian(features)
        return soft_argmax(self.kp(features), jacobian_map, temperature=self.temperature)


def soft_argmax(logits: Tensor, jacobian_map: Tensor | None, *, temperature: float) -> Keypoints:
    """The mean position under each heatmap, and the mean jacobian there; see `dfm_kernels`."""
    return Keypoints(*softargmax.soft_argmax(logits, jacobian_map, temperature=temperature))
