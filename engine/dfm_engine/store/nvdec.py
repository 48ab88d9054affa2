"""This machine's NVDEC, and what its graph is given for a clip: shared by sampler and reader."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from dfm_engine.clip import Box
from dfm_engine.errors import EnvironmentUnfit
from dfm_engine.media.colour import RgbConverter
from dfm_engine.media.cropping import BoxCropper
from dfm_engine.media.outline import ClipOutline
from dfm_engine.nvidia import NvidiaFacts, read_nvidia
from dfm_engine.store.dali_graph import GraphSpec, load_dali
from dfm_engine.store.dali_run import Part
from dfm_engine.store.routing import HOPPER, Route, SizeLimits, Stream, rgb_correction, route

__all__ = [
    "Router",
    "gpu_router",
    "gpu_spec",
    "is_same_picture",
    "parts_of",
    "why_not_dali",
]

LEAST_THREADS = 4
SAME_PICTURE = 3.0
"""Mean distance in levels below which two decoders saw the same first picture. Colour arithmetic
alone gives 0.4; a picture with moved or lost rows is tens away."""

Router = Callable[[Stream, int], Route]


def why_not_dali(facts: NvidiaFacts | None = None) -> str:
    """What keeps this machine from decoding through DALI, in words; "" if nothing does."""
    facts = read_nvidia() if facts is None else facts
    if not facts.gpus:
        return facts.cuda_error or "CUDA sees no device"
    if not facts.nvdec:
        return facts.nvdec_error or "NVDEC is not usable"
    try:
        load_dali()
    except EnvironmentUnfit as error:
        return str(error)
    return ""


def gpu_spec(facts: NvidiaFacts | None = None) -> GraphSpec:
    """The graph for this machine's first GPU: two decoding threads per engine, a clip for each.

    Raises:
        EnvironmentUnfit: there is none that DALI decodes on.
    """
    facts = read_nvidia() if facts is None else facts
    if reason := why_not_dali(facts):
        raise EnvironmentUnfit(
            f"decoding with DALI: {reason}; use --decode auto or pyav, or see `dfm-engine doctor`"
        )
    engines = max((facts.nvdec or {}).values(), default=1)
    threads = max(LEAST_THREADS, 2 * engines)
    return GraphSpec(source="nvdec", device_id=0, threads=threads, batch_size=2 * threads)


def gpu_router(facts: NvidiaFacts | None = None) -> Router:
    """`routing.route` with the sizes that this machine's first GPU says it decodes."""
    facts = read_nvidia() if facts is None else facts
    sizes: Mapping[str, SizeLimits] | None = None
    if facts.nvdec_sizes:
        sizes = {
            # An old driver leaves the sizes at 0.
            codec: SizeLimits(*size) if size[2] else HOPPER.get(codec, SizeLimits(*size))
            for codec, size in facts.nvdec_sizes.items()
        }
    return lambda stream, wanted: route(stream, wanted=wanted, limits=sizes)


def parts_of(
    outline: ClipOutline,
    stream: Stream,
    file: NDArray[np.uint8],
    wanted: NDArray[np.int32],
    *,
    box: Box,
    size: tuple[int, int],
) -> list[Part]:
    """What the graph is given for a clip: one part, or more where its pictures fill too much.

    Args:
        outline: of the clip.
        stream: its facts.
        file: its bytes, uint8 (N,).
        wanted: (F,) int32, pictures by their place in the order of showing.
        box: in pixels of the upright picture.
        size: (h, w) of the result, in stored orientation.
    """
    stored = outline.orientation.stored_box(box, *outline.upright_size)
    wanted = np.ascontiguousarray(wanted, np.int32)
    step = stream.chunk_frames
    return [
        Part(
            name=os.fspath(outline.path),
            payload=file,
            wanted=some,
            box=stored,
            size=size,
            decoded_bytes=len(some) * stream.width * stream.height * 3,
            colour=rgb_correction(stream.matrix),
        )
        for some in (wanted[start : start + step] for start in range(0, len(wanted), step))
    ]


def is_same_picture(frame: NDArray[np.uint8], outline: ClipOutline, box: Box | None) -> bool:
    """Whether a first picture, upright and cut to a box or whole, is the one that PyAV decoded."""
    expected = RgbConverter().convert(outline.first)
    if box is not None:
        height, width, _ = expected.shape
        expected = BoxCropper(height, width, box, len(frame))(expected)
    distance = float(np.abs(frame.astype(np.int16) - expected).mean())
    return distance <= SAME_PICTURE
