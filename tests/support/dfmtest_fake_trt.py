"""A TensorRT that computes on the CPU: the objects that a runner touches, with real addresses.

The context reads its inputs from the addresses it was given and writes its outputs to such, as the
library does on a device; it knows nothing of tensors. What the library refuses, it refuses.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from dfm_export.specs import GraphSpec
from dfm_export.to_tensorrt import Profile
from dfm_export.trt_api import Flavour, Messages, TensorRt

STREAM = 0x51
_NAMES = {"float32": "FLOAT", "float16": "HALF", "uint8": "UINT8"}


class FakeEngine:
    """Computes `module` by the addresses that it is given."""

    def __init__(
        self, module: Callable[..., Any], spec: GraphSpec, profile: Profile | None = None
    ) -> None:
        self.module = module
        self.spec = spec
        self.shapes = (profile or Profile()).shapes(spec)
        self.tensors = {tensor.name: tensor for tensor in (*spec.inputs, *spec.outputs)}
        self.contexts: list[FakeContext] = []
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> SimpleNamespace:
        inputs = {tensor.name for tensor in self.spec.inputs}
        return SimpleNamespace(name="INPUT" if name in inputs else "OUTPUT")

    def get_tensor_dtype(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name=_NAMES[self.tensors[name].dtype])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(-1 if isinstance(side, str) else side for side in self.tensors[name].shape)

    def get_tensor_profile_shape(self, name: str, profile: int) -> tuple[tuple[int, ...], ...]:
        assert profile == 0
        return self.shapes[name]

    def create_execution_context(self, config: object = None) -> FakeContext:
        context = FakeContext(self, config)
        self.contexts.append(context)
        return context


class FakeContext:
    """Of one engine; knows the thread that made it."""

    def __init__(self, engine: FakeEngine, config: object) -> None:
        self.engine = engine
        self.config = config
        self.thread = threading.get_ident()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.runs: list[tuple[int, dict[str, int]]] = []

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.engine.shapes[name]
        fits = all(a <= side <= b for a, side, b in zip(least, shape, most, strict=True))
        if fits:
            self.shapes[name] = shape
        return fits

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        rows = max(shape[0] for shape in self.shapes.values())
        return self.engine.tensors[name].at(batch=rows)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.engine.tensors and address % 4 == 0

    def execute_async_v3(self, stream: int) -> bool:
        assert threading.get_ident() == self.thread, "a context belongs to one thread"
        spec = self.engine.spec
        given = [
            torch.from_numpy(_memory(self.addresses[t.name], self.shapes[t.name], t.dtype).copy())
            for t in spec.inputs
        ]
        made = self.engine.module(*given)
        for tensor, result in zip(
            spec.outputs, made if isinstance(made, tuple) else (made,), strict=True
        ):
            place = _memory(self.addresses[tensor.name], tuple(result.shape), tensor.dtype)
            place[...] = result.numpy()
        self.runs.append((stream, dict(self.addresses)))
        return True


@dataclass
class FakeStreams:
    """Hands out one number as the stream, and counts."""

    entered_times: int = 0
    kept: list[torch.Tensor] = field(default_factory=list)

    @contextlib.contextmanager
    def entered(self, tensors: list[torch.Tensor]) -> Iterator[int]:
        self.entered_times += 1
        self.kept = tensors
        yield STREAM


class FakeRuntime:
    """Deserialises the plans of a table; anything else is None and a message, as in the library."""

    plans: dict[bytes, FakeEngine]

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> FakeEngine | None:
        if plan in self.plans:
            return self.plans[plan]
        wrong = "built for sm86" if plan.startswith(b"sm86") else "magic tag does not match"
        self.logger.messages.add("error", wrong)
        return None


def fake_trt(
    flavour: Flavour = "tensorrt", plans: dict[bytes, FakeEngine] | None = None, **api: Any
) -> TensorRt:
    """The module and all around it; `api` are further names in the module."""
    messages = Messages()

    class Runtime(FakeRuntime):
        pass

    Runtime.plans = plans or {}
    if flavour == "tensorrt-rtx":
        api.setdefault(
            "ComputeCapability", SimpleNamespace(__members__={"SM86": 86, "SM89": 89, "NONE": 0})
        )
    return TensorRt(
        flavour=flavour,
        api=SimpleNamespace(Runtime=Runtime, **api),
        version="1.2.3",
        logger=SimpleNamespace(messages=messages),
        messages=messages,
    )


def _memory(address: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """The memory at an address, as an array."""
    kind = np.dtype(dtype)
    count = int(np.prod(shape))
    buffer = (ctypes.c_char * (count * kind.itemsize)).from_address(address)
    return np.frombuffer(buffer, dtype=kind).reshape(shape)
