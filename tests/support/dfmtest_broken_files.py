"""Make a set of broken, odd and plain media files, each with one thing wrong, from nothing.

`make_files(folder)` writes them all in about a second: pictures are drawn here, encoded by PyAV,
and damaged by changing bytes. docs/inputs.md says by name what is expected of each.
"""

from __future__ import annotations

import io
import itertools
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

os.environ.setdefault("SVT_LOG", "-1")  # the AV1 encoder greets on stderr

FRAMES = 40
SIZE = 64

Maker = Callable[[Path], None]
MAKERS: dict[str, Maker] = {}


def make_files(folder: Path) -> None:
    """Write every file; later ones are made from `ok-moov-front.mp4` and its like."""
    folder.mkdir(parents=True, exist_ok=True)
    # As root SVT-AV1 makes the calling thread a real-time one, for good: its busy threads would
    # then starve every other thread of the tests, and of the processes that they start.
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        _make_files(folder)
    finally:
        os.sched_setscheduler(0, *before)


def _make_files(folder: Path) -> None:
    for name, maker in MAKERS.items():
        maker(folder / name)


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


def made(*names: str) -> Callable[[Maker], Maker]:
    def register(maker: Maker) -> Maker:
        for name in names:
            MAKERS[name] = maker
        return maker

    return register


def simple(name: str, **how: object) -> None:
    MAKERS[name] = lambda path: encode(path, **how)  # type: ignore[arg-type]


def damaged(
    name: str, change: Callable[[bytes], bytes], *, origin: str = "ok-moov-front.mp4"
) -> None:
    MAKERS[name] = lambda path: (
        path.write_bytes(change((path.parent / origin).read_bytes())) and None
    )


def content(name: str, data: bytes) -> None:
    MAKERS[name] = lambda path: path.write_bytes(data) and None


# ---- whole files -----------------------------------------------------------------------------

EDITABLE = {"movflags": "faststart"}
simple("ok-moov-front.mp4", container=EDITABLE)
simple("ok-moov-end.mp4")
simple("ok-fragmented.mp4", container={"movflags": "frag_keyframe+empty_moov"})
simple("single-frame.mp4", frames=draw(1))
simple(
    "bframes-pyramid-opengop.mp4",
    options={"bf": "8", "x264-params": "b-pyramid=normal:ref=6:open-gop=1:keyint=20:b-adapt=0"},
)
simple("interlaced-tff.mp4", frames=draw(20), options={"x264-params": "tff=1"})
simple("odd-255x257-vp9.webm", frames=draw(10, 63, 65), codec="libvpx-vp9")
simple("odd-255x257-h264-444.mp4", frames=draw(10, 63, 65), pix_fmt="yuv444p")
simple("crop-250x250.mp4", frames=draw(10, 58, 58))
simple("wide-4096x16.mp4", frames=draw(3, 512, 16))
simple("tall-16x4096.mp4", frames=draw(3, 16, 512))
simple("size-1x1.mp4", frames=draw(4, 1, 1), pix_fmt="yuv444p")
simple("many-frames.mp4", frames=draw(60, 16, 16), rate=1000)
simple("h264-10bit.mp4", frames=draw(10), pix_fmt="yuv420p10le")
simple("h264-yuv422p.mp4", frames=draw(10), pix_fmt="yuv422p")
simple("h264-yuv444p.mp4", frames=draw(10), pix_fmt="yuv444p")
MAKERS["h264-gray.mp4"] = lambda path: encode(  # grey is full range to swscale, so tag it so
    path, draw(10), pix_fmt="gray", prepare=tagged(2, 2)
)
simple("h264-lossless.mp4", frames=draw(10), options={"qp": "0"})
simple("h264-rgb.mp4", frames=draw(10), codec="libx264rgb", pix_fmt="rgb24", options={"crf": "20"})
simple(
    "hevc.mp4",
    frames=draw(10),
    codec="libx265",
    container=EDITABLE,
    options={"x265-params": "log-level=none"},
)
simple("vp9.webm", frames=draw(10), codec="libvpx-vp9")
simple(
    "vp8-alpha.webm",
    frames=draw(10),
    codec="libvpx",
    pix_fmt="yuva420p",
    options={"auto-alt-ref": "0"},
)
simple("av1.mp4", frames=draw(10), codec="libsvtav1", options={"preset": "12"})
simple("mpeg4-part2.avi", frames=draw(10), codec="mpeg4")
simple("mpeg4-packed.mp4", frames=draw(10), codec="mpeg4")
simple("mpeg2.ts", frames=draw(10), codec="mpeg2video")
simple("mjpeg.avi", frames=draw(10), codec="mjpeg", pix_fmt="yuvj420p")
simple("animated.gif", frames=draw(5), codec="gif", pix_fmt="rgb8", rate=10)
simple("ffv1.mkv", frames=draw(5), codec="ffv1")
simple("vfr-jitter.mp4", pts=[i + (12 if i >= 15 else 0) for i in range(FRAMES)])
simple("rate-50.mp4", rate=50, frames=draw(40))
simple("rate-30.mp4", rate=30, frames=draw(30))


