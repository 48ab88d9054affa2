"""The parsed network, looked at before anything is built: a right one passes, a wrong one fails."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dfmtest_onnx_graphs import WARP, write_warp

from dfm_engine.errors import CheckFailed
from dfm_export.inspect import Expected, NetworkFacts, check_network, check_onnx
from dfm_export.specs import GraphSpec, TensorSpec
from dfm_export.to_tensorrt import parse_onnx
from dfm_export.trt_api import TensorRtError, open_tensorrt

pytest.importorskip("tensorrt_rtx")

PLAIN = Expected(spec=WARP, align_corners=True, grid_samples=1)
MIXED = Expected(
    spec=WARP, align_corners=True, grid_samples=1, low="float16", has_islands=True, low_tensors=2
)


def inspect(tmp_path: Path, expected: Expected, **wrong: Any) -> NetworkFacts:
    trt = open_tensorrt("tensorrt-rtx")
    path = write_warp(tmp_path / "warp.onnx", **wrong)
    builder = trt.api.Builder(trt.logger)
    return check_network(trt.api, parse_onnx(trt, builder, path), expected)


def test_a_right_graph_passes_with_its_census(tmp_path: Path) -> None:
    plain = inspect(tmp_path, PLAIN)
    assert (plain.grid_samples, plain.census.get("HALF", 0)) == (1, 0)
    mixed = inspect(tmp_path, MIXED, half_conv=True)
    assert mixed.census["HALF"] == 2  # the cast down and the convolution
    assert mixed.census["FLOAT"] == plain.census["FLOAT"] - 2
    assert mixed.layers == plain.layers


@pytest.mark.parametrize(
    ("expected", "wrong", "message"),
    [
        (PLAIN, {"mode": "nearest"}, "samples NEAREST, must be LINEAR"),
        (PLAIN, {"align_corners": False}, "align_corners False, must have True"),
        (PLAIN, {"half_conv": True}, "is HALF in a float32 plan"),
        (PLAIN, {"batch": 2}, r"input 'grid' is FLOAT \(2, 8, 8, 2\), specified is FLOAT \(-1, 8"),
        (PLAIN, {"input_name": "picture"}, "'image' is absent, specified is FLOAT"),
        (MIXED, {"half_conv": True, "half_grid": True}, "HALF: a float32 island was lost"),
        (MIXED, {}, "1 of 1 convolutions are not HALF: the plan was lost"),
        (
            dataclasses.replace(MIXED, low_tensors=3),
            {"half_conv": True},
            "2 tensors are HALF, the ONNX file has 3",
        ),
        (Expected(spec=WARP), {}, "this graph must have none"),
        (Expected(spec=WARP, align_corners=True, grid_samples=2), {}, "1 GridSample, must be 2"),
        (Expected(spec=WARP, align_corners=True, low="bfloat16"), {"half_conv": True}, "has BF16"),
    ],
)
def test_a_wrong_graph_fails_and_says_why(
    tmp_path: Path, expected: Expected, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckFailed, match=message):
        inspect(tmp_path, expected, **wrong)


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed) as failure:
        inspect(tmp_path, MIXED, mode="nearest", align_corners=False)
    for part in ("NEAREST", "align_corners False", "the plan was lost"):
        assert part in str(failure.value)


def test_an_output_of_another_type_fails(tmp_path: Path) -> None:
    half_out = GraphSpec(
        "warp", WARP.inputs, (TensorSpec("mask", "float16", WARP.outputs[0].shape),)
    )
    with pytest.raises(CheckFailed, match=r"output 'mask' is FLOAT .* specified is HALF"):
        inspect(tmp_path, Expected(spec=half_out, align_corners=True))


def test_bilinear_sampling_of_opset_20_is_refused_before_the_parser_sees_it(
    tmp_path: Path,
) -> None:
    path = write_warp(tmp_path / "new.onnx", mode="linear", opset=20)
    with pytest.raises(CheckFailed, match="1 GridSample at opset 20"):
        check_onnx(path, PLAIN)
    check_onnx(write_warp(tmp_path / "old.onnx"), PLAIN)


def test_a_parser_that_takes_linear_for_nearest_is_caught() -> None:
    """As tensorrt-rtx 1.5 did: a network of another release, played by a stub."""

    class Sample:
        type = SimpleNamespace(name="GRID_SAMPLE")
        name, num_inputs, num_outputs, align_corners = "s", 0, 0, True
        interpolation_mode = SimpleNamespace(name="NEAREST")

    class Own(Sample):
        pass

    tensor = {"image": (-1, 3, 8, 8), "grid": (-1, 8, 8, 2), "mask": (-1, 4, 8, 8)}
    stubs = {
        name: SimpleNamespace(name=name, dtype=SimpleNamespace(name="FLOAT"), shape=shape)
        for name, shape in tensor.items()
    }
    network = SimpleNamespace(
        num_layers=1,
        get_layer=lambda _: Sample(),
        num_inputs=2,
        get_input=lambda index: stubs[("image", "grid")[index]],
        num_outputs=1,
        get_output=lambda _: stubs["mask"],
    )
    with pytest.raises(CheckFailed, match="samples NEAREST"):
        check_network(SimpleNamespace(IGridSampleLayer=Own), network, PLAIN)


def test_a_file_that_is_no_onnx_is_refused_with_the_parsers_words(tmp_path: Path) -> None:
    trt = open_tensorrt("tensorrt-rtx")
    path = tmp_path / "noise.onnx"
    path.write_bytes(b"\x08\x07noise")
    with pytest.raises(TensorRtError, match=r"parsing .*noise\.onnx' failed: .+"):
        parse_onnx(trt, trt.api.Builder(trt.logger), path)
