from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from dfm_engine.audit.logistic import cross_validated, fit, folds_of


def _samples(count: int, features: int, seed: int):
    rng = np.random.default_rng(seed)
    y = rng.random(count) < 0.3
    x = rng.normal(size=(count, features)) * rng.uniform(0.1, 50, features) + 7
    x[:, 0] += 30 * y
    return x, y


@pytest.mark.parametrize(("count", "features"), [(60, 3), (40, 90)])
def test_the_fit_agrees_with_scikit_learn(count: int, features: int) -> None:
    x, y = _samples(count, features, seed=count)
    ours = fit(x, y, penalty=0.5)
    scaled = StandardScaler().fit_transform(x)
    theirs = LogisticRegression(C=2.0, class_weight="balanced", tol=1e-10, max_iter=5000)
    expected = theirs.fit(scaled, y).predict_proba(scaled)[:, 1]
    assert ours.probability(x) == pytest.approx(expected, abs=1e-5)
    assert ours.weights == pytest.approx(theirs.coef_[0], abs=1e-4)


def test_features_that_do_not_vary_have_no_say() -> None:
    x, y = _samples(50, 4, seed=1)
    x[:, 2] = 1e6
    changed = x.copy()
    changed[:, 2] = -3
    model = fit(x, y)
    assert np.array_equal(model.probability(x), model.probability(changed))
    nothing = fit(np.ones((50, 3)), y)
    assert nothing.probability(np.zeros((2, 3))) == pytest.approx([0.5, 0.5])


def test_separable_classes_still_have_a_fit() -> None:
    x = np.array([[-1.0], [-0.5], [0.5], [1.0]])
    y = np.array([False, False, True, True])
    p = fit(x, y).probability(x)
    assert (p[:2] < 0.5).all()
    assert (p[2:] > 0.5).all()
    assert (p > 0.01).all()


def test_folds_never_part_a_person() -> None:
    people = [f"p{index % 7}" for index in range(40)]
    for seed in range(5):
        fold = folds_of(people, folds=5, seed=seed)
        assert set(fold) == set(range(5))
        assert all(len({fold[i] for i in range(40) if people[i] == p}) == 1 for p in people)


def test_what_only_marks_a_person_gives_nothing_on_others() -> None:
    rng = np.random.default_rng(0)
    person = np.arange(20)
    y = person % 2 == 0  # one class a person, so that knowing the person is knowing the class
    people = np.repeat(person, 6)
    marks = rng.normal(size=(20, 40))[people]
    label = y[people]
    inside = ((fit(marks, label).probability(marks) > 0.5) == label).mean()
    outside = cross_validated(marks, label, [str(p) for p in people])
    assert inside == 1.0
    assert ((outside > 0.5) == label).mean() < 0.75
    leak = marks + 3.0 * label[:, None]
    found = cross_validated(leak, label, [str(p) for p in people])
    assert ((found > 0.5) == label).mean() == 1.0


def test_training_that_lacks_a_class_abstains() -> None:
    p = cross_validated(np.arange(4.0)[:, None], np.array([0, 0, 1, 1], bool), ["a", "a", "b", "b"])
    assert p.tolist() == [0.5] * 4
