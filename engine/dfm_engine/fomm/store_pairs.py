"""Pairs of frames of one clip, from a frame store: the earlier is the source, the later drives.

As the published training has it: an epoch runs over identities (or clips) `repeats` times; a clip
of the identity is drawn, then two of its frames, with replacement, in order of time. What is drawn
belongs to (seed, epoch, identity and repeat), so nothing depends on the batch or on the loader.

`open_store_pairs` is given a store, or a folder of clips from which it first prepares one.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfm_engine.clip import QUALITIES
from dfm_engine.errors import UsageError
from dfm_engine.fomm import augment
from dfm_engine.fomm.pairs import draw_augmentation, warp_fields
from dfm_engine.fomm.train_recipe import TrainFommRecipe
from dfm_engine.fomm.train_step import Batch
from dfm_engine.store.augment import FusedAugment
from dfm_engine.store.batches import BATCHES_AHEAD
from dfm_engine.store.frames import Store
from dfm_engine.store.index import StoredClip
from dfm_engine.store.loader import open_loader
from dfm_engine.store.meta import META, SETTINGS
from dfm_engine.store.order import Purpose, epoch_order, whole_numbers
from dfm_engine.store.prefetch import Prefetch

__all__ = ["StorePairs", "open_store_pairs"]

log = logging.getLogger(__name__)

IntArray = NDArray[np.int64]
_SAMPLE_SEED = 3


def open_store_pairs(
    recipe: TrainFommRecipe, data: Path, *, device: torch.device, out: Path
) -> StorePairs:
    """Pairs of a store; a folder of clips is first decoded into `out`/store.

    Raises:
        UsageError: no clip, too few for a batch, or `out` was begun with other data.
        InputError: a store that is not whole.
    """
    if not ((data / META).is_file() or (data / SETTINGS).is_file()):
        data = _prepared(recipe, data, out / "store")
    return StorePairs(recipe, Store.open(data), device=device)


def _prepared(recipe: TrainFommRecipe, data: Path, store: Path) -> Path:
    from dfm_engine.store.fill import PrepareOptions, choose_sampler, run_prepare

    wanted = recipe.data
    options = PrepareOptions(
        data=data,
        out=store,
        frames=wanted.frames_per_clip,
        size_px=recipe.model.frame_size[0],
        layout=wanted.layout,
        crop="whole",
        qualities=("raw",),
    )
    sampler = choose_sampler(
        "pyav", size_px=options.size_px, layout=options.layout, workers=wanted.workers
    )
    summary = run_prepare(options, sampler=sampler, workers=wanted.workers, say=log.warning)
    log.info("train  prepared %s: %s", store, summary)
    return store


class _Key(NamedTuple):
    """What a step asks for."""

    step: int
    rows: int
    frame_px: int


class StorePairs:
    """Real clips of a store; see `pairs.Pairs`."""

    def __init__(self, recipe: TrainFommRecipe, store: Store, *, device: torch.device) -> None:
        """Group the clips and make their frames resident.

        Raises:
            UsageError: no clip, frames smaller than the model's, or fewer than one batch per epoch.
        """
        self.recipe, self.device, self.store = recipe, device, store
        side = recipe.model.frame_size[0]
        if store.meta.size_px < side:
            raise UsageError(
                f"the store {os.fspath(store.path)!r} has frames of {store.meta.size_px} px, the "
                f"model of recipe {recipe.name!r} takes {side}: prepare it with --size {side}"
            )
        training, unseen = _parts(store)
        by_name = recipe.data.id_sampling
        self._groups = _Groups.of(training, by_identity=by_name)
        self._unseen = _Groups.of(unseen or training, by_identity=False)
        draws = len(self._groups) * recipe.data.repeats
        self.steps_per_epoch = recipe.schedule.steps_per_epoch or (
            draws // recipe.schedule.batch_size
        )
        if self.steps_per_epoch < 1:
            raise UsageError(
                f"{os.fspath(store.path)}: {len(self._groups)} identities x {recipe.data.repeats} "
                f"repeats are fewer than one batch of {recipe.schedule.batch_size}; lower "
                "schedule.batch_size or raise data.repeats"
            )
        self._loader = open_loader(store, recipe.data.loader, device=device)
        self._fused: dict[int, FusedAugment] = {}
        self._order: tuple[int, IntArray] = (-1, np.empty(0, np.int64))
        self._gathering = Lock()  # a loader serves one thread at a time
        self._ahead = Prefetch(
            self._fetch, lambda key: key._replace(step=key.step + 1), depth=BATCHES_AHEAD
        )

    def batch(
        self, step: int, *, rows: int, frame_px: int, supervision: float, plain: bool = False
    ) -> Batch:
        """See `Pairs.batch`; the next step's frames are gathered meanwhile."""
        frames = self._ahead.get(_Key(step, rows, frame_px))
        stacked = self._pictures(frames, frame_px).unflatten(0, (rows, 2))  # (B, 2, 3, H, W)
        rng = np.random.default_rng([self.recipe.schedule.seed, 2, step])
        drawn = draw_augmentation(self.recipe, rows, rng, plain=plain)
        flip = torch.from_numpy(drawn.time_flip).to(self.device)
        stacked = torch.where(flip[:, None, None, None, None], stacked.flip(1), stacked)
        source, driving = (
            augment.jitter(augment.mirror_frames(stacked[:, index], drawn.mirror), drawn)
            for index in (0, 1)
        )
        return self._batch(
            source, driving, supervision, warp_fields(self.recipe, rows, rng, self.device)
        )

    def sample(self, *, rows: int, frame_px: int) -> Batch:
        """Pairs of the split `test` where there is one, else of the training clips."""
        groups = self._unseen
        names = np.arange(rows)
        chosen = groups.pairs(names % len(groups), names, seed=_SAMPLE_SEED, epoch=0)
        with self._gathering:
            frames = self._loader.gather(chosen.reshape(-1))
        stacked = self._pictures(frames, frame_px).unflatten(0, (rows, 2))
        return self._batch(stacked[:, 0], stacked[:, 1], 1.0, {})

    def describe(self) -> dict[str, object]:
        """Counts, and how the frames are stored."""
        meta = self.store.meta
        return {
            "source": "store",
            "identities": len(self._groups),
            "clips": len(self._groups.first_row),
            "frames": int(self._groups.frames.sum()),
            "size_px": meta.size_px,
            "layout": meta.layout,
            "loader": self._loader.mode,
        }

    def close(self) -> None:
        """Stop the thread and give the frames' memory back."""
        self._ahead.close()
        self._loader.close()

    def rows_of(self, key: _Key) -> IntArray:
        """(B, 2) rows of the store that a step shows."""
        epoch, at = divmod(key.step, self.steps_per_epoch)
        seed, groups = self.recipe.schedule.seed, self._groups
        if self._order[0] != epoch:
            count = len(groups) * self.recipe.data.repeats
            self._order = epoch, epoch_order(count, seed=seed, epoch=epoch)
        order = self._order[1]
        names = order[(at * key.rows + np.arange(key.rows)) % len(order)]
        return groups.pairs(names % len(groups), names, seed=seed, epoch=epoch)

    def _fetch(self, key: _Key) -> Tensor:
        """In the thread."""
        with self._gathering:
            return self._loader.gather(self.rows_of(key).reshape(-1))

    def _pictures(self, frames: Tensor, frame_px: int) -> Tensor:
        """Stored frames as uint8 (N, 3, s, s); colour jitter wants whole levels."""
        if self.store.meta.layout == "rgb24" and self.store.meta.size_px == frame_px:
            return frames.permute(0, 3, 1, 2)
        if frame_px not in self._fused:
            self._fused[frame_px] = FusedAugment(
                self.store.meta,
                size_px=frame_px,
                mean=(0.0, 0.0, 0.0),
                std=(1.0, 1.0, 1.0),
                device=self.device,
                dtype=torch.float32,
            )
        return (self._fused[frame_px](frames) * 255).round().to(torch.uint8)

    def _batch(
        self, source: Tensor, driving: Tensor, supervision: float, warp: dict[str, Tensor]
    ) -> Batch:
        images = [frames.to(torch.float32) / 255 for frames in (source, driving)]
        return Batch(
            source=images[0],
            driving=images[1],
            target=images[1],
            supervision=torch.tensor(supervision, device=self.device),
            **warp,
        )


