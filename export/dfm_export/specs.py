"""What a graph takes and gives, without torch: names, dtypes and shapes, as JSON and back.

A dimension is an int, or a name where it is chosen at run time. Two names occur:

- `batch`: the rows of a call;
- `sources`: the sources that these rows are animated from. It divides `batch`, and row i belongs
  to source i // (batch / sources): one source serves all rows, or each row has its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from dfm_engine.errors import UsageError

__all__ = ["BATCH", "SOURCES", "Dtype", "GraphSpec", "TensorSpec"]

BATCH = "batch"
SOURCES = "sources"
Dtype = Literal["float32", "float16", "bfloat16", "uint8"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output.

    Attributes:
        name: in the graph.
        dtype: as numpy and torch both call it.
        shape: ints, and the names above.
    """

    name: str
    dtype: Dtype
    shape: tuple[int | str, ...]

    def __post_init__(self) -> None:
        if self.dtype not in get_args(Dtype):
            raise UsageError(
                f"tensor {self.name!r}: dtype must be one of {get_args(Dtype)}, got {self.dtype!r}"
            )
        for axis, side in enumerate(self.shape):
            is_known = side in (BATCH, SOURCES) if isinstance(side, str) else side > 0
            if not is_known:
                raise UsageError(
                    f"tensor {self.name!r}: dimension {axis} must be a positive int, {BATCH!r} or "
                    f"{SOURCES!r}, got {side!r}"
                )

    @property
    def dynamic_axes(self) -> dict[int, str]:
        """Axis -> name of every dimension chosen at run time."""
        return {axis: side for axis, side in enumerate(self.shape) if isinstance(side, str)}

    def at(self, *, batch: int, sources: int | None = None) -> tuple[int, ...]:
        """The shape of a call with so many rows; `sources` None is one per row."""
        sizes = {BATCH: batch, SOURCES: batch if sources is None else sources}
        return tuple(sizes[side] if isinstance(side, str) else side for side in self.shape)

    def to_json(self) -> dict[str, Any]:
        """For `from_json`."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> TensorSpec:
        """What `to_json` wrote."""
        return cls(str(table["name"]), table["dtype"], tuple(table["shape"]))


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """A graph's inputs and outputs, in the order of its file.

    Attributes:
        name: of the graph and of its file: `keypoints`, `source`, `animate`, `motion`, `render`,
            `detector`.
        inputs: at least one, the first dimension of each is dynamic.
        outputs: likewise.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        for tensors in (self.inputs, self.outputs):
            names = [tensor.name for tensor in tensors]
            if not names or len(set(names)) < len(names):
                raise UsageError(f"graph {self.name!r}: needs tensors of distinct names: {names}")
            for tensor in tensors:
                if set(tensor.dynamic_axes) != {0}:
                    raise UsageError(
                        f"graph {self.name!r}: the first dimension of {tensor.name!r} and no other "
                        f"must be dynamic, found {tensor.shape}"
                    )

    @property
    def has_sources(self) -> bool:
        """Whether a call has a number of sources besides its number of rows."""
        return any(SOURCES in tensor.shape for tensor in self.inputs)

    def to_json(self) -> dict[str, Any]:
        """For `from_json`."""
        return {
            "name": self.name,
            "inputs": [tensor.to_json() for tensor in self.inputs],
            "outputs": [tensor.to_json() for tensor in self.outputs],
        }

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> GraphSpec:
        """What `to_json` wrote."""
        return cls(
            str(table["name"]),
            tuple(TensorSpec.from_json(tensor) for tensor in table["inputs"]),
            tuple(TensorSpec.from_json(tensor) for tensor in table["outputs"]),
        )
