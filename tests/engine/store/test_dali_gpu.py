"""NVDEC itself: the same pictures as PyAV, from the same files, on a machine with a GPU."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dfmtest_drawn_clips import draw, encode, tagged, turned

from dfm_engine.clip import QUALITIES, Box
from dfm_engine.faces.pictures import ClipRange, PyavReader
from dfm_engine.media.encode import encode_clip, provenance_comment, rgb_to_i420
from dfm_engine.media.outline import read_outline
from dfm_engine.recipe import Clips, Limits
from dfm_engine.store.dali import DaliSampler
from dfm_engine.store.dali_reader import DaliReader
from dfm_engine.store.dali_run import DaliRunner, Failed, to_device
from dfm_engine.store.nvdec import gpu_spec, parts_of, why_not_dali
from dfm_engine.store.pyav import PyavSampler
from dfm_engine.store.routing import Stream
from dfm_engine.store.sampler import ClipToSample, Refused, Sampled

pytestmark = pytest.mark.gpu

SIZE, FRAMES = 256, 40
BOX = Box(20.5, 11.25, 190.75, 181.5)
CLIPS, LIMITS = Clips(fps=25, max_frames=60, min_frames=1), Limits()


@pytest.fixture(autouse=True)
def _needs_nvdec() -> None:
    if reason := why_not_dali():
        pytest.skip(reason)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    frames = draw(FRAMES, SIZE, SIZE)
    planes = rgb_to_i420(frames)
    for quality in QUALITIES:
        comment = provenance_comment({"synthetic": True})
        encode_clip(planes, folder / f"{quality}.mp4", quality=quality, fps=25, comment=comment)
    wide = draw(FRAMES, 320, 240)
    encode(folder / "bt709.mp4", wide, prepare=tagged(1, 1), options={"g": "250", "bf": "3"})
    encode(folder / "unaligned.mp4", draw(FRAMES, 328, 252))
    encode(folder / "vfr.mp4", wide, pts=[k + (7 if k > 9 else 0) for k in range(FRAMES)])
    encode(folder / "lossless.mp4", wide, options={"crf": "0"})
    encode(folder / "444.mp4", wide, pix_fmt="yuv444p")
    turned(1)(folder / "turned.mp4")
    return folder


def near(got: np.ndarray, expected: np.ndarray) -> None:
    """datapath tolerance of two decoders."""
    assert got.shape == expected.shape
    error = np.abs(got.astype(int) - expected)
    assert error.mean() < 0.5, error.mean()
    assert np.percentile(error, 99) < 3


def clips(folder: Path, names: list[str]) -> Iterator[ClipToSample]:
    for place, name in enumerate(names):
        path = folder / name
        yield ClipToSample(
            place=place,
            path=path,
            clip_frames=len(read_outline(path).times_s),
            wanted=np.array([0, 3, 11], np.int32),
            box=None if name.startswith(("raw", "c")) else BOX,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        )


def frames_of(sampler: DaliSampler | PyavSampler, given: list[ClipToSample]) -> list[np.ndarray]:
    found: list[list[np.ndarray]] = [[] for _ in given]
    for item in sampler.sample(given):
        assert not isinstance(item, Refused), item.error
        assert isinstance(item, Sampled)
        found[item.clip.place].append(item.frames.copy())
    return [np.concatenate(pieces) for pieces in found]


NAMES = [
    *(f"{quality}.mp4" for quality in QUALITIES),
    *("bt709.mp4", "unaligned.mp4", "vfr.mp4", "lossless.mp4", "444.mp4", "turned.mp4"),
]


def test_a_store_filled_by_nvdec_is_the_one_filled_by_pyav(folder: Path) -> None:
    pyav = PyavSampler(size_px=SIZE, layout="rgb24", workers=2)
    ours = DaliSampler(size_px=SIZE, fallback=pyav)
    given = [replace(clip, place=k) for k, clip in enumerate(clips(folder, NAMES * 20))]
    got, expected = frames_of(ours, given), frames_of(pyav, given)
    for one, other in zip(got, expected, strict=True):
        near(one, other)
    # 84x64, stored 64x84: above NVDEC's least size; lossless and 4:4:4 are not for it.
    assert ours.routes["nvdec"] == 20 * (len(NAMES) - 2)
    assert (ours.routes["profile"], ours.routes["pixel-format"]) == (20, 20)
    again = frames_of(ours, given)
    for one, other in zip(got, again, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["c23.mp4", "bt709.mp4", "vfr.mp4", "unaligned.mp4", "turned.mp4"])
def test_framing_sees_the_same_frames_through_nvdec(folder: Path, name: str) -> None:
    path = folder / name
    clip = ClipRange(
        path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), mirrored=name == "vfr.mp4"
    )
    ours = DaliReader()
    shown = list(ours.look(clip, every_n=5, limits=LIMITS, clips=CLIPS))
    expected = list(PyavReader().look(clip, every_n=5, limits=LIMITS, clips=CLIPS))
    assert [index for index, _ in shown] == [index for index, _ in expected]
    for (_, one), (_, other) in zip(shown, expected, strict=True):
        near(one, other)
    settings = {"size": 64, "limits": LIMITS, "clips": CLIPS, "first_frame": 2}
    near(
        ours.crop(clip, BOX, **settings),  # type: ignore[arg-type]
        PyavReader().crop(clip, BOX, **settings),  # type: ignore[arg-type]
    )
    assert ours.routes == {"nvdec": 2}


@pytest.mark.parametrize("name", ["c23.mp4", "bt709.mp4"])
def test_no_channel_is_brighter_through_nvdec(folder: Path, name: str) -> None:
    """Crops average some pixels, so what rounding adds cancels; 0.87 and 1.08 were once there."""
    (clip,) = clips(folder, [name])
    clip = replace(clip, box=BOX)
    pyav = PyavSampler(size_px=64, layout="rgb24", workers=1)
    (got,) = frames_of(DaliSampler(size_px=64, fallback=pyav), [clip])
    (expected,) = frames_of(pyav, [clip])
    shift = (got.astype(np.float64) - expected).mean(axis=(0, 1, 2))
    with DaliRunner(gpu_spec()) as runner:
        assert np.abs(shift).max() < 0.15, f"{shift} with {runner.bias} taken off"


def test_what_nvdec_cannot_decode_fails_loudly_and_costs_nothing_else(folder: Path) -> None:
    def part(name: str):
        outline = read_outline(folder / name)
        stream = Stream.of_outline(outline)
        content = np.fromfile(folder / name, np.uint8)
        wanted = np.array([0, 5], np.int32)
        return parts_of(outline, stream, content, wanted, box=BOX, size=(64, 64))[0]

    names = ["c23.mp4", "444.mp4", "bt709.mp4", "lossless.mp4", "vfr.mp4"]
    with DaliRunner(gpu_spec()) as runner:
        found = [result for _, result in runner.run(map(part, names))]
        sound = [r for _, r in runner.run(map(part, names[::2]))]
    assert isinstance(found[1], Failed)
    for place, alone in zip((0, 2, 4), sound, strict=True):
        np.testing.assert_array_equal(found[place], alone)


def test_tensors_stay_on_the_device(folder: Path) -> None:
    outline = read_outline(folder / "c23.mp4")
    stream = Stream.of_outline(outline)
    content = np.fromfile(folder / "c23.mp4", np.uint8)
    (part,) = parts_of(
        outline, stream, content, np.arange(4, dtype=np.int32), box=BOX, size=(64, 64)
    )
    with DaliRunner(gpu_spec()) as host:
        ((_, expected),) = host.run([part])
    with DaliRunner(gpu_spec(), take=to_device) as runner:
        ((_, got),) = runner.run([part])
    assert got.is_cuda
    np.testing.assert_array_equal(got.cpu().numpy(), expected)
