"""`dataset verify`: a whole data set passes, and each kind of damage is found and named."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from dfmtest_dataset import SPLITS, make_dataset, open_run

from dfm_engine.errors import CheckFailed, UsageError
from dfm_engine.jobs import FileFacts, Marker, RunFolder
from dfm_engine.manifest import read_manifest, rows_from_markers, write_manifest
from dfm_engine.media.encode import provenance_comment
from dfm_engine.verify import verify_dataset

Made = dict[str, Marker]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Made]:
    out = tmp_path_factory.mktemp("whole") / "out"
    return out, make_dataset(out)


@pytest.fixture
def built(tmp_path: Path, whole: tuple[Path, Made]) -> tuple[Path, Made]:
    """A copy to damage."""
    shutil.copytree(whole[0], tmp_path / "out")
    return tmp_path / "out", whole[1]


def problems(out: Path) -> list[str]:
    return [f"{failure.path}: {failure.problem}" for failure in verify_dataset(out).failures]


def finish(out: Path, splits: Mapping[str, str] = SPLITS) -> None:
    """Write the tables anew, as a run would, from whatever markers there are."""
    with open_run(out) as folder:
        markers = folder.committed().values()
        parts = {m.clip_id: splits[m.columns["identity"]] for m in markers}
        folder.write_tables(rows_from_markers(markers, splits=parts), [])


def edit_manifest(out: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Change rows and record the new hash, as only somebody with intent would."""
    path = out / "manifest.parquet"
    rows = read_manifest(path)
    change(rows)
    tables = json.loads((out / "run.json").read_bytes())["tables"]
    tables["manifest.parquet"] = hashlib.sha256(write_manifest(rows, path)).hexdigest()
    with open_run(out) as folder:
        folder.write_run(tables=tables)


