"""Train a detector: `run_train_detector` is what `dfm-engine train detector` runs.

The loop reads top to bottom: the batch of the step, one update, at the end of an epoch validation,
the best weights so far, the state. Order, augmentation and dropout are functions of (seed, step),
so on a CPU a resumed run equals an uninterrupted one to the bit; on a GPU with the recipe's
`optimiser.deterministic`, as far as its libraries have such algorithms.

A frozen backbone is run once over every frame; then the head alone is trained on its features by
the same loop.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dfm_engine.detect.detector import ForgeryDetector
from dfm_engine.detect.feature_cache import FeatureLoader, cached_features
from dfm_engine.detect.history import History, Row
from dfm_engine.detect.model_card import model_card
from dfm_engine.detect.models import create_detector
from dfm_engine.detect.run_folder import RunFolder, open_run
from dfm_engine.detect.train_data import Feed, TrainData, augment_for, store_digest
from dfm_engine.detect.train_recipe import TrainDetectorRecipe, load_train_recipe
from dfm_engine.detect.train_result import TrainDetectorResult
from dfm_engine.detect.train_step import TrainingStep, learning_rate
from dfm_engine.detect.weights import fill_from_file
from dfm_engine.errors import RecipeError
from dfm_engine.interrupts import StopRequest
from dfm_engine.store.augment import FusedAugment
from dfm_engine.store.draws import AugmentPolicy
from dfm_engine.store.frames import Store
from dfm_engine.store.loader import Loader, Mode, open_loader
from dfm_engine.train_device import machine, pick_device

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


def run_train_detector(
    *,
    model: str,
    store: str | Path,
    out: str | Path,
    weights: str = "none",
    recipe: str | Path | TrainDetectorRecipe = "paper",
    epochs: int | None = None,
    device: str = "auto",
    loader: Mode = "auto",
    stop: StopRequest | None = None,
    progress: Progress | None = None,
) -> TrainDetectorResult:
    """Train, or go on training, in the folder `out`.

    Args:
        model: see `create_detector`.
        store: folder of a frame store.
        out: folder of the run; a run that is there is continued.
        weights: to begin with; see `create_detector`.
        recipe: name of a shipped recipe, path of one, or the recipe itself.
        epochs: instead of the recipe's.
        device: "auto", "cpu", "cuda" or "cuda:N".
        loader: where the store's frames are read from; see `open_loader`.
        stop: polled after each step; when set, the state is written and `Interrupted` raised.
        progress: called with the steps done and all of them.

    Raises:
        UsageError: arguments, recipe, store and folder that do not go together.
        WeightsError: weights absent, or not those of the model.
        EnvironmentUnfit: the device asked for is absent.
    """
    if not isinstance(recipe, TrainDetectorRecipe):
        recipe = load_train_recipe(recipe)
    if epochs is not None:
        recipe = replace(recipe, schedule=replace(recipe.schedule, epochs=epochs))
    is_frozen = model in recipe.model.frozen
    if is_frozen and recipe.augment != AugmentPolicy():
        raise RecipeError(
            f"recipe {recipe.name!r}: the backbone of {model} is frozen, its features are computed "
            "once and cannot be augmented; empty [augment], or take it out of model.frozen"
        )
    if is_frozen and weights == "none":
        log.warning("train  %s is frozen at seeded weights: give --weights a file or cache", model)
    where = pick_device(device)
    opened = Store.open(Path(store))
    detector = create_detector(
        model,
        weights=weights,
        seed=recipe.schedule.seed,
        input_px=recipe.model.input_px or None,
    )
    detector.spec = replace(detector.spec, crop=recipe.augment.crop)
    data = TrainData.of(opened, detector.spec, recipe)
    plan = {
        "model": model,
        "weights": "none" if weights == "none" else detector.weights_sha256,
        "store": store_digest(opened),
    }
    with (
        open_run(Path(out), recipe, plan) as folder,
        _repeatable(where, recipe.optimiser.deterministic),
    ):
        frames = open_loader(opened, loader, device=where)
        try:
            run = _Run(recipe, detector, data, frames, folder, where, is_frozen=is_frozen)
            asked = StopRequest() if stop is None else stop
            return run.go(asked, progress or (lambda done, total: None))
        finally:
            frames.close()


class _Run:
    """One call: owns the step in training, the batches, the curves."""

    def __init__(
        self,
        recipe: TrainDetectorRecipe,
        detector: ForgeryDetector,
        data: TrainData,
        loader: Loader,
        folder: RunFolder,
        device: torch.device,
        *,
        is_frozen: bool,
    ) -> None:
        self.recipe, self.data, self.folder, self.device = recipe, data, folder, device
        self.start_sha256 = detector.weights_sha256
        self.detector = prepare_net(detector, recipe, device)
        on_gpu = device.type == "cuda" and recipe.optimiser.autocast == "bf16"
        dtype = torch.bfloat16 if on_gpu else torch.float32
        augment = augment_for(detector.spec, data.store, device, dtype)
        module: nn.Module = self.detector
        if is_frozen:
            module = self.detector.head
            loader = self._features(loader, augment)
            augment = cast("FusedAugment", lambda features, draws: features)
        self.feed = Feed(data, loader, augment, recipe, is_frozen=is_frozen)
        self.total_steps = recipe.schedule.epochs * self.feed.steps_per_epoch
        self.step = TrainingStep(
            module,
            recipe,
            total_steps=self.total_steps,
            class_weights=data.class_weights(recipe.data.balance),
            device=device,
        )
        self.at = folder.resume(module, self.step.optimiser, device)
        epochs_done = self.at.step // self.feed.steps_per_epoch
        if self.at.step:
            log.info("train  continuing %s from step %d", folder.out, self.at.step)
        self.history = History(folder.out, epochs=epochs_done, step=self.at.step)
        sums = [self.at.loss_sum, self.at.right]
        self.sums = torch.tensor(sums, dtype=torch.float64, device=device)

    def go(self, stop: StopRequest, progress: Progress) -> TrainDetectorResult:
        """Train to the end of the schedule, then write what is handed on."""
        at, recipe = self.at, self.recipe
        began, seconds_before, first_step = time.monotonic(), at.seconds, at.step
        validation_s = 0.0
        try:
            while at.step < self.total_steps:
                epoch, step = divmod(at.step, self.feed.steps_per_epoch)
                inputs, labels = self.feed.batch(epoch, step)
                loss, right = self.step(inputs, labels, step=at.step)
                self._count(loss, right, len(labels))
                at.step += 1
                at.seconds = seconds_before + time.monotonic() - began
                if at.step % recipe.output.log_every_steps == 0:
                    rate = learning_rate(recipe.schedule, at.step - 1, self.total_steps)
                    self.history.point(at.step, {"step/loss": float(loss), "step/lr": rate})
                is_asked = bool(stop)
                if at.step % self.feed.steps_per_epoch == 0:
                    before = time.monotonic()
                    self._end_epoch(epoch + 1)
                    validation_s += time.monotonic() - before
                    at.seconds = seconds_before + time.monotonic() - began
                    self._save()
                elif at.step % recipe.output.checkpoint_every_steps == 0 or is_asked:
                    self._save()
                progress(at.step, self.total_steps)
                if is_asked:
                    stop.raise_if_set()
            steps_s = time.monotonic() - began - validation_s
            samples = (at.step - first_step) * recipe.schedule.batch_size
            return self._finish(samples / steps_s if samples else 0.0)
        finally:
            self.feed.close()
            self.history.close()

    def _count(self, loss: Tensor, right: Tensor, samples: int) -> None:
        self.sums += torch.stack([loss.double() * samples, right.double()])
        self.at.seen += samples

    def _end_epoch(self, epoch: int) -> None:
        """Validate, keep the weights if they are the best, write the row."""
        at, recipe = self.at, self.recipe
        loss_sum, right = self.sums.tolist()
        row: Row = {
            "epoch": epoch,
            "step": at.step,
            "train/loss": loss_sum / at.seen,
            "train/accuracy": right / at.seen,
            "lr": learning_rate(recipe.schedule, at.step - 1, self.total_steps),
        }
        self.sums.zero_()
        at.seen = 0
        if epoch % recipe.validation.every_epochs == 0 or epoch == recipe.schedule.epochs:
            row |= self._validate()
            if not at.best or self._rank(row) > self._rank(at.best):
                at.best, at.best_epoch = row, epoch
                self.folder.save_best(self.detector, epoch)
            log.info(
                "train  epoch %d/%d  loss %.4f  val %s %.3f  (best %.3f, epoch %d)",
                epoch,
                recipe.schedule.epochs,
                row["train/loss"],
                recipe.validation.select.replace("_", " "),
                self._rank(row)[0],
                self._rank(at.best)[0],
                at.best_epoch,
            )
        self.history.add(row)

    def _validate(self) -> Row:
        """Means over the qualities, and each quality's own where there are several."""
        found = {
            quality: self.step.judge(batches) for quality, batches in self.feed.validation().items()
        }
        row: Row = {
            f"val/{name}": sum(getattr(one, name) for one in found.values()) / len(found)
            for name in ("loss", "accuracy", "balanced_accuracy")
        }
        for quality, judgement in found.items():
            if quality:
                row[f"val/{quality}/accuracy"] = judgement.accuracy
        return row

    def _rank(self, row: Row) -> tuple[float, float]:
        return row[f"val/{self.recipe.validation.select}"], -row["val/loss"]

    def _save(self) -> None:
        self.at.loss_sum, self.at.right = self.sums.tolist()
        self.folder.save(self.step.module, self.step.optimiser, self.at)

    def _features(self, loader: Loader, augment: FusedAugment) -> FeatureLoader:
        autocast = self.recipe.optimiser.autocast == "bf16" and self.device.type == "cuda"

        @torch.no_grad()
        def embed(frames: Tensor) -> Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=autocast):
                return self.detector.embed(self.detector.features(augment(frames)))

        return cached_features(self.folder.out / "features", self.data.rows, embed, loader)

    def _finish(self, samples_per_s: float) -> TrainDetectorResult:
        """Hand on the best weights, with everything that has to be known of them."""
        at, recipe, folder = self.at, self.recipe, self.folder
        best = folder.best_path(at.best_epoch)
        folder.hand_on(best)
        detector = self.detector.cpu()
        fill_from_file(detector, folder.weights)
        facts: dict[str, Any] = {
            "model": detector.spec.name,
            "spec": asdict(detector.spec),
            "labels": "one logit: fake" if detector.spec.logits == 1 else "logits: real, fake",
            "weights_sha256": detector.weights_sha256,
            "start_weights_sha256": self.start_sha256,
            "parameters": sum(p.numel() for p in detector.parameters()),
            "is_frozen": self.step.module is not self.detector,
            "best_epoch": at.best_epoch,
            "best": at.best,
            "steps": at.step,
            "train_identities": self.data.identities("train"),
            "store": self.data.facts(),
            "recipe": asdict(recipe),
        }
        folder.write_json("detector.json", facts)
        made_on = machine(self.device)
        folder.write_json(
            "run.json",
            {
                "train_s": round(at.seconds, 2),
                "samples_per_s": round(samples_per_s, 1),
                "machine": made_on,
            },
        )
        folder.write_text("model_card.md", model_card(facts, recipe=recipe, machine=made_on))
        self.history.draw(best_epoch=at.best_epoch)
        return TrainDetectorResult(
            out=folder.out,
            model=detector.spec.name,
            weights=folder.weights,
            weights_sha256=detector.weights_sha256,
            epochs=recipe.schedule.epochs,
            steps=at.step,
            best_epoch=at.best_epoch,
            best=at.best,
            train_s=at.seconds,
            samples_per_s=samples_per_s,
        )


def prepare_net(
    detector: ForgeryDetector, recipe: TrainDetectorRecipe, device: torch.device
) -> ForgeryDetector:
    """Move a detector where it is trained, and set what the recipe says of it."""
    detector = detector.to(device)
    if recipe.optimiser.channels_last:
        detector = detector.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if recipe.model.bn_momentum:
        for module in detector.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = recipe.model.bn_momentum
    return detector


@contextmanager
def _repeatable(device: torch.device, deterministic: bool) -> Iterator[None]:
    """The global generator restored behind the block; on a GPU, algorithms as the recipe wants."""
    on_gpu = device.type == "cuda"
    flags = torch.backends.cudnn.flags(
        enabled=True, benchmark=on_gpu and not deterministic, deterministic=deterministic
    )
    with torch.random.fork_rng(devices=[device] if on_gpu else []), flags:
        if not (on_gpu and deterministic):
            yield
            return
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


__all__ = ["TrainDetectorResult", "run_train_detector"]
