"""`evaluate detector` and `score` as a person calls them, on a run's folder."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from dfmtest_store import make_store

from dfm_engine import cli
from dfm_engine.detect.evaluate import run_evaluate_detector
from dfm_engine.detect.load import load_detector
from dfm_engine.detect.models import create_detector
from dfm_engine.detect.run_folder import weights_bytes
from dfm_engine.detect.runner import TorchDetectorRunner
from dfm_engine.detect.score import run_score
from dfm_engine.errors import UsageError
from dfm_engine.faces.mtcnn import Mtcnn
from dfm_engine.media.encode import encode_clip, rgb_to_i420


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder as training hands it on, of a net that was not trained."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    folder.mkdir()
    weights = weights_bytes(create_detector("small-cnn", seed=1))
    (folder / "detector.safetensors").write_bytes(weights)
    (folder / "detector.json").write_text('{"train_identities": ["person-2"]}')
    return folder


def call(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["dfm-engine", *map(str, arguments), "--json"])
        with pytest.raises(SystemExit) as end:
            cli.main()
    out, err = capfd.readouterr()
    assert out.count("\n") == 1
    return int(end.value.code or 0), json.loads(out), err


def test_evaluate_detector_writes_and_prints_one_result(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_store(tmp_path / "store", identities=9, size=128, frames=2, qualities=("c23",))
    arguments = ("--model", run, "--store", tmp_path / "store", "--out", tmp_path / "out")
    code, said, err = call(
        capfd, "evaluate", "detector", *arguments, "--positive", "real", "--frames", 1
    )
    assert code == 0
    assert said == json.loads((tmp_path / "out" / "evaluate.json").read_text())
    assert (said["positive"], said["data"]["frames"]) == ("real", 6)
    assert said["leak"]["shared_identities"] == ["person-2"]
    assert "Warning: the model was trained on 1 of the 3 people" in err
    assert "| all " in err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("scores.parquet", "evaluate.json", "evaluate.md"),
        *("roc.png", "reliability.png", "scores.png", "actions.png"),
    }


def test_score_says_one_line_a_video(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    encode_clip(rgb_to_i420(noise), tmp_path / "a.mp4", quality="raw", fps=25, comment="")
    (tmp_path / "b.mp4").write_bytes(b"")
    code, said, err = call(
        capfd, "score", tmp_path, "--model", run, "--frames", 2, "--cam", tmp_path / "cams"
    )
    assert code == 3
    assert [video["verdict"] for video in said["videos"]] in (["real", None], ["fake", None])
    assert said["videos"][0]["frames"] == 2
    assert Path(said["videos"][0]["cam"]).is_file()
    assert said["videos"][1]["error"] == "empty-file"
    assert [line[:5] for line in err.splitlines()[:2]] == ["[1/2]", "[2/2]"]
    assert err.splitlines()[-1].startswith("2 files: ")


def test_places_that_cannot_be_written_are_refused_before_any_work(
    run: Path, tmp_path: Path
) -> None:
    store = make_store(tmp_path / "store", identities=9, size=128, frames=2, qualities=("c23",))
    (tmp_path / "file").write_bytes(b"")
    runner = TorchDetectorRunner(load_detector(run), torch.device("cpu"))
    with pytest.raises(UsageError, match="is a file; name a folder"):
        run_evaluate_detector(runner, store, out=tmp_path / "file")
    with pytest.raises(UsageError, match="is a file; name a folder"):
        run_score([tmp_path], runner=runner, faces=Mtcnn.load, cam=tmp_path / "file")


def test_a_folder_without_videos_says_what_to_name(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "note.txt").write_text("no video")
    code, said, err = call(capfd, "score", tmp_path, "--model", run)
    assert (code, said["videos"]) == (3, [])
    assert "name files or folders" in err
