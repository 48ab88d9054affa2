"""Candidates, quotas and waves: what is tried and kept depends on verdicts alone."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfm_engine.actions import Action
from dfm_engine.plan import Candidate, Outcome, Planner, Quotas, order_candidates

SOURCES = [f"s{i}" for i in range(12)]
ACTIONS = [Action.BLINK, Action.NOD, Action.SMILE]
DRIVING = {action: [f"{action}-{i}" for i in range(3)] for action in ACTIONS}


def candidates(frames_held=None, needed=None, seed=0):
    held = frames_held or dict.fromkeys(SOURCES, 100)
    need = needed or {clip: 50 for clips in DRIVING.values() for clip in clips}
    return {
        action: list(order_candidates(SOURCES, DRIVING[action], need, held, action, seed=seed))
        for action in ACTIONS
    }


def run(planner: Planner, passes, *, wave_size=5) -> list[Candidate]:
    tried = []
    while wave := planner.next_wave(wave_size):
        for candidate in wave:
            assert candidate not in planner.outcomes
            planner.record(candidate, Outcome.PASSED if passes(candidate) else Outcome.REFUSED)
        tried += wave
    return tried


def test_every_pair_occurs_once_and_takes_are_used_evenly():
    listed = candidates()[Action.BLINK]
    assert len(listed) == len(set(listed)) == 36
    first_round = Counter(c.driving for c in listed[:12])
    assert set(first_round.values()) == {4}
    assert [c.source for c in listed[:12]] != SOURCES
    assert sorted(c.source for c in listed[:12]) == sorted(SOURCES)


def test_the_order_differs_between_actions_and_seeds():
    by_action = candidates()
    orders = {tuple(c.source for c in by_action[action][:12]) for action in ACTIONS}
    assert len(orders) == 3
    assert candidates(seed=1)[Action.NOD] != by_action[Action.NOD]


def test_a_clip_shorter_than_the_driving_clip_is_no_source_but_a_still_is():
    held = {**dict.fromkeys(SOURCES, 100), "s3": 49, "s4": None}
    sources = {c.source for c in candidates(held)[Action.BLINK]}
    assert "s3" not in sources
    assert "s4" in sources


def test_quota_keeps_the_first_that_pass_and_tries_no_more_than_needed():
    planner = Planner(candidates(), Quotas(per_action=dict.fromkeys(ACTIONS, 4)))
    tried = run(planner, lambda c: True)
    assert len(tried) == len(planner.kept()) == 12
    for action in ACTIONS:
        kept = [c for c in planner.kept() if c.action == action]
        assert kept == candidates()[action][:4]


def test_a_refused_candidate_is_replaced_by_the_next_in_its_list():
    listed = candidates()[Action.NOD]
    planner = Planner(candidates(), Quotas(per_action=dict.fromkeys(ACTIONS, 2)))
    run(planner, lambda c: c != listed[0])
    assert [c for c in planner.kept() if c.action == Action.NOD] == listed[1:3]


def test_a_source_serves_one_kept_fake_and_a_refused_source_serves_another_action():
    planner = Planner(candidates(), Quotas(per_action=dict.fromkeys(ACTIONS, 4), per_source=1))
    run(planner, lambda c: c.action != Action.BLINK or c.source in SOURCES[:4])
    used = Counter(c.source for c in planner.kept())
    assert max(used.values()) == 1
    assert len(planner.kept()) == 12 - sum(planner.shortfall().values())


def test_shortfall_names_only_actions_with_a_quota():
    planner = Planner(candidates(), Quotas(per_action={**dict.fromkeys(ACTIONS), Action.NOD: 40}))
    run(planner, lambda c: c.action != Action.SMILE)
    assert planner.shortfall() == {Action.NOD: 4}


@pytest.mark.parametrize(("limit", "expected"), [(4, [2, 1, 1]), (9, [3, 3, 3]), (2, [1, 1, 0])])
def test_a_limit_is_dealt_round_robin_in_the_papers_order(limit, expected):
    quotas = Quotas.of(ACTIONS[::-1], per_action=0, per_source=0, limit=limit)
    assert [quotas.per_action[action] for action in ACTIONS] == expected


def test_a_limit_never_raises_a_recipes_quota():
    quotas = Quotas.of(ACTIONS, per_action=2, per_source=0, limit=60)
    assert set(quotas.per_action.values()) == {2}


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    quota=st.one_of(st.none(), st.integers(1, 6)),
    per_source=st.integers(0, 3),
    seed=st.integers(0, 5),
)
def test_a_run_interrupted_anywhere_tries_and_keeps_the_same(data, quota, per_source, seed):
    quotas = Quotas(per_action=dict.fromkeys(ACTIONS, quota), per_source=per_source)
    verdict = random.Random(seed)
    passing = {c for listed in candidates().values() for c in listed if verdict.random() < 0.6}
    whole = Planner(candidates(), quotas)
    tried = run(whole, passing.__contains__)

    cut = data.draw(st.integers(0, len(tried)))
    known = {c: whole.outcomes[c] for c in data.draw(st.permutations(tried[:cut]))}
    resumed = Planner(candidates(), quotas)
    while wave := resumed.next_wave(5):
        for candidate in wave:  # a job already committed is not made again, only recorded
            outcome = known.get(candidate)
            passes = candidate in passing
            resumed.record(candidate, outcome or (Outcome.PASSED if passes else Outcome.REFUSED))
    assert resumed.kept() == whole.kept()
    assert list(resumed.outcomes) == tried
    for action in ACTIONS:
        kept = [c for c in whole.kept() if c.action == action]
        assert quota is None or len(kept) <= quota
    if per_source:
        assert max(Counter(c.source for c in whole.kept()).values(), default=0) <= per_source
