"""Which clips NVDEC is given, and the colour correction behind its BT.601."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dfmtest_broken_files import make_files
from dfmtest_drawn_clips import draw, encode

from dfm_engine.clip import QUALITIES, Box
from dfm_engine.media.colour import Orientation
from dfm_engine.media.encode import encode_clip, provenance_comment, rgb_to_i420
from dfm_engine.media.outline import read_outline
from dfm_engine.media.probe import probe
from dfm_engine.store.routing import RULES, SizeLimits, Stream, by_size, rgb_correction, route

CANONICAL = Stream(
    container="mov",
    codec="h264",
    profile="High",
    pix_fmt="yuv420p",
    width=256,
    height=256,
    frames=175,
    listed=175,
)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"codec": "vp9", "profile": "Profile 0"}, "codec"),
        ({"codec": "mpeg4", "profile": "Simple Profile"}, "codec"),
        ({"container": "avi"}, "container"),
        ({"is_only_stream": False}, "several-streams"),
        ({"pix_fmt": "yuv444p", "profile": "High 4:4:4 Predictive"}, "pixel-format"),
        ({"pix_fmt": "yuv422p", "profile": "High 4:2:2"}, "pixel-format"),
        ({"pix_fmt": "yuv420p10le", "profile": "High 10"}, "pixel-format"),
        ({"pix_fmt": "gray"}, "pixel-format"),
        ({"profile": "High 4:4:4 Predictive"}, "profile"),  # lossless: libx264 -crf 0
        ({"profile": "Extended"}, "profile"),
        ({"codec": "hevc", "profile": "Main 10"}, "profile"),
        ({"is_full_range": True, "pix_fmt": "yuvj420p"}, "full-range"),
        ({"matrix": "code 8"}, "matrix"),
        ({"width": 255}, "odd-size"),
        ({"height": 257}, "odd-size"),
        ({"width": 46}, "too-small"),
        ({"height": 14}, "too-small"),
        ({"codec": "hevc", "profile": "Main", "width": 128}, "too-small"),
        ({"width": 4098}, "too-large"),
        ({"is_interlaced": True}, "interlaced"),
        ({"has_square_pixels": False}, "pixel-aspect"),
        ({"is_mirrored": True}, "mirrored"),
        ({"listed": 180}, "hidden-pictures"),
        ({"is_whole": False}, "not-whole"),
        ({"width": 1920, "height": 1088, "frames": 3000, "listed": 3000}, "too-long"),
    ],
)
def test_one_oddity_sends_a_clip_to_the_cpu(change: dict, rule: str) -> None:
    found = route(replace(CANONICAL, **change))
    assert (found.to, found.reason.split(":")[0]) == ("cpu", rule)
    assert len(found.reason) > len(rule) + 10


def test_every_rule_is_tried_above() -> None:
    marks = test_one_oddity_sends_a_clip_to_the_cpu.pytestmark  # pyright: ignore
    assert {case[1] for case in marks[0].args[1]} == {rule.name for rule in RULES}


@pytest.mark.parametrize(
    ("change", "note", "needs_check"),
    [
        ({}, "", False),
        ({"profile": "Constrained Baseline"}, "", False),
        ({"profile": "Main", "matrix": "bt601"}, "", False),
        ({"listed": None, "container": "matroska"}, "", False),
        ({"matrix": "bt709"}, "bt709 is corrected", False),
        ({"rotation": 90}, "turned by 90", False),
        ({"width": 1920, "height": 1080}, "a decoder session of its own; in 2 parts", True),
        ({"width": 1920, "height": 1088, "frames": 100, "listed": 100}, "", False),
        ({"codec": "hevc", "profile": "Main"}, "", True),
    ],
)
def test_what_nvdec_takes_says_what_is_done_about_it(
    change: dict, note: str, needs_check: bool
) -> None:
    found = route(replace(CANONICAL, **change))
    assert found.to == "nvdec"
    assert (note in found.reason) if note else found.reason == ""
    assert found.needs_check is needs_check


def test_the_device_and_not_the_table_has_the_last_word() -> None:
    small = {"h264": SizeLimits(300, 300, 512, 512)}
    assert route(CANONICAL, limits=small).reason.startswith("too-small")
    hevc = replace(CANONICAL, codec="hevc", profile="Main")
    assert route(hevc, limits=small).reason.startswith("codec")
    assert route(hevc).to == "nvdec"


def test_few_pictures_of_a_long_clip_are_one_part() -> None:
    long = replace(CANONICAL, width=1920, height=1088, frames=3000, listed=3000)
    assert route(long, wanted=16).to == "nvdec"
    assert route(long).to == "cpu"
    assert long.chunks(16) == 1
    assert long.chunk_frames * long.width * long.height * 3 <= 1 << 30


def test_sizes_follow_each_other_and_ties_keep_their_order() -> None:
    streams = [
        replace(CANONICAL, width=w, frames=k) for k, w in enumerate((512, 256, 512, 128, 256))
    ]
    order = [(s.width, s.frames) for s in by_size(streams, lambda s: s)]
    assert order == [(128, 3), (256, 1), (256, 4), (512, 0), (512, 2)]


def test_canonical_clips_of_every_quality_go_to_nvdec(tmp_path: Path) -> None:
    frames = draw(4, 64, 64)
    i420 = rgb_to_i420(frames)
    for quality in QUALITIES:
        path = tmp_path / f"{quality}.mp4"
        encode_clip(
            i420, path, quality=quality, fps=25, comment=provenance_comment({"synthetic": True})
        )
        found = probe(path)
        assert route(Stream.of_probe(found)) == route(CANONICAL)


@pytest.mark.parametrize(
    ("how", "rule"),
    [
        ({"pix_fmt": "yuv444p"}, "pixel-format"),
        ({"pix_fmt": "yuv422p"}, "pixel-format"),
        ({"pix_fmt": "yuv420p10le"}, "pixel-format"),
        ({"options": {"crf": "0"}}, "profile"),
        ({"options": {"crf": "0"}, "pix_fmt": "yuv444p"}, "pixel-format"),
        ({"pix_fmt": "yuvj420p"}, "full-range"),
    ],
)
def test_encoded_oddities_are_recognised_by_probe_and_outline(
    tmp_path: Path, how: dict, rule: str
) -> None:
    path = tmp_path / "clip.mp4"
    encode(path, draw(3, 64, 64), **how)
    for stream in (Stream.of_probe(probe(path)), Stream.of_outline(read_outline(path))):
        assert route(stream).reason.split(":")[0] == rule


def test_probe_and_outline_route_made_files_alike(tmp_path: Path) -> None:
    make_files(tmp_path)
    told = 0
    for path in sorted(tmp_path.iterdir()):
        found = probe(path)
        if found.verdict != "accept" or found.is_still:
            continue
        by_outline = route(Stream.of_outline(read_outline(path)))
        by_probe = route(Stream.of_probe(found))
        # The outline alone sees covers, and times that stand still.
        if path.name not in ("cover-art-first.mp4", "cover-art-last.mp4", "zero-duration.mp4"):
            assert by_outline.to == by_probe.to, path.name
        assert by_outline.to == "cpu" or by_probe.to == "nvdec"
        told += 1
    assert told > 40


TO_CPU = {
    "audio-first-longer.mp4": None,
    "colour-bt601-full.mp4": "full-range",
    "colour-bt709-limited.mp4": None,
    "crop-250x250.mp4": None,
    "editlist-trim.mp4": "hidden-pictures",
    "h264-10bit.mp4": "pixel-format",
    "h264-lossless.mp4": "profile",
    "h264-rgb.mp4": "pixel-format",
    "h264-yuv422p.mp4": "pixel-format",
    "h264-yuv444p.mp4": "pixel-format",
    "hevc-10bit-pq.mp4": "pixel-format",
    "hole-of-zeros.mp4": "not-whole",
    "interlaced-tff.mp4": "interlaced",
    "joined-timestamp-reset.ts": "container",
    "odd-255x257-h264-444.mp4": "pixel-format",
    "odd-255x257-vp9.webm": "codec",
    "ok-moov-front.mp4": None,
    "rotate90.mp4": None,
    "sar-2to1.mp4": "pixel-aspect",
    "still-cmyk.jpg": "not-whole",
    "truncated-mid-gop.mp4": "not-whole",
    "two-video-streams.mp4": "several-streams",
    "vfr-jitter.mp4": None,
}


@pytest.mark.parametrize("name", TO_CPU)
def test_reference_oddities_go_where_they_should(shared: Path, name: str) -> None:
    found = route(Stream.of_probe(probe(shared / "bad-inputs" / name)))
    assert (found.reason.split(":")[0] if found.to == "cpu" else None) == TO_CPU[name]


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_a_box_is_found_again_in_the_stored_picture(rotation: int) -> None:
    orientation = replace(CANONICAL, rotation=rotation).orientation
    assert (orientation.degrees, orientation.is_mirrored) == (rotation, False)
    stored = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
    upright = orientation.apply(stored)
    x0, y0, x1, y1 = box = Box(3, 5, 11, 17)
    height, width, _ = upright.shape
    a0, b0, a1, b1 = map(int, orientation.stored_box(box, height, width))
    part = orientation.apply(stored[b0:b1, a0:a1])
    np.testing.assert_array_equal(part, upright[int(y0) : int(y1), int(x0) : int(x1)])
    both = orientation.apply(np.stack([stored, stored[::-1]]))
    np.testing.assert_array_equal(both[0], upright)
    np.testing.assert_array_equal(both[1], orientation.apply(np.ascontiguousarray(stored[::-1])))


def test_a_mirroring_orientation_finds_its_box_too() -> None:
    orientation = Orientation(mirror_columns=True)
    assert orientation.stored_box(Box(1, 2, 4, 8), 10, 20) == Box(16, 2, 19, 8)


# Limited-range conversions as printed in the standards, to three digits.
PRINTED = {
    "bt601": [[1.164, 0, 1.596], [1.164, -0.392, -0.813], [1.164, 2.017, 0]],
    "bt709": [[1.164, 0, 1.793], [1.164, -0.213, -0.533], [1.164, 2.112, 0]],
    "bt2020": [[1.164, 0, 1.679], [1.164, -0.187, -0.650], [1.164, 2.142, 0]],
}


@pytest.mark.parametrize("matrix", PRINTED)
def test_the_correction_turns_one_printed_conversion_into_the_other(matrix: str) -> None:
    rng = np.random.default_rng(3)
    ycc = np.stack([rng.uniform(16, 235, 500), *rng.uniform(16, 240, (2, 500))])
    ycc -= np.array([[16], [128], [128]])
    assumed, own = np.array(PRINTED["bt601"]) @ ycc, np.array(PRINTED[matrix]) @ ycc
    # Printed coefficients are rounded to 0.0005; 3 of them, times up to 255, through a 3x3.
    np.testing.assert_allclose(rgb_correction(matrix) @ assumed, own, atol=0.5)


def test_the_correction_keeps_greys_and_leaves_bt601_alone() -> None:
    for matrix in ("bt709", "bt2020", "fcc", "smpte240m"):
        np.testing.assert_allclose(rgb_correction(matrix).sum(1), 1, atol=1e-6)
        assert np.abs(rgb_correction(matrix) - np.eye(3)).max() > 1e-3
    for matrix in ("bt601", "untagged"):
        np.testing.assert_array_equal(rgb_correction(matrix), np.eye(3, dtype=np.float32))
