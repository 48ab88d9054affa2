"""What a detector's training keeps on disk, and how it is continued.

| file | what it holds |
| --- | --- |
| recipe.toml, plan.json | the resolved recipe; model, first weights and store: what a run is |
| state/last.pt | where training stands: module, Adam, step, sums of the epoch, the best epoch |
| state/best-NNNN.safetensors | the weights of the best epoch so far |
| features/ | of a frozen backbone, computed once |
| history.jsonl, curves.png, tensorboard/ | numbers per epoch |
| detector.safetensors, detector.json | what is handed on; written when training has ended |
| model_card.md, run.json | for people; machine, versions, times |

Files are written whole or not at all, and the state names what it needs last, so a run killed at
any moment goes on from the last state and ends with the same weights.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import pickle
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from dfm_engine.detect.detector import ForgeryDetector
from dfm_engine.detect.load import WEIGHTS_FILE
from dfm_engine.detect.train_recipe import TrainDetectorRecipe
from dfm_engine.detect.weights import metadata_of
from dfm_engine.durable import LEFTOVER, remove_leftovers, write_durably
from dfm_engine.errors import RecipeError, UsageError, WeightsError
from dfm_engine.jobs import take_lock
from dfm_engine.out_folder import refuse_other
from dfm_engine.recipe import parse_recipe, to_toml
from dfm_engine.weight_files import first_line


@dataclass(slots=True, kw_only=True)
class Position:
    """How far a run is.

    Attributes:
        step: steps done.
        best_epoch: the one whose weights are kept, from 1; 0 before there is one.
        best: its row of the history.
        loss_sum: of the steps of the present epoch.
        right: decisions of the present epoch that were right.
        seen: samples of the present epoch.
        seconds: of training so far.
    """

    step: int = 0
    best_epoch: int = 0
    best: dict[str, float] = field(default_factory=dict)
    loss_sum: float = 0.0
    right: int = 0
    seen: int = 0
    seconds: float = 0.0


class RunFolder:
    """The folder of one run; made by `open_run`."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.weights = out / WEIGHTS_FILE
        self._last = out / "state" / "last.pt"

    def save(self, module: torch.nn.Module, optimiser: torch.optim.Optimizer, at: Position) -> None:
        """Write the state of this moment."""
        buffer = io.BytesIO()
        torch.save(
            {
                "position": asdict(at),
                "module": module.state_dict(),
                "optimiser": optimiser.state_dict(),
            },
            buffer,
        )
        write_durably(self._last, buffer.getbuffer())
        for path in (self.out / "state").glob("best-*.safetensors"):
            if path != self.best_path(at.best_epoch):
                path.unlink()

    def resume(
        self, module: torch.nn.Module, optimiser: torch.optim.Optimizer, device: torch.device
    ) -> Position:
        """Load the last state, or a fresh position where there is none.

        Raises:
            WeightsError: the state cannot be read.
        """
        if not self._last.is_file():
            return Position()
        try:
            state = torch.load(self._last, map_location=device, weights_only=True)
            module.load_state_dict(state["module"])
            optimiser.load_state_dict(state["optimiser"])
            return Position(**state["position"])
        except (RuntimeError, KeyError, ValueError, TypeError, pickle.UnpicklingError) as error:
            raise WeightsError(
                f"the state of the run {self._last}: cannot be read ({first_line(error)}); delete "
                "the folder state/ to train from the start"
            ) from error

    def best_path(self, epoch: int) -> Path:
        """Where the weights of an epoch are kept while it is the best."""
        return self.out / "state" / f"best-{epoch:04d}.safetensors"

    def save_best(self, detector: ForgeryDetector, epoch: int) -> None:
        """Keep the detector of this epoch; the state that names it is written later."""
        write_durably(self.best_path(epoch), weights_bytes(detector))

    def hand_on(self, best: Path) -> None:
        """Make these weights the run's result.

        Raises:
            WeightsError: they are gone.
        """
        try:
            write_durably(self.weights, best.read_bytes())
        except FileNotFoundError as error:
            raise WeightsError(
                f"the best weights {best} are gone; delete the folder state/ to train again"
            ) from error

    def write_text(self, name: str, text: str) -> None:
        """A small file for people."""
        write_durably(self.out / name, text.encode())

    def write_json(self, name: str, facts: dict[str, Any]) -> None:
        """A small file for programs and people."""
        self.write_text(name, json.dumps(facts, indent=2) + "\n")


def weights_bytes(detector: ForgeryDetector) -> bytes:
    """The detector as safetensors; equal weights give equal bytes."""
    state = {key: value.detach().cpu().contiguous() for key, value in detector.state_dict().items()}
    return safetensors.torch.save(state, metadata=metadata_of(detector.spec))


@contextlib.contextmanager
def open_run(out: Path, recipe: TrainDetectorRecipe, plan: dict[str, Any]) -> Iterator[RunFolder]:
    """Make a run's folder, or go on in one that is there; no other process may use it meanwhile.

    Args:
        out: the folder.
        recipe: resolved.
        plan: what else decides the weights that come out.

    Raises:
        RecipeError: the folder holds a run of another recipe.
        UsageError: of another model, store or first weights; or another process is at it; or it is
            no run.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; name a folder")
    refuse_other(out, "detector run")
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "recipe.toml").is_file() and any(
        p.name != ".lock" and not LEFTOVER.search(p.name) for p in out.iterdir()
    ):
        raise UsageError(f"--out {out} holds other files and no training run; name a new folder")
    with (out / ".lock").open("a+", encoding="ascii") as lock:
        take_lock(lock, fcntl.LOCK_EX, out)
        remove_leftovers(out)
        _check_recipe(out, recipe)
        kept = out / "plan.json"
        if kept.is_file():
            before = json.loads(kept.read_text("utf-8"))
            changed = [key for key in plan if before.get(key) != plan[key]]
            if changed:
                raise UsageError(
                    f"{out} holds a run with {changed[0]} {before.get(changed[0])}, this one has "
                    f"{plan[changed[0]]}: they cannot be joined; use another --out"
                )
        else:
            write_durably(kept, (json.dumps(plan, indent=2) + "\n").encode())
        yield RunFolder(out)


def _check_recipe(out: Path, recipe: TrainDetectorRecipe) -> None:
    kept = out / "recipe.toml"
    if not kept.is_file():
        write_durably(kept, to_toml(recipe).encode())
        return
    before = parse_recipe(kept.read_text("utf-8"), TrainDetectorRecipe, origin=str(kept))
    if before != recipe:
        old, new = _flat(asdict(before)), _flat(asdict(recipe))
        key = next(key for key in new if old.get(key) != new[key])
        raise RecipeError(
            f"{out} holds a run with {key} = {old.get(key)!r}, this one has {new[key]!r}; use its "
            "recipe.toml to continue it, or another --out"
        )


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for key, value in table.items():
        rows |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return rows
