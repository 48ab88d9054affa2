"""The int8 plans: calibrated on other faces than they are judged on, and refused by a number."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from dfmtest_export import tiny_cases, tiny_fomm

from dfm_engine.errors import CheckFailed, UsageError
from dfm_export import int8, parity
from dfm_export.artifact import Artifact
from dfm_export.cases import FommCases
from dfm_export.graphs import fomm_graphs
from dfm_export.models import Opening, open_fomm_runner
from dfm_export.precision import plan_of
from dfm_export.run_export import export_fomm


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("int8") / "narrow"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "ANIMATE_DB", 30.0)  # two channels of noise are no generator
        return export_fomm(tiny_fomm(), out, plan=plan_of("fomm", "int8"))


def test_the_file_holds_integers_and_the_folder_what_they_cost(narrow: Artifact):
    model = onnx.load(narrow.graph("animate").path)
    stored = [tensor.data_type for tensor in model.graph.initializer]
    assert stored.count(onnx.TensorProto.INT8) >= 2  # both convolutions of the one residual block
    assert {node.op_type for node in model.graph.node} >= {"QuantizeLinear", "DequantizeLinear"}
    assert narrow.options["subpixel"] is True  # its up blocks stay in float
    assert set(narrow.options["sqnr_db"]) == {"residual 0"}
    for where in ("torch", "onnxruntime"):
        assert narrow.gates[where]["animate_db"] > 30
    for name in ("keypoints", "source"):  # these two stay as they were
        graph = onnx.load(narrow.graph(name).path).graph
        assert not any(node.op_type == "QuantizeLinear" for node in graph.node)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_runtime_gives_what_torch_computes(narrow: Artifact, backend: str):
    if backend == "openvino":
        pytest.importorskip("openvino")
    runner = open_fomm_runner(narrow, Opening(backend=backend, threads=1))
    feeds = tiny_cases().tensors()
    graph = fomm_graphs(tiny_fomm(), plan_of("fomm", "fp32"))
    int8.quantise_graphs(graph, tiny_fomm(), plan_of("fomm", "int8"))
    inputs = {spec.name: feeds[spec.name] for spec in graph["animate"].spec.inputs}
    with torch.no_grad():
        wanted = graph["animate"](*inputs.values())
    found = runner.graphs["animate"].run(inputs)["prediction"]
    # A value on the edge between two steps may fall to either side, one step of many summed ones.
    assert (found - wanted).abs().max() < 0.02
    assert (found - wanted).abs().mean() < 1e-3
    assert runner.name.startswith(f"{backend}-cpu-int8-")
    runner.close()


def test_faces_of_the_calibration_are_not_those_of_the_gate():
    gate = FommCases(tiny_fomm()).tensors()["images"]
    calibration = FommCases(
        tiny_fomm(),
        sources=int8.CALIBRATION_SOURCES,
        rows_each=int8.CALIBRATION_ROWS,
        first=int8.CALIBRATION_FIRST,
    ).tensors()["images"]
    distances = torch.cdist(gate.flatten(1), calibration.flatten(1))
    assert distances.min() > 1.0  # of 4,608 values; equal frames have 0


def test_a_plan_that_costs_too_much_is_refused_with_its_number(tmp_path: Path, monkeypatch):
    quantise = int8.quantise_decoder

    def coarse(decoder, x, *, scope):
        return quantise(decoder, 20 * x, scope=scope)  # scales for values that never come

    monkeypatch.setattr(int8, "quantise_decoder", coarse)
    with pytest.raises(CheckFailed, match=r"plan int8_wide in torch: the worst frame has \d+\.\d"):
        export_fomm(tiny_fomm(), tmp_path / "out", plan=plan_of("fomm", "int8_wide"))
    assert not (tmp_path / "out" / "export.json").exists()


def test_a_split_export_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="leave out --split"):
        export_fomm(tiny_fomm(), tmp_path, plan=plan_of("fomm", "int8"), split=True)
