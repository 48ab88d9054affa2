from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dfm_bench import store_fill
from dfm_bench.store_fill import FillWorkload, fill_rows, make_clips
from dfm_engine.errors import CheckFailed
from dfm_engine.media.decode import read_frames

TINY = FillWorkload(
    people=1, clip_frames=20, drawn_frames=6, frames=4, size=64, passes=1, repeats=1
)


@pytest.mark.slow
def test_the_fill_is_stated_against_a_bare_pass_over_the_same_clips(tmp_path: Path) -> None:
    rows = fill_rows(tmp_path, workload=TINY, command="dfm-engine bench data")
    assert [(row.name.split(",")[0], row.variant) for row in rows] == [
        ("single pass", "bare PyAV, rgb24"),
        ("store fill", "rgb24"),
        ("single pass", "bare PyAV, i420"),
        ("store fill", "i420"),
    ]
    for bare, fill in zip(rows[::2], rows[1::2], strict=True):
        assert bare.ceiling is None
        assert fill.ceiling == bare.rate > 0
        assert bare.rate == pytest.approx(3 * 4 / bare.median_s)  # 3 qualities, 4 frames each
        assert fill.shape == (3, 20, 64, 64, 3)
        assert fill.command == "dfm-engine bench data"
    assert {path.suffix for path in tmp_path.rglob("*.*")} == {".mp4"}  # the stores are gone


@pytest.mark.slow
def test_a_store_that_is_wrong_has_no_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = store_fill._bare_pass
    monkeypatch.setattr(
        store_fill, "_bare_pass", lambda *given: [frame[::-1] for frame in plain(*given)]
    )
    with pytest.raises(CheckFailed, match=r"no numbers: the rgb24 store is .* levels from PyAV's"):
        fill_rows(tmp_path, workload=TINY)


@pytest.mark.slow
def test_clips_run_to_and_fro_and_are_made_once(tmp_path: Path) -> None:
    clips = make_clips(tmp_path, TINY)
    written = [clip.file.stat().st_mtime_ns for clip in clips]
    frames = np.stack(list(read_frames(clips[0].file, fps=None))).astype(int)
    assert len(frames) == 20
    assert np.abs(frames[10] - frames[0]).mean() < 1  # there and back
    assert np.abs(frames[5] - frames[0]).mean() > 1
    again = make_clips(tmp_path, TINY)
    assert [clip.sha256 for clip in again] == [clip.sha256 for clip in clips]
    assert [clip.file.stat().st_mtime_ns for clip in again] == written
