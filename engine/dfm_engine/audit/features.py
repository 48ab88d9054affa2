"""What one file offers to a shortcut: numbers of its packets, its container, its outer pixels.

In: an mp4. Out: `FileFeatures`. Every packet is looked at, but only the first pictures are decoded;
a clip of 28 pictures of 256 x 256 takes 6 ms on one core. The container's comment is left out,
but for its length: it says on purpose whether a clip is synthetic.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from dfm_engine.errors import MediaError
from dfm_engine.media.bitstream import options_in

__all__ = ["FileFeatures", "read_features"]

Floats = NDArray[np.float64]

DECODED = 32  # pictures of which quantisers are read; of every eighth the border
BORDER_EVERY = 8
_NESTED = (b"moov", b"trak", b"edts", b"mdia", b"minf", b"dinf", b"stbl", b"udta")
_BY_PICTURE_TYPES = (b"ctts", b"stss", b"sdtp", b"sgpd", b"sbgp")
PICTURE_TYPES = (1, 2, 3)  # FFmpeg's numbers for I, P and B
RING = 8  # outermost pixels on each side
GRID = 8  # the first picture is averaged to this many squares a side, its chroma to half of them


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FileFeatures:
    """The numbers of one file.

    Attributes:
        codec: packet sizes by picture type, and quantisers.
        container: numbers of the mp4.
        facts: words of the mp4 and the bitstream's headers, `name=value`.
        first_frame: coarse luma and chroma of the first picture, too coarse to show a forgery.
        border: mean, spread and steps of the outermost rings of pixels.
    """

    codec: Floats
    container: Floats
    facts: frozenset[str]
    first_frame: Floats
    border: Floats


def read_features(path: Path) -> FileFeatures:
    """Read one file.

    Raises:
        MediaError: it does not open, holds no video, or does not decode.
    """
    try:
        with av.open(os.fspath(path)) as container:
            video = next(iter(container.streams.video), None)
            if video is None:
                raise MediaError(path, "wrong-codec", "holds no video; was it replaced?")
            video.thread_type = "NONE"
            video.codec_context.thread_count = 1
            video.codec_context.options = {"export_side_data": "venc_params"}
            sizes: list[int] = []
            frames: list[VideoFrame] = []
            options, keys = "", 0
            for packet in container.demux(video):
                if packet.size:
                    sizes.append(packet.size)
                    keys += packet.is_keyframe
                    options = options or options_in(bytes(packet))
                if len(frames) < DECODED:
                    frames += packet.decode()
            if not frames:
                raise MediaError(path, "corrupt", "no picture decodes; make the clip again")
            return FileFeatures(
                codec=_codec(sizes, keys, frames),
                container=_container(container, video),
                facts=frozenset(_facts(path, container, video, frames[0], options)),
                first_frame=_first_frame(frames[0]),
                border=_border(frames[:DECODED:BORDER_EVERY]),
            )
    except (FFmpegError, OSError) as error:
        raise MediaError(path, "corrupt", f"does not decode: {error}") from error


def _codec(sizes: list[int], keys: int, frames: list[VideoFrame]) -> Floats:
    """Sizes in decoding order; pictures of the start by type, with their quantisers."""
    logs = np.log(np.array(sizes, np.float64))
    types = [int(frame.pict_type) for frame in frames]
    quantisers = np.array([_quantiser(frame) for frame in frames])  # (T, 2): mean, spread
    by_type = [
        float(quantisers[[t == kind for t in types], 0].mean()) if kind in types else 0.0
        for kind in PICTURE_TYPES
    ]
    shares = [types.count(kind) / len(types) for kind in PICTURE_TYPES]
    steps = np.diff(logs)
    return np.array(
        [
            np.log(sum(sizes) / len(sizes)),
            logs.mean(),
            logs.std(),
            logs[0],
            logs[0] - logs.mean(),
            logs.max() - logs.mean(),
            logs.min() - logs.mean(),
            np.abs(steps).mean() if len(steps) else 0.0,
            keys / len(sizes),
            *shares,
            *by_type,
            quantisers[:, 0].mean(),
            quantisers[:, 0].std(),
            quantisers[:, 1].mean(),
        ]
    )


def _quantiser(frame: VideoFrame) -> tuple[float, float]:
    """Mean and spread of the QP over a picture's blocks; zeros where FFmpeg does not export it.

    The side data is FFmpeg's AVVideoEncParams: a header, then blocks of (x, y, w, h, delta).
    """
    side_data: Any = frame.side_data  # PyAV types it as a mapping, but it iterates over values
    for data in side_data:
        if data.type == Type.VIDEO_ENC_PARAMS:
            raw = bytes(data)
            count, offset, size, _, qp = struct.unpack_from("@IxxxxQQii", raw)
            if not count or offset + count * size > len(raw):
                return float(qp), 0.0
            blocks = np.frombuffer(raw, np.uint8, count * size, offset).reshape(count, size)
            deltas = np.ascontiguousarray(blocks[:, 16:20]).view(np.int32)[:, 0]
            return float(qp + deltas.mean()), float(deltas.std())
    return 0.0, 0.0


def _container(container: Any, video: VideoStream) -> Floats:
    """Numbers that the mp4 states."""
    base = video.time_base
    return np.array(
        [
            video.frames,
            (video.duration or 0) * float(base or 0),
            float(video.average_rate or 0),
            float(base.denominator if base else 0),
            float(video.start_time or 0),
            len(container.streams),
            len(container.metadata),
            len(container.metadata.get("comment", "").encode()),
            video.width,
            video.height,
        ],
        np.float64,
    )


def _facts(
    path: Path, container: Any, video: VideoStream, frame: VideoFrame, options: str
) -> Iterator[str]:
    codec = video.codec_context
    said = {
        "codec": codec.name,
        "tag": codec.codec_tag,
        "profile": codec.profile,
        "pix_fmt": codec.pix_fmt,
        "colour": (codec.color_range, codec.colorspace, codec.color_primaries, codec.color_trc),
        "interlaced": frame.interlaced_frame,
        "options": options,
        "boxes": " ".join(_boxes(path)),
    }
    said |= {f"stream {key}": value for key, value in video.metadata.items()}
    said |= {key: value for key, value in container.metadata.items() if key != "comment"}
    yield from (f"{key}={value}" for key, value in said.items())


def _boxes(path: Path) -> Iterator[str]:
    """Names of the mp4's boxes in their order, but for the tables that picture types decide."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        pending = [(0, end)]
        while pending:
            at, end = pending.pop()
            if at + 8 > end:
                continue
            file.seek(at)
            size, kind, large = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
            size = {0: end - at, 1: large}.get(size, size)
            if size < 8:
                return
            pending.append((at + size, end))
            if kind in _NESTED:
                pending.append((at + 8, min(at + size, end)))
            if kind not in _BY_PICTURE_TYPES:
                yield kind.decode("ascii", "replace")


