"""Convolutions in int8, as standard QuantizeLinear / DequantizeLinear pairs, with their own scales.

    y = conv(x)   becomes   y ~ sum_c  DQ(Q(x_c / s_c)) * DQ(w_q,c)  + b

- weights: int8, symmetric, one scale per output channel (ONNX: int8 initialisers behind DQ);
- activations: uint8, one scale per tensor; what follows a ReLU has zero point 0. The clip is the
  one of 0.5 to 1.0 of the largest value that has the least mean squared error on calibration data,
  and headroom on top, for other data have larger values;
- equalisation: s_c = sqrt(max|x_c| / max|w_c|) evens out the channels of the activation. Behind an
  affine map or a convolution with ReLU it is free (ReLU is positively homogeneous), else it is one
  product per channel;
- bias correction: what rounding shifts the mean of an output channel by is taken off its bias.

In torch a module computes what the file means, in float32: sums of products of small integers are
exact there up to 2^24 steps. In an export it writes the operators themselves. Source of the scheme:
Nagel et al. 2019 (equalisation, bias correction); Jacob et al. 2018 (the integer form).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfm_engine.errors import UsageError
from dfm_engine.fomm.blocks import ResBlock, UpBlock
from dfm_engine.norms import ChannelAffine, bias_of

__all__ = ["NARROW", "WIDE", "QuantisedConv", "Scope", "quantise_decoder"]

LEVELS = 255  # of uint8
CLIPS = torch.linspace(0.5, 1.0, 21)
HEADROOM = 1.4
"""Of a clip, over the best on calibration data. Seeded vox-256 on four frames that were not
calibrated on: their largest values are up to 1.9 of that clip, and the worst frame has 41 dB
without headroom, where the others have 50; with it all have 47 to 49 (2026-11-23)."""

SAMPLES = 200_000  # values that a clip is chosen on


@dataclass(frozen=True, slots=True)
class Scope:
    """Which convolutions of the decoder are quantised, and in which form.

    Attributes:
        name: for people.
        residual, up, final: the bottleneck, the up blocks, the last 7x7.
        closed: with a Q/DQ pair behind the second convolution of a residual block too. ONNX Runtime
            makes an integer convolution only of those; it costs about 4 dB.
    """

    name: str
    residual: bool
    up: bool
    final: bool
    closed: bool


NARROW = Scope("residual blocks, closed", residual=True, up=False, final=False, closed=True)
"""For ONNX Runtime: further blocks gain little there."""

WIDE = Scope("residual blocks, up blocks, last layer", True, True, True, closed=False)
"""For OpenVINO and TensorRT."""


@dataclass(frozen=True, slots=True)
class Affine8:
    """A tensor's scale and zero point in uint8: value = scale * (q - zero_point)."""

    scale: float
    zero_point: int

    @classmethod
    def of(cls, values: Tensor, *, headroom: float = 1.0) -> Affine8:
        """The range with the least squared error on these values, and headroom; 0 is in it."""
        values = _sample(values)
        low, high = float(values.min().clamp(max=0)), float(values.max().clamp(min=0))
        if high == low:
            return cls(1.0, 0)
        best, least = cls(1.0, 0), float("inf")
        for clip in CLIPS.tolist():
            scale = clip * (high - low) / LEVELS
            candidate = cls(scale, min(max(round(-clip * low / scale), 0), LEVELS))
            error = float((candidate.round(values) - values).square().mean())
            if error < least:
                best, least = candidate, error
        return cls(best.scale * headroom, best.zero_point)

    def round(self, x: Tensor) -> Tensor:
        """What is left of x: Q, then DQ. Rounds half to even, as ONNX does."""
        q = (x / self.scale).round() + self.zero_point
        return (q.clamp(0, LEVELS) - self.zero_point) * self.scale


