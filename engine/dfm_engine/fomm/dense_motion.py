"""Dense motion: from sparse keypoint motions to one deformation and an occlusion map.

Each keypoint moves the source by its own affine map; a network looks at the K+1 results (index 0,
the background, does not move) and mixes the maps position by position.

Source: FOMM (Siarohin et al. 2019), equations 4, 6, 8 and section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from dfm_engine.fomm.blocks import Hourglass, antialias
from dfm_engine.fomm.config import FommConfig
from dfm_engine.fomm.values import Keypoints
from dfm_kernels.deformation import mix_motions
from dfm_kernels.sparse_motion import sparse_motion


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseMotion:
    """The network's outputs; shapes as in `Animation`."""

    deformation: Tensor
    mask: Tensor
    occlusion_map: Tensor | None
    sparse_deformed: Tensor


class DenseMotionNetwork(nn.Module):
    """Hourglass over the K+1 heatmaps and moved sources; heads for mask and occlusion."""

    def __init__(self, config: FommConfig, *, align_corners: bool) -> None:
        super().__init__()
        part = config.generator.dense_motion_params
        self.kp_variance = part.kp_variance
        self.align_corners = align_corners
        self.hourglass = Hourglass(
            (config.num_kp + 1) * (config.num_channels + 1),
            block_expansion=part.block_expansion,
            num_blocks=part.num_blocks,
            max_features=part.max_features,
        )
        features = self.hourglass.channels_out
        self.mask = nn.Conv2d(features, config.num_kp + 1, 7, padding=3)
        self.occlusion: nn.Conv2d | None = None
        if config.generator.estimate_occlusion_map:
            self.occlusion = nn.Conv2d(features, 1, 7, padding=3)
        self.down = antialias(config.num_channels, part.scale_factor)

    def shrink(self, images: Tensor) -> Tensor:
        """The source at the size that this network works at; depends on the source alone."""
        return images if self.down is None else self.down(images)

    def forward(self, small: Tensor, kp_source: Keypoints, kp_driving: Keypoints) -> DenseMotion:
        """Mix the sparse motions.

        Args:
            small: (B, 3, h, w), a source after `shrink`.
            kp_source: B rows.
            kp_driving: B rows, already carried over to the source.
        """
        moved = sparse_motion(
            small,
            kp_source,
            kp_driving,
            variance=self.kp_variance,
            align_corners=self.align_corners,
        )  # (B, (K+1)*(1+3), h, w): each heatmap before its moved source
        features = self.hourglass(moved)
        occlusion = None if self.occlusion is None else self.occlusion(features)
        mixed = mix_motions(self.mask(features), occlusion, kp_source, kp_driving)
        return DenseMotion(
            deformation=mixed.deformation,
            mask=mixed.mask,
            occlusion_map=mixed.occlusion_map,
            sparse_deformed=moved.unflatten(1, (-1, 1 + small.shape[1]))[:, :, 1:],
        )
