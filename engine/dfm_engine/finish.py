"""The end of a build: the tables of the whole set, from its markers alone, and what to tell."""

from __future__ import annotations

import dataclasses
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dfm_engine.actions import Action
from dfm_engine.audit.baselines import audit_or_note
from dfm_engine.clip import DrivingClip, SourceClip
from dfm_engine.columns import Row, text_of_path
from dfm_engine.jobs import Marker, RunFolder
from dfm_engine.manifest import rows_from_markers
from dfm_engine.naming import VERSION, Naming
from dfm_engine.options import BuildOptions, Inputs, folder_of
from dfm_engine.plan import Planner
from dfm_engine.prepare import Prepared
from dfm_engine.progress import Meters
from dfm_engine.quarantine import QuarantineRow
from dfm_engine.recipe import BuildRecipe
from dfm_engine.report.data import ReportData, StageTiming
from dfm_engine.report.examples import examples_from_manifest
from dfm_engine.report.write import NAME as REPORT
from dfm_engine.report.write import write_report
from dfm_engine.screen import Signals
from dfm_engine.screen.confusion import Confusion, confusion_matrix
from dfm_engine.split import PARTS, SplitRow, assign_splits


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSummary:
    """What a build left behind.

    Attributes:
        out: the folder.
        fakes, reals, extras, refused: clips, not files.
        per_action: kept fakes.
        shortfall: missing fakes per action with a quota.
        quarantined: inputs and jobs that could not be used.
        made: clips that this run made; the others were there.
        warnings: sentences for a person.
        timings: per stage, from `Meters`.
        queues: between the stages: room, items waiting on average and at most, likewise.
        spans: when each stage was busy, likewise; for a picture, not for run.json.
        problem: why the run counts as short, or None.
    """

    out: Path
    fakes: int
    reals: int
    extras: int
    refused: int
    per_action: Mapping[str, int]
    shortfall: Mapping[str, int]
    quarantined: int
    made: int
    warnings: tuple[str, ...] = ()
    timings: Mapping[str, Any] = field(default_factory=dict)
    queues: Mapping[str, Any] = field(default_factory=dict)
    spans: Sequence[tuple[str, float, float]] = ()
    problem: str | None = None

    @property
    def exit_code(self) -> int:
        """0, or 3 where the run counts as short."""
        return 3 if self.problem else 0

    def print(self) -> None:
        """Tell a person, on stderr."""
        lines = [f"warning: {warning}" for warning in self.warnings]
        counts = ", ".join(f"{action} {count}" for action, count in self.per_action.items())
        lines += [
            f"{self.fakes} fakes ({counts}), {self.reals} real twins, {self.refused} refused by "
            f"the screen, {self.extras} extra, {self.quarantined} in quarantine; "
            f"{self.made} clips made by this run",
            f"data set {os.fspath(self.out)}: manifest.parquet, report.html",
        ]
        if self.problem:
            lines.append(f"short: {self.problem}")
        sys.stderr.write("\n".join(lines) + "\n")

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "out": os.fsdecode(self.out),
            "fakes": self.fakes,
            "reals": self.reals,
            "extras": self.extras,
            "refused": self.refused,
            "per_action": dict(self.per_action),
            "shortfall": dict(self.shortfall),
            "quarantined": self.quarantined,
            "made": self.made,
            "warnings": list(self.warnings),
            "timings": dict(self.timings),
            "queues": dict(self.queues),
            "problem": self.problem,
            "exit_code": self.exit_code,
        }


def finish(
    options: BuildOptions,
    inputs: Inputs,
    planner: Planner,
    committed: Mapping[str, Marker],
    naming: Naming,
    folder: RunFolder,
    refused_inputs: Sequence[QuarantineRow],
    meters: Meters,
    made: int,
    driving_signals: Sequence[tuple[Action, Signals]],
) -> BuildSummary:
    """The tables of the whole set, from its markers alone; the report also tells of this run."""
    kept = {naming.fake_id(candidate): candidate for candidate in planner.kept()}
    markers = list(committed.values())
    passed = [m for m in markers if m.label == "fake" and m.outcome == "passed"]
    extras = {m.clip_id for m in passed if m.clip_id not in kept}
    rows = rows_from_markers(
        markers, splits=_splits(options.recipe, markers, extras), extras=extras
    )
    quarantine = [*refused_inputs, *folder.quarantine.rows().values()]
    folder.write_tables(rows, quarantine)
    short = planner.shortfall()
    summary = BuildSummary(
        out=options.out,
        fakes=len(kept),
        reals=sum(m.label == "real" for m in markers),
        extras=len(extras),
        refused=sum(m.outcome == "refused" for m in markers),
        per_action={
            action.value: sum(c.action == action for c in kept.values())
            for action in planner.candidates
        },
        shortfall={action.value: missing for action, missing in short.items()},
        quarantined=len(quarantine),
        made=made,
        warnings=(*inputs.warnings, *_absent_actions(planner), *_empty_parts(rows, options.recipe)),
        timings=meters.to_json(),
        queues=meters.queues_to_json(),
        spans=tuple(meters.spans),
        problem=_problem(options, inputs, len(kept), short, refused_inputs, markers),
    )
    folder.write_run(
        versions=_versions(),
        summary=summary.to_json(),
        wall_s=round(meters.wall_s, 3),
    )
    facts = RunFolder.recorded(options.out) or {}
    if facts.get("reported") != facts["tables"] or not (options.out / REPORT).is_file():
        confusion = (
            confusion_matrix(driving_signals, options.recipe.screen.thresholds)
            if driving_signals
            else None
        )
        with meters.busy("report"):
            _write_report(options, summary, planner, rows, quarantine, meters, confusion)
        summary = dataclasses.replace(summary, timings=meters.to_json(), spans=tuple(meters.spans))
        folder.write_run(
            summary=summary.to_json(), wall_s=round(meters.wall_s, 3), reported=facts["tables"]
        )
    return summary


