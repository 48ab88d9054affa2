"""What a report is about, and the numbers that follow from the manifest's rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfm_engine.actions import Action
from dfm_engine.audit.result import AuditReport
from dfm_engine.clip import QUALITIES, Pixels
from dfm_engine.columns import Row
from dfm_engine.quarantine import QuarantineRow
from dfm_engine.screen.confusion import Confusion

PAPER_PASS_RATE = {Action.SMILE: 0.61, Action.YAW: 0.23}
"""The two values that the paper prints of its figure 2."""

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
SPLIT_NAMES = ("train", "val", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One animation to be shown; a picture that is None is left out.

    Attributes:
        action: what the driving clip shows.
        name: the clip id.
        source: uint8 (H, W, 3), the source image.
        driving, result, real: frames uint8 (T, H, W, 3), or a file to read them from.
        frames: of the files, where that is known; a file with others is read twice.
        videos: (caption, file) of small files to be played in the page.
        verdict: of the screen, in words.
        passed: by the screen; None where it was not asked.
    """

    action: Action
    name: str
    source: NDArray[np.uint8] | None = None
    driving: Pixels | Path | None = None
    result: Pixels | Path | None = None
    real: Pixels | Path | None = None
    frames: int | None = None
    videos: tuple[tuple[str, Path], ...] = ()
    verdict: str = ""
    passed: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTiming:
    """One stage of the run.

    Attributes:
        busy_s: seconds of work, summed over `workers` that ran side by side.
        clips, frames: what it finished.
    """

    name: str
    busy_s: float
    workers: int = 1
    clips: int = 0
    frames: int = 0

    def busy_share(self, wall_s: float) -> float:
        """Share of the run in which its workers were busy."""
        return self.busy_s / (self.workers * wall_s) if wall_s > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """Everything that `write_report` shows.

    Attributes:
        recipe: name of the recipe.
        rows: of the manifest.
        wanted: fakes asked for per action; None: as many as pass. Actions without driving clips
            belong here too, so that the report names them.
        examples: in the order in which they shall be shown.
        quarantine: what could not be used.
        stages: in the order of the data path.
        wall_s: duration of the run.
        facts: versions, hashes, device, in the order to be shown.
        banner: a warning above everything else, such as weights that are random.
        confusion: of the screen, where it was measured.
        audit: of shortcuts, where it was made.
    """

    recipe: str
    rows: Sequence[Row]
    wanted: Mapping[Action, int | None] = field(default_factory=dict)
    examples: Sequence[Example] = ()
    quarantine: Sequence[QuarantineRow] = ()
    stages: Sequence[StageTiming] = ()
    wall_s: float = 0.0
    facts: Mapping[str, str] = field(default_factory=dict)
    banner: str = ""
    confusion: Confusion | None = None
    audit: AuditReport | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionStats:
    """What became of the animations of one action.

    Attributes:
        wanted: the quota, None for as many as pass.
        tried: animations made.
        passed: by the screen, whatever its mode.
        judged: animations that have a verdict.
        kept: in the data set, within the quota.
        extra: in the data set, beyond it.
        reasons: why the screen refused, with counts; the measured value is left out of a reason,
            so that equal checks count together.
    """

    action: Action
    wanted: int | None
    tried: int
    passed: int
    judged: int
    kept: int
    extra: int
    reasons: Mapping[str, int]

    @property
    def pass_rate(self) -> float | None:
        """Share that passed the screen, None without a verdict."""
        return self.passed / self.judged if self.judged else None


def clips_of(rows: Iterable[Row]) -> list[Row]:
    """One row per clip, out of one per file."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row["clip_id"], row)
    return list(first.values())


def action_stats(data: ReportData) -> list[ActionStats]:
    """The statistics of every action that was wanted or tried, in the paper's order."""
    by_action: dict[str, list[Row]] = {}
    for row in clips_of(data.rows):
        if row["label"] == "fake":
            by_action.setdefault(row["action"], []).append(row)
    return [
        _stats(action, data.wanted.get(action), by_action.get(action, []))
        for action in Action
        if action in by_action or action in data.wanted
    ]


def count_clips(rows: Iterable[Row]) -> Counter[tuple[str, str | None, str | None]]:
    """Clips of the data set by (label, action, split), refused ones left out."""
    return Counter(
        (row["label"], row["action"], row["split"])
        for row in clips_of(rows)
        if row["outcome"] == "passed"
    )


def count_files(rows: Iterable[Row]) -> dict[tuple[str, str], tuple[int, int]]:
    """(files, bytes) by (label, quality), refused clips left out."""
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for row in rows:
        if row["quality"] in QUALITIES and row["outcome"] == "passed":
            key = (row["label"], row["quality"])
            files, size = found.get(key, (0, 0))
            found[key] = (files + 1, size + (row["size_bytes"] or 0))
    return found


def _kinds_of_reason(reasons: str) -> list[str]:
    found = [reason.strip() for reason in reasons.split(";") if reason.strip()]
    return [_NUMBER.sub("…", reason, count=1) for reason in found]


def _stats(action: Action, wanted: int | None, clips: list[Row]) -> ActionStats:
    reasons: Counter[str] = Counter()
    for row in clips:
        if row["screen_passed"] is False:
            reasons.update(_kinds_of_reason(row["screen_reasons"] or ""))
    in_set = [row for row in clips if row["outcome"] == "passed"]
    extra = sum(bool(row["is_extra"]) for row in in_set)
    return ActionStats(
        action=action,
        wanted=wanted,
        tried=len(clips),
        passed=sum(row["screen_passed"] is True for row in clips),
        judged=sum(row["screen_passed"] is not None for row in clips),
        kept=len(in_set) - extra,
        extra=extra,
        reasons=reasons,
    )
