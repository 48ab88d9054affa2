"""`dfm-engine prepare`: clips in, a frame store out. Read this first.

    list ─► look (plain folders only) ─► plan shards ─► sample ─► shards ─► tables, meta.json

Which clips go into which shard depends on the list alone, a shard is done when its record is on the
disk, and `meta.json` comes last. So a run that was killed anywhere is resumed by starting it again,
and leaves what an undisturbed one would have. Memory holds what the sampler has under way, and the
list of clips without their frames.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dfm_engine.errors import DfmError, EnvironmentUnfit, ShortfallError, UsageError
from dfm_engine.interrupts import StopRequest
from dfm_engine.jobs import QUARANTINE, reading
from dfm_engine.nvidia import read_nvidia
from dfm_engine.progress import Ticker, duration
from dfm_engine.quarantine import QuarantineRow, write_quarantine
from dfm_engine.recipe import Limits
from dfm_engine.store.folder import RefusedClip, ShardRecord, StoreFolder
from dfm_engine.store.frames import Store
from dfm_engine.store.index import StoredClip, StoreIndex
from dfm_engine.store.listing import DataListing, list_data
from dfm_engine.store.meta import Layout, Shard, StoreMeta, shard_path
from dfm_engine.store.planning import (
    PlannedClip,
    PrepareOptions,
    deal_out,
    plan_clips,
    settings_of,
    versions_of,
)
from dfm_engine.store.pyav import PyavSampler
from dfm_engine.store.sampler import ClipToSample, FrameSampler, Refused, Sampled
from dfm_engine.store.shards import ShardWriter
from dfm_engine.store.sheet import write_sheet
from dfm_engine.store.summary import PrepareSummary

__all__ = [
    "DECODERS",
    "FrameSampler",
    "PrepareOptions",
    "choose_sampler",
    "fill_store",
    "run_prepare",
]

DECODERS = ("auto", "pyav", "dali")


def choose_sampler(
    decode: str,
    *,
    size_px: int,
    layout: Layout,
    workers: int,
    device: str = "auto",
    limits: Limits | None = None,
) -> FrameSampler:
    """The sampler that `--decode` means.

    Args:
        decode: `pyav`; `dali`; or `auto`: DALI for `rgb24` on a GPU that has it, else PyAV (only
            PyAV hands out native planes).
        size_px: of the store.
        layout: of the store.
        workers: processes of PyAV.
        device: auto, cpu or cuda.
        limits: what a file may ask for.

    Raises:
        UsageError: another word, or `dali` for an `i420` store.
        EnvironmentUnfit: `dali` on a machine that cannot.
    """
    if decode not in DECODERS:
        raise UsageError(f"--decode takes {', '.join(DECODERS)}, found {decode!r}")
    if decode == "dali" and layout != "rgb24":
        raise UsageError(
            "--decode dali gives RGB only: use --layout rgb24, or --decode pyav, which stores the "
            "decoder's own planes"
        )
    pyav = PyavSampler(size_px=size_px, layout=layout, workers=workers, limits=limits)
    if decode == "pyav" or layout != "rgb24":
        return pyav
    if decode == "auto" and (device == "cpu" or not read_nvidia().gpus):
        return pyav
    from dfm_engine.store.dali import DaliSampler

    try:
        return DaliSampler(size_px=size_px, fallback=pyav, limits=limits)
    except EnvironmentUnfit:
        if decode == "dali":
            raise
        return pyav


def run_prepare(
    options: PrepareOptions,
    *,
    sampler: FrameSampler,
    workers: int,
    limits: Limits | None = None,
    stop: StopRequest | None = None,
    say: Callable[[str], None] = lambda text: None,
    progress: bool = True,
) -> PrepareSummary:
    """Fill a store, or go on filling it.

    Args:
        options: what is wanted.
        sampler: reads the frames.
        workers: processes that probe the clips of a plain folder.
        limits: what a file may ask for.
        stop: set by a signal; the run then ends after the shard under way.
        say: told what a person wants to read.
        progress: write a line of it every few seconds.

    Raises:
        UsageError: the data or the folder cannot be used, or was begun with other settings.
        EnvironmentUnfit: the disk is full or the like; run the same command again to resume.
        Interrupted: `stop` was set; the shards that were begun are done.
        ShortfallError: not one clip could be stored.
    """
    with ExitStack() as stack:
        if options.data.is_dir():
            stack.enter_context(reading(options.data))  # no build may change it meanwhile
        data = list_data(
            options.data,
            reader=options.reader,
            qualities=options.qualities,
            identity_csv=options.identity_csv,
            identity_regex=options.identity_regex,
        )
        for warning in data.warnings:
            say(f"note: {warning}")
        return fill_store(
            options,
            data,
            sampler=sampler,
            workers=workers,
            limits=limits or Limits(),
            stop=StopRequest() if stop is None else stop,  # an unset one is false
            progress=progress,
        )


def fill_store(
    options: PrepareOptions,
    data: DataListing,
    *,
    sampler: FrameSampler,
    workers: int,
    limits: Limits,
    stop: StopRequest,
    progress: bool,
) -> PrepareSummary:
    """Fill a store with listed clips; see `run_prepare`."""
    started_s = time.monotonic()
    settings = settings_of(options, data, decode=sampler.name, limits=limits)
    with StoreFolder.open(options.out, settings) as folder:
        pace = _Pace()
        with Ticker(pace.line, enabled=progress):
            plan = plan_clips(
                options,
                data,
                folder.path / "looks",
                limits=limits,
                workers=workers,
                stop=stop,
                seen=pace.look,
            )
            fill = _Fill(options, plan, folder, pace)
            fill.sample(sampler, stop)
        clips, numbers = fill.stored()
        quarantine = _quarantine(data, plan, fill)
        meta = replace(
            options.meta,
            decode=sampler.name,
            versions=versions_of(sampler.name),
            shards=fill.shards(),
        )
        if not folder.is_whole:
            _write_tables(folder, meta, clips, numbers, quarantine)
        return PrepareSummary.of(
            options.out,
            meta,
            clips,
            quarantine,
            made_rows=pace.made_rows,
            seconds=time.monotonic() - started_s,
            warnings=data.warnings,
        )


@dataclass(slots=True)
class _Pace:
    """What the progress line tells; read by the ticker's thread."""

    text: str = ""
    total: int = 0
    stored: int = 0
    refused: int = 0
    rows: int = 0
    made_rows: int = 0
    made_clips: int = 0
    started_s: float = 0.0

    def look(self, stage: str, done: int, total: int, unusable: int) -> None:
        self.text = f"{stage}  {done}/{total} clips  unusable {unusable}"

    def line(self) -> str:
        if not self.total:
            return self.text
        done = self.stored + self.refused
        seconds = max(time.monotonic() - self.started_s, 1e-9)
        text = (
            f"store  {done}/{self.total} clips  {self.rows} frames  "
            f"{self.made_rows / seconds:.0f} frames/s  refused {self.refused}"
        )
        if self.made_clips and done < self.total:
            text += f"  about {duration((self.total - done) * seconds / self.made_clips)} left"
        return text


