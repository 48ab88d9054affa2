"""`build-dataset` from the command line: whole, resumable, and clean when it cannot go on."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from dfm_engine.backends import TorchRunner
from dfm_engine.jobs import RunFolder
from dfm_engine.manifest import read_manifest
from dfm_engine.quarantine import read_quarantine
from dfm_engine.verify import verify_dataset


def command(clips: Path, recipe: Path, yaml: Path, out: Path, *extra: str) -> list[str]:
    return [
        *(sys.executable, "-m", "dfm_engine.cli", "build-dataset", "--device", "cpu"),
        *("--recipe", str(recipe), "--real", str(clips / "real")),
        *("--driving", str(clips / "driving"), "--weights", "random"),
        *("--fomm-config", str(yaml), "--out", str(out), "--json", *extra),
    ]


def run(arguments: list[str], **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, check=False, **options)


def contents(out: Path) -> Mapping[str, bytes]:
    """Everything that must not depend on how often a run was stopped."""
    kept = [*(out / "data").rglob("*.mp4"), *out.glob("*.parquet"), *(out / "jobs").glob("*.json")]
    return {str(path.relative_to(out)): path.read_bytes() for path in kept}


@pytest.fixture(scope="module")
def built(clips, test_recipe, tiny_yaml, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("built") / "set"
    done = run(command(clips, test_recipe, tiny_yaml, out))
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout.splitlines()[-1])


def test_every_pair_is_made_in_three_qualities_with_its_real_twin(built):
    out, summary = built
    assert summary["fakes"] == 6
    assert summary["reals"] == 3
    rows = read_manifest(out / "manifest.parquet")
    assert len(rows) == 27
    reals = {row["clip_id"]: row for row in rows if row["label"] == "real"}
    for row in rows:
        if row["label"] == "fake":
            twin = reals[row["pair_clip_id"]]
            assert twin["frames"] == row["frames"] == 9
            assert twin["source_sha256"] == row["source_sha256"]
            assert twin["split"] == row["split"]
            assert row["generator"] == "fomm"
    assert {row["driving_path"] for row in rows if row["label"] == "fake"} == {
        "nod/face000001.mkv",
        "open_mouth/face000001.mkv",
    }


def test_verify_finds_nothing_wrong_with_what_was_built(built):
    out, _ = built
    report = verify_dataset(out)
    assert report.failures == ()
    assert report.files == 27
    assert report.pairs == 6


def test_the_same_command_again_makes_nothing(built, clips, test_recipe, tiny_yaml):
    out, _ = built
    before = contents(out)
    again = run(command(clips, test_recipe, tiny_yaml, out))
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["made"] == 0
    assert contents(out) == before


def test_a_changed_recipe_in_the_same_folder_is_refused_with_a_choice(
    built, clips, test_recipe, tiny_yaml, tmp_path
):
    out, _ = built
    other = tmp_path / "other.toml"
    other.write_text(test_recipe.read_text() + "\n[motion]\nmode = 'abs'\n")
    refused = run(command(clips, other, tiny_yaml, out))
    assert refused.returncode == 2
    assert "Use another --out" in refused.stderr


def test_a_limit_counts_fakes_over_actions(clips, test_recipe, tiny_yaml, tmp_path):
    done = run(command(clips, test_recipe, tiny_yaml, tmp_path / "out", "--limit", "3"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["per_action"] == {"open_mouth": 2, "nod": 1}


def test_a_dry_run_writes_nothing(clips, test_recipe, tiny_yaml, tmp_path):
    done = run(command(clips, test_recipe, tiny_yaml, tmp_path / "out", "--dry-run"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fakes_at_most"] == {"open_mouth": 3, "nod": 3}
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_is_a_usage_error(clips, test_recipe, tiny_yaml, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "driving").symlink_to(clips / "driving")
    refused = run(command(tmp_path, test_recipe, tiny_yaml, tmp_path / "out"))
    assert refused.returncode == 2
    assert "no clip in" in refused.stderr


def test_bad_inputs_cost_themselves_alone_and_are_named(
    clips, test_recipe, tiny_yaml, tmp_path, built
):
    out, _ = built
    for name in ("real", "driving"):
        (tmp_path / name).mkdir()
    for folder in (clips / "real").iterdir():
        (tmp_path / "real" / folder.name).symlink_to(folder)
    (tmp_path / "driving" / "nod").symlink_to(clips / "driving" / "nod")
    bad = tmp_path / "real" / "bad"
    bad.mkdir()
    (bad / "empty.mp4").write_bytes(b"")
    whole = next((clips / "real").rglob("*.mkv")).read_bytes()
    (bad / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    done = run(command(tmp_path, test_recipe, tiny_yaml, tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    rows = read_quarantine(tmp_path / "out" / "quarantine.parquet")
    assert {row.path: row.kind for row in rows} == {
        "empty.mp4": "empty-file",
        "cut.mkv": "truncated",
    }
    nods = {k: v for k, v in contents(out).items() if "/nod/" in k}
    assert nods == {k: v for k, v in contents(tmp_path / "out").items() if "/nod/" in k}
    assert len(nods) == 9


def test_a_build_without_one_usable_clip_ends_short(test_recipe, tiny_yaml, clips, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "empty.mp4").write_bytes(b"")
    (tmp_path / "driving").symlink_to(clips / "driving")
    done = run(command(tmp_path, test_recipe, tiny_yaml, tmp_path / "out"))
    assert done.returncode == 3
    assert "not one usable real clip" in done.stderr


def test_an_unwritable_folder_is_said_at_once(test_recipe, tiny_yaml, clips, tmp_path):
    (tmp_path / "file").write_text("in the way")
    refused = run(command(clips, test_recipe, tiny_yaml, tmp_path / "file" / "out"))
    assert refused.returncode == 2
    assert "cannot be written" in refused.stderr


def test_an_interrupt_drains_and_the_next_run_ends_the_same(
    built, clips, test_recipe, tiny_yaml, tmp_path
):
    out = tmp_path / "out"
    arguments = command(clips, test_recipe, tiny_yaml, out)
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list((out / "prepared").glob("source-*")), process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert not list(out.rglob("*.tmp-*"))
    done = run(arguments)
    assert done.returncode == 0, done.stderr
    assert contents(out) == contents(built[0])


def kill_and_compare(arguments: list[str], out: Path, reference: Path, *, times: int, seed: int):
    """SIGKILL a build at random moments, then let it finish; all bytes must be the same."""
    chance = random.Random(seed)
    kills = 0
    while kills < times:
        process = subprocess.Popen(
            arguments, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
        )
        moment = chance.choice(["prepared/*", "jobs/*", "data/**/*.mp4", "run.json"])
        already = len(list(out.glob(moment)))
        wait_for(lambda: len(list(out.glob(moment))) > already, process, or_ended=True)  # noqa: B023
        time.sleep(chance.uniform(0, 0.8))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        if process.returncode == 0:  # finished before the blow: start over
            for path in [*(out / "jobs").glob("*"), *(out / "prepared").glob("*")]:
                if chance.random() < 0.7:
                    path.unlink()
    done = run(arguments)
    assert done.returncode == 0, done.stderr
    assert contents(out) == contents(reference)
    assert verify_dataset(out).failures == ()
    assert not list(out.rglob("*.tmp-*"))


def test_a_batch_that_was_halved_is_the_plan_of_the_next_run(workbench, tmp_path):
    class Cramped(TorchRunner):
        def animate(self, features, kp_source, kp_driving):
            if len(kp_driving) > 2:
                raise torch.OutOfMemoryError("tried to allocate")
            return super().animate(features, kp_source, kp_driving)

    runner = Cramped(copy.deepcopy(workbench.runner.fomm))
    out = tmp_path / "out"
    assert dataclasses.replace(workbench, runner=runner).build(out, limit=2).made == 4
    assert RunFolder.recorded(out)["contract"]["batch_size"] == 2
    assert workbench.build(out).exit_code == 0  # planned with 8, goes on with 2
    assert RunFolder.recorded(out)["contract"]["batch_size"] == 2
    assert not verify_dataset(out).failures


def test_killed_three_times_it_ends_the_same(built, clips, test_recipe, tiny_yaml, tmp_path):
    out = tmp_path / "out"
    arguments = command(clips, test_recipe, tiny_yaml, out)
    kill_and_compare(arguments, out, built[0], times=3, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_many_times_it_ends_the_same(built, clips, test_recipe, tiny_yaml, tmp_path):
    out = tmp_path / "out"
    arguments = command(clips, test_recipe, tiny_yaml, out)
    kill_and_compare(arguments, out, built[0], times=25, seed=2)


def wait_for(condition, process: subprocess.Popen, *, or_ended: bool = False) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        if process.poll() is not None:
            if or_ended:
                return
            raise AssertionError(f"the build ended early with {process.returncode}")
        assert time.monotonic() < deadline, "the build does not get on"
        time.sleep(0.02)
