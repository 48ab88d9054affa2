"""Logistic regression with an L2 penalty, cross-validated so that no person is on both sides.

Small on purpose: a baseline of an audit has at most some hundred features and clips, and should be
the same on every machine. The penalty is fixed, not tuned: tuning would need a third part of a set
that is small already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Logistic", "cross_validated", "fit", "folds_of"]

Floats = NDArray[np.float64]

PENALTY = 1.0
"""Of half the squared weights, against the summed log loss; features have unit variance."""
_FARTHEST = 5.0  # deviations; a test value beyond any in training says no more than that
_STEPS = 50


@dataclass(frozen=True, slots=True, eq=False)
class Logistic:
    """A fitted classifier: features are standardised, weighted, summed.

    Attributes:
        mean, scale: (F,) of the training features; scale is infinite where they do not vary.
        weights: (F,).
        intercept: of the log odds.
    """

    mean: Floats
    scale: Floats
    weights: Floats
    intercept: float

    def probability(self, features: Floats) -> Floats:
        """(N,) of the second class, for features (N, F)."""
        x = np.clip((features - self.mean) / self.scale, -_FARTHEST, _FARTHEST)
        return _sigmoid(x @ self.weights + self.intercept)


def fit(features: Floats, is_second: NDArray[np.bool_], *, penalty: float = PENALTY) -> Logistic:
    """Fit by Newton's method with halved steps; both classes count alike, whatever their sizes.

    Args:
        features: (N, F) float64.
        is_second: (N,) the class; both occur.
        penalty: of half the sum of squared weights; the intercept goes free.
    """
    count = len(features)
    mean, deviation = features.mean(0), features.std(0)
    varies = deviation > 1e-9 * np.maximum(1.0, np.abs(mean))
    scale = np.where(varies, deviation, np.inf)
    x = np.column_stack([(features - mean) / scale, np.ones(count)])
    seconds = is_second.sum()
    share = np.where(is_second, count / (2 * seconds), count / (2 * (count - seconds)))
    ridge = np.append(np.full(features.shape[1], penalty), 0.0)
    beta = np.zeros(x.shape[1])
    loss = _loss(x, is_second, share, ridge, beta)
    for _ in range(_STEPS):
        p = _sigmoid(x @ beta)
        slope = x.T @ (share * (p - is_second)) + ridge * beta
        curve = (x * (share * p * (1 - p))[:, None]).T @ x + np.diag(ridge)
        curve[-1, -1] += 1e-9  # where every probability is 0 or 1
        step = np.linalg.solve(curve, slope)
        size = 1.0
        while size > 1e-6:
            moved = _loss(x, is_second, share, ridge, beta - size * step)
            if moved <= loss:
                break
            size /= 2
        else:
            break
        beta, gained, loss = beta - size * step, loss - moved, moved
        if gained < 1e-10 * max(1.0, loss):
            break
    return Logistic(mean, scale, beta[:-1], float(beta[-1]))


def folds_of(people: Sequence[str], *, folds: int, seed: int) -> NDArray[np.int64]:
    """The fold (N,) of every sample; all samples of a person are in one."""
    names, member = np.unique(np.asarray(people), return_inverse=True)
    shuffled = np.random.default_rng(seed).permutation(len(names))
    return (shuffled % min(folds, len(names)))[member.reshape(-1)]


def cross_validated(
    features: Floats,
    is_second: NDArray[np.bool_],
    people: Sequence[str],
    *,
    folds: int = 5,
    repeats: int = 3,
    seed: int = 0,
) -> Floats:
    """Probability (N,) of the second class for every sample, by classifiers that never saw it.

    Nor its person: real clips and fakes of one person are in one fold. The mean over `repeats`
    draws of the folds takes out some of the luck of the draw. 0.5 where training had one class.
    """
    total = np.zeros(len(features))
    for repeat in range(repeats):
        fold = folds_of(people, folds=folds, seed=seed + repeat)
        for index in range(int(fold.max()) + 1):
            test = fold == index
            train = ~test
            if is_second[train].all() or not is_second[train].any():
                total[test] += 0.5
            else:
                total[test] += fit(features[train], is_second[train]).probability(features[test])
    return total / repeats


def _sigmoid(logits: Floats) -> Floats:
    return 0.5 * (1 + np.tanh(0.5 * logits))


def _loss(
    x: Floats, is_second: NDArray[np.bool_], share: Floats, ridge: Floats, beta: Floats
) -> float:
    logits = x @ beta
    sign = np.where(is_second, -1.0, 1.0)
    return float(share @ np.logaddexp(0, sign * logits) + ridge @ beta**2 / 2)
