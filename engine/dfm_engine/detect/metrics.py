"""How well scores tell fakes from real ones: the field's metrics, and intervals for them.

In: fake probabilities and labels. Out: `Metrics` of them (`measure`), and what each metric could
have been with other clips (`bootstrap`). NumPy; nothing here knows of networks or files.

Frames of one clip, and clips of one person, resemble each other: they are not so many independent
samples. So intervals come from drawing whole clusters (clips, or people) with replacement, which
gives every sample of a cluster the same whole-numbered weight. Every metric is computed for a table
of weights (replicates, samples) at once, over scores that are sorted once; `measure` is the row of
ones.

Definitions, where the field has more than one:

- A frame is called fake where its fake probability is above 0.5 (what argmax does).
- AUC counts ties as half. AP is the sum over distinct scores of precision times gained recall.
- EER is read off the straight line between the two neighbouring points of the ROC curve, not taken
  from the nearest point.
- TPR at a FPR is the largest TPR whose FPR is not above it: with fewer than 1,000 negatives,
  FPR 1e-3 means none.
- ECE has 15 bins of equal width over the probability itself, weighted by their samples.

Source: Fawcett 2006, "An introduction to ROC analysis"; Guo et al. 2017, "On calibration of modern
neural networks" (ECE); Field and Welsh 2007, "Bootstrapping clustered data"; Hesterberg 2015, "What
teachers should know about the bootstrap", section 4.2 (expanded percentiles).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dfm_engine.detect.sorted_scores import (
    ECE_BINS,
    Floats,
    MetricsError,
    Positive,
    SortedScores,
    checked,
)

__all__ = [
    "ECE_BINS",
    "Interval",
    "Metrics",
    "MetricsError",
    "Positive",
    "bootstrap",
    "measure",
    "reliability",
    "roc_curve",
]

BLOCK = 2_000_000  # weights held at once: 16 MB, and the steps over them stay near the cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Metrics of one set of scores; all but counts, `log_loss` and thresholds are in [0, 1].

    Attributes:
        fakes, reals: samples of each class.
        accuracy: share called rightly at the threshold.
        balanced_accuracy: mean of the next two.
        accuracy_fake, accuracy_real: the same within each class.
        auc: area under the ROC curve.
        eer: where the false positive and the false negative rate are equal.
        average_precision: of the positive class.
        tpr_at_fpr_1e2, tpr_at_fpr_1e3: true positive rate at these false positive rates.
        ece: expected calibration error.
        log_loss: mean negative log likelihood, natural logarithm.
        brier: mean squared error of the probability.
        best_threshold: fake probability that maximises balanced accuracy on these very scores.
        best_balanced_accuracy: what it reaches; an optimistic number, chosen in hindsight.
    """

    fakes: int
    reals: int
    accuracy: float
    balanced_accuracy: float
    accuracy_fake: float
    accuracy_real: float
    auc: float
    eer: float
    average_precision: float
    tpr_at_fpr_1e2: float
    tpr_at_fpr_1e3: float
    ece: float
    log_loss: float
    brier: float
    best_threshold: float
    best_balanced_accuracy: float

    def to_json(self) -> dict[str, float | int]:
        """Plain values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A percentile interval of one metric.

    Attributes:
        low, high: its ends.
        level: share of the replicates within.
        replicates: that had both classes, of those drawn.
    """

    low: float
    high: float
    level: float
    replicates: int

    def to_json(self) -> list[float]:
        """`[low, high]`."""
        return [self.low, self.high]


def measure(
    p_fake: ArrayLike,
    is_fake: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    positive: Positive = "fake",
    threshold: float = 0.5,
) -> Metrics:
    """Metrics of scores.

    Args:
        p_fake: (N,) fake probabilities in [0, 1].
        is_fake: (N,) bool.
        weights: (N,) at least 0; one each if None.
        positive: the class that precision, recall and the ROC curve are about.
        threshold: above it a sample is called fake.

    Raises:
        MetricsError: nothing to measure, one class alone, or values that are no probabilities.
    """
    scores = SortedScores.of(p_fake, is_fake, positive=positive, threshold=threshold)
    ones = np.ones(scores.count) if weights is None else np.asarray(weights, np.float64)
    if ones.shape != (scores.count,) or not np.isfinite(ones).all() or (ones < 0).any():
        raise MetricsError(
            f"measuring scores: weights must be {scores.count} finite numbers of at least 0, got "
            f"shape {ones.shape}"
        )
    found = scores.metrics(ones[None])
    if np.isnan(found["auc"][0]):
        raise MetricsError("measuring scores: one class has no weight; leave it out or add clips")
    values = {name: float(column[0]) for name, column in found.items()}
    return Metrics(**values, **scores.best(ones), fakes=scores.fakes, reals=scores.reals)


