"""The kernels against their references in float64, on the same inputs.

Not collected by itself: `test_kernels.py` runs it with `TRITON_INTERPRET=1` on a CPU (the `slow`
ones in the slow suite), and natively on a GPU.
"""

from __future__ import annotations

import pytest
import torch
from dfmtest_kernels import (  # first of all: see there
    DEVICE,
    EPS,
    ROUNDING,
    Random,
    assert_near,
    double,
    nothing_is_left_unwritten,
)

# isort: split
from dfmtest_fomm import make_fomm, pictures, small_config
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dfm_kernels import dispatch
from dfm_kernels.coordinates import Points
from dfm_kernels.deformation import mix_motions, mix_motions_reference
from dfm_kernels.from_yuv import yuv_to_rgb, yuv_to_rgb_reference
from dfm_kernels.softargmax import soft_argmax, soft_argmax_reference
from dfm_kernels.sparse_motion import sparse_motion, sparse_motion_reference
from dfm_kernels.to_yuv import rgb_to_yuv, rgb_to_yuv_reference
from dfm_kernels.warp import warp, warp_reference

__all__ = ["nothing_is_left_unwritten"]

SLOW = pytest.mark.slow
BOTH = pytest.mark.parametrize("align_corners", [True, False], ids=["corners", "edges"])


def sampling_tolerance(
    dtype: torch.dtype, size: tuple[int, ...], reach: float, top: float
) -> float:
    """Of a bilinear sample of values up to `top`, at positions up to `reach` in the grid.

    A position takes 3 roundings at magnitude (reach + 1) size / 2 pixels, one more for its own, and
    moves the sample by at most 2 `top` a pixel along each axis; 8 more roundings weigh and add;
    the last one is the output's.
    """
    pixels = 4 * EPS * (reach + 1) / 2 * max(size)
    return top * (2 * 2 * pixels + 8 * EPS + ROUNDING[dtype])


def grid_of(random: Random, rows: int, height: int, width: int) -> Tensor:
    """Positions inside, outside, far outside and on the corners."""
    grid = random.uniform(rows, height, width, 2, low=-1.4, high=1.4)
    grid[:, 0, 0] = -1.0
    grid[:, 0, 1] = 1.0
    grid[:, 0, 2] = torch.tensor([3e9, -0.3])
    grid[:, 1, 0] = torch.tensor([0.1, -1e30])
    return grid


WARPS = {
    # B, C, H, W, h, w
    "one block": (2, 5, 7, 9, 6, 11),
    "pixel blocks": (1, 3, 12, 10, 13, 11),
    "channel blocks": (2, 70, 4, 5, 3, 6),
    "one channel": (1, 1, 6, 6, 6, 6),
    "one row of pixels": (2, 3, 1, 8, 2, 4),
}


