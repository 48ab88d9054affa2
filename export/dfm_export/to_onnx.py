"""A graph to an ONNX file, and what must hold of every such file.

torch's dynamo exporter writes it, at opset 18 with a dynamic number of rows. The file is checked by
onnx, stripped of what the exporter remembers of this machine (stack traces), and given its origin
as metadata. The same weights and versions give the same bytes, by which engines are found again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import helper
from torch.export import Dim

from dfm_engine.durable import write_durably
from dfm_engine.errors import UsageError
from dfm_export.artifact import ExportedGraph
from dfm_export.graphs import Graph
from dfm_export.onnx_checks import LAST_SAFE_OPSET, check_graph, dtype_census
from dfm_export.precision import Plan
from dfm_export.specs import BATCH, SOURCES, GraphSpec, TensorSpec

__all__ = ["example_inputs", "export_graph"]

_TALKATIVE = ("torch.onnx", "torch.export", "torch.__trace", "onnxscript")


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
        sha256=hashlib.sha256(data).hexdigest(),
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
