"""What happens between the lit head and the file: backdrop, glasses, exposure, noise, 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from dfm_engine.synthetic.head import HALF_VIEW, PIVOT, VIEW_CENTRE_Y, Drawn, rotation, smooth
from dfm_engine.synthetic.mesh import lens_edge

__all__ = ["GAMMA", "backdrop", "paint_glasses", "to_bytes"]

GAMMA = 2.0  # a square root, ten times cheaper than 2.2 and as good for drawn faces
_NOISE_STARTS = 1 << 20
_LARGEST = 1024  # side of a frame, pixels


def backdrop(tiles: Tensor, size: int) -> Tensor:
    """Blurred rooms (B, TILE, TILE, 3) to (B, size, size, 3) in linear light."""
    enlarged = torch.nn.functional.interpolate(
        tiles.permute(0, 3, 1, 2), size=(size, size), mode="bilinear", align_corners=True
    )
    return enlarged.permute(0, 2, 3, 1).square()


def paint_glasses(drawn: Drawn, picture: Tensor) -> Tensor:
    """Draw rims and lenses on (B, S, S, 3): a plane before the eyes, seen from the camera."""
    who = drawn.who
    size = picture.shape[1]
    at = (torch.arange(size, device=picture.device) + 0.5) * (2.0 / size) - 1.0
    screen_y, screen_x = (t.flatten()[None] for t in torch.meshgrid(at, at, indexing="ij"))
    scale = HALF_VIEW / who["zoom"]
    wx = screen_x * scale + who["shift"][:, :1] - drawn.does["shift_x"] - PIVOT[0]
    wy = screen_y * scale + who["shift"][:, 1:] - drawn.does["shift_y"]
    wy = wy + VIEW_CENTRE_Y - PIVOT[1]
    turn = rotation(drawn.does)
    ahead = who["depth"] + 0.05 - PIVOT[2]
    wx, wy = wx - turn[:, 0, 2:] * ahead, wy - turn[:, 1, 2:] * ahead
    a, b, c, d = (turn[:, i, j : j + 1] for i in range(2) for j in range(2))
    area = a * d - b * c
    x = (d * wx - b * wy) / area + PIVOT[0]
    y = (a * wy - c * wx) / area + PIVOT[1]

    px = scale * 2 / size
    half_w = 0.235 * who["glasses_size"]
    half_h = (0.165 + 0.055 * who["glasses_round"]) * who["glasses_size"]
    lens_x = (x.abs() - (lens_edge(who) - half_w)) / half_w
    lens_y = (y - who["eye_y"] - 0.025) / half_h
    power = 4.5 - 2.3 * who["glasses_round"]
    radius = (lens_x.abs() ** power + lens_y.abs() ** power + 1e-9) ** (1 / power)
    distance = (radius - 1.0) * torch.minimum(half_w, half_h)
    rim = smooth(-0.7, 0.7, (who["glasses_rim"] - distance.abs()) / px)
    bridge_y = y - who["eye_y"] + 0.035 - 0.25 * x**2
    bridge = smooth(-0.7, 0.7, (0.8 * who["glasses_rim"] - bridge_y.abs()) / px)
    bridge = bridge * (x.abs() < lens_edge(who) - 2 * half_w + 0.01)
    frame = torch.maximum(rim, bridge) * who["glasses"]
    lens = smooth(0.7, -0.7, distance / px) * who["glasses"]
    band = (lens_x * half_w + 0.6 * y) / 0.05
    sheen = lens * 0.045 * torch.exp(-((band + 1.2) ** 2))
    flat = picture.flatten(1, 2)
    flat = flat * (1.0 - 0.05 * lens)[..., None] + sheen[..., None]
    flat = torch.lerp(flat, who["glasses_colour"][:, None].expand_as(flat), frame[..., None])
    return flat.view_as(picture)


def to_bytes(picture: Tensor, noise_level: Tensor, seeds: Sequence[int]) -> Tensor:
    """Linear light (B, S, S, 3) to uint8 sRGB with camera noise; one seed per frame.

    The noise has standard deviation `noise_level` (B, 1) in [0, 1] units, mostly grey. A frame's
    noise is windows of one fixed table, so it depends on its seed alone: not on the device, nor
    on what else is in the batch.
    """
    batch, height, width, _ = picture.shape
    pixels = height * width
    table = _noise_table(picture.device)
    windows = []
    for seed in seeds:
        # odd multipliers scatter neighbouring seeds and channels over the table
        starts = [((seed * 0x9E3779B1 + k * 0x85EBCA6B) >> 7) % _NOISE_STARTS for k in range(4)]
        windows.append(torch.stack([table[start : start + pixels] for start in starts], dim=-1))
    window = torch.stack(windows).view(batch, height, width, 4)
    noise = 0.85 * window[..., :1] + 0.5 * window[..., 1:]
    toned = picture.clamp(0.0, 1.0).sqrt() + noise_level[:, :, None, None] * noise
    return (toned * 255.0 + 0.5).clamp(0.0, 255.5).to(torch.uint8)


@lru_cache(maxsize=4)
def _noise_table(device: torch.device) -> Tensor:
    rng = np.random.default_rng(20)
    values = rng.standard_normal(_NOISE_STARTS + _LARGEST**2, dtype=np.float32)
    return torch.from_numpy(values).to(device)
