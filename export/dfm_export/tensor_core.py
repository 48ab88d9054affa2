"""The generator as tensor cores want it: 16 bits, channels last, as few passes as there can be.

The same network as `graphs`' `source` and `animate` at `fp16_islands`, written for one purpose,
to be recorded and replayed on a GPU; what is exported stays plain. On top of `fomm.fold`:

- what follows a convolution is one pass (`dfm_kernels.epilogues`), or cuDNN's own epilogue;
- the sparse motions, their mixture and the warp are one kernel each (`dfm_kernels`), in float32
  inside: the islands of the plan;
- the two 7x7 convolutions to a few channels go block by block (`fold.PixelBlockConv`), which takes
  the last one from 56 to 18 us a frame and the mask's from 11 to 3 (vox-256, H100, torch 2.11,
  cuDNN 9.19, batch 32);
- maps have a multiple of 8 channels, zeros behind the others; else cuDNN copies them to add such.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfm_engine.fomm.blocks import Decoder, DownBlock, Encoder, ResBlock
from dfm_engine.fomm.fold import PixelBlockConv, SubpixelUpBlock, fold, merge_convolutions
from dfm_engine.fomm.geometry import resize, resize_grid
from dfm_engine.fomm.model import Fomm
from dfm_engine.fomm.values import Keypoints, SourceFeatures
from dfm_engine.norms import ChannelAffine
from dfm_kernels.deformation import mix_motions
from dfm_kernels.epilogues import affine_relu, bias_relu_cat, bias_relu_pool, residual
from dfm_kernels.sparse_motion import sparse_motion
from dfm_kernels.warp import warp

__all__ = ["TensorCoreGenerator"]

WIDE = 8  # channels that a map's number of channels is a multiple of
BLOCK_OF_FRAME, BLOCK_OF_MASK = 4, 2  # sides in pixels; the fastest of 1, 2, 4 and 8 on an H100


class TensorCoreGenerator(nn.Module):
    """Source images to features, features and keypoints to frames.

    Args:
        fomm: as loaded, in float32; stays as it is.
        device: where it runs.
        dtype: of maps and convolutions.
    """

    def __init__(
        self, fomm: Fomm, *, device: torch.device | str, dtype: torch.dtype = torch.float16
    ) -> None:
        super().__init__()
        folded = fold(fomm, subpixel=True)
        generator, motion = folded.generator, folded.generator.dense_motion_network
        self.dtype = dtype
        self.align_corners = generator.align_corners
        self.variance = motion.kp_variance
        self.masks = folded.config.num_kp + 1
        self.first, self.down_blocks = generator.first.conv, generator.down_blocks
        self.motions = _up_to(self.masks * (folded.config.num_channels + 1))
        self.encoder = _padded_encoder(motion.hourglass.encoder)
        self.decoder = _padded_decoder(motion.hourglass.decoder)
        heads = [motion.mask, *([] if motion.occlusion is None else [motion.occlusion])]
        merged = merge_convolutions(*heads)
        self.heads = PixelBlockConv(
            merged,
            _largest_block(BLOCK_OF_MASK, _motion_size(folded)),
            channels_in=_up_to(_last_up(self.decoder).out_channels + self.motions),
        )
        self.blocks = cast(Sequence[ResBlock], generator.bottleneck)
        self.up_blocks = cast(Sequence[SubpixelUpBlock], generator.up_blocks)
        self.final = PixelBlockConv(
            generator.final, _largest_block(BLOCK_OF_FRAME, folded.frame_size)
        )
        self.to(device, dtype).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.shrink = motion.down if motion.down is None else motion.down.to(device)  # float32
        self.eval().requires_grad_(False)

    def source(self, images: Tensor) -> SourceFeatures:
        """Features of (B, 3, H, W) float32 images, in `dtype`, channels last."""
        small = images if self.shrink is None else self.shrink(images)
        x = self._typed(images)
        encoded = _conv_relu(self.first, x)
        for block in self.down_blocks:
            encoded = _down(cast(DownBlock, block), encoded)
        return SourceFeatures(encoded, self._typed(small))

    def animate(
        self, features: SourceFeatures, kp_source: Keypoints, kp_driving: Keypoints
    ) -> Tensor:
        """float32 (B, 3, H, W) of B driving rows; sources are one row or B, as `source` gives."""
        rows = len(kp_driving)
        features, kp_source = features.expand(rows), kp_source.expand(rows)
        moved = sparse_motion(
            features.small,
            kp_source,
            kp_driving,
            variance=self.variance,
            align_corners=self.align_corners,
            least_channels=self.motions,
        )
        logits = self.heads(self._hourglass(moved))
        occlusion = logits[:, self.masks :] if logits.shape[1] > self.masks else None
        motion = mix_motions(logits[:, : self.masks], occlusion, kp_source, kp_driving)
        size = features.encoded.shape[2:]
        shown = None if motion.occlusion_map is None else resize(motion.occlusion_map, *size)
        x = warp(
            features.encoded,
            resize_grid(motion.deformation, *size),
            shown,
            align_corners=self.align_corners,
        )
        x = self._bottleneck(x)
        for block in self.up_blocks:
            x = affine_relu(_without_bias(block.conv, x), None, _bias(block.conv))
        return torch.sigmoid(self.final(x).float())

    def _hourglass(self, x: Tensor) -> Tensor:
        levels = [x]
        for block in self.encoder:
            levels.append(_down(cast(DownBlock, block), levels[-1]))
        x = levels[-1]
        for block, skip in zip(self.decoder, reversed(levels[:-1]), strict=True):
            conv = cast(SubpixelUpBlock, block).conv
            wide = _up_to(conv.out_channels + skip.shape[1])
            x = bias_relu_cat(_without_bias(conv, x), _bias(conv), skip, channels=wide)
        return x

    def _bottleneck(self, x: Tensor) -> Tensor:
        first = cast(ChannelAffine, self.blocks[0].norm1)
        activated = affine_relu(x, first.scale, first.shift)
        for block, after in zip(self.blocks, [*self.blocks[1:], None], strict=True):
            update = _without_bias(block.conv2, _conv_relu(block.conv1, activated))
            if after is None:
                return x + (update + _bias(block.conv2)[:, None, None])
            norm = cast(ChannelAffine, after.norm1)
            x, activated = residual(x, update, _bias(block.conv2), norm.scale, norm.shift)
        raise AssertionError("a bottleneck has at least one block")

    def _typed(self, images: Tensor) -> Tensor:
        return images.to(self.dtype).contiguous(memory_format=torch.channels_last)


def _down(block: DownBlock, x: Tensor) -> Tensor:
    return bias_relu_pool(_without_bias(block.conv, x), _bias(block.conv))


def _without_bias(conv: nn.Conv2d | nn.ConvTranspose2d, x: Tensor) -> Tensor:
    run = F.conv_transpose2d if isinstance(conv, nn.ConvTranspose2d) else F.conv2d
    return run(x, conv.weight, None, stride=conv.stride, padding=conv.padding)  # pyright: ignore[reportArgumentType]


def _conv_relu(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """In cuDNN's own epilogue where there is cuDNN."""
    if not x.is_cuda:
        return torch.relu(conv(x))
    return torch.ops.aten.cudnn_convolution_relu(
        x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups
    )


