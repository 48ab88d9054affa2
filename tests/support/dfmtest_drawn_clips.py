"""Clips that are drawn here, and encoded with the codec, colour tags and turn that a test wants."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("SVT_LOG", "-1")  # the AV1 encoder greets on stderr

FRAMES = 40
SIZE = 64
SHARP = {"crf": "8", "preset": "veryfast"}


def draw(count: int = FRAMES, width: int = SIZE, height: int = SIZE) -> NDArray[np.uint8]:
    """(T, H, W, 3) uint8: a coloured slope with a wandering disc, smooth."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    slope = np.stack([40 + 160 * x / width, 40 + 160 * y / height, 200 - 120 * x / width], -1)
    frames = []
    for index in range(count):
        angle = 2 * np.pi * index / 40
        cx, cy = width * (0.5 + 0.25 * np.cos(angle)), height * (0.5 + 0.25 * np.sin(angle))
        near = np.clip(1.5 - np.hypot(x - cx, y - cy) / (0.12 * min(width, height) + 1), 0, 1)
        disc = near[..., None] * (np.array([230, 60, 40], np.float32) - slope)
        frames.append(np.clip(slope + disc, 0, 255))
    return np.stack(frames).astype(np.uint8)


def encode(
    path: Path,
    frames: NDArray[np.uint8] | None = None,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    format: str | None = None,
    rate: int = 25,
    pts: Iterable[int] | None = None,
    prepare: Callable[[av.VideoStream], None] | None = None,
) -> None:
    """Encode RGB frames; `pts` in units of 1/rate s, `prepare` may set more on the stream."""
    frames = draw() if frames is None else frames
    if codec == "libx264":
        options = {"crf": "14", "preset": "veryfast", "g": "12", "bf": "0", **(options or {})}
    with av.open(str(path), "w", format=format, container_options=container or {}) as out:
        stream = out.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = Fraction(1, rate)
        if prepare is not None:
            prepare(stream)
        context = stream.codec_context
        for position, picture in zip(pts or range(len(frames)), frames, strict=True):
            rgb = av.VideoFrame.from_ndarray(picture, format="rgb24")
            # A colour tag on the stream means samples of that colour, as in a real camera.
            frame = rgb.reformat(
                format=pix_fmt,
                dst_colorspace={1: 1, 9: 9}.get(int(context.colorspace), 5),
                dst_color_range=2 if pix_fmt.startswith("yuvj") or context.color_range == 2 else 1,
                src_color_range=2,
                interpolation="BILINEAR",
                threads=1,  # more give wrong chroma at times (FFmpeg 8.1, rgb24 to yuv422p10le)
            )
            frame.pts, frame.time_base = position, Fraction(1, rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def tagged(
    matrix: int, colour_range: int, *, transfer: int = 2
) -> Callable[[av.VideoStream], None]:
    def prepare(stream: av.VideoStream) -> None:
        stream.codec_context.colorspace = matrix
        stream.codec_context.color_range = colour_range
        if transfer != 2:
            stream.codec_context.color_trc = transfer

    return prepare


def turned(quarters: int, *, mirror: bool = False) -> Callable[[Path], None]:
    """Pictures stored turned, with the display matrix that sets them upright (340x256 upright)."""

    def make(path: Path) -> None:
        upright = draw(12, 64, 84)[:, :, ::-1] if mirror else draw(12, 64, 84)
        stored = np.ascontiguousarray(np.rot90(upright, -quarters, axes=(1, 2)))
        encode(
            path,
            stored,
            options=SHARP,
            prepare=lambda s: s.set_display_rotation(90.0 * quarters, hflip=mirror),
        )

    return make
