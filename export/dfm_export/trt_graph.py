"""A graph through a TensorRT engine, either flavour.

The engine works on addresses: for each call the shapes of the inputs are set, every input and
output is given the address of its tensor, and the work is put into a stream that is never the
default one (there TensorRT waits for the device at every call). A context belongs to one thread.

Plans are loaded by the flavour and version that built them, on the kind of chip that they were
built for; `models` gets them from the cache, which rebuilds one that does not load.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dfm_engine.durable import write_durably
from dfm_engine.errors import EnvironmentUnfit
from dfm_export.cuda_graphs import CudaGraphs
from dfm_export.front_door import Part, normal_device
from dfm_export.runners import CheckedGraph
from dfm_export.specs import GraphSpec
from dfm_export.to_tensorrt import load_engine
from dfm_export.trt_api import TensorRt, TensorRtError

__all__ = ["Chip", "SideStream", "TrtGraph", "load_trt_graph", "read_chip"]


@dataclass(frozen=True, slots=True)
class Chip:
    """A GPU: its name, and its compute capability as `sm90`."""

    name: str
    target: str


def read_chip(device: torch.device | str) -> Chip:
    """The GPU behind a torch device.

    Raises:
        EnvironmentUnfit: there is none.
    """
    device = torch.device(device)
    if device.type != "cuda" or not torch.cuda.is_available():
        raise EnvironmentUnfit(
            f"TensorRT runs on an NVIDIA GPU, asked for {device}; `dfm-engine doctor` says what is "
            "here, --backend onnxruntime runs everywhere"
        )
    device = normal_device(device)
    major, minor = torch.cuda.get_device_capability(device)
    return Chip(torch.cuda.get_device_name(device), f"sm{major}{minor}")


class Streams(Protocol):
    """Where an engine's work goes."""

    def entered(self, tensors: list[Tensor]) -> contextlib.AbstractContextManager[int]:
        """A stream's handle, after what the caller launched and before what it will launch."""
        ...


class SideStream:
    """A CUDA stream of our own; the caller's, where that is not the default one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._own = threading.local()

    @contextlib.contextmanager
    def entered(self, tensors: list[Tensor]) -> Iterator[int]:
        """See `Streams`; keeps the memory of `tensors` from reuse before the work is done."""
        current = torch.cuda.current_stream(self._device)
        if current.cuda_stream != torch.cuda.default_stream(self._device).cuda_stream:
            yield current.cuda_stream
            return
        if not hasattr(self._own, "stream"):
            self._own.stream = torch.cuda.Stream(self._device)
        stream: torch.cuda.Stream = self._own.stream
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            yield stream.cuda_stream
        current.wait_stream(stream)
        for tensor in tensors:
            tensor.record_stream(stream)


class TrtGraph(CheckedGraph):
    """An engine, ready to run.

    Args:
        trt: the flavour.
        engine: deserialised; checked against the spec.
        runtime: that deserialised it; kept.
        spec: inputs and outputs.
        device: of the engine.
        precision: the plan's name, for `name`.
        runtime_cache: tensorrt-rtx: compiled kernels are read from here, and written on closing.
        cuda_graphs: replay each size of a call instead of launching it: tensorrt-rtx by its own
            means, the data-centre flavour by `CudaGraphs`.
        streams: where work goes.
    """

    def __init__(
        self,
        trt: TensorRt,
        engine: Any,
        runtime: Any,
        spec: GraphSpec,
        *,
        device: torch.device | str,
        precision: str,
        runtime_cache: Path | None = None,
        cuda_graphs: bool = True,
        streams: Streams | None = None,
    ) -> None:
        _check_engine(trt, engine, spec)
        least, most = _rows(engine, spec)
        kind = torch.device(device).type
        super().__init__(
            spec,
            device=device,
            name=f"{trt.flavour}-{kind}-{precision}",
            max_batch=most,
            min_batch=least,
        )
        self._trt = trt
        self._engine: Any = engine
        self._runtime: Any = runtime
        self._streams = streams or SideStream(self.device)
        self._contexts = threading.local()
        self._config, self._kernels = _runtime_config(trt, engine, runtime_cache, cuda_graphs)
        self._runtime_cache = runtime_cache
        own_graphs = cuda_graphs and self._config is None
        self._recorded = CudaGraphs(self._launch, self.device) if own_graphs else None

    def close(self) -> None:
        """See `GraphRunner`; keeps what tensorrt-rtx compiled, for the next time."""
        if not self._is_open:
            return
        super().close()
        if self._recorded is not None:
            self._recorded.close()
        if self._kernels is not None and self._runtime_cache is not None:
            kernels = self._kernels.serialize()
            if kernels is not None:
                write_durably(self._runtime_cache, bytes(kernels))
        self._contexts = threading.local()
        self._engine = self._runtime = self._config = self._kernels = None

    def _compute(self, part: Part) -> None:
        with self._streams.entered([*part.feeds.values(), *part.out.values()]) as stream:
            if self._recorded is not None:
                self._recorded.run(part)
            else:
                self._enqueue(part, stream)

    def _launch(self, part: Part) -> None:
        # While a CUDA graph is recorded the current stream is the one that records.
        self._enqueue(part, torch.cuda.current_stream(self.device).cuda_stream)

    def _enqueue(self, part: Part, stream: int) -> None:
        # A recorded graph needs its context as it was: each size that is recorded has its own.
        sizes = tuple(tuple(tensor.shape) for tensor in part.feeds.values())
        context = self._context(sizes if self._recorded is not None else ())
        for name, tensor in part.feeds.items():
            if not context.set_input_shape(name, tuple(tensor.shape)):
                self._fail(f"refused shape {tuple(tensor.shape)} for input {name!r}")
        for name, tensor in part.out.items():
            shape = tuple(context.get_tensor_shape(name))
            if shape != tuple(tensor.shape):
                self._fail(f"output {name!r} is {shape}, room is for {tuple(tensor.shape)}")
        for name, tensor in (*part.feeds.items(), *part.out.items()):
            if not context.set_tensor_address(name, tensor.data_ptr()):
                self._fail(f"refused the address of {name!r}")
        if not context.execute_async_v3(stream):
            self._fail("did not run")

    def _context(self, sizes: tuple[tuple[int, ...], ...]) -> Any:
        """This thread's for so large inputs; one for all where nothing is recorded."""
        if not hasattr(self._contexts, "of_sizes"):
            self._contexts.of_sizes = {}
        contexts: dict[tuple[tuple[int, ...], ...], Any] = self._contexts.of_sizes
        if sizes not in contexts:
            if self._recorded is not None:  # with a graph that was forgotten its context goes, too
                for old in contexts.keys() - self._recorded.kept.keys():
                    del contexts[old]
            self._trt.messages.take()
            context = (
                self._engine.create_execution_context()
                if self._config is None
                else self._engine.create_execution_context(self._config)
            )
            if context is None:
                self._fail("gave no execution context")
            contexts[sizes] = context
        return contexts[sizes]

    def _fail(self, what: str) -> None:
        raise TensorRtError(
            f"{self.name}, graph {self.spec.name!r}: the engine {what}: "
            f"{self._trt.messages.sentence()}"
        )


