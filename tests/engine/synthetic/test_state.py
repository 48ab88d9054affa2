"""Performances: each action does what it says and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dfm_engine.actions import Action
from dfm_engine.errors import ShapeError, UsageError
from dfm_engine.synthetic import (
    STATE_FIELDS,
    States,
    action_states,
    idle_states,
    neutral_states,
)

LENGTHS = (24, 45)
SEEDS = range(12)
# field -> sign of the excursion (0: both or either) and its least size
MAIN = {
    Action.BLINK: {"blink": (1, 0.99)},
    Action.OPEN_MOUTH: {"jaw": (1, 0.78)},
    Action.YAW: {"yaw_deg": (0, 24)},
    Action.NOD: {"pitch_deg": (1, 14)},
    Action.RIGHT_SLOPE: {"roll_deg": (-1, 17)},
    Action.LEFT_SLOPE: {"roll_deg": (1, 17)},
    Action.LOOK_UP: {"pitch_deg": (-1, 19), "gaze_y": (-1, 0.5)},
    Action.SMILE: {"smile": (1, 0.84)},
    Action.SURPRISE: {"brow": (1, 0.84), "jaw": (1, 0.48), "eye_wide": (1, 0.78)},
    Action.EMBARRASSMENT: {"pitch_deg": (1, 9), "gaze_y": (1, 0.7), "press": (1, 0.78)},
}
ALSO = {  # what may accompany an action
    Action.SURPRISE: {"mouth_width", "pitch_deg"},
    Action.EMBARRASSMENT: {"yaw_deg", "smile", "blush"},
}
SWAY = {"yaw_deg": 0.9, "pitch_deg": 0.7, "roll_deg": 0.7, "gaze_x": 0.06, "gaze_y": 0.05}
SWAY |= {"shift_x": 0.007, "shift_y": 0.006}


def run_lengths(mask: np.ndarray) -> list[int]:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.astype(int), [0]))))
    return (edges[1::2] - edges[::2]).tolist()


@pytest.mark.parametrize("action", list(Action))
@pytest.mark.parametrize("length", LENGTHS)
def test_an_action_moves_its_own_fields_and_no_others(action: Action, length: int) -> None:
    for seed in SEEDS:
        states = action_states(action, length, seed)
        assert len(states) == length
        for name in STATE_FIELDS:
            values = states.column(name).numpy()
            if name in MAIN[action]:
                sign, least = MAIN[action][name]
                peak = np.abs(values).max() if sign == 0 else (sign * values).max()
                assert peak >= least, (action, seed, name, peak)
            elif name not in ALSO.get(action, ()):
                assert np.abs(values).max() <= SWAY.get(name, 0.0), (action, seed, name)


@pytest.mark.parametrize("action", list(Action))
@pytest.mark.parametrize("length", LENGTHS)
def test_an_action_starts_neutral_and_comes_back(action: Action, length: int) -> None:
    limit = torch.tensor([SWAY.get(name, 0.0) for name in STATE_FIELDS])
    for seed in SEEDS:
        values = action_states(action, length, seed).values.abs()
        assert (values[:3] <= limit).all()
        # the last frame may still hold the end of the ease-out, under 2 % of the range
        slack = torch.tensor([0.6 if name.endswith("_deg") else 0.02 for name in STATE_FIELDS])
        assert (values[-1] <= limit + slack).all(), (seed, values[-1] - limit)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_blink_shuts_the_eyes_for_three_to_six_frames(length: int) -> None:
    counts = set()
    for seed in SEEDS:
        blink = action_states(Action.BLINK, length, seed).column("blink").numpy()
        shut = run_lengths(blink > 0.9)
        assert 1 <= len(shut) <= 2
        assert all(3 <= frames <= 7 for frames in shut), shut
        counts.add(len(shut))
    assert counts == ({1} if length == 24 else {1, 2})


def test_a_yaw_goes_to_both_sides_and_a_nod_returns() -> None:
    first_sides = set()
    for seed in SEEDS:
        yaw = action_states(Action.YAW, 45, seed).column("yaw_deg")
        assert yaw.max() >= 24
        assert yaw.min() <= -24
        first_sides.add(bool(yaw.argmax() < yaw.argmin()))
        pitch = action_states(Action.NOD, 45, seed).column("pitch_deg").numpy()
        assert len(run_lengths(pitch > 10)) == 2
        pitch = action_states(Action.NOD, 24, seed).column("pitch_deg").numpy()
        assert len(run_lengths(pitch > 10)) == 1
    assert first_sides == {True, False}


@pytest.mark.parametrize(
    ("action", "name", "level", "least"),
    [
        (Action.OPEN_MOUTH, "jaw", 0.7, 12),
        (Action.LOOK_UP, "pitch_deg", 15.0, 12),
        (Action.SMILE, "smile", 0.7, 12),
        (Action.SURPRISE, "brow", 0.7, 12),
        (Action.LEFT_SLOPE, "roll_deg", 16.0, 8),
    ],
)
def test_held_actions_are_held(action: Action, name: str, level: float, least: int) -> None:
    for seed in SEEDS:
        values = action_states(action, 45, seed).column(name).abs().numpy()
        assert max(run_lengths(values >= level)) >= least


def test_seeds_decide_a_performance() -> None:
    one, same = action_states(Action.SMILE, 45, 3), action_states(Action.SMILE, 45, 3)
    assert torch.equal(one.values, same.values)
    assert not torch.equal(one.values, action_states(Action.SMILE, 45, 4).values)
    assert torch.equal(idle_states(60, 5).values, idle_states(60, 5).values)
    assert not torch.equal(idle_states(60, 5).values, idle_states(60, 6).values)


def test_idle_talking_moves_the_mouth_blinks_and_starts_frontal() -> None:
    spoken = blinks = 0
    for seed in SEEDS:
        states = idle_states(100, seed)
        assert states.values[0, :3].abs().max() < 1.0
        assert states.column("jaw")[0] == 0
        assert states.column("jaw").min() >= 0
        assert states.column("jaw").max() <= 0.45
        assert states.column("yaw_deg").abs().max() < 8
        spoken += int(states.column("jaw").max() > 0.15)
        blinks += len(run_lengths(states.column("blink").numpy() > 0.9))
    assert spoken >= 10
    assert len(SEEDS) <= blinks <= 3 * len(SEEDS)


def test_states_join_and_slice() -> None:
    both = States.join([neutral_states(2), action_states(Action.BLINK, 20, 1)])
    assert len(both) == 22
    assert torch.equal(both[2:].values, action_states(Action.BLINK, 20, 1).values)


def test_a_clip_too_short_for_an_action_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 16 frames, asked for 9"):
        action_states(Action.NOD, 9)
    with pytest.raises(ShapeError, match=r"\(T, 15\), got \(3, 2\)"):
        States(torch.zeros(3, 2))
