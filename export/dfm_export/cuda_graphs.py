"""Replay instead of launch: one CUDA graph per size of a call.

A recorded graph reads and writes fixed addresses. So each size has tensors of its own: inputs are
copied in, outputs out, both on the device; that costs microseconds where a launch of some hundred
kernels costs milliseconds of the host. Each thread has graphs of its own, as it has a
stream and, in TensorRT, a context of its own.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dfm_export.front_door import Part

__all__ = ["CudaGraphs"]

MOST = 8  # sizes kept; a build has one, a server a few
WARM_UP = 3  # launches before recording: lazy initialisation must not be recorded

Launch = Callable[[Part], None]
Record = Callable[[Callable[[], None], torch.device], Callable[[], None]]


@dataclass(frozen=True, slots=True)
class _Recorded:
    part: Part
    replay: Callable[[], None]


class CudaGraphs:
    """Records a launch at each size the first time, and replays it from then on.

    Args:
        launch: fills a part's outputs, in the current stream, without waiting for it.
        device: of the tensors.
        record: makes a replay of a launch; the default records a CUDA graph.
    """

    def __init__(
        self, launch: Launch, device: torch.device, *, record: Record | None = None
    ) -> None:
        self._launch = launch
        self._device = device
        self._record = record or _record
        self._of_thread = threading.local()

    def run(self, part: Part) -> None:
        """Fill the part's outputs."""
        size = tuple(tuple(tensor.shape) for tensor in part.feeds.values())
        kept = self.kept
        recorded = kept.get(size)
        if recorded is None:
            recorded = self._make(part)
            if len(kept) >= MOST:
                kept.popitem(last=False)
            kept[size] = recorded
        kept.move_to_end(size)
        _copy(part.feeds, recorded.part.feeds)
        recorded.replay()
        _copy(recorded.part.out, part.out)

    def close(self) -> None:
        """Forget all, and their memory."""
        self._of_thread = threading.local()

    @property
    def kept(self) -> OrderedDict[tuple[tuple[int, ...], ...], _Recorded]:
        """This thread's, by the shapes of the inputs; the last used is last."""
        if not hasattr(self._of_thread, "kept"):
            self._of_thread.kept = OrderedDict()
        return self._of_thread.kept

    def _make(self, part: Part) -> _Recorded:
        own = Part(
            {name: tensor.clone() for name, tensor in part.feeds.items()},
            {name: torch.empty_like(tensor) for name, tensor in part.out.items()},
        )
        return _Recorded(own, self._record(lambda: self._launch(own), self._device))


def _copy(given: dict[str, Tensor], places: dict[str, Tensor]) -> None:
    for name, tensor in given.items():
        places[name].copy_(tensor)


def _record(launch: Callable[[], None], device: torch.device) -> Callable[[], None]:
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            launch()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    # Of this thread alone: others may allocate and copy meanwhile.
    with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
        launch()
    return graph.replay
