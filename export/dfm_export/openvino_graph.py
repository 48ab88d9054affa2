"""A graph through OpenVINO on a CPU: the fastest integer convolutions there, from the same files.

An optional extra (`pip install dfm-engine[openvino]`), imported here alone.
"""

from __future__ import annotations

import os
import queue
from pathlib import Path
from typing import Any

import torch

from dfm_engine.crew import Crew
from dfm_engine.errors import EnvironmentUnfit
from dfm_export.front_door import Part
from dfm_export.runners import CheckedGraph
from dfm_export.specs import GraphSpec

__all__ = ["OpenVinoGraph"]


class OpenVinoGraph(CheckedGraph):
    """An ONNX file, compiled for this processor; float parts stay float32.

    Args:
        path: of the file.
        spec: its inputs and outputs.
        precision: the plan's name, for `name`.
        max_batch: rows at once.
        threads: None: as many as torch has.
        crew: computes the parts of a call side by side, each on one thread; `threads` then counts
            for nothing.
        is_urgent: see `CheckedGraph`.

    Raises:
        EnvironmentUnfit: OpenVINO is absent or does not read the file.
    """

    def __init__(
        self,
        path: Path,
        spec: GraphSpec,
        *,
        precision: str = "fp32",
        max_batch: int = 1,
        threads: int | None = None,
        crew: Crew | None = None,
        is_urgent: bool = False,
    ) -> None:
        super().__init__(
            spec,
            device="cpu",
            name=f"openvino-cpu-{precision}",
            max_batch=max_batch,
            crew=crew,
            is_urgent=is_urgent,
        )
        try:
            import openvino
        except ImportError as error:
            raise EnvironmentUnfit(
                f"OpenVINO does not load ({error}); install the extra: dfm-engine[openvino]"
            ) from error
        streams = 1 if crew is None else crew.threads  # each with one of the threads
        settings: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": (threads or torch.get_num_threads())
            if crew is None
            else streams,
            "NUM_STREAMS": streams,
            "PERFORMANCE_HINT": "LATENCY" if crew is None else "THROUGHPUT",
            "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16 where the processor has it
        }
        try:
            core = openvino.Core()
            compiled = core.compile_model(core.read_model(os.fspath(path)), "CPU", settings)
        except RuntimeError as error:
            raise EnvironmentUnfit(
                f"OpenVINO {openvino.__version__} does not open {os.fspath(path)!r}: "
                f"{str(error).splitlines()[0]}"
            ) from error
        self._free: queue.SimpleQueue[Any] = (
            queue.SimpleQueue()
        )  # requests; one call each at a time
        for _ in range(streams):
            self._free.put(compiled.create_infer_request())
        self._outputs = [compiled.output(tensor.name) for tensor in spec.outputs]

    def close(self) -> None:
        """See `GraphRunner`."""
        super().close()
        self._free = queue.SimpleQueue()

    def _compute(self, part: Part) -> None:
        feeds = {name: tensor.numpy() for name, tensor in part.feeds.items()}
        request = self._free.get()
        try:
            found = request.infer(feeds, share_inputs=True, share_outputs=True)
            for place, output in zip(part.out.values(), self._outputs, strict=True):
                place.copy_(torch.from_numpy(found[output]))
        except RuntimeError as error:
            raise EnvironmentUnfit(
                f"{self.name}, graph {self.spec.name!r}: running {tuple(part.feeds)} failed: "
                f"{str(error).splitlines()[0]}"
            ) from error
        finally:
            self._free.put(request)
