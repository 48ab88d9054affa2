"""Engines built ahead of time, for chips that are not here."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest
from dfmtest_onnx_graphs import WARP, write_warp

from dfm_engine.errors import CheckFailed, EnvironmentUnfit, UsageError
from dfm_export import trt_api
from dfm_export.inspect import Expected
from dfm_export.specs import GraphSpec, TensorSpec
from dfm_export.to_tensorrt import BuildSettings, Profile, build_engine, load_engine
from dfm_export.trt_api import TensorRt, TensorRtError, library_version, open_tensorrt

RIGHT = Expected(spec=WARP, align_corners=True, grid_samples=1)


@pytest.fixture
def rtx() -> TensorRt:
    pytest.importorskip("tensorrt_rtx")
    return open_tensorrt("tensorrt-rtx")


@pytest.fixture
def data_centre(rtx: TensorRt) -> TensorRt:
    """The other flavour, played by this one's module without what only it has."""
    api = SimpleNamespace(
        **{
            name: getattr(rtx.api, name)
            for name in dir(rtx.api)
            if name != "ComputeCapability" and not name.startswith("__")
        }
    )
    return dataclasses.replace(rtx, flavour="tensorrt", api=api)


@pytest.mark.parametrize("target", ["sm80", "sm120"])
def test_an_engine_is_built_for_a_chip_that_is_not_here(
    tmp_path: Path, rtx: TensorRt, target: str
) -> None:
    settings = BuildSettings(targets=(target,))
    built = build_engine(rtx, write_warp(tmp_path / "warp.onnx"), RIGHT, settings)
    # what the plan says of itself is undocumented, but it is what tells one engine from another
    assert f"sm{target[2:]}".encode() in built.plan
    assert built.plan[24:28] == bytes(int(part) % 256 for part in rtx.version.split(".")[:4])
    assert built.facts.grid_samples == 1
    assert built.seconds > 0


def test_one_engine_serves_several_chips(tmp_path: Path, rtx: TensorRt) -> None:
    settings = BuildSettings(targets=("sm86", "sm89"))
    plan = build_engine(rtx, write_warp(tmp_path / "warp.onnx"), RIGHT, settings).plan
    assert b"sm86" in plan
    assert b"sm89" in plan


def test_a_chip_that_rtx_does_not_know_is_refused_with_the_extra_that_may(
    tmp_path: Path, rtx: TensorRt
) -> None:
    settings = BuildSettings(targets=("sm90",))
    absent = tmp_path / "never-read.onnx"
    with pytest.raises(UsageError, match=r"does not know the chip sm90.*dfm-engine\[tensorrt\]"):
        build_engine(rtx, absent, RIGHT, settings)


def test_the_data_centre_flavour_takes_no_targets_and_rtx_no_compatibility(
    tmp_path: Path, rtx: TensorRt, data_centre: TensorRt
) -> None:
    absent = tmp_path / "never-read.onnx"
    with pytest.raises(UsageError, match=r"builds for the GPU of this machine.*sm89"):
        build_engine(data_centre, absent, RIGHT, BuildSettings(targets=("sm89",)))
    with pytest.raises(UsageError, match="no hardware compatibility levels"):
        build_engine(rtx, absent, RIGHT, BuildSettings(compatibility="ampere-plus"))


def test_only_the_data_centre_flavour_has_a_timing_cache(
    tmp_path: Path, rtx: TensorRt, data_centre: TensorRt
) -> None:
    assert data_centre.has_timing_cache
    path = write_warp(tmp_path / "warp.onnx")
    build_engine(rtx, path, RIGHT, BuildSettings(), timing_cache=tmp_path / "timing.bin")
    assert not (tmp_path / "timing.bin").exists()


def test_a_wrong_graph_is_not_built(tmp_path: Path, rtx: TensorRt) -> None:
    path = write_warp(tmp_path / "warp.onnx", align_corners=False)
    with pytest.raises(CheckFailed, match="align_corners False"):
        build_engine(rtx, path, RIGHT, BuildSettings())
    newer = write_warp(tmp_path / "newer.onnx", mode="linear", opset=20)
    with pytest.raises(CheckFailed, match="opset 20"):
        build_engine(rtx, newer, RIGHT, BuildSettings())


def test_tf32_is_what_the_settings_say(tmp_path: Path, rtx: TensorRt) -> None:
    seen = []

    class Spy(rtx.api.Builder):
        def build_serialized_network(self, network: object, config: object) -> None:
            seen.append(config.get_flag(rtx.api.BuilderFlag.TF32))  # type: ignore[attr-defined]

    api = SimpleNamespace(**{**vars(rtx.api), "Builder": Spy})
    path = write_warp(tmp_path / "warp.onnx")
    for tf32 in (False, True):
        # None from the build is an error even where the library gave no reason
        with pytest.raises(TensorRtError, match=r"building .* failed: the library gave no reason"):
            build_engine(dataclasses.replace(rtx, api=api), path, RIGHT, BuildSettings(tf32=tf32))
    assert seen == [False, True]


def test_a_plan_that_does_not_load_says_what_the_library_said(rtx: TensorRt) -> None:
    with pytest.raises(TensorRtError, match=r"loading 'x.plan' \(5 bytes\) failed: error: .+"):
        load_engine(rtx, b"noise", what="'x.plan'")


def test_a_profile_reaches_every_dynamic_dimension() -> None:
    spec = GraphSpec(
        "animate",
        (
            TensorSpec("features", "float16", ("sources", 8, 4, 4)),
            TensorSpec("value", "float32", ("batch", 10, 2)),
        ),
        (TensorSpec("frame", "float32", ("batch", 3, 16, 16)),),
    )
    assert Profile.parse("2, 4,16").shapes(spec) == {
        "features": ((1, 8, 4, 4), (4, 8, 4, 4), (16, 8, 4, 4)),
        "value": ((2, 10, 2), (4, 10, 2), (16, 10, 2)),
    }


@pytest.mark.parametrize("text", ["8", "1,8", "0,1,2", "4,2,8", "1,9,8", "1,x,8", "-1,2,3"])
def test_a_profile_out_of_order_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="min,opt,max"):
        Profile.parse(text)


def test_an_absent_flavour_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", refuse)
    unkept = open_tensorrt.__wrapped__  # a logger that the library heard of stays the only one
    with pytest.raises(EnvironmentUnfit, match=r"No module named 'tensorrt'.*\[tensorrt\]'"):
        unkept("tensorrt")
    with pytest.raises(EnvironmentUnfit, match=r"dfm-engine\[rtx\]'"):
        unkept("tensorrt-rtx")


def test_versions_are_read_without_loading_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", None)
    versions = {"tensorrt-rtx-cu13": "1.7.1.116"}

    def version(name: str) -> str:
        if name in versions:
            return versions[name]
        raise trt_api.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(trt_api.metadata, "version", version)
    assert library_version("tensorrt-rtx") == "1.7.1.116"
    assert library_version("tensorrt") is None
