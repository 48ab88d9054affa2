"""A build in trouble: dying workers, vanished files, a full disk, signals. Nothing is lost or half.

Each test compares with `whole`, the same build without trouble.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from dfmtest_build import Hook, Workbench, contents

import dfm_engine.build
import dfm_engine.encoding
from dfm_engine.errors import EnvironmentUnfit, UsageError, WorkerDied
from dfm_engine.interrupts import Interrupted, StopRequest, draining_signals
from dfm_engine.jobs import RunFolder
from dfm_engine.lanes import Lanes
from dfm_engine.manifest import read_manifest
from dfm_engine.media.pool import EncodeFuture, EncodePool
from dfm_engine.options import list_inputs
from dfm_engine.quarantine import read_quarantine
from dfm_engine.synthetic import write_clip
from dfm_engine.verify import verify_dataset


def rows_of(out: Path, label: str) -> dict[str, dict]:
    """One row per clip, by id."""
    rows = read_manifest(out / "manifest.parquet")
    return {row["clip_id"]: row for row in rows if row["label"] == label}


def processes_of_session(session: int) -> list[str]:
    """What still runs of a session, from /proc."""
    found: list[str] = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, facts = path.read_text().rsplit(")", 1)
            state, _, _, its_session = facts.split()[:4]
            if int(its_session) == session and state != "Z":
                found.append(name)
    return found


def files_of(out: Path, ids: set[str]) -> list[Path]:
    return [path for path in (out / "data").rglob("*") if path.name.split(".")[0] in ids]


# --- a clip that kills its encoder ---------------------------------------------------------------


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Ids of clips whose worker dies each time, when it has written the first file."""
    poisoned: set[str] = set()

    class Poisoned(EncodePool):
        def submit(self, frames, *, outputs, comment, fps) -> EncodeFuture:
            first = next(iter(outputs.values()))
            if first.name.split(".")[0] not in poisoned:
                return super().submit(frames, outputs=outputs, comment=comment, fps=fps)
            first.parent.mkdir(parents=True, exist_ok=True)
            first.write_bytes(b"the first quality")
            future: EncodeFuture = EncodeFuture()
            future.set_exception(WorkerDied(f"encoding {first.name}", 1, "killed by SIGSEGV"))
            return future

    monkeypatch.setattr(dfm_engine.encoding, "EncodePool", Poisoned)
    return poisoned


def test_the_third_death_gives_a_job_up_and_the_others_are_made(
    workbench: Workbench, whole: Path, poison: set[str], tmp_path: Path
):
    victim = next(iter(rows_of(whole, "real").values()))["source_sha256"]
    fakes = rows_of(whole, "fake")
    poison |= {name for name, row in fakes.items() if row["source_sha256"] == victim}
    twins = {fakes[name]["pair_clip_id"] for name in poison}
    summary = workbench.build(tmp_path / "out")
    assert (summary.fakes, summary.reals, summary.quarantined) == (4, 2, 2)
    rows = read_quarantine(tmp_path / "out" / "quarantine.parquet")
    assert {row.job_id for row in rows} == poison
    assert {(row.kind, row.attempts) for row in rows} == {("worker-died", 3)}
    assert all("killed by SIGSEGV" in row.reason for row in rows)
    # Neither what the dead wrote nor a real twin without its fake stays behind.
    assert files_of(tmp_path / "out", poison | twins) == []
    assert verify_dataset(tmp_path / "out").failures == ()

    before = contents(tmp_path / "out")
    poison_before = set(poison)
    poison.clear()
    again = workbench.build(tmp_path / "out")
    assert again.made == 0  # it stays given up
    assert contents(tmp_path / "out") == before
    for name in poison_before:
        (tmp_path / "out" / "quarantine" / f"{name}.json").unlink()
    assert workbench.build(tmp_path / "out").made == 3
    assert contents(tmp_path / "out") == contents(whole)


def test_a_twin_that_cannot_be_encoded_costs_its_fakes_and_is_tried_three_times_in_all(
    workbench: Workbench, whole: Path, poison: set[str], tmp_path: Path
):
    twin = next(iter(rows_of(whole, "real")))
    poison.add(twin)
    costs = {n for n, row in rows_of(whole, "fake").items() if row["pair_clip_id"] == twin}
    assert len(costs) == 2
    first = workbench.build(tmp_path / "out")
    assert (first.fakes, first.reals, first.extras) == (4, 2, 0)
    (row,) = read_quarantine(tmp_path / "out" / "quarantine.parquet")
    assert (row.job_id, row.attempts) == (twin, 3)
    assert files_of(tmp_path / "out", {twin, *costs}) == []
    assert verify_dataset(tmp_path / "out").failures == ()
    before = contents(tmp_path / "out")
    workbench.build(tmp_path / "out")
    assert contents(tmp_path / "out") == before


