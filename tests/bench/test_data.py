"""`bench data`, small: no numbers for loaders that differ, shares of a constant batch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dfmtest_store import make_store
from dfmtest_store_clips import StoreAsClips

from dfm_bench import data as module
from dfm_bench.data import DataWorkload, run_bench_data
from dfm_bench.feeding import FeedWorkload, check_modes, modes_of, remarks_on
from dfm_bench.measure import Row, Timing
from dfm_bench.store_fill import FillWorkload
from dfm_engine.errors import CheckFailed
from dfm_engine.store.loader import HostLoader, open_loader

WORKLOAD = DataWorkload(
    fill=FillWorkload(
        people=1, clip_frames=12, drawn_frames=4, frames=4, size=64, passes=1, repeats=1
    ),
    feed=FeedWorkload(batch_size=4, steps=2, repeats=2, gathers=3),
    copies=2,
)


def test_the_way_from_clips_to_a_training_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fill = Row.of("store fill", Timing((1.0,)), amount=1, unit="frames/s", shape=(1,))
    monkeypatch.setattr(module, "fill_rows", lambda *_, **__: (fill,))  # has its own test
    report = run_bench_data(WORKLOAD, out=tmp_path, device="cpu", command="dfm-engine bench data")
    rows = {(row.name, row.variant, row.unit): row for row in report.rows}
    assert fill in report.rows
    decode = rows["decode only", "PyAV, c23", "frames/s"]
    assert decode.rate == pytest.approx(12 / decode.median_s)
    copy = rows["memory copy", "", "frames/s"]
    assert rows["memory copy", "", "GB/s"].rate == pytest.approx(copy.rate * 64 * 64 * 3 / 1e9)
    for mode in ("host", "memmap"):
        gather = rows["gather", mode, "frames/s"]
        assert gather.ceiling == copy.rate
        assert gather.repeats == 3
        per_byte = rows["gather", mode, "GB/s"]
        assert per_byte.share == pytest.approx(gather.share)
        trained = rows["train small-cnn", mode, "frames/s"]
        assert trained.ceiling == rows["train small-cnn", "one constant batch", "frames/s"].rate
        assert trained.rate == pytest.approx(8 / trained.median_s)
    assert ("decode again, in order", "stream", "frames/s") in rows
    assert len([row for row in report.rows if row.name == "fused step"]) == 3
    written = json.loads((tmp_path / f"{report.name}.json").read_text())
    assert written["verb"] == "data"
    assert not list(tmp_path.glob("store-*"))
    assert (tmp_path / "fill-1x12" / "0.c23.mp4").is_file()  # for the next time


def test_loaders_that_differ_have_no_numbers(tmp_path: Path):
    store = make_store(tmp_path / "store", identities=3, size=16)
    workload = replace(WORKLOAD.feed, batch_size=8)
    sound = {
        mode: open_loader(store, mode, data="/data", sampler=StoreAsClips(store))
        for mode in ("host", "memmap", "device", "stream")
    }
    check_modes(sound, workload)

    class Wrong(HostLoader):
        def gather(self, rows: np.ndarray) -> torch.Tensor:
            frames = super().gather(rows)
            frames[-1, 3, 3, 1] ^= 1
            return frames

    wrong = Wrong(store, torch.device("cpu"), mode="memmap")
    with pytest.raises(CheckFailed, match="memmap gives another batch than host in epoch 0"):
        check_modes({"host": sound["host"], "memmap": wrong}, workload)
    assert CheckFailed.exit_code == 5


def test_a_training_that_waits_is_named():
    def row(variant: str, rate: float, cpu_s: float) -> Row:
        return Row.of(
            "train x", Timing((1.0,), (cpu_s,)), amount=rate, unit="frames/s", shape=(1,),
            variant=variant, ceiling=None if variant.startswith("one") else 100.0,
        )  # fmt: skip

    constant, fine = row("one constant batch", 100.0, 1.0), row("host", 95.1, 2.0)
    late = row("memmap", 80.0, 0.9)  # 0.01125 core-seconds a frame in place of 0.01
    assert remarks_on([constant, fine], load_per_core=4.0) == ()
    (quiet,) = remarks_on([constant, fine, late], load_per_core=0.1)
    assert quiet.startswith("A training from memmap keeps 80.0% of its rate")
    assert quiet.endswith("12.5% more processor time.")
    assert "(4.0 each)" in remarks_on([constant, late], load_per_core=4.0)[1]


def test_the_modes_of_a_gpu_begin_with_its_memory():
    assert modes_of(torch.device("cuda")) == ("device", "host", "memmap")
    assert modes_of(torch.device("cpu")) == ("host", "memmap")
