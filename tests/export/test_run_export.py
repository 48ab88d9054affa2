"""Exports as folders: whole, described, refused where a plan costs too much."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from dfmtest_export import tiny_config
from typer.testing import CliRunner

from dfm_engine.cli import app
from dfm_engine.detect.models import create_detector
from dfm_engine.errors import CheckFailed, InputError, UsageError
from dfm_export.artifact import open_artifact
from dfm_export.precision import plan_of
from dfm_export.run_export import (
    ExportSettings,
    export_detector,
    run_export_detector,
    run_export_fomm,
)


def test_the_command_writes_a_detector_that_opens(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["export", "detector", "--model", "small-cnn", "--weights", "none"]
    result = CliRunner().invoke(app, [*command, "--precision", "fp16", "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout.splitlines()[-1])
    artifact = open_artifact(out)
    assert said["graphs"] == artifact.to_json()["graphs"]
    assert sorted(path.name for path in out.iterdir()) == ["detector.onnx", "export.json"]
    assert (artifact.kind, artifact.precision, artifact.opset) == ("detector", "fp16", 18)
    assert artifact.weights_sha256 == create_detector("small-cnn").weights_sha256
    assert artifact.model["spec"]["name"] == "small-cnn"
    assert artifact.align_corners is None
    assert artifact.gates["limits"]["flips"] == 0.001
    for where in ("torch", "onnxruntime"):
        assert artifact.gates[where]["flips"] == 0
        assert 0 < artifact.gates[where]["max_dp"] < 1e-3
        assert artifact.graphs["detector"].parity[where]["logits"] < 1e-3


def test_a_plan_that_costs_too_much_is_refused_and_leaves_no_export(tmp_path: Path) -> None:
    detector = create_detector("small-cnn")
    with torch.no_grad():
        first = next(part for part in detector.modules() if isinstance(part, torch.nn.Conv2d))
        first.weight.mul_(1e6)  # its outputs do not fit float16
    (tmp_path / "export.json").write_text("{}")
    with pytest.raises(CheckFailed, match=r"plan fp16 in torch: .* decisions flip"):
        export_detector(detector, tmp_path, plan=plan_of("detector", "fp16"), frames=4)
    assert [path.name for path in tmp_path.iterdir()] == ["export.json"]  # not begun


def test_a_folder_is_no_export_while_it_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    (tmp_path / "export.json").write_text("{}")
    monkeypatch.setattr("dfm_export.run_export.export_graph", stop)
    with pytest.raises(KeyboardInterrupt):
        export_detector(
            create_detector("small-cnn"), tmp_path, plan=plan_of("detector", "fp32"), frames=2
        )
    with pytest.raises(InputError, match="was not finished"):
        open_artifact(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"to": "coreml"}, "--to takes onnx, tensorrt, tensorrt-rtx"),
        ({"targets": ("sm89",)}, "--to onnx does not build for chips"),
        ({"profile": "8,1,32"}, "min <= opt <= max"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ExportSettings(out=tmp_path, **change)


def test_seeded_weights_need_a_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs --model"):
        run_export_detector(ExportSettings(out=tmp_path), weights="none")
    with pytest.raises(UsageError, match="exported as one of fp32, fp16, bf16"):
        run_export_detector(
            ExportSettings(out=tmp_path, precision="int3"), weights="none", model="meso4"
        )


@pytest.mark.slow
@pytest.mark.parametrize("split", [False, True])
def test_a_motion_model_is_exported_whole_and_split(tmp_path: Path, split: bool) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(json.dumps(tiny_config()))
    result = run_export_fomm(
        ExportSettings(out=tmp_path / "out"),
        weights="none",
        config=config,
        align_corners=False,
        subpixel=False,
        split=split,
    )
    artifact = open_artifact(tmp_path / "out")
    assert artifact == result.artifact
    last = ["motion", "render"] if split else ["animate"]
    assert list(artifact.graphs) == ["keypoints", "source", *last]
    assert artifact.align_corners is False
    assert artifact.options == {"subpixel": False, "split": split}
    assert artifact.model["frame_size"] == [32, 48]
    assert artifact.gates["onnxruntime"]["animate_db"] > 100
    assert sum(graph.grid_samples for graph in artifact.graphs.values()) == 2
