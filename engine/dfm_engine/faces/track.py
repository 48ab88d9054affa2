"""Follow one face along a clip, from the detections of some of its frames.

In: the faces found on the looked-at frames. Out: a `FaceTrack` with a box and landmarks on every
frame, interpolated between looks; or a `FaceError` that says why the clip cannot be used.

The subject is chosen for the clip as a whole, not frame by frame: of all ways to pick at most one
face per look, the one with the largest sum of score times size, less a price for jumping, wins. A
large false detection on a few frames thus loses to the smaller true face that stays.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm_engine.clip import FaceTrack
from dfm_engine.errors import FaceError
from dfm_engine.faces.mtcnn import Face
from dfm_engine.faces.pose import is_upright
from dfm_engine.recipe import Faces

__all__ = ["choose_faces", "track_face"]

JUMP_PRICE = 1.0  # of going to a face elsewhere or of another size: one look at the best face
LOOKS_BRIDGED = 5  # a face may be missed on this many looks without starting anew
SEEN_SHARE = 0.2  # below this share of looks a face is a false detection, not a face that got lost
MAX_LEAD_IN_SHARE = 0.5  # of the looks may pass before the face appears (a fade-in, a title)


def choose_faces(detections: Sequence[Sequence[Face]], *, settings: Faces) -> list[Face | None]:
    """Pick the subject on each look, or None where it is not seen.

    Only upright faces with at least `settings.min_score` count. The path that maximises

        sum of score * side / (largest side in the clip)  -  JUMP_PRICE * sum of jumps

    is found by dynamic programming over the looks; a jump between two picks is their distance in
    face sides per look plus the logarithm of their size ratio, at most 1. Ties go to the left.

    Args:
        detections: the faces found on each look, in any order.
        settings: of the recipe.
    """
    looks = [_candidates(faces, settings.min_score) for faces in detections]
    sides = [np.array([_side(face) for face in faces]) for faces in looks]
    centres = [np.array([_centre(face) for face in faces]).reshape(-1, 2) for faces in looks]
    largest = max((float(side.max()) for side in sides if len(side)), default=1.0)
    totals: list[NDArray[np.float64]] = []  # per look and face: the best sum that ends there
    origins: list[list[tuple[int, int] | None]] = []  # ... and the pick before it
    best, end = 0.0, None  # of all paths that end before this look
    for now, faces in enumerate(looks):
        value = np.array([face.score for face in faces]) * sides[now] / largest
        anew = best > JUMP_PRICE  # go on from the best path as if from anywhere, or begin here
        total = np.full(len(faces), best - JUMP_PRICE if anew else 0.0)
        origin = [end if anew else None] * len(faces)
        for before in range(max(0, now - LOOKS_BRIDGED - 1), now):
            if not len(looks[before]) or not len(faces):
                continue
            jump = _jumps(centres[before], sides[before], centres[now], sides[now], now - before)
            sums = totals[before][:, None] - JUMP_PRICE * jump  # (faces before, faces now)
            rows = sums.argmax(0)
            for index, row in enumerate(rows.tolist()):
                if sums[row, index] > total[index]:
                    total[index], origin[index] = sums[row, index], (before, row)
        totals.append(total + value)
        origins.append(origin)
        if len(faces) and totals[now].max() > best:
            best, end = float(totals[now].max()), (now, int(totals[now].argmax()))
    chosen: list[Face | None] = [None] * len(looks)
    at = end
    while at is not None:
        chosen[at[0]] = looks[at[0]][at[1]]
        at = origins[at[0]][at[1]]
    return chosen


def track_face(
    detections: Sequence[Sequence[Face]],
    frame_indices: Sequence[int],
    n_frames: int,
    *,
    settings: Faces,
    path: str | os.PathLike[str],
) -> FaceTrack:
    """Follow the subject over all frames of a clip.

    A face may appear late (a black lead-in is no reason to drop a clip: `frame_clip` cuts it off)
    but from its first look on it must stay.

    Args:
        detections: the faces found on each looked-at frame.
        frame_indices: those frames' indices, ascending; the first and the last frame should be
            among them.
        n_frames: frames of the clip.
        settings: smallest score, size and share, from the recipe.
        path: of the clip, for messages.

    Raises:
        FaceError: `no-face`, `face-too-small` or `face-lost`.
    """
    chosen = choose_faces(detections, settings=settings)
    found = [look for look, face in enumerate(chosen) if face is not None]
    faces = [face for face in chosen if face is not None]
    looks = len(chosen)
    if not found or len(found) < min(2, looks) or len(found) < SEEN_SHARE * looks:
        raise FaceError(
            path,
            "no-face",
            f"an upright face in full view with a score of {settings.min_score:g} was found on "
            f"{len(found)} of {looks} looked-at frames; leave the file out",
        )
    # Measured as what is cut out and resized to the canonical frame: the box's longer side and
    # its margin. The box alone ends at the chin and within the hair.
    longer = float(np.median([max(face.box.width, face.box.height) for face in faces]))
    side = (1 + 2 * settings.enlarge) * longer
    if side < settings.min_face_px:
        raise FaceError(
            path,
            "face-too-small",
            f"the square around the face spans {side:.0f} pixels, {settings.min_face_px:g} are "
            "needed; use a closer recording or lower faces.min_face_px",
        )
    share = len(found) / (looks - found[0])
    if share < settings.min_found_share or found[0] > MAX_LEAD_IN_SHARE * looks:
        raise FaceError(
            path,
            "face-lost",
            f"the face is on {len(found)} of {looks} looked-at frames, first on frame "
            f"{frame_indices[found[0]]}, last on frame {frame_indices[found[-1]]} of {n_frames}; "
            "cut the clip to where the face is seen",
        )
    return _fill(faces, [frame_indices[look] for look in found], frame_indices, n_frames)


def _fill(
    faces: list[Face], found: list[int], looked_at: Sequence[int], n_frames: int
) -> FaceTrack:
    """Interpolate linearly between the frames that showed the face; hold it before and after."""
    values = np.concatenate(
        [
            np.array([face.box for face in faces]),
            np.stack([face.landmarks for face in faces]).reshape(len(faces), 10),
            np.array([[face.score] for face in faces]),
        ],
        axis=1,
    ).astype(np.float64)
    frames = np.arange(n_frames)
    filled = np.stack([np.interp(frames, found, column) for column in values.T], axis=1)
    filled = filled.astype(np.float32)
    return FaceTrack(
        boxes=np.ascontiguousarray(filled[:, :4]),
        landmarks=filled[:, 4:14].reshape(n_frames, 5, 2).copy(),
        scores=filled[:, 14].copy(),
        found=np.isin(frames, found),
        looked_at=np.isin(frames, looked_at),
    )


def _candidates(faces: Sequence[Face], min_score: float) -> list[Face]:
    """The faces that may be the subject, from left to right."""
    good = [face for face in faces if face.score >= min_score and is_upright(face.landmarks)]
    return sorted(good, key=lambda face: face.box)


def _side(face: Face) -> float:
    return float(np.sqrt(max(face.box.width * face.box.height, 1e-6)))


def _centre(face: Face) -> tuple[float, float]:
    return (face.box.x0 + face.box.x1) / 2, (face.box.y0 + face.box.y1) / 2


def _jumps(
    centre_a: NDArray[Any],
    side_a: NDArray[Any],
    centre_b: NDArray[Any],
    side_b: NDArray[Any],
    gap: int,
) -> NDArray[np.float64]:
    """How far each face b (columns) is from continuing each face a (rows): 0 to 1."""
    away = np.linalg.norm(centre_a[:, None] - centre_b[None], axis=2)
    side = np.sqrt(side_a[:, None] * side_b[None])
    ratio = np.abs(np.log(side_b[None] / side_a[:, None]))
    return np.minimum(1.0, away / side / gap + ratio)
