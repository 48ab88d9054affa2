"""Files are measured in ONNX Runtime against torch, and wrong ones fail by their numbers too."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from dfmtest_export import tiny_cases, tiny_file, tiny_graphs
from onnx import ModelProto, TensorProto, numpy_helper

from dfm_engine.detect.models import create_detector
from dfm_engine.errors import CheckFailed, EnvironmentUnfit
from dfm_export.artifact import ExportedGraph
from dfm_export.cases import DetectorCases, draw_faces
from dfm_export.parity import calls_of_files, calls_of_graphs, check, measure_detector, measure_fomm
from dfm_export.precision import plan_of

FP32, MIXED = plan_of("fomm", "fp32"), plan_of("fomm", "fp16_islands")


def mixed_files() -> dict[str, ExportedGraph]:
    return {n: tiny_file(n, "fp16_islands") for n in ("keypoints", "source", "animate")}


def changed(file: ExportedGraph, path: Path, change: Callable[[ModelProto], None]) -> ExportedGraph:
    model = onnx.load(file.path)
    change(model)
    onnx.save(model, path)
    return dataclasses.replace(file, path=path)


@pytest.mark.parametrize("rows", [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_mixed_files_agree_with_torch_for_any_rows(rows: tuple[int, int]) -> None:
    errors = measure_fomm(
        calls_of_files(mixed_files()), tiny_cases(), sources=rows[0], rows_each=rows[1]
    )
    check(errors, MIXED, what="tiny")
    assert errors["max_abs.keypoints.value"] < 1e-5
    assert errors["max_abs.source.small"] < 1e-5
    in_torch = measure_fomm(
        calls_of_graphs(tiny_graphs("fp16_islands")),
        tiny_cases(),
        sources=rows[0],
        rows_each=rows[1],
    )
    assert errors["animate_db"] == pytest.approx(in_torch["animate_db"], abs=6)


def test_a_float32_file_agrees_to_rounding() -> None:
    calls = calls_of_files({"render": tiny_file("render", "fp32")})
    for rows in ((1, 1), (1, 2), (2, 2)):
        errors = measure_fomm(calls, tiny_cases(), sources=rows[0], rows_each=rows[1])
        names = {"max_abs.render.prediction", "max_rel.render.prediction", "animate_db"}
        assert set(errors) == names
        assert errors["max_abs.render.prediction"] < 5e-6
        check(errors, FP32, what="tiny")


def nearest(model: ModelProto) -> None:
    for node in model.graph.node:
        for item in node.attribute:
            if node.op_type == "GridSample" and item.name == "mode":
                item.s = b"nearest"


def misaligned(model: ModelProto) -> None:
    for node in model.graph.node:
        for item in node.attribute:
            if node.op_type == "GridSample" and item.name == "align_corners":
                item.i = 0


def rounded_weights(model: ModelProto) -> None:
    """As a converter to bfloat16 would leave them."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 4:
            rounded = torch.from_numpy(numpy_helper.to_array(tensor).copy()).bfloat16().float()
            tensor.CopyFrom(numpy_helper.from_array(rounded.numpy(), tensor.name))


def test_a_file_that_samples_nearest_fails_by_its_numbers(tmp_path: Path) -> None:
    files = {**mixed_files()}
    files["animate"] = changed(files["animate"], tmp_path / "wrong.onnx", nearest)
    errors = measure_fomm(calls_of_files(files), tiny_cases())
    with pytest.raises(CheckFailed, match=r"the worst frame has \d+.\d dB PSNR, at least 45"):
        check(errors, MIXED, what="tiny")


@pytest.mark.parametrize("change", [misaligned, nearest, rounded_weights])
def test_a_wrong_float32_file_fails_by_its_numbers(
    tmp_path: Path, change: Callable[[ModelProto], None]
) -> None:
    wrong = changed(tiny_file("render", "fp32"), tmp_path / "wrong.onnx", change)
    errors = measure_fomm(calls_of_files({"render": wrong}), tiny_cases())
    with pytest.raises(CheckFailed, match=r"max_rel.render.prediction .* at most 0.0001"):
        check(errors, FP32, what="tiny")


