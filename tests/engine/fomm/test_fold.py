"""The rewrites for inference are exact: in float64 what remains is rounding."""

from __future__ import annotations

import pytest
import torch
from dfmtest_fomm import assert_close, make_fomm, pictures, small_config, to_double
from torch import nn
from torch.nn import functional as F

from dfm_engine.errors import ShapeError
from dfm_engine.fomm.blocks import UpBlock
from dfm_engine.fomm.fold import SubpixelUpBlock, fold, merge_convolutions
from dfm_engine.norms import ChannelAffine

# Each output is a sum of at most 16 * 49 products of size about 1, at 1.1e-16 each, through some
# 20 layers whose norms keep the size: 1e-12 is a hundred times what that gives.
ROUNDING = 1e-12


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("subpixel", [False, True])
@pytest.mark.parametrize("frame", [(64, 64), (64, 96)])
@torch.no_grad()
def test_a_folded_model_does_what_the_model_did(frame: tuple[int, int], subpixel: bool) -> None:
    model = to_double(make_fomm(small_config(frame=frame)))
    folded = fold(model, subpixel=subpixel)
    source, driving = pictures(2, frame, seed=1), pictures(2, frame, seed=2)
    results = []
    for each in (model, folded):
        kp_source, kp_driving = each.keypoints(source), each.keypoints(driving)
        features = each.encode_source(source)
        results.append((kp_driving, features, each.animate(features, kp_source, kp_driving)))
    (kp, features, animation), (kp_folded, features_folded, animation_folded) = results
    assert kp.jacobian is not None
    assert_close(kp_folded.value, kp.value, ROUNDING, "keypoints")
    assert_close(kp_folded.jacobian, kp.jacobian, ROUNDING, "jacobian")
    assert_close(features_folded.encoded, features.encoded, ROUNDING, "features")
    assert_close(animation_folded.deformation, animation.deformation, ROUNDING, "deformation")
    assert_close(animation_folded.prediction, animation.prediction, ROUNDING, "prediction")
    assert animation.prediction.std() > 0.01  # something was compared


def test_no_norm_remains_and_the_model_itself_is_untouched() -> None:
    model = make_fomm(small_config())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folded = fold(model, subpixel=True)
    assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d | UpBlock)]
    assert sum(isinstance(m, ChannelAffine) for m in folded.modules()) == 2  # one per ResBlock
    assert sum(isinstance(m, SubpixelUpBlock) for m in folded.modules()) == 3 + 3 + 2
    assert folded.weights_sha256 == model.weights_sha256
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (7, 4)])
@torch.no_grad()
def test_the_subpixel_form_is_exact_up_to_the_border(
    size: tuple[int, int], generator: torch.Generator
) -> None:
    conv = nn.Conv2d(3, 5, 3, padding=1).double()
    x = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64)
    wanted = F.relu(conv(F.interpolate(x, scale_factor=2.0, mode="nearest")))
    assert_close(SubpixelUpBlock(conv)(x), wanted, ROUNDING)


@torch.no_grad()
def test_merged_convolutions_give_each_ones_channels_in_order(generator: torch.Generator) -> None:
    first, second = nn.Conv2d(4, 3, 7).double(), nn.Conv2d(4, 8, 7).double()
    x = torch.randn(2, 4, 9, 8, generator=generator, dtype=torch.float64)
    merged = merge_convolutions(first, second)(x)
    assert_close(merged[:, :3], first(x), ROUNDING)
    assert_close(merged[:, 3:], second(x), ROUNDING)


def test_what_cannot_be_rewritten_is_refused() -> None:
    with pytest.raises(ShapeError, match="dense 3x3"):
        SubpixelUpBlock(nn.Conv2d(3, 3, 5, padding=2))
    with pytest.raises(ShapeError, match="differ in padding"):
        merge_convolutions(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3, padding=1))
