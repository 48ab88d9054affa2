"""Measure what five landmarks cannot tell: open eyes, an open mouth, raised brows.

Patches are cut from luminance in the frame of the face: origin between the eyes, x along the eye
line, y down the face, unit the inter-ocular distance e. They are the same for every head size and
roll, and every grey value is divided by the cheeks' so that light and skin tone cancel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm_engine.clip import Pixels

__all__ = [
    "FaceAxes",
    "Planes",
    "brow_lift",
    "eye_openness",
    "face_axes",
    "mouth_interior",
    "planes",
    "sharpness",
]

Array = NDArray[np.floating[Any]]

PX_PER_E = 32  # samples per inter-ocular distance
MIX = np.array([[0.299, 0.0], [0.587, 0.5], [0.114, 0.5]], np.float32)  # RGB to grey and cool

# Rectangles (x0, y0, x1, y1) in units of e. Eyes are at (-0.5, 0) and (0.5, 0).
CHEEKS = (-0.75, 0.2, 0.75, 0.6)
# Tight on the iris: over 28 blinks of 8 real clips the dip is to at most 0.57 of the open eye,
# against 0.73 with a patch that reaches the brow shadow.
EYE = (-0.22, -0.12, 0.22, 0.14)
BROW = (-0.3, -0.6, 0.3, -0.15)
MOUTH = (-0.2, -0.2, 0.2, 0.5)  # from the middle of the mouth corners
FACE = (-0.8, -0.3, 0.8, 1.4)
BROW_UP, BROW_DOWN = 0.25, 0.125  # how far a brow is followed
DARK = 0.7, 0.4  # of the cheeks' luminance: begins to count, counts fully
TEETH = 1.15, 1.5  # likewise, of their green and blue


@dataclass(frozen=True, slots=True)
class FaceAxes:
    """The frame of the face on every frame of a clip, in pixels.

    Attributes:
        eyes: (T, 2) the middle of the eyes.
        mouth: (T, 2) the middle of the mouth corners.
        right: (T, 2) unit vector along the eye line, towards image right.
        down: (T, 2) unit vector down the face.
        unit: (T,) inter-ocular distance e.
    """

    eyes: Array
    mouth: Array
    right: Array
    down: Array
    unit: Array


def face_axes(landmarks: NDArray[np.floating]) -> FaceAxes:
    """The frame of the face from landmarks (T, 5, 2)."""
    points = landmarks.astype(np.float32)
    along = points[:, 1] - points[:, 0]
    unit = np.maximum(np.hypot(along[:, 0], along[:, 1]), 1e-3)
    right = along / unit[:, None]
    down = np.stack([-right[:, 1], right[:, 0]], 1)
    eyes = (points[:, 0] + points[:, 1]) / 2
    mouth = (points[:, 3] + points[:, 4]) / 2
    return FaceAxes(eyes=eyes, mouth=mouth, right=right, down=down, unit=unit)


@dataclass(frozen=True, slots=True)
class Planes:
    """Single-channel pictures of a clip, (T, h, w) float32 each, and the face in their pixels.

    Attributes:
        grey: luminance.
        cool: mean of green and blue, in which teeth stand out from skin of any tone.
        axes: the frame of the face.
    """

    grey: Array
    cool: Array
    axes: FaceAxes


def planes(frames: Pixels, landmarks: NDArray[np.floating[Any]]) -> Planes:
    """The pictures that patches are cut from; large faces are averaged down first.

    Block averages bring e to between 32 and 64 pixels, so that point sampling does not alias.

    Args:
        frames: uint8 (T, H, W, 3).
        landmarks: (T, 5, 2) in their pixels.
    """
    spans = np.linalg.norm(landmarks[:, 1] - landmarks[:, 0], axis=-1)
    factor = max(1, int(np.median(spans) // PX_PER_E))
    height, width = (side // factor * factor for side in frames.shape[1:3])
    both = np.zeros((len(frames), 2, height // factor, width // factor), np.float32)
    for index, frame in enumerate(frames):  # one at a time: float copies of a clip are large
        pixels = frame[:height, :width].reshape(-1, 3).astype(np.float32)
        mixed = (pixels @ MIX).reshape(height, width, 2)
        # Sums of whole slices: a mean over two axes takes NumPy four times as long.
        tall = mixed[::factor].copy()  # (h, W, 2)
        for row in range(1, factor):
            tall += mixed[row::factor]
        for column in range(factor):
            both[index] += tall[:, column::factor].transpose(2, 0, 1)
    both /= factor * factor
    return Planes(grey=both[:, 0], cool=both[:, 1], axes=face_axes(landmarks / factor))


def eye_openness(pictures: Planes) -> tuple[Array, Array]:
    """How much the iris shows, for the eye at image left and at image right: (T,) each.

    The mean horizontal gradient of a small patch on the eye. An open eye has the upright edges of
    iris and white; a shut one has the lash line, which lies across. No absolute scale: divide by
    the open eye of the same clip.
    """
    grey, axes = pictures.grey, pictures.axes
    cheeks = _cheeks(grey, axes)
    sides: list[Array] = []
    for x in (-0.5, 0.5):
        patch = _sample(grey, axes, axes.eyes, _shift(EYE, x)) / cheeks
        sides.append(np.abs(np.diff(patch, axis=2)).mean((1, 2)) * PX_PER_E)
    return sides[0], sides[1]


def mouth_interior(pictures: Planes) -> tuple[Array, Array]:
    """Shares of the mouth patch that are cavity and that are teeth, (T,) in 0..1 each.

    The cavity is darker than the cheeks, teeth are whiter; shut lips are neither, a beard is dark
    all along.
    """
    axes = pictures.axes
    dark = _sample(pictures.grey, axes, axes.mouth, MOUTH) / _cheeks(pictures.grey, axes)
    white = _sample(pictures.cool, axes, axes.mouth, MOUTH) / _cheeks(pictures.cool, axes)
    return _ramp(dark, DARK).mean((1, 2)), _ramp(white, TEETH).mean((1, 2))


def brow_lift(pictures: Planes, *, neutral: slice) -> Array:
    """How far the brows stand above where they were in the neutral frames, (T,) in e, up positive.

    The vertical gradient above each eye is matched with the neutral frames' median by normalised
    correlation over vertical shifts, with a parabola for the fraction; the mean of both eyes.
    """
    x0, y0, x1, y1 = BROW
    lifts: list[Array] = []
    for x in (-0.5, 0.5):
        reach = x0 + x, y0 - BROW_UP, x1 + x, y1 + BROW_DOWN
        patch = _sample(pictures.grey, pictures.axes, pictures.axes.eyes, reach)
        edges = np.diff(patch, axis=1)
        lifts.append(_vertical_shift(edges, np.median(edges[neutral], axis=0)))
    return (lifts[0] + lifts[1]) / 2


def sharpness(pictures: Planes) -> float:
    """Median over frames of the mean absolute Laplacian between eyes and mouth, in grey levels."""
    grey, axes = pictures.grey, pictures.axes
    face = _sample(grey, axes, axes.eyes, FACE)
    inner = face[:, 1:-1, 1:-1]
    around = face[:, :-2, 1:-1] + face[:, 2:, 1:-1] + face[:, 1:-1, :-2] + face[:, 1:-1, 2:]
    return float(np.median(np.abs(4 * inner - around).mean((1, 2))))


def _cheeks(grey: Array, axes: FaceAxes) -> Array:
    """Median luminance of the cheeks, (T, 1, 1)."""
    patch = _sample(grey, axes, axes.eyes, CHEEKS)
    median = np.median(patch.reshape(len(patch), -1), axis=1)
    return np.maximum(median, 1.0)[:, None, None]


def _ramp(values: Array, limits: tuple[float, float]) -> Array:
    """0 at the first limit, 1 at the second and beyond."""
    first, full = limits
    return np.clip((values - first) / (full - first), 0, 1)


def _shift(rectangle: tuple[float, ...], x: float) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = rectangle
    return x0 + x, y0, x1 + x, y1


def _sample(
    grey: Array, axes: FaceAxes, origin: Array, rectangle: tuple[float, float, float, float]
) -> Array:
    """Bilinear samples (T, h, w) of a rectangle in the frame of the face; the border repeats."""
    x0, y0, x1, y1 = rectangle
    xs = x0 + (np.arange(round((x1 - x0) * PX_PER_E)) + 0.5) / PX_PER_E
    ys = y0 + (np.arange(round((y1 - y0) * PX_PER_E)) + 0.5) / PX_PER_E
    offsets = (
        xs[None, None, :, None] * axes.right[:, None, None]
        + ys[None, :, None, None] * axes.down[:, None, None]
    )  # (T, h, w, 2)
    points = origin[:, None, None] + offsets * axes.unit[:, None, None, None] - 0.5
    height, width = grey.shape[1:]
    x = np.clip(points[..., 0], 0, width - 1).astype(np.float32)
    y = np.clip(points[..., 1], 0, height - 1).astype(np.float32)
    left, top = x.astype(np.int32), y.astype(np.int32)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    fx, fy = x - left, y - top
    frame = np.arange(len(grey))[:, None, None]
    upper = grey[frame, top, left] * (1 - fx) + grey[frame, top, right] * fx
    lower = grey[frame, bottom, left] * (1 - fx) + grey[frame, bottom, right] * fx
    return upper * (1 - fy) + lower * fy


def _vertical_shift(patches: Array, neutral: Array) -> Array:
    """Upward shift, in e, at which the middle rows of `neutral` (h, w) fit each patch (T, h, w)."""
    up, down = round(BROW_UP * PX_PER_E), round(BROW_DOWN * PX_PER_E)
    template = neutral[up : len(neutral) - down]
    shifts = np.arange(-down, up + 1)
    windows = [patches[:, up - shift : up - shift + len(template)] for shift in shifts]
    scores = np.stack([_correlate(window, template) for window in windows], 1)  # (T, shifts)
    best = scores.argmax(1)
    inner = np.clip(best, 1, len(shifts) - 2)
    index = np.arange(len(patches))
    low, mid, high = (scores[index, inner + step] for step in (-1, 0, 1))
    bend = np.minimum(low - 2 * mid + high, -1e-6)
    fraction = np.where(best == inner, 0.5 * (low - high) / bend, 0.0)
    return (shifts[best] + fraction) / PX_PER_E


def _correlate(patches: Array, template: Array) -> Array:
    """Normalised correlation (T,) of patches (T, h, w) with one (h, w)."""
    rows = patches.reshape(len(patches), -1)
    rows = rows - rows.mean(1, keepdims=True)
    wanted = (template - template.mean()).ravel()
    norm = np.linalg.norm(rows, axis=1) * np.linalg.norm(wanted)
    return (rows @ wanted) / np.maximum(norm, 1e-6)
