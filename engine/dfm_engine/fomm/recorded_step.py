"""Replay a training step as one recording of GPU work (a CUDA graph).

A step of a small model is hundreds of short kernels; the CPU cannot launch them as fast as the
GPU finishes them. A recording is launched at once. Inputs are copied into the tensors that the
recording reads.
"""

from __future__ import annotations

import dataclasses
import logging

import torch
from torch import Tensor

from dfm_engine.fomm.train_step import Batch, TrainingStep

log = logging.getLogger(__name__)

_UNRECORDED = 4  # steps that choose convolution algorithms and fill the allocator


class RecordedStep:
    """Calls of one shape: the first few run as they are, then one is recorded and replayed."""

    def __init__(self, step: TrainingStep) -> None:
        self.step = step
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._input: Batch | None = None
        self._output: dict[str, Tensor] = {}
        self._side = torch.cuda.Stream()

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """As `TrainingStep.__call__`; the returned tensors are overwritten by the next call."""
        if self._graph is not None and self._input is not None:
            given = dict(batch.tensors())
            for name, tensor in self._input.tensors():
                tensor.copy_(given[name])
            self._graph.replay()
            return self._output
        self._calls += 1
        if self._calls == _UNRECORDED + 1 and self._record(batch):
            return self(batch)
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            terms = self.step(batch)
        torch.cuda.current_stream().wait_stream(self._side)
        return terms

    def _record(self, batch: Batch) -> bool:
        """Record the step without running it; False where this machine cannot."""
        fields = {name: tensor.clone() for name, tensor in batch.tensors()}
        self._input = dataclasses.replace(batch, **fields)  # pyright: ignore[reportArgumentType]
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: the thread that gathers the next batch may go on allocating
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._output = self.step(self._input)
        except RuntimeError as error:  # an operation that cannot be recorded: slower, as right
            log.warning("train  the step cannot be recorded, going on without: %s", error)
            self._input = None
            return False
        self._graph = graph
        log.info("train  recorded the step; replaying it from here on")
        return True
