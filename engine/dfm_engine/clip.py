"""What flows between stages: listed clips, faces, framed clips.

Pixels between stages are NumPy `uint8 (T, H, W, 3)`, RGB, full range, contiguous. Boxes and
landmarks are float pixels of the upright (display matrix applied) decoded picture: the
origin is the top left corner of the top left pixel, so a picture spans [0, W] x [0, H].
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dfm_engine.actions import Action
from dfm_engine.errors import ShapeError

Pixels = NDArray[np.uint8]  # (T, H, W, 3) RGB

QUALITIES: tuple[Literal["raw"], Literal["c23"], Literal["c40"]] = ("raw", "c23", "c40")
Quality = Literal["raw", "c23", "c40"]


class Box(NamedTuple):
    """A float box in pixel edges; it may reach outside the picture."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def width(self) -> float:
        """Horizontal side."""
        return self.x1 - self.x0

    @property
    def height(self) -> float:
        """Vertical side."""
        return self.y1 - self.y0


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceClip:
    """A real clip as listed by a reader; nothing of it is decoded yet.

    Attributes:
        path: absolute path of the file.
        sha256: of the whole file, hex.
        identity: who is seen, unique across the data set (`idNNNNN`, a folder name, a stem).
        dataset: name of the reader (`voxceleb1`, `voxceleb1-fomm`, `adfes`, `folder`).
        is_still: a picture; may be a source only where the recipe says so.
    """

    path: Path
    sha256: str
    identity: str
    dataset: str
    is_still: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DrivingClip:
    """A driving clip as listed; the time range is in seconds from the first frame, half-open."""

    path: Path
    sha256: str
    action: Action
    take: str = ""
    actor: str = ""
    mirrored: bool = False  # recorded by a selfie camera that flips: flip it back on decode
    start_s: float = 0.0
    end_s: float | None = None
    consent: str = ""


@dataclass(frozen=True, slots=True)
class FaceTrack:
    """One face along a clip, on every frame (looked at or interpolated).

    Attributes:
        boxes: (T, 4) float32, x0 y0 x1 y1.
        landmarks: (T, 5, 2) float32 (x, y): left-of-image eye, right-of-image eye, nose,
            left-of-image mouth corner, right-of-image mouth corner.
        scores: (T,) float32 face probability; interpolated between looked-at frames.
        found: (T,) bool, whether the frame itself was looked at and held the face.
        looked_at: (T,) bool.
    """

    boxes: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    scores: NDArray[np.float32]
    found: NDArray[np.bool_]
    looked_at: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def found_share(self) -> float:
        """Share of the looked-at frames that held the face."""
        return float(self.found.sum() / max(1, self.looked_at.sum()))


@dataclass(frozen=True, slots=True)
class FramedClip:
    """A clip cut to its face: the canonical frames and where they came from.

    Attributes:
        frames: uint8 (T, S, S, 3) RGB at the canonical rate.
        track: the face in pixels of the decoded picture.
        box: the one square box of the clip, in the same pixels.
        source_index: frame chosen as source image (most frontal and sharp).
        source_scores: its measurements (`yaw_deg`, `pitch_deg`, `roll_deg`, `sharpness`, `score`).
        first_frame: index in the decoded range of `frames[0]`; above 0 where the face appears late.
    """

    frames: Pixels
    track: FaceTrack
    box: Box
    source_index: int
    source_scores: dict[str, float]
    first_frame: int = 0

    def __post_init__(self) -> None:
        if self.frames.ndim != 4 or self.frames.shape[3] != 3 or self.frames.dtype != np.uint8:
            raise ShapeError(
                f"frames must be uint8 (T, H, W, 3), got {self.frames.dtype} {self.frames.shape}"
            )

    def __repr__(self) -> str:
        return f"FramedClip(frames={self.frames.shape}, box={self.box})"
