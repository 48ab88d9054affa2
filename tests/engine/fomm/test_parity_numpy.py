"""The engine's FOMM against an independent float64 NumPy FOMM, on many architectures.

Tolerance 1e-9: float64 rounds at 1e-16, and the network amplifies noise by at most 1e4 (in
float32 6e-8 becomes 1e-4 in the steepest output), which leaves a factor of a thousand. Every
wrong rule moves an output by more than 1e-3.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from dfmtest_fomm import assert_close, make_fomm, numpy_twin, pictures, small_config, to_double
from dfmtest_fomm_numpy import Rules

from dfm_engine.fomm import Keypoints
from dfm_engine.fomm.model import Fomm
from dfm_engine.fomm.reference import trace_animation, trace_keypoints

TOLERANCE = 1e-9

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "landscape": {"frame": (64, 96)},
    "portrait": {"frame": (96, 32), "kp": {"num_blocks": 1}},
    "many points, wide": {"num_kp": 11, "kp": {"block_expansion": 6, "max_features": 40}},
    "one point": {"num_kp": 1},
    "no down blocks": {"gen": {"num_down_blocks": 0}},
    "three down blocks": {"gen": {"num_down_blocks": 3, "num_bottleneck_blocks": 1}},
    "no bottleneck": {"gen": {"num_bottleneck_blocks": 0}},
    "no jacobian": {"estimate_jacobian": False},
    "single jacobian map": {"kp": {"single_jacobian_map": True}},
    "no occlusion map": {"gen": {"estimate_occlusion_map": False}},
    "padded heads": {"kp": {"pad": 3}},
    "other hourglasses": {"kp": {"num_blocks": 2}, "dm": {"num_blocks": 4, "block_expansion": 8}},
    "half and full scale": {"kp": {"scale_factor": 0.5}, "dm": {"scale_factor": 1}},
    "eighth scale": {"frame": (128, 64), "kp": {"scale_factor": 0.125}},
    "temperature and variance": {"kp": {"temperature": 0.3}, "dm": {"kp_variance": 0.05}},
}


def arrays(keypoints: Keypoints, row: int) -> tuple[np.ndarray, np.ndarray | None]:
    jacobian = None if keypoints.jacobian is None else keypoints.jacobian[row].numpy()
    return keypoints.value[row].numpy(), jacobian


@torch.inference_mode()
@pytest.mark.parametrize(
    ("changes", "align_corners"),
    [
        pytest.param(changes, align_corners, id=f"{name}, {align_corners}")
        for name, changes in ARCHITECTURES.items()
        for align_corners in ((True, False) if "down" in name or name == "plain" else (True,))
    ],
)
def test_every_output_equals_the_numpy_model(changes: dict[str, Any], align_corners: bool) -> None:
    config = small_config(**changes)
    model = to_double(make_fomm(config, seed=3, align_corners=align_corners))
    twin = numpy_twin(model, config)
    images = pictures(3, model.frame_size)
    keypoints = model.keypoints(images)
    for row, image in enumerate(images.numpy()):
        value, jacobian = twin.keypoints(image)
        assert_close(keypoints.value[row], value, TOLERANCE, "keypoints")
        if jacobian is None:
            assert keypoints.jacobian is None
        else:
            assert keypoints.jacobian is not None
            assert_close(keypoints.jacobian[row], jacobian, TOLERANCE, "jacobian")
            assert np.abs(jacobian - np.eye(2)).max() > 0.05  # says something

    # one source serves two driving rows
    animation = model.animate(model.encode_source(images[:1]), keypoints[0], keypoints[1:])
    full = model.generator(images[:1].expand(2, -1, -1, -1), keypoints[[0, 0]], keypoints[1:])
    for row in range(2):
        wanted = twin.animate(images[0].numpy(), arrays(keypoints, 0), arrays(keypoints, row + 1))
        for name in ("prediction", "mask", "deformation", "occlusion_map"):
            if name not in wanted:
                assert getattr(animation, name) is None
                continue
            assert_close(getattr(animation, name)[row], wanted[name], TOLERANCE, name)
        for name in ("prediction", "sparse_deformed", "deformed"):
            assert_close(getattr(full, name)[row], wanted[name], TOLERANCE, f"training {name}")
    assert np.ptp(animation.prediction.numpy()) > 0.2
    if len(keypoints.value[0]) > 1:
        assert (animation.prediction[0] - animation.prediction[1]).abs().max() > 0.01


WRONG: dict[str, dict[str, Any]] = {
    "align_corners": {"align_corners": False},
    "border": {"border": "edge"},
    "head padding": {"head_padding": 3},
    "grid over pixel edges": {"grid_over_pixel_edges": True},
    "skip first": {"skip_first": True},
    "occlusion after the bottleneck": {"occlude_after_bottleneck": True},
    "swapped axes": {"swap_axes": True},
    "no anti-alias": {"antialias": False},
    "background last": {"background_last": True},
    "interpolation with aligned corners": {"interpolate_align_corners": True},
}


@torch.inference_mode()
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_rule_is_seen(wrong: dict[str, Any]) -> None:
    # no down blocks: the deformation is smaller than the features, so that resizing counts
    config = small_config(gen={"num_down_blocks": 0}, frame=(64, 96))
    model = to_double(make_fomm(config, seed=3))
    images = pictures(2, model.frame_size)
    keypoints = model.keypoints(images)
    found = [keypoints.value[0].numpy(), keypoints.value[1].numpy()]
    animation = model.animate(model.encode_source(images[:1]), keypoints[0], keypoints[1])
    found.append(animation.prediction[0].numpy())

    def differences(rules: Rules) -> list[float]:
        twin = numpy_twin(model, config, rules)
        points = [twin.keypoints(image.numpy()) for image in images]
        frame = twin.animate(images[0].numpy(), points[0], points[1])["prediction"]
        wanted = [points[0][0], points[1][0], frame]
        return [float(np.abs(a - b).max()) for a, b in zip(found, wanted, strict=True)]

    assert max(differences(Rules())) <= TOLERANCE
    assert max(differences(dataclasses.replace(Rules(), **wrong))) > 1e-3


@torch.inference_mode()
def test_float32_stays_within_the_published_tolerances() -> None:
    config = small_config()
    model = make_fomm(config, seed=3)
    images = pictures(2, model.frame_size).float()
    keypoints = model.keypoints(images)
    twin = numpy_twin(model, config)
    for row, image in enumerate(images.numpy()):
        value, jacobian = twin.keypoints(image)
        assert_close(keypoints.value[row], value, 1e-5, "keypoints")
        assert keypoints.jacobian is not None
        assert_close(keypoints.jacobian[row], jacobian, 1e-5, "jacobian")
    wanted = twin.animate(images[0].numpy(), arrays(keypoints, 0), arrays(keypoints, 1))
    animation = model.animate(model.encode_source(images[:1]), keypoints[0], keypoints[1])
    for name in ("prediction", "mask", "deformation", "occlusion_map"):
        assert_close(getattr(animation, name)[0], wanted[name], 5e-5, name)


@pytest.mark.parametrize("is_training", [False, True])
def test_modules_equal_the_line_by_line_reference(is_training: bool) -> None:
    model: Fomm = to_double(make_fomm(small_config(gen={"num_down_blocks": 1}), seed=5))
    model.train(is_training)
    images, driving = pictures(3, model.frame_size), pictures(3, model.frame_size, seed=1)
    with torch.no_grad():
        keypoints, moved = model.kp_detector(images), model.kp_detector(driving)
        animation = model.generator(images, keypoints, moved)
        slow, kp_trace = trace_keypoints(model.kp_detector, images)
        trace = trace_animation(model.generator, images, keypoints, moved)
    assert keypoints.jacobian is not None
    assert slow.jacobian is not None
    assert_close(keypoints.value, slow.value, TOLERANCE, "value")
    assert_close(keypoints.jacobian, slow.jacobian, TOLERANCE, "jacobian")
    assert set(kp_trace) == {f"kp.{n}" for n in KP_STAGES}
    for name in ("prediction", "mask", "deformation", "occlusion_map", "deformed"):
        assert_close(getattr(animation, name), trace[f"out.{name}"], TOLERANCE, name)
    assert_close(animation.sparse_deformed, trace["out.sparse_deformed"], TOLERANCE, "sparse")


KP_STAGES = ("antialias_64", "hourglass_out", "heatmap_logits", "jacobian_map")
