"""The pictures of a report: strips, crops, and the examples that a data set gives."""

from __future__ import annotations

import base64
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from dfmtest_dataset import make_dataset
from dfmtest_report import files, gradient, picture_of, written

from dfm_engine.actions import Action
from dfm_engine.clip import Box
from dfm_engine.errors import MediaError
from dfm_engine.manifest import read_manifest
from dfm_engine.report import (
    Example,
    examples,
    examples_from_manifest,
)
from dfm_engine.report.pictures import LARGEST_PX, crop_box, load_strip, shrink, strip_uri


def test_strips_show_the_first_the_last_and_evenly_what_lies_between(tmp_path: Path) -> None:
    example = Example(action=Action.NOD, name="n", driving=gradient(26))
    page = written(tmp_path, examples=[example])
    (image,) = page.all("img")
    strip = picture_of(image["src"])
    assert strip.shape == (64, 6 * 64 + 5 * 2, 3)
    assert (image["width"], image["height"]) == ("394", "64")
    greys = [int(strip[32, 32 + 66 * k].mean()) for k in range(6)]
    assert greys == pytest.approx([0, 50, 100, 150, 200, 250], abs=2)  # frames 0, 5, ..., 25
    assert image["alt"] == "6 frames of the driving clip, nod, evenly spaced"


def test_short_clips_are_shown_whole_and_large_ones_made_small() -> None:
    assert len(load_strip(gradient(4))) == 4
    wide = np.zeros((3, 500, 1000, 3), np.uint8)
    assert [frame.shape for frame in load_strip(wide)] == [(128, 256, 3)] * 3
    uri, width, height = strip_uri(list(wide), height_px=50, jpeg_quality=80)
    assert picture_of(uri).shape == (height, width, 3) == (50, 304, 3)


def picked_reference(frames: Iterable[np.ndarray], count: int) -> list[np.ndarray]:
    """What a strip shows: every frame made small, then some taken."""
    small = [shrink(frame, LARGEST_PX) for frame in frames]
    if len(small) <= count:
        return small
    return [small[place] for place in np.linspace(0, len(small) - 1, count).round().astype(int)]


def clip_of_noise(path: Path, frames: int) -> None:
    from dfm_engine.media.encode import encode_clip, rgb_to_i420

    path.parent.mkdir(exist_ok=True)
    noise = np.random.default_rng(frames).integers(0, 256, (frames, 18, 16, 3), dtype=np.uint8)
    i420 = rgb_to_i420(noise.repeat(8, axis=1).repeat(8, axis=2))  # 144 x 128
    encode_clip(i420, path, quality="c23", fps=25, comment="x" * 40)


@pytest.mark.parametrize("expected", [None, 0, 4, 23, 30])
@pytest.mark.parametrize("count", [1, 6, 22, 23, 10_000])
def test_the_frames_of_a_strip_are_picked_before_they_are_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: int | None, count: int
) -> None:
    from dfm_engine.media import decode

    clip_of_noise(tmp_path / "clip.mp4", 23)
    wanted = picked_reference(decode.read_frames(tmp_path / "clip.mp4"), count)
    converted: list[object] = []
    convert = decode._Convert.__call__
    monkeypatch.setattr(
        decode._Convert, "__call__", lambda self, f: converted.append(f) or convert(self, f)
    )
    found = load_strip(tmp_path / "clip.mp4", expected=expected, count=count)
    assert [frame.tobytes() for frame in found] == [frame.tobytes() for frame in wanted]
    assert found[0].shape == (128, 114, 3)
    if expected == 23:
        assert len(converted) == min(count, 23)  # of 23
    assert len(converted) <= 2 * min(count, 23)


@pytest.mark.parametrize(("end_s", "frames"), [(None, 12), (None, 60), (0.6, 12), (0.6, 60)])
def test_driving_frames_are_those_of_the_range_and_no_more_than_the_animation_has(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, end_s: float | None, frames: int
) -> None:
    from dfm_engine.media.decode import read_frames

    clip_of_noise(tmp_path / "driving/smile.mp4", 40)
    row = {"driving_path": "smile.mp4", "driving_start_s": 0.2, "driving_end_s": end_s}
    row |= {"fps": 25, "frames": frames, "driving_mirrored": False, "clip_id": "a"}
    stream = read_frames(tmp_path / "driving/smile.mp4", fps=25, start_s=0.2, end_s=end_s)
    wanted = picked_reference(list(stream)[:frames], 6)
    found = examples._driving_frames(row, tmp_path / "driving", 6)
    assert found is not None
    assert found.tobytes() == np.stack(wanted).tobytes()
    assert caplog.text == ""


