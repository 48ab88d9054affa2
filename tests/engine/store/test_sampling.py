from __future__ import annotations

import hashlib
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from dfmtest_broken_files import make_files
from numpy.typing import NDArray
from PIL import Image

from dfm_engine.clip import QUALITIES
from dfm_engine.errors import MediaError
from dfm_engine.media.chosen import read_chosen
from dfm_engine.media.colour import RgbConverter
from dfm_engine.media.cropping import BoxCropper, middle_square
from dfm_engine.media.decode import read_frames
from dfm_engine.media.encode import encode_clip, provenance_comment, rgb_to_i420
from dfm_engine.media.probe import probe
from dfm_engine.media.reader import ClipReader
from dfm_engine.recipe import Limits
from dfm_engine.store.sampler import evenly_spaced
from dfm_engine.store.sampling import sample_clip
from dfm_kernels.crop import crop_reference

FRAMES = 60


def draw(count: int = FRAMES, height: int = 64, width: int = 64) -> NDArray[np.uint8]:
    """A disc that wanders over a slope: enough motion for B-frames of every kind."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    frames = []
    for k in range(count):
        angle = 2 * np.pi * k / 23
        near = np.hypot(x - width * (0.5 + 0.3 * np.cos(angle)), y - height * 0.5) < 9
        slope = np.stack([x * 3 + k, y * 3, 255 - x * 2], -1)
        frames.append(np.where(near[..., None], [250, 60, 20 + 3 * k], slope))
    return np.stack(frames).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clips")
    paths = {quality: folder / f"{quality}.mp4" for quality in QUALITIES}
    planes = rgb_to_i420(draw())
    for quality in QUALITIES:
        comment = provenance_comment({"synthetic": True})
        encode_clip(planes, paths[quality], quality=quality, fps=25, comment=comment)
    return dict(paths)


def sample(path: Path, **changes: object) -> tuple[NDArray[np.uint8], str]:
    arguments = {
        "kind": "video",
        "clip_frames": FRAMES,
        "wanted": [0, 7, 31, 59],
        "box": None,
        "sha256": None,
        "size_px": 64,
        "layout": "rgb24",
        "limits": Limits(),
    } | changes
    made = sample_clip(path, **arguments)  # pyright: ignore[reportArgumentType]
    return np.stack(list(made.frames)), made.sha256()


@pytest.mark.parametrize("quality", QUALITIES)
@pytest.mark.parametrize("wanted", [[0], [59], [5, 6, 7], [11, 30, 44], list(range(FRAMES))])
def test_chosen_pictures_are_those_of_a_full_decode(
    clips: dict[str, Path], quality: str, wanted: list[int]
) -> None:
    with ClipReader(clips[quality]) as clip:
        planes = [frame.to_ndarray() for frame, _ in clip.pictures()]
    chosen = [frame.to_ndarray() for frame, _ in read_chosen(clips[quality], wanted, count=FRAMES)]
    assert len(chosen) == len(wanted)
    for number, frame in zip(wanted, chosen, strict=True):
        np.testing.assert_array_equal(frame, planes[number], err_msg=f"picture {number}")


@pytest.mark.slow
def test_chosen_pictures_of_odd_files_are_those_of_a_full_decode(tmp_path: Path) -> None:
    """HEVC, open groups, edit lists, several streams, fields, other containers."""
    make_files(tmp_path)
    skipped = checked = 0
    for path in sorted(tmp_path.iterdir()):
        found = probe(path)
        if found.verdict != "accept" or found.is_still or not found.frames:
            continue
        full = list(read_frames(path, fps=None))
        convert = RgbConverter().convert
        for count in (1, 3, 7):
            wanted = evenly_spaced(found.frames, count).tolist()
            for number, (frame, clip) in zip(
                wanted, read_chosen(path, wanted, count=found.frames), strict=True
            ):
                rgb = convert(frame, aspect=clip.aspect)
                np.testing.assert_array_equal(rgb, full[number], err_msg=f"{path} {number}")
                skipped += clip.shown <= number
        checked += 1
    assert checked > 30
    assert skipped > 5  # so it was not a full decode every time


def test_choosing_leaves_out_what_nothing_refers_to(clips: dict[str, Path]) -> None:
    shown = [clip.shown for _, clip in read_chosen(clips["c23"], [0, 59], count=FRAMES)]
    assert 1 < shown[-1] < 0.7 * FRAMES


def test_a_clip_with_another_number_of_pictures_is_refused(clips: dict[str, Path]) -> None:
    with pytest.raises(MediaError, match=r"holds 60 pictures instead of 61 .*\[corrupt\]"):
        list(read_chosen(clips["c23"], [3], count=61))


def test_pictures_without_an_index_are_counted_out(clips: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "raw.h264"
    with av.open(str(clips["raw"])) as source, av.open(str(path), "w", format="h264") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    expected, _ = sample(clips["raw"])
    found, _ = sample(path)
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(MediaError, match="picture 60 does not decode, though an earlier look"):
        sample(path, wanted=[60], clip_frames=61)


def test_damage_before_the_last_wanted_picture_refuses_the_clip(
    clips: dict[str, Path], tmp_path: Path
) -> None:
    data = bytearray(clips["raw"].read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    path = tmp_path / "hurt.mp4"
    path.write_bytes(data)
    with pytest.raises(MediaError) as failure:
        sample(path)
    assert failure.value.kind == "corrupt"


def test_rgb_frames_are_those_of_the_projects_decoder(clips: dict[str, Path]) -> None:
    frames, sha256 = sample(clips["c23"])
    expected = list(read_frames(clips["c23"], fps=None))
    np.testing.assert_array_equal(frames, np.stack([expected[k] for k in (0, 7, 31, 59)]))
    assert sha256 == hashlib.sha256(clips["c23"].read_bytes()).hexdigest()


def test_a_whole_canonical_clip_keeps_the_decoders_own_planes(clips: dict[str, Path]) -> None:
    with ClipReader(clips["c40"]) as clip:
        planes = [frame.to_ndarray() for frame, _ in clip.pictures()]
    frames, _ = sample(clips["c40"], layout="i420")
    assert frames.shape == (4, 96, 64)
    np.testing.assert_array_equal(frames, np.stack([planes[k] for k in (0, 7, 31, 59)]))


def test_a_cut_clip_goes_through_rgb_to_i420(clips: dict[str, Path]) -> None:
    box = (8.5, 4.0, 40.5, 36.0)
    rgb, _ = sample(clips["c23"], box=box)
    cut, _ = sample(clips["c23"], box=box, layout="i420")
    np.testing.assert_array_equal(cut, rgb_to_i420(rgb))
    full = torch.from_numpy(np.stack(list(read_frames(clips["c23"], fps=None)))[[0, 7, 31, 59]])
    expected = np.floor(crop_reference(full.double(), box, 64).numpy() + 0.5)
    assert np.abs(rgb - expected).max() <= 1
    assert (rgb != expected).mean() < 1e-3


def test_a_file_that_changed_since_it_was_listed_is_refused(clips: dict[str, Path]) -> None:
    with pytest.raises(MediaError, match=r"instead of 0000000000000000\.\.\.: it was changed"):
        sample(clips["raw"], sha256="0" * 64)


def test_a_folder_of_pictures_is_a_clip_in_the_order_of_its_names(tmp_path: Path) -> None:
    drawn = draw(12)
    for k, frame in enumerate(drawn):
        Image.fromarray(frame).save(tmp_path / f"{k}.png")  # 10 comes after 9
    (tmp_path / "notes.txt").write_text("no picture")
    frames, sha256 = sample(tmp_path, kind="pictures", clip_frames=12, wanted=[1, 2, 10])
    np.testing.assert_array_equal(frames, drawn[[1, 2, 10]])
    digests = [hashlib.sha256((tmp_path / f"{k}.png").read_bytes()) for k in (1, 2, 10)]
    joined = "\n".join(digest.hexdigest() for digest in digests)
    assert sha256 == hashlib.sha256(joined.encode()).hexdigest()


def test_pictures_that_do_not_fit_refuse_their_folder(tmp_path: Path) -> None:
    for k, frame in enumerate(draw(3)):
        Image.fromarray(frame[: 64 - 8 * (k == 2)]).save(tmp_path / f"{k}.png")
    with pytest.raises(MediaError, match=r"is 64x56, those before it .* 64x64.*\[size-change\]"):
        sample(tmp_path, kind="pictures", clip_frames=3, wanted=[0, 1, 2])
    with pytest.raises(MediaError, match="holds 3 pictures instead of 4"):
        sample(tmp_path, kind="pictures", clip_frames=4, wanted=[0])
    (tmp_path / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(MediaError) as failure:
        sample(tmp_path, kind="pictures", clip_frames=3, wanted=[1])
    assert failure.value.kind in ("corrupt", "truncated")


@pytest.mark.parametrize(
    ("shape", "box", "size"),
    [
        ((48, 80), (0, 0, 80, 48), 32),
        ((90, 90), (10.3, 5.1, 70.9, 65.7), 64),
        ((64, 64), (-9.5, -3.25, 30.5, 36.75), 96),
        ((33, 57), (40, 10, 70, 40), 16),
    ],
)
def test_crops_follow_the_one_rule_within_a_rounding(
    shape: tuple[int, int], box: tuple[float, ...], size: int
) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    cut = BoxCropper(*shape, box, size)(picture)
    exact = crop_reference(torch.from_numpy(picture)[None].double(), box, size)[0].numpy()
    # Half a level of rounding, and float32 sums of at most a few dozen taps below 256.
    assert np.abs(cut - exact).max() < 0.5 + 1e-3
    with pytest.raises(ValueError, match="made for uint8"):
        BoxCropper(*shape, box, size)(picture[1:])


def test_the_middle_square_leaves_equal_margins() -> None:
    assert middle_square(60, 100) == (20, 0, 80, 60)
    assert middle_square(101, 60) == (0, 20.5, 60, 80.5)


def test_evenly_spaced_frames_are_the_middles_of_equal_parts() -> None:
    assert evenly_spaced(12, 4).tolist() == [1, 4, 7, 10]
    assert evenly_spaced(175, 1).tolist() == [87]
    assert evenly_spaced(5, 5).tolist() == evenly_spaced(5, 0).tolist() == [0, 1, 2, 3, 4]
    assert evenly_spaced(5, 16).tolist() == [0, 1, 2, 3, 4]
    for count in range(1, 60):
        for frames in range(1, count + 1):
            chosen = evenly_spaced(count, frames)
            assert len(set(chosen.tolist())) == frames
            assert chosen[0] == (count // (2 * frames))
            assert chosen[-1] < count
            assert chosen[0] + chosen[-1] in range(count - 2, count + 1)  # centred


@pytest.mark.parametrize("options", ["colormatrix=bt709", "fullrange=on"])
def test_a_clip_that_is_tagged_otherwise_is_stored_by_its_own_tags(
    tmp_path: Path, options: str
) -> None:
    path = tmp_path / "tagged.mp4"
    planes = rgb_to_i420(draw(8))
    with av.open(str(path), "w") as target:
        stream = target.add_stream("libx264", rate=25, options={"x264-params": options})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        if "fullrange" in options:
            stream.codec_context.color_range = 2
        for plane in planes:
            target.mux(stream.encode(av.VideoFrame.from_ndarray(plane, format="yuv420p")))
        target.mux(stream.encode())
    rgb = np.stack(list(read_frames(path, fps=None)))
    with ClipReader(path) as clip:
        native = np.stack([frame.to_ndarray() for frame, _ in clip.pictures()])
    wanted = {"clip_frames": 8, "wanted": list(range(8))}
    np.testing.assert_array_equal(sample(path, **wanted)[0], rgb)
    stored, _ = sample(path, layout="i420", **wanted)
    np.testing.assert_array_equal(stored, rgb_to_i420(rgb))
    assert np.abs(stored.astype(int) - native).max() > 5  # its planes are not BT.601 limited
