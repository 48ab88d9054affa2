"""Curves from landmarks and frames, and the look that finds them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from dfmtest_drawn_face import draw_clip

from dfm_engine.clip import Box, FaceTrack
from dfm_engine.errors import ShapeError
from dfm_engine.faces.mtcnn import Face
from dfm_engine.screen import extract_signals, look, measure

# The head of the pose formulas, in units of e: x to image right, y down, z towards the camera.
HEAD = np.array(
    [(-0.5, 0, 0), (0.5, 0, 0), (0, 0.571, 0.55), (-0.414, 1.154, 0.12), (0.414, 1.154, 0.12)]
)


def project(yaw_deg=0.0, pitch_deg=0.0, roll_deg=0.0, head=HEAD) -> np.ndarray:
    """Landmarks (5, 2) of the turned head, e = 40 px, about (80, 70)."""
    yaw, pitch, roll = np.radians([yaw_deg, pitch_deg, roll_deg])
    x, y, z = head.T
    y, z = y * np.cos(pitch) + z * np.sin(pitch), z * np.cos(pitch) - y * np.sin(pitch)
    x, z = x * np.cos(yaw) + z * np.sin(yaw), z * np.cos(yaw) - x * np.sin(yaw)
    x, y = x * np.cos(roll) - y * np.sin(roll), x * np.sin(roll) + y * np.cos(roll)
    return np.stack([80 + 40 * x, 70 + 40 * y], 1)


def track_of(points: np.ndarray) -> FaceTrack:
    total = len(points)
    every = np.ones(total, bool)
    return FaceTrack(
        boxes=np.zeros((total, 4), np.float32),
        landmarks=points.astype(np.float32),
        scores=np.ones(total, np.float32),
        found=every,
        looked_at=every,
    )


def signals_of(points: list[np.ndarray]):
    frames = np.full((len(points), 160, 160, 3), 128, np.uint8)
    return extract_signals(frames, track_of(np.stack(points)))


@pytest.mark.parametrize("angle", [-20.0, -8.0, 8.0, 20.0])
@pytest.mark.parametrize("channel", ["yaw", "pitch", "roll"])
def test_a_turned_head_shows_in_its_own_angle(channel, angle):
    turned = {f"{channel}_deg": angle}
    signals = signals_of([project()] * 5 + [project(**turned)] * 5)
    # Weak perspective: exact for one angle up to the depth constants the formulas share.
    assert signals.change(channel)[-1] == pytest.approx(angle, abs=1.0)
    for other in {"yaw", "pitch", "roll"} - {channel}:
        assert abs(signals.change(other)[-1]) < 1.5


def test_a_nod_is_no_smile_and_moves_no_corner():
    signals = signals_of([project()] * 5 + [project(pitch_deg=15)] * 5)
    assert abs(signals.change("corner_lift")[-1]) < 0.02
    assert abs(signals.change("mouth_width")[-1]) < 0.01


def test_a_smile_widens_and_lifts_and_leaves_the_pitch_alone():
    smiling = HEAD.copy()
    smiling[3:, 0] *= 1.15
    smiling[3:, 1] -= 0.1
    signals = signals_of([project()] * 5 + [project(head=smiling)] * 5)
    assert signals.change("mouth_width")[-1] == pytest.approx(0.15, abs=0.005)
    assert signals.change("corner_lift")[-1] == pytest.approx(0.1, abs=0.005)
    assert signals.change("pitch")[-1] == pytest.approx(0, abs=0.5)


def test_a_turned_head_does_not_widen_the_mouth():
    signals = signals_of([project()] * 5 + [project(yaw_deg=20)] * 5)
    assert abs(signals.change("mouth_width")[-1]) < 0.01


def test_eyes_are_shares_of_the_open_eye_of_the_clip():
    eyes = [(1.0, 1.0)] * 8 + [(0.05, 0.05)] * 3 + [(1.0, 1.0)] * 9
    frames, points = draw_clip([{"eyes": pair} for pair in eyes])
    signals = extract_signals(frames, track_of(points))
    assert signals.change("eyes")[9] < -0.6
    np.testing.assert_allclose(signals.change("eyes")[:8], 0, atol=0.02)


def test_teeth_before_a_beard_open_the_mouth_although_it_grows_no_darker():
    rows = [{}] * 6 + [{"mouth": 0.25, "teeth": 0.25}] * 6
    frames, points = draw_clip(rows, beard=True)
    signals = extract_signals(frames, track_of(points))
    assert signals.mouth_dark[-1] < signals.mouth_dark[0]
    assert signals.change("mouth_open")[-1] > 0.15


def test_frames_that_stand_still_are_counted():
    frames, points = draw_clip([{}] * 10)
    frames[5:, 0, 0] = np.arange(5)[:, None]
    signals = extract_signals(frames, track_of(points))
    assert signals.still_share == pytest.approx(4 / 9)  # the first five are alike, no others are


def test_a_track_of_another_length_is_refused():
    frames, points = draw_clip([{}] * 4)
    with pytest.raises(ShapeError, match="4 frames and a track of 3"):
        extract_signals(frames, track_of(points[:3]))


@dataclass
class ScriptedDetector:
    """Finds what it is told: landmarks by frame, read off the first pixel's red value."""

    points: np.ndarray
    missing: frozenset[int] = frozenset()
    jitter: float = 0.0
    false_face: bool = False
    calls: list[int] = field(default_factory=list)

    def detect(self, frames, *, min_face_px=20.0):
        found = []
        for frame in frames:
            index = int(frame[0, 0, 0])
            self.calls.append(index)
            if index in self.missing:
                found.append([Face(Box(0, 0, 50, 50), np.zeros((5, 2), np.float32), 0.6)])
                continue
            points = self.points[index].astype(np.float32)
            x, y = points.mean(0)
            faces = [Face(Box(x - 40, y - 50, x + 40, y + 50), points, 0.999)]
            if self.false_face:  # larger, but far less certain
                other = np.full((5, 2), 5, np.float32)
                faces.insert(0, Face(Box(0, 0, 90, 110), other, 0.91))
            found.append(faces)
        return found

    def landmarks_in(self, frames, squares):
        noise = np.random.default_rng(0)
        each = squares.shape[1]
        points = np.stack([self.points[int(frame[0, 0, 0])] for frame in frames])
        points = np.repeat(points[:, None], each, 1)
        return (points + noise.normal(0, self.jitter, points.shape)).astype(np.float32)


