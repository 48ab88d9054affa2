"""The graphs that are exported do what the model does, whatever the rows."""

from __future__ import annotations

import pytest
import torch
from dfmtest_export import tiny_cases, tiny_config, tiny_fomm, tiny_graphs
from dfmtest_fomm import assert_close, make_fomm, to_double

from dfm_engine.detect.models import create_detector
from dfm_engine.errors import UsageError
from dfm_export.cases import DetectorCases, FommCases
from dfm_export.graphs import Graph, Typed, detector_graph, fomm_graphs
from dfm_export.parity import calls_of_graphs, measure_detector, measure_fomm
from dfm_export.precision import plan_of
from dfm_export.to_onnx import example_inputs

ROUNDING = 2e-5  # float32 through some fifteen layers, values up to about 5


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("rows", [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_graphs_chained_give_the_models_frames(rows: tuple[int, int], split: bool) -> None:
    calls = calls_of_graphs(tiny_graphs("fp32", split))
    errors = measure_fomm(calls, tiny_cases(), sources=rows[0], rows_each=rows[1])
    outputs = {name: value for name, value in errors.items() if name.startswith("max_abs.")}
    assert len(outputs) == (7 if split else 5)
    assert max(outputs.values()) < ROUNDING, outputs
    assert errors["animate_db"] > 100


@pytest.mark.parametrize(
    "config",
    [
        tiny_config(estimate_jacobian=False),
        tiny_config(gen={"estimate_occlusion_map": False}),
        tiny_config(gen={"num_down_blocks": 2}),  # features smaller than the deformation
    ],
    ids=["no-jacobian", "no-occlusion", "resized"],
)
@pytest.mark.parametrize("subpixel", [False, True])
def test_every_kind_of_model_has_graphs(config: dict, subpixel: bool) -> None:
    model = make_fomm(config)
    graphs = fomm_graphs(model, plan_of("fomm", "fp32"), subpixel=subpixel)
    errors = measure_fomm(calls_of_graphs(graphs), FommCases(model))
    assert max(v for name, v in errors.items() if name.startswith("max_abs.")) < ROUNDING, errors


@torch.no_grad()
def test_animate_is_exact_in_float64_with_sources_of_several_rows() -> None:
    model = to_double(make_fomm(tiny_config()))
    graph = fomm_graphs(model, plan_of("fomm", "fp32"))["animate"].double()
    for part in graph.modules():
        if isinstance(part, Typed):
            part.dtype = torch.float64
    feeds = [tensor.double() for tensor in example_inputs(graph.spec, sources=2, rows_each=3)]
    one_each = [feed if len(feed) == 6 else feed.repeat_interleave(3, 0) for feed in feeds]
    assert_close(graph(*feeds), graph(*one_each), 1e-12)


def test_graphs_have_the_shapes_of_their_spec() -> None:
    for split in (False, True):
        for graph in tiny_graphs("fp32", split).values():
            found = graph(*example_inputs(graph.spec, sources=2, rows_each=3))
            found = found if isinstance(found, tuple) else (found,)
            batch = 6 if graph.spec.has_sources else 2
            wanted = [tensor.at(batch=batch, sources=2) for tensor in graph.spec.outputs]
            assert [tuple(value.shape) for value in found] == wanted


def test_islands_stay_float32_and_convolutions_do_not() -> None:
    graphs = tiny_graphs("fp16_islands")
    for name, graph in graphs.items():
        convolutions = [
            part.weight.dtype
            for part in graph.modules()
            if isinstance(part, torch.nn.Conv2d | torch.nn.ConvTranspose2d)
        ]
        assert set(convolutions) == {torch.float32 if name == "keypoints" else torch.float16}
    errors = measure_fomm(calls_of_graphs(graphs), tiny_cases())
    assert errors["keypoints_px"] < 1e-3
    assert 45 < errors["animate_db"] < 100  # something was rounded
    assert tiny_fomm().generator.final.weight.dtype == torch.float32  # the model itself stays


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("model", ["meso4", "small-cnn"])
def test_a_detectors_graph_takes_frames_as_they_are(model: str, precision: str) -> None:
    detector = create_detector(model)
    graph = detector_graph(detector, plan_of("detector", precision))
    cases = DetectorCases(detector, count=4)
    errors = measure_detector(calls_of_graphs({"detector": graph})["detector"], cases)
    worst = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 5e-2}[precision]
    assert errors["max_abs.detector.logits"] < worst, errors
    assert (errors["max_abs.detector.logits"] > 1e-6) == (precision != "fp32")
    if (model, precision) != ("meso4", "bf16"):  # there a hidden unit switches, its map with it
        assert cases.cam is not None
        assert errors["max_abs.detector.cam"] < worst * float(cases.cam.abs().max()), errors
    assert errors["frames"] == 4
    side = detector.spec.input_px
    assert graph.spec.inputs[0].shape == ("batch", side, side, 3)
    assert graph.spec.inputs[0].dtype == "uint8"


@pytest.mark.slow  # timm's transformers take seconds to import
def test_a_map_that_needs_gradients_is_left_out() -> None:
    detector = create_detector("vit_tiny_patch16_224")
    graph = detector_graph(detector, plan_of("detector", "fp16"))
    assert [tensor.name for tensor in graph.spec.outputs] == ["logits"]
    errors = measure_detector(
        calls_of_graphs({"detector": graph})["detector"], DetectorCases(detector, count=2)
    )
    assert 0 < errors["max_abs.detector.logits"] < 1e-2


def test_a_plan_for_other_networks_is_refused() -> None:
    with pytest.raises(UsageError, match="plan fp16 is for a detector"):
        fomm_graphs(tiny_fomm(), plan_of("detector", "fp16"))
    with pytest.raises(UsageError, match="one of fp32, fp16_islands"):
        plan_of("fomm", "bf16")


def test_graphs_are_modules_with_specs() -> None:
    assert all(isinstance(graph, Graph) for graph in tiny_graphs("fp32").values())
    assert list(tiny_graphs("fp32", True)) == ["keypoints", "source", "motion", "render"]
