"""A clip cut to its face: find it, choose the box, crop every frame.

In: a file. Out: a `FramedClip`. The file is read twice, frame by frame: once to find the face on
every n-th frame (`look_at_clip`), once to crop (`crop_clip`), so that memory holds a batch of
pictures and the cropped frames, never the clip in its full size.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from dfm_engine.clip import Box, DrivingClip, FaceTrack, FramedClip, Pixels, SourceClip
from dfm_engine.errors import MediaError
from dfm_engine.faces.appearance import (
    check_motion,
    check_one_person,
    is_visible,
    thumbnail,
)
from dfm_engine.faces.box import clip_box
from dfm_engine.faces.mtcnn import Face
from dfm_engine.faces.source_frame import choose_source_frame
from dfm_engine.faces.track import choose_faces, track_face
from dfm_engine.media.decode import read_frames, read_still
from dfm_engine.recipe import Clips, Faces, Limits, Sources
from dfm_kernels.crop import Cropper

__all__ = ["ClipRange", "Detector", "Seen", "crop_clip", "frame_clip", "look_at_clip"]

BATCH_PIXELS = 4_000_000  # of looked-at pictures held at once: 60 of 256 x 256, 4 of 720p
# The detector's search starts a little below the smallest face wanted. Where that finds nothing
# a second search, down to its published minimum, tells "too small" from "no face".
SEARCH_SHARE = 0.6
SMALLEST_SEARCH_PX, SMALLEST_SEARCH_SHARE = 20.0, 0.018


class Detector(Protocol):
    """Finds faces; `dfm_engine.faces.mtcnn.Mtcnn` is one."""

    def detect(self, frames: Pixels, *, min_face_px: float = ...) -> list[list[Face]]:
        """Per frame of uint8 (B, H, W, 3) its faces."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipRange:
    """Which pictures of a file are meant; see `frame_clip` for the fields."""

    path: Path
    start_s: float = 0.0
    end_s: float | None = None
    mirrored: bool = False
    is_still: bool = False

    @classmethod
    def of(cls, clip: SourceClip | DrivingClip) -> ClipRange:
        """What a listed clip means."""
        if isinstance(clip, SourceClip):
            return cls(path=clip.path, is_still=clip.is_still)
        return cls(path=clip.path, start_s=clip.start_s, end_s=clip.end_s, mirrored=clip.mirrored)

    def read(self, *, limits: Limits, clips: Clips) -> Iterator[NDArray[np.uint8]]:
        """Yield its pictures (H, W, 3) at the canonical rate, `clips.max_frames` at most.

        Raises:
            MediaError: the file does not decode.
        """
        if self.is_still:
            pictures = iter([read_still(self.path, limits=limits)])
        else:
            pictures = read_frames(
                self.path, fps=clips.fps, limits=limits, start_s=self.start_s, end_s=self.end_s
            )
        for picture in islice(pictures, clips.max_frames):
            yield np.ascontiguousarray(picture[:, ::-1]) if self.mirrored else picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the first pass over a clip found.

    Attributes:
        track: the subject on every frame from `first_frame` on.
        first_frame: the first frame that shows the face; what lies before is a lead-in.
        most_faces: the largest number of confident faces on one frame.
        height, width: of the upright picture.
    """

    track: FaceTrack
    first_frame: int
    most_faces: int
    height: int
    width: int


def frame_clip(
    path: str | os.PathLike[str],
    *,
    detector: Detector,
    size: int,
    limits: Limits,
    faces: Faces,
    clips: Clips,
    sources: Sources | None,
    start_s: float = 0.0,
    end_s: float | None = None,
    mirrored: bool = False,
    is_still: bool = False,
) -> FramedClip:
    """Cut a clip, or a range of it, to its face.

    Args:
        path: a video file, or a picture with `is_still`.
        detector: finds faces.
        size: side of the canonical frames.
        limits: what the file may ask for.
        faces: how the face is found and framed.
        clips: rate and length of canonical clips.
        sources: limits for the source frame; None for a driving clip.
        start_s: start of the range.
        end_s: its end (half-open), None for the end of the clip.
        mirrored: flip pictures left to right as they are read.
        is_still: a picture; gives one frame.

    Returns:
        Frames from the first one that shows the face on, with track and box.

    Raises:
        MediaError: the file does not decode, or is `too-short`.
        FaceError: no usable face; see docs/inputs.md for the kinds.
    """
    clip = ClipRange(
        path=Path(path), start_s=start_s, end_s=end_s, mirrored=mirrored, is_still=is_still
    )
    seen = look_at_clip(clip, detector=detector, limits=limits, faces=faces, clips=clips)
    track = seen.track
    if len(track) < clips.min_frames and not is_still:
        raise MediaError(
            path,
            "too-short",
            f"shows a face on {len(track)} frames at {clips.fps} frames/s, "
            f"{clips.min_frames} are needed; leave it out or lower clips.min_frames",
        )
    box = clip_box(track, enlarge=faces.enlarge)
    frames = _crop(clip, box, size=size, limits=limits, clips=clips, first_frame=seen.first_frame)
    source = choose_source_frame(frames, track, box, settings=sources, path=path)
    return FramedClip(
        frames=frames,
        track=track,
        box=box,
        source_index=source.index,
        source_scores=source.scores,
        first_frame=seen.first_frame,
    )


def crop_clip(
    clip: SourceClip | DrivingClip,
    box: Box,
    *,
    size: int,
    limits: Limits,
    clips: Clips,
    first_frame: int = 0,
) -> Pixels:
    """Crop a clip again by the box and first frame that `frame_clip` found; the same frames.

    Args:
        clip: as listed.
        box: square, in pixels of the upright picture.
        size: side of the canonical frames.
        limits: what the file may ask for.
        clips: rate and length of canonical clips.
        first_frame: `FramedClip.first_frame`.

    Returns:
        uint8 (T, size, size, 3).

    Raises:
        MediaError: the file does not decode, or holds no frame after `first_frame`.
    """
    return _crop(
        ClipRange.of(clip), box, size=size, limits=limits, clips=clips, first_frame=first_frame
    )


def look_at_clip(
    clip: ClipRange, *, detector: Detector, limits: Limits, faces: Faces, clips: Clips
) -> Seen:
    """The first pass: find the subject of a clip and check that it stays one moving person.

    Raises:
        MediaError: the file does not decode.
        FaceError: `no-face`, `face-too-small`, `face-lost`, `identity-change` or `no-motion`.
    """
    looks = _Looks(detector, faces)
    count = 0
    last: NDArray[np.uint8] | None = None
    for index, picture in enumerate(clip.read(limits=limits, clips=clips)):
        if index % faces.every_n == 0:
            looks.add(index, picture)
        count, last = index + 1, picture
    if last is not None and (count - 1) % faces.every_n:
        looks.add(count - 1, last)
    looks.flush()
    chosen = choose_faces(looks.faces, settings=faces)
    track = track_face(looks.faces, looks.frames, count, settings=faces, path=clip.path)
    found = [look for look, face in enumerate(chosen) if face is not None]
    thumbnails = [looks.thumbnails[look][id(chosen[look])] for look in found]
    check_one_person(thumbnails, [looks.frames[look] for look in found], path=clip.path)
    if not clip.is_still:
        check_motion(thumbnails, path=clip.path)
    first = int(np.flatnonzero(track.found)[0])
    height, width = looks.size
    return Seen(
        track=_from(track, first),
        first_frame=first,
        most_faces=max(map(len, looks.faces), default=0),
        height=height,
        width=width,
    )


class _Looks:
    """Gathers looked-at pictures into batches, detects, and keeps faces and their thumbnails."""

    def __init__(self, detector: Detector, settings: Faces) -> None:
        self.frames: list[int] = []
        self.faces: list[list[Face]] = []
        self.thumbnails: list[dict[int, NDArray[np.uint8]]] = []  # per look, by id of the face
        self.size = (0, 0)
        self._detector, self._settings = detector, settings
        self._waiting: list[NDArray[np.uint8]] = []

    def add(self, index: int, picture: NDArray[np.uint8]) -> None:
        self.frames.append(index)
        self._waiting.append(picture)
        self.size = picture.shape[0], picture.shape[1]
        if sum(p.shape[0] * p.shape[1] for p in self._waiting) >= BATCH_PIXELS:
            self.flush()

    def flush(self) -> None:
        if not self._waiting:
            return
        pictures = np.stack(self._waiting)
        self._waiting = []
        start = max(SMALLEST_SEARCH_PX, SEARCH_SHARE * self._settings.min_face_px)
        seen = self._detect(pictures, start)
        missed = [k for k, faces in enumerate(seen) if not faces]
        if missed:
            finest = max(SMALLEST_SEARCH_PX, SMALLEST_SEARCH_SHARE * min(self.size))
            again = self._detect(pictures[missed], min(start, finest))
            for k, faces in zip(missed, again, strict=True):
                seen[k] = faces
        for faces in seen:
            self.faces.append([face for face, _ in faces])
            self.thumbnails.append({id(face): picture for face, picture in faces})

    def _detect(
        self, pictures: Pixels, min_face_px: float
    ) -> list[list[tuple[Face, NDArray[np.uint8]]]]:
        """Per picture the faces that are sure and can be seen, with their thumbnails."""
        seen: list[list[tuple[Face, NDArray[np.uint8]]]] = []
        for picture, faces in zip(
            pictures, self._detector.detect(pictures, min_face_px=min_face_px), strict=True
        ):
            sure = [face for face in faces if face.score >= self._settings.min_score]
            both = [(face, thumbnail(picture, face.box)) for face in sure]
            seen.append([(face, small) for face, small in both if is_visible(small)])
        return seen


def _crop(
    clip: ClipRange, box: Box, *, size: int, limits: Limits, clips: Clips, first_frame: int
) -> Pixels:
    """The second pass."""
    # Pages of it that no frame reaches are never touched, so the length may be generous.
    frames = np.empty((1 if clip.is_still else clips.max_frames, size, size, 3), np.uint8)
    count = 0
    cropper: Cropper | None = None
    with _one_thread():
        for index, picture in enumerate(clip.read(limits=limits, clips=clips)):
            if index < first_frame:
                continue
            if cropper is None:
                cropper = Cropper(picture.shape[0], picture.shape[1], box, size)
            frame = torch.from_numpy(np.require(picture, requirements="W"))
            frames[count] = cropper(frame).numpy()
            count += 1
    if not count:
        raise MediaError(
            clip.path,
            "empty-range",
            f"holds no frame after frame {first_frame}; it held some before: do not change inputs "
            "during a run",
        )
    return frames[:count]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Torch on one thread: a crop is dozens of products too small to share (424 -> 675 frames/s).

    Measured on two cores of an AMD EPYC with another job running, 256 x 256, 2026-11-22. It also
    makes the pixels independent of the thread count.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _from(track: FaceTrack, first: int) -> FaceTrack:
    """The track from a frame on."""
    return FaceTrack(
        boxes=track.boxes[first:],
        landmarks=track.landmarks[first:],
        scores=track.scores[first:],
        found=track.found[first:],
        looked_at=track.looked_at[first:],
    )
