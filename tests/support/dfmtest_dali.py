"""The GPU's graph as far as a CPU runs it: VP9 clips for DALI's own decoder, and a router to it."""

from __future__ import annotations

import hashlib
from itertools import islice
from pathlib import Path

import av
import numpy as np
from dfmtest_drawn_clips import draw, encode
from numpy.typing import NDArray

from dfm_engine.media.colour import RgbConverter
from dfm_engine.media.reader import ClipReader
from dfm_engine.store.dali_graph import GraphSpec
from dfm_engine.store.routing import Route, Stream
from dfm_engine.store.sampler import ClipToSample

WIDTH, HEIGHT, FRAMES = 96, 64, 24
SOFTWARE = GraphSpec(source="software", batch_size=3, threads=1)
"""DALI decodes no H.264 on a CPU, but VP9: bytes in, crops out, as from NVDEC."""


def software_router(stream: Stream, wanted: int) -> Route:
    """VP9 goes to DALI as if it were H.264 to NVDEC; so does H.264, of which it dies."""
    if stream.codec == "h264" and stream.profile == "High":
        return Route("nvdec", "as if")
    if stream.codec != "vp9" or not stream.is_whole:
        return Route("cpu", f"codec: {stream.codec}")
    return Route("nvdec", "", needs_check=stream.width != WIDTH)


def vp9(
    path: Path,
    count: int = FRAMES,
    *,
    width: int = WIDTH,
    height: int = HEIGHT,
    quarters: int = 0,
    shift: int = 0,
    **how: object,
) -> Path:
    """A clip that differs from frame to frame and, by `shift`, from others."""
    frames = np.roll(draw(count, width, height), shift, axis=2)
    prepare = None
    if quarters:

        def prepare(stream: av.VideoStream) -> None:
            stream.set_display_rotation(90.0 * quarters)

        frames = np.ascontiguousarray(np.rot90(frames, -quarters, axes=(1, 2)))
    options = {"crf": "20", "b": "0", "deadline": "realtime", "cpu-used": "8"}
    encode(path, frames, codec="libvpx-vp9", options=options, prepare=prepare, **how)  # type: ignore
    return path


def to_sample(
    path: Path, wanted: list[int], *, place: int = 0, frames: int = FRAMES, **how: object
) -> ClipToSample:
    """A clip whose hash is known."""
    return ClipToSample(
        place=place,
        path=path,
        clip_frames=frames,
        wanted=np.array(wanted, np.int32),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        **how,  # type: ignore[arg-type]
    )


def as_dali_converts(path: Path, count: int = 1000) -> NDArray[np.uint8]:
    """(T, H, W, 3): the first pictures by BT.601, whatever their tag says."""
    convert = RgbConverter()
    pictures = []
    with ClipReader(path) as clip:
        for frame, _ in islice(clip.pictures(), count):
            frame.colorspace = 2
            pictures.append(convert.convert(frame))
    return np.stack(pictures)
