"""Norms fold away exactly: in float64 what remains is rounding."""

from __future__ import annotations

import pytest
import torch
from dfmtest_fomm import assert_close
from torch import nn

from dfm_engine.detect.models import create_detector
from dfm_engine.errors import CheckFailed
from dfm_engine.norms import ChannelAffine, fold_norm, fold_norms


def lively_norm(channels: int, generator: torch.Generator) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels).double().eval()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        norm.weight.copy_(torch.randn(channels, generator=generator))  # some negative
        norm.bias.copy_(torch.randn(channels, generator=generator))
        norm.running_mean.copy_(torch.randn(channels, generator=generator))
        norm.running_var.copy_(torch.rand(channels, generator=generator) * 100 + 1e-3)
    return norm


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_a_folded_norm_is_exact_with_negative_scales(
    bias: bool, generator: torch.Generator
) -> None:
    conv = nn.Conv2d(4, 6, 3, padding=1, bias=bias).double()
    norm = lively_norm(6, generator)
    x = torch.randn(2, 4, 5, 7, generator=generator, dtype=torch.float64)
    assert_close(fold_norm(conv, norm)(x), norm(conv(x)), 1e-11)  # scales up to 30
    y = torch.randn(2, 6, 5, 7, generator=generator, dtype=torch.float64)
    assert_close(ChannelAffine.of(norm)(y), norm(y), 1e-11)


def liven(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """Norms that do something, negative scales among it."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            with torch.no_grad():
                for tensor in (part.weight, part.bias, part.running_mean):
                    tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator))
                part.running_var.mul_(0.5 + torch.rand(tensor.shape, generator=generator))
    return module.eval()


class NormAct(nn.BatchNorm2d):
    """As timm's: the activation inside."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.LeakyReLU(0.1)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.act(super().forward(input))


class Net(nn.Module):
    """Norms behind a convolution, before one, and with an activation inside."""

    def __init__(self, *, shared: bool = False) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.norm2, self.conv2 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.norm3 = NormAct(4)
        self.shared = shared

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm1(self.conv1(x)))
        x = self.conv2(torch.relu(self.norm2(x)))
        return x + self.norm3(x) if self.shared else self.norm3(x)


def test_a_network_without_its_norms_does_what_it_did(generator: torch.Generator) -> None:
    net = liven(Net(), generator).double()
    folded = fold_norms(net, torch.randn(2, 3, 8, 8, generator=generator))
    assert not [part for part in folded.modules() if isinstance(part, nn.BatchNorm2d)]
    assert sum(isinstance(part, ChannelAffine) for part in folded.modules()) == 1  # norm2
    x = torch.randn(3, 3, 9, 7, generator=generator, dtype=torch.float64)
    assert_close(folded(x), net(x).detach(), 1e-12)
    assert isinstance(net.norm1, nn.BatchNorm2d)  # the network itself stays


def test_a_convolution_that_somebody_else_reads_is_not_folded_silently(
    generator: torch.Generator,
) -> None:
    net = liven(Net(shared=True), generator)
    with pytest.raises(CheckFailed, match=r"off by .* of its largest value"):
        fold_norms(net, torch.randn(2, 3, 8, 8, generator=generator))


@pytest.mark.parametrize("name", ["meso4", "resnet18", "efficientnet_b0"])
@torch.no_grad()
def test_detectors_fold(name: str, generator: torch.Generator) -> None:
    detector = create_detector(name, input_px=None if name == "meso4" else 64)
    liven(detector, generator)
    side = detector.spec.input_px
    x = torch.randn(1, 3, side, side, generator=generator, dtype=torch.float64)
    folded = fold_norms(detector, x)
    assert not [part for part in folded.modules() if isinstance(part, nn.BatchNorm2d)]
    left = sum(isinstance(part, ChannelAffine) for part in folded.modules())
    assert left == (4 if name == "meso4" else 0)  # Meso's norms stand behind a ReLU
    assert_close(folded.double()(x), detector.double()(x), 1e-6)  # weights went through float32
