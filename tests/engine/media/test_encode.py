"""Canonical clips: colour, codec, bytes, and what the container may say."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import Interpolation

from dfm_engine.clip import QUALITIES, Quality
from dfm_engine.durable import remove_leftovers, write_durably
from dfm_engine.errors import EnvironmentUnfit, MediaError, ShapeError
from dfm_engine.media.bitstream import stream_facts, x264_options
from dfm_engine.media.encode import (
    COMMENT_BYTES,
    X264_OPTIONS,
    encode_clip,
    provenance_comment,
    rgb_to_i420,
    x264_options_at,
)

REAL = provenance_comment({"synthetic": False, "source": "0123456789abcdef"})
FAKE = provenance_comment(
    {
        "synthetic": True,
        "generator": "fomm",
        "weights_sha256": "f" * 64,
        "source": "0123456789abcdef",
        "driving": "fedcba9876543210",
        "action": "embarrassment",
    }
)


def soft_frames(count: int, size: int = 64, seed: int = 0) -> np.ndarray:
    """Smooth moving colour, as compressible as a face and never twice the same."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    time = np.arange(count)[:, None, None, None] / 10
    waves = rng.uniform(1, 6, (3, 2))
    phase = waves[:, 0] * x[..., None] + waves[:, 1] * y[..., None]
    return (127.5 + 120 * np.sin(phase[None] + time * waves[:, 0])).astype(np.uint8)


def i420_float64(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """BT.601-7, 2.5.1 and 2.5.3, before rounding: luma (T, H, W), chroma (T, 2, H/2, W/2)."""
    rgb = frames.astype(np.float64) / 255
    luma = rgb @ np.array([0.299, 0.587, 0.114])
    mean = rgb.reshape(*rgb.shape[:1], rgb.shape[1] // 2, 2, rgb.shape[2] // 2, 2, 3).mean((2, 4))
    mean_luma = mean @ np.array([0.299, 0.587, 0.114])
    blue = (mean[..., 2] - mean_luma) / 1.772
    red = (mean[..., 0] - mean_luma) / 1.402
    return 16 + 219 * luma, 128 + 224 * np.stack([blue, red], axis=1)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, Quality], Path]:
    """One real and one fake clip of other pixels, in every quality."""
    folder = tmp_path_factory.mktemp("clips")
    paths: dict[tuple[str, Quality], Path] = {}
    for label, comment, seed in (("real", REAL, 1), ("fake", FAKE, 2)):
        i420 = rgb_to_i420(soft_frames(31, seed=seed))
        for quality in QUALITIES:
            path = folder / f"{label}.{quality}.mp4"
            encode_clip(i420, path, quality=quality, fps=25, comment=comment)
            paths[label, quality] = path
    return paths


def test_every_sample_is_the_float64_value_rounded() -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 34, 50, 3), dtype=np.uint8)
    frames[0, :8, :8] = 255
    frames[0, 8:16, :8] = 0
    frames[0, 16:24, :8] = (255, 0, 0)
    luma, chroma = i420_float64(frames)
    i420 = rgb_to_i420(frames)
    # half a step of rounding, and 255 * 3 / 2**17 of fixed point
    tolerance = 0.5 + 255 * 3 / 2**17
    assert np.abs(i420[:, :34] - luma).max() <= tolerance
    assert np.abs(i420[:, 34:].reshape(3, 2, 17, 25) - chroma).max() <= tolerance
    assert (i420[0, 0, 0], i420[0, 8, 0], i420[0, 16, 0]) == (235, 16, 81)


@pytest.mark.parametrize("grey", [0, 1, 77, 128, 254, 255])
def test_grey_has_no_colour(grey: int) -> None:
    i420 = rgb_to_i420(np.full((1, 4, 4, 3), grey, np.uint8))
    assert (i420[0, 4:] == 128).all()


