"""Torch-TensorRT as far as a machine without it can tell: imported late, refused with a way out."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from dfmtest_onnx_graphs import WARP, Warp, warp_feeds

from dfm_engine.detect.models import create_detector
from dfm_engine.errors import EnvironmentUnfit, UsageError
from dfm_export import provide
from dfm_export.provide import provide_detector, provide_fomm
from dfm_export.runners import TorchGraph
from dfm_export.torch_tensorrt_graph import UNRUN, TorchTensorRtGraph


def test_without_a_gpu_it_is_refused_before_the_package_is_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib, "import_module", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EnvironmentUnfit, match="needs an NVIDIA GPU, asked for cuda"):
        TorchTensorRtGraph(Warp(), WARP)


def test_an_absent_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", absent)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(EnvironmentUnfit, match=r"'torch_tensorrt'.*dfm-engine\[torch-tensorrt\]"):
        TorchTensorRtGraph(Warp(), WARP)


def test_its_compiled_module_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def compile(module: Any, **how: Any) -> Any:
        asked.update(how)
        return lambda *given: module(*given) + 1

    monkeypatch.setattr(importlib, "import_module", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(
        TorchGraph.__bases__[0],
        "__init__",
        _on_the_cpu(TorchGraph.__bases__[0].__init__),
    )
    monkeypatch.setattr(Warp, "to", lambda self, device: self)
    graph = TorchTensorRtGraph(Warp(), WARP)
    feeds = warp_feeds(2)
    assert graph.name == "torch-tensorrt-cuda-fp32"
    assert torch.equal(graph.run(feeds)["mask"], Warp()(*feeds.values()) + 1)
    assert asked["backend"] == "tensorrt"
    assert asked["options"]["disable_tf32"]


def _on_the_cpu(init: Any) -> Any:
    def on_the_cpu(self: Any, spec: Any, *, device: Any, **rest: Any) -> None:
        init(self, spec, device="cpu", **rest)

    return on_the_cpu


def test_a_detector_opens_with_it_and_says_that_it_never_ran(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        provide,
        "_open_torch_tensorrt",
        lambda module, spec, device: TorchGraph(module, spec, backend="torch-tensorrt"),
    )
    detector, said = create_detector("mesoinception4", weights="none"), []
    runner = provide_detector(detector, backend="torch-tensorrt", device="cuda", say=said.append)
    assert said == [UNRUN]
    frames = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    wanted = provide_detector(
        create_detector("mesoinception4", weights="none"), backend="torch", device="cpu"
    ).run(frames)
    torch.testing.assert_close(runner.run(frames).logits, wanted.logits, rtol=0, atol=1e-5)


def test_it_is_for_detectors_alone() -> None:
    with pytest.raises(UsageError, match="--backend takes auto, torch, onnx"):
        provide_fomm(None, backend="torch-tensorrt", device="cuda", batch_size=4)  # type: ignore[arg-type]
