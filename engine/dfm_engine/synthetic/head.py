"""The shape of a head and how it moves: closed-form surfaces, expressions, pose, camera.

The face is a height field z(x, y) on the front of an egg, so the three-dimensional place of a
feature follows from its (x, y) alone; `landmarks.py` relies on that. Everything is a plain
function of tensors (B, N): B frames, N points; parameters come as (B, 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dfm_engine.synthetic.state import STATE_FIELDS

__all__ = [
    "HALF_VIEW",
    "Drawn",
    "deform",
    "front",
    "hairiness",
    "project",
    "rotate",
    "rotation",
    "turn",
]

HALF_VIEW = 1.36  # head units from the frame's centre to its edge at zoom 1
VIEW_CENTRE_Y = -0.01  # height of the frame's centre
PIVOT = (0.0, 0.75, -0.25)  # the head turns about the top of the neck


@dataclass(frozen=True, slots=True)
class Drawn:
    """Who (identity values, (B, 1) or (B, 3)) does what (state values, (B, 1)), frame by frame."""

    who: dict[str, Tensor]
    does: dict[str, Tensor]

    @classmethod
    def of(cls, values: dict[str, Tensor], states: Tensor) -> Drawn:
        """Take identity values (B,) or (B, C) and states (B, len(STATE_FIELDS))."""
        return cls(
            {name: v[:, None] if v.ndim == 1 else v for name, v in values.items()},
            {name: states[:, i : i + 1] for i, name in enumerate(STATE_FIELDS)},
        )

    def __getitem__(self, rows: slice) -> Drawn:
        return Drawn(
            {name: v[rows] for name, v in self.who.items()},
            {name: v[rows] for name, v in self.does.items()},
        )


def smooth(low: float | Tensor, high: float | Tensor, x: Tensor) -> Tensor:
    """0 below `low`, 1 above `high`, a cubic between."""
    t = ((x - low) / (high - low)).clamp(0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def bell(x: Tensor, width: float | Tensor) -> Tensor:
    """exp(-(x / width)^2)."""
    return torch.exp(-((x / width) ** 2))


def width_at(who: dict[str, Tensor], y: Tensor) -> Tensor:
    """Half-axis in x of the head's horizontal section at height y."""
    low = smooth(0.0, 0.95, y)
    return who["head_width"] * (
        1.02 + 0.10 * smooth(0.0, 0.9, -y) - who["jaw_taper"] * low + 0.04 * bell(y - 0.62, 0.2)
    )


