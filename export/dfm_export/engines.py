"""The TensorRT engines of an exported model: built ahead of time into a folder, or on demand.

What each parsed network must be comes from `export.json`: its spec, its plan's types, the number of
GridSample and their `align_corners`. Keypoints never have TF32: it has float16's mantissa, and half
a pixel of a keypoint moves a face.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dfm_engine.durable import write_durably
from dfm_export.artifact import Artifact, ExportedGraph
from dfm_export.cache import CachedEngine, EngineCache, EngineKey, engine_key, slug
from dfm_export.inspect import Expected
from dfm_export.precision import plan_of
from dfm_export.to_tensorrt import BuildSettings, BuiltEngine, build_engine
from dfm_export.trt_api import Flavour, TensorRt, open_tensorrt

__all__ = ["EnginesResult", "build_engines", "cached_engine", "expected_of", "run_build_engines"]

Said = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFile:
    """One engine in a folder.

    Attributes:
        graph: its name.
        path: of the plan; the sidecar is beside it, with `.json` added.
        size_bytes: of the plan.
        seconds: the build took; 0 where it was in the cache.
    """

    graph: str
    path: Path
    size_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginesResult:
    """What `run_build_engines` made."""

    flavour: Flavour
    version: str
    target: str
    engines: tuple[EngineFile, ...]
    exit_code: int = field(default=0, init=False)

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "schema_version": 1,
            "flavour": self.flavour,
            "version": self.version,
            "target": self.target,
            "engines": [
                {
                    "graph": engine.graph,
                    "file": engine.path.name,
                    "size_bytes": engine.size_bytes,
                    "build_seconds": round(engine.seconds, 2),
                }
                for engine in self.engines
            ],
        }

    def print(self) -> None:
        """For people, on stderr."""
        for engine in self.engines:
            made = f"built in {engine.seconds:.1f} s" if engine.seconds else "from the cache"
            sys.stderr.write(
                f"{engine.graph}: {os.fspath(engine.path)}, {engine.size_bytes / 1e6:.1f} MB, "
                f"{self.flavour} {self.version}, {self.target}, {made}\n"
            )


def expected_of(artifact: Artifact, graph: ExportedGraph) -> Expected:
    """What TensorRT's parser must make of a graph."""
    plan = plan_of(artifact.kind, artifact.precision)
    dtype = plan.dtype_of(graph.name)
    low = dtype if dtype in ("float16", "bfloat16") else None
    return Expected(
        spec=graph.spec,
        align_corners=artifact.align_corners if graph.grid_samples else None,
        grid_samples=graph.grid_samples,
        low=low,
        has_islands=artifact.kind == "fomm",
        low_tensors=graph.census.get(low, 0) if low else 0,
    )


def settings_of(graph: ExportedGraph, settings: BuildSettings) -> BuildSettings:
    """The settings as they hold for one graph."""
    if graph.name == "keypoints" and settings.tf32:
        return dataclasses.replace(settings, tf32=False)
    return settings


def key_of(
    artifact: Artifact, graph: ExportedGraph, flavour: Flavour, settings: BuildSettings, target: str
) -> EngineKey:
    """Where the engine of a graph is found."""
    settings = settings_of(graph, settings)
    return engine_key(
        graph=graph.name,
        onnx_sha256=graph.sha256,
        precision=artifact.precision,
        profile=settings.profile.shapes(graph.spec),
        flags=settings.flags(),
        flavour=flavour,
        target=target,
    )


def cached_engine(
    artifact: Artifact,
    graph: ExportedGraph,
    trt: TensorRt,
    settings: BuildSettings,
    *,
    target: str,
    cache: EngineCache,
) -> tuple[EngineKey, Callable[[], BuiltEngine]]:
    """The key of a graph's engine, and what builds it; for `EngineCache.get` and `open`.

    Args:
        artifact: the export.
        graph: of it.
        trt: the flavour.
        settings: of the build.
        target: what the engine is for, see `EngineKey.target`.
        cache: whose timing cache the build shares.
    """
    key = key_of(artifact, graph, trt.flavour, settings, target)

    def build() -> BuiltEngine:
        return build_engine(
            trt,
            graph.path,
            expected_of(artifact, graph),
            settings_of(graph, settings),
            timing_cache=cache.timing_cache(key) if trt.has_timing_cache else None,
        )

    return key, build


