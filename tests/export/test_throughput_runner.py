"""The generator for tensor cores is the model; its runner replays what it launches."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from dfmtest_export import tiny_config
from dfmtest_fomm import make_fomm, pictures
from torch import Tensor

from dfm_engine.backends import TorchRunner
from dfm_engine.errors import CheckFailed, UsageError
from dfm_engine.fomm.model import Fomm
from dfm_export.parity import ANIMATE_DB
from dfm_export.provide import provide_fomm
from dfm_export.tensor_core import TensorCoreGenerator
from dfm_export.throughput_runner import ThroughputRunner, open_throughput_runner

ROUNDING = 2e-5  # float32 through some fifteen layers, values up to about 5
MODELS = {
    "usual": {},
    "no-jacobian": {"estimate_jacobian": False},
    "no-occlusion": {"gen": {"estimate_occlusion_map": False}},
    "resized": {"gen": {"num_down_blocks": 2}},  # features smaller than the deformation
    "deep": {"gen": {"num_bottleneck_blocks": 3}},
}


def model(kind: str = "usual") -> Fomm:
    return make_fomm(tiny_config(**MODELS[kind]), seed=5)


def immediately(launch: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """A recording that is a launch."""
    return launch


def worst_db(found: Tensor, wanted: Tensor) -> float:
    noise = float((found.double() - wanted.double()).square().mean(dim=(1, 2, 3)).max())
    return -10 * math.log10(max(noise, 1e-30))


@pytest.mark.parametrize("kind", MODELS)
def test_in_float32_the_rewritten_generator_is_the_model(kind: str) -> None:
    fomm = model(kind)
    exact: Any = TorchRunner(copy.deepcopy(fomm))
    ours = TensorCoreGenerator(fomm, device="cpu", dtype=torch.float32)
    images = pictures(3, fomm.frame_size).float()
    with torch.inference_mode():
        kp = exact.keypoints(images)
        wanted, found = exact.source(images[:1]), ours.source(images[:1])
        torch.testing.assert_close(found.encoded, wanted.encoded, rtol=0, atol=ROUNDING)
        torch.testing.assert_close(found.small, wanted.small, rtol=0, atol=ROUNDING)
        frames = ours.animate(found, kp[0], kp)
        torch.testing.assert_close(frames, exact.animate(wanted, kp[0], kp), rtol=0, atol=ROUNDING)
    assert frames.std() > 0.01  # something was compared


def test_every_map_that_a_convolution_reads_has_a_multiple_of_eight_channels() -> None:
    ours = TensorCoreGenerator(model(), device="cpu", dtype=torch.float32)
    read = [part.conv.in_channels for part in [*ours.encoder, *ours.decoder, ours.heads]]  # pyright: ignore
    assert [channels for channels in read if channels % 8] == []


def test_the_runner_serves_one_source_or_one_for_each_row() -> None:
    fomm = model()
    runner = ThroughputRunner(
        copy.deepcopy(fomm), device="cpu", dtype=torch.float32, record=immediately
    )
    exact: Any = TorchRunner(fomm)
    images = pictures(4, fomm.frame_size).float()
    kp, features = runner.keypoints(images), runner.source(images)
    assert torch.equal(kp.value, exact.keypoints(images).value)
    wanted = exact.animate(exact.source(images)[0], kp[0], kp)
    one = runner.animate(features[0], kp[0], kp)
    each = runner.animate(features[[0] * 4], kp[[0] * 4], kp)
    mixed = runner.animate(features, kp[0], kp)
    torch.testing.assert_close(one, wanted, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(each, wanted, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(mixed[0], wanted[0], rtol=0, atol=ROUNDING)
    assert (mixed[1] - wanted[1]).abs().max() > 0.01  # another source
    assert runner.weights_sha256 == fomm.weights_sha256
    assert runner.name == "torch-cpu-fp16_islands"


def test_a_cpu_and_int8_by_torch_are_refused() -> None:
    with pytest.raises(UsageError, match=r"--precision fp16_islands by torch needs a GPU.*cpu"):
        provide_fomm(model(), backend="torch", device="cpu", batch_size=4, precision="fp16_islands")
    with pytest.raises(UsageError, match=r"int8 runs by --backend onnxruntime, openvino"):
        provide_fomm(model(), backend="torch", device="cpu", batch_size=4, precision="int8")
    assert provide_fomm(model(), backend="torch", device="cpu", batch_size=4) is None


@pytest.mark.gpu
@pytest.mark.parametrize("kind", MODELS)
def test_on_a_gpu_it_passes_the_gate_and_a_replay_is_the_launch(kind: str) -> None:
    fomm = model(kind)
    said: list[str] = []
    runner = open_throughput_runner(copy.deepcopy(fomm), "cuda", say=said.append)
    assert "dB from float32" in said[0]
    images = pictures(5, fomm.frame_size).float().cuda()
    kp, features = runner.keypoints(images), runner.source(images)
    launched = runner.unrecorded(features, kp, kp)
    for _ in range(3):
        assert torch.equal(runner.animate(features, kp, kp), launched)
    exact: Any = TorchRunner(fomm, "cuda")
    assert worst_db(launched, exact.animate(exact.source(images), kp, kp)) > ANIMATE_DB


@pytest.mark.gpu
def test_on_a_gpu_a_rows_bits_do_not_depend_on_its_neighbours() -> None:
    runner = ThroughputRunner(model())
    images = pictures(8, runner.frame_size).float().cuda()
    kp, features = runner.keypoints(images), runner.source(images)
    forth = runner.animate(features, kp, kp)
    order = [5, 0, 7, 2, 1, 6, 3, 4]
    assert torch.equal(runner.animate(features[order], kp[order], kp[order]), forth[order])
    one = runner.animate(features[0], kp[0], kp)
    assert torch.equal(runner.animate(features[[0] * 8], kp[[0] * 8], kp), one)


@pytest.mark.gpu
def test_on_a_gpu_a_generator_that_is_too_far_off_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def off(self: Any, *inputs: Any) -> Tensor:
        return original(self, *inputs) * 0.98  # 34 dB where a frame is white

    original = TensorCoreGenerator.animate
    monkeypatch.setattr(TensorCoreGenerator, "animate", off)
    with pytest.raises(CheckFailed, match=r"the worst frame has \d+\.\d dB PSNR, at least 45"):
        open_throughput_runner(model(), "cuda")
