"""How frames meet a detector: the `DetectorRunner` protocol, and the runner that uses torch.

A runner takes pixels as the rest of the project has them, so resizing and normalisation are its
own business; runners of other formats live in the packages that make those formats.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from dfm_engine.detect.detector import DetectorSpec, ForgeryDetector, fake_probability
from dfm_engine.detect.fit import FrameFitter
from dfm_engine.errors import ShapeError
from dfm_engine.exact_kernels import exact_kernels

MAX_BATCH = 64


@dataclass(frozen=True, slots=True)
class DetectorOutput:
    """What a detector says of a batch, on the runner's device.

    Attributes:
        logits: float32 (B, 1) or (B, 2); index 1, or the only one, is fake.
        cam: float32 (B, logits, h, w); see `ForgeryDetector.logits_and_cam`.
    """

    logits: Tensor
    cam: Tensor

    def __repr__(self) -> str:
        return f"DetectorOutput(logits={tuple(self.logits.shape)}, cam={tuple(self.cam.shape)})"

    @property
    def fake(self) -> Tensor:
        """The probability of fake, (B,)."""
        return fake_probability(self.logits)


class DetectorRunner(Protocol):
    """A detector on one device.

    Attributes:
        name: what a person reads in a report, such as `torch-cpu-float32`.
        spec: of the detector.
        device: where frames are taken and results given.
        max_batch: rows at once at most.
        weights_sha256: identifies the weights.
    """

    @property
    def name(self) -> str: ...
    @property
    def spec(self) -> DetectorSpec: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def max_batch(self) -> int: ...
    @property
    def weights_sha256(self) -> str: ...

    def run(self, frames: Tensor) -> DetectorOutput:
        """Look at frames, uint8 (B, S, S, 3) RGB of any side S, B up to `max_batch`."""
        ...


class TorchDetectorRunner:
    """A `DetectorRunner` that calls the module; takes it over: moves it, freezes it.

    Args:
        detector: any.
        device: where it shall run.
        dtype: float32, or bfloat16 or float16 for the convolutions on a GPU; logits and maps
            come out as float32.
        max_batch: more rows than this are refused.
    """

    def __init__(
        self,
        detector: ForgeryDetector,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        max_batch: int = MAX_BATCH,
    ) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        self.max_batch = max_batch
        self.detector = detector.to(self.device, dtype).eval().requires_grad_(False)
        self.detector.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._fit = FrameFitter(detector.spec, self.device)

    @property
    def name(self) -> str:
        """`torch-<device>-<dtype>`."""
        return f"torch-{self.device.type}-{str(self.dtype).removeprefix('torch.')}"

    @property
    def spec(self) -> DetectorSpec:
        """Of the detector."""
        return self.detector.spec

    @property
    def weights_sha256(self) -> str:
        """Of the detector's file."""
        return self.detector.weights_sha256

    def run(self, frames: Tensor) -> DetectorOutput:
        """See `DetectorRunner`.

        Raises:
            ShapeError: not uint8 (B, S, S, 3), or more than `max_batch`.
        """
        if not 0 < len(frames) <= self.max_batch:
            raise ShapeError(f"{self.name} takes 1 to {self.max_batch} frames, got {len(frames)}")
        with torch.no_grad(), exact_kernels():
            logits, cam = self.detector.logits_and_cam(self.images(frames))
        return DetectorOutput(logits.float(), cam.float())

    def images(self, frames: Tensor) -> Tensor:
        """Frames as the net wants them: fitted, normalised.

        Returns:
            (B, 3, input_px, input_px) of the runner's dtype, channels last.
        """
        scale, shift = self._norm
        pixels = self._fit(frames).to(torch.float32)
        return (pixels * scale + shift).to(self.dtype).permute(0, 3, 1, 2)

    @cached_property
    def _norm(self) -> tuple[Tensor, Tensor]:
        """Per channel 1 / (255 std) and -mean / std, computed in float64."""
        mean = torch.tensor(self.spec.mean, dtype=torch.float64)
        std = torch.tensor(self.spec.std, dtype=torch.float64)
        return (1 / (255 * std)).float().to(self.device), (-mean / std).float().to(self.device)
