"""Metrics against scikit-learn and against their definitions, intervals against known spreads."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from dfm_engine.detect.metrics import (
    ECE_BINS,
    MetricsError,
    bootstrap,
    measure,
    reliability,
    roc_curve,
)

TOLERANCE = 1e-12  # a sum of at most 200 shares of one, each rounded to 1.1e-16


@st.composite
def scored(draw: st.DrawFn, weighted: bool = False):
    """Scores with many ties, both classes, and weights of 0 to 3 that leave each class some."""
    count = draw(st.integers(2, 60))
    steps = draw(st.sampled_from([1, 2, 7, 50, 10_000]))
    p = np.array(draw(st.lists(st.integers(0, steps), min_size=count, max_size=count))) / steps
    y = np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    assume(y.any() and not y.all())
    if not weighted:
        return p, y
    w = np.array(draw(st.lists(st.integers(0, 3), min_size=count, max_size=count)), float)
    assume(w[y].sum() > 0 and w[~y].sum() > 0)
    return p, y, w


@given(scored(weighted=True))
@settings(max_examples=80)
def test_metrics_agree_with_scikit_learn_with_ties_and_weights(case) -> None:
    p, y, w = case
    found = measure(p, y, weights=w)
    called = p > 0.5
    clipped = np.clip(p, np.finfo(float).eps, 1 - np.finfo(float).eps)
    expected = {
        "accuracy": sk.accuracy_score(y, called, sample_weight=w),
        "balanced_accuracy": sk.balanced_accuracy_score(y, called, sample_weight=w),
        "accuracy_fake": sk.recall_score(y, called, sample_weight=w),
        "accuracy_real": sk.recall_score(~y, ~called, sample_weight=w),
        "auc": sk.roc_auc_score(y, p, sample_weight=w),
        "average_precision": sk.average_precision_score(y, p, sample_weight=w),
        "log_loss": sk.log_loss(y, clipped, sample_weight=w, labels=[False, True]),
        "brier": sk.brier_score_loss(y, p, sample_weight=w),
    }
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, abs=1e-9), name


@given(scored())
@settings(max_examples=50)
def test_real_as_the_positive_class_is_fake_with_everything_turned_round(case) -> None:
    p, y = case
    real = measure(p, y, positive="real")
    assert real.average_precision == pytest.approx(sk.average_precision_score(~y, 1 - p), abs=1e-9)
    assert real.auc == pytest.approx(sk.roc_auc_score(y, p), abs=1e-9)
    assert real.accuracy_fake == measure(p, y).accuracy_fake  # decisions do not turn
    fpr, tpr = roc_curve(p, y, positive="real")
    assert real.tpr_at_fpr_1e2 == pytest.approx(max(tpr[fpr <= 0.01]), abs=TOLERANCE)


@given(scored())
@settings(max_examples=50)
def test_the_equal_error_rate_lies_on_the_roc_curve_where_both_errors_are_equal(case) -> None:
    p, y = case
    eer = measure(p, y).eer
    fpr, tpr, _ = sk.roc_curve(y, p, drop_intermediate=False)
    # the curve as a function of its length, in fine steps: no formula shared with ours
    at = np.linspace(0, 1, 20_001)
    length = np.concatenate([[0], np.cumsum(np.abs(np.diff(fpr)) + np.abs(np.diff(tpr)))])
    x, z = np.interp(at, length / length[-1], fpr), np.interp(at, length / length[-1], tpr)
    nearest = np.argmin(np.abs(1 - z - x))
    assert eer == pytest.approx(x[nearest], abs=2 / 20_000)


def test_the_equal_error_rate_is_interpolated() -> None:
    p = [0.9, 0.8, 0.7, 0.6, 0.5, 0.5, 0.4]
    y = [1, 0, 1, 1, 1, 0, 0]
    # after 0.6: (1/3, 3/4), then the tie of 0.5 goes straight to (2/3, 1):
    # 1 - 3/4 = 1/4 < 1/3, so the crossing is on the level way there, where TPR is 1 - FPR
    assert measure(p, y).eer == pytest.approx(1 / 3)
    tied = measure([0.9, 0.5, 0.5, 0.5, 0.1], [1, 1, 0, 0, 0])
    # from (0, 1/2) to (2/3, 1): 1 - (1/2 + 3/4 x) = x, so x = 2/7; the nearest point says 0
    assert tied.eer == pytest.approx(2 / 7)


@given(scored())
@settings(max_examples=40)
def test_the_best_threshold_reaches_what_it_promises_and_no_score_does_better(case) -> None:
    p, y = case
    found = measure(p, y)
    everywhere = [sk.balanced_accuracy_score(y, p > t) for t in [-1.0, *p]]
    assert found.best_balanced_accuracy == pytest.approx(max(everywhere), abs=TOLERANCE)
    if found.best_balanced_accuracy > 0.5:
        reached = sk.balanced_accuracy_score(y, p > found.best_threshold)
        assert reached == pytest.approx(found.best_balanced_accuracy, abs=TOLERANCE)
    assert measure(p, y, positive="real").best_balanced_accuracy == pytest.approx(max(everywhere))


def test_the_rate_at_a_false_positive_rate_is_never_bought_with_more_false_positives() -> None:
    p = np.concatenate([np.linspace(0.5, 0.9, 200), np.linspace(0, 0.6, 200), [0.7001, 0.8001]])
    y = np.concatenate([np.ones(200, bool), np.zeros(202, bool)])
    found = measure(p, y)
    # 2 of 202 negatives are within 1e-2 (2.02), none within 1e-3
    assert found.tpr_at_fpr_1e2 == pytest.approx((p[:200] > 0.6).mean())
    assert found.tpr_at_fpr_1e3 == pytest.approx((p[:200] > 0.8001).mean())


@given(scored())
@settings(max_examples=40)
def test_the_calibration_error_is_the_mean_gap_of_its_bins(case) -> None:
    p, y = case
    mean, share, count = reliability(p, y)
    gap = np.abs(np.nan_to_num(mean - share))
    assert measure(p, y).ece == pytest.approx((gap * count).sum() / len(p), abs=TOLERANCE)
    naive = 0.0
    for index in range(ECE_BINS):
        inside = [i for i in range(len(p)) if min(int(p[i] * ECE_BINS), ECE_BINS - 1) == index]
        naive += abs(sum(p[i] - y[i] for i in inside)) / len(p)
    assert measure(p, y).ece == pytest.approx(naive, abs=1e-9)


@pytest.mark.parametrize(
    ("p", "y", "said"),
    [
        ([0.1, 0.2], [1, 1], "found 2 fake and 0 real"),
        ([0.1, 0.2], [0, 0], "found 0 fake and 2 real"),
        ([], [], "found 0 fake and 0 real"),
        ([0.1, np.nan], [0, 1], "nan is no probability"),
        ([0.1, 3.5], [0, 1], "3.5 is no probability"),
        ([0.1, 0.5], [0, 2], "labels must be 0"),
        ([0.1, 0.5, 0.2], [0, 1], "one label per score"),
    ],
)
def test_what_cannot_be_measured_is_an_error_that_says_so(p, y, said: str) -> None:
    with pytest.raises(MetricsError, match=said):
        measure(p, y)
    with pytest.raises(MetricsError, match=said):
        bootstrap(p, y, list(range(len(p))))


def test_a_class_without_weight_is_an_error() -> None:
    with pytest.raises(MetricsError, match="no weight"):
        measure([0.1, 0.9], [0, 1], weights=[1, 0])
    with pytest.raises(MetricsError, match="2 finite numbers"):
        measure([0.1, 0.9], [0, 1], weights=[1, -1])


def _made(rng: np.random.Generator, people: int, each: int, *, spread: float):
    """Scores of people who each shift all of their samples; a person has both classes."""
    person = np.repeat(np.arange(people), 2 * each)
    y = np.tile(np.repeat([False, True], each), people)
    shift = rng.normal(0, spread, people)[person]
    noise = rng.normal(0, 1, len(y))
    return 1 / (1 + np.exp(-(1.0 * (2 * y - 1) + shift + noise))), y, person


def test_a_replicate_is_the_metrics_of_the_drawn_samples_repeated() -> None:
    rng = np.random.default_rng(3)
    p, y, person = _made(rng, 12, 4, spread=1.0)
    p = np.round(p, 2)  # ties
    intervals = bootstrap(p, y, person, replicates=400, seed=5)
    draws = np.random.default_rng(5).multinomial(12, np.full(12, 1 / 12), 400)
    naive: dict[str, list[float]] = {name: [] for name in intervals}
    for row in draws[:]:
        rows = np.concatenate([np.flatnonzero(person == who) for who in np.repeat(range(12), row)])
        found = dataclasses.asdict(measure(p[rows], y[rows]))
        for name, values in naive.items():
            values.append(found[name])
    # further out than 0.025, as far as 11 degrees of freedom and 12 / 11 of the variance ask for
    tail = stats.norm.sf(stats.t.isf(0.025, 11) * np.sqrt(12 / 11))
    assert 0.005 < tail < 0.015
    for name, interval in intervals.items():
        low, high = np.quantile(naive[name], [tail, 1 - tail])
        assert interval.low == pytest.approx(low, abs=1e-9), name
        assert interval.high == pytest.approx(high, abs=1e-9), name
        assert interval.replicates == 400


def test_clusters_that_agree_within_themselves_widen_the_interval() -> None:
    p, y, person = _made(np.random.default_rng(0), 40, 16, spread=2.0)
    by_sample = bootstrap(p, y, np.arange(len(p)), seed=1)["accuracy_fake"]
    by_person = bootstrap(p, y, person, seed=1)["accuracy_fake"]
    assert by_person.high - by_person.low > 2 * (by_sample.high - by_sample.low)
    again = bootstrap(p, y, person, seed=1)["accuracy_fake"]
    assert again == by_person
    assert bootstrap(p, y, person, seed=2)["accuracy_fake"] != by_person


@pytest.mark.parametrize("people", [8, 40])
def test_intervals_cover_the_true_value_about_as_often_as_they_say(people: int) -> None:
    truth = stats.norm.cdf(1)  # of a fake being called one: its logit is normal around 1
    rng = np.random.default_rng(11)
    covered = 0
    for trial in range(100):
        p, y, person = _made(rng, people, 6, spread=0.0)
        interval = bootstrap(p, y, person, replicates=200, seed=trial)["accuracy_fake"]
        covered += interval.low <= truth <= interval.high
    assert covered >= 89  # 95, standard deviation 2.2


def test_one_person_gives_no_interval() -> None:
    assert bootstrap([0.1, 0.9], [0, 1], ["a", "a"]) == {}


def test_replicates_do_not_depend_on_how_many_are_held_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    p, y, person = _made(np.random.default_rng(2), 10, 5, spread=1.0)
    whole = bootstrap(p, y, person, replicates=50)
    monkeypatch.setattr("dfm_engine.detect.metrics.BLOCK", 300)
    parts = bootstrap(p, y, person, replicates=50)
    for name, interval in whole.items():  # the sums of a product may be taken in another order
        assert parts[name].to_json() == pytest.approx(interval.to_json(), abs=1e-12)


def test_a_replicate_that_lacks_a_class_counts_for_nothing() -> None:
    p = np.linspace(0, 1, 200)
    found = bootstrap(p, np.arange(200) == 7, np.arange(200))
    # the one fake is drawn with a chance of 1 - 1/e = 0.632, standard deviation 15 of 1,000
    assert 570 < found["auc"].replicates < 695
    # two clusters, one class each: both are drawn half of the time
    results = [bootstrap([0.2, 0.9], [0, 1], ["a", "b"], seed=s, replicates=51) for s in range(20)]
    assert {} in results
    assert all(2 * r["auc"].replicates > 51 for r in results if r)
    assert any(results)
