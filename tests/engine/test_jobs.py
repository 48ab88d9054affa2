"""Ids, markers, the run's folder and its contract, quarantine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from dfmtest_dataset import columns, make_clip, make_dataset, open_run
from hypothesis import given, settings
from hypothesis import strategies as st

from dfm_engine.durable import write_durably
from dfm_engine.errors import DfmError, EnvironmentUnfit, UsageError, WorkerDied
from dfm_engine.jobs import FileFacts, Marker, RunFolder, clip_id, media_files, media_path
from dfm_engine.quarantine import (
    QuarantineRow,
    read_quarantine,
    write_quarantine,
)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def tree(out: Path) -> dict[str, bytes]:
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


# --- ids and markers -----------------------------------------------------------------------------


def test_clip_id_is_the_documented_hash() -> None:
    # sha256 of {"a":[1,2],"b":"é"} in canonical JSON, computed with sha256sum
    assert clip_id({"b": "é", "a": (1, 2)}) == "4f4995260c41bd0d"


def test_clip_id_knows_no_order_and_every_value() -> None:
    facts = {"source": "s", "driving": "d", "seed": 0, "recipe": {"x": 1.0}}
    ids = {clip_id({**facts, key: "other"}) for key in facts} | {clip_id(facts)}
    assert len(ids) == 5
    assert clip_id(dict(reversed(facts.items()))) == clip_id(facts)
    with pytest.raises(ValueError, match="JSON"):
        clip_id({"x": float("nan")})


def test_media_path_is_the_documented_one() -> None:
    assert media_path("fake", "nod", "ab", "c23") == "data/fake/nod/ab.c23.mp4"
    assert media_path("real", None, "ab", "raw") == "data/real/none/ab.raw.mp4"


@settings(deadline=None)
@given(measurements=st.dictionaries(st.text(), JSON, max_size=4), size=st.integers(0, 2**62))
def test_a_marker_survives_its_file(measurements: dict, size: int) -> None:
    marker = Marker(
        clip_id="0" * 16,
        label="fake",
        files={q: FileFacts(size_bytes=size, sha256=q) for q in ("raw", "c23", "c40")},
        columns=columns("fake"),
        measurements=measurements,
    )
    assert Marker.from_bytes(marker.to_bytes()) == marker


def test_a_changed_or_cut_marker_is_refused() -> None:
    marker = Marker(
        clip_id="0" * 16, label="fake", outcome="refused", files={}, columns=columns("fake")
    )
    data = marker.to_bytes()
    for damaged in (data[:-10], data.replace(b"smile", b"blink"), b"", b"[]", b"\xff", b"{}"):
        with pytest.raises(DfmError, match="marker"):
            Marker.from_bytes(damaged)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": columns("fake", colour="red")}, "no such column: colour"),
        ({"columns": columns("fake", frames=None)}, "frames .* has no value"),
        ({"columns": columns("fake", frames=3.0)}, r"frames .* cannot hold 3\.0"),
        ({"columns": columns("fake", seed=True)}, "seed .* cannot hold True"),
        ({"columns": columns("fake", frames=2**31)}, "frames .* cannot hold 2147483648"),
        ({"columns": columns("fake", box_x0=float("nan"))}, "box_x0 .* nan"),
        ({"columns": columns("fake", take="\udcff")}, "take .* not UTF-8"),
        ({"columns": columns("real")}, "synthetic is False"),
        ({"outcome": "passed"}, r"passed.* must have"),
        ({"outcome": "maybe"}, "maybe"),
    ],
)
def test_a_marker_that_the_manifest_cannot_hold_is_refused(changes: dict, message: str) -> None:
    marker = Marker(
        clip_id="0" * 16, label="fake", outcome="refused", files={}, columns=columns("fake")
    )
    with pytest.raises(DfmError, match=message):
        replace(marker, **changes)


# --- the folder ----------------------------------------------------------------------------------


def test_committed_gives_back_what_was_committed(tmp_path: Path) -> None:
    made = make_dataset(tmp_path)
    with open_run(tmp_path) as folder:
        found = folder.committed()
    assert found == {marker.clip_id: marker for marker in made.values()}
    assert len(media_files(tmp_path)) == 5 * 3 + 1


def test_building_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    make_dataset(tmp_path / "b")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    make_dataset(tmp_path / "a")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_opening_clears_what_a_killed_run_left(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    whole = tree(tmp_path)
    (tmp_path / "data/fake/smile/0123456789abcdef.raw.mp4").write_bytes(b"no marker yet")
    (tmp_path / "data/real/none/x.raw.mp4.tmp-12").write_bytes(b"part")
    (tmp_path / "jobs/x.json.tmp-12").write_bytes(b"part")
    open_run(tmp_path).close()
    assert tree(tmp_path) == whole


@pytest.mark.parametrize("damage", ["cut", "renamed", "file gone", "file short"])
def test_a_clip_whose_marker_or_file_is_damaged_is_to_be_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    made = make_dataset(tmp_path)
    lost = made["fake"]
    marker = tmp_path / "jobs" / f"{lost.clip_id}.json"
    match damage:
        case "cut":
            marker.write_bytes(marker.read_bytes()[:100])
        case "renamed":
            marker.rename(marker.with_name("ffff.json"))
        case "file gone":
            (tmp_path / lost.path("c23")).unlink()
        case "file short":
            os.truncate(tmp_path / lost.path("c23"), 10)
    with open_run(tmp_path) as folder:
        assert folder.committed().keys() == {
            m.clip_id for name, m in made.items() if name != "fake"
        }
    assert "is made again" in caplog.text
    assert not [path for path in media_files(tmp_path) if lost.clip_id in path]


def test_a_marker_is_not_written_before_its_files(tmp_path: Path) -> None:
    with open_run(tmp_path) as folder:
        marker = make_clip(folder, "real", seed=1)
        folder.media_path("real", None, marker.clip_id, "c40").unlink()
        (tmp_path / "jobs" / f"{marker.clip_id}.json").unlink()
        with pytest.raises(DfmError, match=r"c40\.mp4 is not there"):
            folder.commit(marker)
        assert folder.committed() == {}


def test_another_contract_is_refused_with_a_choice(tmp_path: Path) -> None:
    open_run(tmp_path).close()
    with pytest.raises(UsageError) as caught:
        open_run(tmp_path, batch_size=16, backend="tensorrt")
    assert "batch_size was 8, is now 16" in str(caught.value)
    assert "backend was None, is now 'tensorrt'" in str(caught.value)
    assert "another --out" in str(caught.value)
    assert "device" not in str(caught.value)
    open_run(tmp_path).close()  # and the refusal let go of the lock


def test_the_contract_of_an_earlier_run_can_be_read_before_opening(tmp_path: Path) -> None:
    assert RunFolder.recorded(tmp_path / "absent") is None
    with open_run(tmp_path) as folder:
        folder.write_run(counts={"fakes": 3})
        folder.write_run(timings={"encode_s": 1.5})
    recorded = RunFolder.recorded(tmp_path)
    assert recorded is not None
    assert recorded["contract"]["batch_size"] == 8
    assert (recorded["counts"], recorded["timings"]) == ({"fakes": 3}, {"encode_s": 1.5})
    (tmp_path / "run.json").write_text('{"format": 99}')
    with pytest.raises(UsageError, match="not of format 1"):
        open_run(tmp_path)


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/holiday.mp4").write_bytes(b"precious")
    with pytest.raises(UsageError, match="no data set of ours"):
        open_run(tmp_path)
    assert tree(tmp_path) == {"data/holiday.mp4": b"precious"}


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        open_run(tmp_path / "out")


HOLD = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from dfmtest_dataset import open_run
folder = open_run(Path(sys.argv[1]))
print("open", flush=True)
time.sleep(60)
"""


