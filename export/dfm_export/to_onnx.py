"""A graph to an ONNX file, and what must hold of every such file.

torch's dynamo exporter writes it, at opset 18 with a dynamic number of rows. The file is checked by
onnx, stripped of what the exporter remembers of this machine (stack traces), and given its origin
as metadata. The same weights and versions give the same bytes, by which engines are found again.

`check_graph` holds a file against its plan: bilinear sampling with the right `align_corners`, no
GridSample where TensorRT's parsers misread it, and every tensor of an island in float32.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch.export import Dim

from dfm_engine.durable import write_durably
from dfm_engine.errors import CheckFailed, UsageError
from dfm_export.artifact import ExportedGraph, sha256_of
from dfm_export.graphs import Graph
from dfm_export.precision import Plan
from dfm_export.specs import BATCH, SOURCES, Dtype, GraphSpec, TensorSpec

__all__ = ["LAST_SAFE_OPSET", "check_graph", "dtype_census", "example_inputs", "export_graph"]

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
_TALKATIVE = ("torch.onnx", "torch.export", "torch.__trace", "onnxscript")
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_ISLAND = ("GridSample", "Softmax", "Sigmoid", "Exp", "Div")


def export_graph(
    graph: Graph,
    path: Path,
    *,
    plan: Plan,
    align_corners: bool | None,
    metadata: Mapping[str, str] | None = None,
    opset: int | None = None,
) -> ExportedGraph:
    """Write one graph.

    Args:
        graph: from `graphs`.
        path: of the file; it appears whole or not at all.
        plan: that the graph was made with.
        align_corners: that it samples with; None for a graph without a GridSample.
        metadata: goes into the file, beside the plan, the spec and `align_corners`.
        opset: another than the plan's.

    Raises:
        CheckFailed: the file is not what it should be; nothing was written.
        UsageError: an opset at which a GridSample is not safe.
    """
    opset = plan.opset if opset is None else opset
    if align_corners is not None and opset > LAST_SAFE_OPSET:
        raise UsageError(
            f"graph {graph.spec.name!r} samples a grid and must not be exported at opset {opset}: "
            "from 20 on TensorRT's parsers of several releases sample nearest; use 18"
        )
    start = time.perf_counter()
    model = _translate(graph, opset)
    _strip(model)
    _name_rows(model, graph.spec)
    helper.set_model_props(
        model,
        {
            "graph": graph.spec.name,
            "precision": plan.name,
            "align_corners": "none" if align_corners is None else str(align_corners).lower(),
            **(metadata or {}),
        },
    )
    onnx.checker.check_model(model)
    check_graph(model, graph.spec, plan, align_corners=align_corners)
    data = model.SerializeToString(deterministic=True)
    write_durably(path, data)
    return ExportedGraph(
        spec=graph.spec,
        path=path,
        sha256=sha256_of(path),
        size_bytes=len(data),
        census=dtype_census(model),
        grid_samples=sum(node.op_type == "GridSample" for node in model.graph.node),
        seconds=time.perf_counter() - start,
    )


def example_inputs(spec: GraphSpec, *, sources: int = 2, rows_each: int = 3) -> list[torch.Tensor]:
    """Seeded inputs of the right types; sizes that no exporter takes for constants."""
    generator = torch.Generator().manual_seed(0)
    batch = sources * rows_each if spec.has_sources else sources

    def draw(tensor: TensorSpec) -> torch.Tensor:
        shape = tensor.at(batch=batch, sources=sources)
        if tensor.dtype == "uint8":
            return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        values = torch.rand(shape, generator=generator)
        if tensor.name.endswith("_jacobian"):
            values = torch.eye(2) + 0.2 * (values - 0.5)
        return values.to(getattr(torch, tensor.dtype))

    return [draw(tensor) for tensor in spec.inputs]


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


def _translate(graph: Graph, opset: int) -> onnx.ModelProto:
    spec = graph.spec
    dims = {BATCH: Dim(BATCH), SOURCES: Dim(SOURCES)}
    shapes = tuple(
        {axis: dims[name] for axis, name in tensor.dynamic_axes.items()} for tensor in spec.inputs
    )
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph,
            tuple(example_inputs(spec)),
            dynamo=True,
            opset_version=opset,
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=[tensor.name for tensor in spec.outputs],
            dynamic_shapes=_for_signature(graph, shapes),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def _for_signature(graph: Graph, shapes: tuple[Any, ...]) -> tuple[Any, ...]:
    """What `forward` takes as *args is one tuple to the exporter."""
    code = type(graph).forward.__code__
    named = code.co_argcount - 1
    return (*shapes[:named], shapes[named:]) if code.co_flags & 0x04 else shapes


def _strip(model: onnx.ModelProto) -> None:
    """Forget where the exporter ran: paths of this machine, and most of a small file's bytes."""
    model.doc_string = ""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]  # every reader infers them again
    for part in (*model.graph.node, *model.graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]
    for part in (*model.graph.input, *model.graph.output):
        del part.metadata_props[:]


def _name_rows(model: onnx.ModelProto, spec: GraphSpec) -> None:
    """Call an output's rows what the spec calls them, not `sources*(batch//sources)`."""
    for value, tensor in zip(model.graph.output, spec.outputs, strict=True):
        side = value.type.tensor_type.shape.dim[0]
        if side.dim_param and tensor.shape[0] == BATCH:
            side.dim_param = BATCH


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports its steps on stdout, which is for results, and warns of its own code."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


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
