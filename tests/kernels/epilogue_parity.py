"""The passes behind convolutions against their references in float64; see `kernel_parity.py`."""

from __future__ import annotations

import pytest
import torch
from dfmtest_kernels import (  # first of all: see there
    DEVICE,
    EPS,
    ROUNDING,
    Random,
    assert_near,
    nothing_is_left_unwritten,
)

# isort: split
from torch import Tensor

from dfm_kernels.epilogues import (
    BLOCK,
    affine_relu,
    affine_relu_reference,
    bias_relu_cat,
    bias_relu_cat_reference,
    bias_relu_pool,
    bias_relu_pool_reference,
    residual,
    residual_reference,
)

__all__ = ["nothing_is_left_unwritten"]

SIZES = [(2, 5, 7, 9), (1, 64, 6, 8), (3, 24, 5, 12)]  # the last two are more than a block
TYPES = [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.slow)]
pytestmark = [pytest.mark.parametrize("size", SIZES), pytest.mark.parametrize("dtype", TYPES)]


class Inputs:
    """Maps in [-1, 1), channels last, and numbers per channel."""

    def __init__(self, size: tuple[int, ...], dtype: torch.dtype) -> None:
        self.random, self.size, self.dtype = Random(11), size, dtype

    def maps(self, channels: int = 0) -> Tensor:
        rows, own, height, width = self.size
        drawn = self.random.uniform(rows, channels or own, height, width, low=-1.0)
        return drawn.to(self.dtype).contiguous(memory_format=torch.channels_last)

    def numbers(self) -> Tensor:
        return self.random.uniform(self.size[1], low=-1.0).to(self.dtype)


def near(found: Tensor, wanted: Tensor, dtype: torch.dtype, largest: float) -> None:
    """Four roundings in float32 of values up to `largest`, a power of two, and the output's."""
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert_near(found, wanted, largest * (4 * EPS + ROUNDING[dtype]))


def double(*tensors: Tensor) -> list[Tensor]:
    return [tensor.double() for tensor in tensors]


@pytest.mark.parametrize("has_scale", [True, False])
def test_affine_relu_is_its_reference(
    size: tuple[int, ...], dtype: torch.dtype, has_scale: bool
) -> None:
    draw = Inputs(size, dtype)
    x, scale, shift = draw.maps(), draw.numbers() if has_scale else None, draw.numbers()
    exact = None if scale is None else scale.double()
    wanted = affine_relu_reference(x.double(), exact, shift.double())
    near(affine_relu(x, scale, shift), wanted, dtype, 2)
    assert 0 < (wanted == 0).double().mean() < 1


def test_bias_relu_pool_is_its_reference(size: tuple[int, ...], dtype: torch.dtype) -> None:
    draw = Inputs(size, dtype)
    x, bias = draw.maps(), draw.numbers()
    wanted = bias_relu_pool_reference(*double(x, bias))
    assert wanted.shape == (*size[:2], size[2] // 2, size[3] // 2)
    near(bias_relu_pool(x, bias), wanted, dtype, 2)


@pytest.mark.parametrize("channels", [0, 72])
def test_bias_relu_cat_is_its_reference(
    size: tuple[int, ...], dtype: torch.dtype, channels: int
) -> None:
    draw = Inputs(size, dtype)
    x, bias, skip = draw.maps(), draw.numbers(), draw.maps(channels=3)
    found = bias_relu_cat(x, bias, skip, channels=channels)
    near(found, bias_relu_cat_reference(*double(x, bias, skip), channels), dtype, 2)
    assert found.shape[1] == max(size[1] + 3, channels)
    assert torch.equal(found[:, size[1] : size[1] + 3], skip)
    assert found[:, size[1] + 3 :].abs().sum() == 0


def test_residual_is_its_reference(size: tuple[int, ...], dtype: torch.dtype) -> None:
    draw = Inputs(size, dtype)
    inputs = draw.maps(), draw.maps(), draw.numbers(), draw.numbers(), draw.numbers()
    found, wanted = residual(*inputs), residual_reference(*double(*inputs))
    near(found[0], wanted[0], dtype, 4)
    near(found[1], wanted[1], dtype, 4)


def test_numbers_that_do_not_lie_side_by_side_are_read_right(
    size: tuple[int, ...], dtype: torch.dtype
) -> None:
    draw = Inputs(size, dtype)
    x, both = draw.maps(), torch.stack([draw.numbers(), draw.numbers()], dim=1)
    found = affine_relu(x, both[:, 0], both[:, 1])
    near(found, affine_relu_reference(*double(x, both[:, 0], both[:, 1])), dtype, 2)


def test_channels_first_and_nothing_at_all_are_the_references(
    size: tuple[int, ...], dtype: torch.dtype
) -> None:
    draw = Inputs(size, dtype)
    x, bias = draw.maps().contiguous(), draw.numbers()
    assert torch.equal(affine_relu(x, None, bias), affine_relu_reference(x, None, bias))
    nothing = torch.empty(0, size[1], 4, 4, dtype=dtype, device=DEVICE)
    assert bias_relu_pool(nothing, bias).shape == (0, size[1], 2, 2)
    assert bias_relu_cat(nothing, bias, nothing).shape == (0, 2 * size[1], 4, 4)
    assert SIZES[1][1] * 6 * 8 > BLOCK, "one of the sizes takes several programs"