def load_trt_graph(
    trt: TensorRt,
    path: Path,
    spec: GraphSpec,
    *,
    device: torch.device | str,
    precision: str,
    runtime_cache: Path | None = None,
    cuda_graphs: bool = True,
) -> TrtGraph:
    """A plan file as a runner.

    Args:
        trt: the flavour that built it.
        path: of the plan.
        spec: inputs and outputs.
        device: CUDA.
        precision: see `TrtGraph`.
        runtime_cache: likewise.
        cuda_graphs: likewise.

    Raises:
        UsageError: a chip that this flavour does not know.
        EnvironmentUnfit: no GPU.
        TensorRtError: the plan does not load, or is of another graph.
    """
    trt.check_target(read_chip(device).target)
    device = normal_device(device)
    with torch.cuda.device(device):
        runtime, engine = load_engine(trt, path.read_bytes(), what=repr(os.fspath(path)))
        return TrtGraph(
            trt,
            engine,
            runtime,
            spec,
            device=device,
            precision=precision,
            runtime_cache=runtime_cache,
            cuda_graphs=cuda_graphs,
        )


def _runtime_config(
    trt: TensorRt, engine: Any, runtime_cache: Path | None, cuda_graphs: bool
) -> tuple[Any, Any]:
    """tensorrt-rtx's runtime configuration and cache of compiled kernels; None for the other."""
    if not hasattr(engine, "create_runtime_config") or not hasattr(trt.api, "CudaGraphStrategy"):
        return None, None
    config = engine.create_runtime_config()
    if cuda_graphs:
        config.cuda_graph_strategy = trt.api.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    # Compile at the first call of a size; the fallback kernels of the default would serve it
    # first, and a row's bits would change when the better ones are ready.
    strategies = trt.api.DynamicShapesKernelSpecializationStrategy
    config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
    kernels = config.create_runtime_cache()
    if runtime_cache is not None and runtime_cache.is_file():
        # Refused if of another chip or version: then kernels are compiled anew.
        kernels.deserialize(runtime_cache.read_bytes())
    config.set_runtime_cache(kernels)
    return config, kernels


def _check_engine(trt: TensorRt, engine: Any, spec: GraphSpec) -> None:
    found: dict[str, tuple[str, str, tuple[int, ...]]] = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        found[name] = (
            engine.get_tensor_mode(name).name,
            engine.get_tensor_dtype(name).name,
            tuple(engine.get_tensor_shape(name)),
        )
    wanted = {
        tensor.name: (
            mode,
            _DTYPES[tensor.dtype],
            tuple(-1 if isinstance(side, str) else side for side in tensor.shape),
        )
        for mode, tensors in (("INPUT", spec.inputs), ("OUTPUT", spec.outputs))
        for tensor in tensors
    }
    if found != wanted:
        wrong = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        raise TensorRtError(
            f"{trt.flavour}: the engine is not one of graph {spec.name!r}: "
            + "; ".join(f"{n!r} is {found.get(n)}, must be {wanted.get(n)}" for n in wrong)
        )


def _rows(engine: Any, spec: GraphSpec) -> tuple[int, int]:
    """The fewest and the most rows that the engine's profile takes."""
    spans = []
    for tensor in spec.inputs:
        least, _, most = engine.get_tensor_profile_shape(tensor.name, 0)
        spans.append((tensor.shape[0], least[0], most[0]))
    rows = [span for span in spans if span[0] == "batch"] or spans
    return max(least for _, least, _ in rows), min(most for _, _, most in spans)


_DTYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "uint8": "UINT8"}
