"""The motion of driving clips on disk: the same to the bit, or found again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from dfm_engine.clip import FaceTrack
from dfm_engine.driving_store import DrivingMotion, DrivingStore
from dfm_engine.fomm.values import Keypoints
from dfm_engine.screen import Signals

FRAMES = 5


@pytest.fixture
def motion() -> DrivingMotion:
    rng = np.random.default_rng(3)
    curves = {
        field.name: rng.random(FRAMES).astype(np.float32)
        for field in dataclasses.fields(Signals)
        if field.type == "Curve"
    }
    return DrivingMotion(
        Keypoints(torch.rand(FRAMES, 3, 2), torch.rand(FRAMES, 3, 2, 2)),
        Signals(**curves, found_share=0.1 + 0.2, still_share=0.25, sharpness=1 / 3),
        FaceTrack(
            boxes=rng.random((FRAMES, 4)).astype(np.float32),
            landmarks=rng.random((FRAMES, 5, 2)).astype(np.float32),
            scores=rng.random(FRAMES).astype(np.float32),
            found=rng.random(FRAMES) > 0.5,
            looked_at=np.ones(FRAMES, bool),
        ),
    )


def test_what_was_kept_comes_back_to_the_bit(motion: DrivingMotion, tmp_path: Path):
    DrivingStore(tmp_path, {"weights": "a"}).write("clip", motion)
    found = DrivingStore(tmp_path, {"weights": "a"}).read("clip", device="cpu")
    assert found is not None
    assert torch.equal(found.keypoints.value, motion.keypoints.value)
    assert found.keypoints.jacobian is not None
    assert torch.equal(found.keypoints.jacobian, motion.keypoints.jacobian)
    for part in ("signals", "track"):
        for field in dataclasses.fields(getattr(motion, part)):
            wanted = getattr(getattr(motion, part), field.name)
            value = getattr(getattr(found, part), field.name)
            np.testing.assert_array_equal(value, wanted, err_msg=field.name)
            assert type(value) is type(wanted)


def test_points_without_jacobians_come_back_without(motion: DrivingMotion, tmp_path: Path):
    store = DrivingStore(tmp_path, {})
    plain = dataclasses.replace(motion, keypoints=Keypoints(motion.keypoints.value))
    store.write("clip", plain)
    found = store.read("clip", device="cpu")
    assert found is not None
    assert found.keypoints.jacobian is None


def test_another_model_clip_or_recipe_finds_nothing(motion: DrivingMotion, tmp_path: Path):
    DrivingStore(tmp_path, {"weights": "a", "recipe": "r"}).write("clip", motion)
    assert (
        DrivingStore(tmp_path, {"weights": "b", "recipe": "r"}).read("clip", device="cpu") is None
    )
    assert (
        DrivingStore(tmp_path, {"weights": "a", "recipe": "s"}).read("clip", device="cpu") is None
    )
    assert DrivingStore(tmp_path, {"weights": "a", "recipe": "r"}).read("x", device="cpu") is None


@pytest.mark.parametrize("keep", [0, 7, 200, -1])
def test_a_damaged_file_is_found_again(motion: DrivingMotion, tmp_path: Path, keep: int):
    store = DrivingStore(tmp_path, {})
    store.write("clip", motion)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:keep])
    assert store.read("clip", device="cpu") is None


def test_a_second_build_decodes_no_driving_clip(workbench, tmp_path, monkeypatch):
    from dfm_engine.shelf import Shelf

    workbench.build(tmp_path / "set")
    for folder in ("jobs", "data"):  # all is to be made again
        for path in (tmp_path / "set" / folder).rglob("*.*"):
            path.unlink()
    monkeypatch.setattr(Shelf, "_find_motion", lambda *_: pytest.fail("decoded again"))
    assert workbench.build(tmp_path / "set").made == 9
