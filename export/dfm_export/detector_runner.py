"""A detector whose graph runs anywhere: `dfm_engine.detect.runner.DetectorRunner` over a graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dfm_engine.detect.detector import DetectorSpec
from dfm_engine.detect.fit import FrameFitter
from dfm_engine.detect.runner import DetectorOutput
from dfm_engine.errors import ShapeError, UsageError
from dfm_export.runners import GraphRunner

__all__ = ["DetectorGraphRunner"]


class DetectorGraphRunner:
    """Implements `DetectorRunner` with an exported detector.

    Frames are fitted to the detector as everywhere (`FrameFitter`), so that all runners see the
    same bytes; normalisation is inside the graph.

    Args:
        graph: the detector's; closed by `close`.
        spec: of the detector.
        weights_sha256: identifies the weights.

    Raises:
        UsageError: the graph has no map: a detector whose map needs gradients is scored with torch.
    """

    def __init__(self, graph: GraphRunner, spec: DetectorSpec, *, weights_sha256: str) -> None:
        if "cam" not in {tensor.name for tensor in graph.spec.outputs}:
            raise UsageError(
                f"the exported {spec.name} gives no class activation map, which needs gradients "
                "there; use --backend torch"
            )
        self.graph = graph
        self.spec = spec
        self.weights_sha256 = weights_sha256
        self.name = graph.name
        self.device: torch.device = graph.device
        self.max_batch = graph.max_batch
        self._fit = FrameFitter(spec, graph.device)

    def run(self, frames: Tensor) -> DetectorOutput:
        """See `DetectorRunner`.

        Raises:
            ShapeError: not uint8 (B, S, S, 3), or more than `max_batch`.
        """
        if not 0 < len(frames) <= self.max_batch:
            raise ShapeError(f"{self.name} takes 1 to {self.max_batch} frames, got {len(frames)}")
        found = self.graph.run({"frames": self._fit(frames)})
        return DetectorOutput(found["logits"], found["cam"])

    def warmup(self, batches: Sequence[int]) -> None:
        """Run once with so many rows each."""
        self.graph.warmup(batches)

    def close(self) -> None:
        """Close the graph."""
        self.graph.close()
