"""How the pipeline calls a FOMM: the `Runner` protocol, and the runner that uses torch.

A runner holds the three graphs (keypoints, source, animate) on one device. Tensors go in and
come out there, without a copy through the host. Who calls one never asks which it is; runners
of other formats live in the packages that make those formats.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from dfm_engine.exact_kernels import exact_kernels
from dfm_engine.fomm.config import FommConfig
from dfm_engine.fomm.model import Fomm
from dfm_engine.fomm.values import Keypoints, SourceFeatures

CPU_BATCH_SIZE = 8
MAX_CUDA_BATCH_SIZE = 64


class Runner(Protocol):
    """The three graphs of a FOMM on one device.

    A row's result depends on the batch's size alone, never on the other rows or on its place
    among them: `animate_jobs` counts on that.

    Attributes:
        name: what a person reads in a report, such as `torch-cpu-float32`.
        device: where tensors are taken and given.
        frame_size: (height, width) of sources, driving frames and predictions.
        weights_sha256: identifies the weights.
    """

    @property
    def name(self) -> str: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def frame_size(self) -> tuple[int, int]: ...
    @property
    def weights_sha256(self) -> str: ...

    def keypoints(self, images: Tensor) -> Keypoints:
        """Keypoints of (B, 3, H, W) images in [0, 1]."""
        ...

    def source(self, images: Tensor) -> SourceFeatures:
        """Features of (B, 3, H, W) source images in [0, 1]."""
        ...

    def animate(
        self, features: SourceFeatures, kp_source: Keypoints, kp_driving: Keypoints
    ) -> Tensor:
        """(B, 3, H, W) predictions in [0, 1]; sources are one row or B."""
        ...


class TorchRunner:
    """A `Runner` that calls the modules, in float32, with TF32 off and nothing left to chance.

    Takes the model over: moves it to the device and into evaluation mode.

    On a CPU the rows of a batch go through one by one. Threads share a batch out wherever it
    happens to divide, and vectorised softmax and sigmoid round otherwise at the seams, so that
    with 5 threads a row's bits depended on its place. It is also faster: 0.64 against 0.79 s per
    vox-256 frame on two Xeon cores (torch 2.11), for the maps of one row stay in the cache.
    """

    def __init__(self, fomm: Fomm, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        # Channels last: a quarter less time per frame on a CPU (demo weights, one EPYC core).
        self.fomm = fomm.to(self.device, torch.float32).eval()
        self.fomm.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @property
    def name(self) -> str:
        """`torch-<device>-float32`."""
        return f"torch-{self.device.type}-float32"

    @property
    def frame_size(self) -> tuple[int, int]:
        """(height, width) that the weights were trained for."""
        return self.fomm.frame_size

    @property
    def weights_sha256(self) -> str:
        """Of the checkpoint file."""
        return self.fomm.weights_sha256

    def keypoints(self, images: Tensor) -> Keypoints:
        """See `Runner`."""
        with torch.inference_mode(), exact_kernels():
            return Keypoints.cat([self.fomm.keypoints(part) for part in self._split(images)])

    def source(self, images: Tensor) -> SourceFeatures:
        """See `Runner`."""
        with torch.inference_mode(), exact_kernels():
            parts = [self.fomm.encode_source(part) for part in self._split(images)]
            return SourceFeatures.cat(parts)

    def animate(
        self, features: SourceFeatures, kp_source: Keypoints, kp_driving: Keypoints
    ) -> Tensor:
        """See `Runner`."""
        rows = len(kp_driving)
        features, kp_source = features.expand(rows), kp_source.expand(rows)
        step = self._rows_at_once(rows)
        with torch.inference_mode(), exact_kernels():
            predictions = [
                self.fomm.animate(features[part], kp_source[part], kp_driving[part]).prediction
                for part in (slice(start, start + step) for start in range(0, rows, step))
            ]
            return torch.cat(predictions)

    def _rows_at_once(self, rows: int) -> int:
        return 1 if self.device.type == "cpu" else rows

    def _split(self, images: Tensor) -> tuple[Tensor, ...]:
        return images.split(self._rows_at_once(len(images)))


def plan_batch_size(
    config: FommConfig, device: torch.device | str, *, free_bytes: int | None = None
) -> int:
    """Rows per batch for a run on this device; fixed when the run is planned.

    On a CPU rows are computed one by one, and a batch is only what is handed over at once. On a
    GPU half of the free memory is offered; cuDNN's workspace has the other half.

    Args:
        config: the architecture.
        device: where it will run.
        free_bytes: of that device; None asks it.
    """
    device = torch.device(device)
    if device.type != "cuda":
        return CPU_BATCH_SIZE
    if free_bytes is None:
        free_bytes, _ = torch.cuda.mem_get_info(device)
    height, width = config.frame_size
    # Six float32 maps at full size: the last decoder block's input (twice as wide) and output,
    # with room. vox-256: 0.094 GiB; measured 0.055 on an H100 without cuDNN's workspace.
    row_bytes = 6 * 4 * config.generator.block_expansion * height * width
    rows = min(MAX_CUDA_BATCH_SIZE, free_bytes // 2 // row_bytes)
    return 1 << (max(1, rows).bit_length() - 1)
