"""Rows of a store by decoding its clips again: for sets that neither memory nor disk holds.

What it guarantees: every row is the same frame of the same file as in the store (a file that has
changed is an error, by its hash), cut out by the same box; with the decoder that filled the store
the bytes are the same too. A clip is read once per batch, forwards, however many of its rows the
batch has. So a walk through the rows in their order is one pass over the clips, and training on
one random frame per clip decodes every clip once per epoch.

Workers decode ahead of what is asked for, along the plan that `follow` was given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfm_engine.columns import path_of_text
from dfm_engine.errors import InputError
from dfm_engine.store.frames import Store
from dfm_engine.store.sampler import ClipToSample, FrameSampler, Refused, Sampled

__all__ = ["ClipSource"]

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """What one call will ask for: its rows, and those rows once each, clip by clip."""

    rows: Rows
    distinct: Rows
    place: Rows  # rows == distinct[place]


class ClipSource:
    """Reads frames of clips where `Store.read` reads them of shards.

    Args:
        store: whose index says which frames; its shards are not touched.
        data: the folder that the clips' paths are below.
        sampler: decodes, in the store's size and layout.
    """

    def __init__(self, store: Store, data: Path, sampler: FrameSampler) -> None:
        self.store, self._data, self._sampler = store, data, sampler
        self._parts: Iterator[Sampled | Refused] | None = None
        self._begun: deque[_Batch] = deque()

    def follow(self, coming: Iterable[Rows]) -> None:
        """Begin to decode what will be asked for, in this order."""
        self.close()
        self._parts = self._sampler.sample(self._clips(iter(coming)))

    def read(self, rows: Rows, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """See `Store.read`; what `follow` did not announce begins anew.

        Raises:
            InputError: a clip cannot be read any more as it was when the store was made.
        """
        shape = self.store.meta.frame_shape
        if out is None:
            out = np.empty((len(rows), *shape), np.uint8)
        if len(rows) == 0:
            return out
        part = None if self._parts is None else next(self._parts, None)
        if part is None or not np.array_equal(self._begun[0].rows, rows):
            self.follow([rows])
            assert self._parts is not None
            part = next(self._parts, None)
        frames, done = np.empty((len(self._begun[0].distinct), *shape), np.uint8), 0
        while part is not None:
            if isinstance(part, Refused):
                self.close()
                raise InputError(
                    f"decoding again what is in the store {self.store.path}: {part.error}; "
                    "restore the file, or prepare the store again"
                ) from part.error
            frames[done : done + len(part.frames)] = part.frames
            done += len(part.frames)
            part = next(self._parts, None) if self._parts and done < len(frames) else None
        return np.take(frames, self._begun.popleft().place, axis=0, out=out, mode="clip")

    def close(self) -> None:
        """End the workers."""
        close = getattr(self._parts, "close", None)  # of a generator
        if close is not None:
            close()
        self._parts = None
        self._begun.clear()

    def _clips(self, coming: Iterator[Rows]) -> Iterator[ClipToSample]:
        """The clips of each batch, drawn as far ahead as the sampler has workers for."""
        place, index = 0, self.store.index
        for rows in coming:
            distinct, inverse = np.unique(rows, return_inverse=True)  # a clip's rows lie together
            self._begun.append(_Batch(rows, distinct, inverse))
            borders = np.flatnonzero(np.diff(index.clip[distinct])) + 1
            for wanted in np.split(distinct, borders):
                yield self._clip(place, wanted)
                place += 1

    def _clip(self, place: int, rows: Rows) -> ClipToSample:
        clip = self.store.index.clips[self.store.index.clip[rows[0]]]
        path = self._data / path_of_text(clip.path)
        return ClipToSample(
            place=place,
            path=path,
            kind="pictures" if path.is_dir() else "video",
            clip_frames=clip.clip_frames,
            wanted=self.store.index.frame[rows],
            box=clip.box,
            sha256=clip.sha256,
        )
