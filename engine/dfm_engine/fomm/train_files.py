"""What a training run keeps on disk, and how it is continued.

    recipe.toml                      the resolved recipe
    run.json                         machine, versions, data, numbers
    checkpoints/NNNNNNNN-checkpoint.pth.tar   the published format, NNNNNNNN the step
    checkpoints/NNNNNNNN-state.pt    beside it: step, progress, seconds, average of weights
    latest.json                      the newest complete pair; written last
    metrics.jsonl, curves.png, tensorboard/   loss curves
    sheets/step-NNNNNNNN.png         samples
    fomm.safetensors                 what is shipped: average of weights, float16, config inside

Every file appears whole or not at all.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dfm_engine.errors import RecipeError, WeightsError
from dfm_engine.fomm.average import WeightAverage
from dfm_engine.fomm.model import save
from dfm_engine.fomm.train_recipe import TrainFommRecipe
from dfm_engine.fomm.train_step import TrainingStep
from dfm_engine.fomm.weights import fill_network, read_checkpoint
from dfm_engine.recipe import parse_recipe, to_toml

KEPT_CHECKPOINTS = 3


@dataclass(slots=True, kw_only=True)
class Position:
    """How far a run is.

    Attributes:
        step: steps done.
        progress: share of the schedule that is behind, 0..1.
        seconds: wall-clock seconds of training so far, data preparation left out.
        pairs: pairs of frames seen.
    """

    step: int = 0
    progress: float = 0.0
    seconds: float = 0.0
    pairs: int = 0


class RunFiles:
    """The folder of one run."""

    def __init__(self, out: Path, recipe: TrainFommRecipe) -> None:
        """Create the folder, or check that it belongs to this recipe.

        Raises:
            RecipeError: the folder holds a run of another recipe.
        """
        self.out = out
        self.weights = out / "fomm.safetensors"
        (out / "checkpoints").mkdir(parents=True, exist_ok=True)
        (out / "sheets").mkdir(exist_ok=True)
        kept = out / "recipe.toml"
        if kept.is_file():
            before = parse_recipe(kept.read_text("utf-8"), TrainFommRecipe, origin=str(kept))
            if before != recipe:
                raise RecipeError(
                    f"{out} holds a run of another recipe ({_difference(before, recipe)} differs); "
                    "use its recipe.toml to continue it, or another --out"
                )
        else:
            write_text(kept, to_toml(recipe))

    def save(self, step: TrainingStep, average: WeightAverage | None, at: Position) -> Path:
        """Write checkpoint and state of this moment, then name them the latest."""
        stem = f"{at.step:08d}"
        state_path = self.out / "checkpoints" / f"{stem}-state.pt"
        state: dict[str, Any] = {
            "position": asdict(at),
            "average": None if average is None else average.state_dict(),
        }
        temporary = state_path.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, state_path)
        checkpoint = self.out / "checkpoints" / f"{stem}-checkpoint.pth.tar"
        others: dict[str, object] = {
            f"optimizer_{name}": optimiser.state_dict()
            for name, optimiser in step.optimisers.items()
        }
        others["epoch"] = at.step // max(1, step.recipe.schedule.steps_per_epoch or at.step or 1)
        save(step.fomm, checkpoint, discriminator=step.discriminator, others=others)
        write_text(self.out / "latest.json", json.dumps({"step": at.step, "stem": stem}))
        self._drop_old()
        return checkpoint

    def resume(self, step: TrainingStep, average: WeightAverage | None) -> Position | None:
        """Load the latest checkpoint into the step and the average; None where there is none."""
        latest = self.out / "latest.json"
        if not latest.is_file():
            return None
        stem = json.loads(latest.read_text("utf-8"))["stem"]
        path = self.out / "checkpoints" / f"{stem}-checkpoint.pth.tar"
        load_training(path, step)
        state_path = path.with_name(f"{stem}-state.pt")
        state = torch.load(state_path, map_location=step.device, weights_only=True)
        if average is not None and state["average"] is not None:
            average.load_state_dict(state["average"])
        return Position(**state["position"])

    def record(self, facts: dict[str, Any]) -> None:
        """Write run.json."""
        write_text(self.out / "run.json", json.dumps(facts, indent=2, default=str) + "\n")

    def _drop_old(self) -> None:
        """Keep the newest few pairs; each is four times the weights."""
        pairs = sorted((self.out / "checkpoints").glob("*-checkpoint.pth.tar"))
        for path in pairs[:-KEPT_CHECKPOINTS]:
            path.with_name(path.name.split("-")[0] + "-state.pt").unlink(missing_ok=True)
            path.unlink()


def load_training(path: Path, step: TrainingStep) -> None:
    """Put a checkpoint's networks and optimisers into a training step.

    Raises:
        WeightsError: not a checkpoint, or of another architecture.
    """
    checkpoint = read_checkpoint(path)
    device = step.device
    for name, network in step.networks().items():
        if name not in checkpoint.networks:
            raise WeightsError(f"{path}: holds no {name}; it cannot be trained on")
        copy_network(network, checkpoint.networks[name], what=f"{path}: {name}")
        optimiser = checkpoint.others.get(f"optimizer_{name}")
        if optimiser is not None:
            rates = [group["lr"] for group in step.optimisers[name].param_groups]
            step.optimisers[name].load_state_dict(optimiser)
            for group, rate in zip(step.optimisers[name].param_groups, rates, strict=True):
                group["lr"] = rate.to(device) if isinstance(rate, torch.Tensor) else rate


def copy_network(network: torch.nn.Module, entries: dict[str, torch.Tensor], *, what: str) -> None:
    """As `fill_network`, into the tensors that the optimiser already holds."""
    import copy

    spare = copy.deepcopy(network).cpu()
    fill_network(spare, entries, what=what)  # all its checks
    network.load_state_dict(spare.state_dict())


def write_text(path: Path, text: str) -> None:
    """Write a small file so that it is whole or absent."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _difference(before: TrainFommRecipe, now: TrainFommRecipe) -> str:
    """The first key that is not equal."""

    def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        rows: dict[str, Any] = {}
        for key, value in table.items():
            if isinstance(value, dict):
                rows |= flat(value, f"{prefix}{key}.")
            else:
                rows[prefix + key] = value
        return rows

    old, new = flat(asdict(before)), flat(asdict(now))
    return next((key for key in new if old.get(key) != new[key]), "something")
