"""`build_dataset`: clips in, a data set out. Read this first.

    list ─► probe ─► frame ─► plan ─► [animate ─► screen ─► encode ─► commit] ─► manifest, report

Inputs are listed and looked at once (`prepare.py`), candidates are planned (`plan.py`) and made in
waves (`making.py`). A committed clip is never made again: starting the same build again resumes it,
and what it leaves is the same, byte for byte, however often it was stopped.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dfm_engine.actions import Action
from dfm_engine.backends import Runner
from dfm_engine.clip import DrivingClip, SourceClip
from dfm_engine.driving_store import DrivingStore
from dfm_engine.encoding import QUEUE_CLIPS, Encoders
from dfm_engine.errors import ShortfallError
from dfm_engine.faces.pictures import FrameReader, PyavReader
from dfm_engine.finish import BuildSummary, finish, quarantined_inputs
from dfm_engine.framing_workers import FramingWorkers
from dfm_engine.interrupts import StopRequest
from dfm_engine.jobs import RunFolder
from dfm_engine.lanes import Lanes, lane
from dfm_engine.making import Workshop
from dfm_engine.naming import Naming
from dfm_engine.options import BuildOptions, folder_of, list_inputs
from dfm_engine.plan import Candidate, Outcome, Planner, Quotas, order_candidates
from dfm_engine.prepare import Framer, Prepared, PreparedStore, prepare_clips
from dfm_engine.progress import Meters, Ticker, duration
from dfm_engine.quarantine import QuarantineRow
from dfm_engine.recipe import BuildRecipe, recipe_hash, to_toml
from dfm_engine.screen import Detector
from dfm_engine.shelf import Shelf, driving_key

Said = Callable[[str], None]

_SHOWN = ("decode", "animate", "screen", "encode")  # stages whose rates the progress line gives

__all__ = ["BuildOptions", "BuildSummary", "build_dataset", "list_inputs", "plan"]


def build_dataset(
    options: BuildOptions,
    *,
    runner: Runner,
    detector: Detector,
    framer: Framer,
    workers: int,
    batch_size: int,
    threads: int,
    reader: FrameReader | None = None,
    lanes: Lanes | None = None,
    framing: FramingWorkers | None = None,
    stop: StopRequest | None = None,
    say: Said = lambda text: None,
    progress: bool = True,
) -> BuildSummary:
    """Build, or go on building, a data set.

    Args:
        options: what to build.
        runner: holds the animation model.
        detector: finds faces, for the screen.
        framer: frames a clip by its face, for the preparation.
        workers: encode processes.
        batch_size: generator rows per batch; fixed in run.json, as it may decide a rounding. A run
            that is there keeps its own, unless the recipe names one.
        threads: of torch, set by the caller; likewise.
        reader: decodes the clips, the same that `framer` uses but for `framing`; PyAV where left
            out. Fixed in run.json, too: two decoders agree within a rounding, not to the bit.
        lanes: clips that each stage works at side by side; the bytes do not depend on it. Framer,
            detector and reader are called by several threads if one of them is above 1.
        framing: processes that frame, with the same outcome as `framer`, which then is theirs.
            That it is there is fixed in run.json: the device of the detector may decide a rounding.
        stop: set by a signal; the run then ends after the wave under way.
        say: told what a person wants to read.
        progress: write a line of it every few seconds.

    Raises:
        UsageError: the inputs, or the folder, cannot be used.
        EnvironmentUnfit: the disk is full or the like; run the same command again to resume.
        Interrupted: `stop` was set; what was begun is committed.
        ShortfallError: there is not one usable source, or not one usable driving clip.
    """
    stop = StopRequest() if stop is None else stop
    lanes = Lanes() if lanes is None else lanes
    recipe = options.recipe
    reader = PyavReader() if reader is None else reader
    meters = Meters()
    inputs = list_inputs(options)
    for warning in inputs.warnings:
        say(f"note: {warning}")
    if not recipe.plan.batch_size:
        batch_size = _begun_with(options.out, "batch_size", batch_size)
    contract = {
        "recipe": recipe_hash(recipe),
        "weights_sha256": runner.weights_sha256,
        "runner": runner.name,
        "decode": reader.name,
        "av": importlib.metadata.version("av"),  # its x264 decides the bytes
        "batch_size": batch_size,
        "threads": threads,
        "frame_size": list(runner.frame_size),
    }
    framed_by = framing.name if framing else None  # None: detector and reader of the run
    if framed_by:
        contract["frame"] = framed_by
    with RunFolder.open(options.out, contract=contract, recipe_toml=to_toml(recipe)) as folder:
        store = PreparedStore(
            options.out / "prepared",
            recipe,
            frame_size=runner.frame_size[0],
            framed_by=framed_by,
        )
        looked: dict[Any, Prepared] = {}
        clips: list[SourceClip | DrivingClip] = [*inputs.sources.clips, *inputs.driving.clips]
        preparing = prepare_clips(
            clips,
            store,
            framer,
            limits=recipe.limits,
            workers=workers,
            meters=meters,
            framers=lanes.frame,
            within=partial(lane, runner.device),
            framing=framing,
        )
        with (
            Ticker(lambda: _preparing_line(looked, clips, meters), enabled=progress),
            contextlib.closing(preparing),
        ):
            for clip, outcome in preparing:
                looked[clip] = outcome
                stop.raise_if_set()
        sources = {c.sha256: (c, looked[c]) for c in inputs.sources.clips if looked[c].is_usable}
        driving = {
            driving_key(c): (c, looked[c]) for c in inputs.driving.clips if looked[c].is_usable
        }
        refused_inputs = quarantined_inputs(inputs, looked)
        _refuse_if_none(options, sources, driving, refused_inputs, folder)
        planner = plan(recipe, sources, driving, limit=options.limit)
        shelf = Shelf(
            sources=sources,
            driving=driving,
            recipe=recipe,
            runner=runner,
            detector=detector,
            reader=reader,
            batch_size=batch_size,
            meters=meters,
            lanes=lanes.open,
            # Found once for all runs of the folder, also those with a smaller batch.
            store=DrivingStore(
                options.out / "prepared",
                {name: value for name, value in contract.items() if name != "batch_size"},
            ),
        )
        naming = Naming(
            recipe,
            weights_sha256=runner.weights_sha256,
            frame_size=runner.frame_size[0],
            real_root=folder_of(options.real),
            driving_root=folder_of(options.driving),
        )
        with (
            contextlib.closing(shelf),
            Encoders(folder, workers=workers, fps=recipe.clips.fps) as encoders,
        ):
            workshop = Workshop(
                folder=folder,
                shelf=shelf,
                naming=naming,
                runner=runner,
                detector=detector,
                encoders=encoders,
                recipe=recipe,
                batch_size=batch_size,
                meters=meters,
                external=options.verdicts,
                lanes=lanes,
            )
            meters.queues["encode"] = lambda: (encoders.queued, QUEUE_CLIPS)
            before = len(workshop.committed)
            pace = _Pace(meters.wall_s)
            with (
                meters.watched(),
                Ticker(lambda: _making_line(planner, meters, encoders, pace), enabled=progress),
            ):
                _make(planner, workshop, pace, stop)
            encoders.take_times(meters)
        made = len(workshop.committed) - before
        summary = finish(
            options,
            inputs,
            planner,
            workshop.committed,
            naming,
            folder,
            refused_inputs,
            meters,
            made,
            shelf.driving_signals(),
        )
    return summary


def plan(
    recipe: BuildRecipe,
    sources: Mapping[str, tuple[SourceClip, Prepared]],
    driving: Mapping[str, tuple[DrivingClip, Prepared]],
    *,
    limit: int | None,
) -> Planner:
    """The candidates and quotas of a build; actions without driving clips have none."""
    by_action: dict[Action, list[str]] = {}
    for key, (clip, _) in driving.items():
        by_action.setdefault(clip.action, []).append(key)
    needed = {key: prepared.frames for key, (_, prepared) in driving.items()}
    held = {sha: None if c.is_still else p.frames for sha, (c, p) in sources.items()}
    candidates = {
        action: list(
            order_candidates(
                list(sources), by_action[action], needed, held, action, seed=recipe.plan.seed
            )
        )
        for action in Action
        if action in by_action
    }
    quotas = Quotas.of(
        list(candidates),
        per_action=recipe.plan.per_action,
        per_source=recipe.plan.fakes_per_source,
        limit=limit,
    )
    return Planner(candidates, quotas)


@dataclass(slots=True)
class _Pace:
    """When making began, and how many fakes this run has kept since."""

    started_s: float
    kept: int = 0


def _make(planner: Planner, workshop: Workshop, pace: _Pace, stop: StopRequest) -> None:
    """Wave after wave until the quotas are met or the lists exhausted."""

    def record(candidate: Candidate, outcome: Outcome) -> None:
        planner.record(candidate, outcome)
        pace.kept += outcome is Outcome.PASSED

    while wave := planner.next_wave():
        to_do: list[Candidate] = []
        for candidate in wave:
            known = workshop.known_outcome(candidate)
            if known is None:
                to_do.append(candidate)
            else:
                planner.record(candidate, known)
        workshop.make_wave(to_do, record=record, stop=stop)
        stop.raise_if_set()


def _begun_with(out: Path, name: str, planned: int) -> int:
    """What the run in this folder was planned with, or came down to; `planned` for a new one."""
    begun = (RunFolder.recorded(out) or {}).get("contract", {}).get(name)
    return begun if isinstance(begun, int) and begun > 0 else planned


def _refuse_if_none(
    options: BuildOptions,
    sources: Mapping[str, Any],
    driving: Mapping[str, Any],
    refused: Sequence[QuarantineRow],
    folder: RunFolder,
) -> None:
    if sources and driving:
        return
    folder.write_tables([], refused)
    what = "real clip" if not sources else "driving clip"
    where = options.real if not sources else options.driving
    reasons = Counter(row.kind for row in refused)
    found = ", ".join(f"{count} {kind}" for kind, count in reasons.most_common())
    raise ShortfallError(
        f"not one usable {what} in {os.fspath(where)!r} ({found}); "
        f"the reasons are in {os.fspath(options.out / 'quarantine.parquet')!r}"
    )


def _preparing_line(looked: Mapping[Any, Prepared], clips: Sequence[Any], meters: Meters) -> str:
    refused = sum(not outcome.is_usable for outcome in list(looked.values()))
    return (
        f"prepare  {len(looked)}/{len(clips)} clips  unusable {refused}  {duration(meters.wall_s)}"
    )


def _making_line(planner: Planner, meters: Meters, encoders: Encoders, pace: _Pace) -> str:
    # Called from the ticker's thread: `list` takes a copy in one step.
    outcomes = Counter(list(planner.outcomes.values()))
    encoders.take_times(meters)
    wanted, done = planner.wanted(), outcomes[Outcome.PASSED]
    text = (
        f"make  {done}/{wanted} fakes  refused {outcomes[Outcome.REFUSED]}  "
        f"failed {outcomes[Outcome.FAILED]}"
    )
    rates = [f"{name} {rate:.1f}" for name in _SHOWN if (rate := meters.rate(name))]
    if rates:
        fill = ", ".join(f"{name} {now}/{most}" for name, (now, most) in meters.fill().items())
        text += f"  {', '.join(rates)} frames/s  queues {fill}"
    if bottleneck := meters.bottleneck():
        text += f"  bottleneck {bottleneck}"
    if pace.kept and wanted > done:
        left_s = (wanted - done) * (meters.wall_s - pace.started_s) / pace.kept
        text += f"  about {duration(left_s)} left"
    return text
