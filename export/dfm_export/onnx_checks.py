"""What must hold of an exported file: its spec, its plan's types, and how it samples.

Held against the ONNX model itself, before it is written. Each of these once went wrong without a
word: a GridSample that parsers take for nearest, another `align_corners`, a coordinate that passes
through 16 bits on its way to a sampling grid.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import onnx
from onnx import TensorProto, helper

from dfm_engine.errors import CheckFailed
from dfm_export.precision import Plan
from dfm_export.specs import Dtype, GraphSpec, TensorSpec

__all__ = ["LAST_SAFE_OPSET", "check_graph", "dtype_census"]

LAST_SAFE_OPSET = 19
"""For a GridSample: from 20 on its mode is called `linear`, which TensorRT's parsers of several
releases take for nearest, without a word."""

_ELEMENT: dict[int, Dtype] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.UINT8: "uint8",
}
_LOW = ("float16", "bfloat16")
_SMALL = 64  # values; shapes and axes, which decide what inference finds, are below
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_ISLAND = ("GridSample", "Softmax", "Sigmoid", "Exp", "Div")


def check_graph(
    model: onnx.ModelProto, spec: GraphSpec, plan: Plan, *, align_corners: bool | None
) -> None:
    """Refuse a model that is not what its spec and plan say.

    Raises:
        CheckFailed: says everything that is wrong.
    """
    types = _element_types(model)
    wrongs = [
        *_wrong_tensors("input", model.graph.input, spec.inputs),
        *_wrong_tensors("output", model.graph.output, spec.outputs),
        *_wrong_samples(model, align_corners),
        *_wrong_types(model, types, plan, spec.name),
    ]
    if wrongs:
        raise CheckFailed(
            f"graph {spec.name!r} ({plan.name}) as exported: {'; '.join(wrongs)}. It was not kept"
        )


def dtype_census(model: onnx.ModelProto) -> dict[str, int]:
    """Element type -> how many tensors of it the nodes make; initialisers do not count."""
    types = _element_types(model)
    made = (types.get(name, "unknown") for node in model.graph.node for name in node.output if name)
    return dict(sorted(Counter(made).items()))


def _element_types(model: onnx.ModelProto) -> dict[str, str]:
    """Name -> element type of every tensor; raises where the types of a node do not fit."""
    graph = onnx.shape_inference.infer_shapes(_skeleton(model), check_type=True, strict_mode=True)
    types: dict[str, str] = {}
    for value in (*graph.graph.input, *graph.graph.output, *graph.graph.value_info):
        types[value.name] = _element_name(value.type.tensor_type.elem_type)
    for tensor in model.graph.initializer:
        types[tensor.name] = _element_name(tensor.data_type)
    return types


def _skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with inputs in place of its large weights, which inference would only copy."""
    copy = onnx.ModelProto()
    for item in model.opset_import:
        copy.opset_import.append(item)
    copy.ir_version = model.ir_version
    copy.graph.name = model.graph.name
    copy.graph.node.extend(model.graph.node)
    copy.graph.input.extend(model.graph.input)
    copy.graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) > _SMALL:
            copy.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
        else:
            copy.graph.initializer.append(tensor)
    return copy


def _element_name(number: int) -> str:
    return _ELEMENT.get(number) or TensorProto.DataType.Name(number).lower()  # pyright: ignore[reportArgumentType]


def _wrong_tensors(what: str, found: Any, wanted: tuple[TensorSpec, ...]) -> Iterator[str]:
    have = []
    for value in found:
        tensor = value.type.tensor_type
        sides = tuple(side.dim_param or side.dim_value for side in tensor.shape.dim)
        have.append((value.name, _element_name(tensor.elem_type), sides))
    for index in range(max(len(have), len(wanted))):
        mine = have[index] if index < len(have) else None
        spec = wanted[index] if index < len(wanted) else None
        theirs = None if spec is None else (spec.name, spec.dtype, spec.shape)
        if mine != theirs:
            yield f"{what} {index} is {mine}, specified is {theirs}"


def _wrong_samples(model: onnx.ModelProto, align_corners: bool | None) -> Iterator[str]:
    opset = max(item.version for item in model.opset_import if not item.domain)
    for node in model.graph.node:
        if node.op_type != "GridSample":
            continue
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        mode = attributes.get("mode", b"bilinear").decode()
        padding = attributes.get("padding_mode", b"zeros").decode()
        aligned = bool(attributes.get("align_corners", 0))
        if opset > LAST_SAFE_OPSET:
            yield f"GridSample at opset {opset}, where parsers misread its mode; must be 18"
        if mode not in ("bilinear", "linear") or padding != "zeros":
            yield f"GridSample samples {mode} with padding {padding}, must be bilinear with zeros"
        if align_corners is None:
            yield "there is a GridSample, must be none"
        elif aligned != align_corners:
            yield f"GridSample has align_corners {aligned}, must have {align_corners}"


def _wrong_types(
    model: onnx.ModelProto, types: Mapping[str, str], plan: Plan, graph: str
) -> Iterator[str]:
    dtype = plan.dtype_of(graph)
    nodes = model.graph.node
    if dtype == "float32":
        low = sorted({types[name] for node in nodes for name in node.output} & set(_LOW))
        if low:
            yield f"holds {' and '.join(low)} in a plan that keeps this graph float32"
        return
    heads = {value.name for value in model.graph.output}  # a class activation map is one: float32
    convolutions = [
        node
        for node in nodes
        if node.op_type in _CONVOLUTIONS and _is_dense(node) and node.output[0] not in heads
    ]
    kept = [node.output[0] for node in convolutions if types[node.output[0]] != dtype]
    if kept:
        yield f"{len(kept)} of {len(convolutions)} convolutions are not {dtype}: {kept[:3]}"
    if plan.kind != "fomm":
        return
    for node in nodes:
        if node.op_type in _ISLAND and (low := _low_tensors(node, types)):
            yield f"{node.op_type} {node.name!r} has lost its island: {low}"
    for name in sorted(_coordinates(model)):
        if types[name] in _LOW:
            yield f"coordinates pass through {types[name]} at {name!r}"


def _is_dense(node: onnx.NodeProto) -> bool:
    """Not the anti-alias, a filter on the three channels of the picture, which stays float32."""
    return all(item.name != "group" or item.i != 3 for item in node.attribute)


def _low_tensors(node: onnx.NodeProto, types: Mapping[str, str]) -> list[str]:
    names = (*node.input, *node.output)
    return [f"{name} is {types[name]}" for name in names if types.get(name) in _LOW]


def _coordinates(model: onnx.ModelProto) -> set[str]:
    """Every tensor on the way from keypoints to a sampling grid, up to the heads' convolution."""
    makers = {name: node for node in model.graph.node for name in node.output}
    pending = [node.input[1] for node in model.graph.node if node.op_type == "GridSample"]
    found: set[str] = set()
    while pending:
        name = pending.pop()
        node = makers.get(name)
        if name in found or node is None or node.op_type in _CONVOLUTIONS:
            continue
        if node.op_type == "Cast" and makers.get(node.input[0]) is not None:
            below = makers[node.input[0]]
            if below.op_type in _CONVOLUTIONS:  # the way out of the network's body
                continue
        found.add(name)
        pending += [source for source in node.input if source]
    return found