@pytest.mark.parametrize("axis", [0, 1], ids=["down", "across"])
def test_swscale_puts_the_colours_back_where_they_were(axis: int) -> None:
    ramp = np.mgrid[0:64, 0:64][axis] * 3
    rgb = np.stack([20 + ramp, np.full_like(ramp, 100), 220 - ramp], -1).astype(np.uint8)
    accurate = Interpolation.BILINEAR | Interpolation.ACCURATE_RND
    accurate |= Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
    back = av.VideoFrame.from_ndarray(rgb_to_i420(rgb[None])[0], format="yuv420p").to_ndarray(
        format="rgb24", src_colorspace="ITU601", interpolation=accurate
    )
    error = (back.astype(int) - rgb)[8:-8, 8:-8]
    # Half a step of luma is 0.6 levels, of chroma up to 1.0; they cancel over a ramp. Chroma
    # sited half a pixel off would shift red minus blue by 3 levels.
    assert np.abs(error).max() <= 2
    assert np.abs(error.mean((0, 1))).max() < 0.1


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((1, 5, 4, 3), np.uint8),
        np.zeros((1, 4, 5, 3), np.uint8),
        np.zeros((0, 4, 4, 3), np.uint8),
        np.zeros((1, 4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.uint8),
    ],
    ids=["odd height", "odd width", "no frame", "float", "no time"],
)
def test_unfit_frames_are_refused(frames: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="frames"):
        rgb_to_i420(frames)


@pytest.mark.parametrize("quality", QUALITIES)
def test_bitstream_facts_are_the_canonical_ones(clips, quality: Quality) -> None:
    facts = stream_facts(clips["fake", quality])
    assert facts.profile == ("Constrained Baseline" if quality == "raw" else "High")
    assert (facts.pix_fmt, facts.width, facts.height) == ("yuv420p", 64, 64)
    tags = facts.colour_range, facts.colour_matrix, facts.colour_primaries, facts.colour_transfer
    assert tags == (0, 2, 2, 2)  # unspecified, all four
    assert (facts.fps, facts.container_fps) == (25, 25)
    assert (facts.frames, facts.container_frames) == (31, 31)
    assert facts.x264_options == X264_OPTIONS[quality]
    assert x264_options(clips["fake", quality]) == X264_OPTIONS[quality]


@pytest.mark.parametrize("quality", QUALITIES)
def test_classes_differ_in_no_fact_but_the_comments_words(clips, quality: Quality) -> None:
    real, fake = (asdict(stream_facts(clips[label, quality])) for label in ("real", "fake"))
    comments = real.pop("comment"), fake.pop("comment")
    assert real == fake
    assert [len(comment.encode()) for comment in comments] == [COMMENT_BYTES] * 2
    assert [json.loads(comment)["synthetic"] for comment in comments] == [False, True]


@pytest.mark.parametrize("quality", QUALITIES)
def test_container_is_of_one_size_around_the_same_pictures(tmp_path: Path, quality) -> None:
    i420 = rgb_to_i420(soft_frames(8))
    sizes = {
        encode_clip(
            i420, tmp_path / f"{i}.mp4", quality=quality, fps=25, comment=comment
        ).size_bytes
        for i, comment in enumerate((REAL, FAKE))
    }
    assert len(sizes) == 1


