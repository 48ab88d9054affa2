from __future__ import annotations

import json
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dfmtest_store import make_store, write_store

from dfm_engine.clip import Box
from dfm_engine.columns import read_table
from dfm_engine.errors import CheckFailed, DfmError, EnvironmentUnfit, InputError, ShapeError
from dfm_engine.store import frames as frames_module
from dfm_engine.store.frames import Store
from dfm_engine.store.index import COLUMNS, StoredClip, StoreIndex
from dfm_engine.store.meta import StoreMeta, shard_path
from dfm_engine.store.shards import ShardWriter


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("store") / "s")


def test_rows_read_in_any_order_are_those_that_were_written(tmp_path: Path) -> None:
    made = make_store(tmp_path, identities=3, frames=3, size=16)
    flat = np.concatenate([np.fromfile(file, np.uint8) for file in sorted_shards(tmp_path)])
    flat = flat.reshape(-1, 16, 16, 3)
    assert len(sorted_shards(tmp_path)) == 4
    assert made.rows == len(flat) == 3 * 2 * 3 * 3
    rows = np.random.default_rng(0).integers(0, made.rows, 40)
    np.testing.assert_array_equal(made.read(rows), flat[rows])
    out = np.full((40, 16, 16, 3), 7, np.uint8)
    assert made.read(rows, out) is out
    np.testing.assert_array_equal(out, flat[rows])
    assert made.read(np.empty(0, np.int64)).shape == (0, 16, 16, 3)


def test_a_store_of_many_shards_needs_few_open_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames_module, "MAPPED_SHARDS", 3)
    made = make_store(tmp_path, identities=5, frames=2, size=16, clips_per_shard=1)
    assert len(sorted_shards(tmp_path)) == 30
    flat = np.concatenate([np.fromfile(file, np.uint8) for file in sorted_shards(tmp_path)])
    flat = flat.reshape(-1, 16, 16, 3)
    before = open_files()
    np.testing.assert_array_equal(made.read(np.arange(60)), flat)
    assert 0 < open_files() - before <= 3
    copy = pickle.loads(pickle.dumps(made))
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, 60, 40) for _ in range(32)]
    with ThreadPoolExecutor(4) as pool:
        for rows, frames in zip(batches, pool.map(copy.read, batches), strict=True):
            np.testing.assert_array_equal(frames, flat[rows])
    assert open_files() - before <= 6
    highest = 0
    for number, shard in enumerate(copy.each_shard()):
        highest = max(highest, open_files())
        np.testing.assert_array_equal(shard, flat[2 * number : 2 * number + 2])
    assert highest - before <= 8


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_frames_of_i420_are_one_half_of_rgb(tmp_path: Path) -> None:
    made = make_store(tmp_path, identities=2, size=16, layout="i420")
    assert made.meta.frame_shape == (24, 16)
    assert made.meta.frame_bytes == 384
    assert made.read(np.array([0, 5])).shape == (2, 24, 16)
    luma = made.read(np.arange(made.rows))[:, :16]
    assert 16 <= luma.min() <= luma.max() <= 235


def test_reading_rows_that_are_not_there_is_an_error(store: Store) -> None:
    for rows in ([0, store.rows], [-1]):
        with pytest.raises(IndexError, match=f"a store that has {store.rows}"):
            store.read(np.array(rows))
    with pytest.raises(ShapeError, match="rows must be integers"):
        store.read(np.array([0.5]))
    with pytest.raises(ShapeError, match="out must be uint8"):
        store.read(np.array([0]), np.empty((1, 2, 2, 3), np.uint8))


def test_the_index_says_which_frame_each_row_is(store: Store) -> None:
    index = store.index
    clip = index.clips[7]
    assert list(clip.rows) == [28, 29, 30, 31]
    assert index.clip[28:32].tolist() == [7] * 4
    assert index.frame[28:32].tolist() == [0, 10, 20, 30]
    assert index.clip.dtype == index.frame.dtype == np.int32
    assert index.of_clips([7, 0]).tolist() == [28, 29, 30, 31, 0, 1, 2, 3]
    assert index.labels.tolist() == [int(index.clips[c].is_fake) for c in index.clip]


@pytest.mark.parametrize(
    "wanted", [{}, {"split": "test"}, {"quality": "c40", "label": "fake"}, {"split": "none"}]
)
def test_rows_are_chosen_by_what_their_clips_are(store: Store, wanted: dict[str, str]) -> None:
    rows = store.index.rows(**wanted)
    assert rows.dtype == np.int64
    expected = [
        row
        for row, place in enumerate(store.index.clip)
        if all(getattr(store.index.clips[place], name) == value for name, value in wanted.items())
    ]
    assert rows.tolist() == expected
    assert bool(expected) == (wanted != {"split": "none"})


