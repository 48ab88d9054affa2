"""MTCNN with its published weights takes the drawn faces for faces, where they are."""

from __future__ import annotations

import numpy as np
import pytest

from dfm_engine.actions import Action
from dfm_engine.faces.mtcnn import Mtcnn
from dfm_engine.synthetic import Identity, States, action_states, render


def peak(action: Action, seed: int) -> States:
    """The frame in which an action is farthest from rest."""
    states = action_states(action, 45, seed)
    scale = states.values.abs().amax(0).clamp(min=1e-6)
    pose_or_action = states.values[:, [0, 1, 2, 5, 6, 9, 10, 11]].abs()
    weight = pose_or_action.new_tensor([1 / 20, 1 / 15, 1 / 20, 1, 1, 1, 1, 1])
    assert scale.shape == (15,)
    return states[[int((pose_or_action * weight).sum(1).argmax())]]


def found(seeds: range, size: int) -> tuple[float, np.ndarray]:
    """Share of frames found at 0.9 or better, and landmark errors in eye distances."""
    detector = Mtcnn.load()
    errors, hits, frames = [], 0, 0
    for seed in seeds:
        drawn = render(Identity.draw(seed), States.join([peak(a, seed) for a in Action]), size)
        truth = drawn.mtcnn_points.numpy()
        for row, faces in enumerate(detector.detect(drawn.frames.numpy())):
            frames += 1
            if faces and faces[0].score >= 0.9:
                hits += 1
                unit = 0.6 / 1.36 * size / 2
                errors.append(np.linalg.norm(faces[0].landmarks - truth[row], axis=-1) / unit)
    return hits / frames, np.stack(errors)


def test_faces_are_found_and_their_points_are_where_they_were_drawn() -> None:
    share, errors = found(range(1000, 1004), 128)
    assert share >= 0.95
    assert np.median(errors) < 0.08
    assert np.percentile(errors, 90) < 0.20


@pytest.mark.slow
def test_faces_of_two_hundred_identities_are_found_in_all_actions() -> None:
    share, errors = found(range(2000, 2200), 128)
    assert share >= 0.95
    assert (errors.mean(0) < 0.10).all()
