"""An open frame store: any rows, in any order, from memory-mapped shards.

store = Store.open("out/store")
frames = store.read(store.index.rows(split="train", quality="c23")[:64])  # (64, 256, 256, 3)
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm_engine.errors import CheckFailed, InputError, ShapeError
from dfm_engine.store.index import StoreIndex
from dfm_engine.store.meta import StoreMeta, shard_path

__all__ = ["Store"]

MAPPED_SHARDS = 256
"""Shards of a store that stay mapped. Each takes a file descriptor, of which a process usually may
have 1024; three stores fit. Mapping one again costs about as much as copying a frame out of it."""

_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True, eq=False)
class Store:
    """A whole store; immutable, so any number of threads and processes may hold one.

    Attributes:
        path: its folder.
        meta: how the frames lie on the disk.
        index: which frame each row is.
    """

    path: Path
    meta: StoreMeta
    index: StoreIndex

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Store:
        """Open a store; no frame is read.

        Raises:
            InputError: no store, one that was not finished, or one whose files are not as long as
                `meta.json` says.
        """
        folder = Path(path)
        meta = StoreMeta.read(folder)
        index = StoreIndex.read(folder)
        if len(index) != meta.rows:
            raise InputError(
                f"the store {os.fspath(folder)!r} has {meta.rows} frames in its shards and "
                f"{len(index)} in its index; prepare it again"
            )
        for number, shard in enumerate(meta.shards):
            file = shard_path(folder, number)
            expected = shard.rows * meta.frame_bytes
            found = file.stat().st_size if file.is_file() else None
            if found != expected:
                state = "is absent" if found is None else f"has {found} bytes"
                raise InputError(
                    f"the store's shard {os.fspath(file)!r} {state} instead of {expected}; copy "
                    "the store again, or delete its folder and prepare it again"
                )
        return cls(path=folder, meta=meta, index=index)

    def __repr__(self) -> str:
        return f"Store({os.fspath(self.path)!r}, {self.rows} rows of {self.meta.frame_shape})"

    @property
    def rows(self) -> int:
        """Frames in it."""
        return self.meta.rows

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """(shards + 1,) the first row of every shard, and the number of rows."""
        counts = [shard.rows for shard in self.meta.shards]
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def each_shard(self) -> Iterator[NDArray[np.uint8]]:
        """Each shard in turn, memory-mapped read-only while it is used: uint8 (rows, *frame_shape).

        Raises:
            OSError: a shard's file is gone.
        """
        for number in range(len(self.meta.shards)):
            yield self._map(number)

    @cached_property
    def _mapped(self) -> Callable[[int], NDArray[np.uint8]]:
        """`_map`, remembering what was used last; safe in threads, as `lru_cache` is.

        What it drops is unmapped when the last reader lets go of it.
        """
        return lru_cache(MAPPED_SHARDS)(self._map)

    def _map(self, number: int) -> NDArray[np.uint8]:
        shape = (self.meta.shards[number].rows, *self.meta.frame_shape)
        if not shape[0]:  # all its clips were refused; nothing cannot be mapped
            return np.empty(shape, np.uint8)
        mapped = np.memmap(shard_path(self.path, number), np.uint8, "r", shape=shape)
        return mapped.view(np.ndarray)  # each view of a memmap costs 5 us

    def __getstate__(self) -> dict[str, Any]:
        """Without the maps, which another process makes for itself."""
        return {"path": self.path, "meta": self.meta, "index": self.index}

    def read(
        self, rows: NDArray[np.int64], out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Copy frames out of the shards.

        Args:
            rows: (N,) integer row numbers, in any order, repeats allowed.
            out: uint8 (N, *frame_shape), contiguous, to fill; made where left out.

        Returns:
            `out`, frame k being row `rows[k]`.

        Raises:
            ShapeError: `rows` is no list of integers, or `out` does not fit.
            IndexError: a row that the store does not have.
            OSError: a shard's file is gone.
        """
        wanted = np.asarray(rows)
        if wanted.ndim != 1 or (wanted.size and wanted.dtype.kind not in "iu"):
            raise ShapeError(f"rows must be integers (N,), got {wanted.dtype} {wanted.shape}")
        wanted = wanted.astype(np.int64, copy=False)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= self.rows):
            raise IndexError(
                f"rows {wanted.min()} .. {wanted.max()} of a store that has {self.rows}"
            )
        shape = (len(wanted), *self.meta.frame_shape)
        if out is None:
            out = np.empty(shape, np.uint8)
        elif out.shape != shape or out.dtype != np.uint8:
            raise ShapeError(f"out must be uint8 {shape}, got {out.dtype} {out.shape}")
        place = np.searchsorted(self.starts, wanted, side="right") - 1
        inside = wanted - self.starts[place]
        order = np.argsort(wanted, kind="stable")  # forwards through the files
        for some in np.split(order, np.flatnonzero(np.diff(place[order])) + 1):
            if len(some):
                shard = self._mapped(int(place[some[0]]))
                for k in some:
                    out[k] = shard[inside[k]]
        return out

    def verify(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Read every byte again and compare it with what was written.

        Args:
            progress: called with (shards done, all).

        Raises:
            CheckFailed: a shard holds other bytes than `meta.json` says.
        """
        wrong: list[str] = []
        for number, shard in enumerate(self.meta.shards):
            digest = hashlib.sha256()
            with shard_path(self.path, number).open("rb", buffering=0) as file:
                while piece := file.read(_CHUNK_BYTES):
                    digest.update(piece)
            if digest.hexdigest() != shard.sha256:
                wrong.append(shard_path(self.path, number).name)
            if progress:
                progress(number + 1, len(self.meta.shards))
        if wrong:
            raise CheckFailed(
                f"the store {os.fspath(self.path)!r}: {len(wrong)} of {len(self.meta.shards)} "
                f"shards were changed after they were written: {', '.join(wrong[:5])}; copy them "
                "again, or delete the folder and prepare it again"
            )
