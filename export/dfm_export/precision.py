"""Plans of precision: which part of a graph computes in which type.

| plan | for | convolutions | everything else |
| --- | --- | --- | --- |
| `fp32` | FOMM, detectors | float32 | float32 |
| `fp16_islands` | FOMM | float16; those of `keypoints` float32 | float32 |
| `int8` | FOMM | residual blocks int8 (`quantised`), for ONNX Runtime | float32 |
| `int8_wide` | FOMM | the whole decoder int8, for OpenVINO and TensorRT | float32 |
| `fp16`, `bf16` | detectors | float16, bfloat16 | the backbone likewise, the head float32 |

bfloat16 is not for FOMM: its eight bits of mantissa cost 18 dB more than float16.

`emulate` computes a mixed network on any CPU as a tensor core would: every operation takes 16-bit
operands, computes in float32 and rounds its result once. Native 16-bit kernels of CPUs are absent,
or two hundred times slower.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from dfm_engine.errors import UsageError
from dfm_export.specs import Dtype

__all__ = ["DEFAULT_OPSET", "PRECISIONS", "Kind", "Plan", "emulate", "plan_of"]

Kind = Literal["fomm", "detector"]
DEFAULT_OPSET = 18


@dataclass(frozen=True, slots=True)
class Plan:
    """What `graphs` needs to know.

    Attributes:
        name: see the module.
        kind: of the networks that it is for.
        dtype: of convolutions and what stands directly between them.
        opset: of the ONNX file. 18; bfloat16 convolutions exist from 22 on, which no graph with a
            GridSample may use.
        quantised: which convolutions are int8; see `int8`.
    """

    name: str
    kind: Kind
    dtype: Dtype
    opset: int = DEFAULT_OPSET
    quantised: Literal["narrow", "wide"] | None = None

    @property
    def body(self) -> torch.dtype:
        """`dtype` as torch has it."""
        return getattr(torch, self.dtype)

    @property
    def is_mixed(self) -> bool:
        """Whether anything is 16-bit or int8."""
        return self.dtype != "float32" or self.quantised is not None

    def dtype_of(self, graph: str) -> Dtype:
        """The type of the convolutions of one graph: keypoints stay float32 in every plan."""
        return "float32" if graph == "keypoints" else self.dtype


_PLANS = (
    Plan("fp32", "fomm", "float32"),
    Plan("fp16_islands", "fomm", "float16"),
    Plan("int8", "fomm", "float32", quantised="narrow"),
    Plan("int8_wide", "fomm", "float32", quantised="wide"),
    Plan("fp32", "detector", "float32"),
    Plan("fp16", "detector", "float16"),
    Plan("bf16", "detector", "bfloat16", opset=22),
)
PRECISIONS: dict[Kind, tuple[str, ...]] = {
    kind: tuple(plan.name for plan in _PLANS if plan.kind == kind) for kind in get_args(Kind)
}


def plan_of(kind: Kind, name: str) -> Plan:
    """A plan by its name on the command line.

    Raises:
        UsageError: there is none for this kind of network.
    """
    for plan in _PLANS:
        if plan.kind == kind and plan.name == name:
            return plan
    raise UsageError(
        f"--precision {name!r}: a {kind} is exported as one of {', '.join(PRECISIONS[kind])}"
    )


@contextlib.contextmanager
def emulate() -> Iterator[None]:
    """Within it 16-bit operations on a CPU compute in float32 and round once; no gradients."""
    with torch.inference_mode(), _Rounding():
        yield


class _Rounding(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        low = {x.dtype for x in tree_iter((args, kwargs)) if _is_low(x)}
        if not low or func._schema.is_mutable or _moves_only(func):
            return func(*args, **kwargs)
        wide = tree_map(lambda x: x.float() if _is_low(x) else x, (args, kwargs))
        result = func(*wide[0], **wide[1])
        (dtype,) = low  # torch itself refuses operands of two 16-bit types
        return tree_map(lambda x: x.to(dtype) if _is_float32(x) else x, result)


def _is_low(x: Any) -> bool:
    return (
        isinstance(x, torch.Tensor)
        and x.dtype in (torch.float16, torch.bfloat16)
        and x.device.type == "cpu"
    )


def _is_float32(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.dtype == torch.float32


def _moves_only(func: Any) -> bool:
    """Casts, copies and views: they have nothing to round, and a cast states its own type."""
    return func in _MOVES or bool(func.is_view)


_MOVES = frozenset(
    {
        torch.ops.aten._to_copy.default,
        torch.ops.aten.clone.default,
        torch.ops.aten.cat.default,
        torch.ops.aten.relu.default,
    }
)
