"""Exported files: what they hold, and that wrong ones are refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from dfmtest_export import tiny_file, tiny_fomm, tiny_graphs
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from dfm_engine.errors import CheckFailed, UsageError
from dfm_export.onnx_checks import check_graph, dtype_census
from dfm_export.precision import plan_of
from dfm_export.to_onnx import export_graph

PLAN = plan_of("fomm", "fp16_islands")


@pytest.fixture
def animate() -> ModelProto:
    return onnx.load(tiny_file("animate", "fp16_islands").path)


def nodes(model: ModelProto, kind: str) -> list[NodeProto]:
    return [node for node in model.graph.node if node.op_type == kind]


def check(model: ModelProto) -> None:
    spec = tiny_graphs("fp16_islands")["animate"].spec
    check_graph(model, spec, PLAN, align_corners=True)


def test_the_file_says_where_it_is_from(animate: ModelProto) -> None:
    found = {item.key: item.value for item in animate.metadata_props}
    assert found == {
        "graph": "animate",
        "precision": "fp16_islands",
        "align_corners": "true",
        "weights_sha256": tiny_fomm().weights_sha256,
    }
    assert [(item.domain, item.version) for item in animate.opset_import] == [("", 18)]


def test_the_file_forgets_the_machine_it_was_made_on() -> None:
    data = tiny_file("animate", "fp16_islands").path.read_bytes()
    assert not re.search(rb"site-packages|\.py\b|/home|/work|/tmp", data)


def test_the_file_holds_the_operators_that_were_meant(animate: ModelProto) -> None:
    kinds = {node.op_type for node in animate.graph.node}
    assert not kinds & {"If", "Loop", "Einsum", "MatMul", "Resize", "Range"}
    assert len(nodes(animate, "BatchNormalization")) == 1  # before the residual block's first ReLU
    assert len(nodes(animate, "ConvTranspose")) == 2  # the two up blocks
    assert len(nodes(animate, "GridSample")) == 2
    file = tiny_file("animate", "fp16_islands")
    assert file.grid_samples == 2
    assert file.census == dtype_census(animate)
    assert file.census["float16"] >= 10 < file.census["float32"]
    assert "float16" not in tiny_file("keypoints", "fp16_islands").census


def test_equal_graphs_give_equal_bytes(tmp_path: Path) -> None:
    first = tiny_file("source", "fp16_islands")
    metadata = {"weights_sha256": tiny_fomm().weights_sha256}
    graph = tiny_graphs("fp16_islands")["source"]
    again = export_graph(
        graph, tmp_path / "again.onnx", plan=PLAN, align_corners=None, metadata=metadata
    )
    assert again.sha256 == first.sha256
    assert again.path.read_bytes() == first.path.read_bytes()


def test_a_good_file_passes(animate: ModelProto) -> None:
    check(animate)


def nearest(model: ModelProto) -> None:
    for item in nodes(model, "GridSample")[1].attribute:
        if item.name == "mode":
            item.s = b"nearest"


def misaligned(model: ModelProto) -> None:
    for item in nodes(model, "GridSample")[0].attribute:
        if item.name == "align_corners":
            item.i = 0


def newer_opset(model: ModelProto) -> None:
    model.opset_import[0].version = 20
    for node in nodes(model, "GridSample"):
        for item in node.attribute:
            if item.name == "mode":
                item.s = b"linear"


def through_half(model: ModelProto, name: str, reader: NodeProto) -> None:
    """A tensor on its way into a node passes through float16."""
    for index, kind in enumerate((TensorProto.FLOAT16, TensorProto.FLOAT)):
        source = name if index == 0 else f"{name}_low"
        target = f"{name}_low" if index == 0 else f"{name}_high"
        node = helper.make_node("Cast", [source], [target], to=kind, name=target)
        place = list(model.graph.node).index(reader)
        model.graph.node.insert(place, node)
    for index, inside in enumerate(reader.input):
        if inside == name:
            reader.input[index] = f"{name}_high"


def lost_grid(model: ModelProto) -> None:
    sampler = nodes(model, "GridSample")[0]
    through_half(model, sampler.input[1], sampler)


def lost_coordinates(model: ModelProto) -> None:
    """Far from the sampling: the driving keypoints themselves."""
    reader = next(node for node in model.graph.node if "driving_value" in node.input)
    through_half(model, "driving_value", reader)


def lost_softmax(model: ModelProto) -> None:
    node = nodes(model, "Softmax")[0]
    below = next(n for n in model.graph.node if node.input[0] in n.output)
    while below.op_type != "Cast":
        below = next(n for n in model.graph.node if below.input[0] in n.output)
    (to,) = below.attribute
    to.i = TensorProto.FLOAT16
    place = list(model.graph.node).index(node) + 1
    up = helper.make_node("Cast", [f"{node.output[0]}_low"], [node.output[0]], to=TensorProto.FLOAT)
    node.output[0] = f"{node.output[0]}_low"
    model.graph.node.insert(place, up)
    for sigmoid in nodes(model, "Sigmoid")[:1]:  # it reads the same heads
        place = list(model.graph.node).index(sigmoid)
        name = sigmoid.input[0]
        sigmoid.input[0] = f"{name}_up"
        cast = helper.make_node("Cast", [name], [f"{name}_up"], to=TensorProto.FLOAT)
        model.graph.node.insert(place, cast)


def all_float32(model: ModelProto) -> None:
    """What a converter leaves that silently did nothing."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            wide = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    for node in nodes(model, "Cast"):
        for item in node.attribute:
            if item.name == "to" and item.i == TensorProto.FLOAT16:
                item.i = TensorProto.FLOAT


