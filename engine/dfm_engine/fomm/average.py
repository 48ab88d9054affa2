"""What is shipped after training: an average of weights, with batch-norm statistics to match.

The average (EMA) follows the weights with a lag and without their noise. Batch-norm running
statistics belong to one set of weights, so they are taken anew for the average.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dfm_engine.fomm.model import Fomm
from dfm_engine.fomm.train_step import Batch, TrainingStep


class WeightAverage:
    """An exponential moving average of a module's parameters.

    Early on the decay is (1 + n) / (10 + n) after n updates, so that the start is forgotten.
    """

    def __init__(self, module: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._names = [name for name, _ in module.named_parameters()]
        self._values = [value.detach().clone() for _, value in module.named_parameters()]

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move towards the module's present weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        now = [value.detach() for value in module.parameters()]
        torch._foreach_lerp_(self._values, now, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        self.updates += 1

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Overwrite a module's parameters with the average."""
        for value, average in zip(module.parameters(), self._values, strict=True):
            value.copy_(average)

    def state_dict(self) -> dict[str, object]:
        """For a checkpoint."""
        return {
            "updates": self.updates,
            "values": dict(zip(self._names, self._values, strict=True)),
        }

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue from a checkpoint."""
        values = state["values"]
        assert isinstance(values, dict)
        self.updates = int(state["updates"])  # pyright: ignore[reportArgumentType]
        for name, value in zip(self._names, self._values, strict=True):
            value.copy_(values[name])


def shippable(step: TrainingStep, average: WeightAverage | None, batches: Iterable[Batch]) -> Fomm:
    """A copy of the model in evaluation mode: averaged weights, fresh batch-norm statistics.

    The training model itself stays as it is. Without batches the running statistics are kept.
    """
    fomm = copy.deepcopy(step.fomm)
    if average is not None:
        average.copy_to(fomm)
    kept = list(batches)
    if kept:
        # keypoints first: in use, their detector's statistics are fixed while it feeds the rest
        _recalibrate(step, fomm, fomm.kp_detector, kept)
        _recalibrate(step, fomm, fomm.generator, kept)
    return fomm.eval().requires_grad_(False)


@torch.no_grad()
def _recalibrate(step: TrainingStep, fomm: Fomm, part: nn.Module, batches: list[Batch]) -> None:
    """The plain mean, over the batches, of each norm's statistics."""
    norms = [module for module in part.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta: list[float | None] = [norm.momentum for norm in norms]
    fomm.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean
        norm.train()
    for batch in batches:
        step.forward(batch, fomm=fomm)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum  # pyright: ignore[reportAttributeAccessIssue]
    fomm.eval()


def count_parameters(modules: Iterable[nn.Module]) -> int:
    """How many numbers training may change."""
    tensors: list[Tensor] = [value for module in modules for value in module.parameters()]
    return sum(value.numel() for value in tensors)
