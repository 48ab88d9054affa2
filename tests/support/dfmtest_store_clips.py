"""A sampler that needs no video: the clips are those of a store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np

from dfm_engine.columns import path_of_text
from dfm_engine.errors import MediaError
from dfm_engine.store.frames import Store
from dfm_engine.store.sampler import ClipToSample, Refused, Sampled


class StoreAsClips:
    """A sampler whose "video files" are the clips of a store; notes what it read."""

    def __init__(self, store: Store, *, part_rows: int = 3) -> None:
        self.store, self.part_rows = store, part_rows
        self.frames = store.read(np.arange(store.rows))
        self.read: list[str] = []
        self.runs = 0
        self.broken: str | None = None

    name: Literal["pyav"] = "pyav"

    def sample(self, clips: Iterable[ClipToSample]) -> Iterator[Sampled | Refused]:
        self.runs += 1
        by_path = {path_of_text(clip.path): clip for clip in self.store.index.clips}
        for clip in clips:
            stored = by_path["/".join(clip.path.parts[-3:])]
            assert clip.sha256 == stored.sha256
            assert clip.clip_frames == stored.clip_frames
            assert (np.diff(clip.wanted) > 0).all()
            self.read.append(stored.key)
            if stored.key == self.broken:
                yield Refused(clip=clip, error=MediaError(clip.path, "truncated", "ends early"))
                continue
            numbers = self.store.index.frame[np.array(stored.rows)].tolist()
            rows = [stored.first_row + numbers.index(number) for number in clip.wanted]
            for start in range(0, len(rows), self.part_rows):
                some = np.array(rows[start : start + self.part_rows])
                is_last = start + self.part_rows >= len(rows)
                yield Sampled(clip=clip, frames=self.frames[some], is_last=is_last)
