"""The z-buffer against testing every sample against every triangle."""

from __future__ import annotations

import torch

from dfm_engine.synthetic.raster import rasterise, unpack

HEIGHT, WIDTH = 18, 23


def scene(batch: int, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(batch, 3 * count, 3, generator=generator) * 1.4 - 0.2
    points = points * torch.tensor([WIDTH, HEIGHT, 3.0])  # some of it outside
    return points, torch.arange(3 * count).view(count, 3)


def brute_force(points: torch.Tensor, triangles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Nearest triangle per sample, and how far (samples) the sample is from any deciding edge."""
    points = points.double()
    y, x = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    best = torch.full((HEIGHT, WIDTH), -1)
    depth = torch.full((HEIGHT, WIDTH), -8.0, dtype=torch.float64)
    margin = torch.full((HEIGHT, WIDTH), 9.0, dtype=torch.float64)
    for number, corners in enumerate(triangles):
        a, b, c = points[corners]
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        if area <= 0:
            continue
        inside = []
        for p, q in ((a, b), (b, c), (c, a)):
            side = (q[0] - p[0]) * (y - p[1]) - (q[1] - p[1]) * (x - p[0])
            inside.append(side / torch.hypot(q[0] - p[0], q[1] - p[1]))
        nearest_edge = torch.stack(inside).amin(0)
        u = ((x - a[0]) * (c[1] - a[1]) - (y - a[1]) * (c[0] - a[0])) / area
        v = ((b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])) / area
        z = a[2] + u * (b[2] - a[2]) + v * (c[2] - a[2])
        margin = torch.minimum(margin, nearest_edge.abs())
        margin = torch.where(nearest_edge > 0, torch.minimum(margin, (z - depth).abs()), margin)
        wins = (nearest_edge > 0) & (z > depth)
        best, depth = torch.where(wins, number, best), torch.where(wins, z, depth)
    return best, margin


def test_every_sample_shows_the_nearest_front_facing_triangle() -> None:
    points, triangles = scene(batch=4, count=25, seed=1)
    seen, depth = unpack(rasterise(points, triangles, height=HEIGHT, width=WIDTH))
    compared = 0
    for k in range(4):
        expected, margin = brute_force(points[k], triangles)
        sure = margin > 5e-3  # rows are cut 1e-3 wide of an edge, more so where it is flat
        assert torch.equal(seen[k][sure], expected[sure])
        compared += int(sure.sum())
        assert (depth[k][expected.lt(0) & sure] == -8).all()
    assert compared > 0.9 * 4 * HEIGHT * WIDTH
    assert (seen >= 0).float().mean() > 0.5


def test_depth_follows_the_triangles_plane() -> None:
    points = torch.tensor([[[0.0, 0.0, 1.0], [40.0, 0.0, 2.0], [0.0, 40.0, -1.0]]])
    triangles = torch.tensor([[0, 1, 2]])
    _, depth = unpack(rasterise(points, triangles, height=HEIGHT, width=WIDTH))
    assert abs(depth[0, 5, 8] - (1 + 8.5 / 40 - 2 * 5.5 / 40)) < 2e-6  # depth steps of 2^-20


def test_a_sheet_of_triangles_has_no_cracks() -> None:
    generator = torch.Generator().manual_seed(2)
    n = 14
    y, x = torch.meshgrid(torch.linspace(-3, 60, n), torch.linspace(-3, 60, n), indexing="ij")
    grid = torch.stack((x, y, torch.zeros_like(x)), -1) + torch.rand(n, n, 3, generator=generator)
    index = torch.arange(n * n).view(n, n)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    triangles = torch.stack((a, b, c, b, d, c), -1).view(-1, 3)
    seen, _ = unpack(rasterise(grid.view(1, -1, 3), triangles, height=56, width=56))
    assert (seen >= 0).all()


def test_what_faces_away_is_not_seen() -> None:
    points, triangles = scene(batch=1, count=1, seed=3)
    both = [
        rasterise(points, t, height=HEIGHT, width=WIDTH) for t in (triangles, triangles.flip(1))
    ]
    assert sorted(int((each > 0).sum() > 0) for each in both) == [0, 1]
