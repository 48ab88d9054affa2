"""Export a loaded network into a folder, each file measured before the folder counts as an export.

The order is that of the cost of being wrong: the plan's own error in torch first, and nothing is
written where it is too large; then the files; then the files in ONNX Runtime; then `export.json`;
then engines, if asked for.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dfm_engine.detect.detector import ForgeryDetector
from dfm_engine.detect.load import load_detector
from dfm_engine.detect.models import create_detector
from dfm_engine.errors import UsageError
from dfm_engine.fomm.model import Fomm
from dfm_engine.machine import installed
from dfm_engine.machinery import load_fomm
from dfm_export.artifact import FILE_NAME, Artifact, ExportedGraph, open_artifact, write_artifact
from dfm_export.cases import DetectorCases, FommCases
from dfm_export.engines import run_build_engines
from dfm_export.export_settings import ExportResult, ExportSettings
from dfm_export.graphs import Graph, detector_graph, fomm_graphs
from dfm_export.int8 import quantise_graphs, wants_subpixel
from dfm_export.parity import (
    LIMITS,
    Call,
    calls_of_files,
    calls_of_graphs,
    check,
    measure_detector,
    measure_fomm,
)
from dfm_export.precision import Kind, Plan
from dfm_export.to_onnx import export_graph
from dfm_export.to_tensorrt import BuildSettings, Profile
from dfm_export.trt_api import flavour_of

__all__ = [
    "ExportResult",
    "ExportSettings",
    "export_detector",
    "export_fomm",
    "run_export_detector",
    "run_export_fomm",
]

Said = Callable[[str], None]
_SAMPLERS = ("animate", "motion", "render")
_PACKAGES = ("dfm-engine", "torch", "onnx", "onnxscript", "timm")
_ROWS = ((1, 2), (2, 1))
"""Sources and rows of each that every file is run with: one source for all rows, and one each."""


def run_export_fomm(
    settings: ExportSettings,
    *,
    weights: str,
    config: Path | None = None,
    align_corners: bool = True,
    subpixel: bool = True,
    split: bool = False,
    say: Said = lambda text: None,
) -> ExportResult:
    """Load a FOMM by what the command line says, export it, build engines.

    Args:
        settings: see there.
        weights: as `machinery.load_fomm` takes them; `none` is seeded noise.
        config: the model's YAML.
        align_corners: how it samples.
        subpixel: see `graphs.fomm_graphs`.
        split: likewise.
        say: told what a person wants to read while it lasts.

    Raises:
        CheckFailed: the plan's error, or that of a file, is above its limit.
        DfmError: as `load_fomm` and `run_build_engines`.
    """
    start = time.perf_counter()
    plan = settings.plan("fomm")
    word = "random" if weights == "none" else weights
    fomm = load_fomm(word, config, align_corners=align_corners)
    artifact = export_fomm(fomm, settings.out, plan=plan, subpixel=subpixel, split=split, say=say)
    return _finish(artifact, settings, start, say)


def run_export_detector(
    settings: ExportSettings,
    *,
    weights: str,
    model: str | None = None,
    say: Said = lambda text: None,
) -> ExportResult:
    """Load a detector by what the command line says, export it, build engines.

    Args:
        settings: see there.
        weights: a RUN folder or its file, without a model; with one, as `create_detector`.
        model: the detector's name.
        say: told what a person wants to read while it lasts.

    Raises:
        CheckFailed: the plan's error, or that of the file, is above its limit.
        UsageError: no model was named and the weights do not say which.
        DfmError: as the loading functions and `run_build_engines`.
    """
    start = time.perf_counter()
    plan = settings.plan("detector")
    if model is not None:
        detector = create_detector(model, weights=weights)
    elif weights in ("none", "cache"):
        raise UsageError(f"--weights {weights} needs --model, such as --model resnet50")
    else:
        detector = load_detector(weights)
    artifact = export_detector(detector, settings.out, plan=plan, say=say)
    return _finish(artifact, settings, start, say)


def export_fomm(
    fomm: Fomm,
    out: Path,
    *,
    plan: Plan,
    subpixel: bool = True,
    split: bool = False,
    say: Said = lambda text: None,
) -> Artifact:
    """Write a FOMM's graphs as ONNX files.

    Args:
        fomm: as loaded, on the CPU, in float32; stays as it is.
        out: the folder; an export that is there is replaced.
        plan: of precision.
        subpixel: see `graphs.fomm_graphs`; an int8 plan decides it itself.
        split: likewise.
        say: told what a person wants to read while it lasts.

    Raises:
        CheckFailed: the plan's error, or that of a file, is above its limit.
    """
    options: dict[str, Any] = {"subpixel": subpixel, "split": split}
    if plan.quantised is not None:
        subpixel = options["subpixel"] = wants_subpixel(plan)
    graphs = fomm_graphs(fomm, plan, subpixel=subpixel, split=split)
    if plan.quantised is not None:
        say(f"calibrating {plan.name}")
        options["sqnr_db"] = quantise_graphs(graphs, fomm, plan)
    cases = FommCases(fomm)
    say(f"measuring {plan.name} in torch")
    in_torch = measure_fomm(calls_of_graphs(graphs), cases)
    check(in_torch, plan, what=f"plan {plan.name} in torch")
    exported = _write(graphs, out, plan, fomm.weights_sha256, fomm.align_corners, say)
    say("measuring the files in ONNX Runtime")
    in_files = _measure_files(calls_of_files(exported), cases)
    check(in_files, plan, what=f"{plan.name} in ONNX Runtime")
    model = {"config": fomm.config.to_dict(), "frame_size": list(fomm.frame_size)}
    return _describe(
        "fomm",
        exported,
        out,
        plan,
        weights_sha256=fomm.weights_sha256,
        align_corners=fomm.align_corners,
        model=model,
        options=options,
        gates={"torch": in_torch, "onnxruntime": in_files},
    )


def export_detector(
    detector: ForgeryDetector,
    out: Path,
    *,
    plan: Plan,
    frames: int = 64,
    say: Said = lambda text: None,
) -> Artifact:
    """Write a detector's graph as an ONNX file.

    Args:
        detector: as loaded, on the CPU, in float32; stays as it is.
        out: the folder; an export that is there is replaced.
        plan: of precision.
        frames: of the fixed set.
        say: told what a person wants to read while it lasts.

    Raises:
        CheckFailed: the plan's error, or that of the file, is above its limit.
    """
    graphs = {"detector": detector_graph(detector, plan)}
    cases = DetectorCases(detector, count=frames)
    say(f"measuring {plan.name} in torch")
    in_torch = measure_detector(calls_of_graphs(graphs)["detector"], cases)
    check(in_torch, plan, what=f"{detector.spec.name}, plan {plan.name} in torch")
    exported = _write(graphs, out, plan, detector.weights_sha256, None, say)
    gates: dict[str, Any] = {"torch": in_torch}
    if plan.dtype == "bfloat16":
        gates["onnxruntime"] = "not measured: its CPU provider has no bfloat16 convolution"
    else:
        say("measuring the file in ONNX Runtime")
        gates["onnxruntime"] = measure_detector(calls_of_files(exported)["detector"], cases)
        check(gates["onnxruntime"], plan, what=f"{detector.spec.name}, {plan.name} in ONNX Runtime")
    return _describe(
        "detector",
        exported,
        out,
        plan,
        weights_sha256=detector.weights_sha256,
        align_corners=None,
        model={"spec": dataclasses.asdict(detector.spec)},
        options={},
        gates=gates,
    )


def _write(
    graphs: Mapping[str, Graph],
    out: Path,
    plan: Plan,
    weights_sha256: str,
    align_corners: bool | None,
    say: Said,
) -> dict[str, ExportedGraph]:
    (out / FILE_NAME).unlink(missing_ok=True)  # from here on the folder is no export
    version = installed(["dfm-engine"]).get("dfm-engine", "unknown")
    metadata = {"weights_sha256": weights_sha256, "generator": f"dfm-engine {version}"}
    exported = {}
    for name, graph in graphs.items():
        say(f"exporting {name}")
        exported[name] = export_graph(
            graph,
            out / f"{name}.onnx",
            plan=plan,
            align_corners=align_corners if name in _SAMPLERS else None,
            metadata=metadata,
        )
    return exported


def _measure_files(calls: Mapping[str, Call], cases: FommCases) -> dict[str, float]:
    """The worst over all numbers of rows."""
    worst: dict[str, float] = {}
    for sources, rows_each in _ROWS:
        for name, value in measure_fomm(calls, cases, sources=sources, rows_each=rows_each).items():
            pick = min if name.endswith("_db") else max
            worst[name] = pick(worst.get(name, value), value)
        calls = {name: call for name, call in calls.items() if name != "keypoints"}  # once is all
    return worst


def _describe(
    kind: Kind,
    exported: Mapping[str, ExportedGraph],
    out: Path,
    plan: Plan,
    *,
    weights_sha256: str,
    align_corners: bool | None,
    model: Mapping[str, Any],
    options: Mapping[str, Any],
    gates: Mapping[str, Any],
) -> Artifact:
    graphs = {}
    for name, graph in exported.items():
        prefix = f"max_abs.{name}."
        parity = {
            where: {
                key.removeprefix(prefix): value
                for key, value in errors.items()
                if key.startswith(prefix)
            }
            for where, errors in gates.items()
            if isinstance(errors, Mapping)
        }
        graphs[name] = dataclasses.replace(graph, parity=parity)
    artifact = Artifact(
        path=out,
        kind=kind,
        graphs=graphs,
        precision=plan.name,
        weights_sha256=weights_sha256,
        opset=plan.opset,
        align_corners=align_corners,
        model=model,
        options=options,
        gates={"limits": LIMITS, **gates},
        versions=installed(_PACKAGES),
    )
    write_artifact(artifact)
    return open_artifact(out, check_hashes=False)  # as everybody will see it


def _finish(artifact: Artifact, settings: ExportSettings, start: float, say: Said) -> ExportResult:
    engines = None
    if settings.to != "onnx":
        engines = run_build_engines(
            artifact,
            flavour=flavour_of(settings.to),
            settings=BuildSettings(
                profile=Profile.parse(settings.profile), targets=settings.targets
            ),
            say=say,
        )
    return ExportResult(artifact=artifact, engines=engines, seconds=time.perf_counter() - start)
