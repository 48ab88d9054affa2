"""Colours of the GPU's decoder: what it adds is measured on greys and taken off every frame."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from dfmtest_dali import HEIGHT, SOFTWARE, WIDTH, vp9

from dfm_engine.errors import EnvironmentUnfit
from dfm_engine.media.colour import RgbConverter
from dfm_engine.media.decode import read_native_frames
from dfm_engine.store.dali_graph import GraphSpec, build_graph
from dfm_engine.store.dali_run import DaliRunner, Part
from dfm_engine.store.dali_trial import GreySteps, affine_colour, decoder_bias, grey_steps
from dfm_engine.store.routing import rgb_correction

GOLDEN = Path(__file__).with_name("golden_nvdec.mp4")
GOLDEN_STEP_PX = 5

# BT.601, limited range: rows R, G, B on (Y - 16, Cb - 128, Cr - 128), ITU-R BT.601-7.
BT601 = np.array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]]) * (
    [255 / 219, 255 / 224, 255 / 224]
)
# DALI 2.4.0 subtracts 0.0625, 0.5 and 0.5 of samples over 255.
DALI_OFFSETS = np.array([0.0625, 0.5, 0.5]) * 255
NVDEC_BIAS = BT601 @ ([16, 128, 128] - DALI_OFFSETS)  # 0.871, -0.530, 1.082
TO_709 = rgb_correction("bt709")


@pytest.fixture(scope="module")
def steps() -> GreySteps:
    return grey_steps("libx264")


def golden() -> np.ndarray:
    """(3, 52, 52, 3) float64: what NVDEC showed of the clip."""
    with np.load(GOLDEN.with_suffix(".npz")) as file:
        return file["rgb"].astype(np.float64)


def by_pyav() -> np.ndarray:
    """The same pixels of the same clip by the project's reader."""
    frames = np.stack([native.rgb for native in read_native_frames(GOLDEN)][:3])
    return frames[:, ::GOLDEN_STEP_PX, ::GOLDEN_STEP_PX].astype(np.float64)


def nvdec_shows(steps: GreySteps) -> np.ndarray:
    return np.rint(steps.levels[..., None] + NVDEC_BIAS)


@pytest.mark.parametrize("codec", ["libx264", "libvpx-vp9"])
def test_the_clip_for_trials_is_grey_and_holds_every_step(codec: str) -> None:
    steps = grey_steps(codec)
    with av.open(io.BytesIO(steps.file.tobytes()), "r") as file:
        (frame,) = file.decode(video=0)
    samples = frame.to_ndarray()
    assert (samples[256:] == 128).all()
    luma, counts = np.unique(samples[:256][steps.is_step], return_counts=True)
    assert luma.tolist() == list(range(50, 196))
    assert (counts == 256).all()
    np.testing.assert_allclose(RgbConverter().convert(frame)[..., 0], steps.levels, atol=0.51)


def test_a_constant_below_one_level_is_measured_in_spite_of_rounding(steps: GreySteps) -> None:
    for bias in ((0.0, 0.0, 0.0), tuple(NVDEC_BIAS), (0.25, -1.4, 0.03)):
        shown = np.rint(steps.levels[..., None] + np.array(bias))
        # Steps of 1/73 level: the mean of the rounded is off by half of one at most.
        np.testing.assert_allclose(decoder_bias(shown, steps), bias, atol=0.5 / 73 + 1e-9)


def test_what_is_no_constant_is_refused(steps: GreySteps) -> None:
    grey = np.repeat(steps.levels[..., None], 3, axis=2)
    with pytest.raises(EnvironmentUnfit, match=r"\+5\.00, \+5\.00, \+5\.00 levels off.*pyav"):
        decoder_bias(grey + 5, steps)
    as_full_range = grey * 219 / 255 + 16
    with pytest.raises(EnvironmentUnfit, match="levels off"):
        decoder_bias(as_full_range, steps)
    with pytest.raises(EnvironmentUnfit, match="beside that"):
        decoder_bias((grey - 123) * 1.02 + 123, steps)


def test_the_golden_pictures_are_dalis_formula_with_its_own_offsets() -> None:
    """So the constant holds for all colours, and greys tell it."""
    shown = golden()
    exact = by_pyav()
    error = shown - exact
    np.testing.assert_allclose(error.mean(axis=(0, 1, 2)), NVDEC_BIAS, atol=0.06)
    for colour in (exact[..., 0] > exact[..., 2] + 20, exact.mean(-1) < 60):  # skin; hair
        assert colour.sum() > 500
        np.testing.assert_allclose(error[colour].mean(axis=0), NVDEC_BIAS, atol=0.15)