def put_file(out: Path, marker: Marker, quality: Any, data: bytes, **columns: Any) -> None:
    """Replace a file and commit it with its hash."""
    facts = FileFacts(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    with open_run(out) as folder:  # which would clear away a file that fits no marker
        (out / marker.path(quality)).write_bytes(data)
        folder.commit(
            replace(
                marker,
                files={**marker.files, quality: facts},
                columns={**marker.columns, **columns},
            )
        )
    finish(out)


def encoded(
    *,
    frames: int = 3,
    side: int = 32,
    rate: int = 25,
    comment: str | None = None,
    tagged: bool = False,
    **options: str,
) -> bytes:
    """A clip from another chain than ours."""
    text = provenance_comment({"synthetic": True}) if comment is None else comment
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        container.metadata["comment"] = text
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = side, side, "yuv420p"
        stream.codec_context.thread_count = 1
        if tagged:
            stream.codec_context.colorspace = 1
        for index in range(frames):
            planes = np.full((side * 3 // 2, side), 40 * index, np.uint8)
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts = index
            if tagged:
                frame.colorspace = 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def test_a_whole_data_set_passes(whole: tuple[Path, Made]) -> None:
    out, made = whole
    seen: list[tuple[int, int]] = []
    report = verify_dataset(out, progress=lambda done, total: seen.append((done, total)))
    assert report.failures == ()
    assert report.is_ok
    report.check()
    assert report.clips == {"real": 2, "fake": 3, "refused": 2}
    assert (report.files, report.pairs) == (16, 3)
    assert report.size_bytes == sum(f.size_bytes for m in made.values() for f in m.files.values())
    assert seen == [(done, 16) for done in range(1, 17)]
    assert json.loads(json.dumps(report.to_json()))["ok"] is True


def test_verifying_writes_nothing_and_needs_no_lock_file(built: tuple[Path, Made]) -> None:
    out, _ = built
    (out / ".lock").unlink()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert verify_dataset(out, workers=1).is_ok
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_it_waits_for_no_run(built: tuple[Path, Made]) -> None:
    out, _ = built
    with open_run(out), pytest.raises(UsageError, match="is under way"):
        verify_dataset(out)
    with pytest.raises(UsageError, match=r"there is no run\.json"):
        verify_dataset(out / "data")


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [40, -700, -100])
def test_a_flipped_bit_anywhere_in_a_file_is_found(built: tuple[Path, Made], where: int) -> None:
    out, made = built
    path = made["fake"].path("c23")
    data = bytearray((out / path).read_bytes())
    data[where] ^= 1
    (out / path).write_bytes(data)
    assert problems(out) == [f"{path}: its sha256 is not the marker's: the file is damaged"]


def test_a_missing_and_a_short_file_are_found(built: tuple[Path, Made]) -> None:
    out, made = built
    gone, short = made["real"].path("raw"), made["fake"].path("c40")
    (out / gone).unlink()
    os.truncate(out / short, 100)
    size = made["fake"].files["c40"].size_bytes
    assert problems(out) == [
        f"{short}: has 100 bytes instead of {size}",
        f"{gone}: cannot be read: No such file or directory",
    ]


def test_files_that_nobody_knows_are_found(built: tuple[Path, Made]) -> None:
    out, made = built
    (out / "data/fake/smile/notes.txt").write_text("?")
    (out / "data/real/none/x.raw.mp4.tmp-12").write_text("?")
    (out / "jobs/x.tmp").write_text("?")
    (out / "notes.txt").write_text("whose?")  # beside the data anybody may keep notes
    shutil.copy(out / made["fake"].path("raw"), out / "data/fake/smile/copy.raw.mp4")
    assert problems(out) == [
        "data/fake/smile/copy.raw.mp4: no marker knows this file",
        "data/fake/smile/notes.txt: no marker knows this file",
        "data/real/none/x.raw.mp4.tmp-12: left by a killed run",
        "jobs/x.tmp: is no marker",
    ]


# --- what files say ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (encoded(crf="24", preset="medium"), "x264_options is .* crf=24.0 .* must be .* crf=23.0"),
        (encoded(crf="23", preset="fast"), "x264_options is .* must be"),
        (encoded(crf="23", preset="medium", profile="main"), "profile is Main, must be High"),
        (encoded(crf="23", preset="medium", tagged=True), "colour_matrix is 1, must be 2"),
        (encoded(crf="23", preset="medium", frames=4), "frames is 4, must be 3"),
        (encoded(crf="23", preset="medium", side=64), "width is 64, must be 32"),
        (encoded(crf="23", preset="medium", rate=24), "fps is 24, must be 25"),
        (encoded(crf="23", preset="medium", comment="{}"), "comment has 2 bytes, must be 512"),
        (
            encoded(crf="23", preset="medium", comment=provenance_comment({"synthetic": False})),
            "comment says synthetic: False, the marker True",
        ),
    ],
    ids=["crf", "preset", "profile", "colour", "frames", "size", "rate", "comment", "not said"],
)
def test_a_file_of_another_chain_is_found_whatever_its_marker_says(
    built: tuple[Path, Made], data: bytes, problem: str
) -> None:
    out, made = built
    put_file(out, made["fake"], "c23", data)
    found = "\n".join(problems(out))
    assert f"{made['fake'].path('c23')}: " in found
    with pytest.raises(CheckFailed, match=problem):
        verify_dataset(out).check()


def test_a_fact_that_tells_the_classes_apart_is_found(built: tuple[Path, Made]) -> None:
    out, made = built
    other = made["of a still"]
    data = encoded(crf="23", preset="medium", side=64)
    put_file(out, other, "c23", data, width=64, height=64)  # its marker tells the truth
    assert "data/*/*/*.c23.mp4: the classes differ in width: real 32, fake 32, 64" in problems(out)


# --- tables and markers --------------------------------------------------------------------------


def test_an_edited_value_in_the_manifest_is_found(built: tuple[Path, Made]) -> None:
    out, made = built
    clip = made["real"].clip_id

    def change(rows: list[dict[str, Any]]) -> None:
        next(row for row in rows if row["clip_id"] == clip)["identity"] = "carl"

    edit_manifest(out, change)
    assert problems(out)[0] == (
        f"manifest.parquet: clip {clip} raw: identity is 'carl', its marker has 'anna'"
    )


