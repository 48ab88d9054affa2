"""The subject of a clip is one face that stays, chosen the same way each time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from dfmtest_faces import make_face, upside_down

from dfm_engine.errors import FaceError
from dfm_engine.faces.mtcnn import Face
from dfm_engine.faces.track import JUMP_PRICE, LOOKS_BRIDGED, _jumps, choose_faces, track_face
from dfm_engine.recipe import Faces

SETTINGS = Faces()


def track(detections: list[list[Face]], *, every_n: int = 5, settings: Faces = SETTINGS):
    frames = [every_n * look for look in range(len(detections))]
    return track_face(detections, frames, frames[-1] + 1, settings=settings, path="clip.mp4")


def test_a_large_false_box_on_a_few_looks_loses() -> None:
    looks = [[make_face(50 + k, 60)] for k in range(10)]
    for k in (3, 7):
        looks[k].append(make_face(200, 20, 260, score=0.95))
    chosen = choose_faces(looks, settings=SETTINGS)
    assert [face.box.x0 for face in chosen if face] == [50 + k for k in range(10)]


def test_of_two_steady_faces_the_larger_is_followed() -> None:
    looks = [[make_face(20, 20, 90), make_face(300 - 3 * k, 20, 120)] for k in range(6)]
    assert all(face and face.box.width == 120 for face in choose_faces(looks, settings=SETTINGS))


def test_the_subject_stays_though_scores_alternate() -> None:
    looks = [
        [make_face(20, 20, score=0.95 + 0.04 * (k % 2)), make_face(300, 20, score=0.985)]
        for k in range(8)
    ]
    chosen = choose_faces(looks, settings=SETTINGS)
    assert {face.box.x0 for face in chosen if face} == {300}


def test_the_choice_does_not_depend_on_the_order_of_detections() -> None:
    rng = np.random.default_rng(3)
    looks = [
        [make_face(*rng.uniform(0, 400, 2), rng.uniform(60, 120)) for _ in range(4)]
        for _ in range(9)
    ]
    first = choose_faces(looks, settings=SETTINGS)
    for faces in looks:
        rng.shuffle(faces)  # type: ignore[arg-type]
    again = choose_faces(looks, settings=SETTINGS)
    assert [f and f.box for f in first] == [f and f.box for f in again]


def test_equal_faces_tie_to_the_left() -> None:
    looks = [[make_face(300, 20), make_face(20, 20)] for _ in range(4)]
    assert {face.box.x0 for face in choose_faces(looks, settings=SETTINGS) if face} == {20}


def test_the_subject_is_found_again_after_missed_looks() -> None:
    looks = [[make_face(40, 40)], [], [], [make_face(48, 40), make_face(400, 40, 105)], [], []]
    chosen = choose_faces(looks, settings=SETTINGS)
    assert [face.box.x0 if face else None for face in chosen] == [40, None, None, 48, None, None]


def _worth(path: list[Face | None], largest: float) -> float:
    """The sum that the choice maximises, written out."""
    total, last = 0.0, None
    for now, face in enumerate(path):
        if face is None:
            continue
        side = np.sqrt(face.box.width * face.box.height)
        total += face.score * side / largest
        if last is not None:
            gap = now - last[0]
            centre, sides = [], []
            for one in (last[1], face):
                centre.append(np.array([[one.box.x0 + one.box.x1, one.box.y0 + one.box.y1]]) / 2)
                sides.append(np.sqrt([one.box.width * one.box.height]))
            jump = 1.0
            if gap <= LOOKS_BRIDGED + 1:
                jump = float(_jumps(centre[0], sides[0], centre[1], sides[1], gap)[0, 0])
            total -= JUMP_PRICE * jump
        last = now, face
    return total


@pytest.mark.parametrize("seed", range(12))
def test_no_other_choice_is_worth_more(seed: int) -> None:
    """Against every path there is, on small cases."""
    rng = np.random.default_rng(seed)
    looks = [
        [
            make_face(*rng.uniform(0, 250, 2), rng.uniform(60, 130), score=rng.uniform(0.9, 1))
            for _ in range(rng.integers(0, 4))
        ]
        for _ in range(5)
    ]
    sides = [face.box.width for faces in looks for face in faces]
    if not sides:
        return
    every = itertools.product(*[[None, *faces] for faces in looks])
    best = max(_worth(list(path), max(sides)) for path in every)
    chosen = choose_faces(looks, settings=SETTINGS)
    assert abs(_worth(chosen, max(sides)) - best) < 1e-9


def test_frames_between_looks_are_interpolated() -> None:
    looks = [[make_face(100, 50)], [make_face(110, 60, 120, score=0.95)], [make_face(110, 60, 120)]]
    result = track(looks, every_n=4)
    assert len(result) == 9
    np.testing.assert_allclose(result.boxes[1], [102.5, 52.5, 207.5, 157.5])
    np.testing.assert_allclose(result.boxes[4], [110, 60, 230, 180])
    middle = (looks[0][0].landmarks + looks[1][0].landmarks) / 2
    np.testing.assert_allclose(result.landmarks[2], middle, atol=1e-4)
    np.testing.assert_allclose(result.scores[[0, 2, 4]], [0.99, 0.97, 0.95], atol=1e-6)
    assert result.looked_at.tolist() == [True, False, False, False] * 2 + [True]
    assert result.found.tolist() == result.looked_at.tolist()


def test_a_missed_look_is_bridged_and_marked() -> None:
    looks = [[make_face(100 + k, 50)] for k in range(11)]
    looks[5] = []
    result = track(looks)
    assert not result.found[25]
    assert result.looked_at[25]
    np.testing.assert_allclose(result.boxes[25], [105, 50, 205, 150])
    assert result.found_share == pytest.approx(10 / 11)


def test_a_face_that_appears_late_holds_its_place_before() -> None:
    result = track([[], [], [make_face(10, 20)], [make_face(10, 20)], [make_face(10, 20)]])
    assert result.found.nonzero()[0].tolist() == [10, 15, 20]
    np.testing.assert_allclose(result.boxes[0], [10, 20, 110, 120])


CASES = {
    "nothing found": ([[]] * 6, "no-face", "0 of 6 looked-at"),
    "a low score": ([[make_face(0, 0, score=0.89)]] * 6, "no-face", "0 of 6"),
    "one stray detection": ([[], [], [make_face(0, 0)], [], [], []], "no-face", "1 of 6"),
    "upside down": ([[upside_down(make_face(0, 0))]] * 6, "no-face", "0 of 6"),
    "too small": ([[make_face(5, 5, 50)]] * 6, "face-too-small", "spans 60 pixels, 64 are"),
    "leaves": ([[make_face(0, 0)]] * 4 + [[]] * 2, "face-lost", "last on frame 15 of 26"),
    "comes very late": ([[]] * 4 + [[make_face(0, 0)]] * 3, "face-lost", "first on frame 20"),
    "comes and goes": ([[make_face(0, 0)], []] * 5, "face-lost", "5 of 10"),
}


@pytest.mark.parametrize("case", CASES)
def test_unusable_clips_are_refused_by_kind(case: str) -> None:
    detections, kind, message = CASES[case]
    with pytest.raises(FaceError, match=message) as caught:
        track(list(detections))
    assert caught.value.kind == kind


def test_limits_come_from_the_recipe() -> None:
    looks = [[make_face(5, 5, 50, score=0.8)], [], [make_face(5, 5, 50, score=0.8)]]
    settings = Faces(min_score=0.7, min_face_px=60.0, min_found_share=0.6)
    assert track(looks, settings=settings).found_share == pytest.approx(2 / 3)
    with pytest.raises(FaceError, match=r"60 pixels, 60\.1 are needed"):
        track(looks, settings=Faces(min_score=0.7, min_face_px=60.1, min_found_share=0.6))


def test_one_frame_is_a_clip() -> None:
    assert len(track([[make_face(3, 4)]])) == 1