# --- inputs that vanish --------------------------------------------------------------------------


@pytest.mark.parametrize(("victim", "jobs"), [("real", 2), ("driving", 3)])
def test_a_file_that_vanishes_after_preparation_costs_its_jobs_until_it_is_back(
    workbench: Workbench, whole: Path, tmp_path: Path, victim: str, jobs: int
):
    shutil.copytree(workbench.clips, tmp_path / "clips")
    path = min((tmp_path / "clips" / victim).rglob("*.mkv"))
    away = tmp_path / "away.mkv"
    folders = {name: tmp_path / "clips" / name for name in ("real", "driving")}
    out = tmp_path / "out"
    summary = workbench.build(out, **folders, stop=Hook(5, lambda: path.rename(away)))
    assert (summary.fakes, summary.quarantined) == (6 - jobs, jobs)
    rows = read_quarantine(out / "quarantine.parquet")
    assert {(row.path, row.stage, row.kind) for row in rows} == {(path.name, "open", "not-found")}
    assert verify_dataset(out).failures == ()
    away.rename(path)
    assert workbench.build(out, **folders).fakes == 6
    assert contents(out) == contents(whole)


def test_a_file_that_vanishes_before_its_probe_is_looked_at_again(
    workbench: Workbench, whole: Path, tmp_path: Path
):
    shutil.copytree(workbench.clips / "real", tmp_path / "real")
    path = max((tmp_path / "real").rglob("*.mkv"))
    away = tmp_path / "away.mkv"

    def list_then_lose(options):
        inputs = list_inputs(options)
        path.rename(away)
        return inputs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dfm_engine.build, "list_inputs", list_then_lose)
        summary = workbench.build(tmp_path / "out", real=tmp_path / "real")
    assert summary.fakes == 4
    (row,) = read_quarantine(tmp_path / "out" / "quarantine.parquet")
    assert (row.path, row.kind) == (path.name, "not-found")
    away.rename(path)
    workbench.build(tmp_path / "out", real=tmp_path / "real")
    assert contents(tmp_path / "out") == contents(whole)