def test_a_driving_clip_that_breaks_off_is_shown_up_to_there_and_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    frames = gradient(9)

    def breaks_off(*_: object, **__: object) -> Iterator[Callable[[], np.ndarray]]:
        yield from (functools.partial(frames.__getitem__, k) for k in range(9))
        raise MediaError("smile.mp4", "corrupt", "broke off")

    monkeypatch.setattr(examples, "read_shown", breaks_off)
    row = {"driving_path": "smile.mp4", "driving_start_s": 0.0, "driving_end_s": None}
    row |= {"fps": 25, "frames": 40, "driving_mirrored": False, "clip_id": "a"}
    found = examples._driving_frames(row, tmp_path, 3)
    assert found is not None
    assert found.tobytes() == frames[[0, 4, 8]].tobytes()
    assert caplog.text.count("broke off") == 1


def test_crop_repeats_the_border_outside_the_picture() -> None:
    picture = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    cropped = crop_box(picture, Box(-2.2, 1.0, 3.4, 6.0))
    assert cropped.shape == (5, 5, 3)
    assert (cropped[:, 0] == cropped[:, 2]).all()
    assert (cropped[0, 2] == picture[1, 0]).all()
    assert (cropped[4, 4] == picture[3, 2]).all()


def test_examples_come_from_the_manifest_and_its_files(tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = make_dataset(out)
    rows = read_manifest(out / "manifest.parquet")
    examples = examples_from_manifest(
        out, rows, real_root=tmp_path / "gone", driving_root=tmp_path / "gone"
    )
    by_name = {example.name: example for example in examples}
    fake = by_name[made["fake"].clip_id]
    assert fake.result == out / f"data/fake/smile/{fake.name}.c23.mp4"
    assert fake.real == out / f"data/real/none/{made['real'].clip_id}.c23.mp4"
    assert [caption for caption, _ in fake.videos] == ["fake, c23", "real, c23"]
    assert (fake.source, fake.driving, fake.passed) == (None, None, True)
    refused = by_name[made["refused"].clip_id]
    assert refused.result == out / f"data/fake/smile/{refused.name}.raw.mp4"
    assert made["dropped"].clip_id not in by_name
    assert by_name[made["of a still"].clip_id].real is None
    assert examples[0].action is Action.NOD  # the paper's order of actions
    page = written(out, rows=rows, examples=examples)
    played = {path for example in examples for _, path in example.videos}
    assert len(list(page.all("video"))) == len(played) == 6  # four fakes, two real twins
    strips = [a for a in page.all("img") if "result" in (a["alt"] or "")]
    assert len(strips) == len(examples)
    video = next(page.all("video"))["src"] or ""
    data = base64.b64decode(video.removeprefix("data:video/mp4;base64,"))
    assert data == examples[0].videos[0][1].read_bytes()


def test_source_images_and_driving_frames_come_from_the_inputs(tmp_path: Path) -> None:
    from dfm_engine.media.encode import encode_clip, rgb_to_i420

    frames = np.zeros((10, 64, 64, 3), np.uint8)
    frames[:, :, 32:] = 200  # bright on the right
    frames[5] = 100  # the source frame
    for name in ("real/ann.mp4", "driving/smile.mp4"):
        (tmp_path / name).parent.mkdir()
        encode_clip(rgb_to_i420(frames), tmp_path / name, quality="raw", fps=25, comment="x" * 40)
    (entry,) = [
        values
        for values in files("a", path="data/fake/smile/a.c23.mp4", source_sha256="s")
        if values["quality"] == "c23"
    ]
    entry |= {"source_path": "ann.mp4", "source_frame": 5, "fps": 25, "frames": 4}
    entry |= {"source_is_still": False, "driving_path": "smile.mp4", "driving_mirrored": True}
    entry |= {"box_x0": 8.0, "box_y0": 8.0, "box_x1": 40.0, "box_y1": 40.0}
    (example,) = examples_from_manifest(
        tmp_path, [entry], real_root=tmp_path / "real", driving_root=tmp_path / "driving"
    )
    assert example.source is not None
    assert example.source.shape == (32, 32, 3)
    assert abs(float(example.source.mean()) - 100) < 3
    assert isinstance(example.driving, np.ndarray)
    assert example.driving.shape == (4, 64, 64, 3)
    assert example.driving[0, 32, 8].mean() > 150  # flipped back: bright on the left now
    assert example.driving[0, 32, 56].mean() < 50


def test_a_file_that_is_gone_or_damaged_leaves_a_gap(tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    example = Example(
        action=Action.NOD,
        name="n",
        result=bad,
        real=tmp_path / "gone.mp4",
        videos=(("fake", tmp_path / "gone.mp4"),),
    )
    page = written(tmp_path, examples=[example])
    assert not list(page.all("img"))
    assert not list(page.all("video"))
    assert "no source image" in page.text