def test_rounded_keypoints_fail_under_a_mixed_plan_too(tmp_path: Path) -> None:
    file = tiny_file("keypoints", "fp16_islands")
    wrong = changed(file, tmp_path / "wrong.onnx", rounded_weights)
    errors = measure_fomm(calls_of_files({"keypoints": wrong}), tiny_cases())
    with pytest.raises(CheckFailed, match=r"max_rel.keypoints.value .* at most 0.0001"):
        check(errors, MIXED, what="tiny")


@pytest.mark.parametrize(
    ("errors", "message"),
    [
        ({"keypoints_px": 0.051}, "keypoints off by 0.051 px"),
        ({"animate_db": 44.9}, "44.9 dB"),
        ({"animate_db": float("nan")}, "nan dB"),
        (
            {"flips": 1 / 64, "frames": 64.0, "max_dp": 0.02},
            r"1.56% of 64 decisions flip, at most 0.1% \(largest change of a probability 0.02\)",
        ),
        ({"max_rel.keypoints.jacobian": 2e-4}, "max_rel.keypoints.jacobian 0.0002"),
    ],
)
def test_errors_above_their_limit_are_refused_with_the_numbers(
    errors: dict[str, float], message: str
) -> None:
    with pytest.raises(CheckFailed, match=message) as caught:
        check(errors, MIXED, what="plan")
    assert caught.value.exit_code == 5


def test_mixed_outputs_have_no_float32_limit_and_keypoints_do() -> None:
    check({"max_abs.animate.prediction": 0.03, "animate_db": 50.0}, MIXED, what="plan")
    check({"keypoints_px": 0.05, "animate_db": 45.0, "flips": 0.0}, MIXED, what="plan")


def test_a_difference_counts_in_units_of_what_it_differs_from() -> None:
    truth = tiny_cases().tensors()

    def off(feeds):
        return {"encoded": truth["encoded"] + 2e-4, "small": truth["small"] + 2e-4}

    errors = measure_fomm({"source": off}, tiny_cases())
    size = float(truth["encoded"].abs().max())
    assert size > 1 > float(truth["small"].abs().max())
    assert errors["max_rel.source.encoded"] == pytest.approx(2e-4 / size, rel=0.01)
    assert errors["max_rel.source.small"] == pytest.approx(2e-4, rel=0.01)


def test_flips_and_probabilities_are_counted() -> None:
    detector = create_detector("meso4")
    cases = DetectorCases(detector, count=4)
    cases.logits = torch.tensor([[2.0], [-2.0], [1.0], [0.1]])

    def wrong(feeds):
        return {"logits": torch.tensor([[2.0], [2.0], [float("nan")], [-0.1]])}

    errors = measure_detector(wrong, cases)
    assert errors["flips"] == 0.75  # the second, the last, and what is not a number
    assert errors["max_dp"] > 1e30

    def less_wrong(feeds):
        return {"logits": torch.tensor([[2.0], [2.0], [1.0], [0.1]])}

    errors = measure_detector(less_wrong, cases)
    assert errors["flips"] == 0.25
    assert errors["max_dp"] == pytest.approx(1 / (1 + np.exp(-2)) - 1 / (1 + np.exp(2)))
    assert errors["max_abs.detector.logits"] == 4


def test_what_is_not_a_number_is_never_within_limits() -> None:
    truth = tiny_cases().tensors()

    def broken(feeds):
        return {"prediction": torch.full_like(truth["prediction"], float("nan"))}

    errors = measure_fomm({"animate": broken}, tiny_cases())
    assert errors["animate_db"] == 0
    assert errors["max_abs.animate.prediction"] > 1e30


def test_a_file_that_does_not_load_is_an_error_that_names_it(tmp_path: Path) -> None:
    file = tiny_file("source", "fp16_islands")
    (tmp_path / "broken.onnx").write_bytes(file.path.read_bytes()[:100])
    broken = dataclasses.replace(file, path=tmp_path / "broken.onnx")
    with pytest.raises(EnvironmentUnfit, match=r"does not load .*broken.onnx"):
        calls_of_files({"source": broken})


def test_the_fixed_set_is_fixed_and_shows_different_faces() -> None:
    faces = draw_faces(4, 48, people=2)
    assert torch.equal(faces, draw_faces(4, 48, people=2))
    different = (faces[:, None].float() - faces[None].float()).abs().mean(dim=(2, 3, 4))
    assert (different + 99 * torch.eye(4)).min() > 1
