"""The random warp that keypoints must follow: affine plus thin-plate spline.

Keypoints of a warped frame, mapped back through the warp, must be the keypoints of the frame
itself; the derivative of the warp links the jacobians in the same way. In: a seed and the strength
of the warp. Out: `Warp`, which samples frames, maps coordinates and knows its own derivative.

Source: FOMM (Siarohin et al. 2019), section 3.1 and the transform of its training code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dfm_engine.errors import ShapeError
from dfm_engine.fomm.geometry import coordinate_grid

_LOG_EPS = 1e-6  # keeps r^2 ln r finite at a control point; the published value


@dataclass(frozen=True, slots=True)
class Warp:
    """One affine plus spline warp per frame: W(z) = A z + t + sum_c w_c r_c^2 ln(r_c + 1e-6).

    r_c is the L1 distance to control point c; the spline term is added to x and to y alike.

    Attributes:
        theta: (B, 2, 3) the affine part [A | t].
        control_points: (1, P, P, 2) (x, y) in [-1, 1].
        control_params: (B, 1, P * P) the weights w_c.
    """

    theta: Tensor
    control_points: Tensor
    control_params: Tensor

    def __post_init__(self) -> None:
        points = self.control_points.shape[1] * self.control_points.shape[2]
        rows = self.theta.shape[0]
        if self.theta.shape[1:] != (2, 3) or self.control_params.shape != (rows, 1, points):
            raise ShapeError(
                "theta (B, 2, 3), control_points (1, P, P, 2) and control_params (B, 1, P*P) "
                f"disagree: {tuple(self.theta.shape)}, {tuple(self.control_points.shape)}, "
                f"{tuple(self.control_params.shape)}"
            )

    def __repr__(self) -> str:
        return f"Warp(theta={tuple(self.theta.shape)}, points={self.control_points.shape[1]})"

    def to(self, device: torch.device | str) -> Warp:
        """The same warp on another device."""
        return Warp(
            self.theta.to(device), self.control_points.to(device), self.control_params.to(device)
        )

    def coordinates(self, points: Tensor) -> Tensor:
        """Map points (B, N, 2) in [-1, 1] through the warp."""
        affine = torch.einsum("bij,bnj->bni", self.theta[:, :, :2], points)
        distance, _ = self._distances(points)
        spline = distance.square() * torch.log(distance + _LOG_EPS)  # (B, N, P*P)
        spline = (spline * self.control_params).sum(-1, keepdim=True)  # (B, N, 1)
        return affine + self.theta[:, None, :, 2] + spline

    def jacobian(self, points: Tensor) -> Tensor:
        """The derivative dW/dz at points (B, N, 2), in closed form: (B, N, 2, 2)."""
        distance, sign = self._distances(points)
        slope = 2 * distance * torch.log(distance + _LOG_EPS)
        slope = slope + distance.square() / (distance + _LOG_EPS)
        # d r / dx = sign(x - c_x): the spline moves x and y alike, so both rows are equal
        gradient = ((slope * self.control_params).unsqueeze(-1) * sign).sum(2)  # (B, N, 2)
        return self.theta[:, None, :, :2] + gradient.unsqueeze(2)

    def frames(self, images: Tensor, *, align_corners: bool) -> Tensor:
        """Sample images (B, C, H, W) at the warped grid, reflecting at the border."""
        rows, _, height, width = images.shape
        grid = coordinate_grid(height, width, like=self.theta)
        warped = self.coordinates(grid.reshape(1, -1, 2).expand(rows, -1, -1))
        return F.grid_sample(
            images,
            warped.reshape(rows, height, width, 2).to(images.dtype),
            mode="bilinear",
            padding_mode="reflection",
            align_corners=align_corners,
        )

    def _distances(self, points: Tensor) -> tuple[Tensor, Tensor]:
        control = self.control_points.reshape(1, 1, -1, 2)
        offset = points.unsqueeze(2) - control  # (B, N, P*P, 2)
        return offset.abs().sum(-1), torch.sign(offset)


def draw_warp(
    rows: int,
    *,
    rng: np.random.Generator,
    sigma_affine: float = 0.05,
    sigma_tps: float = 0.005,
    points_tps: int = 5,
) -> Warp:
    """Draw one warp per row, on the CPU, float32; the defaults are the published strengths."""
    identity = np.eye(2, 3)
    theta = identity + rng.normal(0.0, sigma_affine, (rows, 2, 3))
    params = rng.normal(0.0, sigma_tps, (rows, 1, points_tps * points_tps))
    return Warp(
        torch.from_numpy(theta.astype(np.float32)),
        coordinate_grid(points_tps, points_tps, like=torch.empty(0)).unsqueeze(0),
        torch.from_numpy(params.astype(np.float32)),
    )
