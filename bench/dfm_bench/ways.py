"""The ways of running a FOMM that a machine has, each opened as a `Runner`."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path

import torch

from dfm_bench.generators import EXACT, EXACT_ON_GPU, REDUCED, Way
from dfm_bench.roofline import count_flops
from dfm_engine.backends import Runner, TorchRunner
from dfm_engine.errors import CheckFailed, EnvironmentUnfit
from dfm_engine.fomm.fold import fold
from dfm_engine.fomm.model import Fomm
from dfm_engine.fomm.values import Keypoints
from dfm_export.fomm_runner import FommGraphsRunner
from dfm_export.graphs import fomm_graphs
from dfm_export.models import Opening, choose_backend, open_fomm_runner
from dfm_export.precision import plan_of
from dfm_export.provide import ExportCache, provide_fomm
from dfm_export.runners import CompiledTorchGraph, GraphRunner
from dfm_export.throughput_runner import ThroughputRunner
from dfm_export.to_tensorrt import BuildSettings, Profile

__all__ = ["animate_flops", "open_ways"]

Said = Callable[[str], None]

PLANS = ("fp16_islands", "int8_wide", "int8", "fp32")  # none is the beginning of a later one
BATCHES = {"cpu": (1, 8), "cuda": (1, 4, 16, 64)}
QUICK_BATCHES = {"cpu": (4,), "cuda": (4, 64)}
EXPORTED = {  # backend and plan of precision, per device
    "cpu": (
        ("onnxruntime", "fp32"),
        ("onnxruntime", "int8"),
        ("openvino", "fp32"),
        ("openvino", "int8_wide"),
    ),
    "cuda": (("onnxruntime", "fp32"), ("onnxruntime", "fp16_islands")),
}
QUICK_EXPORTED = {"cpu": (("onnxruntime", "fp32"),), "cuda": (("onnxruntime", "fp16_islands"),)}


def open_ways(
    fomm: Fomm,
    device: torch.device,
    *,
    quick: bool,
    backend: str = "torch",
    precision: str = "fp32",
    exported: Path | None = None,
    say: Said = lambda text: None,
) -> tuple[list[Way], list[str]]:
    """Every way of running the model here.

    Args:
        fomm: copied, for a runner takes its model over.
        device: where to run.
        quick: fewer ways and batch sizes.
        backend: one more, of the command line; torch adds none.
        precision: of that one.
        exported: see `dfm_export.provide`.
        say: told what a person wants to read while they are opened.

    Returns:
        The ways, and a line for each that there is not, with the reason.
    """
    kind = device.type
    batches = (QUICK_BATCHES if quick else BATCHES)[kind]
    left: list[str] = []
    ways: list[Way] = []

    def add(
        name: str,
        precision: str,
        flops: float,
        open_runner: Callable[[], Runner],
        batches: tuple[int, ...] = batches,
    ) -> None:
        try:
            runner = open_runner()
        except (CheckFailed, EnvironmentUnfit) as error:
            left.append(f"{name}: not measured. {error}")
            return
        exact = EXACT if kind == "cpu" else EXACT_ON_GPU
        gate = exact if precision == "fp32" else REDUCED
        dtype = {"fp32": "float32", "fp16_islands": "float16"}.get(precision, "int8")
        ways.append(
            Way(name=name, runner=runner, gate=gate, flops=flops, batches=batches, dtype=dtype)
        )

    plain = TorchRunner(copy.deepcopy(fomm), device)
    add("torch fp32", "fp32", animate_flops(plain), lambda: plain)
    folded = TorchRunner(fold(fomm, subpixel=True), device)
    rewritten = animate_flops(folded)
    add("torch fp32, rewritten", "fp32", rewritten, lambda: folded)
    if kind == "cuda":
        half = ThroughputRunner(copy.deepcopy(fomm), device=device)
        executed = animate_flops(half, half.unrecorded)
        add("torch fp16_islands, recorded", "fp16_islands", executed, lambda: half)
        add(
            "torch.compile fp16_islands",
            "fp16_islands",
            rewritten,
            functools.partial(_compiled, fomm, device),
            batches[-1:],  # it compiles for each
        )
    for runtime, precision in (QUICK_EXPORTED if quick else EXPORTED)[kind]:
        is_plain = precision == "int8_wide"  # its up blocks are not rewritten
        add(
            f"{runtime} {precision}",
            precision,
            animate_flops(TorchRunner(fold(fomm), device)) if is_plain else rewritten,
            functools.partial(_exported, fomm, runtime, precision, device, max(batches), say),
        )
    if not any(way.name.startswith(f"{backend} ") for way in ways) or exported is not None:
        named = provide_fomm(
            fomm,
            backend=backend,
            device=kind,
            batch_size=max(batches),
            precision=precision,
            exported=exported,
            say=say,
        )
        if named is not None:
            given = next(plan for plan in PLANS if f"-{plan}" in named.name)
            add(f"{backend}, as given", given, rewritten, lambda: named)
    return ways, left


def animate_flops(runner: Runner, animate: Callable[..., object] | None = None) -> float:
    """Of one frame of `animate`, as a runner of torch modules executes it.

    Args:
        runner: gives features and keypoints.
        animate: what it executes, where its own `animate` replays that.
    """
    image = torch.zeros(1, 3, *runner.frame_size, device=runner.device)
    features, found = runner.source(image), runner.keypoints(image)
    moved = Keypoints(found.value + 0.01, found.jacobian)
    return count_flops(functools.partial(animate or runner.animate, features, found, moved))


def _exported(
    fomm: Fomm, backend: str, precision: str, device: torch.device, rows: int, say: Said
) -> Runner:
    say(f"{backend} {precision}")
    choose_backend(backend, device.type)  # refuses before anything is exported
    artifact = ExportCache().fomm(fomm, plan_of("fomm", precision), say=say)
    settings = BuildSettings(profile=Profile(opt=rows, max=rows))
    return open_fomm_runner(
        artifact, Opening(backend=backend, device=device.type, settings=settings)
    )


def _compiled(fomm: Fomm, device: torch.device) -> Runner:
    """The modules that an export would write, compiled by torch."""
    graphs = fomm_graphs(fomm, plan_of("fomm", "fp16_islands"))
    runners: dict[str, GraphRunner] = {
        name: CompiledTorchGraph(graph, graph.spec, device=device, precision="fp16_islands")
        for name, graph in graphs.items()
    }
    return FommGraphsRunner(runners, weights_sha256=fomm.weights_sha256)
