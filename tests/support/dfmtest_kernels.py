"""What the parity tests of the kernels share; imported before anything of the project.

Outputs are allocated full of NaN (or 255), so an element that nobody wrote shows.
"""

# ruff: noqa: E402
from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

# Operators remember this at their registration; at a first call it imports all of torch.compile.
torch._disable_dynamo = lambda function, recursive=True: function

from torch import Tensor

from dfm_kernels import dispatch
from dfm_kernels.coordinates import Points

DEVICE = os.environ.get("DFM_KERNEL_DEVICE", "cpu")
EPS = 2.0**-24  # relative error of one rounding in float32
ROUNDING = {torch.float32: EPS, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


@pytest.fixture(autouse=True)
def nothing_is_left_unwritten() -> Iterator[None]:
    """`torch.empty` gives NaN (255 in bytes); and the kernels do run."""
    assert DEVICE == "cuda" or dispatch.INTERPRETED
    torch._C._set_deterministic_algorithms(True, warn_only=True)  # the public way takes seconds
    assert torch.empty(3).isnan().all()
    yield
    torch._C._set_deterministic_algorithms(False)


class Random:
    """Seeded tensors on the device, from numbers drawn on the CPU."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        draw = torch.rand(shape, generator=self.generator)
        return (low + (high - low) * draw).to(DEVICE)

    def keypoints(self, rows: int, points: int, *, jacobian: bool = True) -> Points:
        value = self.uniform(rows, points, 2, low=-0.9, high=0.9)
        if not jacobian:
            return Points(value, None)
        noise = self.uniform(rows, points, 2, 2, low=-0.3, high=0.3)
        return Points(value, torch.eye(2, device=DEVICE) + noise)

    def bytes(self, *shape: int) -> Tensor:
        return torch.randint(256, shape, generator=self.generator, dtype=torch.uint8).to(DEVICE)


def double(points: Points) -> Points:
    return Points(
        points.value.double(), None if points.jacobian is None else points.jacobian.double()
    )


def assert_near(found: Tensor, wanted: Tensor, tolerance: float, what: str = "") -> None:
    assert found.shape == wanted.shape, f"{what}: {found.shape} against {wanted.shape}"
    error = (found.double() - wanted.double()).abs().nan_to_num(nan=float("inf"))
    if not error.numel() or error.max() <= tolerance:
        return
    worst = int(error.argmax())
    index = tuple(map(int, torch.unravel_index(torch.tensor(worst), error.shape)))
    pytest.fail(
        f"{what}: off by {error.max():.3g} at {index}, {found.flatten()[worst]:.7g} against "
        f"{wanted.flatten()[worst]:.7g}; allowed {tolerance:.3g}"
    )
