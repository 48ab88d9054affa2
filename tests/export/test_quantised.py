"""int8 convolutions: what torch computes is what the file says, and each measure is worth it."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfm_engine.errors import UsageError
from dfm_engine.fomm.blocks import ResBlock, UpBlock
from dfm_engine.fomm.fold import SubpixelUpBlock
from dfm_engine.norms import ChannelAffine, fold_norm
from dfm_export.quantised import (
    NARROW,
    WIDE,
    Affine8,
    QuantisedConv,
    Scope,
    quantise_decoder,
)


def decoder(*, seed: int = 0, channels: int = 8, subpixel: bool = False) -> nn.Sequential:
    """Two residual blocks, one up block, one last layer; norms folded, channels of unequal size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        blocks = [ResBlock(channels), ResBlock(channels)]
        up = UpBlock(channels, channels // 2)
        final = nn.Conv2d(channels // 2, 3, 7, padding=3)
    for block in blocks:
        block.norm1.weight.data = 10 ** (torch.rand(channels, generator=generator) * 2 - 1)
        block.norm1.bias.data = torch.randn(channels, generator=generator) * 0.1
        block.eval()
        block.conv1 = fold_norm(block.conv1, block.norm2)
        block.norm2 = nn.Identity()
        block.norm1 = ChannelAffine.of(block.norm1)
    up = up.eval()
    up.conv, up.norm = fold_norm(up.conv, up.norm), nn.Identity()
    ups = SubpixelUpBlock(up.conv) if subpixel else up
    return nn.Sequential(nn.Sequential(*blocks), ups, final).eval().requires_grad_(False)


def activations(rows: int = 4, *, seed: int = 1, channels: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(rows, channels, 6, 6, generator=generator)
    return F.interpolate(coarse, size=(16, 16), mode="bilinear")


def psnr_db(found: Tensor, wanted: Tensor) -> float:
    noise = (torch.sigmoid(found) - torch.sigmoid(wanted)).square().mean()
    return float(-10 * noise.log10())


def exported(module: nn.Module, x: Tensor, path: Path) -> onnx.ModelProto:
    torch.onnx.export(
        module,
        (x,),
        path,
        dynamo=True,
        opset_version=18,
        input_names=["x"],
        output_names=["y"],
        external_data=False,
        verbose=False,
    )
    return onnx.load(path)


@pytest.mark.parametrize("scope", [NARROW, WIDE], ids=["narrow", "wide"])
def test_the_file_computes_what_torch_does(scope: Scope, tmp_path):
    net, _ = quantise_decoder(decoder(), activations(), scope=scope)
    x = activations(2, seed=5)
    model = exported(net, x, tmp_path / "net.onnx")
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(
        tmp_path / "net.onnx", providers=["CPUExecutionProvider"]
    )
    found = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
    wanted = net(x)
    # Sums are taken in another order, so a value on the edge between two steps may fall to either
    # side; such a step is about 1/255 of a tensor's range, and few values meet one.
    assert (found - wanted).abs().max() < 0.05 * wanted.abs().max()
    assert (found - wanted).abs().mean() < 1e-3 * wanted.abs().max()
    kinds = [node.op_type for node in model.graph.node]
    # Behind every quantised input one pair; closed blocks have one more behind each second layer.
    quantised = 4 + 2 * scope.closed + scope.up + scope.final
    assert kinds.count("QuantizeLinear") == quantised
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    convolutions = 4 + scope.up + scope.final
    assert sum(kind == onnx.TensorProto.INT8 for kind in stored.values()) >= convolutions


@pytest.mark.parametrize("scope", [NARROW, WIDE], ids=["narrow", "wide"])
def test_the_result_stays_near_the_float_network_on_other_inputs(scope: Scope):
    net = decoder()
    made, sqnr_db = quantise_decoder(net, activations(8), scope=scope)
    x = activations(4, seed=9)
    assert psnr_db(made(x), net(x)) > 38
    expected = {"residual 0", "residual 1"} | ({"up 0", "final"} if scope.up else set())
    assert set(sqnr_db) == expected
    assert min(sqnr_db.values()) > 20


def test_equalising_channels_is_worth_decibels():
    net, x = decoder(), activations(8)
    residual = Scope("residual blocks", residual=True, up=False, final=False, closed=False)
    made, _ = quantise_decoder(net, x, scope=residual)
    plain = copy.deepcopy(net)
    for block in plain[0]:  # the same integers without it
        first = F.relu(block.norm1(x))
        block.conv1 = QuantisedConv(block.conv1, first)
        second = F.relu(block.conv1(first))
        block.conv2 = QuantisedConv(block.conv2, second)
        x = block(x)
    test = activations(4, seed=9)
    with_it, without = (float(psnr_db(n(test), net(test))) for n in (made, plain))
    assert with_it > without + 3, (with_it, without)


def test_the_network_that_was_given_stays_as_it_is():
    net, x = decoder(), activations()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    quantise_decoder(net, x, scope=WIDE)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_a_clip_has_less_error_than_the_largest_value():
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).abs()
    values[0] = 7.0  # one outlier
    found = Affine8.of(values)
    largest = Affine8(7.0 / 255, 0)
    error = (found.round(values) - values).square().mean()
    assert found.scale < largest.scale
    assert error < (largest.round(values) - values).square().mean()


def test_values_above_those_of_the_calibration_survive():
    conv = nn.Conv2d(2, 2, 1)
    x = torch.rand(1, 2, 40, 40, generator=torch.Generator().manual_seed(1))
    made = QuantisedConv(conv, x)
    made.close(made(x))
    assert made.output is not None
    for found, values in ((made.input, x), (made.output, conv(x).detach())):
        further = 1.25 * values
        assert (found.round(further) - further).abs().max() <= 0.51 * found.scale


def test_zero_is_always_representable():
    for values in (torch.tensor([1.0, 3.0]), torch.tensor([-2.0, 5.0]), torch.tensor([-3.0, -1.0])):
        assert float(Affine8.of(values).round(torch.zeros(1))) == 0.0
    assert Affine8.of(torch.zeros(4)).round(torch.zeros(2)).tolist() == [0.0, 0.0]


def test_the_bias_takes_up_what_rounding_shifts():
    convolution = decoder()[0][0].conv1
    x = F.relu(activations(8))
    made = QuantisedConv(convolution, x)
    wanted = convolution(x)
    before = (made(x) - wanted).mean(dim=(0, 2, 3)).abs().max()
    made.correct_bias(made(x), wanted)
    after = (made(x) - wanted).mean(dim=(0, 2, 3)).abs().max()
    assert after < 0.05 * before


def test_up_blocks_in_sub_pixel_form_stay_in_float_or_are_refused():
    net = decoder(subpixel=True)
    made, sqnr_db = quantise_decoder(net, activations(), scope=NARROW)
    assert made[1] is net[1]
    assert set(sqnr_db) == {"residual 0", "residual 1"}
    with pytest.raises(UsageError, match="SubpixelUpBlock"):
        quantise_decoder(net, activations(), scope=WIDE)


def test_an_unused_channel_does_not_divide_by_zero():
    net, x = decoder(), activations()
    net[0][0].norm1.scale[2] = 0.0
    net[0][0].norm1.shift[2] = -1.0
    made, _ = quantise_decoder(net, x, scope=WIDE)
    assert np.isfinite(made(x).numpy()).all()
