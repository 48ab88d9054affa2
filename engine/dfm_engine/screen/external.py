"""Verdicts that were obtained elsewhere, read from a CSV file and attached to clips.

The file has the columns `clip_id` or `path` (at least one), `gate`, `verdict` (`pass` or `fail`)
and optionally `score`. The program itself calls nobody's service.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dfm_engine.errors import InputError

__all__ = ["ExternalVerdict", "ExternalVerdicts", "import_verdicts"]

COLUMNS = ("clip_id", "path", "gate", "verdict", "score")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalVerdict:
    """One gate's word on one clip.

    Attributes:
        clip_id: the clip, or empty where the file names it by path.
        path: the file that was judged, as written in the CSV, or empty.
        gate: whose verdict it is.
        passed: pass or fail.
        score: the gate's own number, None if it gave none.
    """

    clip_id: str
    path: str
    gate: str
    passed: bool
    score: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values for the job's marker."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ExternalVerdicts:
    """All verdicts of a file, to look up by clip id or by file name."""

    verdicts: tuple[ExternalVerdict, ...]

    def __len__(self) -> int:
        return len(self.verdicts)

    def of(self, clip_id: str, *paths: str | Path) -> tuple[ExternalVerdict, ...]:
        """The verdicts that name this clip id, or one of these files.

        A path fits if it is written the same or ends in what the CSV says, whole parts at a time:
        `fake/nod/a.mp4` fits `data/fake/nod/a.mp4`.
        """
        wanted = [Path(path).parts for path in paths]
        return tuple(
            verdict
            for verdict in self.verdicts
            if (verdict.clip_id and verdict.clip_id == clip_id)
            or (verdict.path and _ends_with(wanted, Path(verdict.path).parts))
        )


def import_verdicts(path: str | Path) -> ExternalVerdicts:
    """Read and check a CSV of verdicts.

    Raises:
        InputError: unreadable, a column missing or unknown, a row without clip, gate or a clear
            verdict, a score that is no number, or two rows that contradict each other; the
            message names the line.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            _check_header(path, reader.fieldnames or [])
            verdicts = [_row(path, reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"reading verdicts from {path}: {error}") from error
    seen: dict[tuple[str, str, str], ExternalVerdict] = {}
    for verdict in verdicts:
        key = verdict.clip_id, verdict.path, verdict.gate
        known = seen.setdefault(key, verdict)
        if known.passed != verdict.passed:
            raise InputError(
                f"{path}: gate {verdict.gate!r} says both pass and fail of "
                f"{verdict.clip_id or verdict.path!r}; keep one row"
            )
    return ExternalVerdicts(tuple(seen.values()))


def _check_header(path: Path, names: Iterable[str]) -> None:
    found = list(names)
    unknown = [name for name in found if name not in COLUMNS]
    if unknown:
        raise InputError(f"{path}: unknown column {unknown[0]!r}; known are {', '.join(COLUMNS)}")
    for name in ("gate", "verdict"):
        if name not in found:
            raise InputError(f"{path}: no column {name!r}, found {', '.join(found) or 'none'}")
    if "clip_id" not in found and "path" not in found:
        raise InputError(f"{path}: needs a column 'clip_id' or 'path' to know which clip is meant")


def _row(path: Path, line: int, row: dict[str, str | None]) -> ExternalVerdict:
    where = f"{path} line {line}"
    if None in row:
        raise InputError(f"{where}: more cells than columns")
    cells = {name: (value or "").strip() for name, value in row.items()}
    if not (cells.get("clip_id") or cells.get("path")):
        raise InputError(f"{where}: names no clip_id and no path")
    if not cells["gate"]:
        raise InputError(f"{where}: names no gate")
    word = cells["verdict"].lower()
    if word not in ("pass", "fail"):
        raise InputError(f"{where}: verdict must be pass or fail, found {cells['verdict']!r}")
    score = cells.get("score", "")
    try:
        number = float(score) if score else None
    except ValueError:
        number = math.nan
    if number is not None and not math.isfinite(number):
        raise InputError(f"{where}: score must be a number, found {score!r}")
    return ExternalVerdict(
        clip_id=cells.get("clip_id", ""),
        path=cells.get("path", ""),
        gate=cells["gate"],
        passed=word == "pass",
        score=number,
    )


def _ends_with(paths: list[tuple[str, ...]], tail: tuple[str, ...]) -> bool:
    return any(parts[-len(tail) :] == tail for parts in paths if tail)