def test_golden_pictures_less_the_measured_bias_are_pyavs(steps: GreySteps) -> None:
    bias = decoder_bias(nvdec_shows(steps), steps)
    off = np.abs(golden() - by_pyav())
    assert off.mean() > 0.7  # what this is about
    error = np.abs(np.rint(golden() - bias).clip(0, 255) - by_pyav())
    assert error.mean() < 0.3
    assert np.percentile(error, 99) < 3
    assert error.max() <= 1


def test_bt709_and_the_bias_are_undone_together(steps: GreySteps) -> None:
    bias = decoder_bias(nvdec_shows(steps), steps)
    affine = affine_colour(TO_709, bias).astype(np.float64)
    assert affine.shape == (3, 4)
    got = golden() @ affine[:, :3].T + affine[:, 3]
    error = got - by_pyav() @ TO_709.T.astype(np.float64)
    assert np.abs(error.mean(axis=(0, 1, 2))).max() < 0.08


class Shifted:
    """A pipeline whose decoder adds a constant before it rounds, and the runner does not know."""

    def __init__(self, spec: GraphSpec, shift: np.ndarray, gain: float = 1.0) -> None:
        self.pipeline, self.spec = build_graph(spec), spec
        self.shift, self.gain = shift, gain
        self.trials = spec.depth  # the first runs are of the clip for trials

    def feed_input(self, name: str, data: list[np.ndarray]) -> None:
        if name == "colour":
            moved = [m[:, :3] @ self.shift[:, None] + m[:, 3:] for m in data]
            data = [
                np.concatenate([m[:, :3], column], axis=1).astype(np.float32)
                for m, column in zip(data, moved, strict=True)
            ]
        self.pipeline.feed_input(name, data)

    def share_outputs(self) -> Any:
        (output,) = self.pipeline.share_outputs()
        if not self.trials:
            return (output,)
        self.trials -= 1
        grey = grey_steps("libvpx-vp9").levels[None, ..., None]
        shown = np.rint(grey * self.gain + self.shift).clip(0, 255)
        if self.spec.mean is not None:
            std = np.asarray(self.spec.std)
            shown = np.moveaxis((shown - np.asarray(self.spec.mean)) / std, -1, 1)
        return ([shown],)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipeline, name)


def part(path: Path, wanted: tuple[int, ...], colour: np.ndarray | None = None) -> Part:
    return Part(
        name=path.name,
        payload=np.fromfile(path, np.uint8),
        wanted=np.array(wanted, np.int32),
        box=(0.0, 0.0, float(WIDTH), float(HEIGHT)),
        size=(HEIGHT, WIDTH),
        decoded_bytes=1000,
        colour=np.eye(3, dtype=np.float32) if colour is None else colour,
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    return vp9(tmp_path_factory.mktemp("clips") / "clip.webm")


@pytest.mark.parametrize("shift", [NVDEC_BIAS, np.array([-0.4, 0.0, 1.7])])
def test_a_runner_gives_the_same_frames_whatever_its_decoder_adds(
    clip: Path, shift: np.ndarray
) -> None:
    beyond = part(clip, (999,))
    parts = [part(clip, (0, 5)), part(clip, (3,), TO_709), beyond, part(clip, (7,))]
    with DaliRunner(SOFTWARE) as plain:
        expected = [result for _, result in plain.run(parts)]
        assert np.abs(plain.bias).max() < 0.02  # DALI's decoder on a CPU is right about greys
    with DaliRunner(SOFTWARE, build=lambda spec: Shifted(spec, shift)) as runner:
        np.testing.assert_allclose(runner.bias, shift, atol=0.02)
        got = [result for _, result in runner.run(parts)]
        assert runner.rebuilt > 0  # by the picture beyond the end; measured again
        np.testing.assert_allclose(runner.bias, shift, atol=0.02)
    for place in (0, 1, 3):
        error = np.abs(got[place].astype(int) - expected[place])
        assert error.max() <= 1
        assert error.mean() < 0.02  # only where a sum is close to a half


def test_a_graph_that_normalises_is_measured_in_levels_too(clip: Path) -> None:
    spec = GraphSpec(source="software", threads=1, batch_size=2, mean=(9, 8, 7), std=(2, 3, 4))
    with DaliRunner(spec, build=lambda spec: Shifted(spec, NVDEC_BIAS)) as runner:
        np.testing.assert_allclose(runner.bias, NVDEC_BIAS, atol=0.02)
    with DaliRunner(spec) as runner:
        np.testing.assert_allclose(runner.bias, 0, atol=0.02)


def test_a_decoder_with_another_gain_is_not_used(clip: Path) -> None:
    with pytest.raises(EnvironmentUnfit, match="DALI shows a grey picture"):
        DaliRunner(SOFTWARE, build=lambda spec: Shifted(spec, np.zeros(3), gain=1.1))


def test_pictures_that_pyav_decoded_are_not_corrected() -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    with DaliRunner(GraphSpec(source="frames", batch_size=1, threads=1)) as runner:
        assert not runner.bias.any()
