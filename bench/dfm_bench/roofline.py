"""What a device could do at best: its arithmetic rate, and how much arithmetic a call is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import conv_flop_count, flop_registry, register_flop_formula

from dfm_bench.measure import Row, clock_for, measure

__all__ = ["count_flops", "measure_copy", "measure_matrix_product"]

SIDES = {"cpu": 1024, "cuda": 8192}  # of the matrices: large enough to reach the rate
PRODUCTS = 50  # calls of each that count, at least
COPIED_BYTES = {"cpu": 2**26, "cuda": 2**29}  # more than any cache holds


def measure_matrix_product(
    device: torch.device, *, repeats: int, dtype: torch.dtype = torch.float32, command: str = ""
) -> Row:
    """The rate of one large matrix product, in GFLOP/s: what convolutions are held against."""
    side = SIDES[device.type]
    # Random: on equal numbers, which flip no bits, a GPU is an eighth faster than on any data.
    squares = [torch.randn(side, side, device=device, dtype=dtype) for _ in range(2)]
    with torch.inference_mode():
        timings = measure(
            {"": lambda square: square @ square},
            squares,
            # Calls of some ms: a few would be over while another process has the cores.
            repeats=max(repeats, PRODUCTS),
            clock=clock_for(device),
        )
    return Row.of(
        "matrix product",
        timings[""],
        amount=2 * side**3 / 1e9,
        unit="GFLOP/s",
        shape=(side, side),
        dtype=str(dtype).removeprefix("torch."),
        device=device.type,
        command=command,
    )


def measure_copy(device: torch.device, *, repeats: int, command: str = "") -> Row:
    """The rate of one large copy, in GB/s read and written: the ceiling of a pass over data."""
    size = COPIED_BYTES[device.type]
    pairs = [torch.zeros(2, size, device=device, dtype=torch.uint8) for _ in range(2)]
    timings = measure(
        {"": lambda pair: pair[1].copy_(pair[0])}, pairs, repeats=repeats, clock=clock_for(device)
    )
    return Row.of(
        "copy",
        timings[""],
        amount=2 * size / 1e9,
        unit="GB/s",
        shape=(size,),
        device=device.type,
        command=command,
    )


@register_flop_formula(torch.ops.aten.cudnn_convolution_relu)
def _(x_shape: Any, w_shape: Any, *others: Any, out_shape: Any, **named: Any) -> int:
    return conv_flop_count(x_shape, w_shape, out_shape)


def count_flops(call: Callable[[], object]) -> int:
    """Of a call's convolutions and matrix products, two for a multiply-add; nothing else counts."""
    with _Counter() as counter:
        call()
    return counter.flops


class _Counter(TorchDispatchMode):
    """As torch's `FlopCounterMode`, which takes 7 s to import torch.compile at its first use."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the default wraps the method below, which is that import

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)
        if formula is None:
            with self:  # in inference mode composite operators come whole: look at their parts
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
        return result
