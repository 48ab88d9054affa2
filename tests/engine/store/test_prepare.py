"""`prepare` on clips that have to be looked at, on bad ones, on many, and killed repeatedly."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from dfmtest_drawn_clips import draw

from dfm_engine.clip import Box
from dfm_engine.media.decode import read_frames
from dfm_engine.media.encode import encode_clip, provenance_comment, rgb_to_i420
from dfm_engine.media.probe_command import run_probe
from dfm_engine.quarantine import read_quarantine
from dfm_engine.readers.files import find_media
from dfm_engine.store.fill import PrepareOptions, choose_sampler, run_prepare
from dfm_engine.store.frames import Store
from dfm_engine.store.loader import open_loader
from dfm_engine.store.summary import PrepareSummary

FILL_TURNS = """
import resource, sys
from dataclasses import replace
from pathlib import Path

from dfm_engine.interrupts import StopRequest
from dfm_engine.recipe import Limits
from dfm_engine.store.fill import PrepareOptions, choose_sampler, fill_store
from dfm_engine.store.listing import list_data

if __name__ == "__main__":
    data, out, turns = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    listing = list_data(data)
    clips = tuple(
        replace(clip, key=f"{turn}/{clip.key}", clip_id=f"{turn}/{clip.clip_id}")
        for turn in range(turns)
        for clip in listing.clips
    )
    fill_store(
        PrepareOptions(data=data, out=out, frames=0, size_px=64),
        replace(listing, clips=clips),
        sampler=choose_sampler("pyav", size_px=64, layout="rgb24", workers=2),
        workers=2,
        limits=Limits(),
        stop=StopRequest(),
        progress=False,
    )
    # Not ru_maxrss for this process: it begins with that of the process that started it.
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
"""


def prepare(data: Path, out: Path, *, size: int = 64, frames: int = 4, **more) -> PrepareSummary:
    options = PrepareOptions(data=data, out=out, frames=frames, size_px=size, **more)
    sampler = choose_sampler("pyav", size_px=size, layout=options.layout, workers=2)
    return run_prepare(options, sampler=sampler, workers=2, progress=False)


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def square_clips(folder: Path, count: int, *, frames: int = 12) -> None:
    """Clips that differ, by as many people, in the canonical form."""
    drawn = draw(frames)
    for k in range(count):
        pixels = np.roll(drawn, k, axis=2)
        path = folder / f"p{k % 7}" / f"{k:04d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        comment = provenance_comment({"synthetic": True, "take": k})
        encode_clip(rgb_to_i420(pixels), path, quality="raw", fps=25, comment=comment)


def test_square_clips_of_a_plain_folder_are_taken_whole(tmp_path: Path) -> None:
    square_clips(tmp_path / "data", 3)
    (tmp_path / "data" / "p0" / "9.mp4").write_bytes(b"no clip at all")
    summary = prepare(tmp_path / "data", tmp_path / "out")
    assert (summary.clips, summary.refused, summary.exit_code) == (3, {"not-a-video": 1}, 3)
    (row,) = read_quarantine(tmp_path / "out" / "quarantine.parquet")
    assert (row.path, row.stage) == ("p0/9.mp4", "probe")
    store = Store.open(tmp_path / "out")
    clip = store.index.clips[1]
    assert (clip.path, clip.box, clip.clip_frames) == ("p1/0001.mp4", None, 12)
    decoded = np.stack(list(read_frames(tmp_path / "data" / clip.path, fps=None)))
    np.testing.assert_array_equal(store.read(np.asarray(clip.rows)), decoded[[1, 4, 7, 10]])


@pytest.mark.slow
def test_clips_that_are_not_square_are_cut_to_their_faces(clips: Path, tmp_path: Path) -> None:
    """`clips` shows procedural faces, square; widened, they have to be found again."""
    from dfm_engine.synthetic.clips import write_clip

    for real in sorted((clips / "real").rglob("*.mkv"))[:2]:
        frames = np.stack(list(read_frames(real, fps=None)))
        wide = np.pad(frames, ((0, 0), (0, 0), (64, 0), (0, 0)), mode="edge")
        write_clip(tmp_path / "data" / real.parent.name / "wide.mkv", wide)
    summary = prepare(tmp_path / "data", tmp_path / "face")
    assert (summary.clips, summary.refused) == (2, {})
    for clip in Store.open(tmp_path / "face").index.clips:
        assert isinstance(clip.box, Box)
        assert abs(clip.box.width - clip.box.height) < 1e-6
        assert 64 < (clip.box.x0 + clip.box.x1) / 2 < 192  # in the part that was the clip
    whole = prepare(tmp_path / "data", tmp_path / "whole", crop="whole")
    assert whole.rows == summary.rows
    assert all(clip.box is None for clip in Store.open(tmp_path / "whole").index.clips)


@pytest.mark.slow
def test_bad_files_among_sixty_good_ones_cost_exactly_themselves(
    shared: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    square_clips(data, 60)
    for path in sorted((shared / "bad-inputs").iterdir()):
        if path.is_file() and path.name != "manifest.json":
            shutil.copy(path, data / path.name)
    listed = [file for file in find_media(data).files if not file.is_still]
    probed = {file.relative: run_probe([file.path]).files[0].probe for file in listed}
    rejected = {name for name, probe in probed.items() if probe.verdict != "accept"}
    assert len(rejected) > 20
    assert len(probed) - len(rejected) > 60
    summary = prepare(data, tmp_path / "out", crop="whole")
    rows = read_quarantine(tmp_path / "out" / "quarantine.parquet")
    assert {row.path for row in rows} == rejected
    assert {row.kind for row in rows} == {probed[name].error for name in rejected}
    assert all(row.kind == probed[row.path].error for row in rows)
    assert summary.exit_code == 3
    store = Store.open(tmp_path / "out")
    store.verify()
    stored = {clip.path for clip in store.index.clips}
    accepted = set(probed) - rejected
    assert stored <= accepted  # of equal content one is kept
    assert {probed[name].sha256 for name in stored} == {probed[name].sha256 for name in accepted}
    rows_of_all = np.arange(store.rows)
    wanted = store.read(rows_of_all)
    for mode in ("device", "host", "memmap", "stream"):
        sampler = choose_sampler("pyav", size_px=64, layout="rgb24", workers=2)
        loader = open_loader(store, mode, data=data, sampler=sampler)
        assert loader.mode == mode
        np.testing.assert_array_equal(loader.gather(rows_of_all).numpy(), wanted)
        loader.close()


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    square_clips(tmp_path / "data", 40, frames=30)
    prepare(tmp_path / "data", tmp_path / "whole", frames=0)
    whole = contents(tmp_path / "whole")
    command = [sys.executable, "-m", "dfm_engine.cli", "prepare", "--data", str(tmp_path / "data")]
    command += ["--frames", "0", "--size", "64", "--decode", "pyav", "--out", str(tmp_path / "out")]
    kills, longest_s, rng = 0, 1.5, random.Random(1)
    for _ in range(60):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as run:
            # From the first file on: before there is nothing to lose.
            begun = time.monotonic()
            while not (tmp_path / "out").is_dir() and time.monotonic() - begun < 60:
                time.sleep(0.02)
            try:
                run.wait(rng.uniform(0.05, longest_s) if kills < 8 else 120)
            except subprocess.TimeoutExpired:
                run.send_signal(signal.SIGKILL)
                kills += 1
        if run.returncode == 0 and kills >= 4:
            break
        if run.returncode == 0:  # done before it was killed often enough: again, with less time
            shutil.rmtree(tmp_path / "out")
            kills, longest_s = 0, 0.7 * longest_s
    assert (run.returncode, kills >= 4) == (0, True)
    assert contents(tmp_path / "out") == whole


@pytest.mark.slow
def test_memory_is_flat_in_the_number_of_clips(tmp_path: Path) -> None:
    square_clips(tmp_path / "data", 20, frames=30)
    script = tmp_path / "fill.py"
    script.write_text(FILL_TURNS)
    peaks = []
    for turns in (5, 50):
        out = tmp_path / f"out-{turns}"
        done = subprocess.run(
            [sys.executable, str(script), str(tmp_path / "data"), str(out), str(turns)],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append([float(line) for line in done.stdout.split()])
        assert Store.open(out).rows == turns * 20 * 30
    # 900 more clips are 330 MB of frames; the list of them is a few hundred bytes each.
    for few, many in zip(*peaks, strict=True):
        assert many - few < 30, peaks
    assert max(peaks[1]) < 400
