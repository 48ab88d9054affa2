"""The colour conversions against the converters of the pipeline: PyAV's and the encoder's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from av.video.frame import VideoFrame

from dfm_engine.media.colour import RgbConverter
from dfm_engine.media.encode import rgb_to_i420
from dfm_engine.pixels import frames_from_images, i420_from_images
from dfm_kernels.crop import crop, crop_taps, crop_weights
from dfm_kernels.from_yuv import yuv_to_rgb
from dfm_kernels.to_yuv import rgb_to_yuv


def pictures(count: int = 2, height: int = 34, width: int = 48) -> np.ndarray:
    """Ramps with noise, and some saturated corners."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([4 * x, 255 - 5 * y, 3 * (x + y)], axis=2)[None]
    frames = np.clip(base + rng.integers(-9, 10, (count, height, width, 3)), 0, 255)
    frames[:, :4, :4] = (255, 0, 0)
    frames[:, -4:, -4:] = (0, 0, 255)
    return frames.astype(np.uint8)


def test_i420_is_the_encoders_byte_by_byte() -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 64, 80, 3), dtype=np.uint8)
    assert np.array_equal(rgb_to_yuv(torch.from_numpy(frames)).numpy(), rgb_to_i420(frames))
    images = torch.rand(3, 3, 64, 80, generator=torch.Generator().manual_seed(1)) * 1.2 - 0.1
    images[0, 0, 0, :3] = torch.tensor([float("nan"), float("inf"), 0.5 / 255])
    wanted = rgb_to_i420(frames_from_images(images).numpy())
    for given in (images, images.contiguous(memory_format=torch.channels_last)):
        assert np.array_equal(rgb_to_yuv(given).numpy(), wanted)
        assert np.array_equal(i420_from_images(given).numpy(), wanted)


def test_nv12_holds_the_planes_of_i420_interleaved() -> None:
    frames = torch.from_numpy(pictures())
    i420, nv12 = rgb_to_yuv(frames), rgb_to_yuv(frames, planes="nv12")
    assert torch.equal(i420[:, :34], nv12[:, :34])
    chroma = nv12[:, 34:].reshape(2, 17, 24, 2)
    assert torch.equal(i420[:, 34:].reshape(2, 2, 17, 24), chroma.permute(0, 3, 1, 2))


def test_rgb_is_what_the_decoder_of_the_pipeline_makes_of_it() -> None:
    yuv = rgb_to_yuv(torch.from_numpy(pictures()))
    ours = yuv_to_rgb(yuv, dtype=torch.float64).permute(0, 2, 3, 1).numpy() * 255
    for index, planes in enumerate(yuv.numpy()):
        decoded = RgbConverter().convert(VideoFrame.from_ndarray(planes, format="yuv420p"))
        # swscale rounds, behind a filter and a matrix in 14 and 15 bits of fixed point.
        assert np.abs(ours[index] - decoded).max() <= 0.75
        assert np.abs(ours[index] - decoded).mean() <= 0.26
    assert ours.min() == 0
    assert ours.max() == 255


@pytest.mark.parametrize("planes", ["i420", "nv12"])
def test_there_and_back_moves_smooth_colours_by_little(planes) -> None:
    y, x = np.mgrid[0:32, 0:32]
    frames = np.stack([60 + 3 * x, 200 - 2 * y, 90 + x + y], axis=2)[None].astype(np.uint8)
    yuv = rgb_to_yuv(torch.from_numpy(frames), planes=planes)
    back = yuv_to_rgb(yuv, dtype=torch.uint8, planes=planes).numpy()
    # Half a level of chroma is at most 1.02 of blue, half of luma 0.58, and rounding 0.5; at the
    # border chroma is held instead of going on: a quarter of its step of 6 levels.
    assert np.abs(back[:, 2:-2, 2:-2].astype(int) - frames[:, 2:-2, 2:-2]).max() <= 2


def test_cropping_is_that_of_the_pipeline() -> None:
    frames = torch.from_numpy(pictures())
    yuv = rgb_to_yuv(frames)
    boxes = torch.tensor([[3.3, -2.5, 40.1, 30.9], [10.0, 8.0, 22.0, 20.0]])
    whole = yuv_to_rgb(yuv, dtype=torch.uint8)
    found = yuv_to_rgb(yuv, boxes=boxes, size=16, dtype=torch.uint8)
    wanted = crop(whole, boxes, 16)
    # The pipeline rounds twice: half a level before the filter, which averages it, and half after.
    assert (found.int() - wanted.int()).abs().max() <= 1
    assert (found != wanted).float().mean() < 0.35
    assert torch.equal(
        yuv_to_rgb(yuv, boxes=boxes[0], size=16)[0],
        yuv_to_rgb(yuv[:1], boxes=boxes[:1], size=16)[0],
    )


def test_normalising_is_by_mean_and_deviation() -> None:
    yuv = rgb_to_yuv(torch.from_numpy(pictures()))
    plain = yuv_to_rgb(yuv)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    found = yuv_to_rgb(yuv, mean=mean, std=std, channels_last=True)
    wanted = (plain - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found - wanted).abs().max() <= 1e-5  # some 5 roundings of values below 3


@pytest.mark.parametrize(
    ("x0", "x1", "size"),
    [(0.0, 20.0, 20), (-3.5, 31.2, 9), (4.2, 6.9, 7), (1e6, 1e6 + 50, 3), (-90.0, -80.0, 2)],
)
def test_taps_are_the_resampling_matrix_without_its_zeros(x0: float, x1: float, size: int) -> None:
    other = (2.0, 18.0)  # a second box in the same call, of another scale
    first, weight = crop_taps(20, torch.tensor([x0, other[0]]), torch.tensor([x1, other[1]]), size)
    for row, (start, end) in enumerate([(x0, x1), other]):
        start, end = (float(torch.tensor(v)) for v in (start, end))
        dense = torch.zeros(size, 20, dtype=torch.float64)
        index = (first[row, :, None] + torch.arange(weight.shape[2])).clamp(0, 19).long()
        dense.scatter_add_(1, index, weight[row].double())
        # float32 weights below one, at most 10 of them on a border sample.
        assert (dense - crop_weights(20, start, end, size)).abs().max() <= 10 * 2.0**-24
