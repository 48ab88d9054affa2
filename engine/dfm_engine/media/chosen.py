"""A few pictures of a clip in one forward pass, by their number in order of showing.

A seek inside a group of pictures costs the whole group, and x264 makes one group of a clip of ten
seconds; so the pass goes forward, and what no other picture needs and nobody wants (`NONREF`) is
not decoded: 1.3 to 1.8 times the rate of decoding everything, and the same pixels.

That needs the packets' times to say the order of showing. Where they do not (raw streams, edit
lists, times missing or repeated) everything is decoded and counted, as `ClipReader.pictures` does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence

from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from dfm_engine.errors import MediaError
from dfm_engine.media.reader import ClipReader
from dfm_engine.recipe import Limits

__all__ = ["read_chosen"]

_CODECS = frozenset({"h264", "hevc"})  # whose decoders know which pictures nothing refers to
_CHECK_EVERY = 32  # packets between looks at the clock, each of which costs a system call
_HELD_BYTES = 128 << 20  # packets of a larger file are not held in memory


def read_chosen(
    path: str | os.PathLike[str],
    wanted: Sequence[int],
    *,
    count: int,
    limits: Limits | None = None,
) -> Iterator[tuple[VideoFrame, ClipReader]]:
    """Yield pictures by their numbers; nothing behind the last of them is looked at.

    Args:
        path: a video file.
        wanted: ascending numbers, below `count`.
        count: pictures that the clip has.
        limits: what the file may ask for.

    Yields:
        (picture as stored, the open clip, which knows its aspect and orientation).

    Raises:
        MediaError: as `ClipReader`; `corrupt` where the clip has another number of pictures, or
            one of them was mended by the decoder.
    """
    if not len(wanted):
        return
    with _SkippingReader(path, limits=limits) as clip:
        packets = clip.hold_packets()
        if packets is not None:
            for frame in clip.skip_through(packets, wanted, count):
                yield frame, clip
            return
    with ClipReader(path, limits=limits) as clip:
        targets, last = set(wanted), wanted[-1]
        for number, (frame, _) in enumerate(clip.pictures()):
            if number in targets:
                yield frame, clip
            if number == last:
                return
        raise _too_few(clip, wanted)


class _SkippingReader(ClipReader):
    """Reads all packets first, then decodes those that chosen pictures need."""

    def hold_packets(self) -> list[Packet[VideoStream]] | None:
        """All packets, or None if their times do not tell the order of showing."""
        is_indexed = self.container == "mov" and self.codec in _CODECS
        if not is_indexed or self.size_bytes > _HELD_BYTES:
            return None
        try:
            packets = list(self._av.demux(self._stream))
        except (FFmpegError, OSError) as error:
            raise MediaError(
                self.path, "corrupt", f"its packets cannot be read ({error}); copy it again"
            ) from error
        pictures = [packet for packet in packets if packet.size]
        times = {packet.pts for packet in pictures}
        is_plain = (
            len(times) == len(pictures) == self.header_frames
            and None not in times
            and pictures[0].is_keyframe
            and not any(packet.is_discard for packet in pictures)
        )
        return packets if is_plain else None

    def skip_through(
        self, packets: list[Packet[VideoStream]], wanted: Sequence[int], count: int
    ) -> Iterator[VideoFrame]:
        """Decode, leaving out what nobody needs, up to the last picture wanted."""
        shown = sorted(packet.pts for packet in packets if packet.size and packet.pts is not None)
        if len(shown) != count:
            raise MediaError(
                self.path, "corrupt", f"holds {len(shown)} pictures instead of {count}"
            )
        targets = {shown[number] for number in wanted}
        context = self._stream.codec_context
        is_skipping = False
        started = time.thread_time()
        for number, packet in enumerate(packets):
            skip = bool(packet.size) and packet.pts not in targets
            if skip != is_skipping:
                context.skip_frame = "NONREF" if skip else "DEFAULT"
                is_skipping = skip
            try:
                frames = packet.decode()
            except (FFmpegError, ValueError, MemoryError) as error:
                raise MediaError(
                    self.path, "corrupt", f"a picture did not decode ({error}); copy it again"
                ) from error
            for frame in frames:
                if not self.shown:
                    self._look_at_first(frame)
                self.shown += 1
                if frame.is_corrupt or (frame.width, frame.height) != (self.width, self.height):
                    raise MediaError(
                        self.path, "corrupt", "a picture was mended by the decoder; copy it again"
                    )
                if frame.pts in targets:
                    targets.remove(frame.pts)
                    yield frame
            if not targets:
                return
            if number % _CHECK_EVERY == 0:
                self._cpu_s = time.thread_time() - started  # with what was done with the pictures
                self._check_progress(0.0)
        raise _too_few(self, wanted)


def _too_few(clip: ClipReader, wanted: Sequence[int]) -> MediaError:
    return MediaError(
        clip.path,
        "corrupt",
        f"picture {wanted[-1]} does not decode, though an earlier look counted it; do not change "
        "the data during a run",
    )
