"""Draw procedural faces: identities in states -> frames and their ground truth.

The way of a frame: a mesh is shaped, expressed and posed (`mesh`); a z-buffer with four samples a
pixel finds what is seen (`raster`); a pixel whose samples agree is painted once, an edge pixel at
every sample (`paint`); backdrop, glasses and the camera finish it (`camera`). Plain torch, all
frames of a chunk at once, on any device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dfm_engine.errors import ShapeError
from dfm_engine.synthetic import camera
from dfm_engine.synthetic.fragments import Fragments
from dfm_engine.synthetic.head import Drawn, project
from dfm_engine.synthetic.identity import Identity, IdentityBatch, stack
from dfm_engine.synthetic.landmarks import Truth, ground_truth
from dfm_engine.synthetic.mesh import Mesh, Topology, build_mesh, topology
from dfm_engine.synthetic.paint import paint
from dfm_engine.synthetic.raster import rasterise, unpack
from dfm_engine.synthetic.state import States

__all__ = ["Rendered", "render"]

# On a CPU meshes are made for some frames at once and painted one by one, which keeps the working
# set in cache; a GPU wants millions of pixels.
_MESH_CHUNK = 16
_GPU_CHUNK_PIXELS = 2 << 20
_EDGE_DEPTH = 0.07  # head units between samples of one pixel that make it an edge

_LINEAR = ("skin", "lip", "hair", "iris", "cloth", "glasses_colour")


@dataclass(frozen=True, slots=True)
class Rendered:
    """N frames and what is true in them.

    Attributes:
        frames: (N, S, S, 3) uint8 RGB.
        landmarks: (N, 10, 2) float32 (x, y) in [-1, 1], order `landmarks.LANDMARKS`.
        jacobians: (N, 10, 2, 2) float32, see `landmarks.landmark_jacobians`.
        mtcnn_points: (N, 5, 2) float32 pixels: left eye, right eye, nose, left and right mouth
            corner of the image.
        states: the rows that were drawn: pose angles, action values.
    """

    frames: Tensor
    landmarks: Tensor
    jacobians: Tensor
    mtcnn_points: Tensor
    states: States

    def __repr__(self) -> str:
        return f"Rendered(frames={tuple(self.frames.shape)} on {self.frames.device})"


@torch.no_grad()
def render(
    identities: Identity | Sequence[Identity],
    states: States,
    size: int = 256,
    *,
    device: str | torch.device = "cpu",
    noise_seed: int = 0,
) -> Rendered:
    """Draw every row of `states`.

    Args:
        identities: one for all rows, or M that share the N rows evenly and in order (N / M
            consecutive rows each; M = N draws a different face in every row).
        states: N rows; those of any driver.
        size: side of the square frames, pixels.
        device: where to draw; the result stays there.
        noise_seed: of the camera noise; row n has the noise of (noise_seed, n).

    Raises:
        ShapeError: if the rows do not divide among the identities.
    """
    people = [identities] if isinstance(identities, Identity) else list(identities)
    rows = len(states)
    if not people or not rows or rows % len(people):
        raise ShapeError(
            f"{rows} state rows cannot be shared evenly by {len(people)} identities; "
            "pass one identity, one per row, or a divisor of the rows"
        )
    device = torch.device(device)
    batch = stack(people, device=device)
    for name in _LINEAR:
        batch.values[name] = batch.values[name] ** camera.GAMMA
    values = states.values.to(device)
    owner = torch.arange(rows, device=device) // (rows // len(people))
    seeds = range(1_000_003 * noise_seed, 1_000_003 * noise_seed + rows)
    top = topology(device)
    frames = torch.empty(rows, size, size, 3, dtype=torch.uint8, device=device)
    single = _paints_one_by_one(device)
    step = _MESH_CHUNK if single else max(1, _GPU_CHUNK_PIXELS // size**2)
    truths: list[Truth] = []
    for start in range(0, rows, step):
        part = slice(start, start + step)
        faces = batch.rows(owner[part])
        drawn = Drawn.of(faces.values, values[part])
        truths.append(ground_truth(drawn, size))
        mesh = build_mesh(drawn, top)
        paint_step = 1 if single else step
        for first in range(0, len(faces), paint_step):
            some = slice(first, first + paint_step)
            frames[part][some] = _draw(
                faces.rows(some),
                drawn[some],
                Mesh(*(m[some] for m in mesh)),
                size,
                top,
                seeds[part][some],
            )
    truth = Truth(*(torch.cat(each) for each in zip(*truths, strict=True)))
    return Rendered(frames, truth.landmarks, truth.jacobians, truth.mtcnn_points, states)


def _paints_one_by_one(device: torch.device) -> bool:
    return device.type == "cpu"


def _draw(
    people: IdentityBatch, drawn: Drawn, mesh: Mesh, size: int, top: Topology, seeds: Sequence[int]
) -> Tensor:
    plane = (project(drawn.who, mesh.world) + 1.0) * size  # two samples a pixel
    points = torch.cat((plane, mesh.world[..., 2:]), dim=-1)
    buffer = rasterise(points, top.triangles, height=2 * size, width=2 * size)
    picture = camera.backdrop(people.backdrop_tile, size)
    picture = _compose(drawn, people, points, mesh.attributes, buffer, top, picture)
    if bool((drawn.who["glasses"] > 0).any()):
        picture = camera.paint_glasses(drawn, picture)
    return camera.to_bytes(picture, drawn.who["noise"], seeds)


def _compose(
    drawn: Drawn,
    people: IdentityBatch,
    points: Tensor,
    attributes: Tensor,
    buffer: Tensor,
    top: Topology,
    behind: Tensor,
) -> Tensor:
    """Paint what the z-buffer shows and lay it over the backdrop, (B, S, S, 3)."""
    batch, size = behind.shape[:2]
    samples = [buffer[:, k // 2 :: 2, k % 2 :: 2].flatten() for k in range(4)]
    triangles, depths = zip(*(unpack(keys) for keys in samples), strict=True)
    seen = [triangle >= 0 for triangle in triangles]
    parts = [top.part_or_none.index_select(0, triangle + 1) for triangle in triangles]
    nearest = torch.maximum(torch.maximum(depths[0], depths[1]), torch.maximum(*depths[2:]))
    farthest = torch.minimum(torch.minimum(depths[0], depths[1]), torch.minimum(*depths[2:]))
    flat = nearest - farthest < _EDGE_DEPTH
    for part in parts[1:]:
        flat &= part == parts[0]
    wanted = [seen[0]] + [each & ~flat for each in seen[1:]]
    chosen = [torch.nonzero(each)[:, 0] for each in wanted]
    pixel = torch.cat(chosen)
    triangle = torch.cat([t.index_select(0, c) for t, c in zip(triangles, chosen, strict=True)])
    part = torch.cat([p.index_select(0, c) for p, c in zip(parts, chosen, strict=True)])
    sample = torch.cat([torch.full_like(c, k) for k, c in enumerate(chosen)])

    # a flat pixel is painted at its centre, an edge sample at its own place
    frame, inner = pixel // size**2, pixel % size**2
    centre = flat.index_select(0, pixel)
    across = 2.0 * (inner % size) + torch.where(centre, 1.0, (sample % 2) + 0.5)
    down = 2.0 * (inner // size) + torch.where(centre, 1.0, (sample // 2) + 0.5)
    corners = top.triangles.index_select(0, triangle) + (frame * points.shape[1])[:, None]
    weights = _barycentric(points.flatten(0, 1)[:, :2], corners, across, down)
    table = attributes.flatten(0, 1)
    values = sum(table.index_select(0, corners[:, k]) * weights[k][:, None] for k in range(3))
    assert isinstance(values, Tensor)

    colours = paint(
        Fragments(
            drawn=drawn,
            people=people,
            frame=frame if batch > 1 else torch.zeros(1, dtype=torch.int64, device=frame.device),
            part=part,
            rest=values[:, :3],
            expressed=values[:, 3:6],
            normal=torch.nn.functional.normalize(values[:, 6:], dim=-1),
            size=size,
        )
    )
    colours = colours * torch.where(centre, 1.0, 0.25)[:, None]
    uncovered = 1.0 - 0.25 * torch.stack(seen).float().sum(0)
    picture = behind.reshape(-1, 3) * uncovered[:, None]
    # one sample number at a time: no two additions meet at a pixel, and their order is fixed
    for index, light in zip(chosen, colours.split([len(c) for c in chosen]), strict=True):
        picture.index_add_(0, index, light)
    return picture.view_as(behind)


def _barycentric(
    plane: Tensor, corners: Tensor, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    (ax, ay), (bx, by), (cx, cy) = (
        plane.index_select(0, corners[:, k]).unbind(-1) for k in range(3)
    )
    area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    second = ((x - ax) * (cy - ay) - (y - ay) * (cx - ax)) / area
    third = ((bx - ax) * (y - ay) - (by - ay) * (x - ax)) / area
    # a centre may lie just outside a tiny triangle: stay near it
    second, third = second.clamp(-0.5, 1.5), third.clamp(-0.5, 1.5)
    return 1.0 - second - third, second, third