# --- a full disk ---------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[None]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_the_run_and_the_next_one_completes_it(
    workbench: Workbench, whole: Path, tmp_path: Path
):
    reference = contents(whole)
    sizes = sum(len(data) for name, data in reference.items() if name.endswith(".mp4"))
    with small_disk(tmp_path / "disk", 8192):
        out, ballast = tmp_path / "disk" / "out", tmp_path / "disk" / "ballast"
        ballast.write_bytes(bytes(8192 * 1024 - sizes // 2 - 60_000))
        with pytest.raises(EnvironmentUnfit, match=r"No space left on device.*resumes") as full:
            workbench.build(out)
        assert full.value.exit_code == 4
        left = contents(out)
        assert any(name.startswith("jobs/") for name in left)
        for name, data in left.items():  # under a final name a file is whole or absent
            assert data == reference[name]
        ballast.unlink()
        workbench.build(out)
        assert contents(out) == reference
        assert verify_dataset(out).failures == ()


# --- stopping ------------------------------------------------------------------------------------


def test_a_drained_run_has_committed_what_it_began(
    workbench: Workbench, whole: Path, tmp_path: Path
):
    class AfterTwo(StopRequest):
        """Set before the third candidate is begun."""

        asked = 0

        def __bool__(self) -> bool:
            self.asked += 1
            if self.asked == 3:
                self.signum = signal.SIGTERM
            return self.signum is not None

    out = tmp_path / "out"
    with pytest.raises(Interrupted) as stopped:
        workbench.build(out, stop=AfterTwo())
    assert stopped.value.exit_code == 143
    markers = [json.loads(path.read_bytes()) for path in (out / "jobs").glob("*.json")]
    assert sorted(marker["label"] for marker in markers) == ["fake", "fake", "real"]
    assert len(list((out / "data").rglob("*"))) - 5 == 9  # folders: real, none, fake, 2 actions
    reference = contents(whole)
    assert all(reference[name] == data for name, data in contents(out).items())
    workbench.build(out)
    assert contents(out) == reference


def test_the_first_signal_asks_and_the_second_stops(capfd: pytest.CaptureFixture[str]):
    with draining_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signum == signal.SIGINT
        assert "once more stops at once" in capfd.readouterr().err
        with pytest.raises(Interrupted) as stopped:  # noqa: PT012 (raised at any line)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
    assert stopped.value.exit_code == 130
    with draining_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted) as stopped:
            stop.raise_if_set()
    assert stopped.value.exit_code == 143


@pytest.mark.parametrize(
    ("signals", "code"), [([signal.SIGTERM], 143), ([signal.SIGINT, signal.SIGINT], 130)]
)
def test_the_command_ends_with_the_signals_code_and_leaves_no_process(
    clips, test_recipe, tiny_yaml, tmp_path, signals, code
):
    out = tmp_path / "out"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "dfm_engine.cli", "build-dataset", "--device", "cpu"),
            *("--recipe", str(test_recipe), "--real", str(clips / "real")),
            *("--driving", str(clips / "driving"), "--weights", "random"),
            *("--fomm-config", str(tiny_yaml), "--out", str(out)),
        ],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list((out / "prepared").glob("*.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the build does not get on"
        time.sleep(0.02)
    for number in signals:
        os.killpg(process.pid, number)  # as a terminal does: to every process of the group
        time.sleep(0.05)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "Traceback" not in said
    assert "finishing what has begun" in said
    deadline = time.monotonic() + 30
    while left := processes_of_session(process.pid):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_two_runs_in_one_folder_at_once_are_refused(
    workbench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    with (
        RunFolder.open(out, contract={}, recipe_toml=""),
        pytest.raises(UsageError, match=f"process {os.getpid()}.*is under way") as refused,
    ):
        workbench.build(out)
    assert refused.value.exit_code == 2


# --- determinism ---------------------------------------------------------------------------------


def test_a_clip_is_the_same_whatever_is_made_beside_it(
    workbench: Workbench, whole: Path, tmp_path: Path
):
    reference = contents(whole)
    limited = workbench.build(tmp_path / "limited", limit=2)
    assert limited.fakes == 2
    one = min(path for path in (workbench.clips / "real").iterdir())
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / one.name).symlink_to(one)
    alone = workbench.build(tmp_path / "alone", real=tmp_path / "real")
    assert alone.fakes == 2
    for out in ("limited", "alone"):
        found = {n: data for n, data in contents(tmp_path / out).items() if n.endswith(".mp4")}
        assert len(found) >= 9
        assert all(reference[name] == data for name, data in found.items())


def test_lanes_change_no_byte_and_no_outcome(workbench: Workbench, tmp_path: Path):
    """Of good clips, a damaged one, a faceless one, and one that vanishes when it is opened."""
    shutil.copytree(workbench.clips, tmp_path / "clips")
    folders = {name: tmp_path / "clips" / name for name in ("real", "driving")}
    good = sorted(folders["real"].rglob("*.mkv"))
    bad = folders["real"] / "bad"
    bad.mkdir()
    (bad / "cut.mkv").write_bytes(good[0].read_bytes()[:-9000])
    write_clip(bad / "grey.mkv", np.full((18, 128, 128, 3), 128, np.uint8))
    away = tmp_path / "away.mkv"
    found = []
    for lanes in (Lanes(), Lanes(frame=4, open=4, screen=4)):
        out = tmp_path / f"out-{lanes.open}"
        bench = dataclasses.replace(workbench, framed={})  # every clip is framed by the lanes
        hook = Hook(7, lambda: good[1].rename(away))  # when all seven are prepared
        summary = bench.build(out, **folders, stop=hook, lanes=lanes)
        away.rename(good[1])
        found.append((contents(out), summary.fakes, summary.quarantined))
        stages = summary.timings
        assert {name: stages[name]["workers"] for name in ("frame", "decode", "screen")} == {
            "frame": lanes.frame,
            "decode": lanes.open,
            "screen": lanes.screen,
        }
        assert all(0 <= stage["busy_share"] <= 1 for stage in stages.values())
    assert found[0] == found[1]
    assert found[0][1:] == (4, 4)
    rows = read_quarantine(tmp_path / "out-4" / "quarantine.parquet")
    assert sorted((row.path, row.kind) for row in rows) == [
        ("cut.mkv", "truncated"),
        ("grey.mkv", "no-face"),
        (good[1].name, "not-found"),
        (good[1].name, "not-found"),
    ]
