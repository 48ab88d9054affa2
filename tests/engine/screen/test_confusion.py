"""Telling actions apart, counted; and the goals over procedural faces."""

from __future__ import annotations

import numpy as np
import pytest

from dfm_engine.actions import Action
from dfm_engine.errors import RecipeError
from dfm_engine.faces.mtcnn import Mtcnn
from dfm_engine.recipe import Screen
from dfm_engine.screen import Confusion, confusion_matrix, judge, measure, parse_overlaps


def test_every_gate_is_asked_about_every_clip(moved, bump):
    yaw = moved(yaw_deg=bump(25))
    surprise = moved(mouth_dark=bump(0.2), brow_lift=bump(0.12))
    clips = [
        (Action.YAW, yaw),
        (Action.YAW, None),
        (Action.SURPRISE, surprise),
        (Action.SMILE, yaw),
    ]
    confusion = confusion_matrix(clips)
    row = {action: confusion.actions.index(action) for action in Action}
    assert confusion.passed[row[Action.YAW], row[Action.YAW]] == 1
    assert confusion.tried[row[Action.YAW]] == 2
    assert confusion.passed[row[Action.SURPRISE], row[Action.OPEN_MOUTH]] == 1
    assert confusion.passed[row[Action.SMILE]].nonzero()[0].tolist() == [row[Action.YAW]]
    assert confusion.tried.sum() == 4
    assert confusion.accepted == 0.5


def test_refusals_are_averaged_over_cells_that_do_not_overlap():
    first, second, third = list(Action)[:3]
    confusion = Confusion(
        actions=(first, second, third),
        passed=np.array([[4, 4, 0], [0, 1, 1], [0, 0, 0]]),
        tried=np.array([4, 2, 0]),
    )
    # Cells: 0 and 1 of the first row, 1 and 1/2 of the second; the third was never tried.
    assert confusion.refused() == pytest.approx((0 + 1 + 1 + 0.5) / 4)
    assert confusion.refused({(first, second)}) == pytest.approx((1 + 1 + 0.5) / 3)
    assert confusion.accepted == pytest.approx(5 / 6)
    assert "blink" in str(confusion)


def test_overlaps_of_the_default_recipe_are_pairs_of_actions():
    pairs = parse_overlaps(Screen().overlaps)
    assert (Action.SURPRISE, Action.OPEN_MOUTH) in pairs
    assert len(pairs) == len(Screen().overlaps)


@pytest.mark.parametrize("entry", ["surprise", "surprise > jaw", "> nod", "nod < yaw"])
def test_an_overlap_that_is_no_pair_is_refused(entry):
    with pytest.raises(RecipeError, match="must read 'performed > gate'"):
        parse_overlaps([entry])


@pytest.mark.slow
def test_procedural_clips_pass_their_own_gate_and_hardly_any_other():
    from dfm_engine.screen.procedural import TEST_SEEDS, TUNING_SEEDS, procedural_confusion

    assert not set(TEST_SEEDS) & set(TUNING_SEEDS)
    settings = Screen()
    confusion = procedural_confusion(Mtcnn.load(), TEST_SEEDS, settings=settings)
    assert confusion.tried.tolist() == [len(TEST_SEEDS)] * len(Action)
    assert confusion.accepted >= 0.95, f"\n{confusion}"
    assert confusion.refused(parse_overlaps(settings.overlaps)) >= 0.90, f"\n{confusion}"


@pytest.mark.slow
def test_a_true_reenactment_by_another_identity_is_kept_and_a_wrong_one_refused():
    from dfm_engine.synthetic import Identity, action_states, render

    detector = Mtcnn.load()
    settings = Screen()
    seeds = (200, 201)
    clips = {}
    for seed in seeds:
        for index, action in enumerate(Action):
            states = action_states(action, seed=seed)
            for role, first in (("driving", 5000), ("result", 7000)):
                identity = Identity.draw(first + seed * 10 + index)
                frames = render(identity, states, 128).frames.numpy()
                clips[seed, action, role] = measure(np.ascontiguousarray(frames), detector)
    overlaps = parse_overlaps(settings.overlaps)
    kept, wrongly = [], []
    for seed in seeds:
        for action in Action:
            driving = clips[seed, action, "driving"]
            for shown in Action:
                verdict = judge(driving, clips[seed, shown, "result"], action, settings=settings)
                if shown is action:
                    kept.append((verdict.keep, action.value, verdict.reasons))
                elif (shown, action) not in overlaps:
                    wrongly.append((verdict.keep, action.value, shown.value))
    lost = [entry for entry in kept if not entry[0]]
    assert len(lost) <= 0.1 * len(kept), lost
    assert sum(keep for keep, *_ in wrongly) <= 0.02 * len(wrongly), wrongly
