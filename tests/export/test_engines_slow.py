"""Every network at its published size as engines for chips that are not here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dfm_export.artifact import Artifact
from dfm_export.cache import EngineCache
from dfm_export.engines import build_engines
from dfm_export.precision import plan_of
from dfm_export.to_tensorrt import BuildSettings
from dfm_export.trt_api import open_tensorrt

pytestmark = pytest.mark.slow

CHIPS = ("sm80", "sm86", "sm89", "sm120")
DETECTORS = ("mesoinception4", "xception", "resnet50", "resnet101", "resnet152")  # the paper's
_LOW = {"float16": "HALF", "bfloat16": "BF16"}


def check_engines(artifact: Artifact, chips: tuple[str, ...], folder: Path) -> None:
    """Build one engine for these chips, and look at what came of each graph."""
    trt = open_tensorrt("tensorrt-rtx")
    settings, cache = BuildSettings(targets=chips), EngineCache(folder)
    made = build_engines(artifact, trt, settings, target=",".join(chips), cache=cache)
    assert set(made) == set(artifact.graphs)
    plan = plan_of(artifact.kind, artifact.precision)
    for name, engine in made.items():
        graph, network = artifact.graph(name), engine.manifest["network"]
        assert network["grid_samples"] == graph.grid_samples
        assert engine.manifest["warnings"] == []
        dtype = plan.dtype_of(name)
        for low, word in _LOW.items():
            # as many 16-bit tensors as the file has: none for keypoints, whatever the plan
            wanted = graph.census[low] if low == dtype else 0
            assert network["census"].get(word, 0) == wanted, (name, word)
        # weights, and code and tables of up to two megabytes
        size = engine.manifest["size_bytes"]
        assert 0.8 * graph.size_bytes < size < 1.2 * graph.size_bytes + 2_000_000, name
        plan_bytes = engine.path.read_bytes()
        assert all(chip.encode() in plan_bytes for chip in chips)
        assert engine.manifest["parity"] == dict(graph.parity)


@pytest.mark.parametrize("precision", ["fp32", "fp16_islands"])
def test_vox_256_builds_for_each_chip_that_is_not_here(
    exports: Any, tmp_path: Path, precision: str
) -> None:
    pytest.importorskip("tensorrt_rtx")
    for chip in CHIPS:
        check_engines(exports("vox-256", precision), (chip,), tmp_path / chip)


@pytest.mark.parametrize("name", DETECTORS)
def test_each_detector_builds_in_float16_for_each_chip_that_is_not_here(
    exports: Any, tmp_path: Path, name: str
) -> None:
    pytest.importorskip("tensorrt_rtx")
    for chip in CHIPS:
        check_engines(exports(name, "fp16"), (chip,), tmp_path / chip)


@pytest.mark.parametrize("name", DETECTORS)
def test_each_detector_builds_in_float32_for_all_chips_at_once(
    exports: Any, tmp_path: Path, name: str
) -> None:
    pytest.importorskip("tensorrt_rtx")
    check_engines(exports(name, "fp32"), CHIPS, tmp_path)
