"""How well the action gates tell actions apart, on clips whose action is known.

In: (action, signals) of clips. Out: `Confusion`, a count per pair of performed action and gate,
and the two shares that a screen is judged by: own actions accepted, wrong actions refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfm_engine.actions import Action, parse_action
from dfm_engine.errors import RecipeError, ShapeError
from dfm_engine.screen.gates import check_action
from dfm_engine.screen.signals import Signals

__all__ = ["Confusion", "confusion_matrix", "parse_overlaps"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """What the action gates say of clips whose action is known.

    Attributes:
        actions: rows (performed) and columns (gate), in this order.
        passed: int (A, A), how many clips of the row's action pass the column's gate.
        tried: int (A,), how many clips of each row were looked at.
    """

    actions: tuple[Action, ...]
    passed: NDArray[np.integer]
    tried: NDArray[np.integer]

    def __post_init__(self) -> None:
        count = len(self.actions)
        if self.passed.shape != (count, count) or self.tried.shape != (count,):
            raise ShapeError(
                f"{count} actions need passed ({count}, {count}) and tried ({count},), "
                f"got {self.passed.shape} and {self.tried.shape}"
            )

    @property
    def accepted(self) -> float:
        """Share of clips that pass the gate of their own action."""
        return float(np.trace(self.passed) / max(1, self.tried.sum()))

    def refused(self, overlaps: Iterable[tuple[Action, Action]] = ()) -> float:
        """Mean over (clip, wrong action) cells of the share refused.

        Args:
            overlaps: pairs (performed, gate) that are left out.
        """
        left_out = set(overlaps)
        shares = [
            1 - self.passed[row, column] / self.tried[row]
            for row, performed in enumerate(self.actions)
            for column, gate in enumerate(self.actions)
            if row != column and self.tried[row] and (performed, gate) not in left_out
        ]
        return float(np.mean(shares)) if shares else 1.0

    def __str__(self) -> str:
        names = [action.value for action in self.actions]
        lines = [" " * 15 + " ".join(f"{name[:6]:>6}" for name in names)]
        for name, row, tried in zip(names, self.passed, self.tried, strict=True):
            cells = " ".join(f"{count:6d}" for count in row.tolist())
            lines.append(f"{name:15}{cells}  of {tried}")
        return "\n".join(lines)


def confusion_matrix(
    clips: Iterable[tuple[Action, Signals | None]],
    thresholds: Mapping[str, Mapping[str, float]] | None = None,
) -> Confusion:
    """Ask every gate about every clip.

    Args:
        clips: what each clip shows, and its signals; None (no face found) passes no gate.
        thresholds: overrides of the gates' limits (`recipe.Screen.thresholds`).
    """
    actions = tuple(Action)
    passed = np.zeros((len(actions), len(actions)), np.int64)
    tried = np.zeros(len(actions), np.int64)
    for performed, signals in clips:
        row = actions.index(performed)
        tried[row] += 1
        if signals is not None:
            passed[row] += [check_action(signals, gate, thresholds).performed for gate in actions]
    return Confusion(actions=actions, passed=passed, tried=tried)


def parse_overlaps(overlaps: Iterable[str]) -> frozenset[tuple[Action, Action]]:
    """The pairs (performed, gate) of a recipe's `screen.overlaps`, written `surprise > open_mouth`.

    Raises:
        RecipeError: an entry is not two actions with `>` between them.
    """
    pairs: set[tuple[Action, Action]] = set()
    for entry in overlaps:
        performed, _, gate = (part.strip() for part in entry.partition(">"))
        first, second = parse_action(performed), parse_action(gate)
        if first is None or second is None:
            raise RecipeError(
                f"screen.overlaps: {entry!r} must read 'performed > gate' with two known actions"
            )
        pairs.add((first, second))
    return frozenset(pairs)
