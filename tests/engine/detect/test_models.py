"""Detectors: their size, their class activation maps, their input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dfmtest_detect import made
from torch import nn

from dfm_engine.detect.detector import DetectorSpec
from dfm_engine.detect.fit import FrameFitter
from dfm_engine.detect.models import (
    DETECTORS,
    create_detector,
    detector_spec,
    fake_probability,
)
from dfm_engine.detect.runner import TorchDetectorRunner
from dfm_engine.errors import ShapeError, UsageError
from dfm_kernels.crop import crop_reference


def images_for(spec: DetectorSpec, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(count, 3, spec.input_px, spec.input_px, generator=generator) * 0.5


def count_multiply_adds(detector, images: torch.Tensor) -> int:
    """Of convolutions and linear layers, by looking at what passes through each."""
    total = 0

    def note(module, inputs, output) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += output[0].numel() * module.weight[0].numel()
        else:
            total += module.weight.numel()

    handles = [
        module.register_forward_hook(note)
        for module in detector.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        detector(images)
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds"),
    [
        ("small-cnn", 47_394, None),
        ("mesoinception4", 28_615, 57.1e6),
        ("meso4", 27_977, None),
        ("xception", 20_811_050, 5.95e9),
    ],
)
def test_nets_have_the_known_size(name: str, parameters: int, multiply_adds: float | None) -> None:
    detector = made(name)
    assert sum(p.numel() for p in detector.parameters()) == parameters
    if multiply_adds is not None:
        found = count_multiply_adds(detector, images_for(detector.spec, 1))
        assert found == pytest.approx(multiply_adds, rel=2e-3)


def test_mesoinception_holds_110_running_numbers_beside_its_parameters() -> None:
    buffers = {k: v for k, v in made("mesoinception4").named_buffers() if "num_batches" not in k}
    assert sum(v.numel() for v in buffers.values()) == 2 * (11 + 12 + 16 + 16)
    norms = [m for m in made("mesoinception4").modules() if isinstance(m, nn.BatchNorm2d)]
    assert [m.eps for m in norms] == [1e-3] * 4


def biases_of_logits(detector, features: torch.Tensor) -> torch.Tensor:
    """What the maps leave out, computed another way: the logit where the features are zero, with
    the slopes of the hidden units kept as they were."""
    if detector.spec.cam == "exact":
        return detector.head.bias.expand(len(features), -1)
    first, second = detector.head.dense1, detector.head.dense2
    hidden = first(features.flatten(1))
    slope = torch.where(hidden > 0, 1.0, 0.1)
    return (slope * first.bias * second.weight).sum(1, keepdim=True) + second.bias


@pytest.mark.parametrize("name", ["mesoinception4", "meso4", "xception", "small-cnn"])
def test_the_mean_of_a_map_and_the_biases_are_the_logit(name: str) -> None:
    detector = made(name)
    images = images_for(detector.spec)
    with torch.no_grad():
        logits, cam = detector.logits_and_cam(images)
        features, again = detector.features_and_logits(images)
        biases = biases_of_logits(detector, features)
    assert torch.equal(logits, again)
    assert cam.shape == (2, detector.spec.logits, *features.shape[2:])
    # A mean of 64 places and a few hundred products of float32, each off by 6e-8 of its size.
    torch.testing.assert_close(cam.mean((2, 3)) + biases, logits, atol=2e-5, rtol=1e-4)
    assert cam.std() > 1e-3


def test_mesos_map_is_gradient_times_activation() -> None:
    detector = made("mesoinception4")
    features = detector.features(images_for(detector.spec)).detach().requires_grad_()
    logit = detector.head(detector.embed(features))
    (gradient,) = torch.autograd.grad(logit.sum(), features)
    wanted = (gradient * features).sum(1, keepdim=True) * 64
    torch.testing.assert_close(detector.cam(features), wanted, atol=1e-5, rtol=1e-4)


def test_a_timm_model_by_name_knows_whether_its_map_is_exact() -> None:
    exact = create_detector("test_resnet")
    assert exact.spec.cam == "exact"
    images = images_for(exact.spec)
    with torch.no_grad():
        logits, cam = exact.logits_and_cam(images)
        torch.testing.assert_close(logits, exact.net(images))
        torch.testing.assert_close(cam.mean((2, 3)) + exact.head.bias, logits, atol=1e-5, rtol=1e-4)


def test_a_vision_transformer_gets_a_gradient_map_over_its_patches() -> None:
    detector = create_detector("test_vit")
    assert detector.spec.cam == "gradient"
    images = images_for(detector.spec)
    with torch.no_grad():
        logits, cam = detector.logits_and_cam(images)
        torch.testing.assert_close(logits, detector.net(images))
    side = round((detector.net.forward_features(images).shape[1] - 1) ** 0.5)
    assert cam.shape == (2, 2, side, side)
    features = detector.features(images).detach().requires_grad_()
    out = detector.head(detector.embed(features))[0, 1]
    (gradient,) = torch.autograd.grad(out, features)
    wanted = (gradient * features)[0, 1:].sum(1).reshape(side, side) * side**2
    torch.testing.assert_close(cam[0, 1], wanted, atol=1e-5, rtol=1e-3)


def test_the_small_net_sees_the_detail_that_a_blur_takes_away() -> None:
    net = create_detector("small-cnn", input_px=32)
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    flat = (0.01 * x - 0.02 * y).expand(1, 3, 32, 32)
    detail = torch.nn.functional.conv2d(flat, net.detail, groups=3)
    assert detail.abs().max() < 1e-5
    spot = torch.zeros(1, 3, 3, 3)
    spot[0, 1, 1, 1] = 1
    found = torch.nn.functional.conv2d(spot, net.detail, groups=3).flatten()
    assert found.tolist() == [0, 16 * 0.75, 0]
    assert net.detail.requires_grad is False


def test_seeds_make_equal_nets_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(11)
    wanted = torch.rand(1)
    torch.manual_seed(11)
    first, second, other = (create_detector("small-cnn", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), wanted)
    assert first.weights_sha256 == second.weights_sha256 != other.weights_sha256
    assert len(first.weights_sha256) == 64


def test_unknown_names_are_answered_with_near_ones() -> None:
    with pytest.raises(UsageError, match="did you mean resnet50"):
        create_detector("resnet5O")
    with pytest.raises(UsageError, match="multiple of 32"):
        detector_spec("mesoinception4", input_px=250)


def test_specs_are_those_of_the_paper() -> None:
    sides = {name: detector_spec(name).input_px for name in DETECTORS}
    assert sides == {
        **dict.fromkeys(("mesoinception4", "meso4", "xception", "efficientnet_b4"), 256),
        **dict.fromkeys(("resnet50", "resnet101", "resnet152"), 224),
        "small-cnn": 256,
    }
    assert detector_spec("meso4").mean == (0, 0, 0)
    assert detector_spec("meso4").std == (1, 1, 1)
    assert detector_spec("xception").mean == detector_spec("xception").std == (0.5, 0.5, 0.5)
    assert detector_spec("resnet50").mean == (0.485, 0.456, 0.406)
    heads = {name: detector_spec(name).head for name in DETECTORS}
    assert [name for name, head in heads.items() if head == "sigmoid"] == [
        "mesoinception4",
        "meso4",
    ]


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"takes images \(B, 3, 256, 256\)"):
        made("small-cnn")(torch.zeros(1, 3, 64, 64))


def test_the_probability_is_that_of_the_last_logit() -> None:
    two = torch.tensor([[0.3, -1.2], [2.0, 5.0]], dtype=torch.float64)
    assert torch.allclose(fake_probability(two), two.softmax(1)[:, 1])
    one = torch.tensor([[0.3], [-2.0]])
    assert torch.equal(fake_probability(one), one.sigmoid()[:, 0])
    with pytest.raises(ShapeError, match="must be"):
        fake_probability(torch.zeros(2, 3))


def test_the_runner_resizes_by_the_crop_rule_and_normalises() -> None:
    rng = np.random.default_rng(0)
    frames = torch.from_numpy(rng.integers(0, 256, (3, 203, 203, 3), dtype=np.uint8))
    runner = TorchDetectorRunner(create_detector("test_resnet", seed=5))
    side, spec = runner.spec.input_px, runner.spec
    resized = crop_reference(frames.double(), (0, 0, 203, 203), side)
    pixels = (resized + 0.5).floor()
    wanted = (pixels / 255 - torch.tensor(spec.mean)) / torch.tensor(spec.std)
    found = runner.images(frames)
    assert found.is_contiguous(memory_format=torch.channels_last)
    # float32 rounds a value in a hundred thousand to the other side of a half
    off = (found.permute(0, 2, 3, 1).double() - wanted).abs() > 1e-5
    assert off.double().mean() < 1e-4
    out = runner.run(frames)
    torch.testing.assert_close(out.logits, runner.detector(found))
    assert torch.equal(out.fake, fake_probability(out.logits))
    assert runner.name == "torch-cpu-float32"


def test_frames_of_the_right_size_are_not_touched() -> None:
    rng = np.random.default_rng(1)
    frames = torch.from_numpy(rng.integers(0, 256, (2, 160, 160, 3), dtype=np.uint8))
    spec = DetectorSpec(name="x", input_px=160)
    assert torch.equal(FrameFitter(spec)(frames), frames)
    window = FrameFitter(DetectorSpec(name="x", input_px=128, crop=0.8))(frames)
    assert torch.equal(window, frames[:, 16:144, 16:144])


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1, 8, 8, 3), torch.float32, "must be uint8"),
        ((1, 3, 8, 8), torch.uint8, "must be uint8"),
        ((1, 8, 9, 3), torch.uint8, "must be square"),
        ((3, 8, 8, 3), torch.uint8, "takes 1 to 2 frames"),
    ],
)
def test_wrong_frames_are_refused(shape, dtype, message: str) -> None:
    runner = TorchDetectorRunner(create_detector("small-cnn"), max_batch=2)
    with pytest.raises(ShapeError, match=message):
        runner.run(torch.zeros(shape, dtype=dtype))


def test_a_row_does_not_depend_on_the_others_beyond_rounding() -> None:
    rng = np.random.default_rng(2)
    frames = torch.from_numpy(rng.integers(0, 256, (5, 256, 256, 3), dtype=np.uint8))
    runner = TorchDetectorRunner(create_detector("mesoinception4", seed=1))
    together, alone = runner.run(frames), runner.run(frames[3:4])
    torch.testing.assert_close(together.logits[3:4], alone.logits, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(together.cam[3:4], alone.cam, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters", "giga_macs"),
    [
        ("resnet50", 23_512_130, 4.09),
        ("resnet101", 42_504_258, 7.80),
        ("resnet152", 58_147_906, 11.51),
        ("efficientnet_b4", 17_552_202, 1.96),
    ],
)
def test_larger_nets_have_the_known_size_and_exact_maps(
    name: str, parameters: int, giga_macs: float
) -> None:
    detector = create_detector(name)
    assert sum(p.numel() for p in detector.parameters()) == parameters
    images = images_for(detector.spec, 1)
    assert count_multiply_adds(detector, images) == pytest.approx(giga_macs * 1e9, rel=5e-3)
    with torch.no_grad():
        logits, cam = detector.logits_and_cam(images)
    torch.testing.assert_close(cam.mean((2, 3)) + detector.head.bias, logits, atol=1e-4, rtol=1e-3)