class _Fill:
    """The shards of a store, made one after the other."""

    def __init__(
        self,
        options: PrepareOptions,
        plan: Sequence[PlannedClip],
        folder: StoreFolder,
        pace: _Pace,
    ) -> None:
        """Take up what earlier runs have done."""
        self.records: dict[int, ShardRecord] = {}
        self._frames = options.frames
        self._frame_bytes = options.meta.frame_bytes
        self._folder = folder
        self._pace = pace
        self._clips = deal_out(plan, options.frames)
        pace.total, pace.started_s = sum(map(len, self._clips)), time.monotonic()
        for number, clips in enumerate(self._clips):
            keys = [clip.listed.key for clip in clips]
            record = folder.record(number, keys, self._frame_bytes)
            if record is not None:
                self.records[number] = record
                pace.stored += len(record.clips)
                pace.refused += len(record.refused)
                pace.rows += record.rows

    def sample(self, sampler: FrameSampler, stop: StopRequest) -> None:
        """Make the shards that are not done.

        Raises:
            Interrupted: `stop` was set before all were.
        """
        left = [number for number in range(len(self._clips)) if number not in self.records]
        to_do = [(number, clip) for number in left for clip in self._clips[number]]

        def clips() -> Iterator[ClipToSample]:
            begun = -1
            for place, (number, clip) in enumerate(to_do):
                if number != begun and stop:
                    return  # a shard that was begun is finished
                begun = number
                yield clip.to_sample(place, self._frames)

        def results() -> Generator[Sampled | Refused, None, None]:
            if to_do:
                yield from sampler.sample(clips())

        with closing(results()) as items:
            for number in left:
                record = self._make(number, items)
                if record is None:
                    break
                self._folder.commit(number, record)
                self.records[number] = record
        if len(self.records) < len(self._clips):
            stop.raise_if_set()
            raise DfmError("the sampler ended before all clips were sampled")

    def _make(self, number: int, items: Iterator[Sampled | Refused]) -> ShardRecord | None:
        """One shard, its file in place; None if the sampler was stopped before it."""
        planned = self._clips[number]
        expected = sum(len(clip.wanted(self._frames)) for clip in planned)
        stored: list[tuple[str, str]] = []
        refused: list[RefusedClip] = []
        with ShardWriter(
            shard_path(self._folder.path, number), frame_bytes=self._frame_bytes, rows=expected
        ) as shard:
            for clip in planned:
                item = next(items, None)
                if item is None:
                    return None
                outcome = self._add(clip, item, items, shard)
                if isinstance(outcome, str):
                    stored.append((clip.listed.key, outcome))
                else:
                    refused.append(outcome)
            facts = shard.commit()
        return ShardRecord(
            rows=facts.rows, sha256=facts.sha256, clips=tuple(stored), refused=tuple(refused)
        )

    def _add(
        self,
        clip: PlannedClip,
        item: Sampled | Refused,
        items: Iterator[Sampled | Refused],
        shard: ShardWriter,
    ) -> str | RefusedClip:
        """One clip's frames into the shard; the hash of what was read, or why it has none."""
        before, mark = shard.rows, shard.mark()
        while isinstance(item, Sampled):
            shard.add(item.frames)
            if item.is_last:
                rows, wanted = shard.rows - before, len(clip.wanted(self._frames))
                if rows != wanted or item.clip.path != clip.listed.file:
                    raise DfmError(
                        f"sampling {clip.listed.key}: {rows} frames of {item.clip.path.name} "
                        f"instead of {wanted}"
                    )
                self._pace.stored += 1
                self._pace.made_clips += 1
                self._pace.rows += rows
                self._pace.made_rows += rows
                return item.sha256
            item = next(items)
        shard.rewind(mark)
        self._pace.refused += 1
        return RefusedClip(
            key=clip.listed.key,
            kind=item.error.kind,
            reason=item.error.reason,
            attempts=item.attempts,
        )

    def shards(self) -> tuple[Shard, ...]:
        """Of `meta.json`."""
        return tuple(self.records[number].shard for number in range(len(self._clips)))

    def stored(self) -> tuple[list[StoredClip], NDArray[np.int32]]:
        """The clips of the store, and the frame number of every row."""
        by_key = {clip.listed.key: clip for shard in self._clips for clip in shard}
        clips: list[StoredClip] = []
        numbers = [np.empty(0, np.int32)]
        row = 0
        for number in range(len(self._clips)):
            for key, sha256 in self.records[number].clips:
                clip = by_key[key]
                listed, wanted = clip.listed, clip.wanted(self._frames)
                clips.append(
                    StoredClip(
                        key=key,
                        path=listed.path,
                        clip_id=listed.clip_id,
                        label=listed.label,
                        action=listed.action,
                        quality=listed.quality,
                        identity=listed.identity,
                        split=listed.split,
                        pair_clip_id=listed.pair_clip_id,
                        box=clip.box,
                        sha256=sha256,
                        first_row=row,
                        frames=len(wanted),
                        clip_frames=clip.clip_frames,
                    )
                )
                numbers.append(wanted)
                row += len(wanted)
        return clips, np.concatenate(numbers)