def test_the_index_survives_the_disk_with_equal_bytes(tmp_path: Path) -> None:
    clip = StoredClip(
        key="a",
        path=r"odd \xff.mp4",
        clip_id="0" * 16,
        label="real",
        identity="anna",
        sha256="f" * 64,
        first_row=0,
        frames=2,
        clip_frames=9,
        box=Box(-1.5, 0, 20.25, 21.75),
    )
    other = replace(clip, key="b", box=None, first_row=2, frames=1, label="fake", action="nod")
    index = StoreIndex([clip, other], np.array([3, 8, 4], np.int32))
    index.write(tmp_path)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    again = StoreIndex.read(tmp_path)
    assert again.clips == (clip, other)
    assert again.frame.tolist() == [3, 8, 4]
    again.write(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first
    assert read_table(COLUMNS, tmp_path / "clips.parquet")[0]["box_x0"] == -1.5


def test_an_index_whose_clips_leave_a_gap_is_refused() -> None:
    clip = StoredClip(
        key="a", path="a", clip_id="a", label="real", identity="a", sha256="", first_row=1,
        frames=2, clip_frames=2,
    )  # fmt: skip
    with pytest.raises(InputError, match="inconsistent: 1 clips of 2 frames, 2 rows"):
        StoreIndex([clip], np.zeros(2, np.int32))


def test_a_folder_that_is_no_store_and_a_half_store_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no frame store .*dfm-engine prepare"):
        Store.open(tmp_path)
    (tmp_path / "prepare.json").write_text("{}")
    with pytest.raises(InputError, match=r"is not finished: its meta.json is absent; run the same"):
        Store.open(tmp_path)


def test_a_store_of_another_version_is_refused(tmp_path: Path) -> None:
    make_store(tmp_path, identities=1)
    facts = json.loads((tmp_path / "meta.json").read_bytes())
    (tmp_path / "meta.json").write_text(json.dumps(facts | {"version": 2}))
    with pytest.raises(InputError, match="is of version 2"):
        Store.open(tmp_path)
    (tmp_path / "meta.json").write_text(json.dumps(facts | {"colour": "blue"}))
    with pytest.raises(InputError, match="does not parse"):
        Store.open(tmp_path)


def test_a_shard_of_another_length_is_refused_when_opening(tmp_path: Path) -> None:
    make_store(tmp_path, identities=2, size=16)
    shard = shard_path(tmp_path, 1)
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=rf"00001.u8' has {len(whole) - 1} bytes instead of"):
        Store.open(tmp_path)
    shard.unlink()
    with pytest.raises(InputError, match=r"00001\.u8' is absent instead of"):
        Store.open(tmp_path)


def test_verify_names_the_shard_in_which_one_bit_was_changed(tmp_path: Path) -> None:
    made = make_store(tmp_path, identities=2, size=16)
    seen: list[tuple[int, int]] = []
    made.verify(lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    shard = shard_path(tmp_path, 2)
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CheckFailed, match=r"1 of 3 shards were changed .*: 00002.u8; copy"):
        Store.open(tmp_path).verify()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layout": "nv12"}, "rgb24 or i420, found 'nv12'"),
        ({"layout": "i420", "size_px": 33}, "frames of 33 px cannot be stored as i420"),
        ({"frames_per_clip": -1}, "0 .all. or more, found -1"),
    ],
)
def test_a_description_that_makes_no_sense_is_refused(values: dict, message: str) -> None:
    with pytest.raises(DfmError, match=message):
        StoreMeta(**{"size_px": 32, "layout": "rgb24", "frames_per_clip": 1} | values)


def test_a_shard_that_was_not_committed_leaves_nothing(tmp_path: Path) -> None:
    path = shard_path(tmp_path, 0)
    with ShardWriter(path, frame_bytes=12, rows=4) as shard:
        shard.add(np.ones((2, 2, 2, 3), np.uint8))
    assert list(path.parent.iterdir()) == []
    path.parent.rmdir()
    path.parent.write_text("in the way")
    with pytest.raises(EnvironmentUnfit, match=r"00000.u8': .*; free space or permit writing"):
        ShardWriter(path, frame_bytes=12, rows=4)


def test_a_shard_with_fewer_frames_than_expected_is_as_long_as_they_are(tmp_path: Path) -> None:
    meta = StoreMeta(size_px=2, layout="rgb24", frames_per_clip=3)
    clip = StoredClip(
        key="a", path="a", clip_id="a", label="real", identity="a", sha256="", first_row=0,
        frames=2, clip_frames=2,
    )  # fmt: skip
    with ShardWriter(shard_path(tmp_path, 0), frame_bytes=12, rows=9) as shard:
        shard.add(np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3))
        facts = shard.commit()
    assert shard_path(tmp_path, 0).read_bytes() == bytes(range(24))
    again = write_store(tmp_path, meta, [clip], [np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)])
    assert again.meta.shards == (facts,)


def sorted_shards(path: Path) -> list[Path]:
    return sorted((path / "shards").iterdir())