def _first_frame(frame: VideoFrame) -> Floats:
    luma, *chroma = _planes(frame)
    return np.concatenate(
        [_averaged(luma, GRID).ravel(), *(_averaged(c, GRID // 2).ravel() for c in chroma)]
    )


def _border(frames: list[VideoFrame]) -> Floats:
    """Per ring from the edge inwards, over all frames: mean, spread, step to the next ring."""
    rings: list[list[Floats]] = []
    chroma: list[list[float]] = []
    for frame in frames:
        luma, *others = _planes(frame)
        rings.append([_ring(luma, depth) for depth in range(RING + 1)])
        chroma.append([float(_ring(c, depth).mean()) for c in others for depth in range(2)])
    means = np.array([[ring.mean() for ring in each] for each in rings])  # (T, RING + 1)
    spreads = np.array([[ring.std() for ring in each] for each in rings])
    steps = np.abs(np.diff(means, axis=1))
    rough = np.array([[np.abs(np.diff(ring)).mean() for ring in each] for each in rings])
    change = np.abs(np.diff(means, axis=0)).mean(0) if len(means) > 1 else 0 * means[0]
    parts = (means, spreads, steps, rough)
    return np.concatenate(
        [*(part[:, :RING].mean(0) for part in parts), change[:RING], np.array(chroma).mean(0)]
    )


def _ring(plane: Floats, depth: int) -> Floats:
    """The pixels at a distance from the nearest edge, once round; the middle of a tiny plane."""
    depth = min(depth, (min(plane.shape) - 1) // 2)
    inner = plane[depth : plane.shape[0] - depth, depth : plane.shape[1] - depth]
    return np.concatenate([inner[0], inner[1:, -1], inner[-1, -2::-1], inner[-2:0:-1, 0]])


def _averaged(plane: Floats, side: int) -> Floats:
    """Means over side x side rectangles that share the plane evenly."""
    edges = [np.linspace(0, length, side + 1).astype(np.int64) for length in plane.shape]
    rows, columns = (edge[:-1] for edge in edges)
    sums = np.add.reduceat(np.add.reduceat(plane, rows, axis=0), columns, axis=1)
    heights, widths = (np.diff(edge).astype(np.float64) for edge in edges)
    return sums / (heights[:, None] * widths)


def _planes(frame: VideoFrame) -> tuple[Floats, Floats, Floats]:
    """Luma and both chroma planes of a picture, converted to 4:2:0 where it is something else."""
    height, width = frame.height // 2 * 2, frame.width // 2 * 2
    packed = frame.to_ndarray(format="yuv420p", width=width, height=height).astype(np.float64)
    luma = packed[:height]
    chroma = packed[height:].reshape(2, height // 2, width // 2)
    return luma, chroma[0], chroma[1]
