"""A build of procedural clips, taken apart stage by stage.

The clips are the same everywhere (they are drawn, and kept in the folder for the next time); the
data set is built afresh each time and removed. If `verify_dataset` finds anything wrong with it
there are no numbers: how fast a wrong result comes is of no interest.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dfm_bench.ceilings import stage_core_seconds
from dfm_bench.measure import Row, StageRow, Timing
from dfm_engine.actions import Action
from dfm_engine.build import BuildOptions, BuildSummary, build_dataset
from dfm_engine.errors import CheckFailed
from dfm_engine.machinery import Machinery
from dfm_engine.recipe import BuildRecipe, Clips, Plan, Screen, Sources
from dfm_engine.synthetic import DemoSetSettings
from dfm_engine.verify import verify_dataset

__all__ = [
    "Workload",
    "bottleneck",
    "cores_row",
    "end_to_end",
    "stage_rows",
    "timed_build",
    "workload_for",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is built: every action `per_action` times, each from a source of its own.

    Attributes:
        actions: what the driver performs.
        driving_frames: length of a driving clip and of every clip that is made.
        per_action: fakes of each action.
        size: side of the rendered frames, pixels.
        codec: of the rendered clips.
        repeats: calls of each ceiling that count.
    """

    actions: tuple[Action, ...] = tuple(Action)
    driving_frames: int = 40
    per_action: int = 1
    size: int = 256
    codec: Literal["ffv1", "h264"] = "ffv1"
    repeats: int = 7

    @property
    def name(self) -> str:
        """Of a folder for its clips."""
        fakes = len(self.actions) * self.per_action
        return f"{fakes}x{self.driving_frames}" + ("" if self.codec == "ffv1" else f"-{self.codec}")

    @property
    def clips(self) -> DemoSetSettings:
        """One driver; one source for each fake, and two to spare."""
        fakes = len(self.actions) * self.per_action
        return DemoSetSettings(
            drivers=(1,),
            sources=tuple(range(1000, 1002 + fakes)),
            driving_frames=self.driving_frames,
            real_frames=self.driving_frames + 15,
            size=self.size,
            actions=self.actions,
            codec=self.codec,
        )

    @property
    def recipe(self) -> BuildRecipe:
        """As published, but that the screen only records: how much is made must not vary."""
        return BuildRecipe(
            name="bench",
            clips=Clips(max_frames=self.driving_frames),
            sources=Sources(require_frontal=False),
            plan=Plan(per_action=self.per_action, fakes_per_source=1),
            screen=Screen(mode="record"),
        )


_QUICK_ACTIONS = (Action.SMILE, Action.NOD, Action.OPEN_MOUTH)
_WORKLOADS: dict[tuple[str, bool], Workload] = {
    ("cpu", False): Workload(per_action=2, repeats=5),
    ("cpu", True): Workload(actions=_QUICK_ACTIONS, driving_frames=16, repeats=3),
    # A GPU makes all of that in a second: what is measured must outlast the start.
    ("cuda", False): Workload(driving_frames=80, per_action=10, codec="h264"),
    ("cuda", True): Workload(per_action=3, codec="h264", repeats=3),
}


def workload_for(device: str, *, quick: bool) -> Workload:
    """What a machine is measured with.

    Args:
        device: `cpu` or `cuda`, of the generator.
        quick: in short.
    """
    return _WORKLOADS[device, quick]


def timed_build(
    options: BuildOptions, machinery: Machinery, *, progress: bool = True
) -> tuple[BuildSummary, float]:
    """Build, check, and only then say how long the building took.

    Raises:
        CheckFailed: the build fell short, or verifying it finds something.
    """
    started = time.perf_counter()
    summary = build_dataset(
        options,
        runner=machinery.runner,
        detector=machinery.detector,
        framer=machinery.framer,
        workers=machinery.workers,
        batch_size=machinery.batch_size,
        threads=machinery.threads,
        reader=machinery.reader,
        lanes=machinery.lanes,
        framing=machinery.framing,
        progress=progress,
    )
    wall_s = time.perf_counter() - started
    if summary.problem:
        raise CheckFailed(f"no numbers: the build ended short; {summary.problem}")
    verify_dataset(options.out).check()
    return summary, wall_s


