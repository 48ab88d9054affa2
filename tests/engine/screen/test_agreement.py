"""Motion agreement and the verdict built on it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from dfm_engine.actions import Action
from dfm_engine.recipe import Screen
from dfm_engine.screen import CHANNELS, ExternalVerdict, agreement, judge


def test_every_action_has_its_curves():
    assert set(CHANNELS) == set(Action)


def test_the_same_motion_on_another_face_agrees_fully(moved, bump):
    driving = moved(yaw_deg=bump(25))
    result = replace(driving, yaw_deg=driving.yaw_deg - 7)  # another face, another offset
    match = agreement(driving, result, Action.YAW)
    assert (match.correlation, match.amplitude_ratio, match.frames) == (1.0, 1.0, 50)


@pytest.mark.parametrize(("scale", "correlation"), [(0.4, 1.0), (-1.0, -1.0)])
def test_a_scaled_motion_shows_in_the_ratio_and_a_reversed_one_in_the_sign(
    moved, bump, scale, correlation
):
    match = agreement(moved(roll_deg=bump(20)), moved(roll_deg=bump(20 * scale)), Action.LEFT_SLOPE)
    assert match.correlation == pytest.approx(correlation, abs=1e-3)
    assert match.amplitude_ratio == pytest.approx(abs(scale), abs=1e-3)


def test_noise_does_not_agree(moved, bump):
    noise = np.random.default_rng(0).normal(0, 5, 50)
    assert (
        abs(agreement(moved(yaw_deg=bump(25)), moved(yaw_deg=noise), Action.YAW).correlation) < 0.4
    )


def test_no_motion_at_all_agrees_with_nothing(neutral, moved, bump):
    match = agreement(moved(yaw_deg=bump(25)), neutral, Action.YAW)
    assert (match.correlation, match.amplitude_ratio) == (0.0, 0.0)


def test_several_curves_count_as_one_motion_in_units_of_their_gates(moved, bump):
    driving = moved(mouth_width=bump(0.128), corner_lift=bump(0.12))  # of a mouth 0.8 e wide
    only_width = moved(mouth_width=bump(0.128))
    match = agreement(driving, only_width, Action.SMILE)
    # Both curves weigh two units, so half of the motion's energy is there.
    assert match.correlation == pytest.approx(np.sqrt(0.5), abs=0.01)
    assert match.amplitude_ratio == pytest.approx(np.sqrt(0.5), abs=0.01)


def test_surprise_agrees_by_the_two_of_its_three_signs_that_agree_best(moved, bump):
    driving = moved(mouth_dark=bump(0.2), brow_lift=bump(0.12), eye_left=bump(0.3))
    lost = np.random.default_rng(3).normal(0, 0.05, 50)  # brows that could not be followed
    result = moved(mouth_dark=bump(0.2), brow_lift=lost, eye_left=bump(0.3))
    match = agreement(driving, result, Action.SURPRISE)
    assert match.correlation == pytest.approx(1.0, abs=1e-3)


def test_of_unequal_lengths_the_common_start_is_compared(moved, bump):
    driving = moved(yaw_deg=bump(25))
    shorter = replace(
        driving, **{name: getattr(driving, name)[:30] for name in ("yaw_deg", "pitch_deg")}
    )
    assert agreement(driving, shorter, Action.YAW).frames == 30


def test_a_faithful_animation_is_kept(moved, bump):
    driving = moved(yaw_deg=bump(25))
    verdict = judge(driving, driving, Action.YAW, settings=Screen())
    assert verdict.keep
    assert verdict.passed
    assert verdict.reasons == ()
    assert verdict.driving.performed
    assert json.loads(json.dumps(verdict.to_json()))["agreement"]["correlation"] == 1.0


def test_an_animation_without_a_face_is_refused(moved, bump):
    verdict = judge(moved(yaw_deg=bump(25)), None, Action.YAW, settings=Screen())
    assert not verdict.keep
    assert verdict.reasons == ("no frame of the animation holds a face",)
    assert json.loads(json.dumps(verdict.to_json()))["performed"] is None


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"found_share": 0.9}, "a face in 90%"),
        ({"still_share": 0.5}, "equal to the one before"),
        ({"sharpness": 1.0}, "sharpness is 0.20"),
    ],
)
def test_each_check_of_the_frames_has_its_reason(moved, bump, change, word):
    driving = moved(yaw_deg=bump(25))
    verdict = judge(driving, replace(driving, **change), Action.YAW, settings=Screen())
    assert not verdict.keep
    assert len(verdict.reasons) == 1
    assert word in verdict.reasons[0]


def test_frozen_frames_are_forgiven_where_the_driving_clip_is_frozen_too(moved, bump):
    driving = replace(moved(yaw_deg=bump(25)), still_share=0.5)
    assert judge(driving, driving, Action.YAW, settings=Screen()).keep


def test_sharpness_is_compared_with_the_source_image_where_there_is_one(neutral, moved, bump):
    driving = moved(yaw_deg=bump(25))
    soft = replace(driving, sharpness=1.0)
    source = replace(neutral, sharpness=1.2)
    assert judge(driving, soft, Action.YAW, settings=Screen(), source=source).keep


def test_weak_motion_names_gate_and_amplitude(moved, bump):
    verdict = judge(moved(yaw_deg=bump(25)), moved(yaw_deg=bump(8)), Action.YAW, settings=Screen())
    assert [reason.split(" ")[0] for reason in verdict.reasons] == ["yaw", "motion"]
    assert "0.32 of the driving clip's" in verdict.reasons[1]


def test_record_mode_keeps_what_it_would_refuse(moved, bump):
    verdict = judge(moved(yaw_deg=bump(25)), None, Action.YAW, settings=Screen(mode="record"))
    assert verdict.keep
    assert not verdict.passed
    assert verdict.reasons


def test_an_imported_fail_refuses_the_clip(moved, bump):
    driving = moved(yaw_deg=bump(25))
    said = ExternalVerdict(clip_id="a", path="", gate="vendor", passed=False, score=0.1)
    verdict = judge(driving, driving, Action.YAW, settings=Screen(), external=(said,))
    assert verdict.reasons == ("vendor says fail",)
    assert verdict.to_json()["external"][0]["gate"] == "vendor"
