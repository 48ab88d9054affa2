"""Head pose: angles of a head turned in three dimensions come back, with the documented signs."""

from __future__ import annotations

import numpy as np
import pytest

from dfm_engine.errors import ShapeError
from dfm_engine.faces.pose import head_pose, is_upright

# The average head, in inter-ocular distances: x to image right, y down, z towards the camera.
HEAD = np.array(
    [[-0.5, 0, 0], [0.5, 0, 0], [0, 0.571, 0.55], [-0.414, 1.154, 0.12], [0.414, 1.154, 0.12]]
)


def project(yaw: float, pitch: float, roll: float, *, size: float = 60.0) -> np.ndarray:
    """Five landmarks of the head turned by yaw (to image right), pitch (down), roll (clockwise)."""
    a, b, c = np.radians([yaw, pitch, roll])
    turn = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    nod = np.array([[1, 0, 0], [0, np.cos(b), np.sin(b)], [0, -np.sin(b), np.cos(b)]])
    tilt = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    points = HEAD @ (tilt @ turn @ nod).T
    return points[:, :2] * size + [200.0, 150.0]


@pytest.mark.parametrize("angle", [-30.0, -12.0, 0.0, 12.0, 30.0])
def test_each_angle_alone_comes_back(angle: float) -> None:
    for axis, name in enumerate(("yaw_deg", "pitch_deg", "roll_deg")):
        angles = [0.0, 0.0, 0.0]
        angles[axis] = angle
        pose = head_pose(project(*angles))
        for other, key in enumerate(("yaw_deg", "pitch_deg", "roll_deg")):
            # Exact on this head, up to the weak coupling of a nodding nose and the mouth's depth.
            assert abs(getattr(pose, key) - angles[other]) < 0.01, (name, key)


def test_combined_angles_stay_within_the_documented_error() -> None:
    rng = np.random.default_rng(0)
    wanted = rng.uniform([-35, -25, -30], [35, 25, 30], (2000, 3))
    pose = head_pose(np.stack([project(*row) for row in wanted]))
    found = np.stack([pose.yaw_deg, pose.pitch_deg, pose.roll_deg], 1)
    mean = np.abs(found - wanted).mean(0)
    assert (mean < [4.0, 2.5, 4.0]).all(), mean


def test_signs_are_what_the_picture_shows() -> None:
    five = np.array([[100, 100], [160, 100], [130, 134], [105, 169], [155, 169]], float)
    nose_right, nose_down, clockwise = five.copy(), five.copy(), five.copy()
    nose_right[2, 0] += 10
    nose_down[2, 1] += 8
    clockwise[1, 1] += 10
    base = head_pose(five)
    assert head_pose(nose_right).yaw_deg > 10
    assert head_pose(nose_down).pitch_deg > base.pitch_deg + 5
    assert head_pose(clockwise).roll_deg > 5


def test_mirroring_turns_yaw_and_roll_around() -> None:
    five = project(15, 8, 12)
    mirrored = five[[1, 0, 2, 4, 3]] * [-1, 1] + [512, 0]
    pose, other = head_pose(five), head_pose(mirrored)
    np.testing.assert_allclose(
        [other.yaw_deg, other.pitch_deg, other.roll_deg],
        [-pose.yaw_deg, pose.pitch_deg, -pose.roll_deg],
        atol=1e-9,
    )


def test_pose_does_not_depend_on_size_or_place() -> None:
    small, large = head_pose(project(20, -10, 5, size=13)), head_pose(project(20, -10, 5, size=400))
    assert abs(small.yaw_deg - large.yaw_deg) < 1e-9
    assert abs(small.pitch_deg - large.pitch_deg) < 1e-9


def test_batches_keep_their_shape_and_frontality_falls_with_turning() -> None:
    batch = np.stack(
        [[project(0, 0, 0), project(25, 0, 0)], [project(0, 20, 0), project(0, 0, 25)]]
    )
    pose = head_pose(batch)
    assert pose.yaw_deg.shape == (2, 2)
    frontality = pose.frontality
    assert frontality[0, 0] > 0.999 > frontality[0, 1] > 0.85
    assert frontality[1, 0] < 0.96
    assert frontality[1, 1] > 0.98  # roll is no turning away


def test_coinciding_landmarks_give_finite_angles() -> None:
    pose = head_pose(np.full((5, 2), 7.0))
    assert np.isfinite([pose.yaw_deg, pose.pitch_deg, pose.roll_deg]).all()


@pytest.mark.parametrize(
    ("roll", "upright"), [(0, True), (45, True), (-45, True), (90, False), (180, False)]
)
def test_upright_faces_have_their_eyes_above_their_mouth(roll: float, upright: bool) -> None:
    assert is_upright(project(0, 0, roll)) == upright


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(\.\.\., 5, 2\)"):
        head_pose(np.zeros((4, 2)))
