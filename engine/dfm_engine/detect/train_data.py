"""What a detector is trained and validated on: units of a store, with the labels they count as.

In: a `Store`, a spec, a recipe. Out: sample tables of the train and val splits, checked so that a
store that cannot train a detector is an error before anything is computed.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfm_engine.detect.detector import DetectorSpec
from dfm_engine.detect.train_recipe import TrainDetectorRecipe
from dfm_engine.errors import UsageError
from dfm_engine.store.augment import FusedAugment
from dfm_engine.store.batches import Batches, SampleTable
from dfm_engine.store.frames import Store
from dfm_engine.store.index import CLIPS, INDEX
from dfm_engine.store.loader import Loader
from dfm_engine.store.meta import META

log = logging.getLogger(__name__)

IntArray = NDArray[np.int64]
_SPLITS = ("train", "val")
_OTHERS = ("val", "test")
_VAL_BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainData:
    """The tables of one training.

    Attributes:
        store: where the frames are.
        train: units of the train split.
        val: quality ("" where clips have none) -> units of the val split, thinned out.
    """

    store: Store
    train: SampleTable
    val: dict[str, SampleTable]

    @classmethod
    def of(cls, store: Store, spec: DetectorSpec, recipe: TrainDetectorRecipe) -> TrainData:
        """Find and check.

        Raises:
            UsageError: no such split or quality, one class alone, frames smaller than the net's
                input, or people in train and in another split where the recipe refuses them.
        """
        where = os.fspath(store.path)
        if store.meta.size_px < spec.input_px:
            raise UsageError(
                f"the store {where!r} has frames of {store.meta.size_px} px, {spec.name} takes "
                f"{spec.input_px}: prepare it again with a larger --size, or set "
                "model.input_px in the recipe"
            )
        found = Counter(clip.split or "none" for clip in store.index.clips)
        for split in _SPLITS:
            if not found[split]:
                shown = ", ".join(f"{name} {count}" for name, count in sorted(found.items()))
                raise UsageError(
                    f"the store {where!r} has no clip in the split {split!r} (clips: {shown}); "
                    "training needs train and val: prepare a data set of `dfm-engine "
                    "build-dataset`, and see that it has identities enough for every split"
                )
        _check_people(store, may_share=recipe.data.shared_identities == "allow")
        quality = recipe.data.quality
        tables = {
            split: SampleTable.of(store.index, split=split, quality=quality) for split in _SPLITS
        }
        for split, table in tables.items():
            counts = np.bincount(table.labels, minlength=2)
            if not counts.all():
                absent = ("real", "fake")[int(counts.argmin())]
                raise UsageError(
                    f"the store {where!r} has no {absent} clip in the split {split!r}"
                    f"{'' if quality == 'mixed' else f' in quality {quality}'}: a detector needs "
                    "both classes in train and val; build with more identities"
                )
        if recipe.data.labels == "shuffled":
            tables = {
                split: shuffle_labels(table, seed=(recipe.schedule.seed, number))
                for number, (split, table) in enumerate(tables.items())
            }
        val = thin_out(tables["val"], frames=recipe.validation.frames)
        return cls(store=store, train=tables["train"], val=by_quality(val))

    @property
    def rows(self) -> IntArray:
        """Every row that training or validation may ask for, ascending."""
        parts = [table.rows.ravel() for table in (self.train, *self.val.values())]
        rows = np.unique(np.concatenate(parts))
        return rows[rows >= 0]

    def class_weights(self, balance: str) -> tuple[float, float]:
        """Of real and fake in the loss; their mean over the training's clips is 1."""
        if balance != "loss":
            return 1.0, 1.0
        labels = self.train.labels[self.train.first_unit]
        real, fake = (len(labels) / (2 * count) for count in np.bincount(labels, minlength=2))
        return float(real), float(fake)

    def identities(self, split: str) -> list[str]:
        """Who is seen in a split, sorted; an evaluation compares them with its own people."""
        return sorted({clip.identity for clip in self.store.index.clips if clip.split == split})

    def facts(self) -> dict[str, Any]:
        """For the card: clips, units and identities of each split."""
        clips = self.store.index.clips
        tables = {"train": self.train, "val": next(iter(self.val.values()))}
        splits: dict[str, Any] = {}
        for split, table in tables.items():
            mine = [clip for clip in clips if clip.split == split]
            ids = {label: {c.clip_id for c in mine if c.label == label} for label in _CLASSES}
            splits[split] = {
                "real_clips": len(ids["real"]),
                "fake_clips": len(ids["fake"]),
                "identities": len({clip.identity for clip in mine}),
                "frames": len(table),
            }
        return {
            "size_px": self.store.meta.size_px,
            "layout": self.store.meta.layout,
            "frames_per_clip": self.store.meta.frames_per_clip,
            "qualities": [name or "as found" for name in self.train.qualities],
            "splits": splits,
            "shared_identities": {
                split: len(people) for split, people in shared_people(self.store).items()
            },
            "sha256": store_digest(self.store),
        }


_CLASSES = ("real", "fake")


