"""Pixels, orientation and time of decoded frames."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from dfmtest_drawn_clips import draw, encode, tagged
from hypothesis import given
from hypothesis import strategies as st

from dfm_engine.errors import FaceError, MediaError
from dfm_engine.media.colour import RgbConverter, orientation_of
from dfm_engine.media.decode import read_frames, read_native_frames, read_still
from dfm_engine.media.parameter_sets import declared_sizes
from dfm_engine.media.reader import ClipReader
from dfm_engine.media.timeline import Timeline, resample
from dfm_engine.recipe import Limits

REPO = Path(__file__).resolve().parents[3]
MANIFEST = REPO.parent / "shared" / "bad-inputs" / "manifest.json"
WITH_MD5: list[dict[str, Any]] = (
    [
        entry
        for entry in json.loads(MANIFEST.read_text(encoding="utf-8"))["files"]
        if entry.get("rawvideo_md5")
    ]
    if MANIFEST.is_file()
    else []
)
KR_KB = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    assert a.shape == b.shape
    return np.abs(a.astype(np.int16) - b.astype(np.int16))


def planes(frame: av.VideoFrame) -> list[np.ndarray]:
    """The planes as stored, without the padding of their lines."""
    return [
        np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[
            : plane.height, : plane.width * bytes_per_sample(frame)
        ]
        for plane in frame.planes
    ]


def bytes_per_sample(frame: av.VideoFrame) -> int:
    return (frame.format.components[0].bits + 7) // 8


def rgb_formula(frame: av.VideoFrame, matrix: str, *, is_full: bool) -> np.ndarray:
    """ITU-R conversion in float64, with bilinear chroma sited in the middle of its four pixels."""
    y, u, v = (plane.astype(np.float64) for plane in planes(frame))

    def larger(chroma: np.ndarray) -> np.ndarray:
        for axis, length in ((0, y.shape[0]), (1, y.shape[1])):
            place = (np.arange(length) + 0.5) / 2 - 0.5
            low = np.floor(place).astype(int)
            share = (place - low).reshape((-1, 1) if axis == 0 else (1, -1))
            last = chroma.shape[axis] - 1
            chroma = chroma.take(low.clip(0, last), axis) * (1 - share) + share * chroma.take(
                (low + 1).clip(0, last), axis
            )
        return chroma - 128

    u, v = larger(u), larger(v)
    if not is_full:
        y, u, v = (y - 16) * 255 / 219, u * 255 / 224, v * 255 / 224
    kr, kb = KR_KB[matrix]
    red, blue = y + 2 * (1 - kr) * v, y + 2 * (1 - kb) * u
    green = (y - kr * red - kb * blue) / (1 - kr - kb)
    return np.stack([red, green, blue], -1).clip(0, 255)


# ---- pixels --------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", WITH_MD5, ids=lambda entry: entry["file"])
def test_stored_planes_equal_ffmpegs(shared: Path, entry: dict[str, Any]) -> None:
    digest = hashlib.md5()
    with ClipReader(shared / "bad-inputs" / entry["file"]) as clip:
        for frame, _ in clip.pictures():
            for plane in planes(frame):
                digest.update(np.ascontiguousarray(plane))
    assert digest.hexdigest() == entry["rawvideo_md5"]


@pytest.mark.parametrize(
    ("name", "matrix", "is_full"),
    [
        ("colour-bt601-limited.mp4", "bt601", False),
        ("colour-bt601-full.mp4", "bt601", True),
        ("colour-bt709-limited.mp4", "bt709", False),
        ("colour-bt709-full.mp4", "bt709", True),
        ("colour-bt709-untagged.mp4", "bt601", False),
        ("colour-mistagged-601-as-709.mp4", "bt709", False),
    ],
)
@pytest.mark.parametrize("origin", ["made", "reference"])
def test_rgb_is_near_the_formula_for_the_tags(
    request: pytest.FixtureRequest, name: str, matrix: str, is_full: bool, origin: str
) -> None:
    folder = request.getfixturevalue("made" if origin == "made" else "shared")
    folder = folder if origin == "made" else folder / "bad-inputs"
    with ClipReader(folder / name) as clip:
        converter = RgbConverter()
        for frame, _ in clip.pictures():
            error = np.abs(converter.convert(frame) - rgb_formula(frame, matrix, is_full=is_full))
            assert error.mean() < 0.3  # rounding alone: 0.25
            assert error.max() < 0.6  # 0.5 and swscale's fixed-point coefficients


@pytest.mark.parametrize(
    ("origin", "largest_mean"),
    # The reference files went through a scaler that is itself 2 levels off (BT.709, limited).
    [("made", 1.5), ("reference", 3.0)],
)
def test_every_tagged_version_of_a_picture_gives_the_same_rgb(
    request: pytest.FixtureRequest, origin: str, largest_mean: float
) -> None:
    folder = request.getfixturevalue("made" if origin == "made" else "shared")
    folder = folder if origin == "made" else folder / "bad-inputs"
    versions = [
        next(read_frames(folder / f"colour-{matrix}-{span}.mp4"))
        for matrix in ("bt601", "bt709")
        for span in ("limited", "full")
    ]
    for other in versions[1:]:
        assert distance(versions[0], other).mean() < largest_mean
    if origin == "made":  # the test can tell the matrices apart
        untagged = next(read_frames(folder / "colour-bt709-untagged.mp4"))
        assert distance(versions[0], untagged).mean() > 2 * largest_mean


def test_decoded_rgb_is_the_drawn_picture(made: Path) -> None:
    for name in ("colour-bt601-limited.mp4", "colour-bt709-full.mp4", "h264-rgb.mp4", "ffv1.mkv"):
        for frame, drawn in zip(read_frames(made / name), draw(10), strict=False):
            assert distance(frame, drawn).mean() < 3, name
    grey = next(read_frames(made / "h264-gray.mp4"))
    assert distance(grey[..., 0], grey[..., 1]).max() == 0
    luma = draw(1)[0] @ np.array([0.299, 0.587, 0.114])
    assert abs(grey[..., 0] - luma).mean() < 3


@pytest.mark.parametrize("depth", ["yuv420p10le", "yuv422p10le", "yuv444p", "yuv422p", "yuv420p"])
def test_depth_and_chroma_sampling_do_not_shift_colours(tmp_path: Path, depth: str) -> None:
    flat = np.empty((3, 48, 48, 3), np.uint8)
    flat[:] = (200, 60, 40)
    encode(tmp_path / "flat.mp4", flat, pix_fmt=depth, prepare=tagged(1, 1), options={"crf": "1"})
    for frame in read_frames(tmp_path / "flat.mp4"):
        assert distance(frame, flat[0]).max() <= 2  # a step of 8-bit luma is 1.16 levels


def test_frames_are_contiguous_uint8_rgb(made: Path) -> None:
    for name in ("rotate90.mp4", "odd-255x257-vp9.webm", "sar-2to1.mp4", "animated.gif"):
        for frame in read_frames(made / name):
            assert frame.dtype == np.uint8
            assert frame.ndim == 3
            assert frame.shape[2] == 3
            assert frame.flags.c_contiguous


# ---- orientation ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "quarters", "mirror"),
    [
        ("rotate90.mp4", 1, False),
        ("rotate180.mp4", 2, False),
        ("rotate270.mp4", 3, False),
        ("mirrored.mp4", 0, True),
    ],
)
def test_display_matrix_sets_the_picture_upright(
    made: Path, name: str, quarters: int, mirror: bool
) -> None:
    upright = draw(1, 64, 84)[0]
    frame = next(read_frames(made / name))
    assert frame.shape == (84, 64, 3)
    assert distance(frame, upright).mean() < 3
    assert distance(frame, upright[:, ::-1]).mean() > 10
    with ClipReader(made / name) as clip:
        stored, _ = next(clip.pictures())
        orientation = orientation_of(stored)
        assert orientation.is_mirrored == mirror
        assert orientation.degrees == 90 * quarters
        if not mirror:
            assert stored.rotation % 360 == orientation.degrees


def test_reference_rotations_agree_with_each_other(shared: Path) -> None:
    folder = shared / "bad-inputs"
    frames = [next(read_frames(folder / f"rotate{d}.mp4")) for d in (90, 180, 270)]
    assert frames[0].shape == (340, 256, 3)
    for other in frames[1:]:
        assert distance(frames[0], other).mean() < 6  # three encodings of one face


def test_exif_turns_a_still_upright(made: Path) -> None:
    still = read_still(made / "still-exif-rotated.jpg")
    assert still.shape == (84, 64, 3)
    assert distance(still, draw(1, 64, 84)[0]).mean() < 3


def test_wide_pixels_are_made_square(made: Path) -> None:
    frame = next(read_frames(made / "sar-2to1.mp4"))
    assert frame.shape == (64, 64, 3)
    narrow = draw(1, 32, 64)[0]
    assert distance(frame[:, ::2], narrow).mean() < 6


# ---- stills --------------------------------------------------------------------------------


def test_still_modes_become_rgb(made: Path) -> None:
    drawn = draw(1)[0]
    assert distance(read_still(made / "still-palette.png"), drawn).mean() < 12
    assert distance(read_still(made / "still-cmyk.jpg"), drawn).mean() < 3
    dark = (drawn.astype(np.uint16) * 128 + 127) // 255
    np.testing.assert_array_equal(read_still(made / "still-alpha.png"), dark)
    sixteen = read_still(made / "still-16bit.png")
    np.testing.assert_array_equal(sixteen, np.repeat(drawn[..., :1], 3, axis=2))


def test_still_and_clip_are_not_read_as_each_other(made: Path) -> None:
    with pytest.raises(MediaError, match="read_still") as caught:
        next(read_frames(made / "still-gray.jpg"))
    assert caught.value.kind == "not-a-video"
    with pytest.raises(MediaError, match="read_frames"):
        read_still(made / "ok-moov-front.mp4")


# ---- damage --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("truncated-last-byte.mp4", "truncated"),
        ("truncated.webm", "truncated"),
        ("corrupt-mdat-seed1.mp4", "corrupt"),
        ("corrupt-hevc-seed1.mp4", "corrupt"),
        ("no-keyframe-start.mp4", "no-keyframe"),
        ("size-change-midway.h264", "size-change"),
        ("zero-frames.mp4", "zero-frames"),
        ("zero-bytes.mp4", "empty-file"),
    ],
)
def test_damage_raises_with_its_kind_and_path(made: Path, name: str, kind: str) -> None:
    with pytest.raises(MediaError, match=kind) as caught:
        list(read_frames(made / name))
    assert caught.value.kind == kind
    assert caught.value.path == made / name


def test_no_damaged_picture_is_ever_yielded(made: Path) -> None:
    with ClipReader(made / "corrupt-mdat-seed2.mp4", strict=False) as clip:
        flags = [frame.is_corrupt for frame, _ in clip.pictures()]
    yielded: list[int] = []
    with pytest.raises(MediaError, match="corrupt"):
        yielded.extend(f.index for f in read_native_frames(made / "corrupt-mdat-seed2.mp4"))
    assert len(yielded) <= flags.index(True)


def test_small_pictures_raise_the_face_stages_error(made: Path) -> None:
    with pytest.raises(FaceError, match="512x16") as caught:
        next(read_frames(made / "wide-4096x16.mp4"))
    assert caught.value.kind == "no-face"


# ---- time ----------------------------------------------------------------------------------


def indices(path: Path, **how: Any) -> list[int]:
    """Which drawn picture each frame shows, found by nearest pixels."""
    drawn = draw(40)
    return [
        int(np.argmin([distance(frame, picture).sum() for picture in drawn]))
        for frame in read_frames(path, **how)
    ]


def test_native_frames_come_in_order_with_their_times(made: Path) -> None:
    native = list(read_native_frames(made / "vfr-jitter.mp4"))
    assert [frame.index for frame in native] == list(range(40))
    expected = [(i + 12 * (i >= 15)) / 25 for i in range(40)]
    np.testing.assert_allclose([frame.pts_s for frame in native], expected, atol=1e-6)


def test_pause_repeats_the_picture_before_it(made: Path) -> None:
    assert indices(made / "vfr-jitter.mp4") == [*range(15), *[14] * 12, *range(15, 40)]


def test_double_rate_shows_every_second_picture(made: Path) -> None:
    assert indices(made / "rate-50.mp4") == list(range(0, 40, 2))


def test_thirty_frames_per_second_lose_every_sixth(made: Path) -> None:
    shown = indices(made / "rate-30.mp4")
    nearest = [
        max(i for i in range(30) if np.floor(i / 30 * 25 + 0.5 + 1e-5) <= k) for k in range(25)
    ]
    assert shown == nearest
    assert len(set(shown)) == 25


def test_range_is_half_open_and_counts_from_the_first_picture(made: Path) -> None:
    for name in ("ok-moov-front.mp4", "late-start.mp4", "ok-fragmented.mp4"):
        assert indices(made / name, start_s=0.4, end_s=0.8) == list(range(10, 20))
        assert indices(made / name, start_s=1.4) == list(range(35, 40))
        assert indices(made / name, fps=None, start_s=0.4, end_s=0.8) == list(range(10, 20))
    assert indices(made / "ok-moov-front.mp4", fps=50, end_s=0.1) == [0, 0, 1, 1, 2]


@pytest.mark.parametrize(
    "how",
    [{"start_s": 1.6}, {"start_s": 9.0, "end_s": 10.0}, {"start_s": 0.5, "end_s": 0.5},
     {"start_s": -1.0}, {"start_s": 1.6, "fps": None}],
)  # fmt: skip
def test_range_without_a_picture_is_an_error(made: Path, how: dict[str, Any]) -> None:
    with pytest.raises(MediaError, match="range") as caught:
        list(read_frames(made / "ok-moov-front.mp4", **how))
    assert caught.value.kind == "empty-range"


def test_edit_list_shows_exactly_its_pictures(made: Path) -> None:
    assert indices(made / "editlist-trim.mp4") == list(range(18, 40))
    assert indices(made / "negative-start.mp4") == list(range(8, 40))


def test_joined_stream_keeps_the_order_of_decoding(made: Path) -> None:
    assert indices(made / "joined-timestamp-reset.ts") == [*range(40), *range(40)]
    assert indices(made / "zero-duration.mp4") == list(range(40))


def place(times: list[float | None], stated_s: float = 0.0) -> tuple[list[float], Timeline]:
    line = Timeline()
    return [line.place(time, stated_s) for time in times], line


def test_timeline_mends_what_does_not_advance() -> None:
    placed, line = place([5.0, 5.1, 5.1, 5.2, 2.0, 2.1])
    np.testing.assert_allclose(placed, [0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert line.restarts == 2
    placed, line = place([None, None, None], stated_s=0.02)
    np.testing.assert_allclose(placed, [0, 0.02, 0.04])
    assert (line.restarts, round(line.end_s, 6)) == (0, 0.06)
    placed, line = place([0.0, 0.0, 0.0], stated_s=7.0)
    np.testing.assert_allclose(placed, [0, 0.04, 0.08])
    assert round(line.end_s, 6) == 0.12


@given(st.lists(st.one_of(st.none(), st.floats(-1e4, 1e4)), min_size=1, max_size=30))
def test_timeline_starts_at_zero_and_always_advances(times: list[float | None]) -> None:
    placed, line = place(times)
    assert placed[0] == 0
    assert all(b > a for a, b in itertools.pairwise(placed))
    assert line.end_s > placed[-1]


@given(
    gaps=st.lists(st.floats(0.001, 0.5), min_size=1, max_size=40),
    fps=st.sampled_from([25, 30, 12.5]),
)
def test_resampled_picture_is_the_last_of_its_slot_or_before(gaps: list[float], fps: float) -> None:
    line = Timeline()
    times = np.concatenate([[0.0], np.cumsum(gaps)[:-1]]).tolist()

    def timed() -> Iterator[tuple[int, float]]:
        for index, time_s in enumerate(times):
            yield index, line.place(time_s, gaps[index])

    shown = list(resample(timed(), line, fps=fps))
    slots = [int(np.floor((time_s + 1e-6) * fps + 0.5)) for time_s in times]
    assert len(shown) == max(1, int(np.floor((line.end_s + 1e-6) * fps + 0.5)))
    for k, index in enumerate(shown):
        assert index == max(i for i, slot in enumerate(slots) if slot <= k)


# ---- small parts ---------------------------------------------------------------------------


def test_parameter_sets_declare_the_coded_size(tmp_path: Path) -> None:
    encode(tmp_path / "a.h264", draw(2, 200, 120), format="h264")
    assert set(declared_sizes((tmp_path / "a.h264").read_bytes(), "h264")) == {(208, 128)}
    encode(
        tmp_path / "a.hevc", draw(2, 200, 120), format="hevc", codec="libx265",
        options={"x265-params": "log-level=none"},
    )  # fmt: skip
    assert set(declared_sizes((tmp_path / "a.hevc").read_bytes(), "hevc")) == {(200, 120)}
    assert sum(1 for _ in read_frames(tmp_path / "a.hevc")) == 2


@given(st.binary(max_size=300), st.sampled_from(["h264", "hevc"]))
def test_parameter_sets_survive_any_bytes(noise: bytes, codec: Any) -> None:
    mark = b"\x00\x00\x01\x67" if codec == "h264" else b"\x00\x00\x01\x42\x01"
    assert all((w > 0 and h > 0) or codec == "hevc" for w, h in declared_sizes(mark + noise, codec))


def test_memory_does_not_grow_with_the_clip(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", draw(2, 320, 320).repeat(150, 0), options={"preset": "ultrafast"})
    script = (
        "import resource, sys\n"
        "from dfm_engine.media.decode import read_frames\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for index, _ in enumerate(read_frames(sys.argv[1])):\n"
        "    before = peak() if index < 60 else before\n"
        "print(index + 1, peak() - before)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a.mp4")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    count, grown_kib = map(int, run.stdout.split())
    assert count == 300
    assert grown_kib < 2 * 320 * 320 * 3 // 1024 * 4


def test_media_never_imports_torch() -> None:
    script = (
        "import sys, dfm_engine.media.decode, dfm_engine.media.probe_command\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_reading_stops_at_the_end_of_the_range(made: Path) -> None:
    frames = read_frames(made / "truncated-fragmented.mp4", end_s=0.2)
    with pytest.raises(MediaError, match="truncated"):  # known from the boxes, so at once
        next(frames)
    limits = Limits(frames=12)
    assert len(list(read_frames(made / "ok-moov-front.mp4", end_s=0.4, limits=limits))) == 10
