"""Batches of images and labels from a store, each a function of (seed, epoch, step).

A unit is one frame of one clip, whatever its quality: `SampleTable` knows the rows that show it.
`Batches` decides which units an epoch has, in which order and quality, and what is drawn for each;
the loader fetches the rows, the fused step makes images of them. All draws belong to the unit, so
that other batch sizes, ranks or loaders give every unit the same picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfm_engine.clip import QUALITIES
from dfm_engine.errors import UsageError
from dfm_engine.store.augment import FusedAugment
from dfm_engine.store.draws import AugmentPolicy, Draws, draw
from dfm_engine.store.index import StoreIndex
from dfm_engine.store.loader import Loader
from dfm_engine.store.order import Purpose, epoch_order, whole_numbers
from dfm_engine.store.prefetch import Prefetch

__all__ = ["Batch", "Batches", "QualityChoice", "SampleTable"]

BATCHES_AHEAD = 2  # one to be ready, one more for a thread that had to wait for a core

IntArray = NDArray[np.int64]
QualityChoice = Literal["raw", "c23", "c40", "mixed"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampleTable:
    """The units of a store, or of a part of it. U units, C clips; a clip's units lie together.

    Attributes:
        qualities: names of the columns of `rows`; "" for clips without one.
        rows: (U, Q) row that shows the unit in a quality, -1 where there is none.
        labels: (U,) 1 for fake.
        names: (U,) what draws belong to: the same for a unit in any table of a store.
        clips: (U,) number of the clip, counted in this table.
        first_unit: (C,) of each clip.
    """

    qualities: tuple[str, ...]
    rows: IntArray
    labels: IntArray
    names: IntArray
    clips: IntArray
    first_unit: IntArray

    @classmethod
    def of(
        cls,
        index: StoreIndex,
        *,
        split: str | None = None,
        quality: QualityChoice = "mixed",
    ) -> SampleTable:
        """Find the units.

        Args:
            index: of the store.
            split: `train`, `val` or `test`; None is all.
            quality: only units that exist in it, and only in it; `mixed`: every one there is.

        Raises:
            UsageError: no such unit.
        """
        found = {clip.quality or "" for clip in index.clips}
        qualities = tuple(name for name in (*QUALITIES, "") if name in found)
        column = np.array([qualities.index(clip.quality or "") for clip in index.clips], np.int64)
        numbers: dict[tuple[str, str], int] = {}  # one per clip without its quality
        group = np.array(
            [numbers.setdefault((clip.label, clip.clip_id), len(numbers)) for clip in index.clips],
            np.int64,
        )
        keys, unit = np.unique(group[index.clip] << 32 | index.frame, return_inverse=True)
        rows = np.full((len(keys), len(qualities)), -1, np.int64)
        rows[unit, column[index.clip]] = np.arange(len(index))
        names = np.full(len(keys), len(index), np.int64)
        np.minimum.at(names, unit, np.arange(len(index)))
        in_split = np.array([split is None or clip.split == split for clip in index.clips], bool)
        keep = in_split[index.clip[names]] if len(names) else np.empty(0, bool)
        if quality != "mixed":
            chosen = [at for at, name in enumerate(qualities) if name == quality]
            keep &= (rows[:, chosen] >= 0).any(axis=1)
            rows, qualities = rows[:, chosen], tuple(qualities[at] for at in chosen)
        if not keep.any():
            splits = sorted({clip.split or "none" for clip in index.clips})
            raise UsageError(
                f"the store has no frame of split {split or 'any'} in quality {quality}; its "
                f"splits are {', '.join(splits) or 'none'}, its qualities "
                f"{', '.join(sorted(name or 'none' for name in found)) or 'none'}"
            )
        groups, first, clips = np.unique(keys[keep] >> 32, return_index=True, return_inverse=True)
        assert len(first) == len(groups)
        return cls(
            qualities=qualities,
            rows=rows[keep],
            labels=index.labels[names[keep]],
            names=names[keep],
            clips=clips,
            first_unit=first,
        )

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return (
            f"SampleTable({len(self)} units of {len(self.first_unit)} clips in "
            f"{', '.join(name or 'no quality' for name in self.qualities)})"
        )

    def one_per_clip(self, *, seed: int, epoch: int) -> IntArray:
        """(C,) a unit of each clip, drawn."""
        counts = np.diff(self.first_unit, append=len(self))
        names = self.names[self.first_unit]
        drawn = whole_numbers(names, counts, seed=seed, epoch=epoch, purpose=Purpose.FRAME)
        return self.first_unit + drawn[:, 0]

    def rows_of(self, units: IntArray, *, seed: int, epoch: int) -> IntArray:
        """(N,) the row of each unit, in a quality drawn among those that it has."""
        rows = self.rows[units]
        if rows.shape[1] == 1:
            return rows[:, 0]
        has = rows >= 0
        drawn = whole_numbers(
            self.names[units], has.sum(axis=1), seed=seed, epoch=epoch, purpose=Purpose.QUALITY
        )
        column = (has.cumsum(axis=1) > drawn).argmax(axis=1)
        return rows[np.arange(len(units)), column]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Batch:
    """B samples on a device.

    Attributes:
        images: (B, 3, S, S), channels_last, normalised.
        labels: (B,) int64, 1 for fake.
        rows: (B,) of the store, on the host.
    """

    images: Tensor
    labels: Tensor
    rows: IntArray

    def __repr__(self) -> str:
        return f"Batch(images={tuple(self.images.shape)})"


class Batches:
    """The batches of a training, or of one walk through a split."""

    def __init__(
        self,
        table: SampleTable,
        loader: Loader,
        augment: FusedAugment,
        *,
        batch_size: int,
        seed: int = 0,
        policy: AugmentPolicy | None = None,
        frames: Literal["one", "all"] = "all",
        balanced: bool = False,
        shuffle: bool = True,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Plan, and fetch nothing yet.

        Args:
            table: the units.
            loader: of the same store.
            augment: makes images, on the loader's device.
            batch_size: per rank.
            seed: of everything that is drawn.
            policy: what happens to samples; None: nothing, as in evaluation.
            frames: of a clip and epoch: all, or one that is drawn.
            balanced: as many real as fake units per epoch, others of the larger class each time.
            shuffle: else in the order of the table, the last batch as small as it comes.
            rank: whose batches.
            world: number of ranks.

        Raises:
            UsageError: fewer samples than one batch, or one class where two are to be balanced.
        """
        self.table, self.batch_size = table, batch_size
        self._loader, self._augment = loader, augment
        self._seed, self._policy, self._frames = seed, policy, frames
        self._balanced, self._shuffle = balanced, shuffle
        self._rank, self._world = rank, world
        self._planned: dict[int, IntArray] = {}
        self._expected: tuple[int, int] | None = None
        count = len(self._units(0))
        self.steps_per_epoch = count // batch_size if shuffle else -(-count // batch_size)
        if self.steps_per_epoch < 1:
            raise UsageError(
                f"{count} samples per epoch{f' and rank of {world}' * (world > 1)} are fewer than "
                f"one batch of {batch_size}; lower the batch size or prepare more frames"
            )
        self._ahead = Prefetch(self._fetch, self._after, depth=BATCHES_AHEAD)

    def batch(self, epoch: int, step: int) -> Batch:
        """The batch of a step; the following one is fetched meanwhile.

        Args:
            epoch: 0 or more.
            step: within the epoch.
        """
        if not 0 <= step < self.steps_per_epoch:
            raise IndexError(f"step {step} of an epoch of {self.steps_per_epoch} steps")
        fetched = self._ahead.get((epoch, step))
        images = fetched.images
        if images is None:
            images = self._augment(fetched.frames, fetched.draws)
        labels = fetched.labels.to(images.device, non_blocking=True)
        return Batch(images=images, labels=labels, rows=fetched.rows)

    def epoch(self, epoch: int = 0) -> Iterator[Batch]:
        """All batches of an epoch."""
        return (self.batch(epoch, step) for step in range(self.steps_per_epoch))

    def wait(self) -> None:
        """Until what is fetched ahead is here (for measurements)."""
        self._ahead.wait()

    def close(self) -> None:
        """Stop fetching; the loader stays open."""
        self._ahead.close()

    def _units(self, epoch: int) -> IntArray:
        """This rank's units of an epoch, in order."""
        if epoch not in self._planned:
            self._planned = {key: self._planned[key] for key in list(self._planned)[-1:]}
            self._planned[epoch] = self._plan(epoch)
        return self._planned[epoch]

    def _plan(self, epoch: int) -> IntArray:
        table, seed = self.table, self._seed
        units = np.arange(len(table))
        if self._frames == "one":
            units = table.one_per_clip(seed=seed, epoch=epoch)
        if self._balanced:
            classes = [units[table.labels[units] == label] for label in (0, 1)]
            fewest = min(map(len, classes))
            if not fewest:
                raise UsageError("the samples are all of one class: there is nothing to balance")
            kept = [
                members[epoch_order(len(members), seed=seed, epoch=epoch, purpose=purpose)[:fewest]]
                for members, purpose in zip(classes, (Purpose.REALS, Purpose.FAKES), strict=True)
            ]
            units = np.sort(np.concatenate(kept))
        if not self._shuffle:
            return units[self._rank :: self._world]
        return units[
            epoch_order(len(units), seed=seed, epoch=epoch, rank=self._rank, world=self._world)
        ]

    def _rows(self, key: tuple[int, int]) -> tuple[IntArray, IntArray]:
        """Units and rows of a batch."""
        epoch, step = key
        units = self._units(epoch)[step * self.batch_size : (step + 1) * self.batch_size]
        return units, self.table.rows_of(units, seed=self._seed, epoch=epoch)

    def _after(self, key: tuple[int, int]) -> tuple[int, int] | None:
        epoch, step = key
        if step + 1 < self.steps_per_epoch:
            return epoch, step + 1
        return (epoch + 1, 0) if self._shuffle else None

    def _from(self, key: tuple[int, int] | None) -> Iterator[IntArray]:
        while key is not None:
            yield self._rows(key)[1]
            key = self._after(key)

    def _fetch(self, key: tuple[int, int]) -> _Fetched:
        """In the thread; on a CPU the images too, on a GPU they are a few launches."""
        units, rows = self._rows(key)
        if key != self._expected:
            self._loader.follow(self._from(key))
        self._expected = self._after(key)
        frames = self._loader.gather(rows)
        draws = None
        if self._policy is not None:
            names = self.table.names[units]
            draws = draw(self._policy, seed=self._seed, epoch=key[0], samples=names)
        on_gpu = frames.device.type == "cuda"
        return _Fetched(
            rows=rows,
            labels=torch.from_numpy(self.table.labels[units]),
            frames=frames,
            draws=draws,
            images=None if on_gpu else self._augment(frames, draws),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Fetched:
    """A batch as the thread leaves it."""

    rows: IntArray
    labels: Tensor
    frames: Tensor
    draws: Draws | None
    images: Tensor | None
