"""What a container says wrong or unusually: several streams, covers, edit lists, clocks.

Made of the whole files of `dfmtest_odd_codecs`, which come first.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from dfmtest_drawn_clips import draw, encode
from dfmtest_media_makers import TABLE, TRACK, Makers, box, patch

FILES = Makers()


# ---- several streams -------------------------------------------------------------------------


Write = Callable[[], None]  # muxes one stream; run when every stream of the file is declared


def _add_sound(out: av.container.OutputContainer, seconds: float) -> Write:
    sound = out.add_stream("aac", rate=16000, layout="mono")

    def write() -> None:
        for start in range(0, int(16000 * seconds), 1024):
            wave = np.sin(np.arange(start, start + 1024) * 0.05).astype(np.float32)[None]
            frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
            out.mux(sound.encode(frame))
        out.mux(sound.encode(None))

    return write


def _add_cover(out: av.container.OutputContainer) -> Write:
    cover = out.add_stream("png", rate=1)
    cover.width, cover.height, cover.pix_fmt = 32, 32, "rgb24"
    cover.disposition = av.stream.Disposition.attached_pic

    def write() -> None:
        frame = av.VideoFrame.from_ndarray(draw(1, 32, 32)[0], format="rgb24")
        frame.pts, frame.time_base = 0, Fraction(1, 1)
        out.mux(cover.encode(frame))
        out.mux(cover.encode(None))

    return write


def _add_copy(
    source: av.container.InputContainer,
    out: av.container.OutputContainer,
    *,
    skip: int = 0,
    shift_s: float = 0.0,
) -> Write:
    origin = source.streams.video[0]
    stream = out.add_stream_from_template(origin)

    def write() -> None:
        shift = int(shift_s / origin.time_base)
        for index, packet in enumerate(source.demux(origin)):
            if packet.size and index >= skip:
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                packet.stream = stream
                out.mux(packet)

    return write


_PARTS = {
    "audio-only.mp4": "s",
    "audio-first-longer.mp4": "sv",
    "audio-with-cover.mp4": "sc",
    "cover-art-first.mp4": "cv",
    "cover-art-last.mp4": "vc",
    "two-video-streams.mp4": "vw",
}


@FILES.made(*_PARTS)
def _streams(path: Path) -> None:
    """Sound, cover, video, another video, in the order of the letters."""
    with (
        av.open(str(path), "w") as out,
        av.open(str(path.parent / "ok-moov-front.mp4")) as base,
        av.open(str(path.parent / "crop-250x250.mp4")) as second,
    ):
        parts: dict[str, Callable[[], Write]] = {
            "s": lambda: _add_sound(out, 4.0),
            "c": lambda: _add_cover(out),
            "v": lambda: _add_copy(base, out),
            "w": lambda: _add_copy(second, out),
        }
        for write in [parts[letter]() for letter in _PARTS[path.name]]:
            write()


# ---- time ------------------------------------------------------------------------------------


@FILES.made("late-start.mp4")
def _late(path: Path) -> None:
    with av.open(str(path.parent / "ok-moov-front.mp4")) as base, av.open(str(path), "w") as out:
        _add_copy(base, out, shift_s=0.5)()


@FILES.made("joined-timestamp-reset.ts")
def _joined(path: Path) -> None:
    encode(path, format="mpegts")
    path.write_bytes(2 * path.read_bytes())


def _edit(first: int, frames: int) -> Callable[[bytes], bytes]:
    """An edit list that shows `frames` stored frames from the `first`, by rewriting its entry."""

    def change(data: bytes) -> bytes:
        (scale,) = struct.unpack_from(">I", data, box(data, *TRACK, b"mdia", b"mdhd") + 12)
        entry = box(data, *TRACK, b"edts", b"elst") + 8
        return patch(data, entry, ">II", frames * 40, first * scale // 25)

    return change


FILES.damaged("editlist-trim.mp4", _edit(18, 22))
FILES.damaged("negative-start.mp4", _edit(8, 32))
FILES.damaged("editlist-hides-all.mp4", _edit(9000, 40))


def _lie_about_duration(data: bytes) -> bytes:
    data = patch(data, box(data, b"moov", b"mvhd") + 16, ">I", 0xFFFFFFFE)
    return patch(data, box(data, *TRACK, b"mdia", b"mdhd") + 16, ">I", 0xFFFFFFFE)


FILES.damaged("duration-lies.mp4", _lie_about_duration)
FILES.damaged("zero-duration.mp4", lambda d: patch(d, box(d, *TABLE, b"stts") + 12, ">I", 0))
FILES.damaged("zero-frames.mp4", lambda d: d[: d.index(b"moof") - 4], origin="ok-fragmented.mp4")


@FILES.made("no-keyframe-start.mp4")
def _cut_by_copy(path: Path) -> None:
    with av.open(str(path.parent / "ok-moov-front.mp4")) as base, av.open(str(path), "w") as out:
        _add_copy(base, out, skip=8)()