def tagged(
    matrix: int, colour_range: int, *, transfer: int = 2
) -> Callable[[av.VideoStream], None]:
    def prepare(stream: av.VideoStream) -> None:
        stream.codec_context.colorspace = matrix
        stream.codec_context.color_range = colour_range
        if transfer != 2:
            stream.codec_context.color_trc = transfer

    return prepare


_SHARP = {"crf": "8", "preset": "veryfast"}
for _name, _matrix, _range in (
    ("colour-bt601-limited.mp4", 6, 1),
    ("colour-bt601-full.mp4", 6, 2),
    ("colour-bt709-limited.mp4", 1, 1),
    ("colour-bt709-full.mp4", 1, 2),
):
    simple(_name, frames=draw(5), options=_SHARP, prepare=tagged(_matrix, _range))
simple(
    "hevc-10bit-pq.mp4",
    frames=draw(10),
    codec="libx265",
    pix_fmt="yuv420p10le",
    options={"x265-params": "log-level=none"},
    prepare=tagged(9, 1, transfer=16),
)


@made("colour-bt709-untagged.mp4", "colour-mistagged-601-as-709.mp4")
def _mistag(path: Path) -> None:
    """BT.709 samples with no tag, or BT.601 samples tagged BT.709: tagged after drawing."""
    untag = "untagged" in path.name
    frames = draw(5)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options=_SHARP)
        stream.height, stream.width, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        if not untag:
            tagged(1, 1)(stream)
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                format="yuv420p",
                dst_colorspace=1 if untag else 5,
                src_color_range=2,
                dst_color_range=1,
                interpolation="BILINEAR",
                threads=1,
            )
            frame.colorspace, frame.color_range = (2, 0) if untag else (1, 1)
            frame.pts, frame.time_base = index, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def turned(quarters: int, *, mirror: bool = False) -> Maker:
    """Pictures stored turned, with the display matrix that sets them upright (340x256 upright)."""

    def make(path: Path) -> None:
        upright = draw(12, 64, 84)[:, :, ::-1] if mirror else draw(12, 64, 84)
        stored = np.ascontiguousarray(np.rot90(upright, -quarters, axes=(1, 2)))
        encode(
            path,
            stored,
            options=_SHARP,
            prepare=lambda s: s.set_display_rotation(90.0 * quarters, hflip=mirror),
        )

    return make


for _quarters in (1, 2, 3):
    MAKERS[f"rotate{90 * _quarters}.mp4"] = turned(_quarters)
MAKERS["mirrored.mp4"] = turned(0, mirror=True)