class _Groups:
    """Clips grouped as an epoch runs over them: by identity, or each by itself."""

    def __init__(self, groups: list[list[StoredClip]]) -> None:
        clips = [clip for group in groups for clip in group]
        self.first_row = np.array([clip.first_row for clip in clips], np.int64)
        self.frames = np.array([clip.frames for clip in clips], np.int64)
        self._clips_of = np.array([len(group) for group in groups], np.int64)
        self._first_clip = np.cumsum(self._clips_of) - self._clips_of

    @classmethod
    def of(cls, clips: list[StoredClip], *, by_identity: bool) -> _Groups:
        groups: dict[str, list[StoredClip]] = {}
        for clip in clips:
            groups.setdefault(clip.identity if by_identity else clip.key, []).append(clip)
        return cls([groups[name] for name in sorted(groups)])

    def __len__(self) -> int:
        return len(self._clips_of)

    def pairs(self, group: IntArray, names: IntArray, *, seed: int, epoch: int) -> IntArray:
        """(N, 2) rows of two frames of a clip of each group, drawn for the names."""
        at = {"seed": seed, "epoch": epoch}
        drawn = whole_numbers(names, self._clips_of[group], purpose=Purpose.CLIP, **at)
        clip = self._first_clip[group] + drawn[:, 0]
        frames = whole_numbers(names, self.frames[clip], purpose=Purpose.FRAME, columns=2, **at)
        return self.first_row[clip, None] + np.sort(frames, axis=1)


def _parts(store: Store) -> tuple[list[StoredClip], list[StoredClip]]:
    """Real clips to train on, and those of the split `test`; of a clip its best quality alone.

    Raises:
        UsageError: none to train on.
    """
    best: dict[str, StoredClip] = {}
    ranks = {quality: rank for rank, quality in enumerate(QUALITIES)}
    for clip in store.index.clips:
        if clip.label == "real" and clip.frames:
            rank = ranks.get(clip.quality or "raw", 0)
            other = best.get(clip.clip_id)
            if other is None or rank < ranks.get(other.quality or "raw", 0):
                best[clip.clip_id] = clip
    clips = list(best.values())
    unseen = [clip for clip in clips if clip.split == "test"]
    training = [clip for clip in clips if clip.split == "train"]
    training = training or [clip for clip in clips if clip.split is None]
    if not training:
        raise UsageError(
            f"the store {os.fspath(store.path)!r} has {len(clips)} real clips, none of them to "
            "train on; prepare one with real clips, in a folder train/ or without parts"
        )
    return training, unseen