def numbered(total: int) -> np.ndarray:
    frames = np.full((total, 160, 160, 3), 128, np.uint8)
    frames[:, 0, 0, 0] = np.arange(total)
    return frames


def moving(total: int) -> np.ndarray:
    return project()[None] + np.arange(total)[:, None, None] * np.array([0.5, 0.0])


def test_every_nth_frame_is_looked_at_and_the_last_one():
    detector = ScriptedDetector(moving(12))
    track = look(numbered(12), detector, every_n=4)
    assert track is not None
    assert detector.calls == [0, 4, 8, 11]
    assert track.looked_at.nonzero()[0].tolist() == [0, 4, 8, 11]
    # A steady motion is its own interpolation, but for the median at the two ends.
    np.testing.assert_allclose(track.landmarks[4:9], moving(12)[4:9], atol=1e-3)


def test_a_frame_without_a_face_counts_and_is_bridged():
    track = look(numbered(21), ScriptedDetector(moving(21), missing=frozenset({8, 10})))
    assert track is not None
    assert track.found_share == pytest.approx(9 / 11)
    assert not track.found[8]
    np.testing.assert_allclose(track.landmarks[9], moving(21)[9], atol=1e-3)


def test_a_large_uncertain_face_is_not_taken_for_the_face():
    track = look(numbered(9), ScriptedDetector(moving(9), false_face=True))
    assert track is not None
    np.testing.assert_allclose(track.scores, 0.999, atol=1e-6)


def test_several_readings_are_averaged():
    quiet = look(numbered(41), ScriptedDetector(np.repeat(project()[None], 41, 0), jitter=2.0))
    assert quiet is not None
    # Six readings, then a median of three: well under the 2 pixels of one reading.
    assert (quiet.landmarks[quiet.found] - project()).std() < 0.9


def test_no_face_anywhere_is_none():
    detector = ScriptedDetector(moving(5), missing=frozenset(range(5)))
    assert look(numbered(5), detector) is None
    assert measure(numbered(5), detector) is None
    assert look(numbered(0), detector) is None
