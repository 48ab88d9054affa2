"""Frames to a canonical clip: RGB -> I420 once, then libx264 in three qualities from that buffer.

Every clip of a data set, real or fake, takes this one way, so that nothing but the pixels can tell
the classes apart: yuv420p, BT.601 limited range, untagged, constant rate, one x264 thread (the
thread count changes the bitstream), an mp4 whose `comment` has one length for both classes.

    raw   crf 1, preset ultrafast: 58 dB and, unlike crf 0, a profile that NVDEC decodes
    c23   crf 23, preset medium, no tune: as FaceForensics++ made its "c23"
    c40   crf 40, preset medium, no tune: as FaceForensics++ made its "c40"

The same frames give the same bytes: the muxer writes no dates and no version (`bitexact`), x264
goes without AVX-512 (see `_parameters`), and its own SEI with its options stays and is checked
against `x264_options_at`.

This module runs in the encode workers and must never import torch.

Source: FaceForensics++ (Rössler et al. 2019), `dataset/compress.py` of its repository, for c23 and
c40; Recommendation ITU-R BT.601-7, sections 2.5.1 to 2.5.3, for the colour conversion.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from dfm_engine.clip import QUALITIES, Pixels, Quality
from dfm_engine.durable import write_durably
from dfm_engine.errors import EnvironmentUnfit, ShapeError

MEDIA_CONTRACT = "i420-601-limited-centred/x264-1"
"""Names everything this module decides about the bytes of a clip; a part of every clip id."""

ENCODER: dict[Quality, dict[str, str]] = {
    "raw": {"crf": "1", "preset": "ultrafast"},
    "c23": {"crf": "23", "preset": "medium"},
    "c40": {"crf": "40", "preset": "medium"},
}
"""What libx264 is told, per quality; everything else is its default."""

PROFILES: dict[Quality, str] = {"raw": "Constrained Baseline", "c23": "High", "c40": "High"}
"""H.264 profiles that come of it: all within what NVDEC decodes."""

_MEDIUM = (
    "cabac=1 ref=3 deblock=1:0:0 analyse=0x3:0x113 me=hex subme=7 psy=1 psy_rd=1.00:0.00 "
    "mixed_ref=1 me_range=16 chroma_me=1 trellis=1 8x8dct=1 cqm=0 deadzone=21,11 fast_pskip=1 "
    "chroma_qp_offset=-2 threads=1 lookahead_threads=1 sliced_threads=0 nr=0 decimate=1 "
    "interlaced=0 bluray_compat=0 constrained_intra=0 bframes=3 b_pyramid=2 b_adapt=1 b_bias=0 "
    "direct=1 weightb=1 open_gop=0 weightp=2 keyint=250 keyint_min={fps} scenecut=40 "
    "intra_refresh=0 rc_lookahead=40 rc=crf mbtree=1 crf={crf} qcomp=0.60 qpmin=0 qpmax=69 "
    "qpstep=4 ip_ratio=1.40 aq=1:1.00"
)
_ULTRAFAST = (
    "cabac=0 ref=1 deblock=0:0:0 analyse=0:0 me=dia subme=0 psy=1 psy_rd=1.00:0.00 mixed_ref=0 "
    "me_range=16 chroma_me=1 trellis=0 8x8dct=0 cqm=0 deadzone=21,11 fast_pskip=1 "
    "chroma_qp_offset=0 threads=1 lookahead_threads=1 sliced_threads=0 nr=0 decimate=1 "
    "interlaced=0 bluray_compat=0 constrained_intra=0 bframes=0 weightp=0 keyint=250 "
    "keyint_min={fps} scenecut=0 intra_refresh=0 rc=crf mbtree=0 crf={crf} qcomp=0.60 qpmin=0 "
    "qpmax=69 qpstep=4 ip_ratio=1.40 aq=0"
)


def x264_options_at(quality: Quality, fps: int) -> str:
    """The options that x264 (core 165) writes into the bitstream, word by word."""
    template = _ULTRAFAST if quality == "raw" else _MEDIUM
    return template.format(fps=min(fps, 25), crf=f"{float(ENCODER[quality]['crf']):.1f}")


X264_OPTIONS: dict[Quality, str] = {quality: x264_options_at(quality, 25) for quality in QUALITIES}
"""... at the canonical 25 frames/s."""

COMMENT_BYTES = 512
"""Length of every clip's `comment`, whichever class it belongs to."""

# BT.601 limited range in 16-bit fixed point. Integers, not floats: a sum of products in float32
# rounds differently on processors with and without fused multiply-add, and the bytes would too.
_SHIFT = 16
_LUMA = (16829, 33039, 6416)
_BLUE_DIFFERENCE = (-9714, -19070, 28784)
_RED_DIFFERENCE = (28784, -24103, -4681)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedFile:
    """One written clip.

    Attributes:
        path: where it is.
        size_bytes: of the file.
        sha256: of the file, hex.
        frames: pictures in it.
    """

    path: Path
    size_bytes: int
    sha256: str
    frames: int


