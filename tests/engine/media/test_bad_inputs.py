"""Every rule of docs/inputs.md, on files made here and on the reference collection."""

from __future__ import annotations

import functools
import json
import os
import stat
import time
from pathlib import Path
from typing import Any

import dfmtest_broken_files
import pytest
from dfmtest_tables import read_tables

from dfm_engine.media.decode import read_frames, read_still
from dfm_engine.media.probe import probe
from dfm_engine.media.probe_command import FaceCheck, list_files, run_probe
from dfm_engine.recipe import BuildRecipe

REPO = Path(__file__).resolve().parents[3]
TABLES = read_tables(REPO / "docs" / "inputs.md")
RULES = next(rows for columns, rows in TABLES.items() if "at 25" in columns)
FACE_RULES = next(rows for c, rows in TABLES.items() if c[0] == "question" and "at 25" not in c)
KINDS = {row["kind"] for columns, rows in TABLES.items() if "kind" in columns for row in rows}
FACE_KINDS = {
    "no-face", "face-too-small", "several-faces", "face-lost", "identity-change", "no-motion",
}  # fmt: skip
MANIFEST = REPO.parent / "shared" / "bad-inputs" / "manifest.json"
ENTRIES: list[dict[str, Any]] = (
    json.loads(MANIFEST.read_text(encoding="utf-8"))["files"] if MANIFEST.is_file() else []
)


def by_example(row: dict[str, str]) -> str:
    return row["example"]


def check_rule(folder: Path, row: dict[str, str]) -> None:
    path = folder / row["example"]
    result = probe(path)
    assert (result.verdict, result.error or "-") == (row["verdict"], row["error"]), result.reason
    if row["frames"] != "-":
        assert result.frames == int(row["frames"])
    if row["at 25"] != "-":
        assert sum(1 for _ in read_frames(path)) == int(row["at 25"])
    words = {warning.split(":")[0] for warning in result.warnings}
    assert words == set() if row["warning"] == "-" else row["warning"] in words


@pytest.mark.parametrize("row", RULES, ids=by_example)
def test_rule_holds_on_a_made_file(made: Path, row: dict[str, str]) -> None:
    check_rule(made, row)


@pytest.mark.parametrize("row", RULES, ids=by_example)
def test_rule_holds_on_the_reference_file(shared: Path, row: dict[str, str]) -> None:
    check_rule(shared / "bad-inputs", row)


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(entry, id=entry["file"])
        for entry in ENTRIES
        if entry.get("error") not in FACE_KINDS or entry["group"] != "faces"
    ],
)
def test_manifest_entry(shared: Path, entry: dict[str, Any]) -> None:
    result = probe(shared / "bad-inputs" / entry["file"])
    allowed = {
        "accept": {"accept"},
        "reject": {"reject"},
        "partial": {"partial", "reject"},
        "policy": {"accept", "partial", "reject"},
    }[entry["expect"]]
    assert result.verdict in allowed
    assert result.error == (None if result.verdict == "accept" else entry["error"])
    assert result.error is None or result.error in KINDS
    if result.verdict == "accept":
        assert entry.get("frames") in (None, result.frames)
    if result.sha256 is not None:
        assert result.sha256 == entry["sha256"]


@pytest.fixture(scope="module")
def face_check() -> FaceCheck:
    from dfm_engine.faces.check import check_faces
    from dfm_engine.faces.mtcnn import Mtcnn

    return functools.partial(check_faces, detector=Mtcnn.load("cpu"), recipe=BuildRecipe())


@pytest.mark.parametrize("row", FACE_RULES, ids=by_example)
def test_face_rule_holds_on_the_reference_file(
    shared: Path, row: dict[str, str], face_check: FaceCheck
) -> None:
    report = run_probe([shared / "bad-inputs" / row["example"]], faces=face_check)
    result = report.files[0].probe
    assert (result.verdict, result.error or "-") == (row["verdict"], row["error"]), result.reason


