"""The face stage on the collection of unusual files: one test per file whose matter is its face."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dfm_engine.errors import FaceError
from dfm_engine.faces.check import check_faces
from dfm_engine.faces.framing import frame_clip
from dfm_engine.faces.mtcnn import Mtcnn
from dfm_engine.recipe import BuildRecipe, Clips

# Where the collection leaves the rule to us, this is ours (docs/inputs.md); None is accepted.
RULES = {
    "noface-pattern.mp4": "no-face",
    "noface-animal.mp4": "no-face",
    "noface-black.mp4": "no-face",
    "two-faces-same-size.mp4": None,
    "big-and-small-face.mp4": None,
    "crowd.mp4": "face-too-small",
    "tiny-face-12px.mp4": "face-too-small",
    "tiny-face-24px.mp4": "face-too-small",
    "face-leaves-frame.mp4": "face-lost",
    "face-upside-down.mp4": "no-face",
    "face-sideways.mp4": "no-face",
    "face-cut-in-half.mp4": "no-face",
    "black-then-face.mp4": None,
    "scene-cut-two-people.mp4": "identity-change",
    "frozen-face.mp4": "no-motion",
    "face-very-dark.mp4": "no-face",
    "face-blurred.mp4": "no-face",
}
# Fine faces in unusual files: the face stage must not stand in their way.
ACCEPTED = [
    "ok-moov-front.mp4",
    "single-frame.mp4",
    "rotate90.mp4",
    "sar-2to1.mp4",
    "h264-gray.mp4",
    "animated.gif",
    "ffv1.mkv",
    "still-palette.png",
    "still-alpha.png",
]


def test_every_file_of_the_group_has_its_rule(shared: Path) -> None:
    manifest = json.loads((shared / "bad-inputs" / "manifest.json").read_text())
    group = {row["file"]: row for row in manifest["files"] if row["group"] == "faces"}
    assert group.keys() == RULES.keys()
    for name, row in group.items():
        if row["expect"] != "policy":
            assert RULES[name] == row.get("error"), name


@pytest.mark.parametrize(("name", "kind"), RULES.items())
def test_each_face_gets_its_verdict(
    detector: Mtcnn, shared: Path, name: str, kind: str | None
) -> None:
    path = shared / "bad-inputs" / name
    found = None
    try:
        check_faces(path, is_still=False, detector=detector, recipe=BuildRecipe())
    except FaceError as error:
        found = error.kind
    assert found == kind


@pytest.mark.parametrize("name", ACCEPTED)
def test_faces_in_other_files_are_accepted(detector: Mtcnn, shared: Path, name: str) -> None:
    found = check_faces(
        shared / "bad-inputs" / name,
        is_still=name.startswith("still"),
        detector=detector,
        recipe=BuildRecipe(),
    )
    assert found["most_faces"] == 1
    assert found["warnings"] == []


def test_the_subject_among_two_alike_is_the_same_each_time(detector: Mtcnn, shared: Path) -> None:
    path = shared / "bad-inputs" / "two-faces-same-size.mp4"
    first = _framed(detector, path)
    assert first.box == _framed(detector, path).box
    assert first.box.x1 < 270  # the person on the left, whose box is larger


def test_a_face_after_black_is_framed_from_where_it_shows(detector: Mtcnn, shared: Path) -> None:
    framed = _framed(detector, shared / "bad-inputs" / "black-then-face.mp4")
    assert framed.first_frame == 15
    assert len(framed.frames) == 15
    assert framed.frames.mean(axis=(1, 2, 3)).min() > 50
    assert abs(framed.source_scores["yaw_deg"]) < 10


def _framed(detector: Mtcnn, path: Path):
    recipe = BuildRecipe()
    return frame_clip(
        path,
        detector=detector,
        size=64,
        limits=recipe.limits,
        faces=recipe.faces,
        clips=Clips(min_frames=2),
        sources=recipe.sources,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "driving-blink-eyes.mp4",
        "driving-embarrassment-glasses.mp4",
        "driving-lookup-slope-bt601.mp4",
        "driving-nod-yaw-surprise.mp4",
        "driving-open-mouth.mp4",
        "driving-smile.mp4",
        "source-landscape-bt709.mp4",
        "source-portrait-slope.mp4",
    ],
)
def test_real_clips_are_one_moving_person(detector: Mtcnn, shared: Path, name: str) -> None:
    found = check_faces(
        shared / "faces" / name, is_still=False, detector=detector, recipe=BuildRecipe()
    )
    assert found["found_share"] == 1.0
    assert found["first_frame"] == 0