class QuantisedConv(nn.Module):
    """A convolution of stride 1 in int8; see the module's docstring.

    Args:
        convolution: in float32, equalised already.
        x: activations that reach it, for the scale, (N, C, H, W).
        multiplier: (C,) applied to the input first; None where the equalisation is folded.
        upsample: nearest neighbour to twice the size, between Q and DQ.
        output: a Q/DQ pair behind it, or None.
    """

    weight: Tensor
    weight_scale: Tensor
    weight_zero: Tensor
    bias: Tensor
    bias_scale: Tensor
    bias_zero: Tensor
    scale: Tensor
    zero_point: Tensor
    out_scale: Tensor
    out_zero: Tensor
    multiplier: Tensor | None

    def __init__(
        self,
        convolution: nn.Conv2d,
        x: Tensor,
        *,
        multiplier: Tensor | None = None,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        if convolution.groups != 1 or convolution.stride != (1, 1):
            raise UsageError(f"only dense convolutions of stride 1 are quantised: {convolution}")
        self.upsample = upsample
        self.padding = convolution.padding
        self.output: Affine8 | None = None
        if multiplier is not None:
            x = x * _per_channel(multiplier)
        self.input = Affine8.of(x, headroom=HEADROOM)
        weight = convolution.weight.detach()
        scale = (weight.abs().amax(dim=(1, 2, 3)) / 127).clamp_min(1e-12)
        self._keep("weight", (weight / scale[:, None, None, None]).round().to(torch.int8))
        self._keep("weight_scale", scale)
        self._keep("weight_zero", torch.zeros(len(scale), dtype=torch.int8))
        self._keep("scale", torch.tensor(self.input.scale))
        self._keep("zero_point", torch.tensor(self.input.zero_point, dtype=torch.uint8))
        self._keep("multiplier", multiplier)
        self._set_bias(bias_of(convolution))

    def _keep(self, name: str, value: Tensor | None) -> None:
        self.register_buffer(name, value)

    def _set_bias(self, bias: Tensor) -> None:
        """As int32 steps of input scale x weight scale: what integer kernels add."""
        step = self.weight_scale * self.scale
        steps = (bias / step).round().clamp(-(2.0**31), 2.0**31 - 128)
        self._keep("bias", steps.to(torch.int32))
        self._keep("bias_scale", step)
        self._keep("bias_zero", torch.zeros(len(step), dtype=torch.int32))

    def close(self, values: Tensor) -> None:
        """Put a Q/DQ pair behind the convolution, with the scale of these outputs."""
        self.output = Affine8.of(values, headroom=HEADROOM)
        self._keep("out_scale", torch.tensor(self.output.scale))
        self._keep("out_zero", torch.tensor(self.output.zero_point, dtype=torch.uint8))

    def correct_bias(self, found: Tensor, wanted: Tensor) -> None:
        """Take the mean difference of each channel off the bias."""
        shift = (wanted - found).double().mean(dim=(0, 2, 3)).float()
        self._set_bias(self.bias.float() * self.bias_scale + shift)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H', W')."""
        if self.multiplier is not None:
            x = x * _per_channel(self.multiplier)
        if torch.onnx.is_in_onnx_export():
            return self._written(x)
        x = self.input.round(x)
        if self.upsample:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        weight = self.weight.float() * self.weight_scale[:, None, None, None]
        y = F.conv2d(x, weight, self.bias.float() * self.bias_scale, padding=self.padding)
        return y if self.output is None else self.output.round(y)

    def _written(self, x: Tensor) -> Tensor:
        q = _quantize(x, self.scale, self.zero_point)
        if self.upsample:
            q = F.interpolate(q, scale_factor=2.0, mode="nearest")
        y = F.conv2d(
            _dequantize(q, self.scale, self.zero_point),
            _dequantize(self.weight, self.weight_scale, self.weight_zero, axis=0),
            _dequantize(self.bias, self.bias_scale, self.bias_zero, axis=0),
            padding=self.padding,
        )
        if self.output is None:
            return y
        return _dequantize(
            _quantize(y, self.out_scale, self.out_zero), self.out_scale, self.out_zero
        )


class QuantisedResBlock(nn.Module):
    """x + conv2(ReLU(conv1(ReLU(affine x)))), the convolutions in int8."""

    def __init__(self, affine: ChannelAffine, conv1: QuantisedConv, conv2: QuantisedConv) -> None:
        super().__init__()
        self.affine, self.conv1, self.conv2 = affine, conv1, conv2

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        return x + self.conv2(F.relu(self.conv1(F.relu(self.affine(x)))))


@torch.no_grad()
def quantise_decoder(
    net: nn.Sequential, x: Tensor, *, scope: Scope
) -> tuple[nn.Sequential, dict[str, float]]:
    """The generator's decoder in int8.

    Blocks are quantised in order, each on what the quantised ones before it give, and against what
    the float network gives: later blocks see the errors of earlier ones.

    Args:
        net: bottleneck of residual blocks, up blocks, last convolution; norms folded. Up blocks
            that are to be quantised in their plain form. Stays as it is.
        x: (N, C, h, w) calibration inputs.
        scope: what to quantise.

    Returns:
        The quantised net, and the signal-to-quantisation-noise ratio in dB behind each block.

    Raises:
        UsageError: `net` has another structure.
    """
    bottleneck, *ups, final = net
    is_known = (
        isinstance(bottleneck, nn.Sequential)
        and all(isinstance(block, ResBlock) for block in bottleneck)
        and isinstance(final, nn.Conv2d)
        and (not scope.up or all(isinstance(block, UpBlock) for block in ups))
    )
    if not is_known:
        raise UsageError(
            "int8: the decoder must be residual blocks, up blocks (in their plain form where they "
            f"are quantised) and a convolution, got {[type(part).__name__ for part in net]}"
        )
    assert isinstance(bottleneck, nn.Sequential)
    assert isinstance(final, nn.Conv2d)
    sqnr_db: dict[str, float] = {}
    blocks: list[nn.Module] = []
    exact, seen = x, x

    def advance(name: str, block: nn.Module, made: nn.Module) -> None:
        nonlocal exact, seen
        blocks.append(made)
        if made is block and not (scope.up or scope.final):
            return  # nothing is quantised behind it
        exact, seen = block(exact), made(seen)
        if made is not block:
            sqnr_db[name] = _sqnr_db(exact, seen)

    for index, block in enumerate(bottleneck):
        assert isinstance(block, ResBlock)
        made = _residual(block, exact, seen, closed=scope.closed) if scope.residual else block
        advance(f"residual {index}", block, made)
    for index, block in enumerate(ups):
        made = block
        if scope.up:
            assert isinstance(block, UpBlock)
            made = _up(block, exact, seen)
        advance(f"up {index}", block, made)
    advance("final", final, _last(final, exact, seen) if scope.final else final)
    count = len(bottleneck)
    made_net = nn.Sequential(nn.Sequential(*blocks[:count]), *blocks[count:])
    return made_net.eval().requires_grad_(False), sqnr_db


def _residual(block: ResBlock, exact: Tensor, seen: Tensor, *, closed: bool) -> nn.Module:
    affine = block.norm1
    assert isinstance(affine, ChannelAffine)
    conv1, conv2 = copy.deepcopy(block.conv1), copy.deepcopy(block.conv2)
    wanted1 = conv1(F.relu(affine(exact)))
    wanted2 = conv2(F.relu(wanted1))
    # The first equalisation goes into the affine map, the second into the first convolution.
    first = _equalisation(F.relu(affine(exact)), conv1.weight)
    affine = ChannelAffine(affine.scale / first, affine.shift / first)
    conv1.weight.mul_(first[None, :, None, None])
    second = _equalisation(F.relu(wanted1), conv2.weight)
    conv1.weight.div_(second[:, None, None, None])
    bias_of(conv1).div_(second)
    conv2.weight.mul_(second[None, :, None, None])
    wanted1 = wanted1 / _per_channel(second)

    x = F.relu(affine(seen))
    made1 = QuantisedConv(conv1, x)
    made1.correct_bias(made1(x), wanted1)
    x = F.relu(made1(x))
    made2 = QuantisedConv(conv2, x)
    made2.correct_bias(made2(x), wanted2)
    if closed:
        made2.close(made2(x))
    return QuantisedResBlock(affine, made1, made2)


def _up(block: UpBlock, exact: Tensor, seen: Tensor) -> nn.Module:
    wanted = block.conv(F.interpolate(exact, scale_factor=2.0, mode="nearest"))
    made = _equalised(block.conv, exact, seen, wanted, upsample=True)
    return nn.Sequential(made, nn.ReLU())


def _last(convolution: nn.Conv2d, exact: Tensor, seen: Tensor) -> nn.Module:
    return _equalised(convolution, exact, seen, convolution(exact), upsample=False)


def _equalised(
    convolution: nn.Conv2d, exact: Tensor, seen: Tensor, wanted: Tensor, *, upsample: bool
) -> QuantisedConv:
    convolution = copy.deepcopy(convolution)
    even = _equalisation(exact, convolution.weight)
    convolution.weight.mul_(even[None, :, None, None])
    made = QuantisedConv(convolution, seen, multiplier=1 / even, upsample=upsample)
    made.correct_bias(made(seen), wanted)
    return made


def _equalisation(x: Tensor, weight: Tensor) -> Tensor:
    """(C,) s_c = sqrt(max|x_c| / max|w_c|); 1 for a channel that is never used."""
    activity = x.abs().amax(dim=(0, 2, 3))
    strength = weight.abs().amax(dim=(0, 2, 3))
    used = (activity > 1e-6) & (strength > 1e-12)
    ratio = torch.where(used, activity / strength.clamp_min(1e-12), torch.ones_like(activity))
    return ratio.sqrt()


def _sample(values: Tensor) -> Tensor:
    """At most `SAMPLES` of the values, evenly spread, the extremes among them."""
    flat = values.flatten()
    if flat.numel() <= SAMPLES:
        return flat
    step = flat.numel() // SAMPLES + 1
    return torch.cat([flat[::step], flat.amin()[None], flat.amax()[None]])


def _sqnr_db(exact: Tensor, found: Tensor) -> float:
    noise = (found - exact).double().square().mean().clamp_min(1e-30)
    return float(10 * (exact.double().square().mean() / noise).log10())


def _per_channel(values: Tensor) -> Tensor:
    return values[None, :, None, None]


def _quantize(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return torch.onnx.ops.symbolic(
        "QuantizeLinear", (x, scale, zero_point), dtype=zero_point.dtype, shape=x.shape
    )


def _dequantize(q: Tensor, scale: Tensor, zero_point: Tensor, *, axis: int | None = None) -> Tensor:
    return torch.onnx.ops.symbolic(
        "DequantizeLinear",
        (q, scale, zero_point),
        {} if axis is None else {"axis": axis},
        dtype=torch.float32,
        shape=q.shape,
    )
