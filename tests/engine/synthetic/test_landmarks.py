"""Ground truth of the renderer: rigid under pose, true derivatives, where the picture has them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dfm_engine.actions import Action
from dfm_engine.synthetic import (
    LANDMARKS,
    MIRRORED,
    STATE_FIELDS,
    Identity,
    States,
    action_states,
    landmarks,
    neutral_states,
    render,
)
from dfm_engine.synthetic.head import HALF_VIEW, Drawn, project, turn
from dfm_engine.synthetic.identity import stack
from dfm_engine.synthetic.landmarks import Truth, ground_truth

AT = {name: k for k, name in enumerate(LANDMARKS)}


def states_with(**columns: float | list[float]) -> States:
    rows = max(len(v) if isinstance(v, list) else 1 for v in columns.values())
    values = neutral_states(rows).values
    for name, value in columns.items():
        values[:, STATE_FIELDS.index(name)] = torch.tensor(value)
    return States(values)


def truth_of(identities: list[Identity], states: States, *, double: bool = False) -> Truth:
    dtype = torch.float64 if double else torch.float32
    values = {k: v.to(dtype) for k, v in stack(identities).values.items()}
    if len(identities) == 1:
        values = {k: v.expand(len(states), *v.shape[1:]) for k, v in values.items()}
    return ground_truth(Drawn.of(values, states.values.to(dtype)), 100)


def test_landmarks_move_as_one_rigid_body_under_pose() -> None:
    rng = np.random.default_rng(0)
    angles = rng.uniform(-25, 25, (30, 3))
    states = states_with(
        **{n: angles[:, k].tolist() for k, n in enumerate(("yaw_deg", "pitch_deg", "roll_deg"))}
    )
    points = truth_of([Identity.draw(1)], states, double=True).landmarks
    track = (points - points.mean(1, keepdim=True)).permute(0, 2, 1).reshape(60, 10)
    # an orthographic view of a rigid body has rank 3 (Tomasi and Kanade 1992)
    strength = torch.linalg.svdvals(track)
    assert strength[3] < 1e-9 * strength[0]
    assert strength[2] > 1e-2 * strength[0]
    # and rows of a rotation: with the shape in the frontal view's coordinates, motion is metric
    shape = torch.linalg.svd(track).Vh[:3]
    motion = (track @ shape.T).view(30, 2, 3)
    gram = torch.einsum("nik,njl->nijkl", motion, motion)
    rows = torch.cat((gram[:, 0, 0] - gram[:, 1, 1], gram[:, 0, 1])).flatten(1)
    metric = torch.linalg.svdvals(rows)  # some symmetric metric makes all rows orthonormal
    assert metric[-1] < 1e-9 * metric[0]


def test_roll_turns_the_picture_about_the_neck() -> None:
    truth = truth_of([Identity.draw(2)], states_with(roll_deg=[0.0, 17.0]), double=True)
    turn = math.radians(17)
    matrix = torch.tensor(
        [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]], dtype=torch.float64
    )
    centred = truth.landmarks - truth.landmarks[:, :1]
    assert torch.allclose(centred[1], centred[0] @ matrix.T, atol=1e-12)
    # linear surface steps: the jacobian at roll is the rotation times the frontal one
    assert torch.allclose(truth.jacobians[1], matrix @ truth.jacobians[0], atol=1e-9)


def test_a_frontal_face_at_rest_has_the_identity_as_jacobian() -> None:
    person = Identity.draw(3)
    truth = truth_of([person], neutral_states(), double=True)
    expected = torch.eye(2, dtype=torch.float64) * person.zoom
    assert torch.allclose(truth.jacobians[0], expected.expand(10, 2, 2), atol=1e-6)


def test_signs_of_pose() -> None:
    frontal, right, down = truth_of(
        [Identity.draw(4)], states_with(yaw_deg=[0.0, 20.0, 0.0], pitch_deg=[0.0, 0.0, 15.0])
    ).landmarks
    eyes = [AT["left_upper_lid"], AT["right_upper_lid"]]

    def nose_from_eyes(points: torch.Tensor) -> torch.Tensor:
        return points[AT["nose_tip"]] - points[eyes].mean(0)

    assert nose_from_eyes(right)[0] > nose_from_eyes(frontal)[0] + 0.05
    assert nose_from_eyes(down)[1] > nose_from_eyes(frontal)[1] + 0.02


def test_jacobians_agree_with_finite_differences_of_the_surface(monkeypatch) -> None:
    states = States.join([action_states(a, 45, 5)[18:26:7] for a in Action])
    drawn = Drawn.of(
        {
            k: v.double().expand(len(states), *v.shape[1:])
            for k, v in stack([Identity.draw(7)]).values.items()
        },
        states.values.double(),
    )
    resting = landmarks._resting(drawn)
    smoothed = landmarks.ground_truth(drawn, 100).jacobians
    monkeypatch.setattr(landmarks, "STEP", 1e-5)
    local = landmarks.ground_truth(drawn, 100).jacobians
    rng = torch.Generator().manual_seed(0)
    direction = torch.randn(resting.shape, generator=rng, dtype=torch.float64)
    ends = [
        project(drawn.who, turn(drawn, landmarks._lift(drawn, resting + s * direction)))
        for s in (3e-5, -3e-5)
    ]
    moved = (ends[0] - ends[1]) * (HALF_VIEW / 6e-5)
    predicted = (local @ direction[..., None])[..., 0]
    # the face is mirrored by |x|: a slope of up to 0.02 turns over at x = 0, within the step
    assert (moved - predicted).abs().max() < 5e-4
    # what is returned is the mean within 0.02 head units: near the local one but at the nose tip
    flat = [k for k, name in enumerate(LANDMARKS) if name != "nose_tip"]
    assert (smoothed - local)[:, flat].abs().max() < 0.08


def test_actions_move_the_points_they_are_named_after() -> None:
    person = [Identity.draw(8)]
    rest, shut, wide, happy, brows = truth_of(
        person,
        states_with(
            blink=[0.0, 1.0, 0, 0, 0], jaw=[0.0, 0, 1.0, 0, 0], smile=[0.0, 0, 0, 1.0, 0],
            brow=[0.0, 0, 0, 0, 1.0],
        ),
    ).landmarks * HALF_VIEW  # fmt: skip
    assert shut[AT["left_upper_lid"], 1] - rest[AT["left_upper_lid"], 1] > 0.08
    gap = wide[AT["lower_lip"], 1] - wide[AT["upper_lip"], 1]
    assert gap - (rest[AT["lower_lip"], 1] - rest[AT["upper_lip"], 1]) > 0.27
    assert wide[AT["chin"], 1] - rest[AT["chin"], 1] > 0.15
    corners = [AT["left_mouth_corner"], AT["right_mouth_corner"]]
    widths = [(p[corners[1]] - p[corners[0]])[0] for p in (rest, happy)]
    assert 1.12 <= widths[1] / widths[0] <= 1.25
    assert (rest[corners] - happy[corners])[:, 1].min() > 0.03
    assert rest[AT["left_brow"], 1] - brows[AT["left_brow"], 1] > 0.08


def test_the_mirrored_order_is_the_order_of_a_mirrored_face() -> None:
    person = [Identity.draw(9)]
    points, other = truth_of(
        person, states_with(yaw_deg=[15.0, -15.0], roll_deg=[8.0, -8.0])
    ).landmarks
    middle = 2 * person[0].shift[0] / HALF_VIEW * person[0].zoom
    mirrored = torch.stack((-points[:, 0] - middle, points[:, 1]), -1)[list(MIRRORED)]
    assert torch.allclose(mirrored, other, atol=1e-6)


@pytest.mark.parametrize("seed", [3, 20])
def test_landmarks_lie_on_what_is_painted(seed: int) -> None:
    """The lower lid of a shut eye and the line of a shut mouth are dark, right at the points."""
    drawn = render(Identity.draw(seed), states_with(blink=1.0), 256)
    grey = drawn.frames[0].float().mean(-1)
    pixels = (drawn.landmarks[0] + 1) * 128
    mouth = (pixels[AT["left_mouth_corner"]] + pixels[AT["right_mouth_corner"]]) / 2
    x, y = (int(v) for v in mouth)
    column = grey[y - 12 : y + 13, x - 2 : x + 3].mean(1)
    assert abs(int(column.argmin()) - 12) <= 2
    x, y = (int(v) for v in pixels[AT["left_upper_lid"]])
    column = grey[y - 8 : y + 9, x - 2 : x + 3].mean(1)
    assert abs(int(column.argmin()) - 8) <= 2
