"""`bench throughput`: the generator by every way there is, and a whole build, stage by stage.

    generator: gate ─► loop and ways, interleaved
    build:     every part alone ─► build ─► verify ─► stages and cores against their ceilings
    paper:     minutes for the whole data set, by arithmetic

Nothing has a number before it was found right: a way of generating agrees with the per-frame loop,
and `verify_dataset` finds nothing in the set that was built.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from dfm_bench import plots
from dfm_bench.bystanders import CoresWatch
from dfm_bench.ceilings import Material, measure_ceilings, stage_ceilings
from dfm_bench.facts import read_facts
from dfm_bench.generators import Subject, Way, check_ways, generator_rows
from dfm_bench.measure import Row
from dfm_bench.outlook import outlook
from dfm_bench.report import BenchReport, Figure
from dfm_bench.roofline import measure_matrix_product
from dfm_bench.stages import (
    Workload,
    bottleneck,
    cores_row,
    end_to_end,
    stage_rows,
    timed_build,
)
from dfm_bench.stages_alone import measure_stages_alone
from dfm_engine.allocator import keep_freed_memory
from dfm_engine.build import BuildOptions
from dfm_engine.fomm.model import Fomm
from dfm_engine.machinery import Machinery
from dfm_engine.synthetic import write_demo_set

__all__ = ["run_bench_throughput"]

KEPT = ", freed memory kept"
"""Behind the name of the loop where it ran as a build's generator does, see `allocator`."""


def run_bench_throughput(
    workload: Workload,
    machinery: Machinery,
    fomm: Fomm,
    ways: Sequence[Way],
    *,
    out: Path,
    command: str = "",
    remark: str = "",
    progress: bool = True,
) -> BenchReport:
    """Measure, and write the report into a folder.

    Args:
        workload: what is built.
        machinery: what it is built with.
        fomm: the model of the generator rows; the build's may be another.
        ways: of running it.
        out: the folder; rendered clips stay in it.
        command: makes the report again.
        remark: about the weights, for the reader.
        progress: write a line of the build every few seconds.

    Raises:
        UsageError: `out` holds clips of another workload.
        CheckFailed: a way disagrees with the loop, or the build is not right; nothing is written.
    """
    facts = read_facts()
    device = machinery.runner.device
    generated, found = _generate(fomm, ways, device, workload.repeats, command)
    clips = out / f"clips-{workload.name}"
    write_demo_set(clips, workload.clips, workers=machinery.threads)
    with tempfile.TemporaryDirectory(prefix="set-", dir=out) as folder:
        options = BuildOptions(
            recipe=workload.recipe,
            real=clips / "real",
            driving=clips / "driving",
            out=Path(folder) / "set",
            banner=remark,
        )
        material = Material.gather(options, machinery)
        parts = measure_ceilings(
            material,
            machinery,
            workload.recipe,
            repeats=workload.repeats,
            scratch=Path(folder),
            command=command,
        )
        alone = (
            measure_stages_alone(
                options,
                material,
                machinery,
                repeats=workload.repeats,
                scratch=Path(folder),
                command=command,
            )
            if device.type == "cpu"
            else ()
        )
        with CoresWatch() as cores:
            summary, wall_s = timed_build(options, machinery, progress=progress)
    ceilings = stage_ceilings(parts, workload.recipe)
    if machinery.framing is not None:  # its detector and reader are not those measured
        del ceilings["frame"]
    stages = stage_rows(summary.timings, wall_s, ceilings)
    whole = [end_to_end(stages, parts, machinery, wall_s)]
    if device.type == "cpu":
        whole.append(cores_row(stages, (*parts, *alone), workload.recipe, machinery, wall_s))
    report = BenchReport(
        verb="throughput",
        command=command,
        device=device.type,
        facts=facts,
        rows=(
            *(dataclasses.replace(row, command=command) for row in whole),
            *generated,
            *parts,
            *alone,
        ),
        stages=stages,
        queues=summary.queues,
        bottleneck=bottleneck(stages),
        remark="\n\n".join(
            part
            for part in (
                remark,
                *map(_reached, whole),
                cores.sentence(facts.cores),
                _speedups(generated),
                *found,
            )
            if part
        ),
        figures=(_by_batch(generated), _timeline(summary.spans, wall_s)),
        outlook=outlook(stages),
    )
    report.write(out)
    return report


def _generate(
    fomm: Fomm, ways: Sequence[Way], device: torch.device, repeats: int, command: str
) -> tuple[list[Row], list[str]]:
    subject = Subject(fomm, device=device)
    said = check_ways(subject, ways)
    dtypes = [torch.float32] if device.type == "cpu" else [torch.float32, torch.float16]
    products = [
        measure_matrix_product(device, repeats=repeats, dtype=dtype, command=command)
        for dtype in dtypes
    ]
    rates = {row.dtype: row.rate for row in products}
    rows = generator_rows(subject, ways, gflops=rates, repeats=repeats, command=command)
    # From here on as in a build, but for threads that are there already. The loop that all are held
    # against is the published code's, in a process as it finds it.
    if keep_freed_memory() and device.type == "cpu":
        (loop,) = generator_rows(subject, (), gflops=rates, repeats=repeats, command=command)
        rows.append(dataclasses.replace(loop, variant=f"{loop.variant}{KEPT}"))
    return rows, [f"{name}: {text}." for name, text in said.items()]


def _reached(row: Row) -> str:
    """What a build's speed comes down to."""
    return (
        f"The build, from its first look at an input to its last file, made {row.rate:.4g} frames "
        f"a second: {row.share:.0%} of {row.ceiling_of} ({row.ceiling:.4g})."
    )


def _speedups(rows: Sequence[Row]) -> str:
    """What each way is worth, as a ratio to the loop in the same run."""
    loop = next(row for row in rows if row.variant == "reference loop")
    best: dict[str, Row] = {}
    for row in rows:
        if row is not loop and (row.variant not in best or row.rate > best[row.variant].rate):
            best[row.variant] = row
    listed = ", ".join(
        f"{name} {row.rate / loop.rate:.2f}x (batch {row.shape[0]})" for name, row in best.items()
    )
    return f"Against the per-frame loop ({loop.median_s:.3f} s a frame): {listed}." if best else ""


def _by_batch(rows: Sequence[Row]) -> Figure:
    series: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if not row.variant.endswith(KEPT):
            series.setdefault(row.variant, []).append((row.shape[0], row.rate))
    return Figure(
        title="Generator: rate by batch size",
        svg=plots.rates_by_batch(series, unit="frames/s"),
        caption="The per-frame loop finds keypoints and encodes the source again for every "
        "frame; all others have both at hand, as in a build.",
    )


def _timeline(spans: Sequence[tuple[str, float, float]], wall_s: float) -> Figure:
    return Figure(
        title="Build: when each stage worked",
        svg=plots.timeline([plots.Span(*span) for span in spans], wall_s=wall_s),
        caption="Stages of this process; encoding runs beside them in processes of its own.",
    )
