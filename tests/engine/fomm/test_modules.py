"""The networks as published: entries, sizes, and that they train."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from dfmtest_fomm import make_fomm, pictures, small_config
from torch import nn

from dfm_engine.errors import ShapeError
from dfm_engine.fomm import Discriminator, Keypoints, SourceFeatures, parse_config
from dfm_engine.fomm.model import Fomm


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def vox() -> Fomm:
    with torch.device("meta"):
        return Fomm(parse_config())


def test_vox_256_has_the_published_entries(vox: Fomm) -> None:
    kp, gen = vox.kp_detector.state_dict(), vox.generator.state_dict()
    assert (len(kp), parameters(vox.kp_detector)) == (75, 14_215_368)
    assert (len(gen), parameters(vox.generator)) == (196, 45_575_391)
    shapes = {name: list(value.shape) for name, value in (kp | gen).items()}
    assert shapes["predictor.encoder.down_blocks.4.conv.weight"] == [1024, 512, 3, 3]
    assert shapes["predictor.decoder.up_blocks.1.conv.weight"] == [256, 1024, 3, 3]
    assert shapes["kp.weight"] == [10, 35, 7, 7]
    assert shapes["jacobian.bias"] == [40]
    assert shapes["down.weight"] == [3, 1, 13, 13]
    dense_motion = "dense_motion_network."
    assert shapes[dense_motion + "hourglass.encoder.down_blocks.0.conv.weight"] == [128, 44, 3, 3]
    assert shapes[dense_motion + "hourglass.decoder.up_blocks.1.conv.weight"] == [512, 2048, 3, 3]
    assert shapes[dense_motion + "mask.weight"] == [11, 108, 7, 7]
    assert shapes[dense_motion + "occlusion.bias"] == [1]
    assert shapes["first.conv.weight"] == [64, 3, 7, 7]
    assert shapes["bottleneck.r5.norm2.running_var"] == [256]
    assert shapes["up_blocks.1.norm.num_batches_tracked"] == []
    assert shapes["final.weight"] == [3, 64, 7, 7]


def test_vox_256_discriminators_have_the_published_entries() -> None:
    discriminator = Discriminator(parse_config())
    state = discriminator.state_dict()
    assert (len(state), parameters(discriminator)) == (26, 2_758_849)
    assert list(state["discs.1.down_blocks.3.conv.weight_orig"].shape) == [512, 256, 4, 4]
    assert list(state["discs.1.down_blocks.3.conv.weight_u"].shape) == [512]
    assert list(state["discs.1.down_blocks.3.conv.weight_v"].shape) == [4096]
    assert "discs.1.down_blocks.0.norm.weight" not in state
    config = parse_config().to_dict()
    config["model_params"]["discriminator_params"] |= {
        "use_kp": True,
        "sn": False,
        "scales": [1, 0.5],
        "max_features": 64,
    }
    adversarial = Discriminator(parse_config(config)).state_dict()
    assert list(adversarial["discs.0-5.down_blocks.0.conv.weight"].shape) == [64, 13, 4, 4]
    assert list(adversarial["discs.1.conv.weight"].shape) == [1, 64, 1, 1]


def test_discriminator_with_keypoints_looks_at_them() -> None:
    config = small_config()
    config["model_params"]["discriminator_params"]["use_kp"] = True
    discriminator = Discriminator(parse_config(config)).eval()
    image = pictures(1, (64, 64)).float()
    points = [Keypoints(torch.full((1, 4, 2), at)) for at in (0.0, 0.5)]
    maps = [discriminator({1.0: image}, kp)[1.0].prediction_map for kp in points]
    assert (maps[0] - maps[1]).abs().max() > 1e-3
    with pytest.raises(ShapeError, match="pass the driving keypoints"):
        discriminator({1.0: image})


def test_jacobians_start_from_the_identity() -> None:
    model = Fomm(parse_config(small_config()))
    jacobian = model.keypoints(pictures(2, (64, 64)).float()).jacobian
    assert jacobian is not None
    torch.testing.assert_close(jacobian, torch.eye(2).expand(2, 4, 2, 2), rtol=0, atol=1e-6)


def test_one_training_step_reaches_every_weight() -> None:
    model = make_fomm(small_config()).train()
    source, driving = pictures(2, (64, 64)).float(), pictures(2, (64, 64), seed=1).float()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    animation = model.generator(source, model.kp_detector(source), model.kp_detector(driving))
    assert animation.deformed is not None
    assert animation.sparse_deformed is not None
    assert animation.deformed.shape == source.shape
    loss = (animation.prediction - driving).abs().mean()
    loss.backward()
    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().max() > 0
    ]
    # a bias right before a norm in training mode is taken off again: its gradient is rounding
    assert [name for name in without if not name.endswith("conv.bias")] == []
    after = model.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {name for name in after if "running" in name or "num_batches" in name}


@torch.inference_mode()
def test_source_features_are_those_of_the_training_path() -> None:
    model = make_fomm(small_config())
    images = pictures(2, (64, 64)).float()
    points = model.keypoints(images)
    features = model.encode_source(images)
    assert features.encoded.shape == (2, 16, 16, 16)
    assert features.small.shape == (2, 3, 16, 16)
    cached = model.animate(features, points, points[[1, 0]])
    full = model.generator(images, points, points[[1, 0]])
    assert torch.equal(cached.prediction, full.prediction)
    assert cached.deformed is None
    assert cached.sparse_deformed is None


def test_rows_index_expand_and_concatenate() -> None:
    points = Keypoints(torch.arange(12.0).view(3, 2, 2), torch.arange(24.0).view(3, 2, 2, 2))
    assert len(points) == 3
    assert torch.equal(points[-1].value, points.value[2:])
    assert torch.equal(points[[2, 0]].value, points.value[[2, 0]])
    assert torch.equal(points[1:].jacobian, points.jacobian[1:])  # pyright: ignore
    assert points[0].expand(4).value.shape == (4, 2, 2)
    joined = Keypoints.cat([points[2], points[:2]])
    assert torch.equal(joined.value, points.value[[2, 0, 1]])
    assert points.to(dtype=torch.float64).value.dtype == torch.float64
    assert repr(points) == "Keypoints(value=(3, 2, 2), jacobian=(3, 2, 2, 2))"
    with pytest.raises(IndexError, match="row 3 of 3"):
        points[3]
    with pytest.raises(ShapeError, match="lack their jacobian"):
        Keypoints.cat([points, Keypoints(points.value)])
    with pytest.raises(ShapeError, match="has 3 rows and cannot serve 2"):
        points.expand(2)
    with pytest.raises(ShapeError, match="nothing to concatenate"):
        Keypoints.cat([])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.keypoints(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)), "images_from_frames"),
        (lambda m: m.keypoints(torch.zeros(3, 64, 64)), r"got torch.float32 \(3, 64, 64\)"),
        (lambda m: m.encode_source(torch.zeros(1, 1, 64, 64)), r"must be float \(B, 3, H, W\)"),
        (lambda m: m.encode_source(torch.zeros(1, 3, 64, 60)), "multiples of 32"),
        (lambda m: m.animate(FEATURES, POINTS, Keypoints(POINTS.value)), "jacobians are absent"),
        (lambda m: m.animate(FEATURES, POINTS, five_points()), "model has 4 keypoints"),
        (lambda m: m.animate(FEATURES[[0, 0]], POINTS, POINTS.expand(3)), "cannot serve 3"),
        (lambda m: Keypoints(torch.zeros(4, 2)), r"must be \(B, K, 2\)"),
        (lambda m: Keypoints(torch.zeros(1, 4, 2), torch.zeros(1, 4, 2)), "matching keypoints"),
        (lambda m: SourceFeatures(torch.zeros(1, 1, 1, 1), torch.zeros(2, 3, 1, 1)), "of one B"),
    ],
)
def test_wrong_shapes_are_refused(call: Callable[[Fomm], object], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        call(make_fomm(small_config()))


POINTS = Keypoints(torch.zeros(1, 4, 2), torch.eye(2).expand(1, 4, 2, 2))
FEATURES = SourceFeatures(torch.zeros(1, 16, 16, 16), torch.zeros(1, 3, 16, 16))


def five_points() -> Keypoints:
    return Keypoints(torch.zeros(1, 5, 2), torch.eye(2).expand(1, 5, 2, 2))
