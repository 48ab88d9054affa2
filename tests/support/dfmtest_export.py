"""A tiny FOMM, and its graphs as files: exported once per process, for an export takes seconds."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

from dfmtest_fomm import make_fomm, small_config

from dfm_engine.fomm.model import Fomm
from dfm_export.artifact import ExportedGraph
from dfm_export.cases import FommCases
from dfm_export.graphs import Graph, fomm_graphs
from dfm_export.precision import plan_of
from dfm_export.to_onnx import export_graph

SAMPLERS = ("animate", "motion", "render")
_folder = tempfile.TemporaryDirectory(prefix="dfm-tiny-fomm-")


def tiny_config(**changes: Any) -> dict[str, Any]:
    """As few layers as a FOMM can have; every kind of block once."""
    return small_config(
        frame=(32, 48),
        num_kp=2,
        kp={"num_blocks": 1, "scale_factor": 0.5},
        gen={"num_bottleneck_blocks": 1, "num_down_blocks": 1, **changes.pop("gen", {})},
        dm={"num_blocks": 1, "scale_factor": 0.5},
        **changes,
    )


@functools.cache
def tiny_fomm() -> Fomm:
    return make_fomm(tiny_config())


@functools.cache
def tiny_cases() -> FommCases:
    return FommCases(tiny_fomm())


@functools.cache
def tiny_graphs(precision: str, split: bool = False) -> dict[str, Graph]:
    return fomm_graphs(tiny_fomm(), plan_of("fomm", precision), split=split)


@functools.cache
def tiny_file(name: str, precision: str) -> ExportedGraph:
    """One graph, exported; not to be written to."""
    graph = tiny_graphs(precision, name in ("motion", "render"))[name]
    return export_graph(
        graph,
        Path(_folder.name) / f"{name}-{precision}.onnx",
        plan=plan_of("fomm", precision),
        align_corners=True if name in SAMPLERS else None,
        metadata={"weights_sha256": tiny_fomm().weights_sha256},
    )
