"""The recipe of detector training: kind `train_detector`, one dataclass per table of the TOML file.

The defaults are the paper's training with Adam's usual betas (the paper prints them the other way
round; `paper-literal` has what it prints). What the paper leaves out is filled in as its field
does: the learning rate falls to 0 with power 0.9 per step, no weight decay, no augmentation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dfm_engine.errors import RecipeError
from dfm_engine.recipe import load_recipe
from dfm_engine.store.draws import AugmentPolicy


def _doc(default: Any, text: str) -> Any:
    return field(default=default, metadata={"doc": text})


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What is done to the net that `--model` names."""

    frozen: tuple[str, ...] = _doc(
        ("xception",),
        "models of which the head alone is trained, on features that are computed once, with "
        "batch norm in evaluation mode",
    )
    input_px: int = _doc(0, "side of its input; 0: the model's own")
    bn_momentum: float = _doc(
        0.0, "of the running statistics; 0: the model's own (Meso's 0.01 needs thousands of steps)"
    )

    def __post_init__(self) -> None:
        _within(self, 0.0, 1.0, "bn_momentum")
        _at_least(self, 0, "input_px")


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """What an epoch shows."""

    quality: Literal["raw", "c23", "c40", "mixed"] = _doc(
        "raw", "of every clip; mixed: drawn per sample and epoch"
    )
    frames: Literal["one", "all"] = _doc(
        "one", "a random frame of every clip per epoch, or all that are stored"
    )
    balance: Literal["none", "loss", "undersample"] = _doc(
        "none",
        "loss: both classes weigh the same, however many clips they have; undersample: as many of "
        "the larger class as of the smaller per epoch, others each time",
    )
    labels: Literal["true", "shuffled"] = _doc(
        "true",
        "shuffled: a control that can learn nothing; labels are dealt out anew among the clips of "
        "each split, the same share of them to real and to fake",
    )
    shared_identities: Literal["refuse", "allow"] = _doc(
        "refuse",
        "people of train who are in val or test too: allow for splits that are not by person, as "
        "the authors' are; the model card then says so",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long, in what steps, and how the learning rate falls."""

    epochs: int = _doc(50, "the whole training")
    batch_size: int = _doc(64, "samples per step")
    lr: float = _doc(2e-4, "Adam's, at the first step")
    decay: Literal["poly", "none"] = _doc("poly", "poly: times (1 - step / steps) ^ power")
    power: float = _doc(0.9, "of poly")
    seed: int = _doc(0, "of weights that no file fills, order, augmentation, dropout")

    def __post_init__(self) -> None:
        _at_least(self, 1, "epochs", "batch_size")
        _at_least(self, 0, "power", "seed")
        if not self.lr > 0:
            raise RecipeError(f"schedule.lr must be positive, found {self.lr}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimiser:
    """Adam, its loss, and how the arithmetic is done."""

    betas: tuple[float, ...] = _doc((0.9, 0.999), "of Adam")
    weight_decay: float = _doc(0.0, "added to the gradients, as Adam does it")
    loss: Literal["auto", "mse", "cross-entropy"] = _doc(
        "auto", "auto: mean squared error of the probability for one logit, else cross-entropy"
    )
    autocast: Literal["off", "bf16"] = _doc("bf16", "on a GPU; a CPU computes in float32")
    channels_last: bool = _doc(True, "memory order of images and weights")
    compile: bool = _doc(False, "torch.compile the net, on a GPU")
    deterministic: bool = _doc(
        False, "on a GPU: only algorithms that add in a fixed order, so that resuming is exact"
    )

    def __post_init__(self) -> None:
        _at_least(self, 0, "weight_decay")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise RecipeError(
                f"optimiser.betas must be two numbers within [0, 1), found {list(self.betas)}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """How the best epoch is found."""

    frames: int = _doc(8, "per clip, evenly spaced among the stored; 0: all")
    select: Literal["accuracy", "balanced_accuracy"] = _doc(
        "accuracy", "of frames at 0.5, mean over the trained qualities; ties by the lower loss"
    )
    every_epochs: int = _doc(1, "validate after each so many epochs, and after the last")

    def __post_init__(self) -> None:
        _at_least(self, 0, "frames")
        _at_least(self, 1, "every_epochs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What a run writes, and how often."""

    checkpoint_every_steps: int = _doc(1000, "also within an epoch; at its end there is always one")
    log_every_steps: int = _doc(50, "a point of the loss curve")

    def __post_init__(self) -> None:
        _at_least(self, 1, "checkpoint_every_steps", "log_every_steps")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainDetectorRecipe:
    """Everything that decides a detector's training, but for the model and its first weights."""

    kind: Literal["train_detector"] = _doc("train_detector", "what the recipe is for")
    name: str = _doc("custom", "shown in reports")
    description: str = _doc("", "one sentence")
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    augment: AugmentPolicy = field(default_factory=AugmentPolicy)
    schedule: Schedule = field(default_factory=Schedule)
    optimiser: Optimiser = field(default_factory=Optimiser)
    validation: Validation = field(default_factory=Validation)
    output: Output = field(default_factory=Output)


def load_train_recipe(name_or_path: str | Path) -> TrainDetectorRecipe:
    """Read a training recipe, shipped (by name) or your own (by path).

    Raises:
        RecipeError: not found, not TOML, an unknown key, a value out of range.
    """
    return load_recipe(name_or_path, TrainDetectorRecipe)


def _at_least(section: Any, least: float, *names: str) -> None:
    for name in names:
        if not getattr(section, name) >= least:
            raise RecipeError(
                f"{type(section).__name__.lower()}.{name} must be at least {least}, "
                f"found {getattr(section, name)}"
            )


def _within(section: Any, low: float, high: float, *names: str) -> None:
    for name in names:
        if not low <= getattr(section, name) <= high:
            raise RecipeError(
                f"{type(section).__name__.lower()}.{name} must be within {low}..{high}, "
                f"found {getattr(section, name)}"
            )
