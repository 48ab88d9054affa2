"""The source frame faces the camera and is sharp."""

from __future__ import annotations

import numpy as np
import pytest
from dfmtest_faces import FIVE, make_track

from dfm_engine.clip import Box
from dfm_engine.errors import FaceError
from dfm_engine.faces.source_frame import choose_source_frame, sharpness
from dfm_engine.recipe import Sources

BOX = Box(-50.0, -50.0, 150.0, 150.0)  # frames of 100 show it at half size
ALL = np.tile([0.0, 0.0, 100.0, 100.0], (5, 1))


def turned(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> np.ndarray:
    """Landmarks in a box of 100, the nose moved for yaw and pitch, all turned for roll."""
    five = FIVE * 100
    five[2] += [40 * 0.55 * np.tan(np.radians(yaw)), 12 * np.tan(np.radians(pitch))]
    angle = np.radians(roll)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (five - 50) @ turn.T + 50


@pytest.fixture
def frames() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.tile(rng.integers(0, 256, (1, 100, 100, 3), dtype=np.uint8), (5, 1, 1, 1))


def choose(frames: np.ndarray, landmarks: list, settings: Sources | None = None, found=None):
    track = make_track(ALL, np.stack(landmarks), found)
    return choose_source_frame(frames, track, BOX, settings=settings, path="clip.mp4")


def test_the_most_frontal_frame_is_chosen(frames: np.ndarray) -> None:
    marks = [turned(20), turned(-12), turned(3), turned(6, 9), turned(9)]
    chosen = choose(frames, marks, Sources())
    assert chosen.index == 2
    assert chosen.scores["yaw_deg"] == pytest.approx(3, abs=0.1)
    assert chosen.scores["score"] == pytest.approx(
        np.cos(np.radians(3)) * np.cos(np.radians(chosen.scores["pitch_deg"])), abs=1e-3
    )


def test_a_blurred_frame_is_not_chosen(frames: np.ndarray) -> None:
    frames = frames.copy()
    frames[2] = frames[2].mean(axis=(0, 1), keepdims=True)  # no detail at all
    marks = [turned(8), turned(-7), turned(0), turned(6), turned(9)]
    assert choose(frames, marks, Sources()).index == 3


def test_noise_does_not_choose_the_frame(frames: np.ndarray) -> None:
    quiet = (frames // 4).copy()
    quiet[0] = frames[0]  # 16 times the sharpness of the others
    marks = [turned(9), turned(7), turned(1), turned(7), turned(7)]
    assert choose(quiet, marks, Sources()).index == 2


@pytest.mark.parametrize("angles", [{"yaw": 14}, {"pitch": 25}, {"roll": -14}])
def test_a_clip_without_a_frontal_frame_is_refused(frames: np.ndarray, angles: dict) -> None:
    with pytest.raises(FaceError, match="within 10 degrees of yaw") as caught:
        choose(frames, [turned(**angles)] * 5, Sources())
    assert caught.value.kind == "not-frontal"
    assert choose(frames, [turned(**angles)] * 5, Sources(require_frontal=False)).index == 0
    assert choose(frames, [turned(**angles)] * 5, None).index == 0


def test_a_frame_beyond_a_limit_loses_to_one_within(frames: np.ndarray) -> None:
    marks = [turned(0, 0, 11), turned(9), turned(0, 0, -30), turned(0, 0, 12), turned(0, 0, 11)]
    assert choose(frames, marks, Sources()).index == 1


def test_frames_without_a_found_face_are_no_candidates(frames: np.ndarray) -> None:
    marks = [turned(8), turned(0), turned(0), turned(0), turned(5)]
    found = [True, False, False, False, True]
    assert choose(frames, marks, Sources(), found).index == 4


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    frame = np.zeros((9, 9, 3), np.uint8)
    frame[4, 4] = 100
    # Within 7 x 7 inner pixels: one of -400, four of 100, the rest 0.
    values = np.zeros(49)
    values[:5] = [-400, 100, 100, 100, 100]
    assert sharpness(frame, Box(0, 0, 9, 9)) == pytest.approx(values.var(), rel=1e-4)
    assert sharpness(frame, Box(-3, -3, 2.5, 2.5)) == 0.0
    assert sharpness(frame, Box(20, 20, 30, 30)) == 0.0
