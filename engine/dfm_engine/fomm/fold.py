"""Exact rewrites of a trained FOMM for inference: fewer passes over the maps, the same result.

    folded = fold(model, subpixel=True)      # a Fomm as before, with the same methods

- A norm that follows a convolution goes into its weights (all same, down and up blocks, and the
  second norm of a residual block). The first norm of a residual block stands before ReLU and
  convolution; of it an affine map per channel remains.
- "Nearest neighbour to twice the size, then 3x3" reads each small pixel up to four times. Seen from
  the small map every output has 2x2 taps, another 2x2 for each of the four sub-pixel positions: 4
  products instead of 9. The four convolutions side by side are one transposed convolution, 4x4,
  stride 2, padding 1; zero padding on the small map gives what it gave on the large one.
- A convolution to a few channels leaves tensor cores idle, which compute eight at least. All s x s
  pixels of a block as channels of their own, from the (k + s - 1)^2 pixels that the block looks at,
  are one convolution of stride s: more products, of which the cores do not wait for any.
- Convolutions that read one map are one convolution.

Equal up to rounding; sums of weights are taken in float64.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfm_engine.errors import ShapeError
from dfm_engine.fomm.blocks import DownBlock, ResBlock, SameBlock, UpBlock
from dfm_engine.fomm.model import Fomm
from dfm_engine.norms import ChannelAffine, bias_of, fold_norm

__all__ = ["PixelBlockConv", "SubpixelUpBlock", "fold", "merge_convolutions"]


class SubpixelUpBlock(nn.Module):
    """An `UpBlock` after its norm was folded, as one transposed convolution and a ReLU."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        weight = convolution.weight.detach()
        if weight.shape[2:] != (3, 3) or convolution.padding != (1, 1) or convolution.groups != 1:
            raise ShapeError(
                f"an up block's convolution must be a dense 3x3 with padding 1, got {convolution}"
            )
        self.conv = nn.ConvTranspose2d(
            convolution.in_channels, convolution.out_channels, 4, stride=2, padding=1
        ).to(weight)
        # Output row 2i + a of the large map is, on the small one,
        #   a = 0:  w0 at i - 1,  w1 + w2 at i          a = 1:  w0 + w1 at i,  w2 at i + 1
        # and tap m of a transposed convolution carries small row j to large row 2j - 1 + m.
        taps = weight.double()
        for axis in (2, 3):
            w0, w1, w2 = taps.unbind(axis)
            taps = torch.stack([w2, w1 + w2, w0 + w1, w0], dim=axis)  # m = 0, 1, 2, 3
        with torch.no_grad():
            self.conv.weight.copy_(taps.transpose(0, 1))
            assert self.conv.bias is not None
            self.conv.bias.copy_(bias_of(convolution))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', 2H, 2W)."""
        return F.relu(self.conv(x))


class PixelBlockConv(nn.Module):
    """A convolution of stride 1 that keeps its map's size, computed a block of pixels at a time.

    Args:
        convolution: k x k, dense, padding k // 2, k odd.
        side: of a block, in pixels; divides height and width of every map that comes.
        channels_in: of the maps that come, where they have zeros behind those of the convolution.
    """

    def __init__(self, convolution: nn.Conv2d, side: int, *, channels_in: int = 0) -> None:
        super().__init__()
        weight = convolution.weight.detach()
        size = weight.shape[2]
        dense = weight.shape[2] == weight.shape[3] and convolution.groups == 1
        kept = convolution.padding == (size // 2, size // 2) and convolution.stride == (1, 1)
        if not dense or not kept or size % 2 == 0:
            raise ShapeError(
                f"a block of pixels takes a dense k x k convolution that keeps the size, got "
                f"{convolution}"
            )
        self.side = side
        channels_in = max(channels_in, weight.shape[1])
        self.conv = nn.Conv2d(
            channels_in,
            side * side * len(weight),
            size + side - 1,
            stride=side,
            padding=size // 2,
        ).to(weight)
        # Channel (c, a, b), as pixel_shuffle reads it: the kernel moved to pixel (a, b).
        moved = weight.new_zeros(len(weight), side, side, channels_in, *self.conv.kernel_size)
        for a in range(side):
            for b in range(side):
                moved[:, a, b, : weight.shape[1], a : a + size, b : b + size] = weight
        with torch.no_grad():
            self.conv.weight.copy_(moved.flatten(0, 2))
            assert self.conv.bias is not None
            self.conv.bias.copy_(bias_of(convolution).repeat_interleave(side * side))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H, W)."""
        return F.pixel_shuffle(self.conv(x), self.side)


def fold(fomm: Fomm, *, subpixel: bool = False) -> Fomm:
    """A copy for inference: norms folded, and the up blocks rewritten where wanted.

    Args:
        fomm: as loaded; stays as it is. Any floating point dtype, any device.
        subpixel: write every up block as a transposed convolution: fewer products, about half the
            time of the block in float32; int8 kernels are faster without.

    Returns:
        In evaluation mode; it cannot be trained, saved or folded again.
    """
    folded = copy.deepcopy(fomm).eval().requires_grad_(False)
    for module in list(folded.modules()):
        if isinstance(module, SameBlock | DownBlock | UpBlock):
            module.conv = fold_norm(module.conv, module.norm)
            module.norm = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
        elif isinstance(module, ResBlock):
            module.conv1 = fold_norm(module.conv1, module.norm2)
            module.norm2 = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
            module.norm1 = ChannelAffine.of(module.norm1)  # pyright: ignore[reportAttributeAccessIssue]
    if subpixel:
        for blocks in (module for module in folded.modules() if isinstance(module, nn.ModuleList)):
            for index, block in enumerate(blocks):
                if isinstance(block, UpBlock):
                    blocks[index] = SubpixelUpBlock(block.conv)
    return folded.requires_grad_(False)


def merge_convolutions(*convolutions: nn.Conv2d) -> nn.Conv2d:
    """One convolution whose output channels are those of the given ones, in order.

    Raises:
        ShapeError: they do not read the same map in the same way.
    """
    first = convolutions[0]
    for other in convolutions[1:]:
        for name in ("in_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
            if getattr(other, name) != getattr(first, name):
                raise ShapeError(
                    f"convolutions to merge differ in {name}: {getattr(first, name)} and "
                    f"{getattr(other, name)}"
                )
    merged = copy.deepcopy(first)
    merged.weight = nn.Parameter(torch.cat([part.weight.detach() for part in convolutions]))
    merged.bias = nn.Parameter(torch.cat([bias_of(part) for part in convolutions]))
    merged.out_channels = len(merged.weight)
    return merged.eval().requires_grad_(False)
