"""Scoring files: what the detector is shown, what is said of each file, and what memory holds."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from pathlib import Path

import av
import dfmtest_probe
import numpy as np
import pytest
import torch
from dfmtest_detector import PixelRunner
from dfmtest_faces import make_face
from PIL import Image

from dfm_engine.clip import Pixels
from dfm_engine.detect.cam_sheet import HOW, class_maps
from dfm_engine.detect.score import ScoreReport, run_score
from dfm_engine.detect.video_frames import VideoFrames, read_video
from dfm_engine.errors import FaceError, UsageError
from dfm_engine.faces.mtcnn import Face
from dfm_engine.media.decode import read_frames
from dfm_engine.media.decoding_process import DecodingProcess
from dfm_engine.media.encode import encode_clip, provenance_comment, rgb_to_i420
from dfm_engine.media.probe import probe
from dfm_engine.media.reading_process import CRASH_ATTEMPTS
from dfm_engine.recipe import Limits
from dfm_engine.store.sampler import evenly_spaced
from dfm_engine.store.sampling import sample_clip
from dfm_kernels.crop import crop

SIDE, WIDTH, HEIGHT = 64, 320, 240


class StubFaces:
    """One face at one place, wherever the picture's corner is bright."""

    def __init__(self) -> None:
        self.calls = 0

    def detect(self, frames: Pixels, *, min_face_px: float = 20.0) -> list[list[Face]]:
        self.calls += 1
        return [
            [make_face(100, 60, 120)] if frame[:12, :12].mean() > 100 else [] for frame in frames
        ]


def no_faces() -> StubFaces:
    raise AssertionError("a cropped clip needs no face detector")


def square_clip(path: Path, *, level: float, frames: int = 20, drift: float = 0.0) -> Path:
    """A canonical clip whose lower left quarter is brighter by `level`, drifting along time."""
    rng = np.random.default_rng(frames)
    pictures = np.broadcast_to(rng.normal(110, 3, (SIDE, SIDE, 3)), (frames, SIDE, SIDE, 3)).copy()
    half = SIDE // 2
    pictures[:, half:, :half] += level + drift * np.arange(frames)[:, None, None, None]
    i420 = rgb_to_i420(pictures.clip(0, 255).astype(np.uint8))
    comment = provenance_comment({"synthetic": level > 0})
    encode_clip(i420, path, quality="raw", fps=25, comment=comment)
    return path


