"""Framing reads a file twice and gives the same cut of it each time."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from dfmtest_faces import make_face, upside_down
from PIL import Image

from dfm_engine.actions import Action
from dfm_engine.clip import DrivingClip, FramedClip, SourceClip
from dfm_engine.errors import FaceError, MediaError
from dfm_engine.faces.check import check_faces
from dfm_engine.faces.framing import crop_clip, frame_clip
from dfm_engine.faces.mtcnn import Face
from dfm_engine.faces.pictures import ClipRange, PyavReader
from dfm_engine.media.colour import RgbConverter
from dfm_engine.media.decode import read_frames
from dfm_engine.recipe import BuildRecipe, Clips, Faces, Limits, Sources
from dfm_kernels.crop import crop

WIDTH, HEIGHT, FRAMES = 320, 240, 23
SIDE = 100.0


def place(index: int) -> tuple[float, float]:
    """Where the made clip's face is on a frame."""
    return 60.0 + 4.0 * index, 70.0 + index


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Something to see in every half of every box."""
    rng = np.random.default_rng(2)
    blocks = rng.integers(30, 220, (HEIGHT // 8 + 8, WIDTH // 8 + 20, 3), dtype=np.uint8)
    return blocks.repeat(8, 0).repeat(8, 1)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, picture: np.ndarray) -> Path:
    """The picture sliding by; the frame's number is written into its top left corner."""
    frames = []
    for index in range(FRAMES):
        x, y = (round(v) for v in place(index))
        top, left = 32 - y // 4, 160 - x
        frames.append(picture[top : top + HEIGHT, left : left + WIDTH])
    return write(tmp_path_factory.mktemp("framing") / "slides.mp4", frames)


def write(path: Path, frames: list[np.ndarray]) -> Path:
    """Encode frames, each with its number in the top left corner."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index, frame in enumerate(frames):
            numbered = frame.copy()
            numbered[:16, :16] = 10 * index
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered, format="rgb24")))
        container.mux(stream.encode(None))
    return path


class KnownFaces:
    """A detector that reads the frame's number and answers from the plan."""

    def __init__(self, plan=None, *, width: int = WIDTH) -> None:
        self.plan = plan or (lambda index: [make_face(*place(index), SIDE)])
        self.width = width
        self.looked: list[tuple[int, float]] = []

    def detect(self, frames: np.ndarray, *, min_face_px: float = 20.0) -> list[list[Face]]:
        answers = []
        for frame in frames:
            left, right = (frame[4:12, part].mean() for part in (slice(4, 12), slice(-12, -4)))
            index = round((right if self.is_mirrored else left) / 10)
            self.looked.append((index, min_face_px))
            answers.append(self.plan(index))
        return answers

    is_mirrored = False


def frame(path: Path, detector, **changes) -> FramedClip:
    settings = {
        "size": 64,
        "limits": Limits(),
        "faces": Faces(),
        "clips": Clips(),
        "sources": Sources(),
    }
    return frame_clip(path, detector=detector, **{**settings, **changes})


def test_every_nth_frame_and_the_last_are_looked_at(clip: Path) -> None:
    detector = KnownFaces()
    framed = frame(clip, detector)
    assert [index for index, _ in detector.looked] == [0, 5, 10, 15, 20, 22]
    assert {smallest for _, smallest in detector.looked} == {0.6 * 64}
    assert framed.track.looked_at.nonzero()[0].tolist() == [0, 5, 10, 15, 20, 22]
    assert len(framed.track) == len(framed.frames) == FRAMES


