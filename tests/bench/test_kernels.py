"""`bench kernels`: its gate, its arithmetic, and a quick run on a CPU."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import pytest
import torch

from dfm_bench.kernel_cases import KernelCase, check_case, kernel_cases
from dfm_bench.kernels import GPUS, Gpu, _ratios, kernel_rows, roofline_estimate, run_bench_kernels
from dfm_bench.measure import Row, Timing
from dfm_engine.errors import CheckFailed, UsageError


@functools.cache
def cases() -> dict[str, KernelCase]:
    return {case.name: case for case in kernel_cases(1, device="cpu")}


def test_every_operator_of_the_kernels_is_a_case() -> None:
    assert [case.name for case in kernel_cases(1, device="cpu", dtype=torch.float16)] == [
        *("soft_argmax", "sparse_motion", "mix_motions", "warp", "warp_backward"),
        *("residual", "affine_relu", "bias_relu_pool", "bias_relu_cat", "rgb_to_yuv"),
        *("yuv_to_rgb to float16", "yuv_to_rgb to float16, cropped"),
    ]


def test_a_wrong_kernel_has_no_number() -> None:
    case = cases()["soft_argmax"]
    assert check_case(case) <= case.tolerance

    def wrong(logits, maps):
        value, jacobian = case.ours(logits, maps)
        return value, jacobian + 1e-3

    with pytest.raises(CheckFailed, match=r"output 1 is off its reference by 0\.00"):
        check_case(dataclasses.replace(case, ours=wrong))
    bits = cases()["rgb_to_yuv"]
    assert check_case(bits) == 0
    with pytest.raises(CheckFailed, match="rgb_to_yuv"):
        check_case(dataclasses.replace(bits, ours=lambda images: bits.ours(images) ^ 1))
    empty = dataclasses.replace(bits, tolerance=1e-3, ours=lambda i: bits.ours(i) * float("nan"))
    with pytest.raises(CheckFailed, match="off its reference by nan"):
        check_case(empty)


def test_the_bytes_of_a_case_are_those_of_its_tensors() -> None:
    for name in ("warp", "sparse_motion", "mix_motions", "soft_argmax", "rgb_to_yuv"):
        case = cases()[name]
        inputs = case.draw(0)
        outputs = case.reference(*inputs)
        outputs = [outputs] if isinstance(outputs, torch.Tensor) else outputs
        assert case.traffic.bytes == sum(t.numel() * t.itemsize for t in (*inputs, *outputs)), name
        assert case.traffic.flops > 0


def test_an_estimate_takes_the_longer_of_memory_and_arithmetic() -> None:
    warp = cases()["warp"]
    slow_memory = Gpu(name="", architecture=90, bytes_per_s=1e9, flops_per_s=1e15)
    slow_arithmetic = Gpu(name="", architecture=90, bytes_per_s=1e15, flops_per_s=1e9)
    assert roofline_estimate([warp], slow_memory) == {"warp": warp.traffic.bytes / 1e9}
    assert roofline_estimate([warp], slow_arithmetic) == {"warp": warp.traffic.flops / 1e9}


def test_rates_count_the_bytes_that_must_move() -> None:
    case = dataclasses.replace(cases()["warp"], draw=lambda seed: (seed,), reference=lambda x: x)
    (row,) = kernel_rows(case, torch.device("cpu"), copy_gb_s=5.0, repeats=3)
    assert (row.variant, row.unit, row.ceiling, row.repeats) == ("torch", "GB/s", 5.0, 3)
    assert row.rate == pytest.approx(case.traffic.bytes / 1e9 / row.median_s)


def test_ratios_name_the_kernel_that_misses_its_goal() -> None:
    def rows(kernel_s: float, compiled_s: float) -> list[Row]:
        times = {"kernel": kernel_s, "torch": 0.1, "torch.compile": compiled_s}
        return [
            Row.of(
                "warp",
                Timing((seconds,)),
                variant=way,
                amount=1.0,
                unit="GB/s",
                shape=(1,),
                ceiling=1000.0,
            )
            for way, seconds in times.items()
        ]

    assert "short of its goal" not in _ratios(rows(1 / 700, 1 / 700))  # 70 % of a copy
    assert "short of its goal" not in _ratios(rows(0.01, 0.02))  # twice the compiled one
    text = _ratios(rows(0.01, 0.019))
    assert text.startswith("warp uint8: 10% of a copy, 10.0x torch, 1.9x torch.compile; short of")


def test_an_unknown_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--gpu takes a100, h100, h200, found 'h300'"):
        run_bench_kernels(out=tmp_path, device="cpu", gpu="h300")


@pytest.mark.slow
def test_a_cpu_times_references_and_labels_its_estimate(tmp_path: Path) -> None:
    report = run_bench_kernels(out=tmp_path, device="cpu", quick=True, gpu="a100", command="c")
    assert {row.variant for row in report.rows[1:]} == {"torch"}
    assert [row.name for row in report.rows] == ["copy", *cases()]
    assert report.remark.startswith("Estimate, not a measurement: at the 2.039 TB/s")
    assert GPUS["a100"].name in report.remark
    (written,) = tmp_path.glob("*.json")
    assert json.loads(written.read_text())["verb"] == "kernels"
