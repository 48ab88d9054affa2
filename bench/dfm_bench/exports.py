"""`bench export`: every exported graph by every backend that is here, beside torch.

    export (or find in the cache) ─► build engines ─► parity, each backend ─► time them, interleaved

A network's fixed set of drawn faces is what `dfm-engine export` measures errors on; a backend that
is further from float32 torch than its plan allows ends the benchmark with exit 5 and no numbers.
Engines that nothing here can run (no GPU) have their build seconds and size and nothing else.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfm_bench.exported import Network, Said
from dfm_bench.facts import read_facts
from dfm_bench.markdown import table
from dfm_bench.measure import Row, clock_for, measure
from dfm_bench.report import BenchReport
from dfm_bench.roofline import count_flops, measure_matrix_product
from dfm_engine.machine import installed
from dfm_export.artifact import Artifact
from dfm_export.cache import EngineCache
from dfm_export.cases import Tensors
from dfm_export.engines import build_engines, target_of
from dfm_export.models import Opening
from dfm_export.parity import Call, check
from dfm_export.precision import plan_of
from dfm_export.provide import ExportCache
from dfm_export.to_tensorrt import BuildSettings, Profile
from dfm_export.trt_api import FLAVOURS, has_library, open_tensorrt
from dfm_export.trt_graph import read_chip

__all__ = ["FULL", "QUICK", "ExportReport", "Scope", "run_bench_export"]

COLUMNS = ("network", "graph", "file", "precision", "size", "made in", "largest error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """How much is measured.

    Attributes:
        batches: rows of a call, per kind of device.
        repeats: calls that count.
        frames: of a detector's fixed set.
    """

    batches: Mapping[str, tuple[int, ...]]
    repeats: int
    frames: int


FULL = Scope(batches={"cpu": (1, 8), "cuda": (1, 8, 32)}, repeats=7, frames=32)
QUICK = Scope(batches={"cpu": (1, 4), "cuda": (1, 8)}, repeats=3, frames=8)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRow:
    """One file that was made.

    Attributes:
        network: `fomm` or a detector's name.
        graph: of it.
        file: `onnx`, or the flavour and target of an engine.
        precision: the plan.
        size_bytes: of the file.
        seconds: it took to make, when it was made.
        max_abs: its largest error in ONNX Runtime or here; None for an engine that did not run.
    """

    network: str
    graph: str
    file: str
    precision: str
    size_bytes: int
    seconds: float
    max_abs: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport(BenchReport):
    """A `BenchReport` with the files that were measured."""

    files: tuple[FileRow, ...] = field(default=())

    def markdown(self) -> str:
        """The files, then the rates."""
        lines = [
            (
                row.network,
                row.graph,
                row.file,
                row.precision,
                f"{row.size_bytes / 1e6:.1f} MB",
                f"{row.seconds:.1f} s",
                "not run" if row.max_abs is None else f"{row.max_abs:.1e}",
            )
            for row in self.files
        ]
        files = table(COLUMNS, lines, right=(4, 5, 6))
        return f"{files}\n\n{BenchReport.markdown(self)}"

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        return {**BenchReport.to_json(self), "files": [asdict(row) for row in self.files]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One backend with one network, already checked.

    Attributes:
        name: of its rows.
        calls: by graph.
        errors: as `parity` measures them.
    """

    name: str
    calls: Mapping[str, Call]
    errors: Mapping[str, float]


def run_bench_export(
    *,
    out: Path,
    networks: Sequence[Network],
    scope: Scope = FULL,
    device: str = "cpu",
    exports: ExportCache | None = None,
    engines: EngineCache | None = None,
    command: str = "",
    remark: str = "",
    say: Said = lambda text: None,
) -> ExportReport:
    """Measure exported networks and write the report into a folder.

    Args:
        out: the folder.
        networks: what to measure.
        scope: how much.
        device: cpu or cuda.
        exports: cache of exports; None: the user's.
        engines: cache of engines; None: the user's.
        command: makes the report again.
        remark: about the weights.
        say: told what a person wants to read while it lasts.

    Raises:
        CheckFailed: a backend is further from torch than its plan allows; nothing is written.
    """
    facts = read_facts()
    exports, engines = exports or ExportCache(), engines or EngineCache()
    product = measure_matrix_product(
        torch.device(device), repeats=max(3, scope.repeats), command=command
    )
    rows: list[Row] = [product]
    files: list[FileRow] = []
    for network in networks:
        with contextlib.ExitStack() as stack:
            ways, made = _open_ways(network, scope, device, exports, engines, stack, say)
            files += made
            say(f"timing {network.name}")
            for graph in network.graphs:
                rows += _timed(graph, network, ways, scope, device, product.rate, command)
    report = ExportReport(
        verb="export",
        command=command,
        device=device,
        facts=facts,
        rows=tuple(rows),
        files=tuple(files),
        remark="\n".join(part for part in (remark, _versions()) if part),
    )
    report.write(out)
    return report


