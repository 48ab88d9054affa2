"""The shards of a store, made one after the other from what a sampler hands on.

In: the plan, and items in its order. Out: shard files with their records (`folder`), and of all of
them the clips and rows of the index. A shard that a run has begun is finished before a signal ends
it; a clip that is refused after some of its frames were written is taken out again. One that was
refused and has another content now, since somebody repaired it, has its shard made again (of a
built set or a folder of pictures; a plain folder of videos with another file is another listing).
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfm_engine.errors import DfmError, MediaError
from dfm_engine.interrupts import StopRequest
from dfm_engine.progress import duration
from dfm_engine.store.folder import RefusedClip, ShardRecord, StoreFolder
from dfm_engine.store.index import StoredClip
from dfm_engine.store.meta import Shard, shard_path
from dfm_engine.store.planning import PlannedClip, PrepareOptions, deal_out
from dfm_engine.store.sampler import ClipToSample, FrameSampler, Refused, Sampled
from dfm_engine.store.sampling import content_sha256
from dfm_engine.store.shards import ShardWriter

__all__ = ["Filler", "Pace"]


@dataclass(slots=True)
class Pace:
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


class Filler:
    """The shards of a store, made one after the other."""

    def __init__(
        self,
        options: PrepareOptions,
        plan: Sequence[PlannedClip],
        folder: StoreFolder,
        pace: Pace,
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
            if record is not None and not _is_repaired(record, clips):
                self.records[number] = record
                pace.stored += len(record.clips)
                pace.refused += len(record.refused)
                pace.rows += record.rows

    @property
    def is_complete(self) -> bool:
        """Every shard is done."""
        return len(self.records) == len(self._clips)

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
        if not self.is_complete:
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
            sha256=_content(clip),
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


def _is_repaired(record: ShardRecord, clips: Sequence[PlannedClip]) -> bool:
    """Whether a clip of a shard that gave no frames is another than it was then."""
    by_key = {clip.listed.key: clip for clip in clips}
    return any(_content(by_key[refused.key]) != refused.sha256 for refused in record.refused)


def _content(clip: PlannedClip) -> str | None:
    try:
        return content_sha256(clip.listed.file, clip.listed.kind)
    except MediaError:
        return None
