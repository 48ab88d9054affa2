"""Pairs of a store: drawn as published, a function of (seed, step), whatever loads them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dfmtest_store import make_store, write_store

from dfm_engine.errors import UsageError
from dfm_engine.fomm.store_pairs import StorePairs, _Key, open_store_pairs
from dfm_engine.fomm.train import run_train_fomm
from dfm_engine.fomm.train_recipe import Augment, TrainFommRecipe
from dfm_engine.media.encode import rgb_to_i420
from dfm_engine.pixels import images_from_frames
from dfm_engine.store.frames import Store
from dfm_kernels.crop import crop

CPU = torch.device("cpu")
STILL = Augment(
    time_flip=False, horizontal_flip=False, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0
)


def batch_of(pairs: StorePairs, step: int, *, frame_px: int = 32):
    return pairs.batch(step, rows=2, frame_px=frame_px, supervision=1.0)


def all_rows(pairs: StorePairs, epochs: int) -> np.ndarray:
    steps = range(epochs * pairs.steps_per_epoch)
    return np.concatenate([pairs.rows_of(_Key(step, 2, 32)) for step in steps])


def test_a_batch_is_a_function_of_seed_and_step(filmed: TrainFommRecipe, stored: Store) -> None:
    one, other = (StorePairs(filmed, stored, device=CPU) for _ in range(2))
    for step in range(3):
        batch_of(one, step)
    late, direct = batch_of(one, 3), batch_of(other, 3)
    assert torch.equal(late.source, direct.source)
    assert torch.equal(late.theta, direct.theta)  # pyright: ignore[reportArgumentType]
    assert not torch.equal(batch_of(other, 4).source, direct.source)
    assert one.steps_per_epoch == 2 * 8 // 2  # identities x repeats / batch
    seeded = replace(filmed, schedule=replace(filmed.schedule, seed=1))
    assert not torch.equal(
        batch_of(StorePairs(seeded, stored, device=CPU), 3).source, direct.source
    )


@pytest.mark.parametrize("loader", ["device", "memmap"])
def test_the_loader_does_not_change_a_batch(
    filmed: TrainFommRecipe, stored: Store, loader: str
) -> None:
    wanted = StorePairs(filmed, stored, device=CPU)
    other = replace(filmed, data=replace(filmed.data, loader=loader))
    found = StorePairs(other, stored, device=CPU)
    assert (wanted.describe()["loader"], found.describe()["loader"]) == ("host", loader)
    for step in (0, 1, 9):
        ours, theirs = batch_of(found, step), batch_of(wanted, step)
        for (name, tensor), (_, expected) in zip(ours.tensors(), theirs.tensors(), strict=True):
            assert torch.equal(tensor, expected), name


def test_pairs_are_frames_of_one_clip_in_order_of_time(
    filmed: TrainFommRecipe, stored: Store
) -> None:
    pairs = StorePairs(replace(filmed, augment=STILL), stored, device=CPU)
    for step in range(4):
        rows = pairs.rows_of(_Key(step, 2, 32))
        batch = batch_of(pairs, step)
        for column, images in enumerate((batch.source, batch.driving)):
            wanted = images_from_frames(stored.read(rows[:, column]))
            assert torch.allclose(images, wanted, atol=1e-7)
        assert batch.target is batch.driving
    rows = all_rows(pairs, 60)
    assert (stored.index.clip[rows[:, 0]] == stored.index.clip[rows[:, 1]]).all()
    assert (rows[:, 0] <= rows[:, 1]).all()
    # with replacement: one in five of five frames is a pair of equals
    share = (rows[:, 0] == rows[:, 1]).mean()
    assert abs(share - 0.2) < 5 * np.sqrt(0.16 / len(rows))


def test_an_epoch_visits_every_identity_equally_and_its_clips_in_turn(
    filmed: TrainFommRecipe, stored: Store
) -> None:
    pairs = StorePairs(filmed, stored, device=CPU)
    clips = stored.index.clip[all_rows(pairs, 1)[:, 0]]
    assert Counter(stored.index.clips[c].identity for c in clips) == {"id1": 8, "id2": 8}
    counts = np.bincount(stored.index.clip[all_rows(pairs, 40)[:, 0]])
    assert counts[2] == 320
    assert abs(counts[0] / 320 - 0.5) < 5 * 0.5 / np.sqrt(320)
    each = replace(filmed, data=replace(filmed.data, id_sampling=False))
    pairs = StorePairs(each, stored, device=CPU)
    assert pairs.steps_per_epoch == 3 * 8 // 2
    clips = stored.index.clip[all_rows(pairs, 1)[:, 0]]
    assert np.bincount(clips).tolist() == [8, 8, 8]


def test_both_frames_are_changed_alike(filmed: TrainFommRecipe, stored: Store) -> None:
    flips = replace(filmed, augment=replace(STILL, time_flip=True, horizontal_flip=True))
    pairs = StorePairs(flips, stored, device=CPU)
    seen: Counter[str] = Counter()
    for step in range(30):
        rows = pairs.rows_of(_Key(step, 2, 32))
        batch = batch_of(pairs, step)
        for row in range(2):
            first, second = images_from_frames(stored.read(rows[row]))
            ways = {
                "as is": (first, second),
                "time": (second, first),
                "mirrored": (first.flip(2), second.flip(2)),
            }
            found = [
                name
                for name, (source, driving) in ways.items()
                if torch.allclose(batch.source[row], source, atol=1e-7)
                and torch.allclose(batch.driving[row], driving, atol=1e-7)
            ]
            assert found
            seen[found[0]] += 1
    assert min(seen["as is"], seen["time"], seen["mirrored"]) >= 5


def test_smaller_phases_see_the_same_frames_by_the_crop_rule(
    filmed: TrainFommRecipe, stored: Store
) -> None:
    pairs = StorePairs(replace(filmed, augment=STILL), stored, device=CPU)
    batch = batch_of(pairs, 5, frame_px=16)
    stored_frames = torch.from_numpy(stored.read(pairs.rows_of(_Key(5, 2, 16))[:, 0]))
    wanted = images_from_frames(crop(stored_frames, (0.0, 0.0, 32.0, 32.0), 16))
    # rounded to whole levels: a tie may fall to either side
    assert (batch.source - wanted).abs().max() < 1.01 / 255
    assert ((batch.source - wanted).abs() > 1e-6).float().mean() < 0.01


def test_a_store_of_planes_gives_the_same_pictures(
    filmed: TrainFommRecipe, stored: Store, tmp_path: Path
) -> None:
    frames = [rgb_to_i420(stored.read(np.array(clip.rows))) for clip in stored.index.clips]
    planes = write_store(
        tmp_path / "planes", replace(stored.meta, layout="i420", shards=()), stored.index.clips,
        frames,
    )  # fmt: skip
    still = replace(filmed, augment=STILL)
    found = batch_of(StorePairs(still, planes, device=CPU), 2).source
    wanted = batch_of(StorePairs(still, stored, device=CPU), 2).source
    assert (found - wanted).abs().mean() < 0.05  # chroma at half size
    levels = found * 255
    assert torch.allclose(levels, levels.round(), atol=1e-4)


def test_unseen_pairs_come_from_the_split_test(filmed: TrainFommRecipe, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", identities=6, size=32)
    pairs = StorePairs(filmed, store, device=CPU)
    assert pairs.describe()["clips"] == 2  # real, of the split train, raw alone
    shown = {store.index.clips[store.index.clip[row]] for row in all_rows(pairs, 2).ravel()}
    assert {(clip.label, clip.split, clip.quality) for clip in shown} == {("real", "train", "raw")}
    batch = pairs.sample(rows=6, frame_px=32)
    unseen = images_from_frames(
        store.read(store.index.rows(split="test", quality="raw", label="real"))
    )
    for image in torch.cat([batch.source, batch.driving]):
        assert any(torch.allclose(image, other, atol=1e-7) for other in unseen)
    assert torch.equal(batch.source, pairs.sample(rows=6, frame_px=32).source)


def test_stores_that_cannot_train_are_refused(filmed: TrainFommRecipe, tmp_path: Path) -> None:
    small = make_store(tmp_path / "small", size=16)
    with pytest.raises(UsageError, match=r"frames of 16 px.*takes 32: prepare it with --size 32"):
        StorePairs(filmed, small, device=CPU)
    many = replace(filmed, schedule=replace(filmed.schedule, batch_size=50))
    fair = make_store(tmp_path / "fair", size=32)
    with pytest.raises(UsageError, match=r"2 identities x 8 repeats.*batch of 50"):
        StorePairs(many, fair, device=CPU)
    clips = [
        replace(clip, first_row=4 * number)
        for number, clip in enumerate(c for c in fair.index.clips if c.split == "test")
    ]
    frames = [np.zeros((4, 32, 32, 3), np.uint8)] * len(clips)
    tests = write_store(tmp_path / "tests", replace(fair.meta, shards=()), clips, frames)
    with pytest.raises(UsageError, match="none of them to train on"):
        StorePairs(filmed, tests, device=CPU)
    with pytest.raises(UsageError, match="give their folder, or a frame store of them, as --data"):
        run_train_fomm(filmed, out=tmp_path / "run", device="cpu")


def test_a_run_on_a_store_resumes_to_the_bit(
    filmed: TrainFommRecipe, stored: Store, tmp_path: Path
) -> None:
    how = {"data": stored.path, "device": "cpu"}
    whole = run_train_fomm(filmed, out=tmp_path / "whole", steps=4, **how)
    run_train_fomm(filmed, out=tmp_path / "cut", steps=2, **how)
    cut = run_train_fomm(filmed, out=tmp_path / "cut", steps=4, **how)
    assert cut.last_loss == whole.last_loss
    assert whole.weights.read_bytes() == cut.weights.read_bytes()


def test_a_folder_of_clips_becomes_a_store_first(
    filmed: TrainFommRecipe, clips: Path, stored: Store, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    pairs = open_store_pairs(filmed, clips, device=CPU, out=out)
    found = Store.open(out / "store")
    assert [clip.identity for clip in found.index.clips] == ["id1", "id1", "id2"]
    np.testing.assert_array_equal(found.read(np.arange(15)), stored.read(np.arange(15)))
    wanted = StorePairs(filmed, stored, device=CPU)
    assert torch.equal(batch_of(pairs, 3).source, batch_of(wanted, 3).source)
    made = (out / "store" / "meta.json").read_bytes()
    result = run_train_fomm(filmed, out=out, data=clips, steps=1, device="cpu")
    assert (out / "store" / "meta.json").read_bytes() == made
    run = json.loads((out / "run.json").read_text())
    assert (run["data"]["clips"], run["data"]["frames"]) == (3, 15)
    assert np.isfinite(result.last_loss)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError):
        run_train_fomm(filmed, out=tmp_path / "x", data=tmp_path / "empty", device="cpu")
