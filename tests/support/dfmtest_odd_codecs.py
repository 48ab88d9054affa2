"""Whole files: every codec, sample format, colour and turn, sizes from 1 to 512 pixels."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
from dfmtest_drawn_clips import FRAMES, SHARP, SIZE, draw, encode, tagged, turned
from dfmtest_media_makers import Makers

FILES = Makers()


EDITABLE = {"movflags": "faststart"}
FILES.simple("ok-moov-front.mp4", container=EDITABLE)
FILES.simple("ok-moov-end.mp4")
FILES.simple("ok-fragmented.mp4", container={"movflags": "frag_keyframe+empty_moov"})
FILES.simple("single-frame.mp4", frames=draw(1))
FILES.simple(
    "bframes-pyramid-opengop.mp4",
    options={"bf": "8", "x264-params": "b-pyramid=normal:ref=6:open-gop=1:keyint=20:b-adapt=0"},
)
FILES.simple("interlaced-tff.mp4", frames=draw(20), options={"x264-params": "tff=1"})
FILES.simple("odd-255x257-vp9.webm", frames=draw(10, 63, 65), codec="libvpx-vp9")
FILES.simple("odd-255x257-h264-444.mp4", frames=draw(10, 63, 65), pix_fmt="yuv444p")
FILES.simple("crop-250x250.mp4", frames=draw(10, 58, 58))
FILES.simple("wide-4096x16.mp4", frames=draw(3, 512, 16))
FILES.simple("tall-16x4096.mp4", frames=draw(3, 16, 512))
FILES.simple("size-1x1.mp4", frames=draw(4, 1, 1), pix_fmt="yuv444p")
FILES.simple("many-frames.mp4", frames=draw(60, 16, 16), rate=1000)
FILES.simple("h264-10bit.mp4", frames=draw(10), pix_fmt="yuv420p10le")
FILES.simple("h264-yuv422p.mp4", frames=draw(10), pix_fmt="yuv422p")
FILES.simple("h264-yuv444p.mp4", frames=draw(10), pix_fmt="yuv444p")
FILES["h264-gray.mp4"] = lambda path: encode(  # grey is full range to swscale, so tag it so
    path, draw(10), pix_fmt="gray", prepare=tagged(2, 2)
)
FILES.simple("h264-lossless.mp4", frames=draw(10), options={"qp": "0"})
FILES.simple(
    "h264-rgb.mp4", frames=draw(10), codec="libx264rgb", pix_fmt="rgb24", options={"crf": "20"}
)
FILES.simple(
    "hevc.mp4",
    frames=draw(10),
    codec="libx265",
    container=EDITABLE,
    options={"x265-params": "log-level=none"},
)
FILES.simple("vp9.webm", frames=draw(10), codec="libvpx-vp9")
FILES.simple(
    "vp8-alpha.webm",
    frames=draw(10),
    codec="libvpx",
    pix_fmt="yuva420p",
    options={"auto-alt-ref": "0"},
)
FILES.simple("av1.mp4", frames=draw(10), codec="libsvtav1", options={"preset": "12"})
FILES.simple("mpeg4-part2.avi", frames=draw(10), codec="mpeg4")
FILES.simple("mpeg4-packed.mp4", frames=draw(10), codec="mpeg4")
FILES.simple("mpeg2.ts", frames=draw(10), codec="mpeg2video")
FILES.simple("mjpeg.avi", frames=draw(10), codec="mjpeg", pix_fmt="yuvj420p")
FILES.simple("animated.gif", frames=draw(5), codec="gif", pix_fmt="rgb8", rate=10)
FILES.simple("ffv1.mkv", frames=draw(5), codec="ffv1")
FILES.simple("vfr-jitter.mp4", pts=[i + (12 if i >= 15 else 0) for i in range(FRAMES)])
FILES.simple("rate-50.mp4", rate=50, frames=draw(40))
FILES.simple("rate-30.mp4", rate=30, frames=draw(30))


for _name, _matrix, _range in (
    ("colour-bt601-limited.mp4", 6, 1),
    ("colour-bt601-full.mp4", 6, 2),
    ("colour-bt709-limited.mp4", 1, 1),
    ("colour-bt709-full.mp4", 1, 2),
):
    FILES.simple(_name, frames=draw(5), options=SHARP, prepare=tagged(_matrix, _range))
FILES.simple(
    "hevc-10bit-pq.mp4",
    frames=draw(10),
    codec="libx265",
    pix_fmt="yuv420p10le",
    options={"x265-params": "log-level=none"},
    prepare=tagged(9, 1, transfer=16),
)


@FILES.made("colour-bt709-untagged.mp4", "colour-mistagged-601-as-709.mp4")
def _mistag(path: Path) -> None:
    """BT.709 samples with no tag, or BT.601 samples tagged BT.709: tagged after drawing."""
    untag = "untagged" in path.name
    frames = draw(5)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options=SHARP)
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


for _quarters in (1, 2, 3):
    FILES[f"rotate{90 * _quarters}.mp4"] = turned(_quarters)
FILES["mirrored.mp4"] = turned(0, mirror=True)


@FILES.made("sar-2to1.mp4")
def _anamorphic(path: Path) -> None:
    def prepare(stream: av.VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(2)
        stream.sample_aspect_ratio = Fraction(2)

    try:
        encode(path, draw(12, 32, 64), prepare=prepare)
    except AttributeError:
        encode(path, draw(12, 32, 64), options={"x264-params": "sar=2/1"})
