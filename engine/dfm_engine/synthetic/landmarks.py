"""Where the face's points are in the picture, exactly: the renderer's ground truth.

Ten supervision points for keypoint training, in `LANDMARKS` order, and the five points that MTCNN
reports. A point's jacobian is the local affine map from the face at rest to the picture: how the
picture moves when one walks over the resting face in x or in y.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dfm_engine.synthetic import features
from dfm_engine.synthetic.head import HALF_VIEW, Drawn, deform, front, project, turn

__all__ = ["LANDMARKS", "MIRRORED", "Truth", "ground_truth"]

LANDMARKS: tuple[str, ...] = (
    "left_upper_lid",  # left and right of the image
    "right_upper_lid",
    "left_mouth_corner",
    "right_mouth_corner",
    "upper_lip",
    "lower_lip",
    "nose_tip",
    "left_brow",
    "right_brow",
    "chin",
)
MIRRORED: tuple[int, ...] = (1, 0, 3, 2, 4, 5, 6, 8, 7, 9)  # order after a horizontal flip
STEP = 0.02  # head units; jacobians are means over the surface within this of the point


class Truth(NamedTuple):
    """Where B faces are.

    Attributes:
        landmarks: (B, 10, 2) in [-1, 1] of the frame, (x, y).
        jacobians: (B, 10, 2, 2) d(picture x, y) / d(resting x, y), in units of zoom 1: the
            identity for a frontal face at rest.
        mtcnn_points: (B, 5, 2) pixels: left eye, right eye, nose, left and right mouth corner of
            the image.
    """

    landmarks: Tensor
    jacobians: Tensor
    mtcnn_points: Tensor


def ground_truth(drawn: Drawn, size: int) -> Truth:
    """Locate the points of every frame; `size` is the picture's side in pixels."""
    who = drawn.who
    resting = _resting(drawn)
    eyes = torch.stack([torch.cat((s * who["eye_x"], who["eye_y"]), 1) for s in (-1.0, 1.0)], 1)
    steps = resting.new_tensor([(0, 0), (STEP, 0), (-STEP, 0), (0, STEP), (0, -STEP)])
    around = (resting[:, None] + steps[:, None]).flatten(1, 2)  # (B, 5 * 10, 2)
    seen = project(who, turn(drawn, _lift(drawn, torch.cat((around, eyes), dim=1))))
    at, right, left, below, above = seen[:, :-2].unflatten(1, (5, len(LANDMARKS))).unbind(1)
    columns = torch.stack((right - left, below - above), dim=-1)  # (B, 10, 2, 2)
    five = torch.cat((seen[:, -2:], at[:, [6, 2, 3]]), dim=1)
    return Truth(at, columns * (HALF_VIEW / (2 * STEP)), (five + 1.0) * (size / 2))


def _resting(drawn: Drawn) -> Tensor:
    """The ten points as (x, y) on the resting face, (B, 10, 2).

    What is painted after the expression (the mouth) is carried back through it.
    """
    who, does = drawn.who, drawn.does
    zero = torch.zeros_like(who["eye_x"])
    lid = who["eye_y"] + features.lid_edges(who, does, zero).upper
    along = zero + 0.45
    brow_x = who["eye_x"] - 0.185 + 0.37 * along
    brow = features.brow_line(who, does, along)
    middle = features.lip_edges(who, does, zero)
    corner_x = 0.97 * middle.half_width
    corner = features.lip_edges(who, does, corner_x)
    corner_y = 0.5 * (corner.upper_inner + corner.lower_inner)
    moved = {
        2: (-corner_x, corner_y),
        3: (corner_x, corner_y),
        4: (zero, 0.5 * (middle.upper_outer + middle.upper_inner)),
        5: (zero, 0.5 * (middle.lower_inner + middle.lower_outer)),
    }
    fixed = {
        0: (-who["eye_x"], lid),
        1: (who["eye_x"], lid),
        6: (zero, who["nose_y"]),
        7: (-brow_x, brow),
        8: (brow_x, brow),
        9: (zero, zero + 0.90),
    }
    points = [torch.cat((moved | fixed)[k], dim=1) for k in range(len(LANDMARKS))]
    seen = torch.stack(points, dim=1)
    resting = seen
    for _ in range(12):  # the expression moves a point by less than it spreads: this contracts
        resting = seen - (_lift(drawn, resting)[..., :2] - resting)
    is_moved = torch.zeros(len(LANDMARKS), 1, dtype=torch.bool, device=seen.device)
    is_moved[list(moved)] = True
    return torch.where(is_moved, resting, seen)


def _lift(drawn: Drawn, resting: Tensor) -> Tensor:
    """Resting (x, y) of the face to head coordinates after the expression, (B, N, 3)."""
    x, y = resting.unbind(-1)
    return deform(drawn, torch.stack((x, y, front(drawn.who, x, y)), dim=-1))