def test_a_row_too_many_or_too_few_is_found(built: tuple[Path, Made]) -> None:
    out, made = built

    def change(rows: list[dict[str, Any]]) -> None:
        row = rows.pop()
        rows.append(row | {"clip_id": "0" * 16})

    edit_manifest(out, change)
    lost = max(made["real"].clip_id, made["other real"].clip_id)
    assert {
        f"manifest.parquet: has no row of clip {lost} c40, which is committed",
        f"manifest.parquet: has a row of clip {'0' * 16} c40, which is not committed",
    } <= set(problems(out))


@pytest.mark.parametrize("name", ["manifest.parquet", "quarantine.parquet"])
def test_tables_that_changed_after_the_run_are_found(built: tuple[Path, Made], name: str) -> None:
    out, _ = built
    data = bytearray((out / name).read_bytes())
    data[len(data) // 2] ^= 1
    (out / name).write_bytes(data)
    assert any(p.startswith(f"{name}: its sha256 is") for p in problems(out))
    (out / name).unlink()
    assert any(p.startswith(f"{name}: cannot be read: No such") for p in problems(out))


def test_an_edited_marker_is_found(built: tuple[Path, Made]) -> None:
    out, made = built
    path = out / "jobs" / f"{made['fake'].clip_id}.json"
    path.write_bytes(path.read_bytes().replace(b'"smile"', b'"blink"'))
    found = problems(out)
    assert f"jobs/{path.name}: the marker was changed after it was written" in found
    assert f"{made['fake'].path('raw')}: no marker knows this file" in found


def test_a_lost_marker_is_found(built: tuple[Path, Made]) -> None:
    out, made = built
    (out / "jobs" / f"{made['real'].clip_id}.json").unlink()
    twin = made["real"].clip_id
    found = problems(out)
    assert f"jobs/{made['fake'].clip_id}.json: its real twin {twin} is not committed" in found
    assert f"manifest.parquet: has a row of clip {twin} raw, which is not committed" in found


# --- pairs and splits ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"pair_clip_id": None}, "the fake has no real twin, and its source is no still"),
        ({"pair_clip_id": "0" * 16}, "its real twin 0000000000000000 is not committed"),
        ({"identity": "bert"}, "identity is bert, its real twin's is anna"),
        ({"frames": 4}, "frames is 4, its real twin's is 3"),
    ],
)
def test_a_fake_without_its_twin_is_found(
    built: tuple[Path, Made], changes: dict[str, Any], problem: str
) -> None:
    out, made = built
    fake = made["fake"]
    with open_run(out) as folder:
        folder.commit(replace(fake, columns={**fake.columns, **changes}))
    finish(out)
    assert f"jobs/{fake.clip_id}.json: {problem}" in problems(out)


def test_a_pair_that_only_crosses_itself_is_no_twin(built: tuple[Path, Made]) -> None:
    out, made = built
    fake = made["fake"]
    with open_run(out) as folder:
        columns = {**fake.columns, "pair_clip_id": made["other fake"].clip_id}
        folder.commit(replace(fake, columns=columns))
    finish(out)
    twin = made["other fake"].clip_id
    assert f"jobs/{fake.clip_id}.json: its real twin {twin} is not committed" in problems(out)


def test_a_split_that_leaks_is_found(built: tuple[Path, Made]) -> None:
    out, made = built
    clip = made["fake"].clip_id

    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row["clip_id"] == clip:
                row["split"] = "test"

    edit_manifest(out, change)
    source = made["fake"].columns["source_sha256"]
    assert problems(out) == [
        "manifest.parquet: identity anna is in ['test', 'train']",
        f"manifest.parquet: source {source} is in ['test', 'train']",
    ]


def test_a_clip_in_no_split_is_found(built: tuple[Path, Made]) -> None:
    out, _ = built
    finish(out, {"anna": "train", "bert": "holdout"})
    assert any("split is 'holdout'" in problem for problem in problems(out))


def test_the_error_lists_some_and_counts_all(built: tuple[Path, Made]) -> None:
    out, _ = built
    for index in range(30):
        (out / f"data/{index:02}.mp4").write_text("?")
    with pytest.raises(CheckFailed) as caught:
        verify_dataset(out).check()
    assert caught.value.exit_code == 5
    assert str(caught.value).startswith("30 failures in 16 files:\n  data/00.mp4: no marker")
    assert "... and 10 more" in str(caught.value)
    assert RunFolder.recorded(out) is not None
