"""The fused step against its float64 reference, exact where nothing falls between pixels."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from av.video.frame import VideoFrame

from dfm_engine.errors import RecipeError, ShapeError
from dfm_engine.media.colour import RgbConverter
from dfm_engine.media.encode import rgb_to_i420
from dfm_engine.pixels import images_from_frames
from dfm_engine.store.augment import AugmentPolicy, Draws, FusedAugment, draw
from dfm_engine.store.augment_reference import fused_augment_reference
from dfm_engine.store.draws import window_of
from dfm_engine.store.meta import Layout, StoreMeta
from dfm_kernels.crop import crop_reference

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}

# One float32 rounding is 2^-24 of a value. A coordinate is made of about 6 of them at half the
# side, and between two pixels a picture changes by at most 1, so by 6 * side / 2 * 2^-24 each way;
# a resized or converted value is a sum of up to 2 * side products of at most 1.5 each way, a
# colour of 4. All of it is divided by the deviation.
ROUNDING = 2.0**-24


def tolerance(side: int) -> float:
    return (6 * side + 3 * side + 8) * ROUNDING / min(STD)


def meta_of(size: int, layout: Layout = "rgb24") -> StoreMeta:
    return StoreMeta(size_px=size, layout=layout, frames_per_clip=1)


def frames_of(count: int, size: int, layout: Layout = "rgb24", seed: int = 0) -> torch.Tensor:
    rgb = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return torch.from_numpy(rgb if layout == "rgb24" else rgb_to_i420(rgb))


def draws_of(policy: AugmentPolicy, count: int, epoch: int = 0) -> Draws:
    return draw(policy, seed=11, epoch=epoch, samples=np.arange(count))


MUCH = AugmentPolicy(
    horizontal_flip=0.5, crop=0.8, scale=(0.9, 1.3), rotate_deg=20.0,
    brightness=0.3, contrast=0.3, saturation=0.4, hue=0.1,
)  # fmt: skip
POLICIES = {
    "identity": AugmentPolicy(),
    "flip": AugmentPolicy(horizontal_flip=0.5),
    "flip and crop": AugmentPolicy(horizontal_flip=0.5, crop=0.75),
    "turn": AugmentPolicy(rotate_deg=15.0),
    "colours": AugmentPolicy(brightness=0.4, contrast=0.4, saturation=0.8, hue=0.3),
    "crop and colours": AugmentPolicy(crop=0.75, brightness=0.4),
    "much": MUCH,
}


@pytest.mark.parametrize("layout", ["rgb24", "i420"])
@pytest.mark.parametrize(("stored", "size"), [(20, 20), (24, 18), (20, 26)])
@pytest.mark.parametrize("name", POLICIES)
def test_the_fused_step_is_its_reference(name: str, stored: int, size: int, layout: Layout):
    policy, meta = POLICIES[name], meta_of(stored, layout)
    raw, draws = frames_of(6, stored, layout), draws_of(policy, 6)
    how = {"size_px": size, "mean": MEAN, "std": STD, "crop": policy.crop}
    for given in (draws, None):
        found = FusedAugment(meta, **how)(raw, given)
        wanted = fused_augment_reference(raw, given, meta, **how)
        assert found.shape == wanted.shape == (6, 3, size, size)
        assert found.dtype == torch.float32
        assert found.is_contiguous(memory_format=torch.channels_last)
        error = (found.double() - wanted).abs()
        worst = np.unravel_index(int(error.argmax()), error.shape)
        assert error.max() < tolerance(2 * stored), f"{error.max()} at {worst}"


def test_the_reference_shows_what_it_says():
    """Against pictures that can be written down: a mirror, a window, a quarter turn, grey."""
    meta, raw = meta_of(8), frames_of(1, 8)
    picture = raw.double().permute(0, 3, 1, 2) / 255
    still = draws_of(AugmentPolicy(), 1)
    how = {"size_px": 8, **PLAIN}

    def found(draws: Draws, **other: object) -> torch.Tensor:
        return fused_augment_reference(raw, draws, meta, **(how | other))  # pyright: ignore

    assert torch.equal(found(still), picture)
    mirrored = replace(still, flip=np.array([True]))
    assert torch.equal(found(mirrored), picture.flip(3))
    corner = replace(still, place=np.array([[0.999, 0.0]]))
    window = found(corner, size_px=6, crop=0.75)
    assert torch.equal(window, picture[:, :, :6, 2:])
    turned = replace(still, angle_rad=np.array([np.pi / 2]))
    assert torch.allclose(found(turned), picture.rot90(1, (2, 3)), atol=1e-12)
    closer = found(replace(still, angle_rad=np.zeros(1), zoom=np.array([2.0])))
    # pixel 0 shows the point a quarter of a pixel left of the picture's third sample
    ramp = torch.arange(8.0).double()[None, :, None].expand(8, 8, 3)[None].to(torch.uint8)
    row = fused_augment_reference(
        ramp, replace(still, angle_rad=np.zeros(1), zoom=np.array([2.0])), meta, **how
    )  # pyright: ignore
    assert (row[0, 0, 0] * 255).tolist() == pytest.approx(np.arange(1.75, 5.7, 0.5))
    assert closer.shape == (1, 3, 8, 8)
    colours = np.zeros((1, 3, 4))
    colours[0, :, 1], colours[0, :, 3] = 2.0, -0.5
    green = found(replace(still, colours=colours))
    assert torch.allclose(green[:, 2], (2 * picture[:, 1] - 0.5).clamp(0, 1))


def test_without_a_policy_pixels_pass_through_exactly():
    raw = frames_of(3, 16)
    same = FusedAugment(meta_of(16), size_px=16, **PLAIN)
    for draws in (None, draws_of(AugmentPolicy(), 3)):
        assert torch.equal(same(raw, draws), images_from_frames(raw))


def test_flips_and_windows_pick_pixels_exactly():
    raw, policy = frames_of(40, 16), AugmentPolicy(horizontal_flip=0.5, crop=0.75)
    draws = draws_of(policy, 40)
    found = FusedAugment(meta_of(16), size_px=12, crop=0.75, **PLAIN)(raw, draws)
    images = images_from_frames(raw)
    window = window_of(draws, side_px=16, size_px=12)
    assert {tuple(corner) for corner in window} <= {(x, y) for x in range(5) for y in range(5)}
    assert len({tuple(corner) for corner in window}) > 12
    assert 8 < draws.flip.sum() < 32
    for row, (left, top) in enumerate(window):
        wanted = images[row, :, top : top + 12, left : left + 12]
        assert torch.equal(found[row], wanted.flip(2) if draws.flip[row] else wanted)


@pytest.mark.parametrize(("stored", "size"), [(32, 20), (20, 32), (90, 70)])
def test_evaluation_follows_the_crop_rule(stored: int, size: int):
    raw = frames_of(2, stored)
    found = FusedAugment(meta_of(stored), size_px=size, **PLAIN)(raw)
    wanted = crop_reference(raw.double(), (0.0, 0.0, stored, stored), size) / 255
    assert torch.allclose(found.permute(0, 2, 3, 1).double(), wanted, atol=3 * stored * ROUNDING)


def test_i420_becomes_the_rgb_of_the_decoder():
    rng = np.random.default_rng(0)
    size = 64
    flat = rng.integers(0, 256, (size * 3 // 2, size), dtype=np.uint8)  # also out of legal range
    smooth = rgb_to_i420(
        np.stack([np.add.outer(np.arange(size), k * np.arange(size)) % 256 for k in (1, 2, 3)], 2)
        .astype(np.uint8)[None]
    )[0]  # fmt: skip
    augment = FusedAugment(meta_of(size, "i420"), size_px=size, **PLAIN)
    for planes in (flat, smooth):
        decoded = RgbConverter().convert(VideoFrame.from_ndarray(planes, format="yuv420p"))
        found = augment(torch.from_numpy(planes)[None])[0].permute(1, 2, 0).numpy() * 255
        # the decoder rounds to whole levels: half a level, and swscale's fixed point beside it
        assert np.abs(found - decoded).max() < 0.52


@pytest.mark.parametrize(("stored", "size", "crop"), [(24, 24, 1.0), (24, 18, 1.0), (24, 18, 0.75)])
def test_the_kernel_of_i420_gives_what_the_fused_step_gives(stored: int, size: int, crop: float):
    meta, raw = meta_of(stored, "i420"), frames_of(3, stored, "i420")
    augment = FusedAugment(meta, size_px=size, mean=MEAN, std=STD, crop=crop)
    assert not augment._has_kernel
    wanted = augment(raw)
    augment._has_kernel = True  # as on a GPU; on a CPU the operator is its reference
    found = augment(raw)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found - wanted).abs().max() < 2 * tolerance(2 * stored)


def test_what_a_sample_gets_does_not_depend_on_its_batch():
    raw = frames_of(5, 20)
    augment = FusedAugment(meta_of(20), size_px=16, mean=MEAN, std=STD, crop=MUCH.crop)
    samples = np.array([4, 900, 17, 2, 3])
    whole = augment(raw, draw(MUCH, seed=3, epoch=1, samples=samples))
    for row in range(5):
        alone = augment(
            raw[row : row + 1], draw(MUCH, seed=3, epoch=1, samples=samples[row : row + 1])
        )
        assert torch.allclose(alone[0], whole[row], atol=tolerance(20))
    other = augment(raw, draw(MUCH, seed=3, epoch=2, samples=samples))
    assert (other - whole).abs().amax(dim=(1, 2, 3)).min() > 0.1


def test_draws_fill_the_ranges_of_the_policy():
    draws = draws_of(MUCH, 4000)
    assert abs(draws.flip.mean() - 0.5) < 0.04
    assert 0.9 <= draws.zoom.min() < 0.901
    assert 1.299 < draws.zoom.max() < 1.3
    assert np.degrees(np.abs(draws.angle_rad).max()) == pytest.approx(20, abs=0.1)
    factors = draws_of(AugmentPolicy(brightness=0.3), 4000).colours
    assert factors is not None
    assert np.allclose(factors[:, [0, 1, 2], [0, 1, 2]], factors[:, :1, 0])
    assert [factors[:, 0, 0].min(), factors[:, 0, 0].max()] == pytest.approx([0.7, 1.3], abs=2e-3)
    assert draws_of(AugmentPolicy(), 2).colours is None
    assert draws_of(AugmentPolicy(horizontal_flip=1.0, crop=0.5), 2).angle_rad is None


def test_colour_changes_keep_what_they_should():
    grey = np.array([0.4, 0.4, 0.4, 1.0])
    shade = np.array([0.7, 0.2, 0.3, 1.0])
    luma = np.array([0.299, 0.587, 0.114])
    hue = draws_of(AugmentPolicy(hue=0.5), 50).colours
    saturation = draws_of(AugmentPolicy(saturation=1.0), 50).colours
    contrast = draws_of(AugmentPolicy(contrast=1.0), 50).colours
    assert hue is not None and saturation is not None and contrast is not None  # noqa: PT018
    assert np.allclose(hue @ grey, 0.4)  # grey has no hue
    assert np.allclose((hue @ shade).sum(1), 1.2)
    assert np.ptp(hue @ shade, axis=0).min() > 0.3
    assert np.allclose(saturation @ shade @ luma, luma @ shade[:3])
    assert np.allclose(contrast @ np.array([0.5, 0.5, 0.5, 1.0]), 0.5)


def test_frames_that_do_not_fit_are_refused():
    augment = FusedAugment(meta_of(16), size_px=16, **PLAIN)
    with pytest.raises(ShapeError, match=r"\(B, 16, 16, 3\), got torch.uint8 \(2, 20, 20, 3\)"):
        augment(frames_of(2, 20))
    with pytest.raises(ShapeError, match="2 frames and draws for 3"):
        augment(frames_of(2, 16), draws_of(AugmentPolicy(), 3))


@pytest.mark.parametrize(
    "wrong",
    [{"crop": 0.1}, {"scale": (1.2, 0.8)}, {"scale": (1.0,)}, {"hue": 0.6}, {"rotate_deg": -1.0}],
)
def test_a_policy_out_of_range_is_refused(wrong: dict[str, object]):
    with pytest.raises(RecipeError, match=f"augment.{next(iter(wrong))} must be"):
        AugmentPolicy(**wrong)  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_compiled_the_step_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    raw, draws = frames_of(4, 24, "i420"), draws_of(MUCH, 4)
    how = {"size_px": 16, "mean": MEAN, "std": STD, "crop": MUCH.crop}
    plain = FusedAugment(meta_of(24, "i420"), **how)(raw, draws)
    compiled = FusedAugment(meta_of(24, "i420"), compiled=True, **how)(raw, draws)
    assert torch.allclose(plain, compiled, atol=2 * tolerance(24))


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["rgb24", "i420"])
@pytest.mark.parametrize("name", POLICIES)
def test_on_a_gpu_the_step_is_its_reference(name: str, layout: Layout):
    policy, meta = POLICIES[name], meta_of(64, layout)
    raw, draws = frames_of(8, 64, layout), draws_of(policy, 8)
    how = {"size_px": 48, "mean": MEAN, "std": STD, "crop": policy.crop}
    wanted = fused_augment_reference(raw, draws, meta, **how)
    found = FusedAugment(meta, device="cuda", dtype=torch.float32, **how)(raw.cuda(), draws)
    assert (found.cpu().double() - wanted).abs().max() < tolerance(128)
    half = FusedAugment(meta, device="cuda", **how)(raw.cuda(), draws)
    assert half.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits
    assert torch.allclose(half.float(), found, rtol=2**-8, atol=1e-6)
