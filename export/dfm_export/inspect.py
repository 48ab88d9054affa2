"""What TensorRT's parser made of an ONNX file, held against what was meant.

Between parse and build nothing has been compiled, so a machine without a GPU can look: are inputs
and outputs as specified, is every GridSample bilinear with the right `align_corners`, is each layer
in the precision that the plan gave it. Each of these once went wrong without a word: parsers of
several releases took bilinear GridSample of opset 20 and later for nearest, converters lost float32
islands, and a network that silently stayed float32 is merely slow.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dfm_engine.errors import CheckFailed
from dfm_export.specs import Dtype, GraphSpec, TensorSpec

__all__ = ["Expected", "NetworkFacts", "check_network", "check_onnx"]

Low = Literal["float16", "bfloat16"]
LAST_BILINEAR_OPSET = 19
"""From 20 on ONNX calls the mode `linear`, which some parsers take for nearest."""

_TRT_DTYPES: dict[Dtype, str] = {
    "float32": "FLOAT",
    "float16": "HALF",
    "bfloat16": "BF16",
    "uint8": "UINT8",
}
_OWN_CLASSES = {  # layer type -> its class in the bindings, and what says which operation it is
    "GRID_SAMPLE": ("IGridSampleLayer", ""),
    "UNARY": ("IUnaryLayer", "op"),
    "ELEMENTWISE": ("IElementWiseLayer", "op"),
    "ACTIVATION": ("IActivationLayer", "type"),
}
_ISLAND_KINDS = ("GRID_SAMPLE", "SOFTMAX", "MATRIX_MULTIPLY")
_ISLAND_OPERATIONS = (
    "EXP",  # the Gaussians around keypoints
    "DIV",  # the inverse jacobian
    "SIGMOID",  # the occlusion map and the prediction
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a parsed network must be.

    Attributes:
        spec: inputs and outputs.
        align_corners: of every GridSample; None where there must be none.
        grid_samples: how many; None: any number.
        low: the 16-bit type that convolutions compute in; None: not one tensor may be 16-bit.
        has_islands: sampling, softmax, sigmoid and jacobians stay float32 beside `low`.
        low_tensors: how many the ONNX file makes of the 16-bit type. The parser may add some, it
            must not lose one; tensorrt-rtx 1.7 has exactly as many for every network here.
    """

    spec: GraphSpec
    align_corners: bool | None = None
    grid_samples: int | None = None
    low: Low | None = None
    has_islands: bool = False
    low_tensors: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFacts:
    """What was found.

    Attributes:
        layers: how many.
        census: element type (`FLOAT`, `HALF`, ...) -> layer outputs of it.
        grid_samples: how many; all bilinear, or there would have been an error.
    """

    layers: int
    census: Mapping[str, int]
    grid_samples: int

    def to_json(self) -> dict[str, Any]:
        """For the sidecar."""
        return {
            "layers": self.layers,
            "census": dict(self.census),
            "grid_samples": self.grid_samples,
        }