@pytest.mark.parametrize("quality", QUALITIES)
def test_same_frames_give_the_same_bytes(tmp_path: Path, quality: Quality) -> None:
    i420 = rgb_to_i420(soft_frames(12))
    first, again = (
        encode_clip(i420, tmp_path / name, quality=quality, fps=25, comment=FAKE)
        for name in ("a.mp4", "b.mp4")
    )
    data = first.path.read_bytes()
    assert data == again.path.read_bytes()
    assert (first.size_bytes, first.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert first.frames == 12
    assert b"Lavf" not in data  # a version of the muxer would change the bytes on an upgrade
    assert not list(tmp_path.glob("*.tmp-*"))


@pytest.mark.parametrize("size", [32, 112])
def test_bytes_do_not_depend_on_what_was_in_memory(tmp_path: Path, size: int) -> None:
    # At these sizes x264's AVX-512 code gives other bytes nearly every time; see `_parameters`.
    i420 = rgb_to_i420(soft_frames(24, size=size))
    rng = np.random.default_rng(0)
    hashes = set()
    for _ in range(12):
        litter = [np.full(n, n % 251, np.uint8) for n in rng.integers(1, 200_000, 20)]
        del litter  # its memory, full of other numbers, is what the encoder gets
        path = tmp_path / "x.mp4"
        hashes.add(encode_clip(i420, path, quality="c23", fps=25, comment=REAL).sha256)
    assert len(hashes) == 1


@pytest.mark.parametrize("fps", [10, 30])
def test_other_rates_are_in_the_bitstream_too(tmp_path: Path, fps: int) -> None:
    path = tmp_path / "x.mp4"
    encode_clip(rgb_to_i420(soft_frames(5)), path, quality="c40", fps=fps, comment=REAL)
    facts = stream_facts(path)
    assert (facts.fps, facts.container_fps, facts.frames) == (fps, fps, 5)
    assert facts.x264_options == x264_options_at("c40", fps)


def test_raw_is_near_lossless_and_qualities_are_ordered(clips) -> None:
    truth = rgb_to_i420(soft_frames(31, seed=2))[:, :64].astype(float)
    psnr = []
    for quality in QUALITIES:
        with av.open(str(clips["fake", quality])) as container:
            planes = np.stack([frame.to_ndarray() for frame in container.decode(video=0)])
        psnr.append(10 * np.log10(255**2 / np.mean((planes[:, :64] - truth) ** 2)))
    assert psnr[0] > 50
    assert psnr[0] > psnr[1] + 5 > psnr[2] + 10


def test_a_file_without_x264_has_no_options(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(rgb_to_i420(soft_frames(1))[0], format="yuv420p")
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    path = tmp_path / "mpeg4.mp4"
    path.write_bytes(buffer.getvalue())
    assert x264_options(path) == ""
    with pytest.raises(MediaError, match=r"no H\.264"):
        stream_facts(path)


def test_a_damaged_file_is_a_media_error(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    path.write_bytes(b"\0" * 100)
    for read in (stream_facts, x264_options):
        with pytest.raises(MediaError, match="corrupt"):
            read(path)


def test_comment_must_name_its_class_and_fit() -> None:
    with pytest.raises(ValueError, match="synthetic"):
        provenance_comment({"action": "smile"})
    with pytest.raises(ValueError, match="512 fit"):
        provenance_comment({"synthetic": True, "x": "y" * 512})
    assert "action" not in provenance_comment({"synthetic": False, "action": None})
    assert len(provenance_comment({"synthetic": True, "name": "é" * 20}).encode()) == COMMENT_BYTES


FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from dfm_engine.errors import EnvironmentUnfit
from dfm_engine.media.encode import encode_clip
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # every write beyond is refused
frames = np.random.default_rng(0).integers(0, 256, (4, 96, 64), dtype=np.uint8)
try:
    encode_clip(frames, Path(sys.argv[1]), quality="raw", fps=25, comment="")
except EnvironmentUnfit as error:
    print(error)
"""


def test_a_write_that_stops_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, path], capture_output=True, text=True, check=True
    )
    assert "clip.mp4" in done.stdout
    assert "File too large" in done.stdout
    assert "free space" in done.stdout
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("clip.mp4", b"old")]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where a folder should be")
    with pytest.raises(EnvironmentUnfit, match=r"data/real/x\.mp4.*Not a directory"):
        encode_clip(
            rgb_to_i420(soft_frames(1)),
            tmp_path / "data/real/x.mp4",
            quality="raw",
            fps=25,
            comment=REAL,
        )


def test_leftovers_are_only_temporary_files(tmp_path: Path) -> None:
    write_durably(tmp_path / "a/b.mp4", b"kept")
    for name in ("a/b.mp4.tmp-123", "c.json.tmp-1"):
        (tmp_path / name).write_bytes(b"part")
    (tmp_path / "notes.tmp-x").write_text("somebody's")
    removed = remove_leftovers(tmp_path)
    assert sorted(p.name for p in removed) == ["b.mp4.tmp-123", "c.json.tmp-1"]
    left = sorted(p.name for p in tmp_path.rglob("*") if p.is_file())
    assert left == ["b.mp4", "notes.tmp-x"]


def test_encoding_does_not_import_torch() -> None:
    modules = "dfm_engine.media.encode, dfm_engine.media.bitstream"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.stdout.strip() == "False"