def _bias(conv: nn.Conv2d | nn.ConvTranspose2d) -> Tensor:
    assert conv.bias is not None, "folded convolutions have one"
    return conv.bias


def _padded_encoder(encoder: Encoder) -> nn.ModuleList:
    """The down blocks; the first reads zeros behind its input."""
    blocks = list(encoder.down_blocks)
    first = cast(DownBlock, blocks[0])
    first.conv = _reading(first.conv, _up_to(first.conv.in_channels))
    return nn.ModuleList(blocks)


def _padded_decoder(decoder: Decoder) -> nn.ModuleList:
    """The up blocks; each but the first reads zeros behind its input, where those are."""
    blocks = [cast(SubpixelUpBlock, block) for block in decoder.up_blocks]
    for block in blocks[1:]:
        block.conv = _reading_transposed(block.conv, _up_to(block.conv.in_channels))
    return nn.ModuleList(blocks)


def _last_up(decoder: nn.ModuleList) -> nn.ConvTranspose2d:
    return cast(SubpixelUpBlock, decoder[-1]).conv


def _reading(conv: nn.Conv2d, channels: int) -> nn.Conv2d:
    """The same convolution of a map with more channels, of which it sees nothing."""
    wide = copy.deepcopy(conv)
    more = conv.weight.new_zeros(len(conv.weight), channels, *conv.weight.shape[2:])
    more[:, : conv.in_channels] = conv.weight
    wide.weight, wide.in_channels = nn.Parameter(more), channels
    return wide


def _reading_transposed(conv: nn.ConvTranspose2d, channels: int) -> nn.ConvTranspose2d:
    wide = copy.deepcopy(conv)
    more = conv.weight.new_zeros(channels, *conv.weight.shape[1:])
    more[: conv.in_channels] = conv.weight
    wide.weight, wide.in_channels = nn.Parameter(more), channels
    return wide


def _up_to(channels: int) -> int:
    return -(-channels // WIDE) * WIDE


def _largest_block(side: int, size: tuple[int, int]) -> int:
    """The largest power of two up to `side` that divides both sides of a map."""
    while size[0] % side or size[1] % side:
        side //= 2
    return side


def _motion_size(fomm: Fomm) -> tuple[int, int]:
    step = int(1 / fomm.config.generator.dense_motion_params.scale_factor)
    height, width = fomm.frame_size
    return -(-height // step), -(-width // step)
