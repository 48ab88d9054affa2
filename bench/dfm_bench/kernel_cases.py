"""The kernels of `dfm_kernels` at the sizes where vox-256 uses them, each beside its reference.

A case draws its inputs, calls the operator and its torch reference, and knows what a call must move
and compute. `check_case` is the gate before any number: the operator against its reference in
float64 on the same inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dfm_engine.errors import CheckFailed
from dfm_kernels.coordinates import Points
from dfm_kernels.crop import crop_taps
from dfm_kernels.deformation import mix_motions, mix_motions_reference, mix_motions_traffic
from dfm_kernels.dispatch import STANDARD_FORMS, Traffic
from dfm_kernels.epilogues import (
    affine_relu,
    affine_relu_reference,
    bias_relu_cat,
    bias_relu_cat_reference,
    bias_relu_pool,
    bias_relu_pool_reference,
    epilogue_traffic,
    residual,
    residual_reference,
)
from dfm_kernels.from_yuv import yuv_to_rgb_traffic
from dfm_kernels.softargmax import soft_argmax, soft_argmax_reference, soft_argmax_traffic
from dfm_kernels.sparse_motion import (
    sparse_motion,
    sparse_motion_reference,
    sparse_motion_traffic,
)
from dfm_kernels.to_yuv import rgb_to_yuv, rgb_to_yuv_reference, rgb_to_yuv_traffic
from dfm_kernels.warp import warp, warp_reference, warp_traffic
from dfm_kernels.warp_backward import (
    warp_backward,
    warp_backward_reference,
    warp_backward_traffic,
)

__all__ = ["KernelCase", "check_case", "kernel_cases"]

POINTS, COLOURS, CHANNELS = 10, 3, 256
MOTION, HEATMAP, FRAME, CROPPED = 64, 58, 256, 224  # sides, of vox-256 and of a detector
VARIANCE, TEMPERATURE = 0.01, 0.1
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

# A position takes 4 roundings at up to 2 * 64 pixels, 2^-24 each, and moves a sample of values up
# to 1 by at most 2 a pixel along each of 2 axes: 1.3e-4. The rest is smaller.
FLOAT32_TOLERANCE = 1.5e-4
HALF_TOLERANCE = 2.0**-10  # a rounding of the output, twice over


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCase:
    """One operator at one size.

    Attributes:
        name: of the operator, and what else tells it from the other cases.
        shape: of its main input.
        dtype: likewise.
        traffic: of a call, at least.
        tolerance: of the outputs, relative to the largest value (and to 1 below that); 0 means
            equal bits.
        draw: inputs, from a seed.
        ours: the operator.
        reference: the same in torch.
        compiles: whether torch.compile takes the reference as one graph.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    traffic: Traffic
    tolerance: float
    draw: Callable[[int], tuple[Any, ...]]
    ours: Callable[..., Any]
    reference: Callable[..., Any]
    compiles: bool = True


