"""`--backend`: which export it takes, when it makes one, and what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from dfmtest_fomm import make_fomm, pictures, small_config
from dfmtest_onnx_graphs import WARP, write_warp

from dfm_engine.backends import TorchRunner
from dfm_engine.detect.models import create_detector
from dfm_engine.detect.runner import TorchDetectorRunner
from dfm_engine.errors import EnvironmentUnfit, UsageError
from dfm_export import provide, run_export
from dfm_export.artifact import Artifact, ExportedGraph, sha256_of, write_artifact
from dfm_export.fomm_runner import FommGraphsRunner
from dfm_export.graphs import fomm_graphs
from dfm_export.models import Opening, open_fomm_runner
from dfm_export.precision import plan_of
from dfm_export.provide import ExportCache, provide_detector, provide_fomm
from dfm_export.runners import TorchGraph
from dfm_export.specs import GraphSpec

CONFIG = small_config(num_kp=5)
HOW: dict[str, Any] = {"device": "cpu", "batch_size": 4}


class FakeExport:
    """Writes one small graph in place of three, and counts."""

    def __init__(self) -> None:
        self.folders: list[Path] = []

    def __call__(self, fomm: Any, out: Path, *, plan: Any, say: Any = None) -> Artifact:
        self.folders.append(out)
        path = write_warp(out / "animate.onnx")
        graph = ExportedGraph(
            spec=GraphSpec("animate", WARP.inputs, WARP.outputs),
            path=path,
            sha256=sha256_of(path),
            size_bytes=path.stat().st_size,
        )
        artifact = Artifact(
            path=out,
            kind="fomm",
            graphs={"animate": graph},
            precision=plan.name,
            weights_sha256=fomm.weights_sha256,
            opset=18,
            align_corners=fomm.align_corners,
            model={},
        )
        write_artifact(artifact)
        return artifact


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch) -> FakeExport:
    fake = FakeExport()
    monkeypatch.setattr(run_export, "export_fomm", fake)
    return fake


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Artifact, Opening]]:
    calls: list[tuple[Artifact, Opening]] = []
    monkeypatch.setattr(
        provide,
        "open_fomm_runner",
        lambda *call: calls.append(call) or TorchRunner(make_fomm(CONFIG)),
    )
    return calls


def test_an_export_is_made_once_for_the_same_network(tmp_path: Path, export: FakeExport) -> None:
    cache, plan = ExportCache(tmp_path), plan_of("fomm", "fp32")
    fomm = make_fomm(CONFIG)
    first, again = cache.fomm(fomm, plan), cache.fomm(make_fomm(CONFIG), plan)
    assert first == again
    assert len(export.folders) == 1
    others = make_fomm(CONFIG, align_corners=False), make_fomm(small_config(num_kp=6))
    for other in others:
        other.weights_sha256 = fomm.weights_sha256
        cache.fomm(other, plan)
    fomm.weights_sha256 = "ef" * 32
    cache.fomm(fomm, plan)
    cache.fomm(fomm, plan_of("fomm", "fp16_islands"))
    assert len(set(export.folders)) == len(export.folders) == 5


def test_other_code_or_another_exporter_makes_another_export(
    tmp_path: Path, export: FakeExport, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, plan, fomm = ExportCache(tmp_path), plan_of("fomm", "fp32"), make_fomm(CONFIG)
    cache.fomm(fomm, plan)
    monkeypatch.setattr(provide, "installed", lambda _: {"torch": "9"})
    cache.fomm(fomm, plan)
    monkeypatch.setattr(provide, "_code", lambda _: "changed")
    cache.fomm(fomm, plan)
    assert len(set(export.folders)) == 3


@pytest.mark.parametrize("damage", ["unfinished", "changed"])
def test_a_damaged_export_is_made_again(tmp_path: Path, export: FakeExport, damage: str) -> None:
    cache, plan, fomm = ExportCache(tmp_path), plan_of("fomm", "fp32"), make_fomm(CONFIG)
    artifact = cache.fomm(fomm, plan)
    if damage == "unfinished":
        (artifact.path / "export.json").unlink()
    else:
        artifact.graph("animate").path.write_bytes(b"other")
    (artifact.path / "leftover").write_text("")
    again = cache.fomm(fomm, plan)
    assert again == artifact
    assert export.folders == [artifact.path] * 2
    assert not (artifact.path / "leftover").exists()


@pytest.mark.parametrize("at", ["", "ab", "abcd"])
def test_a_cache_that_cannot_be_written_is_an_error_with_a_way_out(
    tmp_path: Path, export: FakeExport, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Files where folders have to be, since nothing keeps an administrator from writing."""
    monkeypatch.setattr(provide, "_digest", lambda _: "abcd")
    cache = ExportCache(tmp_path / "cache")
    blocked = cache.root / "ab" / "abcd" if at == "abcd" else cache.root / at
    blocked.parent.mkdir(parents=True, exist_ok=True)
    blocked.write_text("")
    with pytest.raises(EnvironmentUnfit, match=r"writing the cache .*cache'.*set XDG_CACHE_HOME"):
        provide_fomm(make_fomm(CONFIG), backend="onnxruntime", cache=cache, **HOW)
    assert not export.folders


