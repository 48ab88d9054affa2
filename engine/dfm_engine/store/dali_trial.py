"""The clip that every decoding pipeline is tried on, and what it tells of the decoder's colours.

    grey steps (luma known, chroma 128) ─► the pipeline ─► R, G, B minus their levels ─► bias

A grey has R = G = B = 255/219 (Y - 16). DALI 2.4.0 on NVDEC instead shows R 0.87 and B 1.08 too
high and G 0.53 too low, of every colour and not of greys alone: its kernel scales samples to 0-1
and then subtracts 0.5 from chroma and 0.0625 from luma, which are 127.5 and 15.94 levels where
BT.601 has 128 and 16 (H100, November 2026; `tests/engine/store/golden_nvdec.npz` holds pictures).
A frame by NVDEC would be pinker than one by PyAV by more than a level, which a detector can learn.

So the constant is taken off in the graph, in float, before the frames' one rounding. It is never
written down but measured on each new pipeline, so that a DALI that mends it is not made worse.
Mixed over the steps the decoder's rounding cancels: the measured bias is right to 0.01 levels.

What the decoder rounded stays rounded. Crops that average pixels come out within 0.02 levels of
PyAV's on average; frames of the stored size, of which each pixel can only move by whole levels,
keep up to half of one (R -0.14, G +0.46, B +0.08; mean distance 0.25, no pixel further than 1).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import av
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

from dfm_engine.errors import EnvironmentUnfit

__all__ = ["GreySteps", "affine_colour", "decoder_bias", "grey_steps"]

SIDE_PX, STEP_PX = 256, 16
FIRST, STEPS = 50, 146
"""Luma of the steps: 73 in a row have the fractions k/73 of a level once each, as 255/219 is
85/73; twice 73 stay clear of black and white by 39 levels, so that nothing is clipped."""

MOST_BIAS = 2.0
"""Levels; more than this is another range or another picture, and no matter of constants."""
MOST_SPREAD = 1.0
"""Levels that a pixel may be off beside the bias: the decoder's rounding is 0.5, twice allowed."""

_CODECS = {
    "libx264": {"crf": "1", "preset": "veryfast"},
    "libvpx-vp9": {"crf": "1", "b": "0", "deadline": "realtime", "cpu-used": "8"},
}


@dataclass(frozen=True, slots=True, eq=False)
class GreySteps:
    """A clip of one grey picture, limited range, untagged.

    Attributes:
        file: its bytes, uint8 (N,), Matroska.
        levels: (256, 256) float64, what R, G and B are each, by the luma that PyAV decodes.
        is_step: (256, 256) bool, where the steps lie that are measured.
    """

    file: NDArray[np.uint8]
    levels: NDArray[np.float64]
    is_step: NDArray[np.bool_]


@lru_cache
def grey_steps(codec: str) -> GreySteps:
    """Encode the clip, once per process.

    Args:
        codec: `libx264`, or `libvpx-vp9` for DALI's decoder on a CPU.
    """
    across = SIDE_PX // STEP_PX
    number = np.arange(across**2).reshape(across, across)
    number = number.repeat(STEP_PX, axis=0).repeat(STEP_PX, axis=1)  # (256, 256)
    is_step = number < STEPS
    samples = np.full((SIDE_PX * 3 // 2, SIDE_PX), 128, np.uint8)  # I420: luma above chroma
    samples[:SIDE_PX] = np.where(is_step, FIRST + number, 128)
    file = _one_picture(samples, codec)
    with av.open(io.BytesIO(file), "r") as container:
        decoded = next(container.decode(video=0)).to_ndarray()
    levels = (decoded[:SIDE_PX].astype(np.float64) - 16) * 255 / 219
    return GreySteps(np.frombuffer(file, np.uint8), levels, is_step)


def decoder_bias(picture: NDArray[np.number], steps: GreySteps) -> NDArray[np.float64]:
    """How many levels a decoder's R, G and B lie above what the samples say.

    Args:
        picture: (256, 256, 3) RGB of the clip, as decoded.
        steps: the clip.

    Returns:
        (3,) float64.

    Raises:
        EnvironmentUnfit: more than a constant is wrong.
    """
    error = (picture - steps.levels[..., None])[steps.is_step]  # (pixels, 3)
    bias = error.mean(axis=0)
    spread = float(np.abs(error - bias).max())
    if float(np.abs(bias).max()) > MOST_BIAS or spread > MOST_SPREAD:
        raise EnvironmentUnfit(
            f"DALI shows a grey picture {_signed(bias)} levels off in R, G and B on average and "
            f"{spread:.1f} beside that; up to {MOST_BIAS} and {MOST_SPREAD} can be corrected. Use "
            "--decode pyav, or another version of DALI (2.4.0 is known to work)"
        )
    return bias


def affine_colour(colour: NDArray[np.float32], bias: NDArray[np.floating]) -> NDArray[np.float32]:
    """Join a bias and the matrix after it: `colour` (x - bias), as (3, 4) on (R, G, B, 1)."""
    return np.concatenate([colour, -(colour @ bias)[:, None]], axis=1).astype(np.float32)


def _signed(bias: NDArray[np.float64]) -> str:
    return ", ".join(f"{value:+.2f}" for value in bias)


def _one_picture(samples: NDArray[np.uint8], codec: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = cast("VideoStream", container.add_stream(codec, rate=25, options=_CODECS[codec]))
        stream.height = stream.width = SIDE_PX
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        container.mux(stream.encode(av.VideoFrame.from_ndarray(samples, format="yuv420p")))
        container.mux(stream.encode(None))
    return file.getvalue()
