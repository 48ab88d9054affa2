"""What one file offers to a shortcut: numbers of its packets, its container, its outer pixels.

In: an mp4. Out: `FileFeatures`. Every packet is looked at, but only the first pictures are decoded;
a clip of 28 pictures of 256 x 256 takes 6 ms on one core. The container's comment is left out,
but for its length: it says on purpose whether a clip is synthetic.
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

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
Plane = NDArray[np.uint8]
Planes = tuple[Plane, Plane, Plane]

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
            looked_at = [_planes(frame) for frame in frames[:DECODED:BORDER_EVERY]]
            if len({picture[0].shape for picture in looked_at}) > 1:
                raise MediaError(path, "size-change", "changes its size; make the clip again")
            return FileFeatures(
                codec=_codec(sizes, keys, frames),
                container=_container(container, video),
                facts=frozenset(_facts(path, container, video, frames[0], options)),
                first_frame=_first_frame(looked_at[0]),
                border=_border(looked_at),
            )
    except (FFmpegError, OSError) as error:
        raise MediaError(path, "corrupt", f"does not decode: {error}") from error


def _codec(sizes: list[int], keys: int, frames: list[VideoFrame]) -> Floats:
    """Sizes in decoding order; pictures of the start by type, with their quantisers."""
    logs = np.log(np.array(sizes, np.float64))
    types = [int(frame.pict_type) for frame in frames]
    quantisers = _quantisers(frames)  # (T, 2): mean, spread
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


def _quantisers(frames: list[VideoFrame]) -> Floats:
    """Mean and spread (T, 2) of the QP over each picture's blocks; zeros where there is none.

    The side data is FFmpeg's AVVideoEncParams: a header, then blocks of (x, y, w, h, delta).
    """
    found = np.zeros((len(frames), 2))
    deltas: list[NDArray[np.uint8]] = []
    places: list[int] = []
    for place, frame in enumerate(frames):
        raw = _encoder_parameters(frame)
        if raw is None:
            continue
        count, offset, size, _, qp = struct.unpack_from("@IxxxxQQii", raw)
        found[place, 0] = qp
        if count and offset + count * size <= len(raw):
            blocks = np.frombuffer(raw, np.uint8, count * size, offset).reshape(count, size)
            deltas.append(blocks[:, 16:20])
            places.append(place)
    if places:
        ends = np.cumsum([len(each) for each in deltas])
        starts = np.append(0, ends[:-1])
        values = np.concatenate(deltas).view(np.int32)[:, 0].astype(np.int64)
        mean, spread = _means_and_spreads(values, starts)
        found[places, 0] += mean
        found[places, 1] = spread
    return found


def _encoder_parameters(frame: VideoFrame) -> bytes | None:
    side_data: Any = frame.side_data  # PyAV types it as a mapping, but it iterates over values
    for data in side_data:
        if data.type == Type.VIDEO_ENC_PARAMS:
            return bytes(data)
    return None


def _means_and_spreads(values: NDArray[np.int64], starts: NDArray[np.int64]) -> tuple[Any, Any]:
    """Of the parts of (..., N) that begin at `starts`: sums of whole numbers have no rounding."""
    counts = np.diff(starts, append=values.shape[-1])
    sums = np.add.reduceat(values, starts, axis=-1)
    squares = np.add.reduceat(values * values, starts, axis=-1)
    return sums / counts, np.sqrt(counts * squares - sums * sums) / counts


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


def _first_frame(planes: Planes) -> Floats:
    luma, *chroma = planes
    return np.concatenate(
        [_averaged(luma, GRID).ravel(), *(_averaged(c, GRID // 2).ravel() for c in chroma)]
    )


def _border(pictures: list[Planes]) -> Floats:
    """Per ring from the edge inwards, over all frames: mean, spread, step to the next ring.

    All rings of all pictures at once: NumPy's calls cost more than the pixels, and other threads
    wait for each.
    """
    luma, *chroma = (np.stack(planes) for planes in zip(*pictures, strict=True))  # (T, H, W)
    places, starts = _rings(luma.shape[1], luma.shape[2], RING + 1)
    pixels = luma.reshape(len(luma), -1)[:, places].astype(np.int64)  # (T, N)
    means, spreads = _means_and_spreads(pixels, starts)  # (T, RING + 1)
    steps = np.abs(np.diff(means, axis=1))
    # The step from one ring's last pixel to the next ring's first is none of either.
    jumps = np.abs(np.diff(pixels, axis=1, append=pixels[:, -1:]))
    ends = np.append(starts[1:], pixels.shape[1]) - 1
    jumps[:, ends] = 0
    rough = np.add.reduceat(jumps, starts, axis=1) / (ends - starts)
    change = np.abs(np.diff(means, axis=0)).mean(0) if len(means) > 1 else 0 * means[0]
    parts = (means, spreads, steps, rough)
    tints: list[Floats] = []
    places, starts = _rings(chroma[0].shape[1], chroma[0].shape[2], 2)
    for plane in chroma:
        pixels = plane.reshape(len(plane), -1)[:, places].astype(np.int64)
        tints.append(_means_and_spreads(pixels, starts)[0].mean(0))
    return np.concatenate([*(part[:, :RING].mean(0) for part in parts), change[:RING], *tints])


@functools.lru_cache(maxsize=8)
def _rings(height: int, width: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of the outermost rings in a flat plane, each once round, and where each ring begins.

    A ring is what lies at a distance from the nearest edge; in a tiny plane the middle is repeated.
    """
    plane = np.arange(height * width).reshape(height, width)
    rings: list[NDArray[np.int64]] = []
    for ring in range(count):
        depth = min(ring, (min(height, width) - 1) // 2)
        inner = plane[depth : height - depth, depth : width - depth]
        rings.append(
            np.concatenate([inner[0], inner[1:, -1], inner[-1, -2::-1], inner[-2:0:-1, 0]])
        )
    return np.concatenate(rings), np.cumsum([0, *map(len, rings[:-1])])


def _averaged(plane: Plane, side: int) -> Floats:
    """Means over side x side rectangles that share the plane evenly."""
    edges = [np.linspace(0, length, side + 1).astype(np.int64) for length in plane.shape]
    rows, columns = (edge[:-1] for edge in edges)
    sums = np.add.reduceat(np.add.reduceat(plane, rows, axis=0, dtype=np.int64), columns, axis=1)
    heights, widths = (np.diff(edge).astype(np.float64) for edge in edges)
    return sums / (heights[:, None] * widths)


def _planes(frame: VideoFrame) -> Planes:
    """Luma and both chroma planes of a picture, converted to 4:2:0 where it is something else."""
    height, width = frame.height // 2 * 2, frame.width // 2 * 2
    if (frame.format.name, frame.height, frame.width) == ("yuv420p", height, width):
        luma, *chroma = (
            np.frombuffer(cast(Any, plane), np.uint8).reshape(-1, plane.line_size)[
                : plane.height, : plane.width
            ]
            for plane in frame.planes
        )
        return luma, chroma[0], chroma[1]
    packed: Plane = np.asarray(
        frame.to_ndarray(format="yuv420p", width=width, height=height), np.uint8
    )
    chroma = packed[height:].reshape(2, height // 2, width // 2)
    return packed[:height], chroma[0], chroma[1]
