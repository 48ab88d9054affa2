"""Every mode gives the same bytes; what does not fit, or is damaged, is said."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from dfmtest_store import make_store
from dfmtest_store_clips import StoreAsClips

from dfm_engine.errors import EnvironmentUnfit, InputError, UsageError
from dfm_engine.store import loader as module
from dfm_engine.store.frames import Store
from dfm_engine.store.loader import DeviceLoader, Mode, choose_mode, open_loader
from dfm_engine.store.meta import shard_path
from dfm_engine.store.prefetch import Prefetch


@pytest.fixture(params=["rgb24", "i420"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return make_store(tmp_path / "store", identities=4, layout=request.param, size=16)


def open_mode(store: Store, mode: Mode, device: str = "cpu"):
    return open_loader(store, mode, device=device, data="/data", sampler=StoreAsClips(store))


@pytest.mark.parametrize("mode", ["device", "host", "memmap", "stream"])
def test_every_mode_gives_the_bytes_of_the_store(store: Store, mode: Mode, device: str):
    loader = open_mode(store, mode, device)
    rng = np.random.default_rng(1)
    before = None
    for count in (1, 7, 40, 7):
        rows = rng.integers(0, store.rows, count)
        wanted = torch.from_numpy(store.read(rows))
        frames = loader.gather(rows)
        assert frames.dtype == torch.uint8
        assert frames.device.type == device
        assert torch.equal(frames.cpu(), wanted)
        if before is not None:  # what was gathered is the caller's
            assert torch.equal(*before)
        before = (frames.cpu(), wanted)
    assert loader.mode == mode
    loader.close()


def test_rows_that_are_not_there_are_refused(store: Store):
    for mode in ("device", "host", "memmap"):
        loader = open_mode(store, mode)
        with pytest.raises(IndexError, match=f"of a store that has {store.rows}"):
            loader.gather(np.array([0, store.rows]))
        with pytest.raises(IndexError):
            loader.gather(np.array([-1]))
        with pytest.raises(UsageError, match="must be int64"):
            loader.gather(np.array([0], np.int32))


def test_a_shard_that_was_changed_is_named(store: Store):
    path = shard_path(store.path, 1)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    for mode in ("device", "host"):
        with pytest.raises(InputError, match=r"00001\.u8.* was changed after it was written"):
            open_loader(store.path, mode)
    path.write_bytes(data[:-1])
    with pytest.raises(InputError, match=r"00001\.u8"):
        open_loader(store.path, "memmap")
    path.unlink()
    with pytest.raises(InputError, match=r"00001\.u8.* is absent"):
        open_loader(store.path, "auto")


def test_auto_takes_the_first_that_fits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    gib = 1 << 30
    monkeypatch.setattr(module, "read_memory", lambda: (100 * gib, 60 * gib))
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert choose_mode(35 * gib, cpu) == "host"
    assert choose_mode(36 * gib, cpu) == "memmap"
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (70 * gib, 80 * gib))
    assert choose_mode(50 * gib, gpu) == "device"
    assert choose_mode(51 * gib, gpu) == "memmap"
    assert choose_mode(35 * gib, gpu) == "device"
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (40 * gib, 80 * gib))
    assert choose_mode(35 * gib, gpu) == "host"
    assert open_loader(make_store(tmp_path / "s", identities=1), "auto").mode == "host"


def test_frames_that_do_not_fit_say_what_would(store: Store, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory: tried to allocate\nlong story")

    monkeypatch.setattr(torch, "empty", full)
    for mode in ("device", "host"):
        with pytest.raises(EnvironmentUnfit, match=r"tried to allocate\).* memmap or auto"):
            open_loader(store, mode)


def test_streaming_decodes_each_clip_once_along_the_plan(store: Store):
    sampler = StoreAsClips(store)
    loader = open_loader(store, "stream", data="/data", sampler=sampler)
    plan = np.array_split(np.arange(store.rows), 5)
    loader.follow(plan)
    for rows in plan:
        np.testing.assert_array_equal(loader.gather(rows).numpy(), store.read(rows))
    assert sampler.runs == 1
    keys = [clip.key for clip in store.index.clips]
    assert list(dict.fromkeys(sampler.read)) == keys
    assert len(sampler.read) <= len(keys) + len(plan) - 1  # a border may cut a clip in two
    # what the plan did not say is right as well
    loader.follow(plan)
    other = np.array([5, 0, 5])
    np.testing.assert_array_equal(loader.gather(other).numpy(), store.read(other))
    np.testing.assert_array_equal(loader.gather(plan[0]).numpy(), store.read(plan[0]))


def test_streaming_needs_no_shards_and_names_a_clip_that_changed(store: Store):
    sampler, wanted = StoreAsClips(store), store.read(np.arange(4))
    for number in range(len(store.meta.shards)):
        shard_path(store.path, number).unlink()
    loader = open_loader(store.path, "stream", data="/data", sampler=sampler)
    np.testing.assert_array_equal(loader.gather(np.arange(4)).numpy(), wanted)
    sampler.broken = store.index.clips[1].key
    with pytest.raises(InputError, match=r"decoding again .*ends early.*restore the file"):
        loader.gather(np.arange(8))


def test_streaming_asks_for_the_clips_folder(store: Store):
    with pytest.raises(UsageError, match="give the folder"):
        open_loader(store, "stream")
    with pytest.raises(UsageError, match="device, host, memmap, stream"):
        open_loader(store, "ram")  # pyright: ignore[reportArgumentType]


def test_what_follows_is_made_while_the_present_one_is_used():
    made: list[tuple[int, str]] = []
    may_go = threading.Event()

    def make(number: int) -> int:
        if number == 2:
            assert may_go.wait(10)
        made.append((number, threading.current_thread().name))
        return 10 * number

    with Prefetch(make, lambda n: n + 1 if n < 5 else None) as ahead:
        assert ahead.get(0) == 0
        ahead.wait()
        assert [number for number, _ in made] == [0, 1]
        assert ahead.get(1) == 10  # 2 waits in the thread
        may_go.set()
        assert ahead.get(2) == 20
        assert ahead.get(4) == 40  # out of turn
        assert ahead.get(5) == 50
    numbers = [number for number, _ in made]
    assert sorted(set(numbers)) == numbers or numbers == [0, 1, 2, 3, 4, 5]
    assert all(name.startswith("next-batch") for _, name in made)


def test_an_error_made_ahead_comes_out_where_it_belongs():
    def make(number: int) -> int:
        if number == 1:
            raise InputError("one is broken")
        return number

    with Prefetch(make, lambda n: n + 1) as ahead:
        assert ahead.get(0) == 0
        ahead.wait()
        with pytest.raises(InputError, match="one is broken"):
            ahead.get(1)
        assert ahead.get(2) == 2


@pytest.mark.gpu
def test_a_gathered_batch_survives_while_the_next_are_gathered(tmp_path: Path):
    store = make_store(tmp_path / "store", size=64)
    loader = open_loader(store, "host", device="cuda")
    rows = [np.random.default_rng(n).integers(0, store.rows, 64) for n in range(20)]
    frames = [loader.gather(some) for some in rows]
    for some, found in zip(rows, frames, strict=True):
        assert torch.equal(found.cpu(), torch.from_numpy(store.read(some)))
    assert isinstance(open_loader(store, "auto", device="cuda"), DeviceLoader)