@BOTH
@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=() if "blocks" in name else SLOW) for name in WARPS]
)
def test_warp_is_its_reference(case: str, layout: str, align_corners: bool) -> None:
    rows, channels, height, width, out_h, out_w = WARPS[case]
    random = Random(1)
    features = random.uniform(rows, channels, height, width, low=-1)
    if layout == "last":
        features = features.contiguous(memory_format=torch.channels_last)
    grid = grid_of(random, rows, out_h, out_w)
    shown = random.uniform(rows, 1, out_h, out_w)
    found = warp(features, grid, shown, align_corners=align_corners)
    wanted = warp_reference(
        features.double(), grid.double(), shown.double(), align_corners=align_corners
    )
    tolerance = sampling_tolerance(torch.float32, (height, width), 1.4, 1.0)
    assert_near(found, wanted, tolerance, case)
    if channels > 1:
        assert found.is_contiguous(
            memory_format=torch.channels_last if layout == "last" else torch.contiguous_format
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_warp_computes_half_precision_in_float32(dtype: torch.dtype) -> None:
    random = Random(2)
    features = random.uniform(2, 6, 8, 9, low=-1).to(dtype)
    grid, shown = grid_of(random, 2, 7, 5), random.uniform(2, 1, 7, 5).to(dtype)
    found = warp(features, grid, shown, align_corners=True)
    wanted = warp_reference(features.double(), grid.double(), shown.double(), align_corners=True)
    assert found.dtype == dtype
    assert_near(found, wanted, sampling_tolerance(dtype, (8, 9), 1.4, 1.0))


def test_warp_takes_strided_and_expanded_inputs_and_no_occlusion() -> None:
    random = Random(3)
    features = random.uniform(1, 12, 8, 14, low=-1)[:, ::3, 1:, ::2].expand(3, -1, -1, -1)
    grid = grid_of(random, 3, 9, 7).transpose(1, 2)
    assert not grid.is_contiguous()
    found = warp(features, grid, None, align_corners=False)
    wanted = warp_reference(features.double(), grid.double(), None, align_corners=False)
    assert_near(found, wanted, sampling_tolerance(torch.float32, (7, 7), 1.4, 1.0))


def test_warp_at_no_finite_position_is_not_a_number() -> None:
    features = torch.ones(1, 2, 4, 4, device=DEVICE)
    grid = torch.zeros(1, 2, 2, 2, device=DEVICE)
    grid[0, 0, 0, 0], grid[0, 0, 1, 1] = float("nan"), float("inf")
    found = warp(features, grid, None, align_corners=True)[0, 0]
    assert found.isnan().tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize(("layout", "align_corners"), [("first", True), ("last", False)])
def test_gradients_of_warp_are_those_of_its_reference(layout: str, align_corners: bool) -> None:
    random = Random(4)
    height, width = 7, 9
    channels = 37 if layout == "last" else 10  # two blocks of them
    features = random.uniform(2, channels, height, width, low=-1)
    if layout == "last":
        features = features.contiguous(memory_format=torch.channels_last)
    # Away from whole pixels, where the derivative jumps.
    pixels = torch.floor(random.uniform(2, 9, 10, 2, low=-2, high=9)) + random.uniform(
        2, 9, 10, 2, low=0.05, high=0.95
    )
    size = torch.tensor([width, height], device=DEVICE)
    grid = 2 * pixels / (size - 1) - 1 if align_corners else (2 * pixels + 1) / size - 1
    shown, given = random.uniform(2, 1, 9, 10), random.uniform(2, channels, 9, 10, low=-1)

    def gradients(function, dtype: torch.dtype) -> list[Tensor]:
        leaves = [t.detach().to(dtype).requires_grad_() for t in (features, grid, shown)]
        out = function(*leaves, align_corners=align_corners)
        return list(torch.autograd.grad((out * given.to(dtype)).sum(), leaves))

    found, wanted = gradients(warp, torch.float32), gradients(warp_reference, torch.float64)
    # 3 roundings of a position at up to 9 pixels; a weight moves by as much. A feature's gradient
    # adds up to 180 of them (2 axes), the other two sum over the channels: 64 float32 roundings at
    # their magnitude at most; the deformation's is in units of half the picture.
    position = 4 * EPS * 10
    tolerances = [
        float(wanted[0].abs().max()) * 64 * EPS + 16 * 2 * position,
        channels * 4 * (position + 64 * EPS) * width / 2,
        channels * 2 * (2 * position + 64 * EPS),
    ]
    for name, a, b, tolerance in zip(
        ("features", "deformation", "occlusion"), found, wanted, tolerances, strict=True
    ):
        assert b.abs().max() > 0.5
        assert_near(a, b, tolerance, name)


def test_warp_gives_only_the_gradients_asked_for() -> None:
    random = Random(5)
    features = random.uniform(1, 3, 5, 5)
    grid = random.uniform(1, 4, 4, 2, low=-0.83, high=0.79).requires_grad_()
    out = warp(features, grid, None, align_corners=True)
    (found,) = torch.autograd.grad(out.sum(), grid)
    reference = warp_reference(features, grid, None, align_corners=True)
    (wanted,) = torch.autograd.grad(reference.sum(), grid)
    assert_near(found, wanted, 3 * 4 * 64 * EPS * 2.5)
    source = features.clone().requires_grad_()
    out = warp(source, grid.detach(), None, align_corners=True)
    (found,) = torch.autograd.grad(out.sum(), source)
    reference = warp_reference(source, grid.detach(), None, align_corners=True)
    (wanted,) = torch.autograd.grad(reference.sum(), source)
    assert_near(found, wanted, 16 * 64 * EPS)


@pytest.mark.parametrize(
    ("rows", "points", "size", "jacobian", "layout", "align_corners"),
    [
        pytest.param(2, 3, (6, 8), True, "first", True, marks=SLOW),
        (2, 3, (6, 8), True, "last", False),
        pytest.param(1, 3, (6, 8), False, "last", True, marks=SLOW),
        (1, 17, (5, 7), True, "last", True),  # two blocks of channels
        (1, 4, (13, 11), True, "first", False),  # of pixels
    ],
)
def test_sparse_motion_is_its_reference(
    rows: int, points: int, size: tuple[int, int], jacobian: bool, layout: str, align_corners: bool
) -> None:
    random = Random(6)
    small = random.uniform(rows, 3, *size)
    if layout == "last":
        small = small.contiguous(memory_format=torch.channels_last)
    source = random.keypoints(rows, points, jacobian=jacobian)
    driving = random.keypoints(rows, points, jacobian=jacobian)
    found = sparse_motion(small, source, driving, variance=0.01, align_corners=align_corners)
    wanted = sparse_motion_reference(
        small.double(), double(source), double(driving), variance=0.01, align_corners=align_corners
    )
    # T_k reaches 2 |A| + 1 < 8 in the grid, behind 6 roundings more. A bump's exponent is at most
    # 104 where it still counts (e^-104 < 2^-149), with 6 roundings: an error of d e^-d < 0.4 of
    # each; and the kernel's exp is within 4 more.
    tolerance = 3 * sampling_tolerance(torch.float32, size, 8.0, 1.0) + 2 * 10 * EPS
    assert_near(found, wanted, tolerance)
    assert_near(found[:, 4::4], wanted[:, 4::4], 2 * 10 * EPS, "heatmaps")
    assert found[:, 0].abs().max() == 0
    assert wanted[:, 4::4].abs().max() > 0.5
    assert found.is_contiguous(
        memory_format=torch.channels_last if layout == "last" else torch.contiguous_format
    )


@pytest.mark.parametrize("layout", ["first", "last"])
def test_sparse_motion_writes_zeros_behind_its_maps(layout: str) -> None:
    random = Random(8)
    small = random.uniform(2, 3, 6, 8)
    if layout == "last":
        small = small.contiguous(memory_format=torch.channels_last)
    source, driving = random.keypoints(2, 4), random.keypoints(2, 4)
    wanted = sparse_motion(small, source, driving, variance=0.01, align_corners=True)
    found = sparse_motion(
        small, source, driving, variance=0.01, align_corners=True, least_channels=24
    )
    assert torch.equal(found[:, :20], wanted)
    assert found[:, 20:].shape[1] == 4
    assert found[:, 20:].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=SLOW)])
