"""The building blocks of FOMM's networks, under the names that its checkpoints use.

Channel rule everywhere: `width(i) = min(max_features, block_expansion * 2**i)`. All norms are
`BatchNorm2d` with torch's defaults (eps 1e-5, momentum 0.1), which are also the published ones.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def width(level: int, *, block_expansion: int, max_features: int) -> int:
    """Channels at the given depth."""
    return min(max_features, block_expansion * 2**level)


class SameBlock(nn.Module):
    """Convolution, norm, ReLU at one size; used once, 7x7, on the source image."""

    def __init__(self, channels_in: int, channels_out: int, *, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel_size, padding=kernel_size // 2)
        self.norm = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H, W)."""
        return F.relu(self.norm(self.conv(x)))


class DownBlock(nn.Module):
    """3x3 convolution, norm, ReLU, average of 2x2: half the size."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H/2, W/2)."""
        return F.avg_pool2d(F.relu(self.norm(self.conv(x))), 2)


class UpBlock(nn.Module):
    """Nearest neighbour to twice the size, 3x3 convolution, norm, ReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', 2H, 2W)."""
        return F.relu(self.norm(self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))))


class ResBlock(nn.Module):
    """x + two pre-activated 3x3 convolutions; size and width stay."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(channels)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        residual = self.conv1(F.relu(self.norm1(x)))
        return x + self.conv2(F.relu(self.norm2(residual)))


class Encoder(nn.Module):
    """The descending half of the hourglass."""

    def __init__(
        self, channels_in: int, *, block_expansion: int, num_blocks: int, max_features: int
    ) -> None:
        super().__init__()
        widths = [
            width(level, block_expansion=block_expansion, max_features=max_features)
            for level in range(num_blocks + 1)
        ]
        widths[0] = channels_in
        self.down_blocks = nn.ModuleList(
            DownBlock(before, after) for before, after in pairwise(widths)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """The input and the output of every block, the largest first."""
        levels = [x]
        for block in self.down_blocks:
            levels.append(block(levels[-1]))
        return levels


class Decoder(nn.Module):
    """The ascending half: after each block the encoder's map of that size is put behind it."""

    def __init__(self, *, block_expansion: int, num_blocks: int, max_features: int) -> None:
        super().__init__()
        blocks = []
        for level in reversed(range(num_blocks)):
            below = width(level + 1, block_expansion=block_expansion, max_features=max_features)
            here = width(level, block_expansion=block_expansion, max_features=max_features)
            is_deepest = level == num_blocks - 1
            blocks.append(UpBlock(below if is_deepest else 2 * below, here))
        self.up_blocks = nn.ModuleList(blocks)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """The encoder's levels, largest first, to one map of the largest size."""
        x = levels[-1]
        for block, skip in zip(self.up_blocks, reversed(levels[:-1]), strict=True):
            x = torch.cat([block(x), skip], dim=1)
        return x


class Hourglass(nn.Module):
    """A U-Net whose last skip is its own input: `block_expansion + channels_in` channels out.

    Height and width must be divisible by `2**num_blocks`.
    """

    def __init__(
        self, channels_in: int, *, block_expansion: int, num_blocks: int, max_features: int
    ) -> None:
        super().__init__()
        self.encoder = Encoder(
            channels_in,
            block_expansion=block_expansion,
            num_blocks=num_blocks,
            max_features=max_features,
        )
        self.decoder = Decoder(
            block_expansion=block_expansion, num_blocks=num_blocks, max_features=max_features
        )
        self.channels_out = block_expansion + channels_in

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, block_expansion + C, H, W)."""
        return self.decoder(self.encoder(x))


class AntiAlias(nn.Module):
    """Gaussian blur, then every n-th row and column from the first: a smaller picture.

    Computed as one depthwise convolution of stride n, which skips what would be thrown away.
    The zero padding darkens the border; the published weights are used to that.
    """

    weight: Tensor

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.stride = int(1 / scale)
        kernel = antialias_kernel(scale).float()
        self.register_buffer("weight", kernel.expand(channels, 1, *kernel.shape).clone())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, ceil(H/n), ceil(W/n))."""
        padding = self.weight.shape[-1] // 2
        return F.conv2d(x, self.weight, stride=self.stride, padding=padding, groups=x.shape[1])


def antialias_kernel(scale: float) -> Tensor:
    """The (n, n) float64 Gaussian that belongs to a scale below 1; its sum is 1."""
    sigma = (1 / scale - 1) / 2
    size = 2 * round(4 * sigma) + 1
    offset = torch.arange(size, dtype=torch.float64, device="cpu") - (size - 1) / 2
    profile = torch.exp(-offset.square() / (2 * sigma**2))
    kernel = profile[:, None] * profile
    return kernel / kernel.sum()


def antialias(channels: int, scale: float) -> AntiAlias | None:
    """The module for a scale, or None at scale 1, where checkpoints have no kernel either."""
    return None if scale == 1 else AntiAlias(channels, scale)
