"""Scores sorted once, so that every metric is a running sum over weights: the core of `metrics`.

In: fake probabilities, labels, and a table of weights (replicates, samples). Out: every metric of
every row of the table. The definitions are in the docstring of `metrics`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dfm_engine.errors import UsageError

__all__ = ["ECE_BINS", "Floats", "MetricsError", "Positive", "SortedScores", "checked"]

ECE_BINS = 15
_FLOOR = float(np.finfo(np.float64).eps)  # probabilities are kept this far from 0 and 1 in logs

Floats = NDArray[np.float64]
Positive = Literal["fake", "real"]


class MetricsError(UsageError):
    """There is nothing that these metrics could be of: one class, no samples, no numbers."""


def checked(p_fake: ArrayLike, is_fake: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    """Scores and labels as float64 and bool (N,).

    Raises:
        MetricsError: of different lengths, or values that are no probabilities or labels.
    """
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
class SortedScores:
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
    ) -> SortedScores:
        """Check and sort.

        Raises:
            MetricsError: as `checked`; one class alone; a positive class that does not exist.
        """
        p, y = checked(p_fake, is_fake)
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
