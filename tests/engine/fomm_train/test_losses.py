"""The terms of FOMM's training loss against the reference's numbers and independent arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from dfm_engine.fomm import augment, losses
from dfm_engine.fomm.blocks import AntiAlias
from dfm_engine.fomm.config import parse_config
from dfm_engine.fomm.discriminator import Discriminator
from dfm_engine.fomm.equivariance import Warp, draw_warp
from dfm_engine.fomm.keypoints import KeypointDetector
from dfm_engine.fomm.transfer import transfer
from dfm_engine.fomm.values import Keypoints


@pytest.fixture
def reference(shared: Path) -> dict[str, torch.Tensor]:
    """train.npz, and the frames that its terms were computed on."""
    folder = shared / "reference/fomm-small"
    stored = {k: torch.from_numpy(v) for k, v in np.load(folder / "train.npz").items()}
    io = np.load(folder / "io.npz")
    stored["real"] = torch.from_numpy(io["driving"][1:3]).permute(0, 3, 1, 2)
    stored["fake"] = torch.from_numpy(io["gen.ac0.rel_adapt.prediction"][1:3])
    return stored


@pytest.fixture
def small(shared: Path):
    """The small reference model's keypoint detector and discriminator, in evaluation mode."""
    folder = shared / "reference/fomm-small"
    config = parse_config(folder / "small-128.yaml")
    state = torch.load(folder / "small-cpk.pth.tar", weights_only=True)
    detector, discriminator = KeypointDetector(config), Discriminator(config)
    detector.load_state_dict(state["kp_detector"])
    discriminator.load_state_dict(state["discriminator"])
    return detector.eval(), discriminator.eval()


def close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    worst = (found - wanted).abs().max().item()
    assert worst <= tolerance, f"worst difference {worst:.3g} above {tolerance:.3g}"


def test_pyramid_agrees_with_the_reference(reference) -> None:
    pyramid = losses.image_pyramid(reference["real"], (1, 0.5, 0.25, 0.125))
    for scale in (1, 0.5, 0.25, 0.125):
        close(pyramid[scale], reference[f"pyramid.{scale}"], 3e-6)  # 841 taps


def test_pyramid_is_the_model_s_own_anti_alias_filter_at_odd_sizes() -> None:
    images = torch.rand(2, 3, 43, 38)
    for scale in (0.5, 0.25, 0.125):
        close(losses.image_pyramid(images, (scale,))[scale], AntiAlias(3, scale)(images), 1e-6)


def test_adversarial_terms_agree_with_the_reference(reference, small) -> None:
    with torch.no_grad():
        real = small[1]({1.0: reference["real"]})[1.0]
        fake = small[1]({1.0: reference["fake"]})[1.0]
    close(real.prediction_map, reference["disc.real_map"], 2e-5)
    close(losses.generator_gan(fake.prediction_map), reference["loss.gen_gan_w1"], 1e-5)
    found = losses.discriminator_gan(real.prediction_map, fake.prediction_map)
    close(found, reference["loss.disc_gan_w1"], 1e-5)
    found = losses.feature_matching(real.features, fake.features, weights=(10, 10, 10, 10))
    close(found, reference["loss.feature_matching_w10x4"], 2e-4)


@pytest.mark.parametrize("align_corners", [False, True])
def test_equivariance_agrees_with_the_reference(reference, small, align_corners: bool) -> None:
    warp = Warp(
        reference["tps.theta"], reference["tps.control_points"], reference["tps.control_params"]
    )
    key = f"ac{int(align_corners)}"
    frames = warp.frames(reference["real"], align_corners=align_corners)
    close(frames, reference[f"tps.{key}.transformed_frame"], 2e-5)
    with torch.no_grad():
        driving, warped = small[0](reference["real"]), small[0](frames)
    points = warp.coordinates(warped.value)
    close(points, reference[f"tps.{key}.warped_kp"], 1e-5)
    derivative = warp.jacobian(warped.value)
    close(derivative, reference[f"tps.{key}.transform_jacobian"], 1e-5)
    found = 10 * losses.equivariance_value(driving.value, points)
    close(found, reference[f"loss.{key}.equivariance_value_w10"], 2e-5)
    found = 10 * losses.equivariance_jacobian(driving.jacobian, derivative @ warped.jacobian)
    close(found, reference[f"loss.{key}.equivariance_jacobian_w10"], 2e-5)


def test_warp_s_jacobian_is_its_derivative() -> None:
    warp = draw_warp(3, rng=np.random.default_rng(5), sigma_tps=0.05)
    warp = Warp(*(getattr(warp, name).double() for name in Warp.__dataclass_fields__))
    points = (torch.rand(3, 7, 2, dtype=torch.float64) * 2 - 1).requires_grad_()
    mapped = warp.coordinates(points)
    rows = [torch.autograd.grad(mapped[..., i].sum(), points, retain_graph=True)[0] for i in (0, 1)]
    close(warp.jacobian(points.detach()), torch.stack(rows, dim=-2), 1e-12)


def test_warp_draws_have_the_published_strength() -> None:
    warp = draw_warp(4000, rng=np.random.default_rng(0))
    identity = torch.eye(2, 3)
    assert (warp.theta - identity).std().item() == pytest.approx(0.05, rel=0.03)
    assert (warp.theta.mean(0) - identity).abs().max() < 0.005
    assert warp.control_params.std().item() == pytest.approx(0.005, rel=0.03)


