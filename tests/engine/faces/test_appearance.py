"""Faces that cannot be seen, cuts to another person and frozen pictures are told."""

from __future__ import annotations

import numpy as np
import pytest

from dfm_engine.clip import Box
from dfm_engine.errors import FaceError
from dfm_engine.faces.appearance import (
    check_motion,
    check_one_person,
    cut_measures,
    is_visible,
    motion,
    thumbnail,
)


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    data = pytest.importorskip("skimage.data", reason="scikit-image is not installed")
    return data.astronaut()


@pytest.fixture(scope="module")
def face(portrait: np.ndarray) -> np.ndarray:
    return thumbnail(portrait, Box(181.05, 62.16, 267.75, 172.05))


@pytest.fixture(scope="module")
def somebody_else(face: np.ndarray) -> np.ndarray:
    """The face in other colours and turned over: another picture of like contrast."""
    return 255 - face[::-1, :, ::-1]


def moved(face: np.ndarray, steps: int) -> list[np.ndarray]:
    return [np.roll(face, shift % 3, axis=1) for shift in range(steps)]


def test_a_thumbnail_is_the_box_resized(portrait: np.ndarray) -> None:
    small = thumbnail(portrait, Box(100, 50, 132, 82))
    np.testing.assert_array_equal(small, portrait[50:82, 100:132])


def test_a_whole_sharp_face_is_visible(face: np.ndarray) -> None:
    assert is_visible(face)
    assert is_visible(face // 3)  # dim, but there


def test_hidden_black_and_blurred_faces_are_not(face: np.ndarray) -> None:
    half = face.copy()
    half[16:] = 128
    assert not is_visible(half)
    assert not is_visible(half[::-1])
    assert not is_visible(face // 16)
    blurred = face.astype(float)
    for _ in range(6):  # a wide blur: repeated means of five
        for axis in (0, 1):
            shifted = [np.roll(blurred, shift, axis) for shift in (-2, -1, 0, 1, 2)]
            blurred = np.mean(shifted, axis=0)
    assert not is_visible(blurred.astype(np.uint8))
    assert not is_visible(np.zeros((32, 32, 3), np.uint8))


def test_a_cut_to_another_face_is_refused(face: np.ndarray, somebody_else: np.ndarray) -> None:
    looks = moved(face, 4) + moved(somebody_else, 4)
    with pytest.raises(FaceError, match="between frames 15 and 20") as caught:
        check_one_person(looks, [5 * k for k in range(8)], path="clip.mp4")
    assert caught.value.kind == "identity-change"


def test_motion_light_and_a_flash_are_no_cut(face: np.ndarray) -> None:
    dimmed = [(look * (1 - 0.1 * k)).astype(np.uint8) for k, look in enumerate(moved(face, 8))]
    check_one_person(dimmed, list(range(8)), path="clip.mp4")
    lamp = [(look * 0.5).astype(np.uint8) for look in moved(face, 4)] + moved(face, 4)
    assert cut_measures(lamp, 4)[0] < 0.1
    check_one_person(lamp, list(range(8)), path="clip.mp4")
    flash = moved(face, 8)
    flash[4] = np.clip(flash[4].astype(int) + 90, 0, 255).astype(np.uint8)
    check_one_person(flash, list(range(8)), path="clip.mp4")


def test_equal_looks_measure_nothing(face: np.ndarray) -> None:
    assert cut_measures([face, face], 1) == (0.0, pytest.approx(1.0))
    assert motion([face, face]) == 0.0


def test_a_frozen_face_is_refused(face: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    noisy = [
        np.clip(face + rng.integers(-1, 2, face.shape), 0, 255).astype(np.uint8) for _ in "abc"
    ]
    with pytest.raises(FaceError, match="use the file as a still") as caught:
        check_motion(noisy, path="clip.mp4")
    assert caught.value.kind == "no-motion"
    check_motion(moved(face, 3), path="clip.mp4")


def test_one_look_is_no_evidence_of_stillness(face: np.ndarray) -> None:
    check_motion([face], path="clip.mp4")
    check_one_person([face], [0], path="clip.mp4")
