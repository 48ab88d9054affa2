"""How the pipeline calls a FOMM: the `Runner` protocol, and the runner that uses torch.

A runner holds the three graphs (keypoints, source, animate) on one device. Tensors go in and
come out there, without a copy through the host. Who calls one never asks which it is; runners
of other formats live in the packages that make those formats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from dfm_engine.crew import Crew
from dfm_engine.exact_kernels import exact_kernels
from dfm_engine.fomm.config import FommConfig
from dfm_engine.fomm.model import Fomm
from dfm_engine.fomm.values import Keypoints, SourceFeatures

T = TypeVar("T")

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
        calls_at_once: calls of `animate` that make it the faster when they come from as many
            threads; with 1 it is called by one at a time.
    """

    @property
    def name(self) -> str: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def frame_size(self) -> tuple[int, int]: ...
    @property
    def weights_sha256(self) -> str: ...
    @property
    def calls_at_once(self) -> int: ...

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

    On a CPU the rows of a batch are dealt out to the cores, each row to one (`crew`). Threads that
    share one operation cut it wherever it happens to divide, and vectorised softmax and sigmoid
    round otherwise at the seams: with 5 threads a row's bits depended on its place. Now they depend
    neither on the batch nor on the number of cores. The maps of one row also stay in the cache.

    Args:
        fomm: the model.
        device: where it shall run.
        threads: on a CPU, rows computed at once; None: as many as torch has threads.
    """

    def __init__(
        self, fomm: Fomm, device: torch.device | str = "cpu", *, threads: int | None = None
    ) -> None:
        self.device = torch.device(device)
        self.fomm = fomm.to(self.device, torch.float32).eval()
        # Channels last: a quarter less time per frame on a CPU (demo weights, one EPYC core). There
        # keypoints keep their layout: the other one sums in longer chains, which makes the error of
        # the jacobians 2.7 times as large (7e-6) and, by seeded vox-256, that of a frame 6e-4.
        is_cpu = self.device.type == "cpu"
        swift = self.fomm.generator if is_cpu else self.fomm
        swift.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if is_cpu:
            # A warped map is not; left so, every block after it copies it: 1.06 times the frames.
            self.fomm.generator.bottleneck.register_forward_pre_hook(_put_channels_last)
        self._crew = Crew(threads) if is_cpu else None

    @property
    def calls_at_once(self) -> int:
        """2 where several cores have a row each.

        The last rows of a batch end one after the other. A crew that has the next batch already
        goes on with its rows, where it would wait for the last one.
        """
        return 2 if self._crew is not None and self._crew.threads > 1 else 1

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
        return Keypoints.cat(
            self._deal(lambda part: self.fomm.keypoints(images[part]), len(images), is_urgent=True)
        )

    def source(self, images: Tensor) -> SourceFeatures:
        """See `Runner`."""
        return SourceFeatures.cat(
            self._deal(
                lambda part: self.fomm.encode_source(images[part]), len(images), is_urgent=True
            )
        )

    def animate(
        self, features: SourceFeatures, kp_source: Keypoints, kp_driving: Keypoints
    ) -> Tensor:
        """See `Runner`."""
        rows = len(kp_driving)
        features, kp_source = features.expand(rows), kp_source.expand(rows)

        def predict(part: slice) -> Tensor:
            given = features[part], kp_source[part], kp_driving[part]
            return self.fomm.animate(*given).prediction

        return torch.cat(self._deal(predict, rows))

    def _deal(
        self, compute: Callable[[slice], T], rows: int, *, is_urgent: bool = False
    ) -> list[T]:
        """Results of the parts in which rows are computed: on a CPU one by one, else all at once.

        What others wait for is urgent: the next clip is opened while this one is animated.
        """

        def work(row: int) -> T:
            with torch.inference_mode(), exact_kernels():
                return compute(slice(row, row + 1))

        if self._crew is not None:
            return self._crew.map(work, rows, is_urgent=is_urgent)
        with torch.inference_mode(), exact_kernels():
            return [compute(slice(0, rows))]


def _put_channels_last(module: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
    return (given[0].contiguous(memory_format=torch.channels_last),)


def plan_batch_size(
    config: FommConfig, device: torch.device | str, *, free_bytes: int | None = None
) -> int:
    """Rows per batch for a run on this device; fixed when the run is planned.

    On a CPU a row is computed by itself, and a batch is only what is handed over at once. On a
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
