"""Everything at full size: vox-256 and the paper's five detectors, as files and as engines.

Each is exported once; the tests ask different questions of it. Seeded weights, made lively, so that
what is compared is not nothing.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from dfm_engine import fomm
from dfm_engine.detect.detector import ForgeryDetector
from dfm_engine.detect.models import create_detector
from dfm_engine.pixels import images_from_frames
from dfm_export.artifact import Artifact, open_artifact
from dfm_export.cases import draw_faces
from dfm_export.engines import run_build_engines
from dfm_export.precision import plan_of
from dfm_export.run_export import export_detector, export_fomm
from dfm_export.to_tensorrt import BuildSettings

pytestmark = pytest.mark.slow

PAPER = ("mesoinception4", "xception", "resnet50", "resnet101", "resnet152")
EXPORTS = (
    "fomm-fp32",
    "fomm-fp16_islands",
    *(f"{name}-fp16" for name in PAPER),
    "mesoinception4-fp32",
    "xception-fp32",
    "resnet50-fp32",
    "mesoinception4-bf16",
)
TARGETS = ("sm80", "sm86", "sm89", "sm120")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("full-size")


@pytest.fixture(params=EXPORTS)
def export(request: pytest.FixtureRequest, folder: Path) -> Artifact:
    return exported(request.param, folder)


@cache
def exported(name: str, folder: Path) -> Artifact:
    model, precision = name.rsplit("-", 1)
    if model == "fomm":
        plan = plan_of("fomm", precision)
        return export_fomm(fomm.initialise(None, 0), folder / name, plan=plan)
    plan = plan_of("detector", precision)
    return export_detector(lively(model), folder / name, plan=plan, frames=16)


@cache
def lively(name: str) -> ForgeryDetector:
    """Norms with the statistics of faces, and logits of size one: seeded nets fade to nothing."""
    detector = create_detector(name)
    side = detector.spec.input_px
    images = images_from_frames(draw_faces(4, side, people=4)) * 4 - 2
    norms = [part for part in detector.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        detector(images)
        detector.eval()
        logits = detector(images)
        last = [part for part in detector.head.modules() if isinstance(part, nn.Linear)][-1]
        last.weight.div_(logits.std())
    return detector


def test_files_agree_with_torch_in_onnx_runtime(export: Artifact) -> None:
    assert open_artifact(export.path) == export
    in_files = export.gates["onnxruntime"]
    if export.precision == "bf16":
        assert "no bfloat16" in in_files
        return
    largest = max(value for name, value in in_files.items() if name.startswith("max_rel."))
    if export.precision == "fp32":
        assert largest <= 1e-4
    elif export.kind == "fomm":
        assert in_files["keypoints_px"] <= 0.05
        assert in_files["animate_db"] >= 45
    else:
        assert in_files["flips"] == 0
        assert 0 < in_files["max_dp"] < 0.02


def test_plans_stay_within_their_gates_in_torch(export: Artifact) -> None:
    in_torch = export.gates["torch"]
    if export.kind == "fomm":
        assert in_torch["keypoints_px"] <= 0.05
        assert 45 <= in_torch["animate_db"] <= (200 if export.precision == "fp32" else 90)
    else:
        assert in_torch["flips"] == 0
        assert (in_torch["max_dp"] > 1e-5) == (export.precision != "fp32")


def test_census_shows_the_plan(export: Artifact) -> None:
    for graph in export.graphs.values():
        low = plan_of(export.kind, export.precision).dtype_of(graph.name)
        assert (graph.census.get("float16", 0) > 0) == (low == "float16")
        assert (graph.census.get("bfloat16", 0) > 0) == (low == "bfloat16")
        assert graph.census["float32"] > 0
        assert graph.grid_samples == (2 if graph.name == "animate" else 0)


def test_engines_build_for_every_chip_without_a_gpu(export: Artifact, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra rtx is not installed")
    from dfm_export.cache import EngineCache

    result = run_build_engines(
        export,
        flavour="tensorrt-rtx",
        settings=BuildSettings(targets=TARGETS),
        out=tmp_path / "engines",
        cache=EngineCache(tmp_path / "cache"),
    )
    assert len(result.engines) == len(export.graphs)
    for engine in result.engines:
        weights = export.graphs[engine.graph].size_bytes
        # An engine holds the weights once for all chips, and less than 4 MB besides.
        assert 0.9 * weights <= engine.size_bytes <= 1.2 * weights + 4e6
        assert all(chip.encode() in engine.path.read_bytes() for chip in TARGETS)
        sidecar = json.loads(engine.path.with_name(f"{engine.path.name}.json").read_bytes())
        assert sidecar["warnings"] == []
        graph, network = export.graphs[engine.graph], sidecar["network"]
        assert network["grid_samples"] == graph.grid_samples
        # The parser neither lost a 16-bit tensor nor made one more; keypoints have none.
        for low, word in (("float16", "HALF"), ("bfloat16", "BF16")):
            assert network["census"].get(word, 0) == graph.census.get(low, 0), engine.graph
