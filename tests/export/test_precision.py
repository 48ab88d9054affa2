"""Emulated 16-bit arithmetic rounds every operation once, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dfm_export.precision import emulate, plan_of


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_operation_computes_in_float32_and_rounds_its_result(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 9, 9, generator=generator).to(dtype)
    weight = torch.randn(4, 8, 3, 3, generator=generator).to(dtype)
    bias = torch.randn(4, generator=generator).to(dtype)
    with emulate():
        found = F.avg_pool2d(F.relu(F.conv2d(x, weight, bias)), 2)
    wide = F.conv2d(x.float(), weight.float(), bias.float()).to(dtype)
    wanted = F.avg_pool2d(wide.float().relu(), 2).to(dtype)
    assert found.dtype == dtype
    assert torch.equal(found, wanted)


def test_many_terms_do_not_swamp_an_emulated_sum() -> None:
    ones = torch.ones(4096, dtype=torch.float16)
    with emulate():
        assert ones.sum() == 4096  # adding one by one in float16 stops at 2048


def test_float32_is_left_alone() -> None:
    x = torch.linspace(0, 1, 1000)
    with emulate():
        assert torch.equal(x.softmax(0) * 3, torch.softmax(x, 0) * 3)
        assert (x.half().float() + x).dtype == torch.float32


def test_in_place_operations_and_views_keep_their_memory() -> None:
    x = torch.full((4, 4), -1.0, dtype=torch.float16)
    with emulate():
        x[:2].relu_()
    assert x[:2].eq(0).all()
    assert x[2:].eq(-1).all()


def test_keypoints_are_float32_in_every_plan() -> None:
    plan = plan_of("fomm", "fp16_islands")
    assert plan.dtype_of("keypoints") == "float32"
    assert plan.dtype_of("animate") == "float16"
    assert plan.opset == 18
    assert plan_of("detector", "bf16").opset == 22  # the first with bfloat16 convolutions
