"""The graph of the GPU, run on a CPU: crop, colour and layout against the project's reference."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dfmtest_dali import as_dali_converts
from dfmtest_drawn_clips import draw, encode, tagged

from dfm_engine.errors import EnvironmentUnfit, UsageError
from dfm_engine.media.decode import read_native_frames
from dfm_engine.nvidia import read_nvidia
from dfm_engine.store.dali_graph import INPUTS, GraphSpec, build_graph, define_graph
from dfm_engine.store.dali_run import to_device, to_host
from dfm_engine.store.dali_trial import affine_colour
from dfm_engine.store.routing import rgb_correction
from dfm_kernels.crop import crop_reference

dali = pytest.importorskip("nvidia.dali", reason="DALI is not installed")

SPEC = GraphSpec(source="frames", batch_size=4, threads=1, depth=1)
BOXES = (
    (0.0, 0.0, 96.0, 64.0),  # the whole picture
    (7.3, 5.9, 72.8, 61.2),  # down
    (20.25, 11.6, 33.7, 25.05),  # up
    (-9.7, -4.2, 110.3, 75.8),  # outside on all sides
)


def run(
    pictures: Sequence[np.ndarray],
    boxes: Sequence[Sequence[float]],
    sizes: Sequence[tuple[int, int]],
    colours: Sequence[np.ndarray] | None = None,
    spec: GraphSpec = SPEC,
    take: Any = to_host,
    bias: Sequence[float] = (0.0, 0.0, 0.0),
) -> list[Any]:
    pipeline = build_graph(spec)
    pipeline.feed_input("frames", list(pictures))
    pipeline.feed_input("box", [np.array(box, np.float32) for box in boxes])
    pipeline.feed_input("size", [np.array(size, np.float32) for size in sizes])
    matrices = colours or [np.eye(3, dtype=np.float32)] * len(pictures)
    pipeline.feed_input("colour", [affine_colour(matrix, np.asarray(bias)) for matrix in matrices])
    pipeline.schedule_run()
    (output,) = pipeline.outputs()
    return take(output)


def reference(pictures: np.ndarray, box: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    return crop_reference(torch.from_numpy(pictures).double(), list(box), size).numpy()


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """Noise over a drawing: no two crop conventions agree on it."""
    noise = np.random.default_rng(5).integers(-30, 30, (3, 64, 96, 3))
    return np.clip(draw(3, 96, 64) + noise, 0, 255).astype(np.uint8)


def test_every_clip_is_cut_to_its_own_box_and_size_by_the_crop_rule(pictures: np.ndarray) -> None:
    sizes = [(48, 48), (24, 20), (40, 40), (25, 31)]
    lengths = (3, 1, 2, 3)
    fed = [pictures[:n] for n in lengths]
    for got, some, box, size in zip(run(fed, BOXES, sizes), fed, BOXES, sizes, strict=True):
        assert got.shape == (len(some), *size, 3)
        error = np.abs(got - reference(some, box, size))
        # Rounding is 0.5; DALI's weights are float32, and sums of some dozens of them.
        assert error.max() <= 0.51, f"worst at {np.unravel_index(error.argmax(), error.shape)}"


def test_a_box_of_the_output_size_copies_pixels(pictures: np.ndarray) -> None:
    whole, part = run([pictures] * 2, [(0, 0, 96, 64), (8, 6, 56, 54)], [(64, 96), (48, 48)])
    np.testing.assert_array_equal(whole, pictures)
    np.testing.assert_array_equal(part, pictures[:, 6:54, 8:56])


def test_the_colour_matrix_is_applied_in_float_and_clamped(pictures: np.ndarray) -> None:
    matrix = np.array([[1.4, -0.3, 0.1], [-1.2, 1.1, 0.1], [0.05, -0.25, 1.3]], np.float32)
    (got,) = run([pictures], [BOXES[1]], [(24, 24)], [matrix])
    exact = reference(pictures, BOXES[1], (24, 24)) @ matrix.T.astype(np.float64)
    assert (exact < 0).any()
    assert (exact > 255).any()
    assert np.abs(got - exact.clip(0, 255)).max() <= 0.51


def test_a_decoders_bias_is_taken_off_in_float_before_the_matrix(pictures: np.ndarray) -> None:
    matrix = np.array([[1.2, -0.3, 0.1], [-0.2, 1.1, 0.1], [0.05, -0.25, 1.2]], np.float32)
    bias = (0.87, -0.53, 1.08)
    (got,) = run([pictures], [BOXES[1]], [(24, 24)], [matrix], bias=bias)
    exact = (reference(pictures, BOXES[1], (24, 24)) - bias) @ matrix.T.astype(np.float64)
    assert np.abs(got - exact.clip(0, 255)).max() <= 0.51


def test_the_float_output_is_the_stored_one_normalised(pictures: np.ndarray) -> None:
    mean, std = (124.0, 116.0, 104.0), (58.0, 57.0, 57.5)
    spec = GraphSpec(source="frames", batch_size=1, threads=1, depth=1, mean=mean, std=std)
    (stored,) = run([pictures], [BOXES[1]], [(24, 24)])
    (got,) = run([pictures], [BOXES[1]], [(24, 24)], spec=spec)
    assert got.shape == (3, 3, 24, 24)
    expected = (stored.astype(np.float64) - mean) / std
    np.testing.assert_allclose(got, expected.transpose(0, 3, 1, 2), atol=1e-5)


def test_tensors_taken_from_the_graph_outlive_it(pictures: np.ndarray) -> None:
    (kept,) = run([pictures], [BOXES[0]], [(64, 96)], take=to_device)
    run([255 - pictures], [BOXES[0]], [(64, 96)], take=to_device)
    assert torch.equal(kept, torch.from_numpy(pictures))


def decoder_distance(path: Path, matrix: str, box: Sequence[float]) -> np.ndarray:
    """Levels between what NVDEC's pictures become in the graph and what PyAV's own are cut to."""
    ours = np.stack([native.rgb for native in read_native_frames(path)])
    theirs = as_dali_converts(path)
    (got,) = run([theirs], [box], [(48, 48)], [rgb_correction(matrix)])
    return np.abs(got - reference(ours, box, (48, 48)))


@pytest.mark.parametrize(("matrix", "code"), [("bt709", 1), ("bt2020", 9), ("untagged", 2)])
def test_pictures_converted_by_bt601_come_out_by_their_own_matrix(
    tmp_path: Path, matrix: str, code: int
) -> None:
    path = tmp_path / "clip.mp4"
    encode(path, draw(3, 96, 64), options={"crf": "8"}, prepare=tagged(code, 1))
    error = decoder_distance(path, matrix, BOXES[1])
    assert error.mean() < 0.5  # datapath tolerance of two decoders: mean below 0.5, p99 below 3
    assert np.percentile(error, 99) < 3
    if matrix != "untagged":
        (wrong,) = run([as_dali_converts(path)], [BOXES[1]], [(48, 48)])
        own = reference(
            np.stack([native.rgb for native in read_native_frames(path)]), BOXES[1], (48, 48)
        )
        assert np.abs(wrong - own).mean() > 2  # without the correction it would show


def test_a_real_bt709_clip_comes_out_by_its_own_matrix(shared: Path) -> None:
    path = shared / "faces" / "source-landscape-bt709.mp4"
    natives = [n.rgb for _, n in zip(range(3), read_native_frames(path), strict=False)]
    theirs = as_dali_converts(path, 3)
    box = (340.5, 60.25, 900.75, 620.5)
    (got,) = run([theirs], [box], [(256, 256)], [rgb_correction("bt709")])
    error = np.abs(got - reference(np.stack(natives), box, (256, 256)))
    assert error.mean() < 0.5
    assert np.percentile(error, 99) < 3


# ---- what a machine without CUDA can say of the GPU's graph -------------------------------------


def operators(spec: GraphSpec) -> list[tuple[str, str]]:
    """(operator, device) in order, from the serialised pipeline."""
    text = define_graph(spec).serialize()
    names = re.findall(rb"_display_name\x12\x06string\*.([\w.]+)", text)
    # A device is an argument of every operator: read in the order of the operators.
    devices = re.findall(rb"\x06device\x12\x06string\*.(cpu|gpu|mixed)", text)
    assert len(names) == len(devices)
    return [(n.decode(), d.decode()) for n, d in zip(names, devices, strict=True)]


def test_the_nvdec_graph_is_the_tested_one_with_its_devices_moved() -> None:
    spec = {"mean": (1.0, 2.0, 3.0), "std": (1.0, 1.0, 1.0)}
    gpu = operators(GraphSpec(source="nvdec", **spec))
    cpu = operators(GraphSpec(source="software", **spec))
    assert [name for name, _ in gpu] == [name for name, _ in cpu]
    assert {device for _, device in cpu} == {"cpu"}
    moved = {name: device for name, device in gpu if device != "cpu"}
    assert moved == {
        "video": "mixed",
        "resize": "gpu",
        "coord_transform": "gpu",
        "cast": "gpu",
        "crop_mirror_normalize": "gpu",
    }


def test_every_operator_exists_for_its_device_in_this_dali() -> None:
    from nvidia.dali import backend

    assert "decoders__Video" in backend.RegisteredMixedOps()
    on_gpu = set(backend.RegisteredGPUOps())
    assert {"Resize", "CoordTransform", "Cast", "CropMirrorNormalize"} <= on_gpu
    arguments = set(backend.GetSchema("decoders__Video").GetArgumentNames())
    assert {"frames", "pad_mode", "affine"} <= arguments


def test_a_graph_that_needs_cuda_says_so_where_there_is_none() -> None:
    if read_nvidia().gpus:
        pytest.skip("there is CUDA here")
    for device in (0, None):
        with pytest.raises(EnvironmentUnfit, match=r"does not build its nvdec graph.*doctor"):
            build_graph(GraphSpec(source="nvdec", device_id=device))


def test_impossible_graphs_are_refused() -> None:
    with pytest.raises(UsageError, match="no device"):
        GraphSpec(source="software", device_id=0)
    with pytest.raises(UsageError, match="by mean and std, or by neither"):
        GraphSpec(source="frames", mean=(0, 0, 0))
    with pytest.raises(UsageError, match="at least one"):
        GraphSpec(source="frames", batch_size=0)
    assert INPUTS["nvdec"] == INPUTS["software"]
