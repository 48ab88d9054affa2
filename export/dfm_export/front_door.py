"""What every runner checks before it touches a tensor, and how it cuts a large call up.

TensorRT and ONNX Runtime read raw memory: a tensor of the wrong type, of another device or with a
stride that is not its shape's would be read as something else, without a word. So names, types,
ranks, sides, devices, contiguity and the number of rows are checked here once, for all of them, and
nothing is converted on the way.

A call with more rows than a graph takes is cut into parts of one size, the last one reaching back
over rows that the part before it had: so a row's result depends on how many rows the call has, and
never on where among them it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dfm_engine.errors import ShapeError
from dfm_export.specs import BATCH, SOURCES, GraphSpec, TensorSpec

__all__ = ["Call", "Part", "admit", "normal_device"]

Feeds = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """What goes through a graph at once: views of the call's tensors, nothing copied."""

    feeds: dict[str, Tensor]
    out: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Call:
    """A call that may enter.

    Attributes:
        spec: of the graph.
        feeds: by name, in the order of the spec.
        out: likewise, to be filled.
        batch: rows.
        sources: sources that these belong to; equals `batch` where the graph has none.
    """

    spec: GraphSpec
    feeds: dict[str, Tensor]
    out: dict[str, Tensor]
    batch: int
    sources: int

    def parts(self, max_batch: int) -> Iterator[Part]:
        """The call in parts of at most so many rows, all of one size."""
        if self.batch <= max_batch:
            yield Part(self.feeds, self.out)
            return
        each = self.batch // self.sources  # rows of a source
        if self.sources == 1 or each == 1:
            for rows in _even(self.batch, max_batch):
                yield self._part(rows, rows if each == 1 else slice(0, 1))
        elif each <= max_batch:
            for few in _even(self.sources, max_batch // each):
                yield self._part(slice(few.start * each, few.stop * each), few)
        else:
            for source in range(self.sources):
                for rows in _even(each, max_batch):
                    start = source * each
                    moved = slice(start + rows.start, start + rows.stop)
                    yield self._part(moved, slice(source, source + 1))

    def _part(self, rows: slice, sources: slice) -> Part:
        def cut(tensors: Mapping[str, Tensor], specs: tuple[TensorSpec, ...]) -> dict[str, Tensor]:
            where = {BATCH: rows, SOURCES: sources}
            return {spec.name: tensors[spec.name][where[str(spec.shape[0])]] for spec in specs}

        return Part(cut(self.feeds, self.spec.inputs), cut(self.out, self.spec.outputs))


def admit(
    spec: GraphSpec,
    feeds: Feeds,
    out: Feeds | None,
    *,
    device: torch.device,
    min_batch: int = 1,
    who: str = "",
) -> Call:
    """Check a call, and make the outputs that it did not bring.

    Args:
        spec: of the graph.
        feeds: every input by name: tensors, or what speaks DLPack (DALI, CuPy, NumPy).
        out: outputs to write into; those left out are made.
        device: where everything must be.
        min_batch: fewer rows are refused.
        who: the runner's name, for messages.

    Raises:
        ShapeError: says which tensor, what it is and what it must be.
    """
    what = f"{who or 'runner'}, graph {spec.name!r}"
    names = [tensor.name for tensor in spec.inputs]
    if set(feeds) != set(names):
        missing, unknown = sorted(set(names) - set(feeds)), sorted(set(feeds) - set(names))
        raise ShapeError(f"{what}: takes inputs {names}; missing {missing}, unknown {unknown}")
    given = {tensor.name: _tensor(feeds[tensor.name], tensor.name, what) for tensor in spec.inputs}
    sizes: dict[str, tuple[int, str]] = {}  # dynamic dimension -> its size, and who said so
    for tensor in spec.inputs:
        _check(given[tensor.name], tensor, sizes, device, f"{what}: input {tensor.name!r}")
    batch = sizes[BATCH][0] if BATCH in sizes else sizes[SOURCES][0]
    sources = sizes[SOURCES][0] if SOURCES in sizes else batch
    if batch < min_batch or batch % sources:
        raise ShapeError(
            f"{what}: {batch} rows from {sources} sources; takes at least {min_batch} rows, and "
            "as many for each source"
        )
    sizes.setdefault(BATCH, (batch, "the inputs"))
    return Call(spec, given, _outputs(spec, out or {}, sizes, device, what), batch, sources)


def normal_device(device: torch.device | str) -> torch.device:
    """The device with its index, as tensors have it: `cuda` is `cuda:0`."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _outputs(
    spec: GraphSpec,
    out: Feeds,
    sizes: dict[str, tuple[int, str]],
    device: torch.device,
    what: str,
) -> dict[str, Tensor]:
    names = [tensor.name for tensor in spec.outputs]
    if unknown := sorted(set(out) - set(names)):
        raise ShapeError(f"{what}: has outputs {names}, not {unknown}")
    made: dict[str, Tensor] = {}
    for tensor in spec.outputs:
        if tensor.name in out:
            place = _tensor(out[tensor.name], tensor.name, what)
            _check(place, tensor, sizes, device, f"{what}: output {tensor.name!r}")
            made[tensor.name] = place
        else:
            shape = tensor.at(batch=sizes[BATCH][0])
            made[tensor.name] = torch.empty(
                shape, dtype=getattr(torch, tensor.dtype), device=device
            )
    return made


def _tensor(value: Any, name: str, what: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if not hasattr(value, "__dlpack__"):
        raise ShapeError(
            f"{what}: {name!r} is a {type(value).__name__}; takes tensors, and what has __dlpack__"
        )
    try:
        return torch.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError) as error:
        raise ShapeError(
            f"{what}: {name!r}, a {type(value).__name__}, does not go through DLPack ({error})"
        ) from error


def _check(
    tensor: Tensor,
    spec: TensorSpec,
    sizes: dict[str, tuple[int, str]],
    device: torch.device,
    what: str,
) -> None:
    wanted = f"{spec.dtype} ({', '.join(map(str, spec.shape))})"
    found = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
    if tensor.dtype != getattr(torch, spec.dtype):
        raise ShapeError(f"{what} must be {wanted}, got {found}; nothing is cast on the way")
    if tensor.ndim != len(spec.shape):
        raise ShapeError(f"{what} must be {wanted}, got {found}")
    for axis, side in enumerate(spec.shape):
        size = tensor.shape[axis]
        if isinstance(side, int):
            if size != side:
                raise ShapeError(f"{what} must be {wanted}, got {found}")
            continue
        known, who = sizes.setdefault(side, (size, what))
        if size != known:
            raise ShapeError(f"{what} has {size} rows ({side}), but {who} has {known}")
    if 0 in tensor.shape:
        raise ShapeError(f"{what} has no rows")
    if tensor.device != device:
        raise ShapeError(f"{what} is on {tensor.device}, the runner on {device}; move it there")
    if not tensor.is_contiguous():
        strides = tuple(tensor.stride())
        why = "an expanded one: pass one source, or " if 0 in strides else ""
        raise ShapeError(
            f"{what} has strides {strides} for shape {tuple(tensor.shape)}, which raw memory "
            f"cannot say; {why}call .contiguous() first"
        )


def _even(count: int, most: int) -> Iterator[slice]:
    """Slices of one size, at most `most`, that cover `count`; the last may overlap."""
    parts = -(-count // most)
    size = -(-count // parts)
    for part in range(parts):
        start = min(part * size, count - size)
        yield slice(start, start + size)
