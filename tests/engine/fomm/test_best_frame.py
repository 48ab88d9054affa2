from __future__ import annotations

import numpy as np
import pytest

from dfm_engine.errors import DfmError, ShapeError
from dfm_engine.fomm.best_frame import find_best_frame, normalise_landmarks, playback_runs

FRONTAL = np.array([[30, 40], [70, 40], [50, 60], [35, 80], [65, 80]], dtype=np.float32)


def turned(amount: float) -> np.ndarray:
    """The nose and the mouth corners move sideways, as when a head turns."""
    return FRONTAL + amount * np.array([[0, 0], [0, 0], [9, 0], [3, 0], [3, 0]])


def test_the_nearest_pose_wins_whatever_its_place_and_size() -> None:
    driving = np.stack([turned(1), turned(-0.6), 3.5 * turned(0.1) + [200, -40], turned(0.5)])
    assert find_best_frame(FRONTAL, driving) == 2
    assert find_best_frame(turned(0.5), driving) == 3


def test_of_equals_the_first_wins() -> None:
    assert find_best_frame(FRONTAL, np.stack([turned(1), FRONTAL, turned(1), FRONTAL])) == 1


def test_frames_without_a_face_are_passed_over() -> None:
    lost, flat = np.full((5, 2), np.nan), np.stack([np.arange(5.0), np.zeros(5)], axis=1)
    assert find_best_frame(FRONTAL, np.stack([lost, flat, turned(2), lost])) == 2


def test_normalised_landmarks_are_centred_with_a_hull_of_area_one() -> None:
    from scipy.spatial import ConvexHull

    normal = normalise_landmarks(np.stack([FRONTAL, 7 * turned(1) + 3]))
    np.testing.assert_allclose(normal.mean(axis=1), 0, atol=1e-12)
    assert [ConvexHull(points).volume for points in normal] == pytest.approx([1, 1])


def test_distance_is_the_sum_of_squares_not_of_magnitudes() -> None:
    # one far point against many near ones: squares prefer the many
    far, near = FRONTAL.copy(), FRONTAL.copy()
    far[2] += [12, 0]
    near[:] += 4 * np.array([[0, 1], [0, -1], [1, 0], [0, 1], [0, -1]])
    normal = normalise_landmarks(np.stack([FRONTAL, far, near]))
    magnitudes = np.abs(normal[1:] - normal[0]).sum(axis=(1, 2))
    assert magnitudes[0] < magnitudes[1]
    assert find_best_frame(FRONTAL, np.stack([far, near])) == 1


def test_no_usable_landmarks_are_an_error() -> None:
    lost = np.full((3, 5, 2), np.nan)
    with pytest.raises(DfmError, match="no driving landmarks"):
        find_best_frame(FRONTAL, lost)
    with pytest.raises(DfmError, match="no source landmarks"):
        find_best_frame(lost[0], FRONTAL[None])
    with pytest.raises(ShapeError, match=r"got \(5, 2\) and \(5, 2\)"):
        find_best_frame(FRONTAL, FRONTAL)


@pytest.mark.parametrize("best", [0, 2, 4])
def test_the_two_published_runs_join_to_every_frame_once(best: int) -> None:
    forward, backward = playback_runs(best, 5)
    assert forward[0] == backward[0] == best
    assert backward[::-1] + forward[1:] == [0, 1, 2, 3, 4]


def test_a_best_frame_outside_the_clip_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"within 0\.\.4"):
        playback_runs(5, 5)
