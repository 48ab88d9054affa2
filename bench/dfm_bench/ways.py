"""The ways of running a FOMM that a machine has, each opened as a `Runner`."""

from __future__ import annotations

import copy
import functools

import torch

from dfm_bench.generators import EXACT, Way
from dfm_bench.roofline import count_flops
from dfm_engine.backends import Runner, TorchRunner
from dfm_engine.fomm.model import Fomm
from dfm_engine.fomm.values import Keypoints

__all__ = ["open_ways"]

CPU_BATCHES = (1, 8)
QUICK_BATCHES = (4,)
CUDA_BATCHES = (1, 4, 16, 64)


def open_ways(fomm: Fomm, device: torch.device, *, quick: bool) -> list[Way]:
    """Every way of running the model here.

    Args:
        fomm: copied, for a runner takes its model over.
        device: where to run.
        quick: fewer batch sizes.
    """
    batches = QUICK_BATCHES if quick else CUDA_BATCHES if device.type == "cuda" else CPU_BATCHES
    runner = TorchRunner(copy.deepcopy(fomm), device)
    flops = animate_flops(runner)
    return [Way(name="torch fp32", runner=runner, gate=EXACT, flops=flops, batches=batches)]


def animate_flops(runner: Runner) -> float:
    """Of one frame of `animate`, as a runner of torch modules executes it."""
    image = torch.zeros(1, 3, *runner.frame_size, device=runner.device)
    features, found = runner.source(image), runner.keypoints(image)
    moved = Keypoints(found.value + 0.01, found.jacobian)
    return count_flops(functools.partial(runner.animate, features, found, moved))