def test_sparse_motion_takes_half_precision_and_one_source_for_all(dtype: torch.dtype) -> None:
    random = Random(7)
    small = random.uniform(1, 3, 7, 6).to(dtype).expand(3, -1, -1, -1)
    one = random.keypoints(1, 4)
    source = Points(*(t.expand(3, *t.shape[1:]) for t in one if t is not None))
    driving = random.keypoints(3, 4)
    found = sparse_motion(small, source, driving, variance=0.01, align_corners=True)
    wanted = sparse_motion_reference(
        small.double(), double(source), double(driving), variance=0.01, align_corners=True
    )
    assert found.dtype == dtype
    tolerance = 3 * sampling_tolerance(torch.float32, (7, 6), 8.0, 1.0) + 20 * EPS
    assert_near(found, wanted, tolerance + ROUNDING[dtype])


@pytest.mark.parametrize(
    ("jacobian", "occlusion", "layout", "dtype"),
    [
        pytest.param(True, True, "first", torch.float32, marks=SLOW),
        (True, True, "last", torch.float16),
        (False, True, "last", torch.float32),
        (True, False, "first", torch.bfloat16),
    ],
)
def test_mix_motions_is_its_reference(
    jacobian: bool, occlusion: bool, layout: str, dtype: torch.dtype
) -> None:
    random = Random(8)
    rows, points, height, width = 2, 5, 13, 11  # two blocks of pixels
    logits = random.uniform(rows, points + 1, height, width, low=-6, high=6).to(dtype)
    if layout == "last":
        logits = logits.contiguous(memory_format=torch.channels_last)
    shown = random.uniform(rows, 1, height, width, low=-9, high=9).to(dtype) if occlusion else None
    source = random.keypoints(rows, points, jacobian=jacobian)
    driving = random.keypoints(rows, points, jacobian=jacobian)
    found = mix_motions(logits, shown, source, driving)
    wanted = mix_motions_reference(
        logits.double(), None if shown is None else shown.double(), double(source), double(driving)
    )
    assert found.deformation.dtype == found.mask.dtype == torch.float32
    # A share: exp of at most 12 below the highest (12 roundings' worth and 4 of its own), a sum of
    # 6 and a quotient. T_k is below 8 behind 12 roundings; the mean of 6 of them adds 7.
    assert_near(found.mask, wanted.mask, 30 * EPS, "mask")
    assert_near(found.deformation, wanted.deformation, 8 * (30 + 12 + 7) * EPS, "deformation")
    if shown is None:
        assert found.occlusion_map is None
    else:
        assert found.occlusion_map is not None
        assert wanted.occlusion_map is not None
        assert_near(found.occlusion_map, wanted.occlusion_map, 16 * EPS, "occlusion map")