@pytest.mark.parametrize(("every_n", "most"), [(5, 23), (4, 9), (1, 7), (50, 23)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_looking_shows_the_frames_that_reading_gives_and_converts_no_other(
    clip: Path, monkeypatch: pytest.MonkeyPatch, every_n: int, most: int, mirrored: bool
) -> None:
    clips, limits = Clips(max_frames=most), Limits()
    wanted = ClipRange(path=clip, mirrored=mirrored)
    all_frames = list(wanted.read(limits=limits, clips=clips))
    assert len(all_frames) == most
    converted: list[object] = []

    def convert(self: RgbConverter, frame: av.VideoFrame, **how: object) -> np.ndarray:
        converted.append(frame)
        return plain(self, frame, **how)

    plain = RgbConverter.convert
    monkeypatch.setattr(RgbConverter, "convert", convert)
    looked = list(PyavReader().look(wanted, every_n=every_n, limits=limits, clips=clips))
    assert [index for index, _ in looked] == sorted({*range(0, most, every_n), most - 1})
    for index, picture in looked:
        assert np.array_equal(picture, all_frames[index])
    assert len(converted) == len(looked)


def test_the_frames_are_the_one_crop_of_the_union_box(clip: Path) -> None:
    framed = frame(clip, KnownFaces())
    # Union of the boxes at 0 and 22: x 60..248, y 70..192; 1.2 times its longer side.
    assert framed.box.width == pytest.approx(1.2 * 188, abs=0.01)
    assert framed.box.x0 == pytest.approx(154 - 0.6 * 188, abs=0.01)
    pictures = np.stack(list(read_frames(clip)))
    expected = crop(torch.from_numpy(pictures), framed.box, 64).numpy()
    np.testing.assert_array_equal(framed.frames, expected)
    assert framed.track.boxes[7].tolist() == pytest.approx([88, 77, 188, 177], abs=1e-3)


def test_cropping_again_gives_the_same_frames(clip: Path) -> None:
    detector = KnownFaces(lambda i: [make_face(*place(i), SIDE)] if i >= 10 else [])
    framed = frame(clip, detector)
    assert framed.first_frame == 10
    listed = SourceClip(path=clip, sha256="0" * 64, identity="a", dataset="folder")
    again = crop_clip(
        listed,
        framed.box,
        size=64,
        limits=Limits(),
        clips=Clips(),
        first_frame=framed.first_frame,
    )
    np.testing.assert_array_equal(again, framed.frames)
    assert len(again) == FRAMES - 10


def test_a_late_face_cuts_off_what_lies_before(clip: Path) -> None:
    detector = KnownFaces(lambda i: [make_face(*place(i), SIDE)] if i >= 10 else [])
    framed = frame(clip, detector)
    pictures = np.stack(list(read_frames(clip)))[10:]
    np.testing.assert_array_equal(
        framed.frames, crop(torch.from_numpy(pictures), framed.box, 64).numpy()
    )
    assert framed.track.found[0]
    assert framed.track.boxes[0].tolist() == pytest.approx([100, 80, 200, 180])
    # Looks without a face are repeated at the finest search: too small is not nobody.
    assert [look for look in detector.looked if look[1] == 20.0] == [(0, 20.0), (5, 20.0)]


def test_a_mirrored_clip_is_flipped_for_detection_and_crop(clip: Path) -> None:
    straight = frame(clip, KnownFaces(), faces=Faces(enlarge=0.15))
    detector = KnownFaces(lambda i: [make_face(WIDTH - place(i)[0] - SIDE, place(i)[1], SIDE)])
    detector.is_mirrored = True
    flipped = frame(clip, detector, mirrored=True, faces=Faces(enlarge=0.15))
    assert flipped.box.x0 == pytest.approx(WIDTH - straight.box.x1, abs=2e-3)
    difference = flipped.frames[:, :, ::-1].astype(int) - straight.frames
    assert np.abs(difference).max() <= 1  # the box may lie 1/1024 px elsewhere
    listed = DrivingClip(path=clip, sha256="0" * 64, action=Action("smile"), mirrored=True)
    again = crop_clip(listed, flipped.box, size=64, limits=Limits(), clips=Clips())
    np.testing.assert_array_equal(again, flipped.frames)


def test_a_range_and_the_longest_clip_bound_the_frames(clip: Path) -> None:
    framed = frame(clip, KnownFaces(), start_s=0.2, end_s=0.6)
    assert len(framed.frames) == 10
    pictures = np.stack(list(read_frames(clip)))[5:15]
    np.testing.assert_array_equal(
        framed.frames, crop(torch.from_numpy(pictures), framed.box, 64).numpy()
    )
    assert len(frame(clip, KnownFaces(), clips=Clips(max_frames=12)).frames) == 12


def test_a_short_clip_is_refused(clip: Path) -> None:
    with pytest.raises(MediaError, match="7 frames at 25 frames/s, 8 are needed") as caught:
        frame(clip, KnownFaces(), end_s=0.28)
    assert caught.value.kind == "too-short"


def test_a_still_gives_one_frame(tmp_path: Path, picture: np.ndarray) -> None:
    path = tmp_path / "still.png"
    still = picture[:HEIGHT, :WIDTH].copy()
    still[:16, :16] = 0
    Image.fromarray(still).save(path)
    framed = frame(path, KnownFaces(), is_still=True)
    assert framed.frames.shape == (1, 64, 64, 3)
    expected = crop(torch.from_numpy(still)[None], framed.box, 64).numpy()
    np.testing.assert_array_equal(framed.frames, expected)
    assert framed.source_index == 0


def test_the_source_frame_is_measured(clip: Path) -> None:
    framed = frame(clip, KnownFaces())
    assert framed.track.found[framed.source_index]
    assert abs(framed.source_scores["yaw_deg"]) < 0.5
    assert framed.source_scores["sharpness"] > 0


@pytest.mark.parametrize(
    ("plan", "kind"),
    [
        (lambda i: [], "no-face"),
        (lambda i: [upside_down(make_face(*place(i), SIDE))], "no-face"),
        (lambda i: [make_face(*place(i), SIDE, score=0.8)], "no-face"),
        (lambda i: [make_face(*place(i), 40)], "face-too-small"),
        (lambda i: [make_face(*place(i), SIDE)] if i < 12 else [], "face-lost"),
    ],
)
def test_clips_without_a_usable_face_are_refused(clip: Path, plan, kind: str) -> None:
    with pytest.raises(FaceError) as caught:
        frame(clip, KnownFaces(plan))
    assert caught.value.kind == kind
    with pytest.raises(FaceError) as caught:
        check_faces(clip, is_still=False, detector=KnownFaces(plan), recipe=BuildRecipe())
    assert caught.value.kind == kind


def test_a_frozen_clip_is_refused(tmp_path: Path, picture: np.ndarray) -> None:
    path = write(tmp_path / "frozen.mp4", [picture[:HEIGHT, :WIDTH]] * 12)
    with pytest.raises(FaceError) as caught:
        frame(path, KnownFaces(lambda i: [make_face(60, 70, SIDE)]))
    assert caught.value.kind == "no-motion"


def test_a_clip_that_cuts_to_other_colours_is_refused(tmp_path: Path, picture: np.ndarray) -> None:
    before = picture[:HEIGHT, :WIDTH]
    after = (picture[-HEIGHT:, -WIDTH:] * np.array([0.9, 0.6, 0.4])).astype(np.uint8)
    path = write(tmp_path / "cut.mp4", [before] * 10 + [after] * 10)
    with pytest.raises(FaceError, match="between frames 5 and 10") as caught:
        frame(path, KnownFaces(lambda i: [make_face(60, 70, SIDE)]))
    assert caught.value.kind == "identity-change"


def test_a_check_reports_what_it_saw(clip: Path) -> None:
    def plan(index: int) -> list[Face]:
        both = [make_face(*place(index), SIDE), make_face(200, 20, 70)]
        return both if index >= 5 else []

    found = check_faces(clip, is_still=False, detector=KnownFaces(plan), recipe=BuildRecipe())
    assert found["first_frame"] == 5
    assert found["most_faces"] == 2
    assert found["face_px"] == 100.0
    assert len(found["warnings"]) == 2
