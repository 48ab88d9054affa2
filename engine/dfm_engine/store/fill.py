"""`dfm-engine prepare`: clips in, a frame store out. Read this first.

    list ─► look (plain folders only) ─► plan shards ─► sample ─► shards ─► tables, meta.json

Which clips go into which shard depends on the list alone, a shard is done when its record is on the
disk, and `meta.json` comes last. So a run that was killed anywhere is resumed by starting it again,
and leaves what an undisturbed one would have. Memory holds what the sampler has under way, and the
list of clips without their frames.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfm_engine.errors import EnvironmentUnfit, InputError, ShortfallError, UsageError
from dfm_engine.interrupts import StopRequest
from dfm_engine.jobs import QUARANTINE, reading
from dfm_engine.nvidia import read_nvidia
from dfm_engine.progress import Ticker
from dfm_engine.quarantine import QuarantineRow, read_quarantine, write_quarantine
from dfm_engine.recipe import Limits
from dfm_engine.store.filler import Filler, Pace
from dfm_engine.store.folder import StoreFolder
from dfm_engine.store.frames import Store
from dfm_engine.store.index import StoredClip, StoreIndex
from dfm_engine.store.listing import DataListing, list_data
from dfm_engine.store.meta import Layout, StoreMeta
from dfm_engine.store.planning import (
    PlannedClip,
    PrepareOptions,
    plan_clips,
    settings_of,
    versions_of,
)
from dfm_engine.store.pyav import PyavSampler
from dfm_engine.store.sampler import FrameSampler
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

_log = logging.getLogger(__name__)


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
    except EnvironmentUnfit as error:
        if decode == "dali":
            raise
        _log.warning("decoding on the CPU: %s", error)
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
            if options.out.is_dir() and options.out.samefile(options.data):
                raise UsageError(
                    f"--out {os.fspath(options.out)!r} is the data itself; name a new folder"
                )
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
        pace = Pace()
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
            fill = Filler(options, plan, folder, pace)
            if folder.is_whole and not fill.is_complete:
                folder.reopen()  # a clip is tried again that was refused for the moment
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
        elif not _is_told(quarantine, folder.path):  # it changed, and the clips did not
            write_quarantine(quarantine, folder.path / QUARANTINE)
        return PrepareSummary.of(
            options.out,
            meta,
            clips,
            quarantine,
            made_rows=pace.made_rows,
            seconds=time.monotonic() - started_s,
            warnings=data.warnings,
        )


def _quarantine(
    data: DataListing, plan: Sequence[PlannedClip], fill: Filler
) -> list[QuarantineRow]:
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


def _is_told(quarantine: Sequence[QuarantineRow], path: Path) -> bool:
    """Whether the table of a finished store says just that."""
    try:
        return Counter(read_quarantine(path / QUARANTINE)) == Counter(quarantine)
    except InputError:
        return False


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
