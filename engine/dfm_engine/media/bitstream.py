"""What an H.264 mp4 says about itself, read from the bitstream and not from the container.

A detector can learn whatever differs between two classes of files. So tests and `dataset verify`
compare these facts over a whole data set: profile, pixel format, colour tags, picture count and
rate from the parameter sets and the decoded pictures, x264's options from its SEI message, and the
length of the container's comment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.error import FFmpegError

from dfm_engine.errors import MediaError

_X264_UUID = bytes.fromhex("dc45e9bde6d948b7962cd820d923eeef")
_SEI, _USER_DATA_UNREGISTERED = 6, 5  # H.264 table 7-1; annex D.1.1


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFacts:
    """Facts of one clip.

    Attributes:
        profile: H.264 profile by name.
        pix_fmt: FFmpeg's name, `yuv420p`.
        width, height: in pixels.
        colour_range, colour_matrix, colour_primaries, colour_transfer: FFmpeg's codes; an untagged
            stream has 0, 2, 2, 2 ("unspecified").
        fps: picture rate stated in the sequence parameter set; 0 if it states none.
        frames: pictures that the bitstream decodes to.
        container_frames: samples that the mp4 lists.
        container_fps: rate by the mp4's timestamps.
        x264_options: the `options:` of x264's SEI message, "" if there is none.
        comment: the container's comment.
    """

    profile: str
    pix_fmt: str
    width: int
    height: int
    colour_range: int
    colour_matrix: int
    colour_primaries: int
    colour_transfer: int
    fps: Fraction
    frames: int
    container_frames: int
    container_fps: Fraction
    x264_options: str
    comment: str


def stream_facts(path: Path) -> StreamFacts:
    """Read the facts of a clip; every picture is decoded, by a decoder that never saw the mp4.

    Raises:
        MediaError: the file does not open, holds no H.264 video, or does not decode.
    """
    try:
        with av.open(os.fspath(path)) as container:
            video = next(iter(container.streams.video), None)
            if video is None or video.codec_context.name != "h264":
                raise MediaError(path, "wrong-codec", "holds no H.264 video; was it replaced?")
            decoder = av.CodecContext.create("h264", "r")
            assert isinstance(decoder, av.VideoCodecContext)
            decoder.extradata = video.codec_context.extradata
            decoder.thread_count = 1
            frames, options = 0, ""
            for packet in container.demux(video):
                if not packet.size:
                    continue
                data = bytes(packet)
                options = options or options_in(data)
                frames += len(decoder.decode(av.Packet(data)))
            frames += len(decoder.decode(None))
            return StreamFacts(
                profile=str(decoder.profile),
                pix_fmt=str(decoder.pix_fmt),
                width=decoder.width,
                height=decoder.height,
                colour_range=int(decoder.color_range),
                colour_matrix=int(decoder.colorspace),
                colour_primaries=int(decoder.color_primaries),
                colour_transfer=int(decoder.color_trc),
                fps=decoder.framerate or Fraction(0),
                frames=frames,
                container_frames=video.frames,
                container_fps=video.average_rate or Fraction(0),
                x264_options=options,
                comment=container.metadata.get("comment", ""),
            )
    except (FFmpegError, OSError) as error:
        raise MediaError(path, "corrupt", f"does not decode: {error}") from error


def x264_options(path: Path) -> str:
    """The options that x264 wrote into the first picture of a clip, "" if it wrote none.

    Raises:
        MediaError: the file does not open or holds no video.
    """
    try:
        with av.open(os.fspath(path)) as container:
            for packet in container.demux(video=0):
                return options_in(bytes(packet))
    except (FFmpegError, OSError, IndexError) as error:
        raise MediaError(path, "corrupt", f"does not open: {error}") from error
    return ""


def options_in(access_unit: bytes) -> str:
    """The options that x264 wrote into a picture as mp4 stores it, "" if it wrote none."""
    for unit in _nal_units(access_unit):
        if unit and unit[0] & 0x1F == _SEI:
            for kind, payload in _sei_messages(_unescape(unit[1:])):
                if kind == _USER_DATA_UNREGISTERED and payload.startswith(_X264_UUID):
                    text = payload[len(_X264_UUID) :].rstrip(b"\0").decode("ascii", "replace")
                    return text.partition("options: ")[2]
    return ""


def _nal_units(access_unit: bytes) -> Iterator[bytes]:
    """Split a picture as mp4 stores it: each unit behind its length in four bytes."""
    position = 0
    while position + 4 <= len(access_unit):
        size = int.from_bytes(access_unit[position : position + 4], "big")
        yield access_unit[position + 4 : position + 4 + size]
        position += 4 + size


def _unescape(unit: bytes) -> bytes:
    """Drop the emulation prevention bytes (H.264 section 7.4.1.1)."""
    return unit.replace(b"\0\0\3", b"\0\0")


def _sei_messages(payloads: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position < len(payloads) - 1:  # the last byte holds the trailing bits
        numbers = []
        for _ in range(2):  # type, then size: each a run of 255s and a last byte
            number = 0
            while position < len(payloads) and payloads[position] == 255:
                number, position = number + 255, position + 1
            if position >= len(payloads):
                return
            numbers.append(number + payloads[position])
            position += 1
        kind, size = numbers
        yield kind, payloads[position : position + size]
        position += size
