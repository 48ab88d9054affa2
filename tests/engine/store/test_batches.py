"""Units, qualities and order of an epoch; the same batches whatever loads them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dfmtest_store import make_store, write_store
from dfmtest_store_clips import StoreAsClips

from dfm_engine.errors import UsageError
from dfm_engine.pixels import images_from_frames
from dfm_engine.store.augment import AugmentPolicy, FusedAugment
from dfm_engine.store.batches import Batches, SampleTable
from dfm_engine.store.frames import Store
from dfm_engine.store.index import StoreIndex
from dfm_engine.store.loader import open_loader

POLICY = AugmentPolicy(horizontal_flip=0.5, crop=0.75, brightness=0.2)
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """6 people, a real clip and two fakes each, 4 frames, 3 qualities: 216 rows, 72 units."""
    return make_store(tmp_path_factory.mktemp("s") / "store", fakes=2, size=16)


def batches_of(store: Store, mode="memmap", table: SampleTable | None = None, **how) -> Batches:
    loader = open_loader(store, mode, data="/data", sampler=StoreAsClips(store))
    augment = FusedAugment(store.meta, size_px=12, crop=0.75, **PLAIN)
    return Batches(
        table or SampleTable.of(store.index), loader, augment, **({"batch_size": 8} | how)
    )


def unit_of(store: Store, row: int) -> tuple[str, str, int]:
    clip = store.index.clips[store.index.clip[row]]
    return clip.label, clip.clip_id, int(store.index.frame[row])


def test_a_unit_is_a_frame_of_a_clip_in_all_its_qualities(store: Store):
    table = SampleTable.of(store.index)
    assert table.qualities == ("raw", "c23", "c40")
    assert table.rows.shape == (72, 3)
    assert sorted(table.rows.ravel()) == list(range(216))
    for unit, rows in enumerate(table.rows):
        assert len({unit_of(store, row) for row in rows}) == 1
        found = [store.index.clips[store.index.clip[row]].quality for row in rows]
        assert found == ["raw", "c23", "c40"]
        assert table.labels[unit] == store.index.labels[rows[0]]
    assert len(table.first_unit) == 18
    assert np.bincount(table.clips).tolist() == [4] * 18
    assert (table.clips[table.first_unit] == np.arange(18)).all()


def test_a_table_holds_one_split_and_one_quality(store: Store):
    part = SampleTable.of(store.index, split="val", quality="c40")
    assert part.rows.shape == (24, 1)
    for row in part.rows[:, 0]:
        clip = store.index.clips[store.index.clip[row]]
        assert (clip.split, clip.quality) == ("val", "c40")
    whole = SampleTable.of(store.index)
    name_of = dict(zip(whole.rows[:, 2].tolist(), whole.names.tolist(), strict=True))
    assert [name_of[row] for row in part.rows[:, 0]] == part.names.tolist()
    some = [clip for clip in store.index.clips if clip.split != "test"]
    frames = store.index.frame[: 4 * len(some)]
    index = StoreIndex([replace(c, first_row=4 * n) for n, c in enumerate(some)], frames)
    with pytest.raises(UsageError, match=r"split test in quality raw.*splits are train, val"):
        SampleTable.of(index, split="test", quality="raw")


def test_clips_without_a_quality_are_drawn_from_like_any(tmp_path: Path):
    store = make_store(tmp_path / "store", identities=2, qualities=(None,), size=16)
    table = SampleTable.of(store.index)
    assert table.qualities == ("",)
    assert len(table) == 16
    with pytest.raises(UsageError, match="its qualities none"):
        SampleTable.of(store.index, quality="c23")


def test_a_missing_quality_costs_its_rows_and_no_unit(store: Store, tmp_path: Path):
    """As after a quarantined file: one clip lacks c23, another all but raw."""
    first, second = store.index.clips[0].clip_id, store.index.clips[3].clip_id
    kept = [
        clip
        for clip in store.index.clips
        if (clip.clip_id, clip.quality) != (first, "c23")
        and not (clip.clip_id == second and clip.quality != "raw")
    ]
    frames = [store.read(np.array(clip.rows)) for clip in kept]
    clips = [replace(clip, first_row=4 * place) for place, clip in enumerate(kept)]
    holed = write_store(tmp_path / "holed", replace(store.meta, shards=()), clips, frames)
    table = SampleTable.of(holed.index)
    assert len(table) == 72
    assert (table.rows < 0).sum() == 3 * 4
    seen: dict[str, Counter[str | None]] = {first: Counter(), second: Counter()}
    for epoch in range(200):
        rows = table.rows_of(np.arange(72), seed=1, epoch=epoch)
        assert (rows >= 0).all()
        for row in rows:
            clip = holed.index.clips[holed.index.clip[row]]
            if clip.clip_id in seen:
                seen[clip.clip_id][clip.quality] += 1
    assert set(seen[second]) == {"raw"}
    assert set(seen[first]) == {"raw", "c40"}
    assert abs(seen[first]["raw"] / 800 - 0.5) < 5 * 0.5 / np.sqrt(800)
    assert len(SampleTable.of(holed.index, quality="c23")) == 72 - 8


def test_an_epoch_shows_every_unit_once_in_a_quality_of_its_own(store: Store):
    batches = batches_of(store, policy=POLICY)
    assert batches.steps_per_epoch == 9
    seen = [np.concatenate([b.rows for b in batches.epoch(epoch)]) for epoch in (0, 1)]
    for rows in seen:
        units = Counter(unit_of(store, row) for row in rows)
        assert len(units) == 72
        assert set(units.values()) == {1}
        qualities = Counter(store.index.clips[store.index.clip[row]].quality for row in rows)
        assert min(qualities.values()) > 10
    assert (seen[0] == seen[1]).sum() < 10
    labels = torch.cat([b.labels for b in batches.epoch(0)])
    assert labels.dtype == torch.int64
    assert labels.tolist() == store.index.labels[seen[0]].tolist()
    batches.close()


@pytest.mark.parametrize("frames", ["one", "all"])
def test_modes_and_resumed_runs_give_the_same_batches(store: Store, frames):
    how = {"policy": POLICY, "frames": frames, "seed": 3, "batch_size": 6}
    reference = batches_of(store, "host", **how)
    wanted = [reference.batch(epoch, step) for epoch in (0, 1) for step in range(3)]
    for mode in ("device", "memmap", "stream"):
        batches = batches_of(store, mode, **how)
        found = [batches.batch(epoch, step) for epoch in (0, 1) for step in range(3)]
        for one, other in zip(wanted, found, strict=True):
            np.testing.assert_array_equal(one.rows, other.rows)
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.labels, other.labels)
        batches.close()
    resumed = batches_of(store, "memmap", **how)
    assert torch.equal(resumed.batch(1, 1).images, wanted[4].images)
    assert torch.equal(resumed.batch(0, 2).images, wanted[2].images)  # and backwards
    assert not torch.equal(
        batches_of(store, **(how | {"seed": 4})).batch(0, 0).images, wanted[0].images
    )


def test_a_sample_looks_the_same_in_any_batch(store: Store):
    """Batch size, ranks and part of the store change the company, not the picture."""

    def pictures(**how) -> dict[int, torch.Tensor]:
        batches = batches_of(store, policy=POLICY, seed=5, **how)
        return {
            int(row): image
            for batch in batches.epoch(2)
            for row, image in zip(batch.rows, batch.images, strict=True)
        }

    whole = pictures()
    ranks = [pictures(rank=rank, world=2, batch_size=4) for rank in (0, 1)]
    assert not ranks[0].keys() & ranks[1].keys()
    assert (ranks[0] | ranks[1]).keys() == whole.keys()
    split = pictures(table=SampleTable.of(store.index, split="train"), batch_size=5)
    assert len(split) == 20
    for some in (*ranks, split):
        for row, image in some.items():
            assert torch.equal(image, whole[row])


def test_ranks_split_the_batches_of_one(store: Store):
    one = batches_of(store, seed=5, batch_size=8).batch(1, 2).rows
    two = [
        batches_of(store, seed=5, batch_size=4, rank=r, world=2).batch(1, 2).rows for r in (0, 1)
    ]
    np.testing.assert_array_equal(np.stack(two, axis=1).ravel(), one)


def test_one_frame_of_each_clip_is_drawn_anew_each_epoch(store: Store):
    batches = batches_of(store, frames="one", batch_size=6)
    assert batches.steps_per_epoch == 3
    drawn: Counter[tuple[str, str, int]] = Counter()
    for epoch in range(120):
        units = [unit_of(store, row) for b in batches.epoch(epoch) for row in b.rows]
        assert len({unit[:2] for unit in units}) == 18
        drawn.update(units)
    assert len(drawn) == 72
    assert max(abs(count / 120 - 0.25) for count in drawn.values()) < 5 * 0.433 / np.sqrt(120)
    batches.close()


def test_balanced_epochs_hold_each_class_alike_and_use_all_of_it_in_time(store: Store):
    batches = batches_of(store, balanced=True)
    assert batches.steps_per_epoch == 6  # of 24 real and 48 fake units
    seen: Counter[tuple[str, str, int]] = Counter()
    for epoch in range(8):
        rows = np.concatenate([b.rows for b in batches.epoch(epoch)])
        assert store.index.labels[rows].sum() == 24
        seen.update(unit_of(store, row) for row in rows)
    assert len(seen) == 72
    assert {count for unit, count in seen.items() if unit[0] == "real"} == {8}
    batches.close()
    reals = SampleTable.of(StoreIndex(store.index.clips[:3], store.index.frame[:12]))
    with pytest.raises(UsageError, match="all of one class"):
        batches_of(store, table=reals, balanced=True, batch_size=2)


def test_evaluation_walks_through_all_in_order_and_draws_nothing(store: Store):
    table = SampleTable.of(store.index, split="test", quality="c23")
    batches = batches_of(store, table=table, batch_size=7, shuffle=False)
    assert batches.steps_per_epoch == 4
    walked = list(batches.epoch())
    rows = np.concatenate([b.rows for b in walked])
    assert rows.tolist() == table.rows[:, 0].tolist()
    images = images_from_frames(store.read(rows))[:, :, 2:14, 2:14]
    assert torch.equal(torch.cat([b.images for b in walked]), images)
    batches.close()


def test_less_than_a_batch_is_refused(store: Store):
    with pytest.raises(UsageError, match="72 samples per epoch are fewer than one batch of 73"):
        batches_of(store, batch_size=73)
    with pytest.raises(IndexError):
        batches_of(store).batch(0, 9)