def _open_ways(
    network: Network,
    scope: Scope,
    device: str,
    exports: ExportCache,
    engines: EngineCache,
    stack: contextlib.ExitStack,
    say: Said,
) -> tuple[list[Way], list[FileRow]]:
    """Every backend that is here, each checked before the next is opened; and the files."""
    name, most = network.name, max(scope.batches[device])
    settings = BuildSettings(profile=Profile(min=1, opt=most, max=most))
    ways: list[Way] = []
    files: list[FileRow] = []

    def add(title: str, calls: Mapping[str, Call], precision: str) -> None:
        errors = network.errors(_to_host(calls))
        check(errors, plan_of(network.kind, precision), what=f"no numbers: {name} by {title}")
        ways.append(Way(name=title, calls=calls, errors=errors))

    add("torch fp32", network.torch_calls(), "fp32")
    if device == "cuda" and (compiled := network.compiled_calls(stack)):
        add("torch.compile fp32", compiled, "fp32")
    for precision in _precisions(network, device):
        artifact = network.export(exports, precision, say)
        opening = Opening(backend="onnxruntime", device=device, settings=settings, cache=engines)
        say(f"{name} {precision}: onnxruntime")
        add(f"onnxruntime {precision}", network.open(artifact, opening, stack), precision)
        files += _onnx_files(name, artifact, precision, ways[-1])
        for flavour in FLAVOURS:
            if not has_library(flavour) or (flavour == "tensorrt" and device != "cuda"):
                continue
            trt = open_tensorrt(flavour)
            runs = device == "cuda" and (not trt.targets or read_chip(device).target in trt.targets)
            say(f"{name} {precision}: {flavour}")
            target = target_of(trt, settings, device=device)
            built = build_engines(artifact, trt, settings, target=target, cache=engines)
            if runs:
                opening = Opening(backend=flavour, device=device, settings=settings, cache=engines)
                add(f"{flavour} {precision}", network.open(artifact, opening, stack), precision)
            for graph, engine in built.items():
                files.append(
                    FileRow(
                        network=name,
                        graph=graph,
                        file=f"{flavour} {trt.version}, {target}",
                        precision=precision,
                        size_bytes=engine.manifest["size_bytes"],
                        seconds=engine.manifest["build_seconds"],
                        max_abs=_largest(ways[-1], graph) if runs else None,
                    )
                )
    return ways, files


def _precisions(network: Network, device: str) -> tuple[str, ...]:
    """A CPU gains nothing from 16 bits: ONNX Runtime computes them in float32."""
    if device == "cpu":
        return ("fp32",)
    return ("fp32", "fp16_islands") if network.kind == "fomm" else ("fp32", "fp16")


def _onnx_files(name: str, artifact: Artifact, precision: str, way: Way) -> Iterator[FileRow]:
    for graph in artifact.graphs.values():
        yield FileRow(
            network=name,
            graph=graph.name,
            file="onnx",
            precision=precision,
            size_bytes=graph.size_bytes,
            seconds=graph.seconds,
            max_abs=_largest(way, graph.name),
        )


def _timed(
    graph: str,
    network: Network,
    ways: Sequence[Way],
    scope: Scope,
    device: str,
    gflops: float,
    command: str,
) -> Iterator[Row]:
    """One graph by every way, at every batch size."""
    one = network.feeds(graph, 1, 0)
    flops = count_flops(functools.partial(ways[0].calls[graph], one))
    for batch in scope.batches[device]:
        inputs = [network.feeds(graph, batch, turn) for turn in range(2 * len(ways))]
        timings = measure(
            {way.name: way.calls[graph] for way in ways},
            inputs,
            repeats=scope.repeats,
            warm_up=2 if device == "cuda" else 1,
            clock=clock_for(device),
        )
        given = next(iter(inputs[-1].values()))
        for way in ways:
            yield Row.of(
                network.name if graph == "detector" else f"{network.name} {graph}",
                timings[way.name],
                variant=way.name,
                amount=batch,
                unit="frames/s",
                shape=(batch, *given.shape[1:]),
                dtype=str(given.dtype).removeprefix("torch."),
                device=device,
                ceiling=gflops * 1e9 / flops,
                ceiling_of=f"float32 products, {flops / 2e9:.2f} GMAC a frame",
                command=command,
            )


def _versions() -> str:
    """Of what exported and ran."""
    names = ("onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "tensorrt-cu13")
    found = installed((*names, "tensorrt-rtx-cu13"))
    return ", ".join(f"{name} {version}" for name, version in found.items())


def _to_host(calls: Mapping[str, Call]) -> dict[str, Call]:
    """For `parity`, whose truth is on the CPU."""

    def host(call: Call, feeds: Tensors) -> dict[str, Tensor]:
        return {name: tensor.cpu() for name, tensor in call(feeds).items()}

    return {name: functools.partial(host, call) for name, call in calls.items()}


def _largest(way: Way, graph: str) -> float:
    prefix = f"max_abs.{graph}."
    return max(value for name, value in way.errors.items() if name.startswith(prefix))
