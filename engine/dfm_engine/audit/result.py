"""What an audit found: for programs `to_json()`, for people `print()`."""

from __future__ import annotations

import dataclasses
import os
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["MEANINGS", "AuditReport", "AuditRow"]

MEANINGS = {
    "file size": "One encoder at one setting made all files, so their sizes tell what there was to "
    "draw. Fakes that are smaller have smoother or stiller pictures: a generator draws no sensor "
    "noise, and repeats what its source picture had; larger ones move more. That is a part of the "
    "forgery, and the chain cannot mend it (with equal sizes the quantisers would tell). A "
    "detector does not see sizes, but sees the missing noise: state its numbers for raw, c23 and "
    "c40 apart, beside these, and try it on fakes of another generator.",
    "codec": "As file size, while container is not flagged: equal settings spend their bits on "
    "what there is to draw. If container is flagged too, the settings themselves differ.",
    "container": "A fault of the chain: both classes are written by the same code. Run "
    "`dfm-engine dataset verify`, find which files come from elsewhere, and build again.",
    "first frame": "Colours or brightness differ, or people, places and light: a fault of the "
    "sources or of a conversion. A fake shows its source's person, so compare the pairs on the "
    "contact sheets of report.html.",
    "border": "Luma, colour or a step of an outer ring is a fault of the chain: padding, a "
    "resampler, a painted edge. Change over time and roughness come from the generator, which "
    "moves the background with the face and draws no noise; then `crop = 0.9` in the [augment] of "
    "a training recipe keeps the edge from what a detector is tested on.",
}
"""What a flag of each baseline says, and what can be done."""


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
        telling: the number that splits the classes best by itself (`telling.most_telling`).
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
    telling: str = ""

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

    def explanations(self) -> list[tuple[str, list[str], str]]:
        """Per flagged baseline its name, what tells most in each quality, and what it means."""
        return [
            (
                baseline,
                [
                    f"{row.quality}: {row.telling}"
                    for row in self.flagged
                    if row.baseline == baseline
                ],
                MEANINGS[baseline],
            )
            for baseline in dict.fromkeys(row.baseline for row in self.flagged)
        ]

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
        for baseline, telling, meaning in self.explanations():
            parts += [f"{baseline} is above chance.", *(f"  {line}" for line in telling)]
            parts.append(textwrap.fill(meaning, 98, initial_indent="  ", subsequent_indent="  "))
        parts += [*self.notes, f"{os.fspath(path)}: {self.verdict()} ({self.seconds:.1f} s)"]
        sys.stderr.write("\n".join(parts) + "\n")

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            **dataclasses.asdict(self),
            "rows": [dataclasses.asdict(row) | {"flagged": row.flagged} for row in self.rows],
            "flagged": sorted({row.baseline for row in self.flagged}),
            "meanings": {name: meaning for name, _, meaning in self.explanations()},
            "verdict": self.verdict(),
            "exit_code": self.exit_code,
        }


def _range(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.3f}-{interval[1]:.3f}"
