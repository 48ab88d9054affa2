"""Choose the frame of a clip that is animated: facing the camera, and sharp.

In: the canonical frames of a real clip and the face in them. Out: the index of one frame and its
measurements. The rule: of the frames that were looked at, hold the face and are within the limits
of yaw, pitch and roll, the largest

    cos(yaw) cos(pitch) * min(1, sharpness / median sharpness)

wins, sharpness being the variance of the Laplacian over the face. Above the clip's median, more
sharpness earns nothing, so that noise and compression do not choose the frame.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfm_engine.clip import Box, FaceTrack, Pixels
from dfm_engine.errors import FaceError
from dfm_engine.faces.pose import head_pose
from dfm_engine.recipe import Sources

__all__ = ["SourceFrame", "choose_source_frame", "sharpness"]


@dataclass(frozen=True, slots=True)
class SourceFrame:
    """The chosen frame and what was measured of it."""

    index: int
    scores: dict[str, float]


def choose_source_frame(
    frames: Pixels,
    track: FaceTrack,
    box: Box,
    *,
    settings: Sources | None,
    path: str | os.PathLike[str],
) -> SourceFrame:
    """The most frontal sharp frame of a clip.

    Args:
        frames: uint8 (T, S, S, 3), cut out of the picture by `box`.
        track: the face in pixels of the picture, T frames.
        box: where the frames were cut.
        settings: limits of the angles; None (a driving clip) limits nothing.
        path: of the clip, for the message.

    Raises:
        FaceError: `not-frontal`, if the settings require a frontal frame and there is none.
    """
    candidates = np.flatnonzero(track.found)
    pose = head_pose(track.landmarks[candidates])
    sharp = np.array(
        [sharpness(frames[i], _in_frame(track.boxes[i], box, frames.shape[1])) for i in candidates]
    )
    middle = float(np.median(sharp))
    score = pose.frontality * np.minimum(1.0, sharp / middle if middle > 0 else 1.0)
    if settings is not None:
        inside = (
            (np.abs(pose.yaw_deg) <= settings.max_yaw_deg)
            & (np.abs(pose.pitch_deg) <= settings.max_pitch_deg)
            & (np.abs(pose.roll_deg) <= settings.max_roll_deg)
        )
        if inside.any():
            score = np.where(inside, score, -1.0)
        elif settings.require_frontal:
            best = int(pose.frontality.argmax())
            raise FaceError(
                path,
                "not-frontal",
                f"no frame is within {settings.max_yaw_deg:g} degrees of yaw, "
                f"{settings.max_pitch_deg:g} of pitch and {settings.max_roll_deg:g} of roll; frame "
                f"{candidates[best]} comes nearest with {pose.yaw_deg[best]:.0f}, "
                f"{pose.pitch_deg[best]:.0f} and {pose.roll_deg[best]:.0f}; leave the clip out or "
                "widen the limits under [sources]",
            )
    winner = int(score.argmax())
    index = int(candidates[winner])
    scores = {
        "yaw_deg": float(pose.yaw_deg[winner]),
        "pitch_deg": float(pose.pitch_deg[winner]),
        "roll_deg": float(pose.roll_deg[winner]),
        "sharpness": float(sharp[winner]),
        "score": float(pose.frontality[winner] * min(1.0, sharp[winner] / middle))
        if middle > 0
        else float(pose.frontality[winner]),
        "face_score": float(track.scores[index]),
    }
    return SourceFrame(index, scores)


def sharpness(frame: NDArray[np.uint8], box: Box) -> float:
    """Variance of the four-neighbour Laplacian of the grey levels within a box of a frame."""
    height, width = frame.shape[:2]
    x0, x1 = max(0, int(box.x0)), min(width, int(np.ceil(box.x1)))
    y0, y1 = max(0, int(box.y0)), min(height, int(np.ceil(box.y1)))
    grey = frame[y0:y1, x0:x1].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    if min(grey.shape) < 3:
        return 0.0
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((around - 4 * grey[1:-1, 1:-1]).var())


def _in_frame(face: NDArray[np.float32], box: Box, size: int) -> Box:
    """A box of the picture in pixels of the frame cut out of it."""
    scale = size / box.width
    x0, y0, x1, y1 = (float(edge) for edge in face)
    return Box(
        (x0 - box.x0) * scale, (y0 - box.y0) * scale, (x1 - box.x0) * scale, (y1 - box.y0) * scale
    )
