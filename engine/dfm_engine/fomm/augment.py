"""The reference's augmentation of a training pair: flips, and colour jitter through 8 bits.

One draw per pair, applied to both of its frames. Time flip swaps source and driving with p 0.5;
only if it did not, a horizontal flip follows with p 0.5 (the published code returns early, so
never both). Jitter is what torchvision's ColorJitter does to a PIL image, every step quantised
to 8 bits, computed here on a whole batch on its device.

In: uint8 (B, 3, H, W) tensors and a draw made on the CPU. Out: uint8 tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_OPERATIONS = ("brightness", "contrast", "saturation", "hue")


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What happens to each pair of a batch.

    Attributes:
        time_flip: (B,) bool.
        mirror: (B,) bool; never together with `time_flip` in the published order.
        factors: (B, 4) float64: brightness, contrast, saturation factors, and hue shift in turns.
        order: (B, 4) int, the order of the four operations.
    """

    time_flip: NDArray[np.bool_]
    mirror: NDArray[np.bool_]
    factors: NDArray[np.float64]
    order: NDArray[np.int64]

    def rows(self, index: NDArray[np.int64]) -> Draw:
        """The draws of chosen rows, repeats allowed."""
        return Draw(
            time_flip=self.time_flip[index],
            mirror=self.mirror[index],
            factors=self.factors[index],
            order=self.order[index],
        )


def draw(
    rows: int,
    *,
    rng: np.random.Generator,
    time_flip: bool,
    horizontal_flip: bool,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
) -> Draw:
    """Draw for a batch; the last four are half widths of the ranges around 1 (hue: around 0)."""
    flipped = (rng.random(rows) < 0.5) & time_flip
    mirror = (rng.random(rows) < 0.5) & horizontal_flip & ~flipped
    spread = np.array([brightness, contrast, saturation, hue])
    factors = rng.uniform(-1.0, 1.0, (rows, 4)) * spread + np.array([1.0, 1.0, 1.0, 0.0])
    order = np.argsort(rng.random((rows, 4)), axis=1)
    return Draw(time_flip=flipped, mirror=mirror, factors=factors, order=order)


def mirror_frames(frames: Tensor, mirror: NDArray[np.bool_]) -> Tensor:
    """Flip the marked rows of (B, 3, H, W) left to right."""
    if not mirror.any():
        return frames
    chosen = torch.from_numpy(mirror).to(frames.device)
    return torch.where(chosen[:, None, None, None], frames.flip(-1), frames)


def jitter(frames: Tensor, drawn: Draw) -> Tensor:
    """Apply the drawn brightness, contrast, saturation and hue to uint8 (B, 3, H, W).

    Operations that change no row of the batch are skipped.
    """
    out = frames
    for position in range(len(_OPERATIONS)):
        for index in range(len(_OPERATIONS)):
            neutral = 0.0 if index == 3 else 1.0
            rows = np.flatnonzero(
                (drawn.order[:, position] == index) & (drawn.factors[:, index] != neutral)
            )
            if len(rows) == 0:
                continue
            chosen = torch.from_numpy(rows).to(frames.device)
            factor = torch.from_numpy(drawn.factors[rows, index]).to(frames.device, torch.float32)
            changed = _apply(out[chosen], factor[:, None, None], _OPERATIONS[index])
            out = out.index_copy(0, chosen, changed)
    return out


def _apply(frames: Tensor, factor: Tensor, operation: str) -> Tensor:
    """One operation on (N, 3, H, W); factor is (N, 1, 1)."""
    if operation == "hue":
        return _shift_hue(frames, factor)
    colour = frames.to(torch.float32)
    if operation == "brightness":
        other = torch.zeros_like(colour)
    elif operation == "contrast":
        # PIL: the mean of the grey picture, rounded to a whole level
        mean = _grey(frames).to(torch.float32).mean(dim=(-2, -1), keepdim=True)  # (N, 1, 1)
        other = torch.floor(mean + 0.5).unsqueeze(1).expand_as(colour)
    else:
        other = _grey(frames).to(torch.float32).unsqueeze(1).expand_as(colour)
    # PIL's Image.blend truncates
    blended = other + factor.unsqueeze(1) * (colour - other)
    return blended.clamp(0, 255).to(torch.uint8)


def _grey(frames: Tensor) -> Tensor:
    """PIL's "L": ITU-R 601 in 16-bit fixed point; (N, 3, H, W) uint8 to (N, H, W) int32."""
    red, green, blue = frames.to(torch.int32).unbind(1)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def _shift_hue(frames: Tensor, turns: Tensor) -> Tensor:
    """PIL's 8-bit HSV there and back, with the hue byte moved by turns * 255, wrapping."""
    red, green, blue = frames.to(torch.float32).unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    spread = value - low
    grey = spread == 0
    chroma = torch.where(grey, torch.ones_like(spread), spread)
    rc, gc, bc = (value - red) / chroma, (value - green) / chroma, (value - blue) / chroma
    hue = torch.where(red == value, bc - gc, torch.where(green == value, 2 + rc - bc, 4 + gc - rc))
    hue = torch.where(grey, torch.zeros_like(hue), torch.remainder(hue / 6 + 1, 1))
    saturation = torch.where(grey, torch.zeros_like(spread), spread / value.clamp_min(1))
    hue = (hue * 255).to(torch.int32)  # truncated, as PIL does
    saturation = (saturation * 255).to(torch.int32)

    # torchvision casts turns * 255 to uint8, which truncates towards zero and wraps
    hue = (hue + (turns * 255).to(torch.int32)) & 255

    sector = hue.to(torch.float32) * 6 / 255
    whole = torch.floor(sector)
    part = sector - whole
    s = saturation.to(torch.float32) / 255
    p = torch.floor(value * (1 - s) + 0.5)
    q = torch.floor(value * (1 - s * part) + 0.5)
    t = torch.floor(value * (1 - s * (1 - part)) + 0.5)
    sixth = whole.to(torch.int64) % 6
    table = {
        0: (value, t, p),
        1: (q, value, p),
        2: (p, value, t),
        3: (p, q, value),
        4: (t, p, value),
        5: (value, p, q),
    }
    out = torch.stack((value, value, value), 1)
    for index, channels in table.items():
        chosen = ((sixth == index) & (saturation > 0)).unsqueeze(1)
        out = torch.where(chosen, torch.stack(channels, 1), out)
    return out.clamp(0, 255).to(torch.uint8)