def kernel_cases(
    rows: int, *, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> list[KernelCase]:
    """All operators, for a batch.

    Args:
        rows: of the batch.
        device: of the inputs.
        dtype: of the networks' maps; keypoints and grids are float32.
    """
    draw = _Draw(torch.device(device), dtype)
    size, to = dtype.itemsize, f"to {str(dtype).removeprefix('torch.')}"
    tolerance = FLOAT32_TOLERANCE + (HALF_TOLERANCE if size == 2 else 0)
    return [
        KernelCase(
            name="soft_argmax",
            shape=(rows, POINTS, HEATMAP, HEATMAP),
            dtype=dtype,
            traffic=soft_argmax_traffic(rows, POINTS, HEATMAP, HEATMAP, element_bytes=size),
            tolerance=FLOAT32_TOLERANCE,
            draw=lambda seed: draw(seed).heads(rows),
            ours=lambda logits, maps: soft_argmax(logits, maps, temperature=TEMPERATURE),
            reference=lambda logits, maps: soft_argmax_reference(
                logits, maps, temperature=TEMPERATURE
            ),
        ),
        KernelCase(
            name="sparse_motion",
            shape=(rows, COLOURS, MOTION, MOTION),
            dtype=dtype,
            traffic=sparse_motion_traffic(
                rows, POINTS, COLOURS, MOTION, MOTION, element_bytes=size
            ),
            tolerance=tolerance,
            draw=lambda seed: draw(seed).motion(rows, COLOURS),
            ours=lambda small, *points: sparse_motion(
                small, *_pair(points), variance=VARIANCE, align_corners=True
            ),
            reference=lambda small, *points: sparse_motion_reference(
                small, *_pair(points), variance=VARIANCE, align_corners=True
            ),
        ),
        KernelCase(
            name="mix_motions",
            shape=(rows, POINTS + 1, MOTION, MOTION),
            dtype=dtype,
            traffic=mix_motions_traffic(rows, POINTS, MOTION, MOTION, element_bytes=size),
            tolerance=FLOAT32_TOLERANCE,
            draw=lambda seed: (draw(seed).maps(rows, 1, MOTION), *draw(seed).motion(rows, 11)),
            ours=lambda shown, logits, *points: mix_motions(logits, shown, *_pair(points)),
            reference=lambda shown, logits, *points: mix_motions_reference(
                logits, shown, *_pair(points)
            ),
        ),
        KernelCase(
            name="warp",
            shape=(rows, CHANNELS, MOTION, MOTION),
            dtype=dtype,
            traffic=warp_traffic(rows, CHANNELS, MOTION, MOTION, element_bytes=size),
            tolerance=tolerance,
            draw=lambda seed: draw(seed).warp(rows),
            ours=lambda *inputs: warp(*inputs, align_corners=True),
            reference=lambda *inputs: warp_reference(*inputs, align_corners=True),
        ),
        KernelCase(
            name="warp_backward",
            shape=(rows, CHANNELS, MOTION, MOTION),
            dtype=dtype,
            traffic=warp_backward_traffic(rows, CHANNELS, MOTION, MOTION, element_bytes=size),
            tolerance=tolerance,
            draw=lambda seed: (draw(seed + 1).maps(rows, CHANNELS, MOTION), *draw(seed).warp(rows)),
            ours=lambda *inputs: warp_backward(*inputs, True, True, True),
            reference=lambda *inputs: warp_backward_reference(*inputs, align_corners=True),
            compiles=False,
        ),
        *_epilogue_cases(rows, dtype, draw, tolerance),
        KernelCase(
            name="rgb_to_yuv",
            shape=(rows, COLOURS, FRAME, FRAME),
            dtype=dtype,
            traffic=rgb_to_yuv_traffic(rows, FRAME, FRAME, element_bytes=size),
            tolerance=0,
            draw=lambda seed: (draw(seed).maps(rows, COLOURS, FRAME),),
            ours=rgb_to_yuv,
            reference=rgb_to_yuv_reference,
        ),
        KernelCase(
            name=f"yuv_to_rgb {to}",
            shape=(rows, FRAME * 3 // 2, FRAME),
            dtype=torch.uint8,
            traffic=yuv_to_rgb_traffic(rows, FRAME, FRAME, element_bytes=size),
            tolerance=tolerance,
            draw=lambda seed: (draw(seed).frames(rows), []),
            ours=lambda frames, taps: _to_rgb(torch.ops.dfm.yuv_to_rgb, frames, taps, dtype),
            reference=lambda frames, taps: _to_rgb(
                STANDARD_FORMS[torch.ops.dfm.yuv_to_rgb.default], frames, taps, dtype
            ),
        ),
        KernelCase(
            name=f"yuv_to_rgb {to}, cropped",
            shape=(rows, FRAME * 3 // 2, FRAME),
            dtype=torch.uint8,
            traffic=yuv_to_rgb_traffic(
                rows, FRAME, FRAME, element_bytes=size, out=(CROPPED, CROPPED), taps=3
            ),
            tolerance=tolerance,
            draw=lambda seed: (draw(seed).frames(rows), draw(seed).taps(rows)),
            ours=lambda frames, taps: _to_rgb(torch.ops.dfm.yuv_to_rgb, frames, taps, dtype),
            reference=lambda frames, taps: _to_rgb(
                STANDARD_FORMS[torch.ops.dfm.yuv_to_rgb.default], frames, taps, dtype
            ),
        ),
    ]


def _epilogue_cases(
    rows: int, dtype: torch.dtype, draw: _Draw, tolerance: float
) -> list[KernelCase]:
    """At the sizes of the residual blocks, the last up block, the first down and the last skip."""

    def case(
        name: str,
        shape: tuple[int, int, int],  # channels, side, numbers per channel
        ours: Callable[..., Any],
        reference: Callable[..., Any],
        *,
        read: float,
        written: float,
        others: tuple[int, ...] = (),  # channels of more maps
    ) -> KernelCase:
        channels, side, numbers = shape

        def inputs(seed: int) -> tuple[Tensor, ...]:
            source = draw(seed)
            maps = [source.maps(rows, each, side) - 0.5 for each in (channels, *others)]
            return (*maps, *(source.numbers(channels) for _ in range(numbers)))

        return KernelCase(
            name=name,
            shape=(rows, channels, side, side),
            dtype=dtype,
            traffic=epilogue_traffic(
                rows * channels * side * side,
                read=read,
                written=written,
                element_bytes=dtype.itemsize,
            ),
            tolerance=tolerance,
            draw=inputs,
            ours=ours,
            reference=reference,
        )

    return [
        case(
            "residual",
            (CHANNELS, MOTION, 3),
            residual,
            residual_reference,
            read=2,
            written=2,
            others=(CHANNELS,),
        ),
        case(
            "affine_relu",
            (64, FRAME, 2),
            affine_relu,
            affine_relu_reference,
            read=1,
            written=1,
        ),
        case(
            "bias_relu_pool",
            (128, MOTION, 1),
            bias_relu_pool,
            bias_relu_pool_reference,
            read=1,
            written=0.25,
        ),
        case(
            "bias_relu_cat",
            (64, MOTION, 1),
            lambda x, skip, bias: bias_relu_cat(x, bias, skip, channels=112),
            lambda x, skip, bias: bias_relu_cat_reference(x, bias, skip, 112),
            read=1 + 48 / 64,
            written=112 / 64,
            others=(48,),
        ),
    ]


def check_case(case: KernelCase) -> float:
    """Hold the operator against its reference in float64 (bytes: as they are).

    Returns:
        The largest difference, as `tolerance` counts it.

    Raises:
        CheckFailed: above the tolerance, or not a number.
    """
    inputs = case.draw(0)
    exact = [i.double() if isinstance(i, Tensor) and i.is_floating_point() else i for i in inputs]
    given = inputs if case.tolerance == 0 else exact
    with torch.no_grad():
        pairs = list(
            zip(_tensors(case.ours(*inputs)), _tensors(case.reference(*given)), strict=True)
        )
    worst = 0.0
    for index, (found, wanted) in enumerate(pairs):
        error = float((found.double() - wanted.double()).abs().max())
        error /= max(1.0, float(wanted.double().abs().max())) if case.tolerance else 1.0
        worst = max(worst, error)
        if not error <= case.tolerance:
            raise CheckFailed(
                f"{case.name} {case.shape} {case.dtype}: output {index} is off its reference by "
                f"{error:.3g}, {case.tolerance:.3g} allowed; no number is reported"
            )
    return worst


class _Draw:
    """Inputs of one device and precision, channels last as cuDNN leaves them."""

    def __init__(self, device: torch.device, dtype: torch.dtype, seed: int = 0) -> None:
        self.device, self.dtype = device, dtype
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, seed: int) -> _Draw:
        return _Draw(self.device, self.dtype, seed)

    def maps(self, rows: int, channels: int, side: int) -> Tensor:
        values = self._uniform(rows, channels, side, side).to(self.dtype)
        return values.contiguous(memory_format=torch.channels_last)

    def numbers(self, count: int) -> Tensor:
        return self._uniform(count).to(self.dtype)

    def heads(self, rows: int) -> tuple[Tensor, Tensor]:
        """Logits and jacobian maps as one convolution gives them."""
        both = self.maps(rows, 5 * POINTS, HEATMAP)
        return both[:, :POINTS], both[:, POINTS:]

    def motion(self, rows: int, channels: int) -> tuple[Tensor, ...]:
        points = [self._uniform(rows, POINTS, 2) * 1.8 - 0.9 for _ in range(2)]
        around = [
            torch.eye(2) + 0.4 * torch.rand(rows, POINTS, 2, 2, generator=self.generator) - 0.2
        ]
        around.append(torch.eye(2) + 0.4 * torch.rand(rows, POINTS, 2, 2, generator=self.generator))
        jacobians = [each.to(self.device) for each in around]
        maps = self.maps(rows, channels, MOTION)
        return maps, points[0], jacobians[0], points[1], jacobians[1]

    def warp(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """The identity, moved by some pixels: as a face moves."""
        across = torch.linspace(-1, 1, MOTION)
        grid = torch.stack(torch.meshgrid(across, across, indexing="xy"), dim=-1)
        moved = grid + 0.2 * torch.rand(rows, 8, 8, 2, generator=self.generator).repeat_interleave(
            MOTION // 8, 1
        ).repeat_interleave(MOTION // 8, 2)
        shown = self._uniform(rows, 1, MOTION, MOTION)
        return self.maps(rows, CHANNELS, MOTION), moved.to(self.device), shown

    def frames(self, rows: int) -> Tensor:
        shape = (rows, FRAME * 3 // 2, FRAME)
        return torch.randint(256, shape, generator=self.generator, dtype=torch.uint8).to(
            self.device
        )

    def taps(self, rows: int) -> list[Tensor]:
        start = 8 * torch.rand(rows, generator=self.generator)
        end = FRAME - 8 * torch.rand(rows, generator=self.generator)
        axis = [part.to(self.device) for part in crop_taps(FRAME, start, end, CROPPED)]
        return [*axis, *axis]

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator).to(self.device)


def _pair(points: tuple[Tensor, ...]) -> tuple[Points, Points]:
    return Points(*points[:2]), Points(*points[2:])


def _to_rgb(call: Callable[..., Any], frames: Tensor, taps: list[Tensor], dtype: torch.dtype):
    return call(frames, taps, MEAN, STD, dtype, True, "i420")


def _tensors(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else [t for t in outputs if t is not None]