def half_output(model: ModelProto) -> None:
    (value,) = model.graph.output
    value.type.tensor_type.elem_type = TensorProto.FLOAT16
    maker = next(node for node in model.graph.node if value.name in node.output)
    maker.output[0] = "wide"
    cast = helper.make_node("Cast", ["wide"], [value.name], to=TensorProto.FLOAT16)
    model.graph.node.append(cast)


def renamed_rows(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (nearest, "GridSample samples nearest"),
        (misaligned, "GridSample has align_corners False, must have True"),
        (newer_opset, "GridSample at opset 20"),
        (lost_grid, "coordinates pass through float16"),
        (lost_coordinates, "coordinates pass through float16 at 'driving_value_low'"),
        (lost_softmax, r"Softmax .* has lost its island"),
        (all_float32, r"\d+ of \d+ convolutions are not float16"),
        (half_output, "output 0 is .*float16"),
        (renamed_rows, "input 0 is .*2, .* specified is .*'sources'"),
    ],
)
def test_a_wrong_graph_fails_its_check(
    animate: ModelProto, spoil: Callable[[ModelProto], None], message: str
) -> None:
    spoil(animate)
    with pytest.raises(CheckFailed, match=message):
        check(animate)


def test_keypoints_may_not_hold_anything_16_bit() -> None:
    file = tiny_file("source", "fp16_islands")
    model = onnx.load(file.path)
    with pytest.raises(CheckFailed, match="holds float16 in a plan that keeps this graph float32"):
        check_graph(model, file.spec, plan_of("fomm", "fp32"), align_corners=None)


def test_a_grid_sample_is_never_exported_where_parsers_misread_it(tmp_path: Path) -> None:
    graph = tiny_graphs("fp16_islands")["animate"]
    with pytest.raises(UsageError, match="must not be exported at opset 20"):
        export_graph(graph, tmp_path / "x.onnx", plan=PLAN, align_corners=True, opset=20)
    assert not list(tmp_path.iterdir())


def test_a_refused_file_is_not_written(tmp_path: Path) -> None:
    graph = tiny_graphs("fp16_islands")["source"]  # float16 under a plan that says float32
    with pytest.raises(CheckFailed, match="It was not kept"):
        export_graph(graph, tmp_path / "x.onnx", plan=plan_of("fomm", "fp32"), align_corners=None)
    assert not list(tmp_path.iterdir())