class Feed:
    """Batches of a training and of its validation; owns the threads that fetch ahead.

    Behind a frozen backbone the loader gives features in place of frames, and `augment` passes
    them on.
    """

    def __init__(
        self,
        data: TrainData,
        loader: Loader,
        augment: FusedAugment,
        recipe: TrainDetectorRecipe,
        *,
        is_frozen: bool,
    ) -> None:
        schedule = recipe.schedule
        self._train = Batches(
            data.train,
            loader,
            augment,
            batch_size=schedule.batch_size,
            seed=schedule.seed,
            policy=None if is_frozen else recipe.augment,
            frames=recipe.data.frames,
            balanced=recipe.data.balance == "undersample",
        )
        self._val = {
            quality: Batches(table, loader, augment, batch_size=_VAL_BATCH, shuffle=False)
            for quality, table in data.val.items()
        }
        self.steps_per_epoch = self._train.steps_per_epoch

    def batch(self, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and labels of a step."""
        batch = self._train.batch(epoch, step)
        return batch.images, batch.labels

    def validation(self) -> dict[str, Iterator[tuple[Tensor, Tensor]]]:
        """Per quality all inputs and labels of the val split."""
        self._train.wait()  # a loader serves one thread at a time
        return {quality: self._walk(batches) for quality, batches in self._val.items()}

    def close(self) -> None:
        """Stop the threads."""
        for batches in (self._train, *self._val.values()):
            batches.close()

    @staticmethod
    def _walk(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batches.epoch(0):
            yield batch.images, batch.labels


def shared_people(store: Store) -> dict[str, list[str]]:
    """Who of the train split is in another one too: split -> names, sorted; {} where nobody is."""
    seen: dict[str, set[str]] = {}
    for clip in store.index.clips:
        seen.setdefault(clip.split or "none", set()).add(clip.identity)
    shared = {split: sorted(seen.get("train", set()) & seen.get(split, set())) for split in _OTHERS}
    return {split: people for split, people in shared.items() if people}


def _check_people(store: Store, *, may_share: bool) -> None:
    """A net that may know a person by heart is no judge of fakes of that person."""
    shared = shared_people(store)
    if not shared:
        return
    found = " and ".join(
        f"{len(people)} of them in {split} too ({', '.join(people[:5])}"
        f"{', ...' if len(people) > 5 else ''})"
        for split, people in shared.items()
    )
    text = (
        f"the store {os.fspath(store.path)!r} trains on "
        f"{len({clip.identity for clip in store.index.clips if clip.split == 'train'})} people, "
        f"{found}: what it scores there flatters a net that knows them by heart"
    )
    if not may_share:
        raise UsageError(
            f"{text}. Build with the splits identity-disjoint, or move these people's clips to one "
            "part; where equal names mean different people, name them by --identity-csv in "
            "`dfm-engine prepare`. If this is meant, as in the authors' own split, say "
            'shared_identities = "allow" in the [data] of the recipe'
        )
    log.warning("train  %s; the recipe allows it", text)


def shuffle_labels(table: SampleTable, *, seed: tuple[int, ...]) -> SampleTable:
    """Deal the labels out anew among the clips: nothing true can be learned from what comes out.

    All units of a clip keep one label. Real and fake clips each get the same share of both labels
    (to a clip), so not even by chance do the new labels agree with the true ones.
    """
    rng = np.random.default_rng(seed)
    truth = table.labels[table.first_unit]  # (C,)
    dealt = np.empty_like(truth)
    share = truth.mean()
    for label in (0, 1):
        mine = rng.permutation(np.flatnonzero(truth == label))
        fakes = int(len(mine) * share + rng.random())  # rounded either way
        dealt[mine[:fakes]], dealt[mine[fakes:]] = 1, 0
    sizes = np.diff(table.first_unit, append=len(table))
    return replace(table, labels=np.repeat(dealt, sizes))


def thin_out(table: SampleTable, *, frames: int) -> SampleTable:
    """At most `frames` units of each clip, evenly spaced; 0: all."""
    if not frames:
        return table
    sizes = np.diff(table.first_unit, append=len(table))
    chosen = [
        first + np.unique((np.arange(min(frames, size)) + 0.5) * size // min(frames, size))
        for first, size in zip(table.first_unit, sizes, strict=True)
    ]
    return _part(table, np.concatenate(chosen).astype(np.int64))


def by_quality(table: SampleTable) -> dict[str, SampleTable]:
    """One table per quality, of the units that exist in it."""
    tables: dict[str, SampleTable] = {}
    for column, quality in enumerate(table.qualities):
        units = np.flatnonzero(table.rows[:, column] >= 0)
        if len(units):
            part = _part(table, units)
            tables[quality] = replace(
                part, qualities=(quality,), rows=part.rows[:, column : column + 1]
            )
    return tables


def store_digest(store: Store) -> str:
    """SHA-256 over what says which frames and labels a store has."""
    digest = hashlib.sha256()
    for name in (META, CLIPS, INDEX):
        digest.update((store.path / name).read_bytes())
    return digest.hexdigest()


def _part(table: SampleTable, units: IntArray) -> SampleTable:
    _, first, clips = np.unique(table.clips[units], return_index=True, return_inverse=True)
    return SampleTable(
        qualities=table.qualities,
        rows=table.rows[units],
        labels=table.labels[units],
        names=table.names[units],
        clips=clips,
        first_unit=first,
    )


def augment_for(
    spec: DetectorSpec, store: Store, device: torch.device, dtype: torch.dtype
) -> FusedAugment:
    """The fused step that makes this detector's images of this store's frames."""
    return FusedAugment(
        store.meta,
        size_px=spec.input_px,
        mean=spec.mean,
        std=spec.std,
        crop=spec.crop,
        device=device,
        dtype=dtype,
    )
