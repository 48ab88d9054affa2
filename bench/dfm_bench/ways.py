"""The ways of running a FOMM that a machine has, each opened as a `Runner`."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path

import torch

from dfm_bench.generators import EXACT, REDUCED, Way
from dfm_bench.roofline import count_flops
from dfm_engine.backends import Runner, TorchRunner
from dfm_engine.fomm.model import Fomm
from dfm_engine.fomm.values import Keypoints
from dfm_export.fomm_runner import FommGraphsRunner
from dfm_export.graphs import fomm_graphs
from dfm_export.models import choose_backend
from dfm_export.precision import plan_of
from dfm_export.provide import provide_fomm
from dfm_export.runners import TorchGraph

__all__ = ["open_ways"]

CPU_BATCHES = (1, 8)
QUICK_BATCHES = (4,)
CUDA_BATCHES = (1, 4, 16, 64)


def open_ways(
    fomm: Fomm,
    device: torch.device,
    *,
    quick: bool,
    backend: str = "torch",
    exported: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Way]:
    """Torch, and another way of running the model here if one is named.

    Args:
        fomm: copied, for a runner takes its model over.
        device: where to run.
        quick: fewer batch sizes.
        backend: of the command line.
        exported: see `dfm_export.provide`.
        say: told what a person wants to read while it is opened.
    """
    batches = QUICK_BATCHES if quick else CUDA_BATCHES if device.type == "cuda" else CPU_BATCHES
    runner = TorchRunner(copy.deepcopy(fomm), device)
    flops = animate_flops(runner)
    ways = [Way(name="torch fp32", runner=runner, gate=EXACT, flops=flops, batches=batches)]
    other = provide_fomm(
        fomm,
        backend=backend,
        device=device.type,
        batch_size=max(batches),
        exported=exported,
        say=say,
    )
    if other is not None:
        # What the exported modules execute: up blocks rewritten, norms folded.
        graphs = fomm_graphs(fomm, plan_of("fomm", "fp32"))
        modules = {name: TorchGraph(graph, graph.spec) for name, graph in graphs.items()}
        rewritten = animate_flops(FommGraphsRunner(modules, weights_sha256=""))
        is_exact = "-fp32" in other.name
        ways.append(
            Way(
                name=f"{choose_backend(backend, device.type)} {'fp32' if is_exact else 'mixed'}",
                runner=other,
                gate=EXACT if is_exact else REDUCED,
                flops=rewritten,
                batches=batches,
            )
        )
    return ways


def animate_flops(runner: Runner) -> float:
    """Of one frame of `animate`, as a runner of torch modules executes it."""
    image = torch.zeros(1, 3, *runner.frame_size, device=runner.device)
    features, found = runner.source(image), runner.keypoints(image)
    moved = Keypoints(found.value + 0.01, found.jacobian)
    return count_flops(functools.partial(runner.animate, features, found, moved))
