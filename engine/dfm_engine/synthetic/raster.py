"""Which triangle is seen at each sample: a z-buffer in plain torch, many pictures at once.

Triangles are cut into pixel rows and rows into pixels, each step one vectorised expansion, so
the work is the covered area and not a bounding box. The nearest triangle wins by an integer
maximum over (depth, triangle), which is the same on every device and in any order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["rasterise", "unpack"]

_DEPTH_STEPS = 1 << 20  # per head unit
_DEPTH_OFFSET = 8.0  # keeps depths positive: z in (-8, 8)
_OVERLAP = 1e-3  # samples; neighbours overlap by this, so that rounding opens no cracks


def rasterise(points: Tensor, triangles: Tensor, *, height: int, width: int) -> Tensor:
    """Find the nearest front-facing triangle at every sample centre.

    Args:
        points: (B, V, 3) float32; x right and y down in samples, z in head units, nearer is larger.
        triangles: (F, 3) int64 vertex numbers; a triangle faces the viewer when its corners turn
            clockwise as seen (y down).
        height: samples.
        width: samples.

    Returns:
        (B, height, width) int64, to be read by `unpack`; 0 where nothing is seen.
    """
    batch = len(points)
    buffer = torch.zeros(batch * height * width, dtype=torch.int64, device=points.device)
    found = _front_triangles(points, triangles, height, width)
    owner, step = _expand(found.rows)
    y_step = step.float()
    left, right = found.edges(owner, y_step)
    start = (left - 0.5 - _OVERLAP).ceil().clamp(0, width)
    count = (right - 0.5 + _OVERLAP).ceil().clamp(0, width) - start

    slope = found.slope_x.index_select(0, owner)
    depth = found.depth.index_select(0, owner) + found.slope_y.index_select(0, owner) * y_step
    depth = depth + slope * start + _DEPTH_OFFSET
    first = start.long()
    address = found.address.index_select(0, owner) + step * width + first
    name = found.name.index_select(0, owner)

    row, step = _expand(count.clamp(min=0).long())
    depth = depth.index_select(0, row) + slope.index_select(0, row) * step
    key = (depth * _DEPTH_STEPS).long().clamp(min=1) << 32
    key += name.index_select(0, row)
    address = address.index_select(0, row)
    buffer.scatter_reduce_(0, address.add_(step), key, "amax")
    return buffer.view(batch, height, width)


class _Triangles(NamedTuple):
    """Front-facing triangles; x values hold at the first row's centre, slopes are per row."""

    rows: Tensor  # (N,) int64, pixel rows covered
    address: Tensor  # (N,) int64, of the first row's first sample
    name: Tensor  # (N,) int64, number + 1
    split: Tensor  # (N,) rows above the middle corner
    long_x: Tensor
    long_run: Tensor
    upper_x: Tensor
    upper_run: Tensor
    lower_x: Tensor
    lower_run: Tensor
    depth: Tensor  # (N,) at x = 0 of the first row
    slope_x: Tensor
    slope_y: Tensor

    def edges(self, owner: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Where each row enters and leaves its triangle."""

        def at(x: Tensor, run: Tensor) -> Tensor:
            return x.index_select(0, owner) + run.index_select(0, owner) * step

        long = at(self.long_x, self.long_run)
        above = step < self.split.index_select(0, owner)
        short = torch.where(
            above, at(self.upper_x, self.upper_run), at(self.lower_x, self.lower_run)
        )
        return torch.minimum(long, short), torch.maximum(long, short)


def _front_triangles(points: Tensor, triangles: Tensor, height: int, width: int) -> _Triangles:
    corners = points.index_select(1, triangles.flatten()).unflatten(1, triangles.shape)
    x, y, z = corners.unbind(-1)  # (B, F, 3) each
    area = (x[..., 1] - x[..., 0]) * (y[..., 2] - y[..., 0])
    area = area - (y[..., 1] - y[..., 0]) * (x[..., 2] - x[..., 0])  # twice the area
    first = (torch.minimum(torch.minimum(y[..., 0], y[..., 1]), y[..., 2]) - 0.5).ceil()
    stop = (torch.maximum(torch.maximum(y[..., 0], y[..., 1]), y[..., 2]) - 0.5).ceil()
    first, stop = first.clamp(min=0), stop.clamp(max=height)
    frame, triangle = torch.nonzero((area > 1e-6) & (stop > first), as_tuple=True)
    at = frame * len(triangles) + triangle
    x, y, z = (value.flatten(0, 1).index_select(0, at) for value in (x, y, z))
    area, first, stop = (value.flatten().index_select(0, at) for value in (area, first, stop))
    (ax, bx, cx), (ay, by, cy), (az, bz, cz) = x.unbind(1), y.unbind(1), z.unbind(1)
    slope_x = ((bz - az) * (cy - ay) - (cz - az) * (by - ay)) / area
    slope_y = ((cz - az) * (bx - ax) - (bz - az) * (cx - ax)) / area
    centre = first + 0.5

    order = y.argsort(dim=1)
    (tx, mx, lx), (ty, my, ly) = (v.gather(1, order).unbind(1) for v in (x, y))

    def edge(x0: Tensor, y0: Tensor, x1: Tensor, y1: Tensor) -> tuple[Tensor, Tensor]:
        run = (x1 - x0) / torch.where(y1 == y0, 1.0, y1 - y0)
        return x0 + (centre - y0) * run, run

    return _Triangles(
        (stop - first).long(),
        (frame * height + first.long()) * width,
        triangle + 1,
        my - centre,
        *edge(tx, ty, lx, ly),
        *edge(tx, ty, mx, my),
        *edge(mx, my, lx, ly),
        az + slope_x * (0.5 - ax) + slope_y * (centre - ay),
        slope_x,
        slope_y,
    )


def unpack(buffer: Tensor) -> tuple[Tensor, Tensor]:
    """Split `rasterise`'s result into triangle numbers (int64, -1 for none) and depths (float32).

    Depths are in head units; -8 where nothing is seen.
    """
    triangle = (buffer & 0xFFFFFFFF) - 1
    depth = (buffer >> 32).float() / _DEPTH_STEPS - _DEPTH_OFFSET
    return triangle, depth


def _expand(counts: Tensor) -> tuple[Tensor, Tensor]:
    """For counts (2, 0, 3): owners (0, 0, 2, 2, 2) and steps (0, 1, 0, 1, 2), both int64."""
    owner = torch.repeat_interleave(counts)
    before = counts.cumsum(0) - counts
    step = torch.arange(len(owner), device=counts.device) - before.index_select(0, owner)
    return owner, step