def test_one_run_at_a_time_and_a_killed_one_frees_the_folder(tmp_path: Path, repo: Path) -> None:
    command = [sys.executable, "-c", HOLD, tmp_path, repo / "tests/support"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(UsageError, match=f"process {other.pid}.* is under way"):
            open_run(tmp_path)
        other.send_signal(signal.SIGKILL)
        other.wait()
        open_run(tmp_path).close()


def test_a_full_disk_at_the_marker_leaves_no_marker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_run(tmp_path) as folder:
        marker = make_clip(folder, "real", seed=1)
        path = tmp_path / "jobs" / f"{marker.clip_id}.json"
        path.unlink()

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(EnvironmentUnfit, match="No space left on device"):
            folder.commit(marker)
        assert list((tmp_path / "jobs").iterdir()) == []


# --- quarantine ----------------------------------------------------------------------------------


def test_the_third_death_is_the_last_also_across_restarts(tmp_path: Path) -> None:
    death = WorkerDied("encoding x", 123, "killed by SIGKILL")
    for attempt in (1, 2):
        with open_run(tmp_path) as folder:
            assert folder.quarantine.record_death("job", death, path="a.mp4") is None
            assert folder.quarantine.attempts("job") == attempt
            assert folder.quarantine.rows() == {}
    with open_run(tmp_path) as folder:
        row = folder.quarantine.record_death("job", death, path="a.mp4")
    assert row == QuarantineRow(
        path="a.mp4",
        stage="encode",
        kind="worker-died",
        reason="3 workers were lost on it, the last killed by SIGKILL",
        attempts=3,
        job_id="job",
    )
    with open_run(tmp_path) as folder:
        assert folder.quarantine.rows() == {"job": row}


def test_a_commit_forgets_the_attempts(tmp_path: Path) -> None:
    with open_run(tmp_path) as folder:
        marker = make_clip(folder, "real", seed=1)
        death = WorkerDied("encoding x", 123, "killed by SIGKILL")
        folder.quarantine.record_death(marker.clip_id, death, path="a.mp4")
        folder.commit(marker)
        assert folder.quarantine.attempts(marker.clip_id) == 0


def test_an_unreadable_attempt_file_counts_as_none(tmp_path: Path) -> None:
    write_durably(tmp_path / "quarantine/job.json", b"{")
    (tmp_path / "run.json").write_text(json.dumps({"format": 1, "contract": {}}))
    with RunFolder.open(tmp_path, contract={}, recipe_toml="") as folder:
        assert folder.quarantine.attempts("job") == 0
        assert folder.quarantine.rows() == {}


def test_quarantine_rows_come_back_sorted_and_byte_equal(tmp_path: Path) -> None:
    rows = [
        QuarantineRow(
            path=path, stage="probe", kind="truncated", reason="cut", attempts=n, job_id=j
        )
        for path, n, j in [("b", 0, None), ("a", 3, "f" * 16), ("a", 0, None)]
    ]
    first = write_quarantine(rows, tmp_path / "a.parquet")
    assert write_quarantine(rows[::-1], tmp_path / "b.parquet") == first
    assert (tmp_path / "a.parquet").read_bytes() == first
    assert [row.path for row in read_quarantine(tmp_path / "a.parquet")] == ["a", "a", "b"]
    assert set(read_quarantine(tmp_path / "a.parquet")) == set(rows)