def test_every_face_entry_of_the_collection_has_a_rule() -> None:
    faces = {entry["file"] for entry in ENTRIES if entry["group"] == "faces"}
    assert faces <= {row["example"] for row in FACE_RULES}
    for entry in ENTRIES:
        row = next((row for row in FACE_RULES if row["example"] == entry["file"]), None)
        if row and entry["expect"] != "policy":
            assert (row["verdict"], row["error"]) == (entry["expect"], entry.get("error", "-"))


def test_every_made_file_gets_a_verdict_that_the_page_explains(made: Path) -> None:
    by_name = {row["example"]: row for row in RULES}
    unlisted = {
        "truncated.webm": ("partial", "truncated"),
        "truncated.avi": ("partial", "truncated"),
        "truncated.gif": ("partial", "truncated"),
        "truncated.ts": ("partial", "truncated"),
        "truncated-inside-moov.mp4": ("reject", "truncated"),
        "truncated-inside-moov-front.mp4": ("reject", "truncated"),
        "ftyp-only.mp4": ("reject", "truncated"),
        "corrupt-mdat-seed1.mp4": ("partial", "corrupt"),
        "corrupt-mdat-seed2.mp4": ("partial", "corrupt"),
        "corrupt-mdat-seed4.mp4": ("partial", "corrupt"),
        "corrupt-hevc-seed1.mp4": ("partial", "corrupt"),
        "corrupt-moov-seed2.mp4": ("reject", "corrupt"),
        "corrupt-moov-seed4.mp4": ("reject", "corrupt"),
        "zero-bytes.mp4": ("reject", "empty-file"),
        "still-zero.jpg": ("reject", "empty-file"),
        "text-renamed.mp4": ("reject", "not-a-video"),
        "html-error-page.mp4": ("reject", "not-a-video"),
        "random-bytes.mp4": ("reject", "not-a-video"),
        "ffconcat-renamed.mp4": ("reject", "forbidden-format"),
        "sdp-renamed.mp4": ("reject", "forbidden-format"),
        "audio-only.mp4": ("reject", "no-video-stream"),
        "tall-16x4096.mp4": ("reject", "no-face"),
        "still-bomb-decodable.png": ("reject", "too-large"),
        "still-corrupt.png": ("reject", "corrupt"),
    }
    for name in dfmtest_broken_files.MAKERS:
        result = probe(made / name)
        row = by_name.get(name)
        if row is not None:
            expected = row["verdict"], None if row["error"] == "-" else row["error"]
        else:
            expected = unlisted.get(name, ("accept", None))
        assert (result.verdict, result.error) == expected, (name, result.reason)
        assert (result.error in KINDS) == (result.verdict != "accept")
        assert bool(result.reason) == (result.verdict != "accept")


def test_every_row_names_a_made_file_and_a_known_kind() -> None:
    assert {row["example"] for row in RULES} <= set(dfmtest_broken_files.MAKERS)
    assert {row["error"] for row in (*RULES, *FACE_RULES)} - {"-"} <= KINDS
    assert FACE_KINDS <= KINDS


# ---- what only the file system can do ------------------------------------------------------


