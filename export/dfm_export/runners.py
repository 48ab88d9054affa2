"""One graph on one device, by whatever means: the `GraphRunner` protocol, and torch's two runners.

Tensors go in and come out on the runner's device; nothing passes through the host. ONNX Runtime's
runner is in `ort_graph`, TensorRT's in `trt_graph`; `models` puts graphs together to the runners
that the pipeline knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from dfm_engine.crew import Crew
from dfm_engine.errors import EnvironmentUnfit, ShapeError
from dfm_engine.exact_kernels import exact_kernels
from dfm_export.cuda_graphs import CudaGraphs
from dfm_export.front_door import Part, admit, normal_device
from dfm_export.specs import GraphSpec

__all__ = ["CheckedGraph", "CompiledTorchGraph", "GraphRunner", "TorchGraph"]

MAX_TORCH_BATCH = 64


class GraphRunner(Protocol):
    """A graph, ready to run.

    Attributes:
        name: backend, device and precision, such as `onnxruntime-cpu-fp32`.
        spec: inputs and outputs.
        device: where tensors are taken and given.
        max_batch: rows at once; a call with more is cut up.
    """

    @property
    def name(self) -> str: ...
    @property
    def spec(self) -> GraphSpec: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def max_batch(self) -> int: ...

    def run(
        self, feeds: Mapping[str, Any], out: Mapping[str, Any] | None = None
    ) -> dict[str, Tensor]:
        """Outputs by name; see `front_door.admit` for what is taken.

        On a GPU they are ready for work in the current stream.
        """
        ...

    def warmup(self, batches: Sequence[int]) -> None:
        """Run once with so many rows each, so that no later call of that size is the first."""
        ...

    def close(self) -> None:
        """Let go of what the graph holds on its device."""
        ...


class CheckedGraph:
    """What all runners share: the front door, cutting up, warming up. Subclasses compute a part.

    Args:
        spec: of the graph.
        device: where it is.
        name: see `GraphRunner`.
        max_batch: rows at once.
        min_batch: fewer are refused.
        crew: computes the parts of a call, several at a time; None: one after the other.
        is_urgent: before those of other graphs with the same crew.
    """

    def __init__(
        self,
        spec: GraphSpec,
        *,
        device: torch.device | str,
        name: str,
        max_batch: int,
        min_batch: int = 1,
        crew: Crew | None = None,
        is_urgent: bool = False,
    ) -> None:
        if not 1 <= min_batch <= max_batch:
            raise ShapeError(
                f"graph {spec.name!r} takes {min_batch} to {max_batch} rows: that is no range"
            )
        self.spec = spec
        self.device = normal_device(device)
        self.name = name
        self.max_batch = max_batch
        self.min_batch = min_batch
        self._is_open = True
        self._crew = crew
        self._is_urgent = is_urgent

    def run(
        self, feeds: Mapping[str, Any], out: Mapping[str, Any] | None = None
    ) -> dict[str, Tensor]:
        """See `GraphRunner`.

        Raises:
            ShapeError: the call is not one that the graph takes.
            EnvironmentUnfit: the backend failed, or the runner is closed.
        """
        if not self._is_open:
            raise EnvironmentUnfit(f"{self.name}, graph {self.spec.name!r}: is closed")
        call = admit(
            self.spec, feeds, out, device=self.device, min_batch=self.min_batch, who=self.name
        )
        parts = list(call.parts(self.max_batch))

        def compute(number: int) -> None:
            with torch.inference_mode():
                self._compute(parts[number])

        if self._crew is not None:
            self._crew.map(compute, len(parts), is_urgent=self._is_urgent)
        else:
            for number in range(len(parts)):
                compute(number)
        return call.out

    def warmup(self, batches: Sequence[int]) -> None:
        """See `GraphRunner`."""
        for batch in batches:
            self.run(
                {
                    tensor.name: torch.zeros(
                        tensor.at(batch=batch),
                        dtype=getattr(torch, tensor.dtype),
                        device=self.device,
                    )
                    for tensor in self.spec.inputs
                }
            )

    def close(self) -> None:
        """See `GraphRunner`."""
        self._is_open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _compute(self, part: Part) -> None:
        """Fill `part.out` from `part.feeds`."""
        raise NotImplementedError


class TorchGraph(CheckedGraph):
    """A module as a graph: what the others are held against.

    Args:
        module: takes the inputs and gives the outputs in the order of the spec.
        spec: of the graph.
        device: where it shall run; the module is moved there.
        precision: the plan's name.
        max_batch: rows at once.
    """

    def __init__(
        self,
        module: nn.Module,
        spec: GraphSpec,
        *,
        device: torch.device | str = "cpu",
        precision: str = "fp32",
        max_batch: int = MAX_TORCH_BATCH,
        backend: str = "torch",
    ) -> None:
        name = f"{backend}-{torch.device(device).type}-{precision}"
        super().__init__(spec, device=device, name=name, max_batch=max_batch)
        self.module = module.to(self.device).eval().requires_grad_(False)
        self._call: Callable[..., Any] = self.module

    def _compute(self, part: Part) -> None:
        with exact_kernels():
            self._launch(part)

    def _launch(self, part: Part) -> None:
        given = self._call(*part.feeds.values())
        given = given if isinstance(given, tuple) else (given,)
        for place, tensor in zip(part.out.values(), given, strict=True):
            place.copy_(tensor)


class CompiledTorchGraph(TorchGraph):
    """A module through torch.compile, each size of a call recorded as a CUDA graph.

    Inductor compiles anew for every size, in seconds to minutes: `warmup` with the sizes that will
    come. GPU only: on a CPU it needs a compiler, and OpenMP threads round by place.

    Args:
        module: see `TorchGraph`.
        spec: likewise.
        device: likewise; CUDA.
        precision: likewise.
        max_batch: likewise.
    """

    def __init__(
        self,
        module: nn.Module,
        spec: GraphSpec,
        *,
        device: torch.device | str = "cuda",
        precision: str = "fp32",
        max_batch: int = MAX_TORCH_BATCH,
    ) -> None:
        if torch.device(device).type != "cuda" or not torch.cuda.is_available():
            raise EnvironmentUnfit(
                f"torch.compile with CUDA graphs needs a CUDA device, asked for {device}; "
                "use --backend torch or onnxruntime"
            )
        super().__init__(
            module,
            spec,
            device=device,
            precision=precision,
            max_batch=max_batch,
            backend="torch-compile",
        )
        self._call = torch.compile(self.module, fullgraph=True, dynamic=False)
        self._recorded = CudaGraphs(self._launch, self.device)

    def _compute(self, part: Part) -> None:
        with exact_kernels():
            self._recorded.run(part)

    def close(self) -> None:
        """See `GraphRunner`."""
        self._recorded.close()
        super().close()
