"""`bench data`: from clips to a training, part by part.

    render and encode ─► fill against bare decoding ─► a store ─► gather, fused step, training

The clips are drawn, so that everybody measures the same, and kept in the folder for the next time.
On a GPU the list of `decode_gpu` is run before.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import av
import torch

from dfm_bench.facts import read_facts
from dfm_bench.feeding import FeedWorkload, feed_rows, remarks_on
from dfm_bench.measure import Row, measure
from dfm_bench.report import BenchReport
from dfm_bench.store_fill import FillWorkload, fill_rows, make_clips
from dfm_engine.allocator import keep_freed_memory
from dfm_engine.interrupts import StopRequest
from dfm_engine.recipe import Limits
from dfm_engine.store.fill import PrepareOptions, fill_store
from dfm_engine.store.frames import Store
from dfm_engine.store.listing import DataListing, ListedClip
from dfm_engine.store.meta import Layout
from dfm_engine.store.pyav import PyavSampler

__all__ = ["FULL", "QUICK", "DataWorkload", "run_bench_data"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataWorkload:
    """What is measured.

    Attributes:
        fill: clips, and what is stored of them.
        feed: what is gathered and trained on.
        copies: how often the store that is trained on holds every clip.
        layout: of that store.
    """

    fill: FillWorkload = field(default_factory=FillWorkload)
    feed: FeedWorkload = field(default_factory=FeedWorkload)
    copies: int = 4
    layout: Layout = "rgb24"


FULL = DataWorkload()
QUICK = DataWorkload(
    fill=FillWorkload(people=2, clip_frames=50, drawn_frames=8, frames=8, passes=2, repeats=2),
    feed=FeedWorkload(batch_size=16, steps=3, repeats=3, gathers=6),
    copies=2,
)


def run_bench_data(
    workload: DataWorkload,
    *,
    out: Path,
    device: torch.device | str = "cpu",
    command: str = "",
) -> BenchReport:
    """Measure and write the report into a folder.

    Args:
        workload: what is measured.
        out: the folder; rendered clips stay in it.
        device: where the training is.
        command: makes the report again.

    Raises:
        CheckFailed: a store or a loader that is not right; nothing is written.
    """
    facts, where = read_facts(), torch.device(device)
    keep_freed_memory()  # as where a detector is trained
    out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    remarks: list[str] = []
    if where.type == "cuda":
        from dfm_bench.decode_gpu import measure_decode

        findings = measure_decode(out, command=command)
        rows += findings.rows
        remarks += [f"NVDEC: {seen}" for seen in findings.seen]
    rows += fill_rows(out, workload=workload.fill, command=command)
    clips = make_clips(
        out / f"fill-{workload.fill.people}x{workload.fill.clip_frames}", workload.fill
    )
    rows.append(_decode_row(clips, workload, command))
    with tempfile.TemporaryDirectory(prefix="store-", dir=out) as folder:
        store = labelled_store(clips, workload, Path(folder) / "store")
        rows += feed_rows(
            store, clips[0].file.parent, device=where, workload=workload.feed, command=command
        )
    remarks += remarks_on(rows, load_per_core=facts.load / facts.cores)
    report = BenchReport(
        verb="data",
        command=command,
        device=where.type,
        facts=facts,
        rows=tuple(rows),
        remark="\n".join(remarks),
    )
    report.write(out)
    return report


def _decode_row(clips: Sequence[ListedClip], workload: DataWorkload, command: str) -> Row:
    """Every frame of a c23 clip, on one thread, converted to nothing."""
    paths = [clip.file for clip in clips if clip.quality == "c23"]

    def decode(path: Path) -> None:
        with av.open(str(path)) as container:
            container.streams.video[0].thread_type = "NONE"
            for _ in container.decode(video=0):
                pass

    return Row.of(
        "decode only",
        measure({"": decode}, paths, repeats=3 * workload.fill.repeats)[""],
        variant="PyAV, c23",
        amount=workload.fill.clip_frames,
        unit="frames/s",
        shape=(workload.fill.clip_frames, workload.fill.size, workload.fill.size, 3),
        command=command,
    )


def labelled_store(clips: Sequence[ListedClip], workload: DataWorkload, out: Path) -> Store:
    """A store that holds every clip several times, in turn as real and as fake."""
    many = tuple(
        replace(
            clip,
            key=f"{copy}/{clip.key}",
            clip_id=f"{copy}/{clip.identity}",
            label="fake" if copy % 2 else "real",
        )
        for copy in range(workload.copies)
        for clip in clips
    )
    options = PrepareOptions(
        data=clips[0].file.parent,
        out=out,
        frames=workload.fill.frames,
        size_px=workload.fill.size,
        layout=workload.layout,
    )
    fill_store(
        options,
        DataListing(root=options.data, reader="built", clips=many),
        sampler=PyavSampler(
            size_px=options.size_px, layout=options.layout, workers=os.cpu_count() or 1
        ),
        workers=1,
        limits=Limits(),
        stop=StopRequest(),
        progress=False,
    )
    return Store.open(out)
