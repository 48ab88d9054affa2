"""Train a FOMM: `run_train_fomm` is what `dfm-engine train fomm` runs.

The loop below reads top to bottom: the batch of the step, one update, and at intervals a point of
the curves, a sheet, a checkpoint. Order and augmentation are functions of (seed, step), so on a
CPU a resumed run equals an uninterrupted one to the bit (a GPU adds up gradients of sampled
pictures in no fixed order).

A run ends after the recipe's epochs, after `steps`, or after `minutes`. With minutes, the schedule
is spread over the time: this call takes it up to the share `until`, whatever the machine's speed.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfm_engine.errors import UsageError
from dfm_engine.fomm.average import WeightAverage, count_parameters, shippable
from dfm_engine.fomm.model import Fomm, load, save
from dfm_engine.fomm.pairs import Pairs
from dfm_engine.fomm.train_files import Position, RunFiles
from dfm_engine.fomm.train_log import Curves, look, write_sheet
from dfm_engine.fomm.train_recipe import (
    Schedule,
    TrainFommRecipe,
    load_train_recipe,
    phase_config,
)
from dfm_engine.fomm.train_step import Batch, TrainingStep
from dfm_engine.out_folder import refuse_other
from dfm_engine.train_device import machine, pick_device

log = logging.getLogger(__name__)

SAMPLE_ROWS = 24
_RESERVE_S = 20.0  # of `minutes`: last checkpoint, fresh statistics, last sheet
_SYNC_EVERY = 4  # steps between waits for the GPU, so that the clock means something

Step = Callable[[Batch], dict[str, Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a call of `run_train_fomm` did.

    Attributes:
        out: folder of the run.
        weights: the shipped file.
        step: steps done over all calls.
        progress: share of the schedule done.
        train_s: seconds of training over all calls.
        pairs: pairs of frames seen over all calls.
        first_loss: total loss of the first step of this call.
        last_loss: of its last step.
        numbers: quality on the fixed unseen pairs at the end.
    """

    out: Path
    weights: Path
    step: int
    progress: float
    train_s: float
    pairs: int
    first_loss: float
    last_loss: float
    numbers: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**fields, "out": str(self.out), "weights": str(self.weights)}


def run_train_fomm(
    recipe: str | Path | TrainFommRecipe,
    *,
    out: str | Path,
    data: str | Path | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    until: float = 1.0,
    device: str = "auto",
    start_from: str | Path | None = None,
) -> TrainResult:
    """Train, or go on training, in the folder `out`.

    Args:
        recipe: name of a shipped recipe, path of one, or the recipe itself.
        out: folder of the run; a run that is there is continued.
        data: for recipes whose data.source is "folder": a frame store, or a folder of clips from
            which one is prepared in `out`/store.
        steps: end when this many steps are done in all; None: the recipe's epochs.
        minutes: wall-clock time of this call, preparation and last checkpoint included; the
            schedule runs by the clock.
        until: with minutes: the share of the schedule that this call ends at.
        device: "auto", "cpu", "cuda" or "cuda:N".
        start_from: weights (either form) to begin a new run from.

    Raises:
        UsageError: arguments that contradict each other or the recipe, or `out` is no run.
        EnvironmentUnfit: the device asked for is absent.
    """
    began = time.monotonic()
    if not isinstance(recipe, TrainFommRecipe):
        recipe = load_train_recipe(recipe)
    where = pick_device(device)
    if minutes is not None and not (0 < until <= 1 and minutes > 0):
        raise UsageError(f"minutes {minutes} must be positive and until {until} within (0, 1]")
    refuse_other(Path(out), "fomm run")
    with contextlib.closing(open_pairs(recipe, data, where, out=Path(out))) as pairs:
        if recipe.schedule.steps_per_epoch == 0:
            schedule = replace(recipe.schedule, steps_per_epoch=pairs.steps_per_epoch)
            recipe = replace(recipe, schedule=schedule)
        files = RunFiles(Path(out), recipe)
        run = _Run(recipe, pairs, files, where, start_from=start_from)
        total = recipe.schedule.epochs * recipe.schedule.steps_per_epoch
        clock: Clock = StepClock(total, stop=min(total, steps or total))
        if minutes is not None:
            ends = began + 60 * minutes - _RESERVE_S
            clock = WallClock(run.at.progress, until, ends=ends, stop=steps)
        return run.go(clock)


class StepClock:
    """Progress by steps: a pure function, so resumed runs repeat uninterrupted ones."""

    def __init__(self, total: int, *, stop: int) -> None:
        self.total, self.stop = total, stop

    def progress(self, at: Position) -> float:
        """Share of the schedule behind this position."""
        return min(1.0, at.step / self.total)

    def is_over(self, at: Position) -> bool:
        """Whether this call has done its part."""
        return at.step >= self.stop


