"""A runner for `--backend`: from an exported folder, or from an export made on the way.

An export made on the way is kept in the user's cache by what it was made from (weights,
architecture, precision, versions, and the code that writes graphs), so the next command finds it.
It passes the same gates as `dfm-engine export`. Precision is what the folder says, else what the
command says, else fp32.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dfm_engine
import dfm_export
import dfm_kernels
from dfm_engine.backends import Runner
from dfm_engine.detect.detector import ForgeryDetector
from dfm_engine.detect.runner import DetectorRunner, TorchDetectorRunner
from dfm_engine.errors import InputError, UsageError
from dfm_engine.fomm.model import Fomm
from dfm_engine.machine import cache_folder, installed
from dfm_export.artifact import Artifact, open_artifact
from dfm_export.cache import locked_entry, writing_cache
from dfm_export.detector_runner import DetectorGraphRunner
from dfm_export.models import Opening, choose_backend, open_detector_runner, open_fomm_runner
from dfm_export.precision import Kind, Plan, plan_of
from dfm_export.runners import GraphRunner
from dfm_export.specs import GraphSpec
from dfm_export.to_tensorrt import BuildSettings, Profile

__all__ = ["ExportCache", "provide_detector", "provide_fomm"]

_log = logging.getLogger(__name__)

Said = Callable[[str], None]
_PACKAGES = ("torch", "onnx", "onnxscript", "onnx-ir", "timm")
_SOURCES = {  # of dfm_engine, what decides the bytes of an export, besides the packages
    "fomm": ("fomm/*.py", "norms.py", "pixels.py", "synthetic/**/*.py"),  # int8 is calibrated
    "detector": ("detect/*.py", "norms.py", "pixels.py"),
}


def provide_fomm(
    fomm: Fomm,
    *,
    backend: str,
    device: str,
    batch_size: int,
    precision: str = "fp32",
    exported: Path | None = None,
    cache: ExportCache | None = None,
    say: Said = lambda text: None,
) -> Runner | None:
    """The runner of a FOMM, or None for torch in float32: then the caller's own serves.

    Args:
        fomm: as loaded, in float32 on the CPU; only read.
        backend: of the command line; a resolved one or auto.
        device: cpu or cuda.
        batch_size: rows of a call; the most that an engine is built for.
        precision: a plan's name; torch itself has fp32, and on a GPU fp16_islands.
        exported: a folder of `dfm-engine export fomm`; None: export into the cache.
        cache: of exports; None: the user's.
        say: told what a person wants to read.

    Raises:
        UsageError: no such backend or precision, or a folder with other weights, another precision
            or another sampling.
        CheckFailed: the precision costs more than its gate allows.
        DfmError: as `models.open_fomm_runner` and `run_export.export_fomm`.
    """
    plan = plan_of("fomm", precision)
    chosen = choose_backend(backend, device, say=say)
    if chosen == "torch":
        _refuse_folder(exported, chosen)
        return _of_torch(fomm, device, plan, say)
    if exported is None:
        artifact = (cache or ExportCache()).fomm(fomm, plan, say=say)
    else:
        artifact = open_artifact(exported)
        if plan.is_mixed and artifact.precision != precision:
            raise UsageError(
                f"the export {artifact.path} is {artifact.precision}, the command says "
                f"--precision {precision}; leave that out, or export such a one"
            )
        _check_weights(artifact, fomm.weights_sha256)
        if artifact.align_corners != fomm.align_corners:
            raise UsageError(
                f"the export {artifact.path} samples with align_corners {artifact.align_corners}, "
                f"the recipe wants {fomm.align_corners}; export it again"
            )
    runner = open_fomm_runner(artifact, _opening(chosen, device, batch_size))
    _log.info("%s from %s", runner.name, artifact.path)
    return runner


def provide_detector(
    detector: ForgeryDetector,
    *,
    backend: str,
    device: str,
    exported: Path | None = None,
    batch_size: int = 32,
    cache: ExportCache | None = None,
    say: Said = lambda text: None,
) -> DetectorRunner:
    """The runner of a detector.

    Args:
        detector: as loaded, in float32 on the CPU; torch takes it over.
        backend: see `provide_fomm`; or torch-tensorrt, see `torch_tensorrt_graph`.
        device: likewise.
        exported: a folder of `dfm-engine export detector`; None: export into the cache.
        batch_size: see `provide_fomm`.
        cache: likewise.
        say: likewise.

    Raises:
        UsageError: as `provide_fomm`.
        DfmError: likewise.
    """
    if backend == "torch-tensorrt":
        _refuse_folder(exported, backend)
        return _torch_tensorrt(detector, device, say)
    chosen = choose_backend(backend, device, say=say)
    if chosen == "torch":
        _refuse_folder(exported, chosen)
        return TorchDetectorRunner(detector, device)
    if exported is None:
        artifact = (cache or ExportCache()).detector(detector, plan_of("detector", "fp32"), say=say)
    else:
        artifact = open_artifact(exported)
        _check_weights(artifact, detector.weights_sha256)
    return open_detector_runner(artifact, _opening(chosen, device, batch_size))


class ExportCache:
    """Exports by what they were made from; any number of processes may use it.

    A folder that cannot be written is an `EnvironmentUnfit`.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or cache_folder() / "exports"

    def fomm(self, fomm: Fomm, plan: Plan, *, say: Said = lambda text: None) -> Artifact:
        """The export of a FOMM."""
        from dfm_export.run_export import export_fomm  # onnx, and torch's exporter

        facts = {
            "weights_sha256": fomm.weights_sha256,
            "config": fomm.config.to_dict(),
            "align_corners": fomm.align_corners,
        }
        return self._get(
            "fomm", plan, facts, lambda out: export_fomm(fomm, out, plan=plan, say=say), say
        )

    def detector(
        self, detector: ForgeryDetector, plan: Plan, *, say: Said = lambda text: None
    ) -> Artifact:
        """The export of a detector."""
        from dfm_export.run_export import export_detector

        facts = {"weights_sha256": detector.weights_sha256, "spec": asdict(detector.spec)}
        return self._get(
            "detector",
            plan,
            facts,
            lambda out: export_detector(detector, out, plan=plan, say=say),
            say,
        )

    def _get(
        self,
        kind: Kind,
        plan: Plan,
        facts: Mapping[str, Any],
        export: Callable[[Path], Artifact],
        say: Said,
    ) -> Artifact:
        key = _digest(
            {
                **facts,
                "kind": kind,
                "plan": asdict(plan),
                "versions": installed(_PACKAGES),
                "code": _code(kind),
            }
        )
        folder = self.root / key[:2] / key
        busy = "another process exports the same network; waiting for it"
        with locked_entry(folder, root=self.root, busy=busy):
            try:
                return open_artifact(folder)
            except InputError as error:
                if folder.exists():
                    _log.warning("%s; it is made again", error)
            with writing_cache(self.root):
                if folder.exists():
                    shutil.rmtree(folder)
                folder.mkdir(parents=True)
            say("exporting to ONNX, once; the cache keeps it")
            return export(folder)


