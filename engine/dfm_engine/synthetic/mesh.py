"""The head, neck, shoulders, hair and ears as one triangle mesh, the same for every identity.

Every part is a grid of points; parts that an identity lacks shrink to nothing, so a batch of
different people has one topology. In: identities and states. Out: posed points and what the
painter needs at each of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from dfm_engine.synthetic import head
from dfm_engine.synthetic.head import Drawn, smooth

__all__ = ["Mesh", "Part", "Topology", "build_mesh", "topology"]


class Part:
    """What a triangle belongs to."""

    HEAD, HAIR, EAR, NECK, CLOTH, FRAME = range(6)


class Mesh(NamedTuple):
    """Posed points.

    Attributes:
        world: (B, V, 3) float32 head units, before the camera.
        attributes: (B, V, 9): rest position (3), expression position (3), world normal (3).
    """

    world: Tensor
    attributes: Tensor


@dataclass(frozen=True, slots=True)
class Topology:
    """What is the same in all frames.

    Attributes:
        triangles: (F, 3) int64.
        part_or_none: (1 + F,) int64, a value of `Part` for each triangle after a -1 for none.
        skull: (n, n, 3) directions on the unit sphere, the head's grid.
        ball: (M, 3) directions, the grid of each ellipsoid.
    """

    triangles: Tensor
    part_or_none: Tensor
    skull: Tensor
    ball: Tensor


_SKULL_N, _BALL_N = 60, 15
_NECK_ROWS, _NECK_COLUMNS, _CLOTH_ROWS, _CLOTH_COLUMNS = 10, 15, 12, 25
_BALLS = (Part.HAIR, Part.HAIR, Part.HAIR, Part.HAIR, Part.EAR, Part.EAR)


@lru_cache(maxsize=4)
def topology(device: torch.device) -> Topology:
    """The one topology, on `device`."""
    skull, ball = _directions(_SKULL_N, 2.35, 0.55), _directions(_BALL_N, 2.1, 1.0)
    triangles: list[Tensor] = []
    parts: list[Tensor] = []
    start = 0

    def add(rows: int, columns: int, part: int, keep: Tensor | None = None) -> None:
        nonlocal start
        faces = _grid_triangles(rows, columns)
        if keep is not None:
            faces = faces[keep.flatten()[faces].all(dim=1)]
        triangles.append(faces + start)
        parts.append(torch.full((len(faces),), part))
        start += rows * columns

    add(_SKULL_N, _SKULL_N, Part.HEAD, _within(_SKULL_N, 2.35, 0.55, 2.4))
    for part in _BALLS:
        add(_BALL_N, _BALL_N, part, _within(_BALL_N, 2.1, 1.0, 2.2))
    add(_NECK_ROWS, _NECK_COLUMNS, Part.NECK)
    add(_CLOTH_ROWS, _CLOTH_COLUMNS, Part.CLOTH)
    for _ in range(2):  # arms of the glasses, seen from both sides
        add(2, 2, Part.FRAME)
        triangles.append(triangles[-1][:, [0, 2, 1]])
        parts.append(parts[-1])
    return Topology(
        torch.cat(triangles).to(device),
        torch.cat([torch.tensor([-1]), *parts]).to(device),
        skull.to(device),
        ball.flatten(0, 1).to(device),
    )


def build_mesh(drawn: Drawn, top: Topology) -> Mesh:
    """Shape, express and pose the mesh of every frame."""
    who = drawn.who
    batch = len(who["zoom"])
    rest, shaped = _skull(who, top.skull)
    posed = head.deform(drawn, shaped)
    normals = _grid_normals(posed.unflatten(1, (_SKULL_N, _SKULL_N))).flatten(1, 2)

    # of each part: points at rest, expressed, normals, and how far it follows the head
    parts = [(rest, posed, normals, torch.ones_like(rest[..., 0]))]
    for kind, (centre, radii) in zip(_BALLS, _ball_places(who), strict=True):
        points = top.ball * radii[:, None] + centre[:, None]
        hanging = 0.75 * smooth(0.55, 1.25, points[..., 1]) if kind == Part.HAIR else 0.0
        outward = top.ball / radii.clamp(min=1e-4)[:, None]
        parts.append((points, points, outward, torch.ones_like(points[..., 0]) - hanging))
    neck, outward, follow = _neck(who)
    parts.append((neck, neck, outward, follow))
    cloth, outward = _cloth(who)
    parts.append((cloth, cloth, outward, torch.zeros_like(cloth[..., 0])))
    arms = _arms(who)
    outward = arms.sign() * arms.new_tensor((1.0, 0.0, 0.0))
    parts.append((arms, arms, outward, torch.ones_like(arms[..., 0])))

    rests, expressed, normal, share = (
        torch.cat([each.expand(batch, *each.shape[1:]) for each in column], dim=1)
        for column in zip(*parts, strict=True)
    )
    world = head.turn(drawn, expressed, share)
    turned = head.rotate(drawn, normal)
    normal = normal + share[..., None] * (turned - normal)
    normal = torch.nn.functional.normalize(normal, dim=-1)
    return Mesh(world, torch.cat((rests, expressed, normal), dim=-1))


def _skull(who: dict[str, Tensor], directions: Tensor) -> tuple[Tensor, Tensor]:
    """Rest points of the bare head and the same with the hair's volume, (B, n * n, 3) each."""
    sx, sy, sz = directions.flatten(0, 1).unbind(-1)  # (n * n,)
    y = sy.expand(len(who["zoom"]), -1)
    x = sx * head.width_at(who, y)
    ahead = head.front(who, x, y)
    behind = -0.98 * who["depth"] * (1.0 - sx * sx - sy * sy).clamp(min=0.0).sqrt()
    rest = torch.stack((x, y, torch.where(sz > 0, ahead, behind)), dim=-1)
    # averaged around the head, because the grid is too coarse for an upright edge of hair
    turned = [_turned(rest, angle) for angle in (-0.15, -0.05, 0.05, 0.15)]
    cover = torch.stack([head.hairiness(who, points, soft=0.09) for points in turned]).mean(0)
    volume = who["hair_thick"] * cover * (1.0 + 0.35 * smooth(0.2, 1.0, -y))
    return rest, rest + volume[..., None] * torch.stack((sx, sy, sz), dim=-1)


