"""The generator: source features, moved and partly hidden, become a frame.

Source: FOMM (Siarohin et al. 2019), section 3.2, "occlusion-aware image generation".
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn

from dfm_engine.fomm.blocks import DownBlock, ResBlock, SameBlock, UpBlock, width
from dfm_engine.fomm.config import FommConfig
from dfm_engine.fomm.dense_motion import DenseMotionNetwork
from dfm_engine.fomm.geometry import resize, resize_grid
from dfm_engine.fomm.values import Animation, Keypoints, SourceFeatures
from dfm_kernels.warp import warp


class Generator(nn.Module):
    """Encode (source only) -> warp -> hide -> residual blocks -> decode."""

    def __init__(self, config: FommConfig, *, align_corners: bool) -> None:
        super().__init__()
        part = config.generator
        self.align_corners = align_corners
        self.dense_motion_network = DenseMotionNetwork(config, align_corners=align_corners)
        widths = [
            width(level, block_expansion=part.block_expansion, max_features=part.max_features)
            for level in range(part.num_down_blocks + 1)
        ]
        self.first = SameBlock(config.num_channels, widths[0], kernel_size=7)
        self.down_blocks = nn.ModuleList(
            DownBlock(before, after) for before, after in pairwise(widths)
        )
        self.bottleneck = nn.Sequential(
            OrderedDict((f"r{i}", ResBlock(widths[-1])) for i in range(part.num_bottleneck_blocks))
        )
        climb = widths[::-1]
        self.up_blocks = nn.ModuleList(UpBlock(before, after) for before, after in pairwise(climb))
        self.final = nn.Conv2d(widths[0], config.num_channels, 7, padding=3)

    def encode(self, source: Tensor) -> SourceFeatures:
        """Everything that depends on the source image (B, 3, H, W) alone."""
        encoded = self.first(source)
        for block in self.down_blocks:
            encoded = block(encoded)
        return SourceFeatures(encoded, self.dense_motion_network.shrink(source))

    def animate(
        self, features: SourceFeatures, kp_source: Keypoints, kp_driving: Keypoints
    ) -> Animation:
        """Frames of B rows from source features of B rows; no `deformed`."""
        motion = self.dense_motion_network(features.small, kp_source, kp_driving)
        x = self._warp(features.encoded, motion.deformation, motion.occlusion_map)
        x = self.bottleneck(x)
        for block in self.up_blocks:
            x = block(x)
        return Animation(
            prediction=torch.sigmoid(self.final(x)),
            occlusion_map=motion.occlusion_map,
            deformation=motion.deformation,
            mask=motion.mask,
            sparse_deformed=motion.sparse_deformed,
        )

    def forward(self, source: Tensor, kp_source: Keypoints, kp_driving: Keypoints) -> Animation:
        """The training path: image in, every output out, `deformed` included.

        Args:
            source: (B, 3, H, W) in [0, 1].
            kp_source: B rows.
            kp_driving: B rows.
        """
        animation = self.animate(self.encode(source), kp_source, kp_driving)
        return Animation(
            prediction=animation.prediction,
            occlusion_map=animation.occlusion_map,
            deformation=animation.deformation,
            mask=animation.mask,
            sparse_deformed=animation.sparse_deformed,
            deformed=self._warp(source, animation.deformation, None),
        )

    def _warp(self, maps: Tensor, deformation: Tensor, occlusion_map: Tensor | None) -> Tensor:
        """Features are hidden here, once, and nowhere else."""
        size = maps.shape[2:]
        shown = None if occlusion_map is None else resize(occlusion_map, *size)
        grid = resize_grid(deformation, *size)
        return warp(maps, grid, shown, align_corners=self.align_corners)
