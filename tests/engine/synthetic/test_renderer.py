"""Frames: the same from the same seeds, alone or in a batch, and of the identity asked for."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from dfm_engine.actions import Action
from dfm_engine.errors import ShapeError
from dfm_engine.synthetic import (
    RENDERER_VERSION,
    Identity,
    States,
    action_states,
    neutral_states,
    render,
)
from dfm_engine.synthetic.identity import stack

SIZE = 64
PEAKS = States.join([action_states(action, 45, 3)[20:21] for action in Action])


def test_an_identity_is_drawn_from_its_seed_alone() -> None:
    assert Identity.draw(5) == Identity.draw(5)
    people = [Identity.draw(seed) for seed in range(300)]
    assert len(set(people)) == 300
    # the variety that a training set needs, as counts among 300
    assert 30 <= sum(p.glasses > 0 for p in people) <= 110
    assert 5 <= sum(p.has_hair == 0 for p in people) <= 60
    assert 40 <= sum(p.long_hair > 0 for p in people) <= 160
    assert sum(p.beard > 0 for p in people) >= 15
    tones = np.array([np.mean(p.skin) for p in people])
    assert np.percentile(tones, 10) < 0.45
    assert np.percentile(tones, 90) > 0.65


def test_rendering_is_deterministic_and_noise_has_its_own_seed() -> None:
    person = Identity.draw(1)
    one, same = render(person, PEAKS, SIZE), render(person, PEAKS, SIZE)
    assert torch.equal(one.frames, same.frames)
    other = render(person, PEAKS, SIZE, noise_seed=1)
    distance = (one.frames.float() - other.frames.float()).std()
    expected = np.sqrt(2) * person.noise * 255 * np.sqrt(0.85**2 + 0.5**2)
    assert distance == pytest.approx(expected, rel=0.1)
    assert torch.equal(one.landmarks, other.landmarks)


def test_a_batch_is_its_singles() -> None:
    people = [Identity.draw(seed) for seed in (2, 3, 12, 13)]
    states = PEAKS[:8]
    people = [dataclasses.replace(person, noise=0.0) for person in people]
    batch = render(people, states, SIZE)
    for row in range(8):
        alone = render(people[row // 2], states[row : row + 1], SIZE)
        assert torch.equal(alone.frames[0], batch.frames[row])
        assert torch.allclose(alone.landmarks[0], batch.landmarks[row], atol=1e-6)
        assert torch.allclose(alone.jacobians[0], batch.jacobians[row], atol=1e-4)
        assert torch.allclose(alone.mtcnn_points[0], batch.mtcnn_points[row], atol=1e-4)


def test_several_frames_painted_at_once_equal_frames_painted_one_by_one(monkeypatch) -> None:
    """The path that a GPU takes, on the CPU."""
    from dfm_engine.synthetic import renderer

    people = [Identity.draw(seed) for seed in (0, 5)]
    one_by_one = render(people, PEAKS, SIZE).frames.int()
    monkeypatch.setattr(renderer, "_paints_one_by_one", lambda device: False)
    together = render(people, PEAKS, SIZE).frames.int()
    assert (together - one_by_one).abs().max() <= 1


@pytest.mark.gpu
def test_a_gpu_draws_what_a_cpu_draws() -> None:
    people = [Identity.draw(seed) for seed in range(10)]
    cpu, gpu = (render(people, PEAKS, 128, device=device) for device in ("cpu", "cuda"))
    difference = (cpu.frames.int() - gpu.frames.cpu().int()).abs()
    # another rounding may hand an edge sample to the neighbour; that stays rare
    assert (difference > 2).float().mean() < 1e-3
    assert torch.allclose(cpu.landmarks, gpu.landmarks.cpu(), atol=1e-5)


def test_the_pictures_resolution_does_not_change_what_is_drawn() -> None:
    quiet = dataclasses.replace(Identity.draw(8), noise=0.0)
    small, large = (render(quiet, PEAKS, size) for size in (SIZE, 4 * SIZE))
    pooled = large.frames.float().view(10, SIZE, 4, SIZE, 4, 3).mean((2, 4))
    assert (pooled - small.frames.float()).abs().mean() < 2.5
    assert torch.allclose(small.mtcnn_points * 4, large.mtcnn_points, atol=1e-3)


def test_an_action_changes_the_picture_where_it_happens() -> None:
    quiet = dataclasses.replace(Identity.draw(3), noise=0.0, glasses=0.0)
    values = neutral_states(3).values
    values[1, 5] = 1.0  # blink
    values[2, 10] = 1.0  # jaw
    drawn = render(quiet, States(values), 128)
    rest, shut, wide = drawn.frames.float()
    eyes = drawn.mtcnn_points[0, :2].round().int().tolist()
    for x, y in eyes:
        assert (rest - shut)[y - 3 : y + 4, x - 5 : x + 6].abs().mean() > 20
    assert (rest - shut)[80:].abs().max() == 0
    # the open mouth is mostly dark inside, with teeth above
    x = int(drawn.mtcnn_points[2, 3:, 0].mean())
    top, bottom = ((drawn.landmarks[2, [4, 5], 1] + 1) * 64).round().int().tolist()
    inside = wide[top : bottom + 1, x - 1 : x + 2].mean((1, 2))
    assert inside.min() < 60
    assert inside.max() > 130


def test_the_head_fills_the_frame_like_a_cropped_clip() -> None:
    for seed in range(4):
        person = dataclasses.replace(
            Identity.draw(seed), noise=0.0, backdrop=(0.05, 0.9, 0.05), cloth=(0.05, 0.9, 0.05)
        )
        points = render(person, neutral_states(), 128).mtcnn_points[0]
        eye_distance = points[1, 0] - points[0, 0]
        assert 22 <= eye_distance <= 34
        assert 45 <= points[0, 1] <= 75


def test_dark_skin_is_well_exposed() -> None:
    from dfm_engine.synthetic.identity import _SKIN

    for seed in range(200):
        person = Identity.draw(seed)
        if np.mean(person.skin) < np.mean(_SKIN[-1]) + 0.06:
            drawn = render(person, neutral_states(), 64)
            x, y = drawn.mtcnn_points[0, 2].int().tolist()
            assert drawn.frames[0, y - 3 : y + 1, x - 2 : x + 3].float().mean() > 55
            return
    pytest.fail("no dark skin among 200 identities")


def test_rows_that_do_not_divide_are_refused() -> None:
    people = [Identity.draw(0), Identity.draw(1)]
    with pytest.raises(ShapeError, match="3 state rows cannot be shared evenly by 2"):
        render(people, neutral_states(3), SIZE)
    with pytest.raises(ShapeError, match="0 identities"):
        render([], neutral_states(3), SIZE)


def test_stack_keeps_every_field_and_gives_periodic_textures() -> None:
    people = [Identity.draw(4), Identity.draw(6)]
    batch = stack(people)
    assert len(batch) == 2
    assert batch.values["eye_x"].tolist() == pytest.approx([p.eye_x for p in people])
    assert batch.values["skin"].shape == (2, 3)
    assert set(batch.values) == {f.name for f in dataclasses.fields(Identity)} - {"seed"}
    coarse = batch.noise_tile[0, :, :, 0]
    inner = (coarse[1:] - coarse[:-1]).abs().max()
    assert (coarse[0] - coarse[-1]).abs().max() < 1.5 * inner


def test_pixels_change_only_with_the_renderer_version() -> None:
    """Trained demo weights know the renderer by its version: raise it, run make_golden.py."""
    import importlib.util
    from pathlib import Path

    script = Path(__file__).with_name("make_golden.py")
    spec = importlib.util.spec_from_file_location("make_golden", script)
    assert spec is not None
    assert spec.loader is not None
    make_golden = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_golden)
    golden = json.loads(make_golden.GOLDEN.read_text())
    assert golden["renderer_version"] == RENDERER_VERSION
    drawn = make_golden.thumbnails()
    kept = torch.tensor(golden["tenths"]).view(drawn.shape) / 10
    # block means of 64 pixels: another machine's rounding moves them by far less than a level
    assert (drawn - kept).abs().max() < 1.0
