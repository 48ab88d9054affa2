"""Patch measurements on drawn faces, whose eyes, mouth and brows are known."""

from __future__ import annotations

import numpy as np
import pytest
from dfmtest_drawn_face import SKIN, draw_clip

from dfm_engine.screen import patches


def open_eyes(**common) -> tuple[np.ndarray, np.ndarray]:
    rows = [{"eyes": (1.0, 1.0)}, {"eyes": (0.5, 1.0)}, {"eyes": (0.05, 1.0)}]
    return patches.eye_openness(patches.planes(*draw_clip(rows, **common)))


LOOKS = [
    {},
    {"roll_deg": 25.0},
    {"unit": 22.0, "size": 96},
    {"unit": 100.0, "size": 400},  # averaged down before it is sampled
    {"light": 0.45},
    {"skin": SKIN * 0.4},
]


@pytest.mark.parametrize("common", LOOKS)
def test_a_closing_eye_loses_its_openness_and_the_other_keeps_it(common):
    left, right = open_eyes(**common)
    shares = left / left[0]
    assert 0.35 < shares[1] < 0.85
    assert shares[2] < 0.3
    np.testing.assert_allclose(right / right[0], 1.0, atol=0.02)


@pytest.mark.parametrize(("unit", "factor"), [(40.0, 1), (70.0, 2), (100.0, 3)])
def test_planes_are_block_means_of_grey_and_cool(unit: float, factor: int):
    frames, landmarks = draw_clip([{}, {"mouth": 0.2}], unit=unit, size=301)
    found = patches.planes(frames, landmarks)
    side = 301 // factor
    pixels = frames[:, : side * factor, : side * factor].astype(np.float64)
    means = pixels.reshape(2, side, factor, side, factor, 3).mean((2, 4))
    np.testing.assert_allclose(found.grey, means @ [0.299, 0.587, 0.114], atol=1e-4)
    np.testing.assert_allclose(found.cool, means @ [0.0, 0.5, 0.5], atol=1e-4)
    np.testing.assert_allclose(found.axes.unit, unit / factor, rtol=1e-3)


def test_openness_does_not_depend_on_light():
    bright, dim = open_eyes()[0], open_eyes(light=0.5)[0]
    np.testing.assert_allclose(dim / bright, 1.0, atol=0.05)


@pytest.mark.parametrize("common", LOOKS)
def test_an_opening_mouth_grows_dark(common):
    rows = [{"mouth": 0.0}, {"mouth": 0.15}, {"mouth": 0.35}]
    dark, teeth = patches.mouth_interior(patches.planes(*draw_clip(rows, **common)))
    # The patch is 0.4 by 0.7: an opening of height h covers h / 0.7 of it.
    np.testing.assert_allclose(dark[1:] - dark[0], [0.15 / 0.7, 0.35 / 0.7], atol=0.06)
    assert dark[0] < 0.05
    np.testing.assert_allclose(teeth, 0, atol=0.01)


def test_teeth_are_counted_apart_and_on_any_skin():
    rows = [{}, {"mouth": 0.3, "teeth": 0.12}]
    for skin in (SKIN, SKIN * 0.5):
        dark, teeth = patches.mouth_interior(patches.planes(*draw_clip(rows, skin=skin)))
        assert teeth[1] - teeth[0] == pytest.approx(0.12 / 0.7, abs=0.06)
        assert dark[1] - dark[0] == pytest.approx(0.18 / 0.7, abs=0.06)


def test_a_beard_is_dark_all_along():
    rows = [{}, {"mouth": 0.3, "teeth": 0.15}]
    dark, teeth = patches.mouth_interior(patches.planes(*draw_clip(rows, beard=True)))
    assert dark[0] > 0.2
    assert teeth[1] - teeth[0] > 0.1


@pytest.mark.parametrize("common", LOOKS)
def test_raised_brows_are_measured_in_eye_distances(common):
    lifts = [0.0, 0.0, 0.0, 0.06, 0.13, 0.2, -0.06]
    pictures = patches.planes(*draw_clip([{"brow": lift} for lift in lifts], **common))
    found = patches.brow_lift(pictures, neutral=slice(0, 3))
    np.testing.assert_allclose(found, lifts, atol=0.03)


def test_a_blurred_face_is_less_sharp():
    frames, landmarks = draw_clip([{}, {}])
    soft = frames.astype(np.float64)
    for axis in (1, 2):
        soft = (np.roll(soft, 1, axis) + 2 * soft + np.roll(soft, -1, axis)) / 4
    sharp = patches.sharpness(patches.planes(frames, landmarks))
    dull = patches.sharpness(patches.planes(soft.astype(np.uint8), landmarks))
    assert dull < 0.75 * sharp


def test_a_face_at_the_border_is_measured_on_repeated_pixels():
    frames, landmarks = draw_clip([{}, {}])
    shifted = landmarks - np.array([landmarks[0, 0, 0] + 10, 0.0])  # the left eye is outside
    left, right = patches.eye_openness(patches.planes(frames, shifted))
    assert np.isfinite(left).all()
    assert np.isfinite(right).all()