def _of_torch(fomm: Fomm, device: str, plan: Plan, say: Said) -> Runner | None:
    if not plan.is_mixed:
        return None
    if plan.quantised is not None:
        raise UsageError(
            f"--precision {plan.name} runs by --backend onnxruntime, openvino or tensorrt, not by "
            "torch"
        )
    from dfm_export.throughput_runner import open_throughput_runner

    return open_throughput_runner(copy.deepcopy(fomm), device, say=say)


def _opening(backend: str, device: str, batch_size: int) -> Opening:
    profile = Profile(min=1, opt=batch_size, max=batch_size)
    return Opening(backend=backend, device=device, settings=BuildSettings(profile=profile))


def _torch_tensorrt(detector: ForgeryDetector, device: str, say: Said) -> DetectorRunner:
    from dfm_export.graphs import detector_graph
    from dfm_export.torch_tensorrt_graph import UNRUN

    say(UNRUN)
    module = detector_graph(detector, plan_of("detector", "fp32"))
    graph = _open_torch_tensorrt(module, module.spec, device)
    return DetectorGraphRunner(graph, detector.spec, weights_sha256=detector.weights_sha256)


def _open_torch_tensorrt(module: Any, spec: GraphSpec, device: str) -> GraphRunner:
    from dfm_export.torch_tensorrt_graph import TorchTensorRtGraph

    return TorchTensorRtGraph(module, spec, device=device)


def _refuse_folder(exported: Path | None, backend: str) -> None:
    if exported is not None:
        raise UsageError(f"--exported {exported}: --backend {backend} runs no exported graphs")


def _check_weights(artifact: Artifact, weights_sha256: str) -> None:
    if artifact.weights_sha256 != weights_sha256:
        raise UsageError(
            f"the export {artifact.path} is of weights {artifact.weights_sha256[:12]}, the command "
            f"names weights {weights_sha256[:12]}; export those"
        )


def _code(kind: Kind) -> str:
    """Of the modules that decide what an export computes."""
    engine, export, kernels = (
        Path(package.__path__[0]) for package in (dfm_engine, dfm_export, dfm_kernels)
    )
    files = [*sorted(export.glob("*.py")), *sorted(kernels.glob("*.py"))]
    files += [path for pattern in _SOURCES[kind] for path in sorted(engine.glob(pattern))]
    return _digest([hashlib.sha256(path.read_bytes()).hexdigest() for path in files])


def _digest(facts: Any) -> str:
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