def rgb_to_i420(frames: Pixels) -> NDArray[np.uint8]:
    """Convert to BT.601 limited range with chroma at half size.

    A chroma sample is the mean of its 2x2 pixels, so it sits in their middle. That is where
    swscale and DALI put it when they convert back; H.264 would call it "centre" siting, which an
    untagged stream does not state.

    Args:
        frames: uint8 (T, H, W, 3) RGB, full range; H and W even.

    Returns:
        uint8 (T, H * 3 // 2, W): the luma plane, then both chroma planes, as FFmpeg's yuv420p
        with no padding. Every sample is the exact BT.601 value rounded to nearest (within the
        fixed-point error of 255 * 3 / 2**17 = 0.006).

    Raises:
        ShapeError: of another shape or type, or odd sides.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
        raise ShapeError(
            f"frames must be uint8 (T, H, W, 3), got {frames.dtype} {tuple(frames.shape)}"
        )
    count, height, width, _ = frames.shape
    if height % 2 or width % 2 or 0 in frames.shape:
        raise ShapeError(
            f"4:2:0 needs frames of even sides and at least one of them, got {count} of "
            f"{width}x{height}"
        )
    i420 = np.empty((count, height * 3 // 2, width), np.uint8)
    chroma = i420[:, height:].reshape(count, 2, height // 2, width // 2)
    for index, frame in enumerate(frames):  # a frame at a time stays in the cache
        planes = [frame[..., channel].astype(np.int32) for channel in range(3)]
        i420[index, :height] = _weigh(planes, _LUMA, offset=16, shift=_SHIFT)
        rows = [plane[0::2] + plane[1::2] for plane in planes]
        sums = [row[:, 0::2] + row[:, 1::2] for row in rows]  # of 2x2 pixels
        chroma[index, 0] = _weigh(sums, _BLUE_DIFFERENCE, offset=128, shift=_SHIFT + 2)
        chroma[index, 1] = _weigh(sums, _RED_DIFFERENCE, offset=128, shift=_SHIFT + 2)
    return i420


def encode_clip(
    i420: NDArray[np.uint8], path: Path, *, quality: Quality, fps: int, comment: str
) -> EncodedFile:
    """Encode one quality of a clip and put it in place, whole or not at all.

    The file is muxed in memory (a canonical clip is a few megabytes), so a full disk can only
    surface in one place, the durable write.

    Args:
        i420: uint8 (T, H * 3 // 2, W) from `rgb_to_i420`.
        path: of the mp4; an older file of that name is replaced.
        quality: `raw`, `c23` or `c40`.
        fps: frames per second.
        comment: from `provenance_comment`.

    Raises:
        ShapeError: `i420` is not such a buffer.
        EnvironmentUnfit: the file cannot be written, or PyAV lacks libx264.
    """
    if i420.ndim != 3 or i420.dtype != np.uint8 or i420.shape[1] % 3 or not len(i420):
        raise ShapeError(
            f"i420 must be uint8 (T, H * 3 // 2, W) with T > 0, got {i420.dtype} {i420.shape}"
        )
    data = _mux(i420, options=ENCODER[quality], fps=fps, comment=comment)
    write_durably(path, data)
    return EncodedFile(
        path=path,
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        frames=len(i420),
    )


def provenance_comment(facts: Mapping[str, Any]) -> str:
    """What the container says about its clip: JSON, padded with spaces to `COMMENT_BYTES`.

    Args:
        facts: `synthetic` (bool) and whatever else is to be said: generator, weights' hash,
            source, driving clip, action. None values are left out.

    Raises:
        ValueError: no `synthetic`, or more than fits.
    """
    if not isinstance(facts.get("synthetic"), bool):
        raise ValueError(f"a clip's comment must say whether it is synthetic, got {dict(facts)}")
    said = {key: value for key, value in facts.items() if value is not None}
    text = json.dumps(said, separators=(",", ":"))
    if len(text) > COMMENT_BYTES:
        raise ValueError(f"a clip's comment is {len(text)} bytes, {COMMENT_BYTES} fit: {text}")
    return text.ljust(COMMENT_BYTES)


def _weigh(
    planes: list[NDArray[np.int32]], weights: tuple[int, int, int], *, offset: int, shift: int
) -> NDArray[np.int32]:
    out = planes[0] * weights[0]
    out += planes[1] * weights[1]
    out += planes[2] * weights[2]
    out += (offset << shift) + (1 << (shift - 1))
    out >>= shift
    return out


@functools.cache
def _parameters() -> dict[str, str]:
    """Keep x264 from AVX-512, whose macroblock-tree code reads what nobody wrote.

    With it, core 165 gives other bytes on every run unless a picture is a multiple of 128 pixels
    wide: 25 different c23 files in 30 runs of one 64x64 clip (AMD EPYC, 2026-11). With AVX2 there
    is one, equal to AVX-512's at 128 and 256 pixels, and no frame per second is lost. A processor
    that has AVX-512 has all that is named here; on others x264 chooses by itself.
    """
    try:
        processor = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    has_avx512 = re.search(r"^flags\s*:.*\bavx512f\b", processor, re.MULTILINE)
    return {"x264-params": "asm=SSE2Fast,LZCNT,BMI2,FMA3,AVX2"} if has_avx512 else {}


def _mux(
    i420: NDArray[np.uint8], *, options: Mapping[str, str], fps: int, comment: str
) -> memoryview:
    count, rows, width = i420.shape
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        container.metadata["comment"] = comment
        try:
            stream = container.add_stream("libx264", rate=fps, options={**options, **_parameters()})
        except (ValueError, FFmpegError) as error:
            raise EnvironmentUnfit(
                f"this PyAV ({av.__version__}) has no libx264 encoder ({error}); "
                "install PyAV's own wheel: pip install --force-reinstall av"
            ) from error
        stream.width, stream.height, stream.pix_fmt = width, rows * 2 // 3, "yuv420p"
        stream.codec_context.thread_count = 1
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(i420[index], format="yuv420p")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getbuffer()
