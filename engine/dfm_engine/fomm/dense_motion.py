"""Dense motion: from sparse keypoint motions to one deformation and an occlusion map.

Each keypoint moves the source by its own affine map; a network looks at the K+1 results (index 0,
the background, does not move) and mixes the maps position by position.

Source: FOMM (Siarohin et al. 2019), equations 4, 6, 8 and section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dfm_engine.fomm.blocks import Hourglass, antialias
from dfm_engine.fomm.config import FommConfig
from dfm_engine.fomm.geometry import (
    coordinate_grid,
    gaussian_heatmaps,
    inverse_2x2,
    product_2x2,
    sample,
)
from dfm_engine.fomm.values import Keypoints


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
        height, width = small.shape[2:]
        motions = sparse_motions(kp_source, kp_driving, height, width)  # (B, K+1, h, w, 2)
        heat = motion_heatmaps(kp_source, kp_driving, height, width, variance=self.kp_variance)
        moved = move_source(small, motions, align_corners=self.align_corners)
        features = self.hourglass(torch.cat([heat, moved], dim=2).flatten(1, 2))
        mask = torch.softmax(self.mask(features), dim=1)  # (B, K+1, h, w)
        occlusion_map = None if self.occlusion is None else torch.sigmoid(self.occlusion(features))
        return DenseMotion(
            deformation=(motions * mask[..., None]).sum(dim=1),  # (B, h, w, 2)
            mask=mask,
            occlusion_map=occlusion_map,
            sparse_deformed=moved,
        )


def sparse_motions(kp_source: Keypoints, kp_driving: Keypoints, height: int, width: int) -> Tensor:
    """(B, K+1, H, W, 2): where each affine motion looks in the source; index 0 is the identity.

    T_k(z) = J_source J_driving^-1 (z - driving_k) + source_k (equation 4), without jacobians
    z - driving_k + source_k.
    """
    grid = coordinate_grid(height, width, like=kp_driving.value)
    offset = grid - kp_driving.value[:, :, None, None]  # (B, K, H, W, 2)
    if kp_source.jacobian is not None and kp_driving.jacobian is not None:
        affine = product_2x2(kp_source.jacobian, inverse_2x2(kp_driving.jacobian))
        affine = affine[:, :, None, None]  # (B, K, 1, 1, 2, 2)
        offset = (affine * offset[..., None, :]).sum(dim=-1)
    motions = offset + kp_source.value[:, :, None, None]
    return torch.cat([grid.expand(len(motions), 1, -1, -1, -1), motions], dim=1)


def motion_heatmaps(
    kp_source: Keypoints, kp_driving: Keypoints, height: int, width: int, *, variance: float
) -> Tensor:
    """(B, K+1, 1, H, W): a bump at each driving point less one at its source point, 0 in front."""
    driving = gaussian_heatmaps(kp_driving.value, height, width, variance=variance)
    source = gaussian_heatmaps(kp_source.value, height, width, variance=variance)
    heat = driving - source
    return torch.cat([torch.zeros_like(heat[:, :1]), heat], dim=1)[:, :, None]


def move_source(small: Tensor, motions: Tensor, *, align_corners: bool) -> Tensor:
    """(B, K+1, 3, H, W): the small source looked up by each of the K+1 motions.

    The motions of a row are stacked below each other, so the source is not copied K+1 times.
    """
    maps = motions.shape[1]
    moved = sample(small, motions.flatten(1, 2), align_corners=align_corners)
    return moved.unflatten(2, (maps, -1)).transpose(1, 2)
