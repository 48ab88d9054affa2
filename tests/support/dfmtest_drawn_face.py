"""A face drawn from a few shapes, with its five landmarks, for tests of patch measurements."""

from __future__ import annotations

import numpy as np

FINE = 2  # samples per pixel and axis
SKIN = np.array([205.0, 160.0, 135.0])


def draw_face(
    *,
    size: int = 160,
    unit: float = 40.0,
    roll_deg: float = 0.0,
    eyes: tuple[float, float] = (1.0, 1.0),
    mouth: float = 0.0,
    teeth: float = 0.0,
    brow: float = 0.0,
    beard: bool = False,
    light: float = 1.0,
    skin: np.ndarray = SKIN,
) -> tuple[np.ndarray, np.ndarray]:
    """One frame uint8 (size, size, 3) and its landmarks (5, 2).

    Args:
        size: side of the frame.
        unit: inter-ocular distance in pixels.
        roll_deg: clockwise in the picture.
        eyes: openness of the eye at image left and right, 0..1.
        mouth: height of the dark opening below the mouth line, in units.
        teeth: height of the white band at its top, in units.
        brow: lift of both brows, in units.
        beard: dark chin and lips' surroundings.
        light: factor on everything.
        skin: RGB.
    """
    turn = np.radians(roll_deg)
    right = np.array([np.cos(turn), np.sin(turn)])
    down = np.array([-np.sin(turn), np.cos(turn)])
    middle = np.array([size / 2, size * 0.4])
    y, x = (np.mgrid[0 : FINE * size, 0 : FINE * size] + 0.5) / FINE
    offset = np.stack([x - middle[0], y - middle[1]], -1) / unit
    u, v = offset @ right, offset @ down

    picture = np.broadcast_to(skin, (FINE * size, FINE * size, 3)).copy()
    if beard:
        _paint(picture, (v > 0.85) & (abs(u) < 0.6), skin * 0.5)
    for side, openness in zip((-0.5, 0.5), eyes, strict=True):
        _paint(picture, (abs(u - side) < 0.3) & (abs(v + 0.36 + brow) < 0.045), skin * 0.35)
        half = 0.1 * openness
        _paint(picture, (abs(u - side) < 0.2) & (abs(v) < half), np.full(3, 235.0))
        iris = ((u - side) ** 2 + v**2 < 0.1**2) & (abs(v) < half)
        _paint(picture, iris, np.full(3, 40.0))
        _paint(picture, (abs(u - side) < 0.2) & (abs(v - half) < 0.02), skin * 0.45)
    line = (abs(u) < 0.35) & (abs(v - 1.1) < 0.02)
    _paint(picture, line, skin * 0.55)
    _paint(picture, (abs(u) < 0.3) & (v > 1.1) & (v < 1.1 + mouth), skin * 0.22)
    _paint(picture, (abs(u) < 0.3) & (v > 1.1) & (v < 1.1 + teeth), np.full(3, 235.0))

    at = np.array([(-0.5, 0.0), (0.5, 0.0), (0.0, 0.6), (-0.4, 1.1), (0.4, 1.1)])
    landmarks = middle + unit * (at[:, :1] * right + at[:, 1:] * down)
    picture = picture.reshape(size, FINE, size, FINE, 3).mean((1, 3))
    return np.clip(picture * light, 0, 255).round().astype(np.uint8), landmarks


def draw_clip(rows: list[dict], **common) -> tuple[np.ndarray, np.ndarray]:
    """Frames (T, size, size, 3) and landmarks (T, 5, 2), one drawn face per row."""
    drawn = [draw_face(**{**common, **row}) for row in rows]
    frames, landmarks = zip(*drawn, strict=True)
    return np.stack(frames), np.stack(landmarks)


def _paint(picture: np.ndarray, where: np.ndarray, colour: np.ndarray) -> None:
    picture[where] = colour