def _write_report(
    options: BuildOptions,
    summary: BuildSummary,
    planner: Planner,
    rows: Sequence[Row],
    quarantine: Sequence[QuarantineRow],
    meters: Meters,
    confusion: Confusion | None,
) -> None:
    stages = [
        StageTiming(
            name=name,
            busy_s=meter.busy_s,
            workers=meter.workers,
            clips=meter.clips,
            frames=meter.frames,
        )
        for name, meter in meters.stages.items()
    ]
    data = ReportData(
        recipe=options.recipe.name,
        rows=rows,
        wanted={action: planner.quotas.per_action.get(action, 0) for action in Action},
        examples=examples_from_manifest(
            options.out,
            rows,
            real_root=folder_of(options.real),
            driving_root=folder_of(options.driving),
        ),
        quarantine=quarantine,
        stages=stages,
        wall_s=meters.wall_s,
        facts={"made by this run": f"{summary.made} clips", **_versions()},
        banner=options.banner,
        confusion=confusion,
        audit=audit_or_note(rows, options.out),
    )
    write_report(options.out, data)


def _splits(recipe: BuildRecipe, markers: Sequence[Marker], extras: set[str]) -> dict[str, str]:
    rows = [
        SplitRow(
            identity=m.columns["identity"],
            source=m.columns["source_sha256"],
            action=Action(m.columns["action"]) if m.label == "fake" else None,
            place=f"{m.columns['source_path']}/{m.columns.get('driving_path', '')}",
            is_extra=m.clip_id in extras or m.outcome == "refused",
        )
        for m in markers
    ]
    parts = assign_splits(rows, settings=recipe.splits)
    return {m.clip_id: part for m, part in zip(markers, parts, strict=True)}


def _problem(
    options: BuildOptions,
    inputs: Inputs,
    fakes: int,
    short: Mapping[Action, int],
    refused_inputs: Sequence[QuarantineRow],
    markers: Sequence[Marker],
) -> str | None:
    """Why the run counts as short (exit 3), or None."""
    listings = (inputs.sources, inputs.driving)
    listed = sum(len(listing.clips) + len(listing.refused) for listing in listings)
    share = len(refused_inputs) / max(1, listed)
    has_stills_only = all(c.is_still for c in inputs.sources.clips)
    if fakes == 0:
        return "no animation was kept; see the reasons in report.html and manifest.parquet"
    if not has_stills_only and not any(m.label == "real" for m in markers):
        return "no real clip was kept"
    if short:
        missing = ", ".join(f"{action.value} {count}" for action, count in short.items())
        return f"the candidates are exhausted; missing: {missing}. Add real or driving clips"
    if share > options.recipe.plan.max_quarantine_share:
        return (
            f"{len(refused_inputs)} of {listed} inputs were unusable, more than the recipe's "
            f"max_quarantine_share {options.recipe.plan.max_quarantine_share:.0%}; "
            "see quarantine.parquet"
        )
    return None


def _absent_actions(planner: Planner) -> tuple[str, ...]:
    absent = [action.value for action in Action if action not in planner.candidates]
    return (f"no usable driving clip for: {', '.join(absent)}",) if absent else ()


def _empty_parts(rows: Sequence[Row], recipe: BuildRecipe) -> tuple[str, ...]:
    empty = [part for part in PARTS if not any(row["split"] == part for row in rows)]
    if not empty:
        return ()
    return (
        f"no clip in the split's {' and '.join(empty)}: shares are met on average only, and "
        f"{recipe.splits.kind} has few to draw from here",
    )


def quarantined_inputs(
    inputs: Inputs, looked: Mapping[SourceClip | DrivingClip, Prepared]
) -> list[QuarantineRow]:
    """A row for every listed file that cannot be used."""
    rows = [
        QuarantineRow(
            path=text_of_path(error.path.name), stage="list", kind=error.kind, reason=error.reason
        )
        for listing in (inputs.sources, inputs.driving)
        for error in listing.refused
    ]
    rows += [
        QuarantineRow(
            path=text_of_path(clip.path.name),
            stage=outcome.stage or "face",
            kind=outcome.kind or "",
            reason=outcome.reason or "",
            attempts=outcome.attempts,
        )
        for clip, outcome in looked.items()
        if not outcome.is_usable
    ]
    return rows


def _versions() -> dict[str, str]:
    import av
    import numpy
    import torch

    return {
        "dfm-engine": VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "av": av.__version__,
        "numpy": numpy.__version__,
        "platform": f"{sys.platform}-{platform.machine()}",
    }
