"""A clip cut to its face: find it, choose the box, crop every frame.

In: a file. Out: a `FramedClip`. The file is read twice by a `pictures.FrameReader`: once to find
the face on every n-th frame (`look_at_clip`), once to crop (`crop_clip`), so that memory holds a
batch of pictures and the cropped frames, never the clip in its full size.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
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
from dfm_engine.faces.pictures import ClipRange, FrameReader, PyavReader
from dfm_engine.faces.source_frame import choose_source_frame
from dfm_engine.faces.track import choose_faces, track_face
from dfm_engine.recipe import Clips, Faces, Limits, Sources

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
    sha256: str | None = None,
    reader: FrameReader | None = None,
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
        sha256: of the file, if it was found whole; a GPU decodes nothing else.
        reader: decodes; PyAV where left out.

    Returns:
        Frames from the first one that shows the face on, with track and box.

    Raises:
        MediaError: the file does not decode, or is `too-short`.
        FaceError: no usable face; see docs/inputs.md for the kinds.
    """
    reader = reader or PyavReader()
    clip = ClipRange(
        path=Path(path),
        start_s=start_s,
        end_s=end_s,
        mirrored=mirrored,
        is_still=is_still,
        sha256=sha256,
    )
    seen = look_at_clip(
        clip, detector=detector, limits=limits, faces=faces, clips=clips, reader=reader
    )
    track = seen.track
    if len(track) < clips.min_frames and not is_still:
        raise MediaError(
            path,
            "too-short",
            f"shows a face on {len(track)} frames at {clips.fps} frames/s, "
            f"{clips.min_frames} are needed; leave it out or lower clips.min_frames",
        )
    box = clip_box(track, enlarge=faces.enlarge)
    frames = reader.crop(
        clip, box, size=size, limits=limits, clips=clips, first_frame=seen.first_frame
    )
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
    reader: FrameReader | None = None,
) -> Pixels:
    """Crop a clip again by the box and first frame that `frame_clip` found; the same frames.

    Args:
        clip: as listed.
        box: square, in pixels of the upright picture.
        size: side of the canonical frames.
        limits: what the file may ask for.
        clips: rate and length of canonical clips.
        first_frame: `FramedClip.first_frame`.
        reader: the one that framed it; PyAV where left out.

    Returns:
        uint8 (T, size, size, 3).

    Raises:
        MediaError: the file does not decode, or holds no frame after `first_frame`.
    """
    return (reader or PyavReader()).crop(
        ClipRange.of(clip), box, size=size, limits=limits, clips=clips, first_frame=first_frame
    )


def look_at_clip(
    clip: ClipRange,
    *,
    detector: Detector,
    limits: Limits,
    faces: Faces,
    clips: Clips,
    reader: FrameReader | None = None,
    must_move: bool = True,
) -> Seen:
    """The first pass: find the subject of a clip and check that it stays one moving person.

    A clip that stands still is refused unless `must_move` is false.

    Raises:
        MediaError: the file does not decode.
        FaceError: `no-face`, `face-too-small`, `face-lost`, `identity-change` or `no-motion`.
    """
    looks = _Looks(detector, faces)
    reader = reader or PyavReader()
    for index, picture in reader.look(clip, every_n=faces.every_n, limits=limits, clips=clips):
        looks.add(index, picture)
    looks.flush()
    count = looks.frames[-1] + 1 if looks.frames else 0
    chosen = choose_faces(looks.faces, settings=faces)
    track = track_face(looks.faces, looks.frames, count, settings=faces, path=clip.path)
    found = [look for look, face in enumerate(chosen) if face is not None]
    thumbnails = [looks.thumbnails[look][id(chosen[look])] for look in found]
    check_one_person(thumbnails, [looks.frames[look] for look in found], path=clip.path)
    if must_move and not clip.is_still:
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


def _from(track: FaceTrack, first: int) -> FaceTrack:
    """The track from a frame on."""
    return FaceTrack(
        boxes=track.boxes[first:],
        landmarks=track.landmarks[first:],
        scores=track.scores[first:],
        found=track.found[first:],
        looked_at=track.looked_at[first:],
    )