def bootstrap(
    p_fake: ArrayLike,
    is_fake: ArrayLike,
    clusters: Sequence[Any] | NDArray[Any],
    *,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    positive: Positive = "fake",
    threshold: float = 0.5,
) -> dict[str, Interval]:
    """Percentile intervals of every metric, by drawing whole clusters with replacement.

    Plain percentiles are too narrow where clusters are few (by a fifth for ten), so they are taken
    further out, as far as a t distribution reaches beyond a normal one, and for the variance's
    n / (n - 1): Hesterberg's expanded percentile interval. Its ends are still replicates, so a
    handful of clusters stays a handful; their number belongs beside the interval.

    A replicate that happened to lack one class counts for nothing; where that befell more than
    half of them there are no intervals.

    Args:
        p_fake: (N,) fake probabilities.
        is_fake: (N,) bool.
        clusters: (N,) names; samples of one name are drawn together.
        replicates: draws.
        level: share of them that the interval holds.
        seed: equal seeds give equal intervals.
        positive: as for `measure`.
        threshold: as for `measure`.

    Returns:
        By metric; empty if too few replicates had both classes, or there is one cluster.

    Raises:
        MetricsError: as `measure`, or `clusters` is of another length.
    """
    scores = SortedScores.of(p_fake, is_fake, positive=positive, threshold=threshold)
    if len(clusters) != scores.count:
        raise MetricsError(
            f"resampling scores: {scores.count} of them, but {len(clusters)} cluster names"
        )
    _, member = np.unique(np.asarray(clusters), return_inverse=True)
    member = member.reshape(-1)[scores.order]
    count = int(member.max()) + 1
    if count < 2:
        return {}
    rng = np.random.default_rng(seed)
    rows = max(1, min(replicates, BLOCK // max(scores.count, count)))
    parts: list[dict[str, Floats]] = []
    for start in range(0, replicates, rows):
        drawn = rng.multinomial(count, np.full(count, 1 / count), min(rows, replicates - start))
        parts.append(scores.metrics(drawn.astype(np.float64)[:, member], is_sorted=True))
    tail = _expanded_tail((1 - level) / 2, count)
    intervals: dict[str, Interval] = {}
    for name in parts[0]:
        values = np.concatenate([part[name] for part in parts])
        values = values[~np.isnan(values)]
        if 2 * len(values) < replicates:
            return {}
        low, high = np.quantile(values, [tail, 1 - tail])
        intervals[name] = Interval(
            low=float(low), high=float(high), level=level, replicates=len(values)
        )
    return intervals


def _expanded_tail(tail: float, clusters: int) -> float:
    """The share to cut off so that an interval from few clusters holds what it says."""
    from scipy import special

    reach = -float(special.stdtrit(clusters - 1, tail)) * math.sqrt(clusters / (clusters - 1))
    return float(special.ndtr(-reach))


def roc_curve(
    p_fake: ArrayLike, is_fake: ArrayLike, *, positive: Positive = "fake"
) -> tuple[Floats, Floats]:
    """False and true positive rates (G + 1,), from (0, 0) to (1, 1), one point per distinct score.

    Raises:
        MetricsError: as `measure`.
    """
    scores = SortedScores.of(p_fake, is_fake, positive=positive, threshold=0.5)
    hit, alarm = scores.rates(np.ones((1, scores.count)))
    return alarm[0], hit[0]


def reliability(
    p_fake: ArrayLike, is_fake: ArrayLike, *, bins: int = ECE_BINS
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Per bin of equal width: mean probability, share of fakes (NaN where empty), samples."""
    p, y = checked(p_fake, is_fake)
    index = np.minimum((p * bins).astype(np.int64), bins - 1)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(index, p, bins) / count
        share = np.bincount(index, y.astype(np.float64), bins) / count
    return mean, share, count
