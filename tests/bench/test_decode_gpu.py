"""The measurements of GPU decoding, run with DALI's CPU decoder where there is no GPU."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from dfmtest_dali import FRAMES, SOFTWARE, vp9
from dfmtest_drawn_clips import draw, encode

from dfm_bench import decode_gpu
from dfm_bench.decode_gpu import (
    DecodeWorkload,
    compare_with_pyav,
    measure_decode,
    session_rows,
    sweep_rows,
    write_odd_clips,
)
from dfm_bench.markdown import markdown_rows
from dfm_bench.measure import Timing
from dfm_engine.errors import CheckFailed, EnvironmentUnfit
from dfm_engine.media.probe import probe
from dfm_engine.nvidia import read_nvidia
from dfm_engine.store.routing import Stream, route

pytest.importorskip("nvidia.dali", reason="DALI is not installed")

SMALL = DecodeWorkload(
    clips=7,
    frames=4,
    size=16,
    threads=(1, 2),
    batches=(2,),
    session_clips=4,
    large=(64, 36),
    mixed=((32, 32), (48, 32)),
    repeats=2,
)


def test_the_sweep_counts_the_frames_of_every_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    paths = [vp9(tmp_path / f"{k}.webm", shift=k) for k in range(2)]
    rows = sweep_rows(paths, SOFTWARE, SMALL, command="again")
    assert len(rows) == 4
    assert [row.variant for row in rows[:2]] == [
        "1 threads, batch 2, 4 frames",
        "2 threads, batch 2, 4 frames",
    ]
    for row, frames in zip(rows, (4, 4, FRAMES, 4), strict=True):
        assert row.shape == (7, frames, 16, 16, 3)
        assert row.rate == pytest.approx(7 * frames / row.median_s)
        assert (row.repeats, row.device, row.command) == (2, "cpu", "again")
    assert rows[2].variant.endswith("all frames")
    assert rows[3].variant.endswith("no index")


def test_how_busy_the_decoder_was_is_a_note_and_names_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = vp9(tmp_path / "a.webm")
    named: list[list[str]] = []
    for busy in (79.6, 81.2):
        monkeypatch.setattr(decode_gpu, "_timed", lambda *_, b=busy: (Timing((1.0,)), b))
        rows = sweep_rows([path], SOFTWARE, SMALL)
        named.append([row.variant for row in rows])
        assert {row.note for row in rows} == {f"NVDEC {busy:.0f} % busy"}
        assert f"| {rows[0].variant}, NVDEC {busy:.0f} % busy |" in markdown_rows(rows)
    assert named[0] == named[1]


def test_sessions_are_timed_for_sizes_alone_sorted_and_in_turn(tmp_path: Path) -> None:
    made: list[tuple[int, int]] = []

    def write(path: Path, width: int, height: int) -> None:
        made.append((width, height))
        vp9(path, 2, width=width, height=height, format="webm")

    rows = session_rows(tmp_path, SOFTWARE, SMALL, write=write)
    assert made == [(64, 48), (64, 36), (32, 32), (48, 32)]
    assert [row.variant for row in rows] == [
        "coded as shown",
        "coded larger than shown",
        "sorted by size",
        "sizes in turn",
    ]
    assert all(row.rate == pytest.approx(4 / row.median_s) for row in rows)


def test_a_right_decoder_a_refusal_and_a_wrong_one_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = vp9(tmp_path / "clip.webm")
    right = compare_with_pyav(path, SOFTWARE, what="VP9")
    assert right.is_right
    assert right.mean is not None
    assert right.mean < 0.5
    encode(tmp_path / "h264.mp4", draw(3))
    refused = compare_with_pyav(tmp_path / "h264.mp4", SOFTWARE, what="H.264")
    assert (refused.is_right, refused.mean) == (False, None)
    assert "Failed to create video decoder" in refused.refused
    real = decode_gpu.DaliRunner.run
    monkeypatch.setattr(
        decode_gpu.DaliRunner,
        "run",
        lambda self, parts: [(p, np.roll(r, 2, 2)) for p, r in real(self, parts)],
    )
    wrong = compare_with_pyav(path, SOFTWARE, what="VP9")
    assert not wrong.is_right
    assert wrong.refused == ""


def test_a_clip_that_the_graph_does_not_take_has_no_rate(tmp_path: Path) -> None:
    encode(tmp_path / "h264.mp4", draw(3))
    with pytest.raises(CheckFailed, match="no rates: the graph does not take"):
        sweep_rows([tmp_path / "h264.mp4"], SOFTWARE, SMALL)


def test_the_odd_clips_are_what_they_are_called(tmp_path: Path) -> None:
    encode(tmp_path / "canonical.mp4", draw(4), options={"crf": "10"})
    odd = write_odd_clips(tmp_path / "odd", tmp_path / "canonical.mp4")
    found = {what: probe(path) for what, path in odd.items()}
    assert {one.verdict for one in found.values()} == {"accept"}
    routes = {what: route(Stream.of_probe(one)) for what, one in found.items()}
    assert {what: r.reason.split(":")[0] for what, r in routes.items() if r.to == "cpu"} == {
        "full range": "full-range",
        "lossless 4:2:0 (crf 0)": "profile",
        "4:4:4": "pixel-format",
        "4:2:2": "pixel-format",
        "10-bit": "pixel-format",
    }
    assert found["BT.709"].colour_matrix == "bt709"
    # All show the same picture: tags and samples belong together.
    first = [next(iter(decode_gpu.read_native_frames(p))).rgb.astype(int) for p in odd.values()]
    assert max(float(np.abs(one - first[0]).mean()) for one in first[1:]) < 3


def test_the_use_of_the_decoder_is_read_while_the_passes_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool, told = tmp_path / "bin" / "nvidia-smi", tmp_path / "told"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\necho 70\necho 90\necho '[N/A]'\n: > {told}\nexec /bin/sleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent))
    with decode_gpu._decoder_use() as use:
        for _ in range(600):
            if told.exists():
                break
            time.sleep(0.05)
        assert use == []
    assert use == [70.0, 90.0]
    assert decode_gpu._use(float(np.mean(use))) == "NVDEC 80 % busy"
    monkeypatch.setenv("PATH", "")
    with decode_gpu._decoder_use() as use:
        pass
    assert use == []


def test_without_a_gpu_there_is_nothing_to_measure(tmp_path: Path) -> None:
    if read_nvidia().gpus:
        pytest.skip("there is a GPU here")
    with pytest.raises(EnvironmentUnfit, match="doctor"):
        measure_decode(tmp_path)
