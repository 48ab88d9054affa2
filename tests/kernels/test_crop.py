"""The crop convention: against hand-written sums, against DALI's CPU operator, and itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import grid_sample, interpolate

from dfm_kernels.crop import Cropper, crop, crop_reference, crop_weights

# x0 y0 x1 y1 in a picture 61 wide and 53 high, and the output (h, w).
CASES = {
    "whole picture, down": ((0.0, 0.0, 61.0, 53.0), (24, 24)),
    "whole picture, up": ((0.0, 0.0, 61.0, 53.0), (96, 128)),
    "float box, down": ((7.3, 5.9, 52.8, 44.2), (16, 17)),
    "float box, up": ((20.25, 11.6, 33.7, 25.05), (40, 40)),
    "mixed scales": ((10.1, 3.3, 55.4, 15.2), (31, 19)),
    "at the border": ((0.4, 0.2, 30.1, 29.9), (16, 16)),
    "partly outside": ((-9.7, -4.2, 40.3, 45.8), (20, 20)),
    "outside on all sides": ((-11.5, -8.25, 75.0, 66.6), (25, 25)),
    "one output sample": ((3.5, 2.5, 40.0, 50.0), (1, 1)),
}


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Noise over stripes over a ramp: no two conventions agree on it."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[0:53, 0:61]
    base = 40 + 2 * x + 40 * ((x // 3 + y // 2) % 2)
    colours = np.stack([base, 255 - base, base[::-1]], axis=2)
    return np.clip(colours + rng.integers(-20, 60, colours.shape), 0, 255).astype(np.uint8)


def triangle_by_hand(line: list[float], start: float, end: float, size: int) -> list[float]:
    """The definition, one sum at a time."""
    scale = (end - start) / size
    radius = max(scale, 1.0)
    result = []
    for i in range(size):
        centre = start + (i + 0.5) * scale
        total = weights = 0.0
        for k in range(math.floor(centre - radius) - 2, math.ceil(centre + radius) + 3):
            weight = max(0.0, 1.0 - abs(k + 0.5 - centre) / radius)
            total += weight * line[min(max(k, 0), len(line) - 1)]
            weights += weight
        result.append(total / weights)
    return result


def crop_by_hand(picture: np.ndarray, box: tuple, size: tuple[int, int]) -> np.ndarray:
    values = picture.astype(float)
    tall = np.stack(
        [
            [triangle_by_hand(list(values[:, x, c]), box[1], box[3], size[0]) for c in range(3)]
            for x in range(values.shape[1])
        ]
    )  # (W, 3, h)
    return np.stack(
        [
            [triangle_by_hand(list(tall[:, c, y]), box[0], box[2], size[1]) for c in range(3)]
            for y in range(size[0])
        ]
    ).transpose(0, 2, 1)


def round_half_up(values: torch.Tensor) -> torch.Tensor:
    return torch.floor(values + 0.5).clamp(0, 255)


@pytest.mark.parametrize("case", CASES)
def test_reference_is_the_definition_in_float64(picture: np.ndarray, case: str) -> None:
    box, size = CASES[case]
    got = crop_reference(torch.from_numpy(picture)[None].double(), box, size)[0].numpy()
    # Two sums of at most 2 * radius terms each, at magnitude 255.
    np.testing.assert_allclose(got, crop_by_hand(picture, box, size), rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_fast_path_is_the_rounded_reference(picture: np.ndarray, case: str) -> None:
    box, size = CASES[case]
    frames = torch.from_numpy(picture)[None]
    exact = crop_reference(frames.double(), box, size)
    got = crop(frames, box, size).double()
    # Rounding is 0.5; float32 sums of a few hundred terms at 255 err by less than 1e-3.
    error = (got - exact).abs()
    assert error.max() <= 0.5 + 1e-3, f"worst {error.max()} at {int(error.argmax())}"
    assert torch.equal(got, round_half_up(exact)) or (got != round_half_up(exact)).sum() <= 1


@pytest.mark.parametrize("case", CASES)
def test_both_paths_are_what_dali_computes(picture: np.ndarray, case: str) -> None:
    dali = pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    box, size = CASES[case]

    @dali.pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def graph():
        frame = dali.fn.external_source(source=lambda: [picture], layout="HWC")
        return dali.fn.resize(
            frame,
            roi_start=[box[1], box[0]],
            roi_end=[box[3], box[2]],
            size=list(size),
            interp_type=dali.types.INTERP_LINEAR,
            antialias=True,
        )

    pipeline = graph()
    pipeline.build()
    theirs = torch.from_numpy(np.asarray(pipeline.run()[0][0]).copy()).double()
    frames = torch.from_numpy(picture)[None]
    exact = crop_reference(frames.double(), box, size)[0]
    assert (theirs - exact).abs().max() <= 0.5 + 0.01  # DALI rounds its weights to float32
    assert (theirs - crop(frames, box, size)[0].double()).abs().max() <= 1
    assert (theirs != crop(frames, box, size)[0].double()).double().mean() < 0.01


def _integer_crop(frames: torch.Tensor, box: tuple, size: tuple[int, int]) -> torch.Tensor:
    x0, y0, x1, y1 = (round(v) for v in box)
    part = frames[:, max(y0, 0) : y1, max(x0, 0) : x1].permute(0, 3, 1, 2)
    return interpolate(part, size, mode="bilinear", antialias=True).permute(0, 2, 3, 1)


def _sampled(frames: torch.Tensor, box: tuple, size: tuple[int, int], corners: bool):
    """No antialiasing: bilinear samples at the output centres, or at the box corners."""
    axes = []
    for start, end, count, length in (
        (box[1], box[3], size[0], frames.shape[1]),
        (box[0], box[2], size[1], frames.shape[2]),
    ):
        steps = torch.linspace(0, 1, count, dtype=torch.float64)
        if corners:
            position = start + steps * (end - 1 - start) + 0.5
        else:
            position = start + (torch.arange(count) + 0.5).double() * (end - start) / count
        axes.append(position * 2 / length - 1)
    grid = torch.stack(torch.meshgrid(axes[1], axes[0], indexing="xy"), -1)[None]
    planes = frames.permute(0, 3, 1, 2)
    sampled = grid_sample(planes, grid, padding_mode="border", align_corners=False)
    return sampled.permute(0, 2, 3, 1)


def _renormalised(frames: torch.Tensor, box: tuple, size: tuple[int, int]) -> torch.Tensor:
    """The border weights thrown away and the rest scaled up, as torch and Pillow do."""
    matrices = []
    for start, end, count, length in (
        (box[1], box[3], size[0], frames.shape[1]),
        (box[0], box[2], size[1], frames.shape[2]),
    ):
        wide = crop_weights(length + 400, start + 200, end + 200, count)[:, 200 : 200 + length]
        matrices.append(wide / wide.sum(1, keepdim=True))
    return torch.einsum("yh,xw,thwc->tyxc", *matrices, frames)


@pytest.mark.parametrize(
    ("wrong", "case"),
    [
        (_integer_crop, "float box, down"),
        (_integer_crop, "float box, up"),
        (lambda f, b, s: _sampled(f, b, s, corners=False), "whole picture, down"),
        (lambda f, b, s: _sampled(f, b, s, corners=True), "float box, up"),
        (_renormalised, "whole picture, down"),
        (_renormalised, "at the border"),
    ],
    ids=[
        "integer",
        "integer-up",
        "no-antialias",
        "align-corners",
        "renormalised",
        "border",
    ],
)
def test_other_conventions_are_told_apart(picture: np.ndarray, wrong, case: str) -> None:
    """The pictures above would catch each of these in place of ours."""
    box, size = CASES[case]
    frames = torch.from_numpy(picture)[None]
    theirs = wrong(frames.double(), box, size)
    assert (theirs - crop(frames, box, size).double()).abs().max() > 2  # the tests above allow 0.5


def test_box_of_the_output_size_copies_pixels(picture: np.ndarray) -> None:
    frames = torch.from_numpy(picture)[None]
    assert torch.equal(crop(frames, (4.0, 7.0, 44.0, 47.0), 40)[0], frames[0, 7:47, 4:44])


def test_halving_weighs_one_three_three_one() -> None:
    weights = crop_weights(8, 0.0, 8.0, 4)
    assert weights[1].tolist() == [0, 1 / 8, 3 / 8, 3 / 8, 1 / 8, 0, 0, 0]
    assert weights[0].tolist() == [4 / 8, 3 / 8, 1 / 8, 0, 0, 0, 0, 0]  # the border tap is clamped


def test_weights_sum_to_one_however_far_the_box() -> None:
    for x0, x1 in ((-1e6, -1e6 + 3), (-40.0, 90.0), (1e5, 1e5 + 1e3), (3.0, 3.001)):
        weights = crop_weights(10, x0, x1, 7)
        assert torch.allclose(weights.sum(1), torch.ones(7, dtype=torch.float64), atol=1e-12)
        assert (weights >= 0).all()
    assert crop_weights(10, -1e6, -1e6 + 3, 7)[:, 0].tolist() == [1.0] * 7


def test_one_box_per_frame_is_each_box_alone(picture: np.ndarray) -> None:
    frames = torch.from_numpy(np.stack([picture, picture[::-1].copy(), picture]))
    boxes = torch.tensor([[1.5, 2.5, 31.0, 32.0], [-3.0, 0.0, 50.0, 53.0], [9.0, 9.0, 20.0, 20.0]])
    together = crop(frames, boxes, 20)
    for index in range(3):
        alone = crop(frames[index : index + 1], boxes[index], 20)
        assert torch.equal(together[index], alone[0])


def test_cropper_takes_non_contiguous_frames(picture: np.ndarray) -> None:
    cropper = Cropper(53, 61, (3.3, 4.4, 40.0, 41.1), 24)
    mirrored = torch.from_numpy(picture).flip(1)
    view = torch.from_numpy(np.ascontiguousarray(picture.transpose(1, 0, 2))).transpose(0, 1)
    assert torch.equal(cropper(view), cropper(torch.from_numpy(picture)))
    assert not torch.equal(cropper(mirrored), cropper(torch.from_numpy(picture)))


@pytest.mark.parametrize(
    "box", [(5.0, 0.0, 5.0, 9.0), (9.0, 0.0, 5.0, 9.0), (0.0, 0.0, math.nan, 9)]
)
def test_an_empty_box_is_refused(picture: np.ndarray, box: tuple) -> None:
    with pytest.raises(ValueError, match="x0 < x1"):
        crop(torch.from_numpy(picture)[None], box, 8)


def test_wrong_shapes_are_refused(picture: np.ndarray) -> None:
    frames = torch.from_numpy(picture)[None]
    with pytest.raises(ValueError, match=r"boxes must be \(4,\)"):
        crop(frames, torch.zeros(2, 4), 8)
    with pytest.raises(ValueError, match="made for uint8"):
        Cropper(53, 60, (0.0, 0.0, 9.0, 9.0), 8)(frames[0])