@pytest.fixture
def clip(made: Path, tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    path.write_bytes((made / "single-frame.mp4").read_bytes())
    return path


def test_newline_in_a_name_is_accepted_and_escaped(clip: Path) -> None:
    odd = clip.rename(clip.with_name("line\nbreak.mp4"))
    report = run_probe([odd])
    assert report.exit_code == 0
    assert all("\n" not in line for line in report.lines())
    assert json.loads(json.dumps(report.to_json()))["files"][0]["path"].endswith("line\nbreak.mp4")


def test_name_that_is_not_utf8_is_accepted_and_its_json_encodes(clip: Path) -> None:
    odd = os.fsencode(clip.parent) + b"/bad\xff.mp4"
    os.rename(clip, odd)
    report = run_probe([os.fsdecode(odd)])
    assert report.exit_code == 0
    text = json.dumps(report.to_json(), ensure_ascii=False).encode("utf-8")
    assert b"bad\\\\xff.mp4" in text
    report.lines()[0].encode("utf-8")
    assert run_probe([clip.parent]).exit_code == 0  # the same from a folder walk


def test_longest_name_is_accepted_and_a_longer_path_has_the_systems_reason(clip: Path) -> None:
    longest = clip.rename(clip.with_name("n" * 251 + ".mp4"))
    assert probe(longest).verdict == "accept"
    result = probe(clip.parent / ("d/" * 2500 + "x.mp4"))
    assert (result.verdict, result.error) == ("reject", "unreadable")
    assert "too long" in result.reason
    assert probe("null\0byte.mp4").error == "unreadable"


def test_link_loops_end(clip: Path) -> None:
    loop = clip.with_name("loop.mp4")
    loop.symlink_to(loop)
    assert probe(loop).error == "not-a-regular-file"
    folder = clip.parent / "d"
    folder.mkdir()
    (folder / "self").symlink_to("..")
    names = {path.name for path in list_files(clip.parent)}
    assert names == {"clip.mp4", "loop.mp4"}


def test_dangling_link_is_not_found(clip: Path) -> None:
    gone = clip.with_name("gone.mp4")
    gone.symlink_to("missing")
    assert probe(gone).error == "not-found"
    assert probe(clip.with_name("absent.mp4")).error == "not-found"
    assert probe(clip / "below-a-file.mp4").error == "not-found"


def test_fifo_socket_and_device_are_refused_without_waiting(clip: Path) -> None:
    fifo = clip.with_name("pipe.mp4")
    os.mkfifo(fifo)
    started = time.monotonic()
    assert probe(fifo).error == "not-a-regular-file"
    assert probe("/dev/zero").error == "not-a-regular-file"
    assert time.monotonic() - started < 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_is_a_matter_of_permission(clip: Path) -> None:
    clip.chmod(0)
    assert probe(clip).error == "permission"


def test_permission_error_of_the_system_has_its_kind(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert probe(clip).error == "permission"


@pytest.mark.parametrize(
    "name", ["concat:a|b", "data:text", "file:x.mp4", "http:x.mp4", "pipe:0", "subfile,,start,0,:x"]
)
def test_names_that_ffmpeg_takes_for_protocols_are_plain_paths(
    clip: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clip.parent)
    assert probe(name).error == "not-found"
    clip.rename(clip.with_name(name))
    assert probe(name).verdict == "accept"
    assert len(list(read_frames(name))) == 1


def test_pattern_in_a_stills_name_opens_exactly_that_file(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    for name, level in (("still-001.jpg", 40), ("still-%03d.jpg", 200)):
        Image.new("RGB", (32, 32), (level,) * 3).save(tmp_path / name)
    assert abs(int(np.median(read_still(tmp_path / "still-%03d.jpg"))) - 200) <= 2


@pytest.mark.parametrize("change", ["grow", "vanish", "shrink"])
def test_file_that_changes_while_it_is_read_is_truncated(
    made: Path, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dfm_engine.media import probe as module

    path = tmp_path / "clip.mp4"
    path.write_bytes((made / "ok-moov-end.mp4").read_bytes())
    original = module._describe_first

    def describe_and_change(*args: Any) -> None:
        original(*args)
        if change == "grow":
            with path.open("ab") as file:
                file.write(b"more")
        elif change == "shrink":
            os.truncate(path, 3000)
        else:
            path.unlink()

    monkeypatch.setattr(module, "_describe_first", describe_and_change)
    result = probe(path)
    assert (result.error, result.verdict == "accept") == ("truncated", False)


def test_sparse_file_of_10_gib_is_refused_at_once(clip: Path) -> None:
    os.truncate(clip, 10 * 2**30)
    started = time.monotonic()
    result = probe(clip)
    assert (result.verdict, result.error) == ("reject", "too-large")
    assert time.monotonic() - started < 1
    assert stat.S_ISREG(os.stat(clip).st_mode)