def check_onnx(path: Path, expected: Expected) -> None:
    """Refuse an ONNX file whose GridSample a TensorRT parser may misread.

    Raises:
        CheckFailed: GridSample of opset 20 or later.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    opset = max((item.version for item in model.opset_import if not item.domain), default=0)
    samples = sum(node.op_type == "GridSample" for node in model.graph.node)
    if samples and opset > LAST_BILINEAR_OPSET:
        raise CheckFailed(
            f"{os.fspath(path)!r} ({expected.spec.name}): {samples} GridSample at opset {opset}; "
            "TensorRT's parsers of several releases take its bilinear mode for nearest without a "
            "warning: export at opset 18"
        )


def check_network(api: Any, network: Any, expected: Expected) -> NetworkFacts:
    """Inspect a parsed network.

    Args:
        api: the TensorRT module it was parsed with.
        network: from `to_tensorrt.parse_onnx`.
        expected: what it must be.

    Raises:
        CheckFailed: it is not; says everything that is wrong.
    """
    layers = [_Layer.read(api, network.get_layer(index)) for index in range(network.num_layers)]
    wrongs = [
        *_wrong_tensors("input", network.num_inputs, network.get_input, expected.spec.inputs),
        *_wrong_tensors("output", network.num_outputs, network.get_output, expected.spec.outputs),
        *_wrong_samples(layers, expected),
        *_wrong_types(layers, expected),
    ]
    if wrongs:
        raise CheckFailed(
            f"graph {expected.spec.name!r} as TensorRT parsed it: {'; '.join(wrongs)}. "
            "Nothing was built; export it again, and report the versions if it stays"
        )
    census: Counter[str] = Counter()
    for layer in layers:
        census.update(layer.outputs)
    return NetworkFacts(
        layers=len(layers),
        census=dict(sorted(census.items())),
        grid_samples=sum(layer.kind == "GRID_SAMPLE" for layer in layers),
    )


def _wrong_tensors(
    what: str, count: int, get: Any, wanted: tuple[TensorSpec, ...]
) -> Iterator[str]:
    found = {}
    for index in range(count):
        tensor = get(index)
        found[tensor.name] = (tensor.dtype.name, tuple(tensor.shape))
    specified = {
        tensor.name: (
            _TRT_DTYPES[tensor.dtype],
            tuple(-1 if isinstance(side, str) else side for side in tensor.shape),
        )
        for tensor in wanted
    }
    for name in sorted({*found, *specified}):
        if found.get(name) != specified.get(name):
            yield (
                f"{what} {name!r} is {_words(found.get(name))}, specified is "
                f"{_words(specified.get(name))}"
            )


def _words(tensor: tuple[str, tuple[int, ...]] | None) -> str:
    return "absent" if tensor is None else f"{tensor[0]} {tensor[1]}"


def _wrong_samples(layers: list[_Layer], expected: Expected) -> Iterator[str]:
    samples = [layer for layer in layers if layer.kind == "GRID_SAMPLE"]
    for layer in samples:
        mode, align_corners = layer.handle.interpolation_mode.name, layer.handle.align_corners
        if mode != "LINEAR":
            yield f"GridSample {layer.name!r} samples {mode}, must be LINEAR"
        if expected.align_corners is None:
            yield f"GridSample {layer.name!r}: this graph must have none"
        elif bool(align_corners) != expected.align_corners:
            yield (
                f"GridSample {layer.name!r} has align_corners {bool(align_corners)}, must have "
                f"{expected.align_corners}"
            )
    if expected.grid_samples is not None and len(samples) != expected.grid_samples:
        yield f"{len(samples)} GridSample, must be {expected.grid_samples}"


def _wrong_types(layers: list[_Layer], expected: Expected) -> Iterator[str]:
    if expected.low is None:
        for layer in layers:
            if low := {"HALF", "BF16"} & layer.types:
                yield f"{layer.kind} {layer.name!r} is {min(low)} in a float32 plan"
        return
    wanted = _TRT_DTYPES[expected.low]
    other = "BF16" if wanted == "HALF" else "HALF"
    convolutions = [layer for layer in layers if layer.kind == "CONVOLUTION"]
    kept = [layer for layer in convolutions if wanted not in layer.outputs]
    if len(kept) > len(convolutions) // 2:
        yield (
            f"{len(kept)} of {len(convolutions)} convolutions are not {wanted}: the plan was lost"
        )
    found = sum(layer.outputs.count(wanted) for layer in layers)
    if found < expected.low_tensors:
        yield f"{found} tensors are {wanted}, the ONNX file has {expected.low_tensors}"
    for layer in layers:
        if other in layer.types:
            yield f"{layer.kind} {layer.name!r} is {other}, the plan has {wanted}"
        if expected.has_islands and wanted in layer.types and layer.is_island:
            what = layer.operation or layer.kind
            yield f"{what} {layer.name!r} is {wanted}: a float32 island was lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """A layer of a network, looked at once.

    Attributes:
        kind: such as `CONVOLUTION`.
        operation: of an element-wise layer, such as `DIV`; else blank.
        name: the ONNX node's.
        inputs, outputs: element types.
        handle: TensorRT's object, as its own class.
    """

    kind: str
    operation: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    handle: Any

    @classmethod
    def read(cls, api: Any, handle: Any) -> _Layer:
        """Look at one layer."""
        kind = handle.type.name
        given = [handle.get_input(index) for index in range(handle.num_inputs)]
        made = [handle.get_output(index) for index in range(handle.num_outputs)]
        name, attribute = _OWN_CLASSES.get(kind, ("", ""))
        if name:
            # The bindings hand out the base class; a subclass may hide `type` by its own.
            handle.__class__ = getattr(api, name)
        return cls(
            kind=kind,
            operation=getattr(handle, attribute).name if attribute else "",
            name=handle.name,
            inputs=tuple(tensor.dtype.name for tensor in given if tensor is not None),
            outputs=tuple(tensor.dtype.name for tensor in made),
            handle=handle,
        )

    @property
    def types(self) -> set[str]:
        """Of everything that goes in and out."""
        return {*self.inputs, *self.outputs}

    @property
    def is_island(self) -> bool:
        """Whether a mixed plan keeps it in float32."""
        return self.kind in _ISLAND_KINDS or self.operation in _ISLAND_OPERATIONS
