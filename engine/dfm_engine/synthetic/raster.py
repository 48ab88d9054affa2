"""Which triangle is seen at each sample: a z-buffer in plain torch, many pictures at once.

Triangles are cut into pixel rows and rows into pixels, each step one vectorised expansion, so
the work is the covered area and not a bounding box. The nearest triangle wins by an integer
maximum over (depth, triangle), which is the same on every device and in any order.
"""

from __future__ import annotations

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
    corners = points[:, triangles]  # (B, F, 3, 3)
    ax, ay, az = corners[:, :, 0].unbind(-1)
    bx, by, bz = corners[:, :, 1].unbind(-1)
    cx, cy, cz = corners[:, :, 2].unbind(-1)
    area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)  # twice the area
    top, bottom = torch.minimum(torch.minimum(ay, by), cy), torch.maximum(torch.maximum(ay, by), cy)
    first = (top - 0.5).ceil().clamp(min=0)
    stop = (bottom - 0.5).ceil().clamp(max=height)
    frame, triangle = torch.nonzero((area > 1e-6) & (stop > first), as_tuple=True)
    chosen = (frame, triangle)

    ax, ay, az, bx, by, bz, cx, cy, cz, area, first, stop = (
        value[chosen] for value in (ax, ay, az, bx, by, bz, cx, cy, cz, area, first, stop)
    )
    slope_x = ((bz - az) * (cy - ay) - (cz - az) * (by - ay)) / area
    slope_y = ((cz - az) * (bx - ax) - (bz - az) * (cx - ax)) / area

    owner, step = _expand((stop - first).long())
    y = first[owner] + step + 0.5  # row centres
    left = torch.full_like(y, float("inf"))
    right = -left
    for px, py, qx, qy in ((ax, ay, bx, by), (bx, by, cx, cy), (cx, cy, ax, ay)):
        run = (qx - px) / torch.where(qy == py, 1.0, qy - py)
        py_row, qy_row = py[owner], qy[owner]
        crosses = (py_row <= y) != (qy_row <= y)
        x = px[owner] + (y - py_row) * run[owner]
        left = torch.where(crosses, torch.minimum(left, x), left)
        right = torch.where(crosses, torch.maximum(right, x), right)
    start = (left - 0.5 - _OVERLAP).ceil().clamp(0, width)
    count = ((right - 0.5 + _OVERLAP).ceil().clamp(0, width) - start).clamp(min=0).long()

    row_depth = az[owner] + slope_y[owner] * (y - ay[owner])
    row_depth = row_depth + slope_x[owner] * (start + 0.5 - ax[owner])
    row_address = (frame[owner] * height + (y - 0.5).long()) * width + start.long()
    row_name = triangle[owner] + 1
    row_slope = slope_x[owner]

    row, step = _expand(count)
    depth = (row_depth[row] + row_slope[row] * step + _DEPTH_OFFSET) * _DEPTH_STEPS
    key = (depth.long().clamp(min=1) << 32) | row_name[row]
    buffer.scatter_reduce_(0, row_address[row] + step, key, "amax")
    return buffer.view(batch, height, width)


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
    step = torch.arange(len(owner), device=counts.device) - before[owner]
    return owner, step