def wide_clip(path: Path, *, hidden: range = range(0), frames: int = 40, fps: int = 25) -> Path:
    """A camera's picture that stands still; its corner says whether `StubFaces` sees a face."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(30, 220, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    picture = blocks.repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "8"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(frames):
            marked = picture.copy()
            marked[:16, :16] = 20 if index in hidden else 200
            container.mux(stream.encode(av.VideoFrame.from_ndarray(marked, format="rgb24")))
        container.mux(stream.encode())
    return path


class Decoding(DecodingProcess):
    """A process that dies of files named `kill*`."""

    deaths = 0

    def stream(self, function, path: Path, /, *given) -> Iterator:
        if path.name.startswith("kill"):
            self.deaths += 1
            return super().stream(dfmtest_probe.pieces, path.with_name("kill"), 0)
        return super().stream(function, path, *given)


SHARED = DecodingProcess()


@pytest.fixture(scope="module", autouse=True)
def _one_process() -> Iterator[None]:
    """For all tests here; started by this thread, since it ends with the one that started it."""
    with SHARED:
        list(SHARED.stream(dfmtest_probe.pieces, Path("fine"), 0))
        yield


def score(paths: list[Path], **options) -> ScoreReport:
    options = {"runner": PixelRunner(), "faces": no_faces, "decoding": SHARED} | options
    return run_score(paths, **options)


def test_a_cropped_clip_is_taken_whole_and_its_score_is_the_mean_of_its_frames(
    tmp_path: Path,
) -> None:
    path = square_clip(tmp_path / "a.mp4", level=-6, drift=0.8, frames=20)
    runner = PixelRunner(gain=100)
    report = score([path], runner=runner, frames=8)
    numbers = evenly_spaced(20, 8)
    frames = np.stack(list(read_frames(path)))[numbers]
    large = crop(torch.from_numpy(frames), [0, 0, SIDE, SIDE], 256)
    expected = [runner.run(large[k : k + 1]).fake.item() for k in range(8)]
    (video,) = report.videos
    assert video.p_fake == pytest.approx(np.mean(expected), abs=1e-4)  # half a level of rounding
    assert video.lowest == pytest.approx(min(expected), abs=2e-3)
    assert video.highest == pytest.approx(max(expected), abs=2e-3)
    assert video.highest - video.lowest > 0.5
    assert (video.frames, video.missed, video.crop) == (8, 0, "whole")
    assert video.verdict == ("fake" if np.mean(expected) > 0.5 else "real")
    assert report.exit_code == 0


def test_the_frames_are_those_that_a_store_would_hold(tmp_path: Path) -> None:

    path = square_clip(tmp_path / "a.mp4", level=5, drift=2)
    shown = read_video(path, frames=6, size_px=SIDE, detector=StubFaces())
    facts = probe(path)
    stored = sample_clip(
        path,
        kind="video",
        clip_frames=facts.frames or 0,
        wanted=evenly_spaced(facts.frames or 0, 6).tolist(),
        box=None,
        sha256=facts.sha256,
        size_px=SIDE,
        layout="rgb24",
        limits=Limits(),
    )
    assert np.array_equal(shown.frames, np.stack(list(stored.frames)))
    assert shown.numbers.tolist() == [1, 5, 8, 11, 15, 18]


def test_a_cameras_picture_is_cut_to_its_face(tmp_path: Path) -> None:
    path = wide_clip(tmp_path / "a.mp4")
    shown = read_video(path, frames=5, size_px=96, detector=StubFaces())
    assert shown.crop == "face"
    # the box of side 120 at (100, 60) and a tenth of it on each side
    assert shown.box == pytest.approx((88, 48, 232, 192), abs=1e-3)
    whole = np.stack(list(read_frames(path)))[shown.numbers]
    expected = crop(torch.from_numpy(whole), list(shown.box), 96).numpy()
    assert np.abs(shown.frames.astype(int) - expected).max() <= 1  # two orders of float sums
    assert shown.missed == 0


@pytest.mark.parametrize("fps", [25, 50])
def test_frames_without_the_face_are_left_out_and_counted(tmp_path: Path, fps: int) -> None:
    hidden = range(14 * fps // 25, 26 * fps // 25)
    total = 40 * fps // 25
    path = wide_clip(tmp_path / "a.mp4", hidden=hidden, frames=total, fps=fps)
    shown = read_video(path, frames=10, size_px=64, detector=StubFaces())
    wanted = evenly_spaced(total, 10)
    # looked at every fifth frame at 25 frames/s: 15, 20 and 25 show nothing, as far as half way
    lost = [n for n in wanted if 12.5 < n * 25 / fps < 27.5]
    assert shown.missed == len(lost) == 4 if fps == 25 else len(lost)
    assert sorted({*shown.numbers.tolist(), *lost}) == wanted.tolist()
    report = score([path], faces=StubFaces, frames=10)
    assert report.videos[0].missed == len(lost)
    assert f"{10 - len(lost)} frames, {len(lost)} without a face" in report.videos[0].line()


def test_a_face_that_comes_late_starts_the_clip(tmp_path: Path) -> None:
    path = wide_clip(tmp_path / "a.mp4", hidden=range(12))
    shown = read_video(path, frames=5, size_px=64, detector=StubFaces())
    assert shown.numbers.tolist() == (15 + evenly_spaced(25, 5)).tolist()
    assert shown.missed == 0


def test_no_face_at_all_is_said(tmp_path: Path) -> None:
    path = wide_clip(tmp_path / "a.mp4", hidden=range(40))
    with pytest.raises(FaceError, match="0 of 9 looked-at frames"):
        read_video(path, frames=5, size_px=64, detector=StubFaces())
    taken = read_video(path, frames=5, size_px=64, detector=StubFaces(), crop="whole")
    assert taken.crop == "whole"
    assert taken.frames.shape == (5, 64, 64, 3)


def test_a_picture_is_a_video_of_one_frame(tmp_path: Path) -> None:
    square = np.full((80, 80, 3), 100, np.uint8)
    square[40:, :40] = 140
    Image.fromarray(square).save(tmp_path / "square.png")
    Image.fromarray(np.pad(square, ((0, 0), (0, 20), (0, 0)))).save(tmp_path / "wide.png")
    report = score([tmp_path / "square.png"])
    assert (report.videos[0].frames, report.videos[0].verdict) == (1, "fake")
    refused = score([tmp_path / "wide.png"], faces=StubFaces)
    assert refused.videos[0].error == "no-face"


def test_a_bad_file_costs_its_line_and_exit_3(tmp_path: Path) -> None:
    good = square_clip(tmp_path / "a.mp4", level=30)
    (tmp_path / "b.mp4").write_bytes(good.read_bytes()[:-500])
    (tmp_path / "notes.txt").write_text("not a video")
    square_clip(tmp_path / "sub" / "c.mp4", level=-30)
    lines: list[str] = []
    report = score([tmp_path], say=lines.append)
    assert [video.path.name for video in report.videos] == ["a.mp4", "b.mp4", "c.mp4"]
    assert [video.verdict for video in report.videos] == ["fake", None, "real"]
    assert report.videos[1].error == "truncated"
    assert report.exit_code == 3
    assert lines == [f"[{k}/3] {video.line()}" for k, video in enumerate(report.videos, start=1)]
    assert "[truncated]" in lines[1]
    assert report.to_json()["videos"][1]["reason"] in lines[1]
    said = json.loads(json.dumps(report.to_json()))
    assert (said["scored"], said["videos"][0]["verdict"]) == (2, "fake")
    assert score([tmp_path / "notes.txt"]).videos[0].error == "not-a-video"
    assert score([tmp_path / "absent.mp4"]).exit_code == 3


def test_a_file_that_kills_its_decoder_costs_its_line_alone(tmp_path: Path) -> None:
    square_clip(tmp_path / "a.mp4", level=30)
    square_clip(tmp_path / "kill.mp4", level=30)
    square_clip(tmp_path / "z.mp4", level=-30)
    with Decoding() as decoding:
        report = score([tmp_path], decoding=decoding)
    assert [video.verdict for video in report.videos] == ["fake", None, "real"]
    assert report.videos[1].error == "decoder-crash"
    assert f"killed {CRASH_ATTEMPTS} worker processes" in report.videos[1].line()
    assert decoding.deaths == CRASH_ATTEMPTS
    assert report.exit_code == 3


def test_this_process_opens_no_file_that_it_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide_clip(tmp_path / "a.mp4")
    square_clip(tmp_path / "b.mp4", level=30)

    def opened(*_, **__) -> None:
        raise AssertionError("a stranger's file was opened here")

    monkeypatch.setattr(av, "open", opened)
    with pytest.raises(AssertionError, match="opened here"):
        read_video(tmp_path / "b.mp4", frames=2, size_px=64, detector=StubFaces())
    report = score([tmp_path], faces=StubFaces, frames=2, decoding=None)
    assert [(video.frames, video.crop) for video in report.videos] == [(2, "face"), (2, "whole")]


@pytest.mark.parametrize("error", [OSError("stale file handle"), MemoryError("no room")])
def test_whatever_reading_raises_costs_that_video_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    bad = square_clip(tmp_path / "a.mp4", level=30)
    square_clip(tmp_path / "b.mp4", level=30)

    def read(path: Path, *args, read=read_video, **options) -> VideoFrames:
        if path == bad:
            raise error
        return read(path, *args, **options)

    monkeypatch.setattr("dfm_engine.detect.score.read_video", read)
    report = score([tmp_path])
    assert [video.error for video in report.videos] == ["unreadable", None]
    assert str(error) in (report.videos[0].reason or "")
    assert report.exit_code == 3


def test_nothing_to_score_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to score"):
        score([])
    with pytest.raises(UsageError, match="--crop takes auto, face, whole"):
        score([tmp_path], crop="squeeze")
    assert score([tmp_path]).exit_code == 3  # a folder without media files


def test_frames_go_through_the_net_in_batches_it_bears(tmp_path: Path) -> None:
    path = square_clip(tmp_path / "a.mp4", level=30, frames=20)
    runner = PixelRunner()
    report = score([path], runner=runner, frames=0)
    assert runner.batches == [7, 7, 6]
    assert report.videos[0].frames == 20


def test_memory_holds_the_frames_of_two_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = square_clip(tmp_path / "a.mp4", level=30)
    alive: weakref.WeakSet[VideoFrames] = weakref.WeakSet()
    most = 0

    class Kept(VideoFrames):
        __slots__ = ("__weakref__",)

    shown = read_video(path, frames=2, size_px=64, detector=StubFaces())

    def made(*_, **__) -> VideoFrames:
        nonlocal most
        one = Kept(**{name: getattr(shown, name) for name in VideoFrames.__slots__})
        alive.add(one)
        most = max(most, len(alive))
        return one

    monkeypatch.setattr("dfm_engine.detect.score.read_video", made)
    report = score([path] * 20)
    assert len(report.videos) == 20
    assert most <= 3  # one read, one looked at, one just done with


def test_a_score_that_is_no_number_is_a_line(tmp_path: Path) -> None:
    path = square_clip(tmp_path / "a.mp4", level=30)
    report = score([path], runner=PixelRunner(gain=float("nan")))
    assert report.videos[0].error == "no-score"
    assert "nan" in report.videos[0].reason
    assert report.exit_code == 3


def test_odd_names_are_spelt_out(tmp_path: Path) -> None:
    path = square_clip(tmp_path / "a.mp4", level=30)
    odd = tmp_path / "b\n$x$\udcff.mp4"
    path.rename(odd)
    report = score([odd], cam=tmp_path / "cams")
    assert r"b\n$x$\xff.mp4" in report.videos[0].line()
    assert json.dumps(report.to_json())
    assert report.videos[0].cam is not None
    assert report.videos[0].cam.is_file()


@pytest.mark.parametrize("two", [False, True])
def test_the_sheet_shows_where_the_verdict_comes_from(tmp_path: Path, two: bool) -> None:
    """All evidence lies in the lower left; there the sheet is red for fake, blue for real."""
    path = square_clip(tmp_path / "a.mp4", level=30)
    other = square_clip(tmp_path / "sub" / "a.mp4", level=30)
    report = score([path, other], cam=tmp_path / "cams", runner=PixelRunner(gain=20, two=two))
    sheets = [video.cam for video in report.videos]
    assert len(set(sheets)) == 2  # two videos of one name
    picture = np.asarray(Image.open(sheets[0]).convert("RGB")).astype(int)
    red, blue = picture[..., 0] - picture[..., 2], picture[..., 2] - picture[..., 0]
    height = len(picture)
    left = slice(0, int(picture.shape[1] * 0.9))  # without the colour bar
    of_fake = slice(int(0.43 * height), int(0.68 * height))
    of_real = slice(int(0.72 * height), None)
    assert (red[of_fake, left] > 60).sum() > 3000
    assert (blue[of_fake, left] > 60).sum() < 50
    assert (blue[of_real, left] > 60).sum() > 3000
    assert (red[of_real, left] > 60).sum() < 50


def test_class_maps_of_one_logit_speak_for_both_classes() -> None:
    cam = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
    one, two = PixelRunner().spec, PixelRunner(two=True).spec
    assert np.array_equal(class_maps(cam, two)["fake"], cam[:, 1])
    assert np.array_equal(class_maps(cam, two)["real"], cam[:, 0])
    single = class_maps(cam[:, :1], one)
    assert np.array_equal(single["fake"], -single["real"])
    assert np.array_equal(single["fake"], cam[:, 0])
    assert set(HOW) == {"exact", "contribution", "gradient"}
