"""`bench compare`: two reports of the same benchmark, row by row.

A row is the same row where everything but its times agrees: name, variant, device, input. A report
that has two such rows is refused, for nobody could tell which of them is meant. Rates are only
comparable on one machine; where the facts of the two reports differ, that is said first.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dfm_bench.markdown import number, table
from dfm_engine.errors import InputError

__all__ = ["Comparison", "RowChange", "run_compare"]

_KEY = ("name", "variant", "device", "shape", "dtype", "unit")
_FACTS = ("cpu", "cores", "gpus", "driver", "versions")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowChange:
    """One row of two reports.

    Attributes:
        name: of the row, with its variant.
        unit: of the rates.
        before, after: units of work a second, at the median.
        is_regression: slower by more than is allowed, and beyond what the calls' own spread
            explains: the new 5th percentile of a call lies above the old 95th.
    """

    name: str
    unit: str
    before: float
    after: float
    is_regression: bool

    @property
    def change(self) -> float:
        """Of the rate: -0.1 is a tenth slower."""
        return self.after / self.before - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What changed from one report to another.

    Attributes:
        changes: rows that both have.
        missing, added: names of rows that only the first, only the second has.
        different_facts: what the two machines do not share; rates are then no verdict on the code.
        max_regression: share of a rate that may be lost.
    """

    changes: tuple[RowChange, ...]
    missing: tuple[str, ...]
    added: tuple[str, ...]
    different_facts: tuple[str, ...]
    max_regression: float

    @property
    def regressions(self) -> tuple[RowChange, ...]:
        """Rows that lost too much."""
        return tuple(change for change in self.changes if change.is_regression)

    @property
    def exit_code(self) -> int:
        """5 if a row lost too much, or is gone."""
        return 5 if self.regressions or self.missing else 0

    def markdown(self) -> str:
        """The table, and what stands beside it."""
        rows = [
            (
                change.name,
                f"{number(change.before)} {change.unit}",
                f"{number(change.after)} {change.unit}",
                f"{change.change:+.1%}",
                "slower" if change.is_regression else "",
            )
            for change in self.changes
        ]
        parts = [table(("what", "before", "after", "change", ""), rows, right=(1, 2, 3))]
        if self.different_facts:
            said = "; ".join(self.different_facts)
            parts.insert(0, f"The two were not measured on the same machine: {said}.")
        if self.missing:
            parts.append(f"Not measured any more: {', '.join(self.missing)}.")
        if self.added:
            parts.append(f"New: {', '.join(self.added)}.")
        count = len(self.regressions)
        parts.append(
            f"{count} of {len(self.changes)} rows lost more than {self.max_regression:.0%}."
            if count
            else f"No row lost more than {self.max_regression:.0%}."
        )
        return "\n\n".join(parts) + "\n"

    def print(self) -> None:
        """Tell a person, on stderr."""
        sys.stderr.write(self.markdown())

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        return {
            **asdict(self),
            "changes": [{**asdict(c), "change": c.change} for c in self.changes],
        }


def run_compare(before: Path, after: Path, *, max_regression: float) -> Comparison:
    """Hold one report against another.

    Args:
        before: a JSON file that `bench` wrote.
        after: a later one.
        max_regression: share of a row's rate that may be lost, such as 0.1.

    Raises:
        InputError: a file is no such report or has two rows of one key, or they share no row.
    """
    old, new = _read(before), _read(after)
    old_rows, new_rows = _rows(old, before), _rows(new, after)
    shared = [key for key in old_rows if key in new_rows]
    if not shared:
        raise InputError(
            f"comparing {before} ({old['verb']}) with {after} ({new['verb']}): they have no row in "
            "common; give two reports of one verb, measured with the same workload"
        )
    return Comparison(
        changes=tuple(_change(old_rows[key], new_rows[key], max_regression) for key in shared),
        missing=tuple(_name(row) for key, row in old_rows.items() if key not in new_rows),
        added=tuple(_name(row) for key, row in new_rows.items() if key not in old_rows),
        different_facts=_different(old["facts"], new["facts"]),
        max_regression=max_regression,
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"reading the bench report {path}: {error}") from error
    wanted = {"schema_version", "verb", "facts", "rows"}
    if not isinstance(report, dict) or not wanted <= report.keys():
        raise InputError(f"{path} is no report of `dfm-engine bench`: give the .json it wrote")
    if report["schema_version"] != 1:
        raise InputError(
            f"{path} has schema version {report['schema_version']!r}, this command reads 1; "
            "measure again"
        )
    return report


def _rows(report: Mapping[str, Any], path: Path) -> dict[str, dict[str, Any]]:
    try:
        keys = [json.dumps([row[name] for name in _KEY]) for row in report["rows"]]
        rows = dict(zip(keys, report["rows"], strict=True))
        numbers = [row[name] for row in rows.values() for name in ("rate", "p5_s", "p95_s")]
        if not all(math.isfinite(value) and value > 0 for value in numbers):
            raise ValueError("a rate or time is not a positive number")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: a row of the report is damaged ({error})") from error
    repeated = [key for key, count in Counter(keys).items() if count > 1]
    if repeated:
        row = rows[repeated[0]]
        raise InputError(
            f"{path}: {len(keys) - len(rows)} rows of the report repeat another, the first "
            f"{_name(row)!r} in {row['unit']} on {row['device']}, {row['dtype']}: which of them to "
            "compare cannot be told; measure again, or delete all but one of each"
        )
    return rows


def _change(old: Mapping[str, Any], new: Mapping[str, Any], allowed: float) -> RowChange:
    lost = new["rate"] < (1 - allowed) * old["rate"]
    # Equal amounts of work, so the times of calls compare where the rates do.
    return RowChange(
        name=_name(old),
        unit=old["unit"],
        before=old["rate"],
        after=new["rate"],
        is_regression=lost and new["p5_s"] > old["p95_s"],
    )


def _name(row: Mapping[str, Any]) -> str:
    shape = "x".join(map(str, row["shape"]))
    return " ".join(part for part in (row["name"], row["variant"], shape) if part)


def _different(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    """What differs of what decides a rate, but for the versions of the project itself."""
    found: list[str] = []
    for name in _FACTS:
        before, after = old.get(name), new.get(name)
        if name == "versions":
            names: Sequence[str] = sorted({*(before or {}), *(after or {})} - {"dfm-engine"})
            found += [
                f"{part} {(before or {}).get(part)} and {(after or {}).get(part)}"
                for part in names
                if (before or {}).get(part) != (after or {}).get(part)
            ]
        elif before != after:
            found.append(f"{name} {before!r} and {after!r}")
    return tuple(found)
