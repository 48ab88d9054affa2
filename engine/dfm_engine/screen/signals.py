"""The motion of a face as curves over time: what the action gates and the agreement read.

In: the frames of a framed clip and the face's track in them. Out: `Signals`, one value per frame
and curve, computed alike for a driving clip and for an animation, so that the two compare.
Source: weak-perspective head pose from five points, unit the inter-ocular distance e.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dfm_engine.clip import FaceTrack, Pixels
from dfm_engine.errors import ShapeError
from dfm_engine.faces.pose import MOUTH_DEPTH, NOSE_DEPTH, NOSE_HEIGHT, head_pose
from dfm_engine.screen import patches
from dfm_engine.screen.look import Detector, look

__all__ = ["NEUTRAL_FRAMES", "Channel", "Signals", "extract_signals", "measure"]

Curve = NDArray[np.floating[Any]]  # (T,)
Channel = Literal[
    "yaw", "pitch", "roll", "eyes", "mouth_open", "mouth_width", "corner_lift", "brow_lift"
]

NEUTRAL_FRAMES = 5  # a driving clip starts neutral; relative motion transfer relies on it too
OPEN_EYE = 75.0  # percentile of openness that counts as the open eye: blinks are short


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """Curves of one clip, (T,) float32 each, at the canonical 25 frames/s.

    Attributes:
        yaw_deg: nose towards image right is positive.
        pitch_deg: down is positive; by nose and mouth together, see `pitch_nose_deg`.
        pitch_nose_deg: by eyes and nose alone, which an open or smiling mouth leaves in peace.
        roll_deg: the image-right eye lower is positive: a tilt to the subject's left.
        eye_left: openness of the eye at image left, relative within the clip only.
        eye_right: of the eye at image right.
        mouth_dark: share of the mouth patch that is as dark as an open mouth.
        mouth_teeth: share of it that is as white as teeth.
        mouth_width: between the corners, in e.
        corner_lift: minus the distance from nose to mouth line, in e, pitch taken out.
        brow_lift: brows above their neutral place, in e.
        found_share: share of looked-at frames that held a face.
        still_share: share of frames equal to the one before.
        sharpness: median over frames of the face's mean absolute Laplacian at a fixed face size.
    """

    yaw_deg: Curve
    pitch_deg: Curve
    pitch_nose_deg: Curve
    roll_deg: Curve
    eye_left: Curve
    eye_right: Curve
    mouth_dark: Curve
    mouth_teeth: Curve
    mouth_width: Curve
    corner_lift: Curve
    brow_lift: Curve
    found_share: float
    still_share: float
    sharpness: float
    neutral_frames: int = field(default=NEUTRAL_FRAMES)

    def __len__(self) -> int:
        return len(self.yaw_deg)

    def __repr__(self) -> str:
        return f"Signals({len(self)} frames, face in {self.found_share:.0%})"

    def change(self, channel: Channel) -> Curve:
        """The curve less its neutral value: the median of the first frames.

        `pitch` is the smaller of its two estimates where they agree in sign, else zero: an
        opening mouth moves one, a closing eye the other, a head both. `eyes` is the mean of both
        eyes, each in shares of its open state, less one: 0 open, towards -1 shut. `mouth_open`
        adds what became dark and what became teeth, so that a beard that teeth cover counts.
        """
        match channel:
            case "yaw":
                return self._from_neutral(self.yaw_deg)
            case "roll":
                return self._from_neutral(self.roll_deg)
            case "pitch":
                one = self._from_neutral(self.pitch_deg)
                other = self._from_neutral(self.pitch_nose_deg)
                smaller = np.sign(one) * np.minimum(np.abs(one), np.abs(other))
                return np.where(one * other > 0, smaller, 0).astype(np.float32)
            case "eyes":
                left, right = self.eye_shares()
                return (left + right) / 2 - 1
            case "mouth_open":
                dark, teeth = (
                    self._from_neutral(self.mouth_dark),
                    self._from_neutral(self.mouth_teeth),
                )
                return np.maximum(dark, 0) + np.maximum(teeth, 0)
            case "mouth_width":
                neutral = np.median(self.mouth_width[: self.neutral_frames])
                return self.mouth_width / max(float(neutral), 1e-3) - 1
            case _:
                return self._from_neutral(getattr(self, channel))

    def eye_shares(self) -> tuple[Curve, Curve]:
        """Openness of each eye as a share of its open state in this clip."""
        left = self.eye_left / max(float(np.percentile(self.eye_left, OPEN_EYE)), 1e-6)
        right = self.eye_right / max(float(np.percentile(self.eye_right, OPEN_EYE)), 1e-6)
        return left.astype(np.float32), right.astype(np.float32)

    def _from_neutral(self, curve: Curve) -> Curve:
        return (curve - np.median(curve[: self.neutral_frames])).astype(np.float32)


def measure(
    frames: Pixels, detector: Detector, *, every_n: int = 2, min_score: float = 0.9
) -> Signals | None:
    """Look for the face and extract its signals; None if no frame holds a face."""
    track = look(frames, detector, every_n=every_n, min_score=min_score)
    return None if track is None else extract_signals(frames, track)


def extract_signals(frames: Pixels, track: FaceTrack) -> Signals:
    """The curves of a clip.

    Args:
        frames: uint8 (T, H, W, 3).
        track: the face in pixels of these frames, on every frame.

    Raises:
        ShapeError: frames and track differ in length, or there are none.
    """
    if len(frames) != len(track) or not len(frames):
        raise ShapeError(
            f"signals need a face on each of at least one frame, got {len(frames)} frames "
            f"and a track of {len(track)}"
        )
    points = track.landmarks.astype(np.float64)
    axes = patches.face_axes(points)
    pose = head_pose(points)
    yaw = np.radians(pose.yaw_deg)
    pitch_nose = _pitch_by_nose(points, axes, yaw)
    pictures = patches.planes(frames, points)
    eye_left, eye_right = patches.eye_openness(pictures)
    mouth_dark, mouth_teeth = patches.mouth_interior(pictures)
    width = np.linalg.norm(points[:, 4] - points[:, 3], axis=1) / axes.unit
    # The nose stands out, so nodding brings it towards the mouth: take that out of the lift.
    drop = _dot(axes.mouth - points[:, 2], axes.down) / axes.unit * np.cos(yaw)
    drop += (NOSE_DEPTH - MOUTH_DEPTH) * np.sin(pitch_nose)
    return Signals(
        yaw_deg=pose.yaw_deg.astype(np.float32),
        pitch_deg=pose.pitch_deg.astype(np.float32),
        pitch_nose_deg=np.degrees(pitch_nose).astype(np.float32),
        roll_deg=pose.roll_deg.astype(np.float32),
        eye_left=eye_left,
        eye_right=eye_right,
        mouth_dark=mouth_dark,
        mouth_teeth=mouth_teeth,
        mouth_width=width.astype(np.float32),
        corner_lift=(-drop).astype(np.float32),
        brow_lift=patches.brow_lift(pictures, neutral=slice(0, NEUTRAL_FRAMES)),
        found_share=track.found_share,
        still_share=_still_share(frames),
        sharpness=patches.sharpness(pictures),
    )


def _pitch_by_nose(
    points: NDArray[np.float64], axes: patches.FaceAxes, yaw: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Pitch in radians (T,) from how far the nose is below the eyes, whatever the mouth does.

    With h, d the nose's height and depth, drop cos(yaw) = h cos(p) + d sin(p); yaw shortens the
    unit e, so that the drop reads too long.
    """
    drop = _dot(points[:, 2] - axes.eyes, axes.down) / axes.unit * np.cos(yaw)
    length, rest = np.hypot(NOSE_HEIGHT, NOSE_DEPTH), np.arctan2(NOSE_HEIGHT, NOSE_DEPTH)
    return np.arcsin(np.clip(drop / length, -1, 1)) - rest


def _still_share(frames: Pixels) -> float:
    if len(frames) < 2:
        return 0.0
    return float(np.mean([np.array_equal(one, two) for one, two in pairwise(frames)]))


def _dot(one: NDArray[np.floating], two: NDArray[np.floating]) -> NDArray[np.float64]:
    return (one * two).sum(-1).astype(np.float64)
