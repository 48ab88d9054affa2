"""Limits, reports and what a probe holds; docs/inputs.md's rules are in test_bad_inputs.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dfm_engine.errors import FaceError
from dfm_engine.media.probe import Probe, probe
from dfm_engine.media.probe_command import list_files, run_probe
from dfm_engine.recipe import Limits

REPO = Path(__file__).resolve().parents[3]

# ---- limits --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "limits", "kind"),
    [
        ("ok-moov-front.mp4", Limits(frames=39), "too-long"),
        ("ok-moov-front.mp4", Limits(duration_s=1.5), "too-long"),
        ("ok-moov-front.mp4", Limits(megapixels=0.004), "too-large"),
        ("ok-moov-front.mp4", Limits(file_gib=1e-6), "too-large"),
        ("ok-moov-front.mp4", Limits(short_side_px=65), "no-face"),
        ("ok-moov-front.mp4", Limits(decode_s=1e-9), "too-slow"),
        ("vp9.webm", Limits(megapixels=0.004), "too-large"),
        ("hevc.mp4", Limits(megapixels=0.004), "too-large"),
        ("mpeg2.ts", Limits(megapixels=0.004), "too-large"),
        ("sar-2to1.mp4", Limits(megapixels=0.003), "too-large"),
        ("still-gray.jpg", Limits(megapixels=0.004), "too-large"),
        ("still-gray.jpg", Limits(short_side_px=65), "no-face"),
    ],
)
def test_limit_is_kept(made: Path, name: str, limits: Limits, kind: str) -> None:
    result = probe(made / name, limits=limits)
    assert (result.verdict, result.error) == ("reject", kind)


def test_limits_reached_exactly_are_accepted(made: Path) -> None:
    limits = Limits(frames=40, duration_s=39 / 25, megapixels=64 * 64 / 1e6, short_side_px=64)
    assert probe(made / "ok-moov-front.mp4", limits=limits).verdict == "accept"


def test_bombs_take_no_memory(made: Path) -> None:
    names = [
        "header-size-lies.mp4",
        "bomb-sps-65536.h264",
        "still-bomb.png",
        "bomb-sample-count.mp4",
    ]
    folder = REPO.parent / "shared" / "bad-inputs"
    paths = [str(made / name) for name in names]
    if folder.is_dir():
        paths += [str(folder / n) for n in ("bomb-16000x16000.mp4", "still-bomb-decodable.png")]
    script = (
        "import resource, sys\n"
        "from dfm_engine.media.probe import probe\n"
        f"probe({str(made / 'ok-moov-front.mp4')!r})\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "assert all(probe(path).verdict == 'reject' for path in sys.argv[1:])\n"
        "print(peak() - before)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, *paths], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 8 * 1024  # KiB; one picture of 16000x16000 takes 384 MiB


# ---- the command -----------------------------------------------------------------------------


def test_report_is_ordered_counted_and_ends_with_3_unless_all_are_accepted(made: Path) -> None:
    good, bad = made / "vp9.webm", made / "text-renamed.mp4"
    report = run_probe([good, bad])
    assert [item["verdict"] for item in report.to_json()["files"]] == ["accept", "reject"]
    assert report.to_json()["accepted"] == 1
    assert report.exit_code == 3
    assert run_probe([good]).exit_code == 0
    assert run_probe([]).exit_code == 3
    assert report.lines()[1].endswith(probe(bad).reason)


def test_face_stage_is_asked_only_of_accepted_files_and_its_error_rejects(made: Path) -> None:
    asked: list[tuple[str, bool]] = []

    def faces(path: Path, *, is_still: bool) -> dict[str, Any]:
        asked.append((path.name, is_still))
        if path.name == "hevc.mp4":
            raise FaceError(path, "no-face", "nobody there")
        return {"faces": 2, "warnings": ["several-faces: 2 faces, the larger is taken"]}

    names = ("vp9.webm", "hevc.mp4", "text-renamed.mp4", "still-gray.jpg")
    report = run_probe([made / name for name in names], faces=faces)
    assert asked == [("vp9.webm", False), ("hevc.mp4", False), ("still-gray.jpg", True)]
    files = report.to_json()["files"]
    assert [file["error"] for file in files] == [None, "no-face", "not-a-video", None]
    assert files[0]["warnings"] == ["several-faces: 2 faces, the larger is taken"]
    assert files[0]["face"]["faces"] == 2
    assert files[1]["reason"] == "nobody there"


def test_folder_is_walked_in_order_and_one_named_like_a_clip_is_refused(tmp_path: Path) -> None:
    for name in ("b/two.txt", "a/one.mp4", "b/.hidden", "x.mp4/inside.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = [str(path.relative_to(tmp_path)) for path in list_files(tmp_path)]
    assert found == ["a/one.mp4", "b/two.txt", "x.mp4"]


def test_probe_holds_what_it_promises(made: Path) -> None:
    result = probe(made / "rotate90.mp4")
    assert isinstance(result, Probe)
    assert (result.width, result.height, result.rotation) == (64, 84, 90)
    assert (result.container, result.codec, result.profile) == ("mov", "h264", "High")
    assert (result.pix_fmt, result.colour_matrix, result.colour_range) == (
        "yuv420p", "untagged", "limited",
    )  # fmt: skip
    assert (result.fps, result.duration_s, result.header_frames) == (25.0, 0.48, 12)
    assert (result.vfr, result.interlaced, result.is_still, result.sar) == (
        False,
        False,
        False,
        None,
    )
    assert result.size_bytes == (made / "rotate90.mp4").stat().st_size
    assert probe(made / "sar-2to1.mp4").sar == "2:1"
    assert probe(made / "vfr-jitter.mp4").vfr is True
    damaged = probe(made / "corrupt-mdat-seed3.mp4")
    assert damaged.damaged_frames is not None
    assert damaged.damaged_frames > 0