def front(who: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Height z of the bare face at (x, y), at rest."""
    sx = x / width_at(who, y)
    bulk = (1.0 - (sx * sx + y * y).clamp(max=1.0) ** 1.5).clamp(min=1e-6).sqrt()
    side = x.abs()
    nose_y, nose_width = who["nose_y"], who["nose_width"]
    along = smooth(-0.12, nose_y, y)
    ridge = (0.12 * smooth(-0.34, -0.12, y) + 0.88 * along) * (
        1.0 - smooth(nose_y + 0.015, nose_y + 0.10, y)
    )
    relief = who["nose_length"] * 0.82 * ridge * bell(x, 0.052 + 0.038 * along)
    relief = relief + 0.055 * bell(x, 0.075) * bell(y - nose_y + 0.01, 0.07)
    relief = relief + 0.075 * bell(side - nose_width * 0.88, 0.048) * bell(y - nose_y - 0.03, 0.052)
    relief = relief - 0.075 * bell(side - who["eye_x"], 0.17) * bell(y - who["eye_y"], 0.12)
    relief = relief + 0.035 * bell(side - 0.27, 0.17) * bell(y - who["brow_y"] + 0.01, 0.075)
    relief = relief + who["cheek"] * bell(side - 0.38, 0.19) * bell(y - 0.27, 0.17)
    relief = relief + 0.055 * bell(x, 0.27) * bell(y - who["mouth_y"], 0.13)
    relief = relief + who["chin"] * bell(x, who["chin_width"]) * bell(y - 0.90, 0.15)
    return who["depth"] * bulk + relief * smooth(0.12, 0.45, bulk)


def hair_line(who: dict[str, Tensor], x: Tensor, z: Tensor, wisps: Tensor | float) -> Tensor:
    """Height y above which hair grows, by direction around the head; `wisps` roughens it."""
    around = torch.atan2(x.abs(), z)  # 0 front .. pi back
    is_long = (who["long_hair"] > 0).float()
    fringe = who["hairline"] + 0.05 * smooth(0.25, 0.65, around) * (1.0 - is_long)
    # bangs hang evenly, or are swept to one side of the parting
    swept = 0.25 + 0.75 * smooth(-0.45, 0.05, x * who["parting"].sign())
    swept = torch.where(who["parting"] == 0, torch.ones_like(swept), swept)
    fringe = fringe + who["bangs"] * swept * (who["brow_y"] - 0.06 - fringe)
    # sideburn before the ear, the ear left free, the nape behind; long hair covers all three
    burn = who["sideburn"] + 0.40 * is_long
    lock = 0.55 * is_long
    open_from = 0.80 - 0.14 * is_long
    line = fringe + (burn - fringe) * smooth(open_from, open_from + 0.42, around)
    over_ear = torch.minimum(burn, who["eye_y"] - 0.10 + 2.0 * is_long)
    line = line + (over_ear - burn) * smooth(1.30, 1.42, around) + lock * smooth(1.0, 1.45, around)
    line = line + (0.55 - over_ear).clamp(min=0.0) * smooth(1.85, 2.1, around)
    line = line.clamp(max=0.70)  # none under the chin
    return line + (0.012 + 0.016 * who["bangs"]) * wisps


def hairiness(
    who: dict[str, Tensor], rest: Tensor, *, soft: float | Tensor, wisps: Tensor | float = 0.0
) -> Tensor:
    """Cover by scalp hair at rest points (..., 3), 0..1; `soft` is the half width of its edge."""
    x, y, z = rest.unbind(-1)
    line = hair_line(who, x, z, wisps)
    return who["has_hair"] * smooth(-soft, soft, line - y)


def deform(drawn: Drawn, rest: Tensor) -> Tensor:
    """Move points of the head, (B, N, 3), from rest into the expression."""
    who, does = drawn.who, drawn.does
    x, y, z = rest.unbind(-1)
    facing = smooth(-0.25, 0.25, z)
    low = smooth(who["mouth_y"] - 0.13, who["mouth_y"] + 0.14, y)
    jaw = does["jaw"] * low * facing * (1.0 - 0.75 * smooth(0.25, 0.7, x.abs()))
    cheek = does["smile"] * bell(x.abs() - 0.36, 0.15) * bell(y - 0.40, 0.14) * facing
    corner = does["smile"] * bell(x.abs() - who["mouth_width"], 0.14) * facing
    corner = corner * bell(y - who["mouth_y"], 0.14)
    return torch.stack(
        (
            x + torch.tanh(x / 0.08) * (0.030 * corner + 0.010 * cheek),
            y + 0.20 * jaw - 0.035 * cheek - 0.03 * corner,
            z - 0.07 * jaw + 0.05 * cheek - 0.02 * corner,
        ),
        dim=-1,
    )


def rotation(does: dict[str, Tensor]) -> Tensor:
    """Head rotation, (B, 3, 3): roll * pitch * yaw, acting on columns (x, y, z)."""
    yaw, pitch, roll = (
        does[name][:, 0] * (math.pi / 180) for name in ("yaw_deg", "pitch_deg", "roll_deg")
    )
    one, nil = torch.ones_like(yaw), torch.zeros_like(yaw)

    def matrix(*entries: Tensor) -> Tensor:
        return torch.stack(entries, dim=-1).view(-1, 3, 3)

    turn_y = matrix(yaw.cos(), nil, yaw.sin(), nil, one, nil, -yaw.sin(), nil, yaw.cos())
    turn_x = matrix(one, nil, nil, nil, pitch.cos(), pitch.sin(), nil, -pitch.sin(), pitch.cos())
    turn_z = matrix(roll.cos(), -roll.sin(), nil, roll.sin(), roll.cos(), nil, nil, nil, one)
    return turn_z @ turn_x @ turn_y


def rotate(drawn: Drawn, vectors: Tensor) -> Tensor:
    """Rotate (B, N, 3) by the head's rotation.

    Written out: a library's matrix product may round differently for another batch size.
    """
    matrix = rotation(drawn.does)[:, None]  # (B, 1, 3, 3)
    x, y, z = vectors.unsqueeze(-2).unbind(-1)
    return matrix[..., 0] * x + matrix[..., 1] * y + matrix[..., 2] * z


def turn(drawn: Drawn, points: Tensor, share: Tensor | None = None) -> Tensor:
    """Carry head points (B, N, 3) into the world by the head's pose.

    Args:
        drawn: the frames.
        points: in head coordinates.
        share: (B, N) how far a point follows the head, 1 fully, 0 stays with the body; None is 1.
    """
    pivot = points.new_tensor(PIVOT)
    turned = rotate(drawn, points - pivot) + pivot
    moved = turned if share is None else points + share[..., None] * (turned - points)
    shift = torch.cat(
        (drawn.does["shift_x"], drawn.does["shift_y"], torch.zeros_like(drawn.does["shift_x"])), 1
    )
    return moved + shift[:, None]


def project(who: dict[str, Tensor], world: Tensor) -> Tensor:
    """World points (B, N, 3) to (x, y) in [-1, 1] of the frame: an orthographic camera."""
    centre = torch.stack((who["shift"][:, 0], VIEW_CENTRE_Y + who["shift"][:, 1]), dim=-1)
    return (world[..., :2] - centre[:, None]) * (who["zoom"] / HALF_VIEW)[..., None]
