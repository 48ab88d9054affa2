"""`bench export` on a graph made by hand: parity first, files with sizes, rates by backend."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from dfmtest_fomm import make_fomm, small_config
from dfmtest_onnx_graphs import WARP, Warp, warp_feeds, write_warp

from dfm_bench import ways
from dfm_bench.exports import Scope, run_bench_export
from dfm_bench.generators import EXACT
from dfm_engine.backends import TorchRunner
from dfm_engine.errors import CheckFailed
from dfm_export.artifact import Artifact, ExportedGraph, sha256_of
from dfm_export.cache import EngineCache
from dfm_export.models import Opening
from dfm_export.ort_graph import OrtGraph
from dfm_export.provide import ExportCache
from dfm_export.specs import GraphSpec

SCOPE = Scope(batches={"cpu": (1, 3)}, repeats=2, frames=2)


class WarpNetwork:
    """Stands for a FOMM of one graph."""

    name, kind, graphs = "warp", "fomm", ("animate",)

    def __init__(self, folder: Path, **wrong: Any) -> None:
        self.folder, self.wrong = folder, wrong
        self.opened: list[str] = []

    def torch_calls(self) -> Mapping[str, Any]:
        return {"animate": lambda feeds: {"mask": Warp()(feeds["image"], feeds["grid"])}}

    def compiled_calls(self, stack: contextlib.ExitStack) -> Mapping[str, Any]:
        raise AssertionError("not on a CPU")

    def export(self, exports: ExportCache, precision: str, say: Any) -> Artifact:
        path = write_warp(self.folder / f"{precision}.onnx", **self.wrong)
        graph = ExportedGraph(
            spec=GraphSpec("animate", WARP.inputs, WARP.outputs),
            path=path,
            sha256=sha256_of(path),
            size_bytes=path.stat().st_size,
            grid_samples=1,
            seconds=1.25,
        )
        return Artifact(
            path=self.folder,
            kind="fomm",
            graphs={"animate": graph},
            precision=precision,
            weights_sha256="",
            opset=18,
            align_corners=True,
            model={},
        )

    def open(self, artifact: Artifact, opening: Opening, stack: contextlib.ExitStack) -> Any:
        self.opened.append(opening.backend)
        return {"animate": OrtGraph(artifact.graph("animate").path, WARP).run}

    def errors(self, calls: Mapping[str, Any]) -> dict[str, float]:
        feeds = warp_feeds(4)
        wanted = Warp()(*feeds.values())
        found = calls["animate"](feeds)["mask"]
        worst = float((found - wanted).abs().max())  # of values up to 1
        return {"max_abs.animate.mask": worst, "max_rel.animate.mask": worst}

    def feeds(self, graph: str, batch: int, turn: int) -> Mapping[str, torch.Tensor]:
        return warp_feeds(batch, seed=turn)


def run(tmp_path: Path, network: WarpNetwork) -> Any:
    return run_bench_export(
        out=tmp_path / "out",
        networks=[network],  # type: ignore[list-item]
        scope=SCOPE,
        exports=ExportCache(tmp_path / "exports"),
        engines=EngineCache(tmp_path / "engines"),
        command="the command",
    )


def test_every_backend_has_a_rate_at_every_batch_and_every_file_its_size(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    network = WarpNetwork(tmp_path)
    report = run(tmp_path, network)
    rows = {(row.variant, row.shape[0]): row for row in report.rows[1:]}
    assert set(rows) == {(way, n) for way in ("torch fp32", "onnxruntime fp32") for n in (1, 3)}
    # what a frame costs does not depend on the batch: 4 filters of 27 products, two operations each
    flops = 2 * 27 * 4 * 64
    for (_, batch), row in rows.items():
        assert row.name == "warp animate"
        assert row.rate == pytest.approx(batch / row.median_s)
        assert row.ceiling == pytest.approx(report.rows[0].rate * 1e9 / flops)
        assert row.command == "the command"
    onnx, engine = report.files
    assert (onnx.file, onnx.seconds) == ("onnx", 1.25)
    assert onnx.size_bytes == (tmp_path / "fp32.onnx").stat().st_size
    assert onnx.max_abs is not None
    assert 0 <= onnx.max_abs < 1e-5
    assert engine.file.startswith("tensorrt-rtx 1.")
    assert engine.file.endswith(", default")
    (plan,) = (tmp_path / "engines").glob("*/*/engine.plan")
    assert engine.size_bytes == plan.stat().st_size
    assert engine.max_abs is None  # nothing here runs it
    assert network.opened == ["onnxruntime"]
    text = next((tmp_path / "out").glob("*.md")).read_text()
    assert "| not run |" in text
    assert "onnxruntime fp32" in text
    assert len(report.to_json()["files"]) == 2


def test_a_backend_that_is_wrong_has_no_numbers(tmp_path: Path) -> None:
    """Another sampling: a hundred times the limit, and no report."""
    with pytest.raises(
        CheckFailed, match=r"no numbers: warp by onnxruntime fp32: max_rel"
    ) as failed:
        run(tmp_path, WarpNetwork(tmp_path, align_corners=False))
    assert failed.value.exit_code == 5
    assert not (tmp_path / "out").exists()


def test_every_way_has_the_products_that_it_executes(monkeypatch: pytest.MonkeyPatch) -> None:
    fomm = make_fomm(small_config(num_kp=4), seed=1)

    def exported(model: Any, backend: str, precision: str, *_: Any) -> TorchRunner:
        if precision.startswith("int8"):
            raise CheckFailed("the worst frame has 30.0 dB")
        return TorchRunner(copy.deepcopy(model))

    monkeypatch.setattr(ways, "_exported", exported)
    found, left = ways.open_ways(fomm, torch.device("cpu"), quick=False)
    assert [way.name for way in found] == [
        *("torch fp32", "torch fp32, rewritten", "onnxruntime fp32", "openvino fp32"),
    ]
    assert [line.split(":")[0] for line in left] == ["onnxruntime int8", "openvino int8_wide"]
    assert "30.0 dB" in left[0]
    plain, rewritten, other, _ = found
    assert rewritten.gate is EXACT
    # an up block as a transposed convolution has 16 products where it had 36
    assert 0.4 * plain.flops < rewritten.flops < plain.flops
    assert other.flops == rewritten.flops


def test_a_named_backend_is_one_more_way(monkeypatch: pytest.MonkeyPatch) -> None:
    fomm = make_fomm(small_config(num_kp=4), seed=1)
    asked: dict[str, Any] = {}

    class Named(TorchRunner):
        name = "tensorrt-cuda-fp32-12345678"

    def provide(model: Any, **how: Any) -> TorchRunner | None:
        asked.update(how)
        return Named(copy.deepcopy(model))

    monkeypatch.setattr(ways, "provide_fomm", provide)
    monkeypatch.setattr(ways, "_exported", lambda model, *_: TorchRunner(copy.deepcopy(model)))
    found, left = ways.open_ways(fomm, torch.device("cpu"), quick=True, backend="tensorrt")
    assert [way.name for way in found][-1] == "tensorrt, as given"
    assert found[-1].gate is EXACT
    assert asked["batch_size"] == max(found[0].batches)
    assert left == []
