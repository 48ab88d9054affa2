"""The engine's FOMM against numbers computed by the public code; tolerances are its README's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from dfmtest_fomm import assert_close, numpy_twin
from torch.nn import functional as F

from dfm_engine import fomm
from dfm_engine.fomm import Keypoints
from dfm_engine.fomm.blocks import AntiAlias
from dfm_engine.fomm.model import Fomm
from dfm_engine.fomm.reference import trace_animation, trace_keypoints

Arrays = dict[str, np.ndarray]
TOLERANCES = {
    "prediction": 5e-5,
    "mask": 5e-5,
    "occlusion_map": 5e-5,
    "deformation": 5e-5,
    "sparse_deformed": 2e-4,
    "deformed": 1e-3,
}
MODES = ("abs", "rel", "rel_adapt", "rel_nojac")


@pytest.fixture
def small(shared: Path) -> Path:
    return shared / "reference" / "fomm-small"


@pytest.fixture
def io(small: Path) -> Arrays:
    return dict(np.load(small / "io.npz"))


def load(small: Path, align_corners: bool = True, **changes: Any) -> Fomm:
    config = yaml.safe_load((small / "small-128.yaml").read_text())
    config["model_params"]["kp_detector_params"].update(changes)
    return fomm.load(small / "small-cpk.pth.tar", config, align_corners=align_corners)


def images(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).movedim(-1, -3)


def keypoints(io: Arrays, name: str) -> Keypoints:
    value, jacobian = (torch.from_numpy(io[f"{name}.{part}"]) for part in ("value", "jacobian"))
    return Keypoints(value, jacobian)


def difference(found: torch.Tensor, wanted: np.ndarray) -> float:
    return float((found - torch.from_numpy(wanted)).abs().max())


@torch.inference_mode()
@pytest.mark.parametrize("batch", [1, 4])
def test_keypoints(small: Path, io: Arrays, batch: int) -> None:
    model = load(small)
    found = {
        "kp_source": model.keypoints(images(io["source"])[None]),
        "kp_driving": Keypoints.cat(
            [model.keypoints(part) for part in images(io["driving"]).split(batch)]
        ),
    }
    for name, points in found.items():
        assert_close(points.value, io[f"{name}.value"], 1e-5, name)
        assert_close(points.jacobian, io[f"{name}.jacobian"], 1e-5, name)


@pytest.mark.parametrize("mode", MODES)
def test_transfer(io: Arrays, mode: fomm.TransferMode) -> None:
    driving = keypoints(io, "kp_driving")
    moved = fomm.transfer(keypoints(io, "kp_source"), driving, driving[0], mode=mode)
    # the file's keypoints are rounded; one more rounding of each product
    assert_close(moved.value, io[f"kp_norm.{mode}.value"], 2e-6, mode)
    assert_close(moved.jacobian, io[f"kp_norm.{mode}.jacobian"], 2e-6, mode)


@torch.inference_mode()
@pytest.mark.parametrize("case", ["ac0.abs", "ac0.rel_adapt", "ac1.rel_adapt"])
def test_animation(small: Path, io: Arrays, case: str) -> None:
    corners, mode = case.split(".")
    model = load(small, align_corners=corners == "ac1")
    source = images(io["source"])[None]
    kp_source, moved = keypoints(io, "kp_source"), keypoints(io, f"kp_norm.{mode}")
    animation = model.animate(model.encode_source(source), kp_source, moved)
    for name in ("prediction", "mask", "deformation", "occlusion_map"):
        wanted = io[f"gen.{case}.{name}"]
        found = getattr(animation, name).numpy()
        assert_close(found, wanted, TOLERANCES[name], name)
        assert np.abs(found - wanted).mean() <= TOLERANCES[name] / 10
    full = model.generator(source, kp_source, moved[1])
    for name in ("sparse_deformed", "deformed"):
        assert_close(getattr(full, name), io[f"gen.{case}.{name}_frame1"], TOLERANCES[name], name)


@torch.inference_mode()
def test_whole_chain_from_pixels(small: Path, io: Arrays) -> None:
    model = load(small)
    source, driving = images(io["source"])[None], images(io["driving"])
    kp_source, kp_driving = model.keypoints(source), model.keypoints(driving)
    moved = model.transfer(kp_source, kp_driving, kp_driving[0], mode="rel_adapt")
    animation = model.animate(model.encode_source(source), kp_source, moved)
    assert_close(animation.prediction, io["gen.ac1.rel_adapt.prediction"], 5e-5, "prediction")


@torch.inference_mode()
def test_every_stage_of_the_traced_reference(small: Path, io: Arrays) -> None:
    stages = dict(np.load(small / "stages.npz"))
    model = load(small, align_corners=False)
    points, trace = trace_keypoints(model.kp_detector, images(io["driving"])[1:2])
    assert_close(points.value[0], io["kp_driving.value"][1], 1e-5, "value")
    source = images(io["source"])[None]
    kp_source, kp_driving = keypoints(io, "kp_source"), keypoints(io, "kp_driving")[1]
    trace |= trace_animation(model.generator, source, kp_source, kp_driving)
    assert stages.keys() <= trace.keys()
    for name, wanted in stages.items():
        # what is sampled from a steep picture carries its noise on; logits are of order ten
        loose = name.startswith(("dm.hourglass", "dm.mask_l", "gen.", "out.sparse"))
        tolerance = 1e-3 if name == "out.deformed" else 2e-4 if loose else 5e-5
        assert_close(trace[name], wanted, tolerance, name)


@torch.inference_mode()
def test_wrong_align_corners_is_seen(small: Path, io: Arrays) -> None:
    kp_source, moved = keypoints(io, "kp_source"), keypoints(io, "kp_norm.rel_adapt")
    for align_corners, other in ((True, "ac0"), (False, "ac1")):
        model = load(small, align_corners=align_corners)
        features = model.encode_source(images(io["source"])[None])
        prediction = model.animate(features, kp_source, moved).prediction
        assert difference(prediction, io[f"gen.{other}.rel_adapt.prediction"]) > 0.05


@torch.inference_mode()
def test_wrong_head_padding_and_temperature_are_seen(small: Path, io: Arrays) -> None:
    driving = images(io["driving"])
    for name, value in (("pad", 3), ("temperature", 0.2)):
        model = load(small, True, **{name: value})
        assert difference(model.keypoints(driving).value, io["kp_driving.value"]) > 1e-2


@torch.inference_mode()
def test_numpy_model_equals_the_published_code(small: Path, io: Arrays) -> None:
    # float64 against float32: the noise floor of the published run itself, times three
    for align_corners in (False, True):
        model = load(small, align_corners=align_corners)
        config = yaml.safe_load((small / "small-128.yaml").read_text())
        twin = numpy_twin(model, config)
        value, jacobian = twin.keypoints(io["driving"][1].transpose(2, 0, 1))
        assert_close(value, io["kp_driving.value"][1], 5e-6, "value")
        assert_close(jacobian, io["kp_driving.jacobian"][1], 1e-6, "jacobian")
        frame = twin.animate(
            io["source"].transpose(2, 0, 1),
            (io["kp_source.value"][0], io["kp_source.jacobian"][0]),
            (io["kp_norm.rel_adapt.value"][1], io["kp_norm.rel_adapt.jacobian"][1]),
        )
        case = f"gen.ac{int(align_corners)}.rel_adapt"
        for name in ("prediction", "mask", "deformation", "occlusion_map"):
            assert_close(frame[name], io[f"{case}.{name}"][1], 2e-5, name)
        assert_close(frame["deformed"], io[f"{case}.deformed_frame1"][0], 2e-4, "deformed")


@torch.inference_mode()
def test_discriminator(small: Path, io: Arrays) -> None:
    train = dict(np.load(small / "train.npz"))
    discriminator = fomm.load_discriminator(small / "small-cpk.pth.tar", small / "small-128.yaml")
    real = images(io["driving"])[1:3]
    fake = torch.from_numpy(io["gen.ac0.rel_adapt.prediction"])[1:3]
    on_real, on_fake = discriminator({1.0: real})[1.0], discriminator({1.0: fake})[1.0]
    for i, feature in enumerate(on_real.features):
        assert_close(feature, train[f"disc.real_feature{i}"], 2e-5, f"feature {i}")
    assert_close(on_real.prediction_map, train["disc.real_map"], 2e-5, "real map")
    assert_close(on_fake.prediction_map, train["disc.fake_map"], 2e-5, "fake map")
    adversarial = (1 - on_fake.prediction_map).square().mean()
    assert_close(adversarial, train["loss.gen_gan_w1"], 1e-5, "generator loss")
    features = discriminator({1.0: fake})[1.0].features
    matching = sum(10 * F.l1_loss(a, b) for a, b in zip(on_real.features, features, strict=True))
    assert_close(matching, train["loss.feature_matching_w10x4"], 1e-4, "feature matching")


@torch.inference_mode()
@pytest.mark.parametrize("scale", [0.5, 0.25, 0.125])
def test_antialias_pyramid(small: Path, io: Arrays, scale: float) -> None:
    train = dict(np.load(small / "train.npz"))
    real = images(io["driving"])[1:3]
    assert_close(AntiAlias(3, scale)(real), train[f"pyramid.{scale}"], 1e-6, "pyramid")