def test_hull_areas_scale_motion_as_the_animation_does() -> None:
    torch.manual_seed(3)
    source, initial, driving = (torch.rand(5, 10, 2) * 1.6 - 0.8 for _ in range(3))
    moved = transfer(Keypoints(source), Keypoints(driving), Keypoints(initial), mode="rel_adapt")
    ratio = (losses.hull_areas(source) / losses.hull_areas(initial)).sqrt()[:, None, None]
    # 64 directions miss a corner now and then: it costs a thousandth of the area
    close(ratio * (driving - initial) + source, moved.value, 5e-3)
    square = torch.tensor([[[0.0, 0], [2, 0], [2, 2], [0, 2], [1, 1]]])
    close(losses.hull_areas(square), torch.tensor([4.0]), 1e-6)


def test_structure_distance_weighs_regions_and_prefers_the_target() -> None:
    torch.manual_seed(0)
    target = torch.rand(2, 3, 24, 24)
    assert losses.structure_distance(target, target).item() == pytest.approx(0, abs=1e-6)
    worse = target.clone()
    worse[:, :, 8:12, 8:12] += 0.3
    plain = losses.structure_distance(worse, target)
    region = torch.ones(2, 1, 24, 24)
    region[:, :, 6:14, 6:14] = 5
    assert losses.structure_distance(worse, target, region=region) > 3 * plain
    only_l1 = losses.structure_distance(worse, target, gradient_weight=0, ssim_weight=0)
    assert only_l1.item() == pytest.approx(0.3 * 16 / 576, rel=1e-5)


def test_box_ssim_agrees_with_scikit_image() -> None:
    from skimage.metrics import structural_similarity

    rng = np.random.default_rng(1)
    first = rng.random((40, 36, 3))
    second = np.clip(first + rng.normal(0, 0.1, first.shape), 0, 1)
    _, wanted = structural_similarity(
        first, second, win_size=7, channel_axis=2, data_range=1, use_sample_covariance=False,
        full=True,
    )  # fmt: skip
    planes = [torch.from_numpy(x).permute(2, 0, 1)[None] for x in (first, second)]
    found = losses.box_ssim(planes[0], planes[1])[0].permute(1, 2, 0)
    close(found[3:-3, 3:-3], torch.from_numpy(wanted)[3:-3, 3:-3], 1e-9)


def test_region_weights_peak_at_their_points() -> None:
    weights = losses.region_weights(
        torch.tensor([[[0.0, 0.0], [1.0, -1.0]]]), 33, 33, sigma=0.1, strength=12
    )
    assert weights[0, 0, 16, 16].item() == pytest.approx(13)
    assert weights[0, 0, 0, 32].item() == pytest.approx(13)
    assert weights[0, 0, 32, 0].item() == pytest.approx(1, abs=1e-4)


def test_occlusion_target_closes_where_the_moved_source_is_wrong() -> None:
    target = torch.zeros(1, 3, 16, 16)
    warped = target.clone()
    warped[..., 8:] = 0.5
    wanted = losses.occlusion_target(warped, target)
    assert wanted[0, 0, 8, 2].item() == pytest.approx(1)
    assert wanted[0, 0, 8, 13].item() == pytest.approx(np.exp(-5), rel=1e-4)


def pil_jitter(picture: np.ndarray, factors, order) -> np.ndarray:
    """What torchvision's ColorJitter does to a PIL image."""
    image = Image.fromarray(picture)
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for index in order:
        if index < 3:
            image = enhancers[index](image).enhance(float(factors[index]))
        else:
            hue, saturation, value = image.convert("HSV").split()
            shifted = np.asarray(hue).astype(int) + int(factors[3] * 255)
            hue = Image.fromarray((shifted % 256).astype(np.uint8))
            image = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    return np.asarray(image)


def test_jitter_is_what_pil_computes() -> None:
    rng = np.random.default_rng(2)
    frames = rng.integers(0, 256, (12, 3, 20, 24), dtype=np.uint8)
    frames[0] = frames[0, :1]  # grey pixels have no hue
    frames[1, :, :5] = 255
    drawn = augment.draw(
        12, rng=rng, time_flip=True, horizontal_flip=True,
        brightness=0.4, contrast=0.4, saturation=0.4, hue=0.3,
    )  # fmt: skip
    found = augment.jitter(torch.from_numpy(frames), drawn).numpy()
    wanted = np.stack(
        [
            pil_jitter(frame.transpose(1, 2, 0), factors, order).transpose(2, 0, 1)
            for frame, factors, order in zip(frames, drawn.factors, drawn.order, strict=True)
        ]
    )
    difference = np.abs(found.astype(int) - wanted.astype(int))
    # float32 against PIL's mix of float and double: a truncation may fall the other way
    assert (difference == 0).mean() > 0.995
    assert difference.mean() < 0.01


def test_flips_never_come_together() -> None:
    drawn = augment.draw(
        4000, rng=np.random.default_rng(0), time_flip=True, horizontal_flip=True,
        brightness=0.1, contrast=0.1, saturation=0.1, hue=0.1,
    )  # fmt: skip
    assert not (drawn.time_flip & drawn.mirror).any()
    assert drawn.time_flip.mean() == pytest.approx(0.5, abs=0.03)
    assert drawn.mirror.mean() == pytest.approx(0.25, abs=0.03)
    assert np.abs(drawn.factors[:, :3] - 1).max() <= 0.1
    assert np.abs(drawn.factors[:, 3]).max() <= 0.1
    assert (np.sort(drawn.order, axis=1) == np.arange(4)).all()