@pytest.mark.parametrize(
    ("layout", "maps", "dtype"),
    [
        ("first", "own", torch.float32),
        ("last", "own", torch.float16),
        ("first", "shared", torch.bfloat16),
        ("last", "none", torch.float32),
    ],
)
def test_soft_argmax_is_its_reference(layout: str, maps: str, dtype: torch.dtype) -> None:
    random = Random(9)
    rows, points, height, width = 2, 3, 23, 25  # two blocks of positions
    logits = random.uniform(rows, points, height, width, low=-1, high=1).to(dtype)
    counts = {"own": 4 * points, "shared": 4, "none": 0}
    jacobians = random.uniform(rows, counts[maps], height, width, low=-1).to(dtype)
    if layout == "last":
        logits = logits.contiguous(memory_format=torch.channels_last)
        jacobians = jacobians.contiguous(memory_format=torch.channels_last)
    given = jacobians if maps != "none" else None
    value, jacobian = soft_argmax(logits, given, temperature=0.1)
    wanted, wanted_jacobian = soft_argmax_reference(
        logits.double(), None if given is None else given.double(), temperature=0.1
    )
    # A weight: exp of at most 20 below the highest, 3 roundings of that and 4 of its own; sums of
    # positive weights over 575 positions in 512 lanes are 2 + 9 roundings deep, twice. All means.
    tolerance = (3 * 20 + 4 + 2 * 11 + 4) * EPS
    assert value.dtype == torch.float32
    assert_near(value, wanted, tolerance, "value")
    assert wanted.abs().max() > 0.02
    if given is None:
        assert jacobian is None
    else:
        assert jacobian is not None
        assert wanted_jacobian is not None
        assert_near(jacobian, wanted_jacobian, tolerance, "jacobian")


def test_soft_argmax_finds_a_sharp_peak() -> None:
    logits = torch.zeros(1, 2, 30, 40, device=DEVICE)
    logits[0, 0, 29, 0] = 50.0  # the last row's first column: the second block of positions
    logits[0, 1, 0, 39] = 50.0
    value, _ = soft_argmax(logits, None, temperature=0.1)
    assert_near(value, torch.tensor([[[-1.0, 1.0], [1.0, -1.0]]], device=DEVICE), 4 * EPS)


@pytest.mark.parametrize(
    ("layout", "dtype", "planes"),
    [
        ("first", torch.float32, "i420"),
        ("last", torch.uint8, "nv12"),
        *(
            pytest.param(*case, marks=SLOW)
            for case in [
                ("first", torch.uint8, "i420"),
                ("last", torch.float32, "nv12"),
                ("last", torch.float16, "i420"),
            ]
        ),
    ],
)
def test_rgb_to_yuv_is_its_reference_bit_by_bit(layout: str, dtype: torch.dtype, planes) -> None:
    random = Random(10)
    if dtype == torch.uint8:
        images = random.bytes(2, 6, 262, 3)  # two blocks of columns
        if layout == "last":  # of the frames of a wider picture
            images = random.bytes(2, 6, 300, 3)[:, :, 20:282]
    else:
        images = random.uniform(2, 3, 6, 262, low=-0.1, high=1.1).to(dtype)
        halves = (torch.arange(255, device=DEVICE) + 0.5) / 255  # where rounding is decided
        images[0, 0, 0, :255] = halves.to(dtype)
        images[1, 2, 5, 3] = float("nan")
        images[1, 1, 5, 4] = float("inf")
        if layout == "last":
            images = images.contiguous(memory_format=torch.channels_last)
    found = rgb_to_yuv(images, planes=planes)
    assert torch.equal(found, rgb_to_yuv_reference(images, planes=planes))
    assert found.shape == (2, 9, 262)


BOXES = [[1.3, -2.2, 9.7, 6.1], [-3.0, 2.5, 3.25, 20.0]]  # up and down, outside


