"""What an audit found: for programs `to_json()`, for people `print()`."""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["AuditReport", "AuditRow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """One baseline on the files of one quality.

    Attributes:
        baseline: its name.
        quality: raw, c23 or c40.
        fakes, reals: files that were tested.
        people: identities among them.
        features: numbers per file that vary at all.
        balanced_accuracy: on people that were not trained on; 0.5 is chance.
        interval: of it.
        auc: of the same scores.
        auc_interval: of it.
        flagged: the interval of balanced accuracy lies above 0.5.
    """

    baseline: str
    quality: str
    fakes: int
    reals: int
    people: int
    features: int
    balanced_accuracy: float
    interval: tuple[float, float]
    auc: float
    auc_interval: tuple[float, float]

    @property
    def flagged(self) -> bool:
        """Above chance, beyond what the draw of people explains."""
        return self.interval[0] > 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """All baselines on one data set.

    Attributes:
        rows: by baseline, then quality; empty where there was too little to test.
        clips: looked at.
        clips_in_set: in the data set.
        people: identities among the clips looked at.
        unreadable: files that could not be read, with the first reason in `notes`.
        level: share of data sets without a leak in which no row at all is flagged.
        notes: what a reader must know of these numbers.
        seconds: that it took.
    """

    rows: tuple[AuditRow, ...] = ()
    clips: int = 0
    clips_in_set: int = 0
    people: int = 0
    unreadable: int = 0
    level: float = 0.95
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def flagged(self) -> tuple[AuditRow, ...]:
        """Rows that do better than chance."""
        return tuple(row for row in self.rows if row.flagged)

    @property
    def exit_code(self) -> int:
        """0: an audit measures; what a flag means is for a person to say."""
        return 0

    def verdict(self) -> str:
        """The outcome in a sentence."""
        if not self.rows:
            return "not audited"
        if not self.flagged:
            return f"none of {len(self.rows)} shortcuts does better than chance"
        names = list(dict.fromkeys(row.baseline for row in self.flagged))
        return (
            f"{len(self.flagged)} of {len(self.rows)} shortcuts do better than chance: "
            f"{', '.join(names)}"
        )

    def table(self) -> str:
        """The rows as text."""
        lines = [
            f"{'baseline':<20}{'quality':<8}{'fake+real':>10}{'people':>7}{'features':>9}"
            f"{'bal. acc.':>11}  {'interval':<14}{'AUC':>6}  {'interval':<14}"
        ]
        lines += [
            f"{row.baseline:<20}{row.quality:<8}{row.fakes:>5}+{row.reals:<4}{row.people:>7}"
            f"{row.features:>9}{row.balanced_accuracy:>11.3f}  {_range(row.interval):<14}"
            f"{row.auc:>6.3f}  {_range(row.auc_interval):<14}"
            f"{'above chance' if row.flagged else ''}".rstrip()
            for row in self.rows
        ]
        return "\n".join(lines)

    def print(self, path: Path) -> None:
        """Tell a person, on stderr."""
        parts = [self.table()] if self.rows else []
        parts += [*self.notes, f"{os.fspath(path)}: {self.verdict()} ({self.seconds:.1f} s)"]
        sys.stderr.write("\n".join(parts) + "\n")

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            **dataclasses.asdict(self),
            "rows": [dataclasses.asdict(row) | {"flagged": row.flagged} for row in self.rows],
            "flagged": sorted({row.baseline for row in self.flagged}),
            "verdict": self.verdict(),
            "exit_code": self.exit_code,
        }


def _range(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.3f}-{interval[1]:.3f}"
