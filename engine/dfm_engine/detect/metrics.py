"""How well scores tell fakes from real ones: the field's metrics, and intervals for them.

In: fake probabilities and labels. Out: `Metrics` of them (`measure`), and what each metric could
have been with other clips (`bootstrap`). NumPy alone; nothing here knows of networks or files.

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
neural networks" (ECE); Field and Welsh 2007, "Bootstrapping clustered data".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dfm_engine.errors import UsageError

__all__ = [
    "ECE_BINS",
    "Interval",
    "Metrics",
    "MetricsError",
    "bootstrap",
    "measure",
    "reliability",
    "roc_curve",
]

ECE_BINS = 15
BLOCK = 2_000_000  # weights held at once: 16 MB, and the steps over them stay near the cache
_FLOOR = float(np.finfo(np.float64).eps)  # probabilities are kept this far from 0 and 1 in logs

Floats = NDArray[np.float64]
Positive = Literal["fake", "real"]


class MetricsError(UsageError):
    """There is nothing that these metrics could be of: one class, no samples, no numbers."""


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
    scores = _Sorted.of(p_fake, is_fake, positive=positive, threshold=threshold)
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

    A replicate that happened to lack one class counts for nothing; where that befell more than
    half of them there are no intervals. Few clusters give intervals that are too narrow rather than
    too wide (below about 20, by a fifth and more), so their number belongs beside them.

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
        By metric; empty if too few replicates had both classes.

    Raises:
        MetricsError: as `measure`, or `clusters` is of another length.
    """
    scores = _Sorted.of(p_fake, is_fake, positive=positive, threshold=threshold)
    if len(clusters) != scores.count:
        raise MetricsError(
            f"resampling scores: {scores.count} of them, but {len(clusters)} cluster names"
        )
    _, member = np.unique(np.asarray(clusters), return_inverse=True)
    member = member.reshape(-1)[scores.order]
    count = int(member.max()) + 1
    rng = np.random.default_rng(seed)
    rows = max(1, min(replicates, BLOCK // max(scores.count, count)))
    parts: list[dict[str, Floats]] = []
    for start in range(0, replicates, rows):
        drawn = rng.multinomial(count, np.full(count, 1 / count), min(rows, replicates - start))
        parts.append(scores.metrics(drawn.astype(np.float64)[:, member], is_sorted=True))
    tails = [(1 - level) / 2, (1 + level) / 2]
    intervals: dict[str, Interval] = {}
    for name in parts[0]:
        values = np.concatenate([part[name] for part in parts])
        values = values[~np.isnan(values)]
        if 2 * len(values) < replicates:
            return {}
        low, high = np.quantile(values, tails)
        intervals[name] = Interval(
            low=float(low), high=float(high), level=level, replicates=len(values)
        )
    return intervals


def roc_curve(
    p_fake: ArrayLike, is_fake: ArrayLike, *, positive: Positive = "fake"
) -> tuple[Floats, Floats]:
    """False and true positive rates (G + 1,), from (0, 0) to (1, 1), one point per distinct score.

    Raises:
        MetricsError: as `measure`.
    """
    scores = _Sorted.of(p_fake, is_fake, positive=positive, threshold=0.5)
    hit, alarm = scores.rates(np.ones((1, scores.count)))
    return alarm[0], hit[0]


def reliability(
    p_fake: ArrayLike, is_fake: ArrayLike, *, bins: int = ECE_BINS
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Per bin of equal width: mean probability, share of fakes (NaN where empty), samples."""
    p, y = _checked(p_fake, is_fake)
    index = np.minimum((p * bins).astype(np.int64), bins - 1)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(index, p, bins) / count
        share = np.bincount(index, y.astype(np.float64), bins) / count
    return mean, share, count


def _checked(p_fake: ArrayLike, is_fake: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    p, given = np.asarray(p_fake, np.float64), np.asarray(is_fake)
    if p.ndim != 1 or p.shape != given.shape:
        raise MetricsError(
            f"measuring scores: one label per score is needed, got scores {p.shape} and labels "
            f"{given.shape}"
        )
    y = given.astype(bool)
    if not np.array_equal(y, given):
        raise MetricsError("measuring scores: labels must be 0 (real) or 1 (fake)")
    if not ((p >= 0) & (p <= 1)).all():  # NaN is neither
        worst = p[~((p >= 0) & (p <= 1))][0]
        raise MetricsError(f"measuring scores: {worst} is no probability; apply the sigmoid first")
    return p, y


@dataclass(frozen=True, slots=True, eq=False)
class _Sorted:
    """Scores sorted once, highest first, so that every metric is a running sum over weights."""

    order: NDArray[np.int64]
    p: Floats  # (N,) fake probability, in this order
    y: NDArray[np.bool_]  # (N,) is fake
    is_positive: NDArray[np.bool_]  # (N,)
    starts: NDArray[np.int64]  # of each run of equal scores
    bin_starts: NDArray[np.int64]  # of each non-empty ECE bin
    threshold: float

    @classmethod
    def of(
        cls, p_fake: ArrayLike, is_fake: ArrayLike, *, positive: Positive, threshold: float
    ) -> _Sorted:
        p, y = _checked(p_fake, is_fake)
        if y.all() or not y.any():
            raise MetricsError(
                f"measuring scores: both classes are needed, found {int(y.sum())} fake and "
                f"{int((~y).sum())} real; evaluate on clips of both"
            )
        if positive not in ("fake", "real"):
            raise MetricsError(f"measuring scores: positive is 'fake' or 'real', got {positive!r}")
        order = np.argsort(-p if positive == "fake" else p, kind="stable")
        p, y = p[order], y[order]
        bins = np.minimum((p * ECE_BINS).astype(np.int64), ECE_BINS - 1)
        return cls(
            order,
            p,
            y,
            y if positive == "fake" else ~y,
            np.flatnonzero(np.diff(p, prepend=-1.0)),
            np.flatnonzero(np.diff(bins, prepend=-1)),
            threshold,
        )

    @property
    def count(self) -> int:
        return len(self.p)

    @property
    def fakes(self) -> int:
        return int(self.y.sum())

    @property
    def reals(self) -> int:
        return self.count - self.fakes

    def rates(self, weights: Floats) -> tuple[Floats, Floats]:
        """TPR and FPR (R, G + 1) after each distinct score, for sorted weights (R, N)."""
        hit = _running(weights * self.is_positive, self.starts)
        alarm = _running(weights * ~self.is_positive, self.starts)
        with np.errstate(invalid="ignore", divide="ignore"):
            return hit / hit[:, -1:], alarm / alarm[:, -1:]

    def metrics(self, weights: Floats, *, is_sorted: bool = False) -> dict[str, Floats]:
        """Every metric (R,) for weights (R, N); NaN where a class has no weight."""
        w = weights if is_sorted else weights[:, self.order]
        total = w.sum(1)
        of_fakes = w @ self.y.astype(np.float64)
        of_reals = total - of_fakes
        called = self.p > self.threshold
        with np.errstate(invalid="ignore", divide="ignore"):
            fake_right = w @ (called & self.y).astype(np.float64)
            real_right = w @ (~called & ~self.y).astype(np.float64)
            recall_fake, recall_real = fake_right / of_fakes, real_right / of_reals
            sure = np.clip(np.where(self.y, self.p, 1 - self.p), _FLOOR, 1 - _FLOOR)
            found = {
                "accuracy": (fake_right + real_right) / total,
                "balanced_accuracy": (recall_fake + recall_real) / 2,
                "accuracy_fake": recall_fake,
                "accuracy_real": recall_real,
                "log_loss": w @ -np.log(sure) / total,
                "brier": w @ (self.p - self.y) ** 2 / total,
                "ece": self._ece(w) / total,
            }
        found |= self._ranking(w)
        bad = (of_fakes <= 0) | (of_reals <= 0)
        return {name: np.where(bad, np.nan, values) for name, values in found.items()}

    def best(self, weights: Floats) -> dict[str, float]:
        """The threshold on the fake probability with the largest balanced accuracy.

        Of equals the one nearest to 0.5; it lies midway between two scores.
        """
        hit, alarm = self.rates(weights[None, self.order])
        quality = (1 + hit[0] - alarm[0]) / 2
        edges = self.p[self.starts]
        ends = (1.0, 0.0) if edges[0] >= edges[-1] else (0.0, 1.0)
        padded = np.concatenate([[ends[0]], edges, [ends[1]]])
        middles = (padded[:-1] + padded[1:]) / 2  # (G + 1,): after 0, 1, ... distinct scores
        candidates = np.flatnonzero(quality >= quality.max() - 1e-12)
        chosen = candidates[np.argmin(np.abs(middles[candidates] - 0.5))]
        return {
            "best_threshold": float(middles[chosen]),
            "best_balanced_accuracy": float(quality[chosen]),
        }

    def _ranking(self, w: Floats) -> dict[str, Floats]:
        hits = _running(w * self.is_positive, self.starts)  # (R, G + 1)
        alarms = _running(w * ~self.is_positive, self.starts)
        with np.errstate(invalid="ignore", divide="ignore"):
            tpr, fpr = hits / hits[:, -1:], alarms / alarms[:, -1:]
            gained = np.diff(tpr, axis=1)
            precision = hits[:, 1:] / (hits[:, 1:] + alarms[:, 1:])
            area = (np.diff(fpr, axis=1) * (tpr[:, 1:] + tpr[:, :-1])).sum(1) / 2
            precisions = np.where(gained > 0, gained * precision, 0.0).sum(1)
            return {
                "auc": np.minimum(area, 1.0),  # sums of shares may round above one
                "average_precision": np.minimum(precisions, 1.0),
                "eer": _equal_error(tpr, fpr),
                "tpr_at_fpr_1e2": _tpr_at(tpr, fpr, 1e-2),
                "tpr_at_fpr_1e3": _tpr_at(tpr, fpr, 1e-3),
            }

    def _ece(self, w: Floats) -> Floats:
        gap = np.add.reduceat(w * (self.p - self.y), self.bin_starts, axis=1)
        return np.abs(gap).sum(1)


def _running(values: Floats, starts: NDArray[np.int64]) -> Floats:
    """Sums up to and with each run of equal scores, 0 in front."""
    sums = values if len(starts) == values.shape[1] else np.add.reduceat(values, starts, axis=1)
    out = np.zeros((len(values), sums.shape[1] + 1))
    np.cumsum(sums, axis=1, out=out[:, 1:])
    return out


def _equal_error(tpr: Floats, fpr: Floats) -> Floats:
    """Where the polyline (fpr, tpr) meets 1 - fpr = tpr."""
    lead = 1 - tpr - fpr  # from 1 down to -1
    after = np.argmax(lead <= 0, axis=1)
    row = np.arange(len(tpr))
    above, below = lead[row, after - 1], lead[row, after]
    share = above / (above - below)
    start, end = fpr[row, after - 1], fpr[row, after]
    return start + share * (end - start)


def _tpr_at(tpr: Floats, fpr: Floats, target: float) -> Floats:
    """The largest TPR with a FPR of at most `target`; rates rise together, so it is the last."""
    last = (fpr <= target * (1 + 1e-12)).sum(1) - 1
    return tpr[np.arange(len(tpr)), last]


def intervals_json(intervals: Mapping[str, Interval]) -> dict[str, list[float]]:
    """For `to_json`."""
    return {name: interval.to_json() for name, interval in intervals.items()}
