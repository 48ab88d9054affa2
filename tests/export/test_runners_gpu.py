"""Runners on a GPU: parity with torch, no host copies, streams and recorded graphs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from dfmtest_fomm import make_fomm, pictures, small_config
from dfmtest_onnx_graphs import WARP, Warp, warp_feeds, write_warp

from dfm_engine.backends import TorchRunner
from dfm_engine.errors import EnvironmentUnfit, UsageError
from dfm_export.artifact import Artifact, ExportedGraph, sha256_of
from dfm_export.cache import EngineCache
from dfm_export.fomm_runner import FommGraphsRunner
from dfm_export.graphs import fomm_graphs
from dfm_export.models import Opening, open_graph
from dfm_export.ort_graph import OrtGraph, check_provider
from dfm_export.precision import plan_of
from dfm_export.runners import CompiledTorchGraph, GraphRunner
from dfm_export.specs import GraphSpec
from dfm_export.to_tensorrt import BuildSettings, Profile
from dfm_export.trt_api import FLAVOURS
from dfm_export.trt_graph import read_chip

pytestmark = pytest.mark.gpu
TOLERANCE = 1e-5  # other kernels, float32 throughout: a few roundings of 27 products


@pytest.fixture(params=["onnxruntime", "torch-compile", *FLAVOURS])
def runner(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[GraphRunner]:
    path = write_warp(tmp_path / "animate.onnx")
    if request.param == "onnxruntime":
        try:
            check_provider("cuda")
        except EnvironmentUnfit as error:
            pytest.skip(str(error))
        opened: GraphRunner = OrtGraph(path, WARP, device="cuda", max_batch=8)
    elif request.param == "torch-compile":
        opened = CompiledTorchGraph(Warp(), WARP, max_batch=8)
    else:
        opened = _open_trt(request.param, path, tmp_path)
    yield opened
    opened.close()


def _open_trt(flavour: str, path: Path, folder: Path) -> GraphRunner:
    graph = ExportedGraph(
        spec=GraphSpec("animate", WARP.inputs, WARP.outputs),
        path=path,
        sha256=sha256_of(path),
        size_bytes=path.stat().st_size,
        grid_samples=1,
    )
    artifact = Artifact(
        path=folder,
        kind="fomm",
        graphs={"animate": graph},
        precision="fp32",
        weights_sha256="",
        opset=18,
        align_corners=True,
        model={},
    )
    opening = Opening(
        backend=flavour,
        device="cuda",
        settings=BuildSettings(profile=Profile(opt=8, max=8)),
        cache=EngineCache(folder / "engines"),
    )
    try:
        return open_graph(artifact, graph, opening)
    except (EnvironmentUnfit, UsageError) as error:
        chip = read_chip("cuda")
        pytest.skip(f"{flavour} on {chip.name} ({chip.target}): {error}")


def on_gpu(feeds: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.cuda() for name, tensor in feeds.items()}


@pytest.mark.parametrize("rows", [1, 5, 8, 13])
def test_every_runner_agrees_with_torch_at_every_size(runner: GraphRunner, rows: int) -> None:
    feeds = on_gpu(warp_feeds(rows, seed=rows))
    wanted = Warp().cuda()(*feeds.values())
    for _ in range(2):  # the second is a replay
        out = {"mask": torch.full_like(wanted, torch.nan)}
        assert runner.run(feeds, out)["mask"] is out["mask"]
        torch.testing.assert_close(out["mask"], wanted, rtol=0, atol=TOLERANCE)


def test_work_before_and_after_a_call_needs_no_synchronisation(runner: GraphRunner) -> None:
    runner.warmup([8])
    wanted = Warp().cuda()
    for seed in range(4):
        feeds = on_gpu(warp_feeds(8, seed=seed))
        torch.cuda._sleep(20_000_000)  # what fills the inputs is late
        moved = {name: tensor * 1 for name, tensor in feeds.items()}
        found = runner.run(moved)["mask"] + 0
        del moved  # its memory may be taken again only once the call is done
        torch.empty(8 * 3 * 8 * 8, device="cuda").fill_(torch.nan)
        torch.testing.assert_close(found, wanted(*feeds.values()), rtol=0, atol=TOLERANCE)


def test_nothing_passes_through_the_host(runner: GraphRunner) -> None:
    feeds, out = on_gpu(warp_feeds(8)), {"mask": torch.empty(8, 4, 8, 8, device="cuda")}
    runner.run(feeds, out)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        runner.run(feeds, out)
        torch.cuda.synchronize()
    copies = [event.key for event in profile.key_averages() if "Memcpy" in event.key]
    assert not [key for key in copies if "HtoD" in key or "DtoH" in key]


def test_a_tensor_on_the_host_is_refused(runner: GraphRunner) -> None:
    with pytest.raises(Exception, match="is on cpu, the runner on cuda:0"):
        runner.run(warp_feeds(2))


def test_a_small_fomm_compiled_agrees_with_torch() -> None:
    fomm = make_fomm(small_config(num_kp=5), seed=3)
    graphs = fomm_graphs(fomm, plan_of("fomm", "fp32"))
    compiled = FommGraphsRunner(
        {name: CompiledTorchGraph(graph, graph.spec) for name, graph in graphs.items()},
        weights_sha256="",
    )
    torch_runner: Any = TorchRunner(fomm, "cuda")
    images = pictures(4, (64, 64)).float().cuda()
    features, kp = torch_runner.source(images[:1]), torch_runner.keypoints(images)
    found, wanted = compiled.keypoints(images), kp
    torch.testing.assert_close(found.value, wanted.value, rtol=0, atol=1e-4)
    torch.testing.assert_close(
        compiled.animate(features, kp[0], kp),
        torch_runner.animate(features, kp[0], kp),
        rtol=0,
        atol=1e-4,
    )
    compiled.close()
