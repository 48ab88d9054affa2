"""Gates on made-up curves: each action's own motion passes, near misses and other motions fail."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dfm_engine.actions import Action
from dfm_engine.errors import RecipeError
from dfm_engine.screen import THRESHOLDS, check_action, thresholds_for


def performed(signals, action: Action, **limits: float) -> bool:
    return check_action(signals, action, {action.value: limits} if limits else None).performed


def motions(moved, bump) -> dict[Action, object]:
    """A clear performance of every action."""
    pitch = lambda curve: {"pitch_deg": curve, "pitch_nose_deg": curve}  # noqa: E731
    shut = bump(-0.7, 20, 28, 2)
    return {
        Action.BLINK: moved(eye_left=shut, eye_right=shut),
        Action.OPEN_MOUTH: moved(mouth_dark=bump(0.3), corner_lift=bump(-0.2)),
        Action.YAW: moved(yaw_deg=bump(25, 8, 24) - bump(25, 26, 44)),
        Action.NOD: moved(**pitch(bump(16, 10, 22) + bump(16, 26, 38))),
        Action.RIGHT_SLOPE: moved(roll_deg=bump(-20)),
        Action.LEFT_SLOPE: moved(roll_deg=bump(20)),
        Action.LOOK_UP: moved(**pitch(bump(-18))),
        Action.SMILE: moved(mouth_width=bump(0.15), corner_lift=bump(0.1)),
        Action.SURPRISE: moved(mouth_dark=bump(0.2), brow_lift=bump(0.12), eye_left=bump(0.3)),
        Action.EMBARRASSMENT: moved(
            **pitch(bump(9, 8, 44)), mouth_width=bump(0.05, 8, 44), corner_lift=bump(0.05, 8, 44)
        ),
    }


@pytest.mark.parametrize("action", list(Action))
def test_a_clear_performance_passes_its_own_gate(moved, bump, action):
    verdict = check_action(motions(moved, bump)[action], action)
    assert verdict.performed, verdict.reason
    assert verdict.score >= 1
    assert verdict.low_confidence == (action is Action.EMBARRASSMENT)


@pytest.mark.parametrize("action", list(Action))
def test_a_face_at_rest_performs_nothing_and_is_told_why(neutral, action):
    verdict = check_action(neutral, action)
    assert not verdict.performed
    assert verdict.score < 1
    assert "needs at least" in verdict.reason or "needs at most" in verdict.reason


def test_clear_performances_pass_no_other_gate_but_what_overlaps_by_definition(moved, bump):
    clips = motions(moved, bump)
    passed = {
        (shown.value, asked.value)
        for shown, signals in clips.items()
        for asked in Action
        if asked is not shown and performed(signals, asked)
    }
    assert passed == {("surprise", "open_mouth"), ("embarrassment", "smile")}


def test_right_slope_is_towards_the_subjects_right_which_is_image_left(moved, bump):
    # Clockwise in the picture lowers the eye at image right: the subject's left.
    clockwise = moved(roll_deg=bump(20))
    assert performed(clockwise, Action.LEFT_SLOPE)
    assert not performed(clockwise, Action.RIGHT_SLOPE)


@pytest.mark.parametrize(("frames", "passes"), [(1, False), (3, True), (20, True), (30, False)])
def test_a_blink_has_a_length(moved, frames, passes):
    shut = np.zeros(50)
    shut[12 : 12 + frames] = -0.7
    assert performed(moved(eye_left=shut, eye_right=shut), Action.BLINK) == passes


def test_a_wink_and_eyes_that_stay_shut_are_no_blinks(moved, bump):
    shut = bump(-0.75, 20, 28, 2)
    assert not performed(moved(eye_left=shut), Action.BLINK)
    asleep = np.where(np.arange(50) > 40, -0.7, 0.0)
    assert not performed(moved(eye_left=asleep, eye_right=asleep), Action.BLINK)


def test_a_blink_while_the_head_turns_is_refused(moved, bump):
    shut = bump(-0.7, 20, 28, 2)
    turning = moved(eye_left=shut, eye_right=shut, yaw_deg=bump(20))
    assert not performed(turning, Action.BLINK)
    assert "yaw_range_deg" in check_action(turning, Action.BLINK).reason


def test_a_nod_comes_back_up(moved, bump):
    stays_down = np.clip((np.arange(50) - 15) / 5, 0, 1) * 16
    assert not performed(moved(pitch_deg=stays_down, pitch_nose_deg=stays_down), Action.NOD)


def test_pitch_needs_both_estimates_to_agree(moved, bump):
    # An opening mouth moves only the estimate that uses the mouth; a closing eye the other.
    assert not performed(moved(pitch_deg=bump(-20)), Action.LOOK_UP)
    assert not performed(moved(pitch_nose_deg=bump(-20)), Action.LOOK_UP)
    assert not performed(moved(pitch_deg=bump(-20), pitch_nose_deg=bump(15)), Action.LOOK_UP)


def test_a_look_up_must_be_held(moved, bump):
    short = bump(-18, 20, 26, 2)
    assert not performed(moved(pitch_deg=short, pitch_nose_deg=short), Action.LOOK_UP)


def test_a_wider_mouth_without_lifted_corners_is_no_smile(moved, bump):
    assert not performed(moved(mouth_width=bump(0.2)), Action.SMILE)
    assert not performed(moved(corner_lift=bump(0.1)), Action.SMILE)


@pytest.mark.parametrize(
    ("names", "passes"),
    [
        (("mouth_dark",), False),
        (("brow_lift",), False),
        (("mouth_dark", "brow_lift"), True),
        (("brow_lift", "eye_left"), True),
    ],
)
def test_surprise_takes_two_of_three(moved, bump, names, passes):
    heights = {"mouth_dark": 0.2, "brow_lift": 0.12, "eye_left": 0.4}
    assert performed(moved(**{n: bump(heights[n]) for n in names}), Action.SURPRISE) == passes


def test_surprise_needs_its_signs_at_the_same_time(moved, bump):
    apart = moved(mouth_dark=bump(0.2, 8, 20), brow_lift=bump(0.12, 28, 42))
    assert not performed(apart, Action.SURPRISE)


def test_a_recipe_overrides_one_limit_and_the_score_says_how_far(moved, bump):
    half = moved(yaw_deg=bump(10))
    verdict = check_action(half, Action.YAW)
    assert not verdict.performed
    assert verdict.score == pytest.approx(10 / 13, abs=1e-3)
    assert performed(half, Action.YAW, peak_deg=9)
    assert thresholds_for(Action.YAW, {"yaw": {"peak_deg": 9.0}}) == {
        **THRESHOLDS[Action.YAW],
        "peak_deg": 9.0,
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"jaw": {"peak_deg": 9.0}}, "'jaw' is no action"),
        ({"yaw": {"peak": 9.0}}, "unknown limit 'peak'.*peak_deg"),
    ],
)
def test_an_unknown_override_is_refused_with_the_nearest_name(neutral, overrides, message):
    with pytest.raises(RecipeError, match=message):
        check_action(neutral, Action.NOD, overrides)


def test_a_verdict_is_plain_json(moved, bump):
    verdict = check_action(moved(yaw_deg=bump(25)), Action.YAW)
    assert json.loads(json.dumps(verdict.to_json()))["action"] == "yaw"


def test_a_clip_shorter_than_a_gate_asks_for_does_not_crash(neutral):
    import dataclasses

    short = dataclasses.replace(
        neutral,
        **{
            field.name: getattr(neutral, field.name)[:3]
            for field in dataclasses.fields(neutral)
            if isinstance(getattr(neutral, field.name), np.ndarray)
        },
    )
    assert not any(check_action(short, action).performed for action in Action)