@pytest.mark.parametrize(
    ("planes", "dtype"), [("i420", torch.uint8), ("nv12", torch.float32), ("i420", torch.float16)]
)
@pytest.mark.parametrize("resized", [False, True], ids=["whole", "cropped"])
def test_yuv_to_rgb_is_its_reference(resized: bool, planes, dtype: torch.dtype) -> None:
    random = Random(11)
    frames = random.bytes(2, 27, 22)  # 18 rows of 22: two blocks of pixels
    how = {"planes": planes, "mean": (0.5, 0.4, 0.3), "std": (0.5, 0.25, 0.2)}
    if resized:
        how |= {"boxes": torch.tensor(BOXES), "size": (9, 7)}
    for channels_last in (False, True) if dtype == torch.float32 else (False,):
        found = yuv_to_rgb(frames, dtype=dtype, channels_last=channels_last, **how)
        wanted = yuv_to_rgb_reference(frames, dtype=torch.float64, **how)
        if dtype == torch.uint8:
            mean, std = (
                torch.tensor(how[k], device=DEVICE)[:, None, None] for k in ("mean", "std")
            )
            wanted = ((wanted * std + mean) * 255).permute(0, 2, 3, 1)
            # Rounded: 0.5, and a mean of colours below 512 behind some 30 roundings.
            assert_near(found, wanted, 0.5 + 512 * 30 * EPS)
            assert resized or ((wanted < 1).any() and (wanted > 254).any())
        else:
            # (v / 255 - mean) / std is at most 4, from v behind some 30 roundings.
            tolerance = 5 * (30 * EPS * 2 + ROUNDING[dtype])
            assert_near(found, wanted, tolerance)
            assert found.is_contiguous(
                memory_format=torch.channels_last if channels_last else torch.contiguous_format
            )


def test_kernels_take_batches_of_nothing() -> None:
    empty = torch.empty(0, 3, 4, 4, device=DEVICE)
    nobody = Points(torch.empty(0, 2, 2, device=DEVICE), None)
    assert (
        warp(empty, torch.empty(0, 4, 4, 2, device=DEVICE), None, align_corners=True).numel() == 0
    )
    moved = sparse_motion(empty, nobody, nobody, variance=0.01, align_corners=True)
    assert moved.shape == (0, 12, 4, 4)
    assert mix_motions(empty, None, nobody, nobody).mask.shape == (0, 3, 4, 4)
    assert soft_argmax(empty, None, temperature=0.1)[0].shape == (0, 3, 2)
    assert rgb_to_yuv(empty).shape == (0, 6, 4)
    assert yuv_to_rgb(torch.empty(0, 6, 4, dtype=torch.uint8, device=DEVICE)).shape == (0, 3, 4, 4)


class Operators(TorchDispatchMode):
    """Collects the names of this project's operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "dfm":
            self.names.add(function._schema.name.removeprefix("dfm::"))
        return function(*args, **(kwargs or {}))


def test_a_whole_frame_is_that_of_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_fomm(small_config(), seed=3)
    images = pictures(2, model.frame_size).float()

    def animate(device: str) -> list[Tensor]:
        model.to(device)
        keypoints = model.keypoints(images.to(device))
        features = model.encode_source(images[:1].to(device))
        animation = model.animate(features, keypoints[0], keypoints)
        assert animation.occlusion_map is not None
        return [animation.prediction, animation.mask, animation.deformation, keypoints.value]

    with torch.inference_mode(), Operators() as called:
        found = animate(DEVICE)
    assert called.names == {"soft_argmax", "sparse_motion", "mix_motions", "warp"}
    monkeypatch.setattr(dispatch, "_launches_anywhere", False)
    torch.backends.cudnn.allow_tf32 = False
    with torch.inference_mode(), Operators() as called:
        wanted = animate("cpu")
    assert not called.names
    # The published tolerance between two float32 implementations of the whole (5e-5), twice over.
    for name, a, b in zip(("frame", "mask", "deformation", "points"), found, wanted, strict=True):
        assert_near(a.cpu(), b, 1e-4, name)


@SLOW
def test_training_takes_the_kernel_that_has_a_backward() -> None:
    model = make_fomm(small_config(), seed=3).train().to(DEVICE)
    images = pictures(2, model.frame_size).float().to(DEVICE)
    with Operators() as called:
        keypoints = model.kp_detector(images)
        model.generator(images, keypoints, keypoints[[1, 0]]).prediction.mean().backward()
    assert called.names == {"warp", "warp_backward"}
    assert model.kp_detector.kp.weight.grad is not None
    assert model.kp_detector.kp.weight.grad.abs().max() > 0
