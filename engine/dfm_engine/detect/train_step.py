"""One update of a detector, or of the head of a frozen one; and what an epoch is judged by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfm_engine.detect.detector import fake_probability
from dfm_engine.detect.train_recipe import Schedule, TrainDetectorRecipe


class TrainingStep:
    """Adam on one module, whose inputs are images or, behind a frozen backbone, features.

    Args:
        module: gives logits.
        recipe: of the run.
        total_steps: after which the learning rate is 0.
        class_weights: of real and fake in the loss.
        device: where all of it is.
    """

    def __init__(
        self,
        module: nn.Module,
        recipe: TrainDetectorRecipe,
        *,
        total_steps: int,
        class_weights: tuple[float, float],
        device: torch.device,
    ) -> None:
        self.module, self.recipe, self.device = module, recipe, device
        self.total_steps = total_steps
        self.weights = torch.tensor(class_weights, device=device)
        self.optimiser = torch.optim.Adam(
            module.parameters(),
            lr=recipe.schedule.lr,
            betas=(recipe.optimiser.betas[0], recipe.optimiser.betas[1]),
            weight_decay=recipe.optimiser.weight_decay,
            fused=device.type == "cuda",
        )
        on_gpu = device.type == "cuda"
        self._forward: Any = (
            torch.compile(module) if recipe.optimiser.compile and on_gpu else module
        )

    def __call__(self, inputs: Tensor, labels: Tensor, *, step: int) -> tuple[Tensor, Tensor]:
        """Do step number `step`, the first being 0.

        Args:
            inputs: (B, ...).
            labels: int64 (B,), 1 = fake.
            step: decides the learning rate and the dropout.

        Returns:
            The loss and the number of right decisions, both on the device.
        """
        torch.manual_seed(_seed_of(self.recipe.schedule.seed, step))  # dropout
        rate = learning_rate(self.recipe.schedule, step, self.total_steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.module.train()
        with self.autocast():
            logits = self._forward(inputs)
        logits = logits.float()
        loss = loss_of(logits, labels, self.weights, kind=self.recipe.optimiser.loss)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return loss.detach(), (decisions(logits) == labels).sum()

    def autocast(self) -> AbstractContextManager[Any]:
        """Bfloat16 where the recipe says so and the device is a GPU."""
        if self.recipe.optimiser.autocast == "bf16" and self.device.type == "cuda":
            return torch.autocast("cuda", torch.bfloat16)
        return nullcontext()

    @torch.no_grad()
    def judge(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Judgement:
        """Loss and decisions over inputs and labels, in evaluation mode."""
        self.module.eval()
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        counts = torch.zeros(2, 2, dtype=torch.int64, device=self.device)
        ones = torch.ones_like(self.weights)
        for inputs, labels in batches:
            with self.autocast():
                logits = self._forward(inputs)
            logits = logits.float()
            batch_loss = loss_of(logits, labels, ones, kind=self.recipe.optimiser.loss)
            loss += batch_loss.double() * len(labels)
            pairs = 2 * labels + decisions(logits)
            counts += torch.bincount(pairs, minlength=4).view(2, 2)
        right = counts.diagonal()
        return Judgement(
            loss=float(loss / counts.sum().clamp_min(1)),
            real=int(counts[0].sum()),
            fake=int(counts[1].sum()),
            real_right=int(right[0]),
            fake_right=int(right[1]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """How a net did on frames.

    Attributes:
        loss: mean.
        real: frames that are real.
        fake: frames that are fake.
        real_right: of the real ones, those taken for real.
        fake_right: of the fake ones, those taken for fake.
    """

    loss: float
    real: int
    fake: int
    real_right: int
    fake_right: int

    @property
    def accuracy(self) -> float:
        """Share of right decisions."""
        return (self.real_right + self.fake_right) / max(1, self.real + self.fake)

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the shares of the two classes."""
        return (self.real_right / max(1, self.real) + self.fake_right / max(1, self.fake)) / 2


def decisions(logits: Tensor) -> Tensor:
    """1 for fake where its probability is above one half, int64 (B,)."""
    return (fake_probability(logits) > 0.5).long()


def loss_of(logits: Tensor, labels: Tensor, weights: Tensor, *, kind: str = "auto") -> Tensor:
    """The loss of a batch: the mean over samples, each weighed by its class.

    Args:
        logits: float (B, 1) or (B, 2).
        labels: int64 (B,).
        weights: (2,) of real and fake; their mean over the data is 1.
        kind: `mse` of the probability, `cross-entropy`, or `auto` by the number of logits.
    """
    if kind == "mse" or (kind == "auto" and logits.shape[1] == 1):
        losses = (fake_probability(logits) - labels).square()
    elif logits.shape[1] == 1:
        losses = F.binary_cross_entropy_with_logits(
            logits[:, 0], labels.to(logits.dtype), reduction="none"
        )
    else:
        losses = F.cross_entropy(logits, labels, reduction="none")
    return (losses * weights[labels]).mean()


def learning_rate(schedule: Schedule, step: int, total_steps: int) -> float:
    """Of a step: lr (1 - step / total) ^ power."""
    if schedule.decay == "none":
        return schedule.lr
    return schedule.lr * (1 - step / total_steps) ** schedule.power


def _seed_of(seed: int, step: int) -> int:
    digest = hashlib.sha256(f"dropout/{seed}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