def build_engines(
    artifact: Artifact,
    trt: TensorRt,
    settings: BuildSettings,
    *,
    target: str,
    cache: EngineCache | None = None,
) -> dict[str, CachedEngine]:
    """The engine of every graph of an export, by graph, from the cache or built into it.

    Args:
        artifact: the export.
        trt: the flavour.
        settings: of the build.
        target: see `cached_engine`.
        cache: None: the user's.

    Raises:
        UsageError: a chip or setting that this flavour does not have.
        CheckFailed: a parsed network is not the one that was exported.
        TensorRtError: the library could not parse or build.
    """
    cache = cache or EngineCache()
    made: dict[str, CachedEngine] = {}
    for graph in artifact.graphs.values():
        key, build = cached_engine(artifact, graph, trt, settings, target=target, cache=cache)
        made[graph.name] = cache.get(key, build, facts=sidecar_facts(artifact, graph))
    return made


def sidecar_facts(artifact: Artifact, graph: ExportedGraph) -> dict[str, Any]:
    """What an engine's sidecar says of the ONNX file that it was built from."""
    return {
        "spec": graph.spec.to_json(),
        "weights_sha256": artifact.weights_sha256,
        "parity": dict(graph.parity),
        "exporter": dict(artifact.versions),
    }


def run_build_engines(
    artifact: Artifact,
    *,
    flavour: Flavour,
    settings: BuildSettings,
    out: Path | None = None,
    cache: EngineCache | None = None,
    device: str = "cuda",
    say: Said = lambda text: None,
) -> EnginesResult:
    """Build the engines of an export into a folder: `<graph>.<target>.plan` and its sidecar.

    Args:
        artifact: the export.
        flavour: of TensorRT.
        settings: of the build. tensorrt-rtx builds for its targets, and for all chips that it
            knows without any; data-centre TensorRT for the GPU of this machine.
        out: None: the export's own folder.
        cache: None: the user's.
        device: data-centre only: the GPU to build for.
        say: told what a person wants to read while it lasts.

    Raises:
        EnvironmentUnfit: the flavour is not here, or needs a GPU and there is none.
        UsageError: as `build_engines`, and the errors of there.
    """
    trt = open_tensorrt(flavour)
    for chip in settings.targets:
        trt.check_target(chip)
    target = target_of(trt, settings, device=device)
    out = out or artifact.path
    files = []
    for name, engine in build_engines(artifact, trt, settings, target=target, cache=cache).items():
        path = out / f"{name}.{slug(flavour)}-{slug(target)}.plan"
        plan = engine.path.read_bytes()
        write_durably(path, plan)
        sidecar = json.dumps(engine.manifest, indent=1).encode() + b"\n"
        write_durably(path.with_name(path.name + ".json"), sidecar)
        seconds = float(engine.manifest["build_seconds"]) if engine.was_built else 0.0
        say(f"{name}: {len(plan) / 1e6:.1f} MB for {target}")
        files.append(EngineFile(graph=name, path=path, size_bytes=len(plan), seconds=seconds))
    return EnginesResult(flavour=flavour, version=trt.version, target=target, engines=tuple(files))


def target_of(trt: TensorRt, settings: BuildSettings, *, device: str) -> str:
    """What an engine is for, as a key has it."""
    if trt.targets:
        return ",".join(sorted(settings.targets)) or "default"
    from dfm_export.trt_graph import read_chip  # torch

    chip = read_chip(device)
    if settings.compatibility == "ampere-plus":
        return "ampere-plus"
    if settings.compatibility == "same-compute-capability":
        return chip.target
    return f"{chip.name} {chip.target}"
