"""A clip without decoding it: what it is, and when each of its pictures is shown.

One picture is decoded (range, matrix, turn and field order stand in no header), all packets are
only read. Whoever decodes by number (NVDEC through DALI) learns here which numbers a range or a
rate means; `native_indices` gives the same pictures that `read_frames` shows.

The file is believed here, not checked: damage shows in a full decode alone (`media.probe`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import av
from av.error import FFmpegError
from av.video.frame import VideoFrame

from dfm_engine.errors import MediaError
from dfm_engine.media.colour import Colour, Orientation, colour_of, display_size, orientation_of
from dfm_engine.media.containers import open_media
from dfm_engine.media.reader import ClipReader
from dfm_engine.media.timeline import Timeline, resample
from dfm_engine.recipe import Limits

__all__ = ["ClipOutline", "native_indices", "read_outline"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClipOutline:
    """What a clip is.

    Attributes:
        path: of the file.
        container, codec, profile, pix_fmt: as FFmpeg names them.
        width, height: of the stored pictures, in pixels.
        has_square_pixels: no stretching is asked for.
        orientation: what turns stored pixels upright.
        colour: how its samples become RGB.
        is_interlaced: the first picture is flagged so.
        times_s: seconds from the first picture, one per picture, in the order of showing.
        end_s: when the last one ends.
        listed: pictures that the index lists, or None.
        is_plain: every packet is one shown picture with a time of its own.
        is_only_stream: nothing else in the file holds pictures, not even a cover.
        first: the first picture, as decoded.
    """

    path: Path
    container: str
    codec: str
    profile: str | None
    pix_fmt: str
    width: int
    height: int
    has_square_pixels: bool
    orientation: Orientation
    colour: Colour
    is_interlaced: bool
    times_s: tuple[float, ...]
    end_s: float
    listed: int | None
    is_plain: bool
    is_only_stream: bool
    first: VideoFrame

    @property
    def upright_size(self) -> tuple[int, int]:
        """(height, width) after turning."""
        if self.orientation.transpose:
            return self.width, self.height
        return self.height, self.width


def read_outline(path: str | os.PathLike[str], *, limits: Limits | None = None) -> ClipOutline:
    """Read the first picture and every packet's time.

    Raises:
        MediaError: the file does not open, or its first picture does not decode.
    """
    limits = limits or Limits()
    with ClipReader(path, limits=limits) as clip:
        first = next(iter(clip.pictures())).frame
        facts = {
            "path": clip.path,
            "container": clip.container,
            "codec": clip.codec,
            "profile": clip.profile,
            "pix_fmt": first.format.name,
            "width": first.width,
            "height": first.height,
            "has_square_pixels": display_size(first.width, first.height, clip.aspect)
            == (first.width, first.height),
            "orientation": orientation_of(first),
            "colour": colour_of(first),
            "is_interlaced": bool(first.interlaced_frame),
            "listed": clip.header_frames,
            "is_only_stream": clip.picture_streams == 1,
            "first": first,
        }
        container, stream = clip.container, clip.stream_index
    line = Timeline()
    stamps, is_plain = _packet_times(path, container, stream, limits)
    times = [line.place(pts_s, duration_s) for pts_s, duration_s in stamps]
    is_plain = is_plain and not line.restarts
    return ClipOutline(**facts, times_s=tuple(times), end_s=line.end_s, is_plain=is_plain)


def native_indices(
    outline: ClipOutline, *, fps: float | None, start_s: float = 0.0, end_s: float | None = None
) -> list[int]:
    """The stored pictures, by number, that `read_frames` with these arguments shows in turn.

    Raises:
        MediaError: `empty-range`, the range holds none.
    """
    line = Timeline()
    line.end_s = outline.end_s
    timed = list(enumerate(outline.times_s))
    if fps is None:
        found = [index for index, t in timed if t >= start_s and (end_s is None or t < end_s)]
    else:
        found = list(resample(timed, line, fps=fps, start_s=start_s, end_s=end_s))
    if not found:
        raise MediaError(
            outline.path,
            "empty-range",
            f"the range starts at {start_s:g} s, the clip ends at {outline.end_s:.2f} s",
        )
    return found


def _packet_times(
    path: str | os.PathLike[str], container: str, stream: int, limits: Limits
) -> tuple[list[tuple[float, float]], bool]:
    """(time, length) of every picture in seconds, in order of time; whether all were plain."""
    stamps: list[tuple[float, float]] = []
    is_plain = True
    with open_media(path, limits=limits) as file:
        try:
            options = {"protocol_whitelist": "none", "enable_drefs": "0"}
            with av.open(
                file, mode="r", format=container, options=options, metadata_errors="replace"
            ) as it:
                base = it.streams[stream].time_base
                second = float(base) if base else 0.0
                for packet in it.demux(it.streams[stream]):
                    if not packet.size:
                        continue
                    if packet.pts is None or packet.is_discard or packet.is_corrupt:
                        is_plain = False
                        continue
                    stamps.append((packet.pts * second, (packet.duration or 0) * second))
                    if len(stamps) > limits.frames:
                        break
        except (FFmpegError, OSError, ValueError) as error:
            raise MediaError(path, "corrupt", f"its packets do not read ({error})") from error
    stamps.sort()
    return stamps, is_plain
