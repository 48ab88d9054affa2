"""When a Triton kernel computes an operator, and when its torch reference does.

The kernel does on a CUDA device, and on any device under `TRITON_INTERPRET=1` (set before the first
import), where Triton interprets it: slowly, but on a CPU and with every index checked by NumPy. The
reference does everywhere else: on a CPU, in float64, where a gradient is wanted that the kernel has
not, during an ONNX export, and where triton is not installed (torch's CPU wheels come without it).

Every operator is also registered as `torch.ops.dfm.<name>`. `STANDARD_FORMS` says how each of them
is written in standard operators: for a program that was traced on a GPU and shall be exported.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import triton
    import triton.language as tl
else:
    try:
        import triton
        import triton.language as tl
    except ImportError:
        triton = tl = None

__all__ = [
    "INTERPRETED",
    "STANDARD_FORMS",
    "Traffic",
    "blocks",
    "is_channels_last",
    "jit",
    "launches_on",
    "launching_anywhere",
    "like_layout",
    "on_device_of",
    "runs_kernel",
    "standard_form",
    "tl",
]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_launches_anywhere = INTERPRETED

STANDARD_FORMS: dict[Any, Callable[..., Any]] = {}
"""Operator to a function of the same arguments in plain torch, as `run_decompositions` wants it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What one call must move and compute at least.

    Attributes:
        bytes: read and written once each, as if every cache were perfect.
        flops: two for a multiply-add, one for any other arithmetic; addresses do not count.
    """

    bytes: int
    flops: int


def jit(function: Callable[..., Any]) -> Any:
    """`triton.jit`, or the function itself where there is no triton to call it."""
    return function if triton is None else triton.jit(function)


def standard_form(operator: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: enter a function as the form of an operator in standard operators."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        STANDARD_FORMS[operator] = function
        return function

    return enter


def launches_on(tensor: Tensor) -> bool:
    """Whether a kernel can be launched for this tensor."""
    return tensor.is_cuda or _launches_anywhere


@contextlib.contextmanager
def launching_anywhere() -> Iterator[None]:
    """Inside, kernels are launched for tensors on any device: for whoever catches the launches."""
    global _launches_anywhere
    before, _launches_anywhere = _launches_anywhere, True
    try:
        yield
    finally:
        _launches_anywhere = before


def runs_kernel(*tensors: Tensor | None, has_backward: bool = False) -> bool:
    """Whether the kernel of an operator computes this call.

    Args:
        tensors: the inputs, the main one first.
        has_backward: whether the kernel serves a call that needs gradients.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    if triton is None or not launches_on(given[0]) or torch.onnx.is_in_onnx_export():
        return False
    if any(tensor.dtype == torch.float64 for tensor in given):
        return False
    needs_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)
    return has_backward or not needs_gradient


def on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Makes the tensor's GPU the current one: Triton launches there."""
    return torch.cuda.device_of(tensor) if tensor.is_cuda else contextlib.nullcontext()


def is_channels_last(maps: Tensor) -> bool:
    """Whether the channels of (B, C, H, W) lie side by side; rows may repeat (stride 0)."""
    return maps.shape[1] > 1 and maps.stride(1) == 1


def like_layout(maps: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Unwritten (B, C, H, W) in the layout of `maps`, channels last or first."""
    layout = torch.channels_last if is_channels_last(maps) else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device=maps.device, memory_format=layout)


def blocks(count: int, block: int) -> int:
    """How many blocks cover `count`."""
    return -(-count // block)