def _quarantine(data: DataListing, plan: Sequence[PlannedClip], fill: _Fill) -> list[QuarantineRow]:
    """A row for every clip that gave no frames."""
    rows = list(data.refused)
    paths = {clip.listed.key: clip.listed.path for clip in plan}
    for clip in plan:
        if clip.refusal is not None:
            rows.append(
                QuarantineRow(
                    path=clip.listed.path,
                    stage=clip.refusal.stage or "probe",
                    kind=clip.refusal.kind or "",
                    reason=clip.refusal.reason or "",
                    attempts=clip.refusal.attempts,
                )
            )
    for record in fill.records.values():
        rows += [
            QuarantineRow(
                path=paths[refused.key],
                stage="sample",
                kind=refused.kind,
                reason=refused.reason,
                attempts=refused.attempts,
            )
            for refused in record.refused
        ]
    return rows


def _write_tables(
    folder: StoreFolder,
    meta: StoreMeta,
    clips: Sequence[StoredClip],
    numbers: NDArray[np.int32],
    quarantine: Sequence[QuarantineRow],
) -> None:
    """The end of a store; its description last."""
    path = folder.path
    write_quarantine(quarantine, path / QUARANTINE)
    if not meta.rows:
        raise ShortfallError(
            f"not one of {len(quarantine)} clips could be stored; the reasons are in "
            f"{os.fspath(path / QUARANTINE)!r}"
        )
    index = StoreIndex(clips, numbers)
    index.write(path)
    write_sheet(Store(path=path, meta=meta, index=index))
    meta.write(path)
