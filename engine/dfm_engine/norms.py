"""Norms that vanish at inference: exact rewrites, for any network of convolutions.

A norm behind a convolution goes into the convolution's weights. Of any other norm an affine map
per channel remains, whose numbers also fit 16-bit types (a trained running variance may not).

Equal up to rounding; sums are taken in float64.
"""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfm_engine.errors import CheckFailed

__all__ = ["ChannelAffine", "bias_of", "fold_norm", "fold_norms"]


EPS = 2.0**-8
"""Of a norm without statistics: torch wants it above 0; 1 - EPS and EPS are exact in 16 bits."""


class ChannelAffine(nn.Module):
    """x * scale + shift, per channel: what remains of a norm that cannot be folded."""

    scale: Tensor
    shift: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        self.register_buffer("mean", torch.zeros_like(scale))
        self.register_buffer("variance", torch.full_like(scale, 1 - EPS))

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> ChannelAffine:
        """The same map as a norm in evaluation mode."""
        scale, shift = _scale_and_shift(norm)
        return cls(scale.to(norm.weight.dtype), shift.to(norm.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same.

        As a norm with mean 0 and variance 1, eps included: one pass in every runtime, where a
        product and a sum are two in most. (Such statistics also fit float16; a trained running
        variance may not.)
        """
        return F.batch_norm(x, self.mean, self.variance, self.scale, self.shift, eps=EPS)


@torch.no_grad()
def fold_norms(module: nn.Module, example: Tensor) -> nn.Module:
    """A copy of a network, for inference, without a norm.

    Which norm stands behind which convolution is found by running the network once; whether nobody
    else reads that convolution, by running it once more afterwards, in float64.

    Args:
        module: called with one tensor; gives one. Stays as it is.
        example: an input; values that reach every branch.

    Raises:
        CheckFailed: the result differs; the network has a structure that this cannot read.
    """
    folded = copy.deepcopy(module).eval().requires_grad_(False).double()
    example = example.double()
    wanted = folded(example)
    before = _convolutions_before_norms(folded, example)
    for name, norm in list(folded.named_modules()):
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        convolution = before.get(name)
        if convolution is None:
            replacement: nn.Module = ChannelAffine.of(norm)
        else:
            _replace(folded, convolution, fold_norm(_convolution(folded, convolution), norm))
            replacement = nn.Identity()
        _replace(folded, name, _with_activation(norm, replacement))
    found = folded(example)
    error = float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))
    if not error < 1e-9:
        raise CheckFailed(
            f"folding the norms of {type(module).__name__}: the result is off by {error:.2g} of "
            "its largest value in float64, must be below 1e-9; export it with its norms"
        )
    return folded.to(next(module.parameters()).dtype)


def fold_norm(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A convolution that does what the convolution and then the norm did, in evaluation mode."""
    scale, shift = _scale_and_shift(norm)
    folded = copy.deepcopy(convolution)
    with torch.no_grad():
        folded.weight.copy_(convolution.weight.double() * scale[:, None, None, None])
        folded.bias = nn.Parameter(
            (bias_of(convolution).double() * scale + shift).to(convolution.weight)
        )
    return folded.eval().requires_grad_(False)


def bias_of(convolution: nn.Conv2d) -> Tensor:
    """Its bias, zeros where it has none."""
    if convolution.bias is None:
        return convolution.weight.new_zeros(convolution.out_channels)
    return convolution.bias.detach()


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
        return scale, norm.bias.double() - norm.running_mean.double() * scale


def _convolutions_before_norms(module: nn.Module, example: Tensor) -> dict[str, str]:
    """Name of a norm -> name of the convolution whose output it was given, where it was one."""
    made: dict[int, tuple[str, Tensor]] = {}  # the tensor is kept, so that its id stays its own
    found: dict[str, str] = {}
    handles = []

    def after_convolution(name: str, _part: nn.Module, _inputs: object, output: Tensor) -> None:
        made[id(output)] = (name, output)

    def before_norm(name: str, _part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if id(inputs[0]) in made:
            found[name] = made[id(inputs[0])][0]

    for name, part in module.named_modules():
        if isinstance(part, nn.Conv2d):
            handles.append(part.register_forward_hook(partial(after_convolution, name)))
        elif isinstance(part, nn.BatchNorm2d):
            handles.append(part.register_forward_pre_hook(partial(before_norm, name)))
    try:
        module(example)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _with_activation(norm: nn.BatchNorm2d, replacement: nn.Module) -> nn.Module:
    """What a norm of timm has inside: `drop` and `act`."""
    inside = [
        part for name in ("drop", "act") if isinstance(part := getattr(norm, name, None), nn.Module)
    ]
    inside = [part for part in inside if not isinstance(part, nn.Identity)]
    return nn.Sequential(replacement, *inside) if inside else replacement


def _convolution(module: nn.Module, name: str) -> nn.Conv2d:
    found = module.get_submodule(name)
    assert isinstance(found, nn.Conv2d)
    return found


def _replace(module: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, part)
