"""A build on real clips: ten actions cut from filmed clips, filmed sources and stills.

The ranges were chosen from the collection's manifest (`seen`); it does not say to which side a head
tilts, so one tilt serves as one slope and its mirror image as the other.
"""

from __future__ import annotations

import csv
import itertools
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from dfm_engine.actions import Action
from dfm_engine.clip import QUALITIES
from dfm_engine.manifest import read_manifest
from dfm_engine.quarantine import read_quarantine
from dfm_engine.verify import verify_dataset

FRAMES = 10
DRIVING = [  # action, file, its rate, first frame, mirrored
    ("blink", "driving-blink-eyes.mp4", 30, 100, False),
    ("open_mouth", "driving-open-mouth.mp4", 30, 58, False),
    ("yaw", "driving-nod-yaw-surprise.mp4", 30, 252, False),
    ("nod", "driving-nod-yaw-surprise.mp4", 30, 60, False),
    ("right_slope", "driving-lookup-slope-bt601.mp4", 25, 28, False),
    ("left_slope", "driving-lookup-slope-bt601.mp4", 25, 28, True),
    ("look_up", "driving-lookup-slope-bt601.mp4", 25, 77, False),
    ("smile", "driving-smile.mp4", 25, 14, False),
    ("surprise", "driving-nod-yaw-surprise.mp4", 30, 296, False),
    ("embarrassment", "driving-embarrassment-glasses.mp4", 30, 300, False),
]
CLIPS = ["source-landscape-bt709.mp4", "source-portrait-slope.mp4"]
STILLS = ["still-open-mouth.jpg", "still-painting-threequarter.jpg", "still-statue.jpg"]
REFUSED = {"still-animal-alpaca.jpg": "no-face", "cut.mp4": "truncated"}
RECIPE = f"""
kind = "build"
name = "real"
[clips]
max_frames = {FRAMES}
[sources]
require_frontal = false
allow_stills = true
[plan]
per_action = 0
fakes_per_source = 0
max_quarantine_share = 1.0
[screen]
mode = "record"
every_n = 4
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_usable_source_is_driven_through_all_ten_actions(shared, tmp_path):
    faces = shared / "faces"
    real = tmp_path / "real"
    real.mkdir()
    for name in [*CLIPS, *STILLS, "still-animal-alpaca.jpg"]:
        (real / name).symlink_to(faces / name)
    (real / "cut.mp4").write_bytes((faces / CLIPS[1]).read_bytes()[:500_000])
    model = shared / "reference" / "fomm-small"
    (tmp_path / "recipe.toml").write_text(RECIPE)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "dfm_engine.cli", "build-dataset", "--device", "cpu"),
            *("--recipe", str(tmp_path / "recipe.toml"), "--real", str(real)),
            *("--driving", str(write_driving(tmp_path / "driving.csv", faces))),
            *("--weights", str(model / "small-cpk.pth.tar")),
            *("--fomm-config", str(model / "small-128.yaml")),
            *("--out", str(tmp_path / "out"), "--json"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["per_action"] == {action.value: len(CLIPS + STILLS) for action in Action}
    assert summary["problem"] is None

    quarantine = read_quarantine(tmp_path / "out" / "quarantine.parquet")
    assert {row.path: row.kind for row in quarantine} == REFUSED

    rows = read_manifest(tmp_path / "out" / "manifest.parquet")
    fakes = [row for row in rows if row["label"] == "fake"]
    made = Counter((row["source_path"], row["action"], row["quality"]) for row in fakes)
    jobs = itertools.product(CLIPS + STILLS, Action, QUALITIES)
    assert made == {(source, action.value, quality): 1 for source, action, quality in jobs}
    reals = {row["clip_id"]: row for row in rows if row["label"] == "real"}
    for row in fakes:
        assert row["frames"] == FRAMES
        assert row["source_is_still"] == (row["source_path"] in STILLS)
        if row["source_is_still"]:
            assert row["pair_clip_id"] is None
        else:
            assert reals[row["pair_clip_id"]]["source_path"] == row["source_path"]
    assert {row["source_path"] for row in reals.values()} == set(CLIPS)
    driven = {(row["action"], row["driving_path"], row["driving_mirrored"]) for row in fakes}
    assert driven == {(action, file, flip) for action, file, _, _, flip in DRIVING}

    report = verify_dataset(tmp_path / "out")
    assert report.failures == ()
    assert report.clips == {"fake": 50, "real": 2, "refused": 0}
    assert report.files == 3 * 52
    assert report.pairs == 20


def write_driving(path: Path, faces: Path) -> Path:
    """The table of driving clips, beside links to their files."""
    for file in {file for _, file, *_ in DRIVING}:
        (path.parent / file).symlink_to(faces / file)
    with path.open("w", newline="") as table:
        write = csv.writer(table)
        write.writerow(["file", "action", "mirrored", "start_s", "end_s", "consent"])
        for action, file, fps, first, flip in DRIVING:
            start_s, length_s = first / fps, (FRAMES + 1) / 25
            write.writerow([file, action, flip, start_s, start_s + length_s, "tests only"])
    return path