class WallClock:
    """Progress by time: from where the run stands to `until`, at the moment `ends`."""

    def __init__(self, start: float, until: float, *, ends: float, stop: int | None) -> None:
        self.start, self.until, self.ends, self.stop = start, until, ends, stop
        self.began = time.monotonic()

    def progress(self, at: Position) -> float:
        """Share of the schedule that the time spent stands for; never falls."""
        spent = (time.monotonic() - self.began) / max(1.0, self.ends - self.began)
        return max(at.progress, self.start + (self.until - self.start) * min(1.0, spent))

    def is_over(self, at: Position) -> bool:
        """Whether the time is spent."""
        return time.monotonic() >= self.ends or (self.stop is not None and at.step >= self.stop)


Clock = StepClock | WallClock


class _Run:
    """One call: owns the step in training, the average, the curves."""

    def __init__(
        self,
        recipe: TrainFommRecipe,
        pairs: Pairs,
        files: RunFiles,
        device: torch.device,
        *,
        start_from: str | Path | None,
    ) -> None:
        self.recipe, self.pairs, self.files, self.device = recipe, pairs, files, device
        self.step = TrainingStep(recipe, recipe.model, device=device)
        if start_from is not None:
            weights = load(start_from, recipe.model, align_corners=recipe.align_corners)
            self.step.fomm.load_state_dict(weights.state_dict())
        decay = recipe.optimiser.ema
        self.average = WeightAverage(self.step.fomm, decay=decay) if decay else None
        self.at = files.resume(self.step, self.average) or Position()
        if self.at.step:
            log.info("train  continuing %s from step %d", files.out, self.at.step)
        self.curves = Curves(files.out, from_step=self.at.step)
        self.update: Step | None = None  # the step, or its recording on a GPU

    def go(self, clock: Clock) -> TrainResult:
        """Train until the clock says so, then write everything."""
        recipe, at = self.recipe, self.at
        began, seconds_before = time.monotonic(), at.seconds
        lap, lap_step = began, at.step
        first_loss = last_loss = math.nan
        terms: dict[str, Tensor] = {}
        frame_px = 0
        while not clock.is_over(at):
            at.progress = clock.progress(at)
            phase_px, rows = phase_of(recipe, at.progress)
            if phase_px != frame_px:
                frame_px = phase_px
                self._enter_phase(frame_px)
            supervision = 1 + (recipe.losses.supervision_end - 1) * at.progress
            batch = self.pairs.batch(at.step, rows=rows, frame_px=frame_px, supervision=supervision)
            epoch = at.step // self.pairs.steps_per_epoch
            self.step.set_rates(rate_factor(recipe.schedule, at.step, epoch, at.progress))
            assert self.update is not None  # set on entering a phase
            terms = self.update(batch)
            if self.average is not None:
                self.average.update(self.step.fomm)
            at.step += 1
            at.pairs += rows
            if math.isnan(first_loss):
                first_loss = float(terms["total"])
            if self.device.type == "cuda" and at.step % _SYNC_EVERY == 0:
                torch.cuda.synchronize()
            at.seconds = seconds_before + time.monotonic() - began
            if at.step % recipe.output.log_every_steps == 0:
                now = time.monotonic()
                self._log(terms, (at.step - lap_step) * rows / (now - lap))
                lap, lap_step = now, at.step
            if at.step % self.pairs.steps_per_epoch == 0:
                self._end_of_epoch(at.step // self.pairs.steps_per_epoch, frame_px)
        if terms:
            last_loss = float(terms["total"])
        if isinstance(clock, WallClock) and not terms:
            raise UsageError("the minutes were over before the first step; give more")
        at.progress = clock.progress(at)
        self._enter_phase(recipe.model.frame_size[0])
        self.files.save(self.step, self.average, at)
        numbers = self._ship()
        self.curves.draw()
        self.curves.close()
        self._record(numbers)
        return TrainResult(
            out=self.files.out,
            weights=self.files.weights,
            step=at.step,
            progress=at.progress,
            train_s=at.seconds,
            pairs=at.pairs,
            first_loss=first_loss,
            last_loss=last_loss,
            numbers=numbers,
        )

    def _enter_phase(self, frame_px: int) -> None:
        """Rebuild the step for another frame side; weights and optimisers carry over."""
        config = phase_config(self.recipe.model, frame_px)
        if config == self.step.config and self.update is not None:
            return
        if config != self.step.config:
            log.info("train  frames of %d px from step %d", frame_px, self.at.step)
            before = self.step
            self.step = TrainingStep(self.recipe, config, device=self.device)
            for name, network in self.step.networks().items():
                own = network.state_dict()  # its anti-alias kernels belong to its frame side
                carried = {
                    key: value
                    for key, value in before.networks()[name].state_dict().items()
                    if not key.endswith("down.weight")
                }
                network.load_state_dict({**own, **carried})
                self.step.optimisers[name].load_state_dict(before.optimisers[name].state_dict())
        self.update = self.step
        if self.step.is_recorded:
            from dfm_engine.fomm.recorded_step import RecordedStep

            self.update = RecordedStep(self.step)

    def _log(self, terms: dict[str, Tensor], pairs_per_s: float) -> None:
        numbers = {f"loss/{name}": float(value) for name, value in terms.items()}
        numbers["pairs_per_s"] = pairs_per_s
        numbers["progress"] = self.at.progress
        self.curves.add(self.at.step, numbers)
        peak = ""
        if self.device.type == "cuda":
            peak = f"  peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
        log.info(
            "train  step %d  %.1f %%  loss %.3f  %.0f pairs/s%s",
            self.at.step,
            100 * self.at.progress,
            numbers["loss/total"],
            pairs_per_s,
            peak,
        )

    def _end_of_epoch(self, epoch: int, frame_px: int) -> None:
        wanted = self.recipe.output
        if epoch % wanted.sheet_every_epochs == 0:
            batch = self.pairs.sample(rows=SAMPLE_ROWS, frame_px=frame_px)
            numbers, sheet = look(self.step, batch)
            self.curves.add(self.at.step, numbers)
            self.curves.draw()
            write_sheet(sheet, self.files.out / "sheets" / f"step-{self.at.step:08d}.png")
            shown = "  ".join(f"{k.removeprefix('psnr_db/')} {v:.2f}" for k, v in numbers.items())
            log.info("train  epoch %d  PSNR dB: %s", epoch, shown)
        if epoch % wanted.checkpoint_every_epochs == 0:
            self._enter_phase(self.recipe.model.frame_size[0])
            self.files.save(self.step, self.average, self.at)
            self._enter_phase(frame_px)

    def _ship(self) -> dict[str, float]:
        """Write the weights to ship: the better of the average and the last ones."""
        frame_px = self.recipe.model.frame_size[0]
        sample = self.pairs.sample(rows=SAMPLE_ROWS, frame_px=frame_px)
        candidates: dict[str, Fomm] = {"last": self.step.fomm}
        count = self.recipe.optimiser.recalibrate_batches
        _, rows = phase_of(self.recipe, 1.0)
        if self.average is not None or count:
            batches = [
                self.pairs.batch(
                    self.at.step + k, rows=rows, frame_px=frame_px, supervision=1.0, plain=True
                )
                for k in range(count)
            ]
            candidates["average"] = shippable(self.step, self.average, batches)
        looks = {name: look(self.step, sample, fomm=fomm) for name, fomm in candidates.items()}
        best = max(looks, key=lambda name: looks[name][0]["psnr_db/prediction"])
        for name, (numbers, _) in looks.items():
            log.info("train  %s weights: PSNR %.2f dB", name, numbers["psnr_db/prediction"])
        save(candidates[best], self.files.weights, half=True)
        numbers, sheet = looks[best]
        write_sheet(sheet, self.files.out / "sheets" / "shipped.png")
        self.curves.add(self.at.step, numbers)
        return {key.removeprefix("psnr_db/") + "_psnr_db": value for key, value in numbers.items()}

    def _record(self, numbers: dict[str, float]) -> None:
        fomm = self.step.fomm
        self.files.record(
            {
                "recipe": self.recipe.name,
                "step": self.at.step,
                "progress": self.at.progress,
                "train_s": round(self.at.seconds, 1),
                "pairs": self.at.pairs,
                "data": self.pairs.describe(),
                "numbers": numbers,
                "parameters": {
                    "generator": count_parameters([fomm.generator]),
                    "kp_detector": count_parameters([fomm.kp_detector]),
                },
                "weights_bytes": self.files.weights.stat().st_size,
                "machine": machine(self.device),
                "has_vgg": self.step.vgg is not None,
            }
        )


def rate_factor(schedule: Schedule, step: int, epoch: int, progress: float) -> float:
    """What every learning rate is multiplied by."""
    factor = min(1.0, (step + 1) / schedule.warmup_steps) if schedule.warmup_steps else 1.0
    if schedule.decay == "multistep":
        return factor * 0.1 ** sum(epoch >= milestone for milestone in schedule.milestones)
    end = schedule.lr_end_share
    return factor * (end + (1 - end) * 0.5 * (1 + math.cos(math.pi * progress)))


def phase_of(recipe: TrainFommRecipe, progress: float) -> tuple[int, int]:
    """Frame side and pairs per step at this share of the schedule."""
    schedule = recipe.schedule
    for side, until, rows in zip(
        schedule.phase_px, schedule.phase_until, schedule.phase_batch, strict=True
    ):
        if progress < until or until == 1.0:
            return side, rows
    return recipe.model.frame_size[0], schedule.batch_size


def open_pairs(
    recipe: TrainFommRecipe, data: str | Path | None, device: torch.device, *, out: Path
) -> Pairs:
    """The recipe's source of pairs.

    Raises:
        UsageError: clips are needed and not given, or given and not needed.
    """
    if recipe.data.source == "folder":
        if data is None:
            raise UsageError(
                f"recipe {recipe.name!r} trains on clips: give their folder, or a frame store of "
                "them, as --data"
            )
        from dfm_engine.fomm.store_pairs import open_store_pairs

        return open_store_pairs(recipe, Path(data), device=device, out=out)
    if data is not None:
        raise UsageError(
            f"recipe {recipe.name!r} renders its own faces; leave --data out, or set data.source "
            'to "folder"'
        )
    from dfm_engine.fomm.procedural_pairs import ProceduralPairs

    return ProceduralPairs(recipe, device=device)
