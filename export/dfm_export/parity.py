"""How far a network is from what float32 torch makes of the fixed set, and how far it may be.

Two things are measured in the same way: a plan of precision, in torch, before anything is written
(`calls_of_graphs`), and the files that were written, in ONNX Runtime on a CPU (`calls_of_files`).

| limit | of |
| --- | --- |
| 1e-4 (of the largest value, where that is above 1) | every output of a float32 graph |
| 0.05 px | keypoints, at any precision |
| 45 dB, the worst frame | `source` and `animate` together, mixed |
| 0.1 % of decisions | detectors, mixed; so none of up to a thousand |

ONNX Runtime computes float16 in float32 where it can and so flatters it; the plan's own error is
the one measured in torch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dfm_engine.detect.detector import fake_probability
from dfm_engine.errors import CheckFailed, EnvironmentUnfit
from dfm_export.artifact import ExportedGraph
from dfm_export.cases import DetectorCases, FommCases, Tensors
from dfm_export.graphs import Graph
from dfm_export.precision import Plan, emulate
from dfm_export.specs import GraphSpec

__all__ = [
    "FP32_LIMIT",
    "LIMITS",
    "Call",
    "calls_of_files",
    "calls_of_graphs",
    "check",
    "measure_detector",
    "measure_fomm",
]

FP32_LIMIT = 1e-4
KEYPOINTS_PX = 0.05
ANIMATE_DB = 45.0
FLIPS = 0.001
LIMITS = {
    "fp32_max_abs": FP32_LIMIT,
    "keypoints_px": KEYPOINTS_PX,
    "animate_db": ANIMATE_DB,
    "flips": FLIPS,
}
_EXACT_DB = 200.0  # what equal frames count as; JSON has no infinity

Call = Callable[[Tensors], dict[str, Tensor]]
"""Feeds by name to results by name; feeds that the graph does not take are left aside."""


def calls_of_graphs(graphs: Mapping[str, Graph]) -> dict[str, Call]:
    """The modules themselves, 16-bit parts as a tensor core computes them."""

    def call(graph: Graph, feeds: Tensors) -> dict[str, Tensor]:
        with emulate():
            found = graph(*(feeds[tensor.name] for tensor in graph.spec.inputs))
        found = found if isinstance(found, tuple) else (found,)
        return {t.name: value for t, value in zip(graph.spec.outputs, found, strict=True)}

    return {name: partial(call, graph) for name, graph in graphs.items()}


def calls_of_files(graphs: Mapping[str, ExportedGraph]) -> dict[str, Call]:
    """The files, in ONNX Runtime on this CPU.

    Raises:
        EnvironmentUnfit: it does not load one, such as a bfloat16 convolution.
    """
    return {name: _file_call(graph.path, graph.spec) for name, graph in graphs.items()}


def measure_fomm(
    calls: Mapping[str, Call],
    cases: FommCases,
    *,
    sources: int | None = None,
    rows_each: int | None = None,
) -> dict[str, float]:
    """Errors of the graphs in the order of their use, each fed with what those before it made.

    Keypoints alone are not passed on: `animate` gets the true ones.

    Args:
        calls: by graph name, all of a model or some.
        cases: the fixed set.
        sources: of the fixed set, the first so many.
        rows_each: driving rows of each source, the first so many.

    Returns:
        Of every output `max_abs.<graph>.<output>`, and `max_rel`, the same in units of the
        output's largest value where that is above 1; `keypoints_px` (largest shift along one axis,
        in pixels of the frame) and `animate_db` (PSNR of the worst frame).
    """
    truth = cases.tensors(sources=sources, rows_each=rows_each)
    state = dict(truth)
    of_sources = truth["images"][: len(truth["encoded"])]
    found: dict[str, float] = {}
    for name, call in calls.items():
        result = call({"images": of_sources} if name == "source" else state)
        for output, value in result.items():
            found |= _differences(f"{name}.{output}", value, truth[output])
        if name == "keypoints":
            found["keypoints_px"] = found["max_abs.keypoints.value"] * cases.side / 2
        else:
            state |= result
        if "prediction" in result:
            found["animate_db"] = _worst_psnr(result["prediction"], truth["prediction"])
    return found


def measure_detector(call: Call, cases: DetectorCases) -> dict[str, float]:
    """Errors of a detector.

    Returns:
        `flips` (share of frames that it decides otherwise), `max_dp` (largest change of the
        probability of fake), `max_abs` and `max_rel` of every output as above, and `frames`.
    """
    truth = cases.tensors()
    parts = [call({"frames": part}) for part in truth["frames"].split(8)]
    found: dict[str, float] = {"frames": float(len(truth["frames"]))}
    for output in parts[0]:
        value = torch.cat([part[output] for part in parts])
        found |= _differences(f"detector.{output}", value, truth[output])
        if output == "logits":
            fake, wanted = fake_probability(value), fake_probability(truth[output])
            found["max_dp"] = _max_abs(fake, wanted)
            flipped = ((fake > 0.5) != (wanted > 0.5)) | ~fake.isfinite()
            found["flips"] = float(flipped.double().mean())
    return found


def check(errors: Mapping[str, float], plan: Plan, *, what: str) -> None:
    """Refuse errors above the limits that apply to them.

    Args:
        errors: as measured above.
        plan: in float32 every output has a limit; a mixed plan is held against the others.
        what: for the message, such as `plan fp16_islands in torch`.

    Raises:
        CheckFailed: with the numbers.
    """
    wrongs = []
    for name, value in errors.items():
        is_float32 = not plan.is_mixed or name.startswith("max_rel.keypoints")
        if name.startswith("max_rel.") and is_float32 and not value <= FP32_LIMIT:
            wrongs.append(f"{name} {value:.3g}, at most {FP32_LIMIT:g}")
        if name == "keypoints_px" and not value <= KEYPOINTS_PX:
            wrongs.append(f"keypoints off by {value:.3g} px, at most {KEYPOINTS_PX:g}")
        if name == "animate_db" and not value >= ANIMATE_DB:
            wrongs.append(f"the worst frame has {value:.1f} dB PSNR, at least {ANIMATE_DB:g}")
        if name == "flips" and not value <= FLIPS:
            wrongs.append(
                f"{value:.2%} of {errors['frames']:.0f} decisions flip, at most {FLIPS:.1%} "
                f"(largest change of a probability {errors['max_dp']:.2g})"
            )
    if wrongs:
        raise CheckFailed(
            f"{what}: {'; '.join(wrongs)}, against float32 torch on the fixed set. Refused; "
            "export with --precision fp32"
        )


def _file_call(path: Path, spec: GraphSpec) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            os.fspath(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its own exceptions have no common base but this
        raise EnvironmentUnfit(
            f"ONNX Runtime {onnxruntime.__version__} does not load {os.fspath(path)!r} on a CPU: "
            f"{str(error).splitlines()[0]}"
        ) from error

    def call(feeds: Tensors) -> dict[str, Tensor]:
        arrays = {tensor.name: feeds[tensor.name].numpy() for tensor in spec.inputs}
        results = session.run([tensor.name for tensor in spec.outputs], arrays)
        return {t.name: torch.from_numpy(r) for t, r in zip(spec.outputs, results, strict=True)}

    return call


def _differences(output: str, found: Tensor, wanted: Tensor) -> dict[str, float]:
    largest = _max_abs(found, wanted)
    return {
        f"max_abs.{output}": largest,
        f"max_rel.{output}": largest / max(1.0, float(wanted.abs().max())),
    }


def _max_abs(found: Tensor, wanted: Tensor) -> float:
    """Infinite where anything is not a number."""
    if found.shape != wanted.shape:
        raise CheckFailed(
            f"an output is {tuple(found.shape)}, torch's is {tuple(wanted.shape)}: another graph"
        )
    worst = float((found.double() - wanted.double()).abs().max())
    return worst if math.isfinite(worst) else float(torch.finfo(torch.float32).max)


def _worst_psnr(found: Tensor, wanted: Tensor) -> float:
    errors = (found.double() - wanted.double()).square().flatten(1).mean(1)
    worst = float(errors.max())
    if not math.isfinite(worst):
        return 0.0
    return min(_EXACT_DB, -10 * math.log10(max(worst, 1e-30)))