def _turned(points: Tensor, angle: float) -> Tensor:
    """Points turned about the upright axis."""
    x, y, z = points.unbind(-1)
    cosine, sine = math.cos(angle), math.sin(angle)
    return torch.stack((cosine * x + sine * z, y, cosine * z - sine * x), dim=-1)


def _ball_places(who: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Centre and radii, (B, 3) each: hair behind, two locks, a bun, two ears."""
    nil = torch.zeros_like(who["zoom"])
    long, wide, thick = who["long_hair"], who["head_width"], who["hair_thick"]
    has_long = (long > 0).float()

    def stacked(*entries: Tensor | float) -> Tensor:
        return torch.cat([e + nil for e in entries], dim=1)

    places = [
        (
            stacked(0.0, 0.05 + 0.45 * long, -0.42),
            stacked(wide + 0.10 + thick, 0.95 + 0.35 * long, 0.46) * has_long,
        )
    ]
    for side in (-1.0, 1.0):
        places.append(
            (
                stacked(side * (wide + 0.4 * thick), -0.02 + 0.50 * long, -0.06),
                stacked(0.10 + 0.8 * thick, 0.50 + 0.40 * long, 0.24) * has_long,
            )
        )
    places.append((stacked(0.0, -1.02 - thick, -0.25), stacked(0.30, 0.26, 0.30) * who["bun"]))
    ear = who["ear_size"] * (1.0 - has_long)
    for side in (-1.0, 1.0):
        places.append(
            (stacked(side * (wide + 0.045), 0.13, -0.06), stacked(0.07, 0.185, 0.10) * ear)
        )
    return places


def _neck(who: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    device = who["zoom"].device
    y = torch.linspace(0.45, 1.75, _NECK_ROWS, device=device)
    angle = torch.linspace(-1.75, 1.75, _NECK_COLUMNS, device=device)
    y, angle = (t.flatten() for t in torch.meshgrid(y, angle, indexing="ij"))
    wide = who["neck_width"] * (1.0 + 0.35 * smooth(1.15, 1.75, y))
    points = torch.stack(
        (wide * angle.sin(), y.expand_as(wide), -0.22 + 0.95 * wide * angle.cos()), dim=-1
    )
    outward = torch.stack((angle.sin(), torch.zeros_like(y), angle.cos()), dim=-1)
    return points, outward[None], 1.0 - smooth(0.55, 1.35, y)[None]


def _cloth(who: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    device = who["zoom"].device
    up = torch.linspace(-math.pi / 2, 0.9, _CLOTH_ROWS, device=device)
    around = torch.linspace(-1.6, 1.6, _CLOTH_COLUMNS, device=device)
    up, around = (t.flatten() for t in torch.meshgrid(up, around, indexing="ij"))
    outward = torch.stack((up.cos() * around.sin(), up.sin(), up.cos() * around.cos()), dim=-1)
    radii = torch.cat((2.9 * who["neck_width"], torch.full_like(who["zoom"], 0.62)), dim=1)
    radii = torch.cat((radii, torch.full_like(who["zoom"], 0.52)), dim=1)
    centre = outward.new_tensor((0.0, 1.88, -0.25))
    return outward * radii[:, None] + centre, outward / radii[:, None]


def _arms(who: dict[str, Tensor]) -> Tensor:
    """Two thin strips from the lenses to the ears, (B, 8, 3)."""
    strips = []
    for side in (-1.0, 1.0):
        for up in (-1.0, 1.0):
            near = torch.cat(
                (
                    side * (lens_edge(who) + 0.015),
                    who["eye_y"] - 0.03 + up * 0.016,
                    _lens_z(who) - 0.02,
                ),
                1,
            )
            far = torch.cat(
                (side * (who["head_width"] + 0.085), who["eye_y"] + up * 0.016, 0 * _lens_z(who)), 1
            )
            strips += [near, far]
    arms = torch.stack(strips, dim=1)
    return torch.where(who["glasses"][..., None] > 0, arms, torch.zeros_like(arms))


def lens_edge(who: dict[str, Tensor]) -> Tensor:
    """Distance of the lenses' outer edge from the middle of the face."""
    return who["eye_x"] + 0.02 + 0.235 * who["glasses_size"]


def _lens_z(who: dict[str, Tensor]) -> Tensor:
    return who["depth"] + 0.05


def _directions(n: int, reach: float, even: float) -> Tensor:
    """(n, n, 3) unit vectors around +z, denser in the middle where `even` is below 1."""
    a, b = _angles(n, reach, even)
    angle = torch.hypot(a, b)
    sine = torch.where(angle > 1e-6, angle.sin() / angle.clamp(min=1e-6), torch.ones_like(angle))
    return torch.stack((a * sine, b * sine, angle.cos()), dim=-1)


def _within(n: int, reach: float, even: float, limit: float) -> Tensor:
    return torch.hypot(*_angles(n, reach, even)) <= limit


def _angles(n: int, reach: float, even: float) -> tuple[Tensor, Tensor]:
    t = torch.linspace(-1, 1, n)
    t = reach * (even * t + (1 - even) * t**3)
    b, a = torch.meshgrid(t, t, indexing="ij")
    return a, b


def _grid_triangles(rows: int, columns: int) -> Tensor:
    """Two triangles a cell, corners clockwise as seen when columns go right and rows down."""
    index = torch.arange(rows * columns).view(rows, columns)
    a, b = index[:-1, :-1].flatten(), index[:-1, 1:].flatten()
    c, d = index[1:, :-1].flatten(), index[1:, 1:].flatten()
    return torch.cat((torch.stack((a, b, c), 1), torch.stack((b, d, c), 1)))


def _grid_normals(points: Tensor) -> Tensor:
    """Normals of grids (B, rows, columns, 3), not normalised, towards the viewer in front."""
    right = torch.empty_like(points)
    right[:, :, 1:-1] = points[:, :, 2:] - points[:, :, :-2]
    right[:, :, 0] = points[:, :, 1] - points[:, :, 0]
    right[:, :, -1] = points[:, :, -1] - points[:, :, -2]
    down = torch.empty_like(points)
    down[:, 1:-1] = points[:, 2:] - points[:, :-2]
    down[:, 0] = points[:, 1] - points[:, 0]
    down[:, -1] = points[:, -1] - points[:, -2]
    return torch.nn.functional.normalize(torch.linalg.cross(right, down), dim=-1)