def test_a_damaged_export_that_cannot_be_removed_is_said_of_the_cache(
    tmp_path: Path, export: FakeExport, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, plan, fomm = ExportCache(tmp_path), plan_of("fomm", "fp32"), make_fomm(CONFIG)
    artifact = cache.fomm(fomm, plan)
    (artifact.path / "export.json").unlink()

    def denied(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(provide.shutil, "rmtree", denied)
    with pytest.raises(EnvironmentUnfit, match="Permission denied; free space or permit"):
        cache.fomm(fomm, plan)


def test_torch_needs_no_export(export: FakeExport) -> None:
    assert provide_fomm(make_fomm(CONFIG), backend="torch", **HOW) is None
    detector = create_detector("meso4", weights="none")
    assert isinstance(
        provide_detector(detector, backend="torch", device="cpu"), TorchDetectorRunner
    )
    with pytest.raises(UsageError, match="--backend torch runs no exported graphs"):
        provide_fomm(make_fomm(CONFIG), backend="torch", exported=Path("x"), **HOW)
    assert not export.folders


def test_an_exported_folder_is_taken_as_it_is(
    tmp_path: Path, export: FakeExport, opened: list[tuple[Artifact, Opening]]
) -> None:
    fomm = make_fomm(CONFIG)
    artifact = export(fomm, tmp_path, plan=plan_of("fomm", "fp32"))
    provide_fomm(fomm, backend="auto", exported=tmp_path, cache=ExportCache(tmp_path / "c"), **HOW)
    ((taken, opening),) = opened
    assert taken == artifact
    assert (opening.backend, opening.device) == ("onnxruntime", "cpu")
    assert opening.settings.profile.text == "1,4,4"
    assert not (tmp_path / "c").exists()


def test_a_folder_of_another_network_is_refused(tmp_path: Path, export: FakeExport) -> None:
    fomm = make_fomm(CONFIG)
    export(fomm, tmp_path, plan=plan_of("fomm", "fp32"))
    other = make_fomm(CONFIG, align_corners=False)
    other.weights_sha256 = fomm.weights_sha256
    with pytest.raises(UsageError, match="align_corners True, the recipe wants False"):
        provide_fomm(other, backend="onnxruntime", exported=tmp_path, **HOW)
    other.weights_sha256 = "ef" * 32
    with pytest.raises(UsageError, match="the command names weights efefefefefef"):
        provide_fomm(other, backend="onnxruntime", exported=tmp_path, **HOW)


def test_the_name_of_a_runner_shows_which_files_it_runs() -> None:
    graphs = fomm_graphs(make_fomm(CONFIG), plan_of("fomm", "fp32"))
    runners = {name: TorchGraph(graph, graph.spec) for name, graph in graphs.items()}
    names = [
        FommGraphsRunner(runners, weights_sha256="", files_sha256=files).name
        for files in ("", "12345678" + "0" * 56, "87654321" + "0" * 56)
    ]
    assert names == ["torch-cpu-fp32", "torch-cpu-fp32-12345678", "torch-cpu-fp32-87654321"]


@pytest.mark.slow
def test_onnxruntime_on_a_cpu_gives_every_row_the_same_bits_wherever_it_is(exports: Any) -> None:
    """The rule of `Runner`, with the real files of a small model."""
    artifact = exports("small")
    runner = open_fomm_runner(artifact, Opening(backend="onnxruntime"))
    files = open_fomm_runner(dataclasses.replace(artifact), Opening(backend="onnxruntime"))
    assert runner.name == files.name
    assert runner.name.startswith("onnxruntime-cpu-fp32-")
    assert len(runner.name.rsplit("-", 1)[1]) == 8
    images = pictures(5, (64, 64), seed=8).float()
    features, kp = runner.source(images), runner.keypoints(images)
    frames = runner.animate(features, kp, kp)
    for order in ([4, 2, 0, 1, 3], [1, 1, 1, 4, 0]):
        assert torch.equal(runner.keypoints(images[order]).value, kp.value[order])
        assert torch.equal(runner.source(images[order]).encoded, features.encoded[order])
        assert torch.equal(runner.animate(features[order], kp[order], kp[order]), frames[order])
    wanted = TorchRunner(make_fomm(CONFIG, seed=3)).animate(features, kp, kp)
    torch.testing.assert_close(frames, wanted, rtol=0, atol=1e-4)