def stage_rows(
    timings: Mapping[str, Mapping[str, Any]], wall_s: float, ceilings: Mapping[str, float]
) -> tuple[StageRow, ...]:
    """The stages of a build.

    Args:
        timings: `BuildSummary.timings`.
        wall_s: of the build.
        ceilings: from `ceilings.stage_ceilings`.
    """
    return tuple(
        StageRow(
            name=name,
            clips=entry["clips"],
            frames=entry["frames"],
            workers=entry["workers"],
            busy_s=entry["busy_s"],
            wall_s=wall_s,
            ceiling=ceilings.get(name),
        )
        for name, entry in timings.items()
    )


def bottleneck(stages: tuple[StageRow, ...]) -> str:
    """The stage whose workers were busy for the largest share of the time."""
    return max(stages, key=lambda stage: stage.share_of_wall).name


def end_to_end(
    stages: tuple[StageRow, ...], parts: Sequence[Row], machinery: Machinery, wall_s: float
) -> Row:
    """Animated frames a second of the whole build, its looking at inputs included.

    On a GPU the ceiling is the slower of the two that no other stage should hold back: the
    generator alone, and the encode pool alone, which has each fake's real twin to encode as well.
    On a CPU, where all share the cores, it is the slowest stage alone, at its own ceiling: what a
    pipeline would reach whose other stages hid behind that one and cost nothing.

    Args:
        stages: of the build.
        parts: measured alone.
        machinery: what it was built with.
        wall_s: of the build.
    """
    count = {stage.name: stage.frames for stage in stages}
    frames = count["animate"]
    if machinery.runner.device.type == "cuda":
        fastest = {
            name: max(row.rate for row in parts if row.name == name)
            for name in ("generator", "encode pool")
        }
        alone = {
            "generator": frames / fastest["generator"],
            "encode pool": count["encode"] / fastest["encode pool"],
        }
    else:
        alone = {
            stage.name: stage.frames / stage.ceiling / stage.workers
            for stage in stages
            if stage.ceiling
        }
    slowest = max(alone, key=lambda name: alone[name])
    return Row.of(
        "build",
        Timing((wall_s,)),
        variant="end to end",
        amount=frames,
        unit="frames/s",
        shape=(frames, *machinery.runner.frame_size, 3),
        device=machinery.runner.device.type,
        ceiling=frames / alone[slowest],
        ceiling_of=f"{slowest} alone",
    )


def cores_row(
    stages: Sequence[StageRow],
    parts: Sequence[Row],
    recipe: BuildRecipe,
    machinery: Machinery,
    wall_s: float,
) -> Row:
    """Animated frames a second of a build on a CPU, against what its cores could do.

    The ceiling is cores / sum(core-seconds per frame of each stage measured alone): every core
    busy all the time with nothing but the stages' own work.

    Args:
        stages: of the build.
        parts: measured alone, and whole stages (`stages_alone`).
        recipe: of the build.
        machinery: what it was built with.
        wall_s: of the build.
    """
    alone = stage_core_seconds(parts, recipe)
    work_s = sum(stage.frames * alone[stage.name] for stage in stages if stage.name in alone)
    frames = next(stage.frames for stage in stages if stage.name == "animate")
    return Row.of(
        "build",
        Timing((wall_s,)),
        variant=f"end to end, {machinery.threads} cores",
        amount=frames,
        unit="frames/s",
        shape=(frames, *machinery.runner.frame_size, 3),
        ceiling=frames * machinery.threads / work_s,
        ceiling_of="all cores busy with the stages alone",
    )
