"""Faces without a detector: detections and landmarks made by hand."""

from __future__ import annotations

import numpy as np

from dfm_engine.clip import Box, FaceTrack
from dfm_engine.faces.mtcnn import Face

# In a box of side 1: eyes, nose, mouth corners of a frontal face.
FIVE = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.63], [0.335, 0.86], [0.665, 0.86]])


def make_face(
    x: float, y: float, side: float = 100.0, *, score: float = 0.99, landmarks=None
) -> Face:
    """A frontal square face with its top left corner at (x, y)."""
    if landmarks is None:
        landmarks = FIVE * side + [x, y]
    return Face(Box(x, y, x + side, y + side), np.asarray(landmarks, np.float32), score)


def upside_down(face: Face) -> Face:
    """The same box with the landmarks turned by half a turn."""
    middle = np.array([face.box.x0 + face.box.x1, face.box.y0 + face.box.y1])
    return Face(face.box, (middle - face.landmarks).astype(np.float32), face.score)


def make_track(boxes: np.ndarray, landmarks: np.ndarray | None = None, found=None) -> FaceTrack:
    """A track with given boxes (T, 4) on every frame."""
    boxes = np.asarray(boxes, np.float32)
    if landmarks is None:
        sides = boxes[:, 2:] - boxes[:, :2]
        landmarks = FIVE[None] * sides[:, None] + boxes[:, None, :2]
    found = np.ones(len(boxes), bool) if found is None else np.asarray(found, bool)
    return FaceTrack(
        boxes=boxes,
        landmarks=np.asarray(landmarks, np.float32),
        scores=np.ones(len(boxes), np.float32),
        found=found,
        looked_at=np.ones(len(boxes), bool),
    )
