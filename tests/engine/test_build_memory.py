"""A build's memory does not grow with the number of its jobs: what is under way is bounded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dfm_engine.actions import Action
from dfm_engine.synthetic import DemoSetSettings, write_demo_set

SOURCES, SIZE, FRAMES = 20, 256, 9  # frames as in the recipe
MORE_JOBS = 190


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    settings = DemoSetSettings(
        drivers=(1,),
        sources=tuple(range(1000, 1000 + SOURCES)),
        driving_frames=16,
        real_frames=16,
        size=128,
    )
    write_demo_set(folder, settings)
    return folder


def peak_bytes(clips: Path, recipe: Path, yaml: Path, out: Path, *, per_action: int) -> int:
    """The most memory that the process of a build ever held."""
    text = recipe.read_text().replace("per_action = 0", f"per_action = {per_action}")
    recipe = out.with_suffix(".toml")
    recipe.write_text(text.replace("fakes_per_source = 0", "fakes_per_source = 10"))
    answer = out.with_suffix(".json")
    with answer.open("wb") as stdout:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "dfm_engine.cli", "build-dataset", "--device", "cpu"),
                *("--recipe", str(recipe), "--real", str(clips / "real")),
                *("--driving", str(clips / "driving"), "--weights", "random"),
                *("--fomm-config", str(yaml), "--out", str(out), "--json"),
            ],
            stdout=stdout,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert json.loads(answer.read_bytes())["fakes"] == per_action * len(Action)
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_times_the_jobs_need_no_more_memory(drawn, test_recipe, tiny_256_yaml, tmp_path):
    few = peak_bytes(drawn, test_recipe, tiny_256_yaml, tmp_path / "few", per_action=1)
    many = peak_bytes(drawn, test_recipe, tiny_256_yaml, tmp_path / "many", per_action=20)
    # Every job has two clips of this size. Were one of them kept, it would be twice as much; what
    # there is of it is the heap's settling (68 MiB, all of it in the first two thirds of the run).
    clip_bytes = FRAMES * SIZE * SIZE * 3
    assert many - few < MORE_JOBS * clip_bytes / 2, (few, many)
