"""One clip's pictures in display order, each with its time, and every damage noticed on the way.

`ClipReader` is the one place that drives FFmpeg. Strict (the default) it raises at the first
damage, so that no damaged picture is ever used; the probe reads leniently and keeps the list.
Nothing is sized by what a header claims, and no more than the decoder's own pictures are held.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Discard, Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from dfm_engine.errors import FaceError, MediaError
from dfm_engine.media.colour import display_size, orientation_of
from dfm_engine.media.containers import check_unchanged, cut_short, open_media, sniff
from dfm_engine.media.isobmff import BoxReport, inspect_boxes
from dfm_engine.media.parameter_sets import declared_sizes
from dfm_engine.media.timeline import Timeline
from dfm_engine.recipe import Limits

__all__ = ["ClipReader", "Damage", "Picture", "check_size"]

# fmt: off
CODECS = frozenset((
    "h264", "hevc", "av1", "vp8", "vp9", "mpeg4", "mpeg2video", "mpeg1video", "h263", "flv1",
    "msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2", "wmv3", "vc1", "mjpeg", "gif", "png",
    "ffv1", "huffyuv", "ffvhuff", "utvideo", "prores", "dnxhd", "dvvideo", "cfhd", "rawvideo",
    "v210", "theora", "vp6", "vp6f", "cinepak", "svq1", "svq3",
))
# fmt: on
_NO_PICTURE = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
# The first network of the face detector looks through a window of 12 pixels.
_DETECTOR_WINDOW_PX = 12
_HEAD_BYTES = 1 << 20


class Picture(NamedTuple):
    """A decoded picture as stored, and its time in seconds from the first one."""

    frame: VideoFrame
    pts_s: float


@dataclass(frozen=True, slots=True)
class Damage:
    """Something lost: its error kind, how many pictures came before, and a sentence."""

    kind: str
    shown: int
    reason: str


def check_size(
    path: str | os.PathLike[str], width: int, height: int, limits: Limits, what: str = "pictures"
) -> None:
    """Fail if a picture of this size is not to be decoded.

    Raises:
        MediaError: `too-large`, or `too-small` below the 12 pixels that a face detector looks at.
        FaceError: `no-face` between that and `limits.short_side_px`: no face fits.
    """
    if width * height > limits.megapixels * 1e6:
        raise MediaError(
            path,
            "too-large",
            f"declares {what} of {width}x{height}; the limit is {limits.megapixels:g} megapixels "
            "(limits.megapixels); scale it down",
        )
    short = min(width, height)
    if short >= limits.short_side_px:
        return
    reason = f"{what} of {width}x{height}; the short side must be {limits.short_side_px} or more"
    if short < _DETECTOR_WINDOW_PX:
        raise MediaError(path, "too-small", reason)
    raise FaceError(path, "no-face", f"{reason} to hold a face (limits.short_side_px)")


class ClipReader:
    """An open clip; use as a context manager and draw `pictures()` once.

    Attributes:
        container, codec, profile, pix_fmt: as FFmpeg names them.
        width, height: of the stored pictures, before turning; 0 until known.
        aspect: width of a pixel over its height, or None.
        stream_index: of the stream that is read, in its container.
        picture_streams: how many streams there hold pictures, covers and thumbnails included.
        header_frames: what the index promises, or None where there is none.
        damages: what was lost so far (lenient reading only).
        warnings: oddities that lose nothing, each a word, a colon and a sentence.
        timeline: placed pictures; its `end_s` is the clip's duration when all are drawn.
        shown, corrupt: pictures yielded, and those of them that the decoder mended.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, limits: Limits | None = None, strict: bool = True
    ) -> None:
        """Open, and check all that can be checked before a picture is decoded.

        Raises:
            MediaError: see docs/inputs.md.
        """
        self.path = Path(os.fsdecode(path))
        self.limits = limits or Limits()
        self.strict = strict
        self.damages: list[Damage] = []
        self.warnings: list[str] = []
        self.timeline = Timeline()
        self.shown = self.corrupt = 0
        self._failed_packets = self._packets = 0
        self._is_begun = False
        self._cpu_s = 0.0
        self._file = open_media(path, limits=self.limits)
        try:
            self.size_bytes = os.fstat(self._file.fileno()).st_size
            self._open()
        except BaseException:
            self._file.close()
            raise

    def _open(self) -> None:
        container = sniff(self.path, self._file)
        if container.is_still:
            raise MediaError(self.path, "not-a-video", "is a picture; read it with read_still")
        if container.warning:
            self.warnings.append(container.warning)
        self.container = container.name
        self._boxes: BoxReport | None = None
        if container.name == "mov":
            self._inspect_boxes()
        elif container.name in ("h264", "hevc"):
            head = self._file.read(_HEAD_BYTES)
            self._file.seek(0)
            for width, height in declared_sizes(head, container.name):
                check_size(self.path, width, height, self.limits)
        elif reason := cut_short(container.name, self._file, self.size_bytes):
            self._damage("truncated", reason)
        started = time.thread_time()
        self._av = self._demuxer()
        self._stream = self._choose_stream()
        self.stream_index = self._stream.index
        self.picture_streams = len(self._av.streams.video)
        self._cpu_s = time.thread_time() - started
        context = self._stream.codec_context
        codec = context.codec.canonical_name if context is not None else "undecodable"
        if codec not in CODECS:
            self._raise_first_damage()
            raise MediaError(
                self.path, "unsupported-codec", f"holds {codec} video; re-encode it as H.264"
            )
        self.codec = codec
        self.profile = context.profile
        self.width, self.height = context.width, context.height
        self.aspect = self._stream.sample_aspect_ratio
        self.header_frames = self._stream.frames or None
        if self.width and self.height:
            self._check_shown_size(self.width, self.height)
        context.thread_type = "NONE"  # frame threads hide errors, and cost 20 % more processor time
        context.thread_count = 1
        context.options = self._guards()
        for other in self._av.streams:
            if other.index != self._stream.index:
                other.discard = Discard.all

    def _inspect_boxes(self) -> None:
        boxes = self._boxes = inspect_boxes(self._file, self.size_bytes)
        for width, height in boxes.picture_sizes:
            # The small end is judged by the stream: covers and thumbnails are tracks, too.
            if width * height > self.limits.megapixels * 1e6:
                check_size(self.path, width, height, self.limits)
        if boxes.truncated:
            self._damage("truncated", boxes.truncated)
        if boxes.damaged:
            self._damage("corrupt", f"its index is damaged: {boxes.damaged}")
        if boxes.trailing_bytes and not boxes.truncated:
            self.warnings.append(
                f"trailing-bytes: {boxes.trailing_bytes} stray bytes after the last box"
            )

    def _guards(self) -> dict[str, str]:
        # FFmpeg's own guard for sizes that change on the way; a tenth of slack for coded padding.
        return {"max_pixels": str(int(1.1e6 * self.limits.megapixels))}

    def _demuxer(self) -> InputContainer:
        try:
            return av.open(
                self._file,
                mode="r",
                format=self.container,
                # Names in the file are never followed: no external data, no protocol at all.
                options={**self._guards(), "protocol_whitelist": "none", "enable_drefs": "0"},
                metadata_errors="replace",
            )
        except (FFmpegError, ValueError, MemoryError) as error:
            self._raise_first_damage()
            raise MediaError(
                self.path, "corrupt", f"its {self.container} header does not parse ({_text(error)})"
            ) from error
        except OSError as error:
            raise MediaError(self.path, "unreadable", f"reading failed: {error}") from error

    def _choose_stream(self) -> VideoStream:
        clips = [s for s in self._av.streams.video if not s.disposition & _NO_PICTURE]
        if not clips:
            self._raise_first_damage()
            covers = len(self._av.streams.video)
            if self._boxes and len(self._boxes.picture_sizes) > covers:
                raise MediaError(
                    self.path, "corrupt", "its index lists a video track that cannot be read"
                )
            raise MediaError(
                self.path,
                "no-video-stream",
                f"holds {len(self._av.streams)} streams, {covers} of them cover pictures, no video",
            )
        chosen = next((s for s in clips if s.disposition & Disposition.default), clips[0])
        if len(clips) > 1:
            self.warnings.append(
                f"video-streams: {len(clips)} video streams, stream {chosen.index} is read"
            )
        return chosen

    def _check_shown_size(self, width: int, height: int) -> None:
        check_size(self.path, width, height, self.limits)
        check_size(self.path, *display_size(width, height, self.aspect), self.limits)

    def pictures(self) -> Iterator[Picture]:
        """Yield every shown picture, in the decoder's output order.

        Raises:
            MediaError: at the first damage when strict; a limit reached, `size-change` when strict.
        """
        base = self._stream.time_base
        second = float(base) if base else 0.0
        first_size: tuple[int, int] | None = None
        packets = self._av.demux(self._stream)
        while True:
            started = time.thread_time()
            packet, frames = self._next(packets)
            self._cpu_s += time.thread_time() - started
            if packet is None:
                break
            for frame in frames:
                if first_size is None:
                    self._look_at_first(frame)
                    first_size = frame.width, frame.height
                elif (frame.width, frame.height) != first_size:
                    self._damage(
                        "size-change",
                        f"picture {self.shown} is {frame.width}x{frame.height}, the first was "
                        f"{first_size[0]}x{first_size[1]}; split the clip there",
                    )
                    return
                if frame.is_corrupt:
                    self.corrupt += 1
                    self._damage("corrupt", f"picture {self.shown} was mended by the decoder")
                pts_s = None if frame.pts is None else frame.pts * second
                time_s = self.timeline.place(pts_s, (frame.duration or 0) * second)
                self.shown += 1
                self._check_progress(time_s)
                yield Picture(frame, time_s)
            self._check_progress(0.0)
        self._look_back()

    def _next(
        self, packets: Iterator[Packet[VideoStream]]
    ) -> tuple[Packet | None, list[VideoFrame]]:
        try:
            packet = next(packets, None)
        except (FFmpegError, OSError) as error:
            kind = "truncated" if isinstance(error, EOFError) else "corrupt"
            self._damage(kind, f"reading broke off after picture {self.shown} ({_text(error)})")
            return None, []
        if packet is None:
            return None, []
        if packet.size:
            is_first, self._is_begun = not self._is_begun, True
            if is_first and not packet.is_keyframe:
                self._damage(
                    "no-keyframe",
                    "begins between keyframes: its first pictures cannot be rebuilt; "
                    "cut it at a keyframe or re-encode it",
                )
            self._packets += not packet.is_discard
        try:
            return packet, packet.decode()
        except (FFmpegError, ValueError, MemoryError) as error:
            self._failed_packets += 1
            self._damage("corrupt", f"picture {self.shown} did not decode ({_text(error)})")
            return packet, []

    def _look_at_first(self, frame: VideoFrame) -> None:
        self._check_shown_size(frame.width, frame.height)
        self.width, self.height = frame.width, frame.height
        self.orientation = orientation_of(frame)

    def _check_progress(self, time_s: float) -> None:
        if self.shown > self.limits.frames:
            raise MediaError(
                self.path,
                "too-long",
                f"has more than {self.limits.frames} pictures (limits.frames); cut it",
            )
        if time_s > self.limits.duration_s:
            raise MediaError(
                self.path,
                "too-long",
                f"picture {self.shown} is at {time_s:.1f} s, the limit is "
                f"{self.limits.duration_s:g} s (limits.duration_s); cut it",
            )
        if self._cpu_s > self.limits.decode_s:
            raise MediaError(
                self.path,
                "too-slow",
                f"{self.shown} pictures took {self._cpu_s:.0f} s of processor time, the limit is "
                f"{self.limits.decode_s:g} s (limits.decode_s); scale it down or cut it",
            )

    def _look_back(self) -> None:
        """What only the whole decode can tell."""
        check_unchanged(self.path, self._file, self.size_bytes)
        # Each listed sample of these codecs is one picture; other codecs have hidden ones.
        missing = self._packets - self._failed_packets - self.shown
        if self._boxes and self.codec in ("h264", "hevc") and missing > 0 and not self.damages:
            self._damage("corrupt", f"{self._packets} pictures are stored, {self.shown} decode")
        if self.shown == 0:
            self._raise_first_damage()
            hint = "; its edit list hides them all" if self._packets or self.header_frames else ""
            raise MediaError(self.path, "zero-frames", f"shows no picture{hint}")

    def _damage(self, kind: str, reason: str) -> None:
        if self.strict:
            raise MediaError(self.path, kind, reason)
        self.damages.append(Damage(kind, self.shown, reason))

    def _raise_first_damage(self) -> None:
        if self.damages:
            raise MediaError(self.path, self.damages[0].kind, self.damages[0].reason)

    def close(self) -> None:
        """Release decoder and file."""
        if hasattr(self, "_av"):
            self._av.close()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _text(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error)
