"""An exported model, opened as the runner that the pipeline takes.

    auto          ONNX Runtime on a CPU; on a GPU the first of tensorrt, tensorrt-rtx, onnxruntime
                  that is here and knows the chip
    onnxruntime   its CPU or its CUDA provider, as the device says
    openvino      on a CPU; what int8 is fastest with
    tensorrt      an engine from the cache, built on the first use
    tensorrt-rtx  likewise; what it compiles for this GPU is kept

`auto` decides before anything is opened, and says what it took. A backend that was named is that
one or an error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch

from dfm_engine.crew import Crew
from dfm_engine.detect.detector import DetectorSpec
from dfm_engine.errors import UsageError
from dfm_export.artifact import Artifact, ExportedGraph
from dfm_export.cache import CachedEngine, EngineCache
from dfm_export.detector_runner import DetectorGraphRunner
from dfm_export.engines import cached_engine, sidecar_facts, target_of
from dfm_export.fomm_runner import FommGraphsRunner
from dfm_export.openvino_graph import OpenVinoGraph
from dfm_export.ort_graph import OrtGraph, check_provider
from dfm_export.runners import GraphRunner
from dfm_export.to_tensorrt import BuildSettings
from dfm_export.trt_api import FLAVOURS, Flavour, flavour_of, has_library, open_tensorrt
from dfm_export.trt_graph import TrtGraph, load_trt_graph, read_chip

__all__ = ["BACKENDS", "Backend", "Opening", "choose_backend", "open_detector_runner"]
__all__ += ["open_fomm_runner", "open_graph"]

Backend = Literal["auto", "torch", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"]
BACKENDS: tuple[str, ...] = get_args(Backend)
MAX_CPU_DETECTOR_BATCH = 16

Said = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """How to open a graph.

    Attributes:
        backend: a resolved one: neither auto nor torch.
        device: cpu or cuda.
        settings: of an engine that has to be built; its targets are this GPU's.
        cache: of engines.
        threads: on a CPU; None: as many as torch has.
    """

    backend: str
    device: str = "cpu"
    settings: BuildSettings = field(default_factory=BuildSettings)
    cache: EngineCache = field(default_factory=EngineCache)
    threads: int | None = None


def choose_backend(word: str, device: str, *, say: Said = lambda text: None) -> str:
    """What `--backend` says, `auto` decided.

    Args:
        word: of the command line.
        device: cpu or cuda.
        say: told what `auto` took.

    Raises:
        UsageError: no backend of ours, or one that does not run on the device.
        EnvironmentUnfit: ONNX Runtime's provider for the device is not installed: said before
            anything is exported for it.
    """
    if word not in BACKENDS:
        raise UsageError(f"--backend takes {', '.join(BACKENDS)}, found {word!r}")
    if word in FLAVOURS and device != "cuda":
        raise UsageError(
            f"--backend {word} needs an NVIDIA GPU, the device is {device}; "
            "--backend onnxruntime runs everywhere"
        )
    if word == "openvino" and device != "cpu":
        raise UsageError(f"--backend openvino runs on a CPU, the device is {device}; --device cpu")
    if word == "tensorrt-rtx":
        open_tensorrt(word).check_target(read_chip(device).target)
    if word == "onnxruntime":
        check_provider(device)
    if word != "auto":
        return word
    chosen = _best(device)
    say(f"backend: {chosen}")
    return chosen


def open_graph(
    artifact: Artifact, graph: ExportedGraph, opening: Opening, *, crew: Crew | None = None
) -> GraphRunner:
    """One graph of an export.

    Args:
        artifact: the export.
        graph: of it.
        opening: how.
        crew: on a CPU, of a FOMM: deals its rows out to the cores; it is all graphs' together.

    Raises:
        EnvironmentUnfit: the backend does not load, or not on this device.
        UsageError: a chip that the flavour does not know.
        CheckFailed: TensorRT parsed something else than was exported.
    """
    if opening.backend in FLAVOURS:
        return _open_trt(artifact, graph, flavour_of(opening.backend), opening)
    if opening.backend not in ("onnxruntime", "openvino"):
        raise UsageError(f"no exported graph runs by --backend {opening.backend}")
    on_cpu = torch.device(opening.device).type == "cpu"
    is_urgent = graph.spec.name in ("keypoints", "source")  # of the clip that is opened next
    if opening.backend == "openvino":
        return OpenVinoGraph(
            graph.path,
            graph.spec,
            precision=artifact.precision,
            threads=opening.threads,
            max_batch=1 if artifact.kind == "fomm" else MAX_CPU_DETECTOR_BATCH,
            crew=crew,
            is_urgent=is_urgent,
        )
    return OrtGraph(
        graph.path,
        graph.spec,
        device=opening.device,
        precision=artifact.precision,
        threads=opening.threads,
        # Row by row a FOMM's maps stay in the cache, and no row's bits depend on another.
        max_batch=(1 if artifact.kind == "fomm" else MAX_CPU_DETECTOR_BATCH)
        if on_cpu
        else opening.settings.profile.max,
        crew=crew,
        is_urgent=is_urgent,
    )


def open_fomm_runner(artifact: Artifact, opening: Opening) -> FommGraphsRunner:
    """An exported FOMM as the pipeline's `Runner`.

    Raises:
        UsageError: the export is of a detector.
        DfmError: as `open_graph`.
    """
    _check_kind(artifact, "fomm")
    graphs: dict[str, GraphRunner] = {}
    crew = Crew(opening.threads) if torch.device(opening.device).type == "cpu" else None
    try:
        for name, graph in artifact.graphs.items():
            graphs[name] = open_graph(artifact, graph, opening, crew=crew)
        files = "".join(graph.sha256 for graph in artifact.graphs.values())
        return FommGraphsRunner(
            graphs,
            weights_sha256=artifact.weights_sha256,
            files_sha256=hashlib.sha256(files.encode()).hexdigest(),
        )
    except BaseException:
        for runner in graphs.values():
            runner.close()
        raise


def open_detector_runner(artifact: Artifact, opening: Opening) -> DetectorGraphRunner:
    """An exported detector as the pipeline's `DetectorRunner`.

    Raises:
        UsageError: the export is of a FOMM, or has no class activation map.
        DfmError: as `open_graph`.
    """
    _check_kind(artifact, "detector")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in artifact.model["spec"].items()
    }
    spec = DetectorSpec(**values)
    graph = open_graph(artifact, artifact.graph("detector"), opening)
    return DetectorGraphRunner(graph, spec, weights_sha256=artifact.weights_sha256)


def _best(device: str) -> str:
    if device == "cuda":
        chip = read_chip(device)
        for flavour in FLAVOURS:
            if has_library(flavour):
                trt = open_tensorrt(flavour)
                if not trt.targets or chip.target in trt.targets:
                    return flavour
    return "onnxruntime"


def _open_trt(
    artifact: Artifact, graph: ExportedGraph, flavour: Flavour, opening: Opening
) -> TrtGraph:
    trt = open_tensorrt(flavour)
    chip = read_chip(opening.device)
    trt.check_target(chip.target)
    settings = opening.settings
    target = target_of(trt, settings, device=opening.device)
    key, build = cached_engine(artifact, graph, trt, settings, target=target, cache=opening.cache)

    def load(engine: CachedEngine) -> TrtGraph:
        return load_trt_graph(
            trt,
            engine.path,
            graph.spec,
            device=opening.device,
            precision=artifact.precision,
            runtime_cache=engine.runtime_cache(f"{chip.name} {chip.target}"),
        )

    return opening.cache.open(key, build, load, facts=sidecar_facts(artifact, graph))


def _check_kind(artifact: Artifact, kind: str) -> None:
    if artifact.kind != kind:
        raise UsageError(f"the export {artifact.path} is of a {artifact.kind}, not of a {kind}")
