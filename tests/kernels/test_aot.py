"""The kernels compiled for GPUs that are not here."""

from __future__ import annotations

import re

import pytest
import torch

pytest.importorskip("triton", reason="this torch comes without triton")

from dfm_bench.kernel_cases import KernelCase, kernel_cases
from dfm_kernels.aot import compiling_for
from dfm_kernels.coordinates import Points
from dfm_kernels.deformation import mix_motions
from dfm_kernels.dispatch import INTERPRETED, launches_on
from dfm_kernels.epilogues import affine_relu, bias_relu_cat, bias_relu_pool, residual
from dfm_kernels.from_yuv import yuv_to_rgb
from dfm_kernels.softargmax import soft_argmax
from dfm_kernels.sparse_motion import sparse_motion
from dfm_kernels.to_yuv import rgb_to_yuv
from dfm_kernels.warp import warp
from dfm_kernels.warp_backward import warp_backward

pytestmark = pytest.mark.skipif(INTERPRETED, reason="Triton interprets here")

KERNELS = {
    *("_soft_argmax_kernel", "_sparse_motion_kernel", "_mix_motions_kernel", "_warp_kernel"),
    *("_warp_backward_kernel", "_rgb_to_yuv_kernel", "_yuv_to_rgb_kernel", "_affine_relu_kernel"),
    *("_bias_relu_pool_kernel", "_bias_relu_cat_kernel", "_residual_kernel"),
}


def launch(case: KernelCase) -> None:
    with torch.no_grad():
        case.ours(*case.draw(0))


def test_a_kernel_compiles_without_a_gpu_and_runs_nothing() -> None:
    features = torch.zeros(2, 64, 8, 8, dtype=torch.float16).to(memory_format=torch.channels_last)
    grid = torch.zeros(2, 8, 8, 2)
    with compiling_for(90) as compiled:
        assert launches_on(features)
        for _ in range(2):  # the second time it is known
            warp(features, grid, None, align_corners=True)
    assert not launches_on(features)
    (kernel,) = compiled
    assert (kernel.name, kernel.target) == ("_warp_kernel", "sm_90a")
    # Channels last is worth its name: a corner's channels come 128 bits at a time.
    assert re.search(r"ld\.global\.v4\.b32", kernel.ptx)
    assert re.search(r"st\.global\.v4\.b32", kernel.ptx)
    assert (0 < kernel.registers <= 64, kernel.spilled_bytes, kernel.shared_bytes) == (True, 0, 0)
    assert torch.equal(warp(features, grid, None, align_corners=True), features * 0)


@pytest.mark.slow
def test_sizes_of_one_compile_too() -> None:
    """Triton makes constants of arguments that equal one; the interpreter does not."""
    one, grid = torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 2)
    points = Points(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2, 2))
    with compiling_for(90) as compiled, torch.no_grad():
        warp(one, grid, one, align_corners=False)
        warp_backward(one, one, grid, one, True, True, True)
        sparse_motion(one, points, points, variance=0.01, align_corners=True)
        mix_motions(torch.zeros(1, 2, 1, 1), one, points, points)
        soft_argmax(one, torch.zeros(1, 4, 1, 1), temperature=0.1)
        rgb_to_yuv(torch.zeros(1, 3, 2, 2))
        affine_relu(one, None, one.flatten())
        bias_relu_pool(torch.zeros(1, 1, 2, 2), one.flatten())
        bias_relu_cat(one, one.flatten(), one)
        residual(one, one, *[one.flatten()] * 3)
        yuv_to_rgb(torch.zeros(1, 3, 2, dtype=torch.uint8), boxes=torch.ones(4).cumsum(0), size=1)
    assert {kernel.name for kernel in compiled} == KERNELS


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90])
def test_every_kernel_compiles_for_production_without_spilling(architecture: int) -> None:
    with compiling_for(architecture) as found:
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            for case in kernel_cases(2, device="cpu", dtype=dtype):
                launch(case)
    assert {kernel.name for kernel in found} == KERNELS
    # Two yuv_to_rgb (whole, cropped) and ten others, in three types.
    assert len(found) == 3 * 12
    for kernel in found:
        assert kernel.target.startswith(f"sm_{architecture}")
        # 80 registers leave room for 6 programs of 128 threads on a multiprocessor, 128 for 4.
        limit = 128 if kernel.name == "_warp_backward_kernel" else 80
        assert kernel.registers <= limit, f"{kernel.name}: {kernel.registers} registers"
        assert kernel.spilled_bytes == 0, kernel.name
