"""Engines of an export, and the choice among backends."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from dfmtest_fake_trt import FakeEngine, FakeStreams, fake_trt
from dfmtest_onnx_graphs import WARP, Warp, warp_feeds, write_warp

from dfm_engine.errors import CheckFailed, EnvironmentUnfit, UsageError
from dfm_export import cache as cache_module
from dfm_export import engines, models, trt_graph
from dfm_export.artifact import Artifact, ExportedGraph, sha256_of
from dfm_export.cache import EngineCache
from dfm_export.engines import expected_of, key_of, run_build_engines
from dfm_export.models import Opening, choose_backend, open_fomm_runner, open_graph
from dfm_export.specs import GraphSpec
from dfm_export.to_tensorrt import BuildSettings, Profile
from dfm_export.trt_graph import Chip


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return make_artifact(tmp_path / "export")


def make_artifact(folder: Path, *, precision: str = "fp32", **wrong: Any) -> Artifact:
    """An export of one graph, called `animate`."""
    folder.mkdir()
    path = write_warp(folder / "animate.onnx", **wrong)
    graph = ExportedGraph(
        spec=GraphSpec("animate", WARP.inputs, WARP.outputs),
        path=path,
        sha256=sha256_of(path),
        size_bytes=path.stat().st_size,
        grid_samples=1,
        parity={"max_abs": 3e-5},
    )
    return Artifact(
        path=folder,
        kind="fomm",
        graphs={"animate": graph},
        precision=precision,
        weights_sha256="ab" * 32,
        opset=18,
        align_corners=True,
        model={},
        versions={"torch": "2.14"},
    )


def test_engines_for_a_chip_that_is_not_here_are_written_beside_their_sidecars(
    artifact: Artifact, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    cache, settings = EngineCache(tmp_path / "cache"), BuildSettings(targets=("sm89", "sm86"))
    results = [
        run_build_engines(
            artifact, flavour="tensorrt-rtx", settings=settings, out=tmp_path / "out", cache=cache
        )
        for _ in range(2)
    ]
    path = tmp_path / "out" / "animate.tensorrt-rtx-sm86-sm89.plan"
    assert [result.engines[0].path for result in results] == [path, path]
    assert results[0].engines[0].seconds > 0
    assert results[1].engines[0].seconds == 0  # from the cache
    assert b"sm86" in path.read_bytes()
    sidecar = json.loads(path.with_name(path.name + ".json").read_bytes())
    assert sidecar["parity"] == {"max_abs": 3e-5}
    assert sidecar["weights_sha256"] == "ab" * 32
    assert sidecar["network"]["grid_samples"] == 1
    assert sidecar["key"]["onnx_sha256"] == artifact.graph("animate").sha256
    assert sidecar["key"]["profile"]["grid"] == [[n, 8, 8, 2] for n in (1, 8, 32)]
    assert results[0].to_json()["target"] == "sm86,sm89"


def test_a_chip_that_rtx_does_not_know_is_refused_before_anything_is_built(
    artifact: Artifact, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(UsageError, match="sm90"):
        run_build_engines(
            artifact,
            flavour="tensorrt-rtx",
            settings=BuildSettings(targets=("sm86", "sm90")),
            cache=EngineCache(tmp_path / "cache"),
        )
    assert not (tmp_path / "cache").exists()


def test_an_export_with_another_sampling_than_it_says_is_not_built(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    wrong = make_artifact(tmp_path / "export", align_corners=False)
    with pytest.raises(CheckFailed, match="align_corners False, must have True"):
        run_build_engines(
            wrong,
            flavour="tensorrt-rtx",
            settings=BuildSettings(),
            cache=EngineCache(tmp_path / "cache"),
        )
    assert not list((tmp_path / "export").glob("*.plan"))


def test_what_is_expected_follows_the_plan(artifact: Artifact) -> None:
    graph = artifact.graph("animate")
    plain = expected_of(artifact, graph)
    assert (plain.align_corners, plain.grid_samples, plain.low) == (True, 1, None)
    mixed = dataclasses.replace(artifact, precision="fp16_islands")
    graph = dataclasses.replace(graph, census={"float16": 74, "float32": 84})
    found = expected_of(mixed, graph)
    assert (found.low, found.has_islands, found.low_tensors) == ("float16", True, 74)
    keypoints = dataclasses.replace(
        graph, spec=GraphSpec("keypoints", WARP.inputs, WARP.outputs), grid_samples=0
    )
    found = expected_of(mixed, keypoints)
    assert (found.low, found.align_corners, found.grid_samples) == (None, None, 0)


def test_keypoints_never_have_tf32(artifact: Artifact) -> None:
    pytest.importorskip("tensorrt_rtx")
    graph, settings = artifact.graph("animate"), BuildSettings(tf32=True)
    keypoints = dataclasses.replace(graph, spec=GraphSpec("keypoints", WARP.inputs, WARP.outputs))
    keys = [key_of(artifact, each, "tensorrt-rtx", settings, "sm86") for each in (graph, keypoints)]
    assert [key.flags["tf32"] for key in keys] == [True, False]
    plain = key_of(artifact, graph, "tensorrt-rtx", BuildSettings(), "sm86")
    assert len({plain.digest, *(key.digest for key in keys)}) == 3


def test_a_data_centre_engine_is_of_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt_graph, "read_chip", lambda _: Chip("NVIDIA H200", "sm90"))
    targets = [
        engines.target_of(fake_trt(), BuildSettings(compatibility=level), device="cuda")
        for level in ("none", "same-compute-capability", "ampere-plus")
    ]
    assert targets == ["NVIDIA H200 sm90", "sm90", "ampere-plus"]
    settings = BuildSettings(targets=("sm89", "sm86"))
    assert engines.target_of(fake_trt("tensorrt-rtx"), settings, device="cpu") == "sm86,sm89"
    assert engines.target_of(fake_trt("tensorrt-rtx"), BuildSettings(), device="cpu") == "default"


def test_a_named_backend_is_that_one_or_an_error() -> None:
    assert choose_backend("onnxruntime", "cpu") == "onnxruntime"
    assert choose_backend("torch", "cuda") == "torch"
    with pytest.raises(UsageError, match="--backend takes auto, torch"):
        choose_backend("coreml", "cpu")
    for word in ("tensorrt", "tensorrt-rtx"):
        with pytest.raises(UsageError, match=f"{word} needs an NVIDIA GPU, the device is cpu"):
            choose_backend(word, "cpu")


@pytest.mark.parametrize(
    ("chip", "here", "chosen"),
    [
        ("sm90", {"tensorrt", "tensorrt-rtx"}, "tensorrt"),
        ("sm89", {"tensorrt-rtx"}, "tensorrt-rtx"),
        ("sm90", {"tensorrt-rtx"}, "onnxruntime"),
        ("sm90", set(), "onnxruntime"),
    ],
)
def test_auto_takes_what_knows_the_chip_and_says_so(
    monkeypatch: pytest.MonkeyPatch, chip: str, here: set[str], chosen: str
) -> None:
    monkeypatch.setattr(models, "read_chip", lambda _: Chip("NVIDIA something", chip))
    monkeypatch.setattr(models, "has_library", lambda flavour: flavour in here)
    monkeypatch.setattr(models, "open_tensorrt", fake_trt)
    said: list[str] = []
    assert choose_backend("auto", "cuda", say=said.append) == chosen
    assert said == [f"backend: {chosen}"]
    assert choose_backend("auto", "cpu") == "onnxruntime"


def test_rtx_by_name_on_a_chip_it_does_not_know_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(models, "read_chip", lambda _: Chip("NVIDIA H200", "sm90"))
    monkeypatch.setattr(models, "open_tensorrt", fake_trt)
    with pytest.raises(UsageError, match=r"sm90.*dfm-engine\[tensorrt\]"):
        choose_backend("tensorrt-rtx", "cuda")


def test_onnxruntime_opens_a_graph_row_by_row_on_a_cpu(artifact: Artifact) -> None:
    runner = open_graph(artifact, artifact.graph("animate"), Opening(backend="onnxruntime"))
    assert runner.max_batch == 1
    assert runner.name == "onnxruntime-cpu-fp32"
    feeds = warp_feeds(3)
    wanted = Warp()(*feeds.values())
    torch.testing.assert_close(runner.run(feeds)["mask"], wanted, rtol=0, atol=2e-6)
    with pytest.raises(UsageError, match="no exported graph runs by --backend torch"):
        open_graph(artifact, artifact.graph("animate"), Opening(backend="torch"))


def test_an_engine_is_built_on_the_first_use_and_found_on_the_second(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way of `--backend tensorrt`, with an engine that computes on the CPU."""
    chip = Chip("NVIDIA H200", "sm90")
    plan = b"a plan for sm90"
    trt = fake_trt(plans={plan: FakeEngine(Warp(), WARP, Profile(opt=4, max=4))})
    built: list[Any] = []

    def build(*args: Any, **kwargs: Any) -> Any:
        built.append((args, kwargs))
        return SimpleNamespace(plan=plan, to_json=lambda: {"build_seconds": 1.0})

    def load(trt: Any, path: Path, spec: GraphSpec, **settings: Any) -> trt_graph.TrtGraph:
        runtime, engine = trt_graph.load_engine(trt, path.read_bytes(), what="it")
        assert settings.pop("runtime_cache").name == "runtime-nvidia-h200-sm90.cache"
        settings |= {"device": "cpu", "cuda_graphs": False, "streams": FakeStreams()}
        return trt_graph.TrtGraph(trt, engine, runtime, spec, **settings)

    for module in (models, trt_graph):
        monkeypatch.setattr(module, "read_chip", lambda _: chip)
    monkeypatch.setattr(models, "open_tensorrt", lambda _: trt)
    monkeypatch.setattr(models, "load_trt_graph", load)
    monkeypatch.setattr(engines, "build_engine", build)
    monkeypatch.setattr(cache_module, "library_version", lambda _: "11.4.1.2")
    opening = Opening(backend="tensorrt", device="cuda", cache=EngineCache(tmp_path / "cache"))
    for _ in range(2):
        with open_graph(artifact, artifact.graph("animate"), opening) as runner:  # type: ignore[attr-defined]
            feeds = warp_feeds(6)
            given = runner.run(feeds)["mask"]
            torch.testing.assert_close(given, Warp()(*feeds.values()), rtol=0, atol=1e-6)
    ((args, kwargs),) = built
    assert args[1] == artifact.graph("animate").path
    assert kwargs["timing_cache"].name == "tensorrt-11.4.1.2-nvidia-h200-sm90.cache"
    (entry,) = opening.cache.report().entries
    assert entry["key"]["target"] == "NVIDIA H200 sm90"


def test_an_export_of_another_kind_is_refused(artifact: Artifact) -> None:
    detector = dataclasses.replace(artifact, kind="detector")
    with pytest.raises(UsageError, match="is of a detector, not of a fomm"):
        open_fomm_runner(detector, Opening(backend="onnxruntime"))


def test_tensorrt_without_a_gpu_is_told_so(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(models, "open_tensorrt", fake_trt)
    opening = Opening(backend="tensorrt-rtx", device="cuda")
    with pytest.raises(EnvironmentUnfit, match="TensorRT runs on an NVIDIA GPU"):
        open_graph(artifact, artifact.graph("animate"), opening)