@made("sar-2to1.mp4")
def _anamorphic(path: Path) -> None:
    def prepare(stream: av.VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(2)
        stream.sample_aspect_ratio = Fraction(2)

    try:
        encode(path, draw(12, 32, 64), prepare=prepare)
    except AttributeError:
        encode(path, draw(12, 32, 64), options={"x264-params": "sar=2/1"})


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


@made(*_PARTS)
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


@made("late-start.mp4")
def _late(path: Path) -> None:
    with av.open(str(path.parent / "ok-moov-front.mp4")) as base, av.open(str(path), "w") as out:
        _add_copy(base, out, shift_s=0.5)()


@made("joined-timestamp-reset.ts")
def _joined(path: Path) -> None:
    encode(path, format="mpegts")
    path.write_bytes(2 * path.read_bytes())


def box(data: bytes, *kinds: bytes) -> int:
    """Offset of a box's payload, found by following the types from the top."""
    start, end = 0, len(data)
    for kind in kinds:
        while start < end:
            length, found = struct.unpack_from(">I4s", data, start)
            if found == kind:
                start, end = start + 8, start + length
                break
            start += length
        else:
            raise KeyError(kind)
    return start


_TRACK = (b"moov", b"trak")
_TABLE = (*_TRACK, b"mdia", b"minf", b"stbl")


def patch(data: bytes, offset: int, layout: str, *values: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(layout, changed, offset, *values)
    return bytes(changed)


def _edit(first: int, frames: int) -> Callable[[bytes], bytes]:
    """An edit list that shows `frames` stored frames from the `first`, by rewriting its entry."""

    def change(data: bytes) -> bytes:
        (scale,) = struct.unpack_from(">I", data, box(data, *_TRACK, b"mdia", b"mdhd") + 12)
        entry = box(data, *_TRACK, b"edts", b"elst") + 8
        return patch(data, entry, ">II", frames * 40, first * scale // 25)

    return change


damaged("editlist-trim.mp4", _edit(18, 22))
damaged("negative-start.mp4", _edit(8, 32))
damaged("editlist-hides-all.mp4", _edit(9000, 40))


def _lie_about_duration(data: bytes) -> bytes:
    data = patch(data, box(data, b"moov", b"mvhd") + 16, ">I", 0xFFFFFFFE)
    return patch(data, box(data, *_TRACK, b"mdia", b"mdhd") + 16, ">I", 0xFFFFFFFE)


damaged("duration-lies.mp4", _lie_about_duration)
damaged("zero-duration.mp4", lambda d: patch(d, box(d, *_TABLE, b"stts") + 12, ">I", 0))
damaged("zero-frames.mp4", lambda d: d[: d.index(b"moof") - 4], origin="ok-fragmented.mp4")

# ---- size ------------------------------------------------------------------------------------

damaged(
    "header-size-lies.mp4",
    lambda d: patch(d, box(d, *_TABLE, b"stsd") + 8 + 8 + 24, ">HH", 65535, 65535),
)
damaged("bomb-sample-count.mp4", lambda d: patch(d, box(d, *_TABLE, b"stsz") + 8, ">I", 0x7FFFFFFF))


def units(data: bytes) -> list[bytes]:
    """NAL units of an Annex B stream, each with its start code."""
    marks = [i for i in range(len(data) - 3) if data[i : i + 3] == b"\x00\x00\x01"] + [len(data)]
    return [data[a:b] for a, b in itertools.pairwise(marks)]


def raw_h264(
    path: Path, *, keep: Callable[[int, int], bool], frames: int = 40, gop: int = 12
) -> None:
    """A raw stream of the units that `keep(type, how many of this type came before)` names."""
    encode(path, draw(frames), format="h264", options={"g": str(gop)})
    seen: dict[int, int] = {}
    kept = []
    for unit in units(path.read_bytes()):
        kind = unit[3] & 31
        if keep(kind, seen.get(kind, 0)):
            kept.append(b"\x00" + unit.rstrip(b"\x00"))
        seen[kind] = seen.get(kind, 0) + 1
    path.write_bytes(b"".join(kept))


class _Bits:
    def __init__(self) -> None:
        self.text = ""

    def put(self, value: int, width: int) -> None:
        self.text += format(value, f"0{width}b")

    def unsigned(self, value: int) -> None:
        digits = format(value + 1, "b")
        self.text += "0" * (len(digits) - 1) + digits

    def bytes(self) -> bytes:
        text = self.text + "1"
        text += "0" * (-len(text) % 8)
        return int(text, 2).to_bytes(len(text) // 8)


@made("bomb-sps-65536.h264")
def _sequence_bomb(path: Path) -> None:
    bits = _Bits()
    bits.put(66, 8), bits.put(0, 8), bits.put(40, 8)
    for value in (0, 0, 2, 1):  # id, frame number bits, picture order type 2, reference frames
        bits.unsigned(value)
    bits.put(0, 1)
    bits.unsigned(4095), bits.unsigned(4095)  # 65536 pixels each
    bits.put(1, 1), bits.put(1, 1), bits.put(0, 1), bits.put(0, 1)
    raw_h264(path, keep=lambda kind, _: kind != 7)
    sps = b"\x00\x00\x00\x01\x67" + bits.bytes()
    path.write_bytes(sps + path.read_bytes())


@made("size-change-midway.h264")
def _size_change(path: Path) -> None:
    raw_h264(path, keep=lambda *_: True, frames=12)
    first = path.read_bytes()
    encode(path, draw(12, 96, 80), format="h264")
    path.write_bytes(first + path.read_bytes())


# ---- keyframes -------------------------------------------------------------------------------

MAKERS["no-keyframe-start.h264"] = lambda p: raw_h264(p, keep=lambda kind, n: kind != 5 or n > 0)
MAKERS["no-keyframe-at-all.h264"] = lambda p: raw_h264(
    p, keep=lambda kind, _: kind != 5, frames=12, gop=250
)
MAKERS["no-parameter-sets.h264"] = lambda p: raw_h264(p, keep=lambda kind, _: kind not in (7, 8))


@made("no-keyframe-start.mp4")
def _cut_by_copy(path: Path) -> None:
    with av.open(str(path.parent / "ok-moov-front.mp4")) as base, av.open(str(path), "w") as out:
        _add_copy(base, out, skip=8)()


# ---- cut, damaged ----------------------------------------------------------------------------

damaged("truncated-mid-gop.mp4", lambda d: d[: d.index(b"mdat") + len(d[d.index(b"mdat") :]) // 2])
damaged("truncated-last-byte.mp4", lambda d: d[:-1])
damaged("truncated-no-moov.mp4", lambda d: d[: d.index(b"moov") - 4], origin="ok-moov-end.mp4")
damaged("truncated-inside-moov.mp4", lambda d: d[:-200], origin="ok-moov-end.mp4")
damaged("truncated-inside-moov-front.mp4", lambda d: d[: d.index(b"stbl")])
damaged("truncated-fragmented.mp4", lambda d: d[: int(0.7 * len(d))], origin="ok-fragmented.mp4")
damaged("truncated.webm", lambda d: d[: int(0.7 * len(d))], origin="vp9.webm")
damaged("truncated.avi", lambda d: d[: int(0.7 * len(d))], origin="mjpeg.avi")
damaged("truncated.gif", lambda d: d[: int(0.7 * len(d))], origin="animated.gif")
damaged("truncated.ts", lambda d: d[: int(0.7 * len(d))], origin="joined-timestamp-reset.ts")
damaged("ftyp-only.mp4", lambda d: d[:32])
damaged(
    "trailing-garbage.mp4",
    lambda d: d + np.random.default_rng(7).integers(0, 256, 3000, np.uint8).tobytes(),
)


def _flip(seed: int, count: int, *, skip: float = 0.0) -> Callable[[bytes], bytes]:
    """Change `count` bytes of the picture data."""

    def change(data: bytes) -> bytes:
        start = data.index(b"mdat") + 4
        start += int(skip * (len(data) - start))
        changed = np.frombuffer(data, np.uint8).copy()
        random = np.random.default_rng(seed)
        at = random.choice(np.arange(start, len(data)), count, replace=False)
        changed[at] ^= random.integers(1, 256, count, np.uint8)
        return changed.tobytes()

    return change


for _seed, _count in ((1, 10), (2, 30), (3, 100), (4, 300)):
    damaged(f"corrupt-mdat-seed{_seed}.mp4", _flip(_seed, _count))
damaged("corrupt-hevc-seed1.mp4", _flip(1, 30, skip=0.8), origin="hevc.mp4")
damaged(
    "corrupt-moov-seed1.mp4",  # a stray byte in the padding of the encoder's name
    lambda d: patch(d, box(d, *_TABLE, b"stsd") + 8 + 8 + 72, ">B", 215),
)
damaged("corrupt-moov-seed2.mp4", lambda d: patch(d, box(d, *_TRACK) - 4, ">I", 0x74725A6B))
damaged(
    "corrupt-moov-seed3.mp4", lambda d: patch(d, box(d, b"moov", b"mvhd") - 8, ">I", 0x4C00006C)
)
damaged("corrupt-moov-seed4.mp4", lambda d: patch(d, box(d, *_TABLE, b"stco") + 8, ">I", 1 << 30))


def _hole(data: bytes) -> bytes:
    start = data.index(b"mdat") + 4
    at = start + (len(data) - start) // 3
    return data[:at] + bytes(400) + data[at + 400 :]


damaged("hole-of-zeros.mp4", _hole)

# ---- no video at all -------------------------------------------------------------------------

content("zero-bytes.mp4", b"")
content("still-zero.jpg", b"")
content("text-renamed.mp4", b"This is a plain text.\n" * 60)
content("html-error-page.mp4", b"<!DOCTYPE html><html><body>404 not found</body></html>\n")
content("random-bytes.mp4", np.random.default_rng(5).integers(0, 256, 20000, np.uint8).tobytes())
content("playlist-renamed.mp4", b"#EXTM3U\n#EXTINF:2,\nok-moov-front.mp4\n#EXT-X-ENDLIST\n")
content("ffconcat-renamed.mp4", b"ffconcat version 1.0\nfile ok-moov-front.mp4\n")
content(
    "sdp-renamed.mp4",
    b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
)


@made("zip-renamed.mp4")
def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.write(path.parent / "ok-moov-front.mp4", "clip.mp4")


@made("directory.mp4")
def _directory(path: Path) -> None:
    path.mkdir()
    (path / "inside.txt").write_text("a folder named like a clip\n")


# ---- pictures --------------------------------------------------------------------------------


def jpeg(mode: str = "RGB", **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(draw(1)[0]).convert(mode).save(out, "JPEG", quality=90, **options)
    return out.getvalue()


@made("still-exif-rotated.jpg")
def _exif(path: Path) -> None:
    image = Image.fromarray(np.ascontiguousarray(np.rot90(draw(1, 64, 84)[0], 1)))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, "JPEG", quality=95, exif=exif)


def png_claiming(width: int, height: int) -> bytes:
    """A one-bit PNG whose header claims a size that its few bytes of data do not hold."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(1000))),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


content("jpeg-renamed.mp4", jpeg())
content("still-cmyk.jpg", jpeg("CMYK"))
content("still-gray.jpg", jpeg("L"))
content("still-truncated.jpg", jpeg()[: len(jpeg()) // 2])
content("still-bomb.png", png_claiming(30000, 30000))
content("still-bomb-decodable.png", png_claiming(12000, 12000))


@made("still-palette.png", "still-alpha.png", "still-16bit.png")
def _png(path: Path) -> None:
    image = Image.fromarray(draw(1)[0])
    if "palette" in path.name:
        image = image.quantize(32)
    elif "alpha" in path.name:
        image.putalpha(128)
    else:
        image = Image.fromarray(draw(1)[0][..., 0].astype(np.uint16) * 257)
    image.save(path)


damaged(
    "still-corrupt.png", lambda d: d[:-200] + b"\xff" * 40 + d[-160:], origin="still-palette.png"
)

# ---- names -----------------------------------------------------------------------------------

for _name in (
    " leading and  double spaces.mp4",
    "имя-人脸-é-😀.mp4",
    "quote'dollar$HOME;semi&.mp4",
    "-leading-dash.mp4",
    "UPPER.MP4",
    "no-extension",
    "percent-%03d.mp4",
):
    damaged(_name, lambda data: data, origin="single-frame.mp4")
damaged("duplicate-of-ok.mp4", lambda data: data)
