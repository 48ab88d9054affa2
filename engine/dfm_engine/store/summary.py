"""What `prepare` tells when it is done."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from dfm_engine.quarantine import QuarantineRow
from dfm_engine.store.index import StoredClip
from dfm_engine.store.meta import StoreMeta

__all__ = ["PrepareSummary"]

MAX_REFUSED_SHARE = 0.2  # above it the run counts as short, as a build does by default


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareSummary:
    """What a store holds, and how it came about.

    Attributes:
        out: the store.
        clips, rows, size_bytes: in it.
        shorter: clips that have fewer frames than were asked for.
        per_label, per_quality, per_split: clips; what a clip does not have is "none".
        refused: clips that gave no frames, by kind.
        made_rows: frames that this run stored; the others were there.
        seconds: that this run took.
        warnings: sentences for a person.
    """

    out: Path
    clips: int
    rows: int
    size_bytes: int
    shorter: int
    per_label: Mapping[str, int]
    per_quality: Mapping[str, int]
    per_split: Mapping[str, int]
    refused: Mapping[str, int]
    made_rows: int
    seconds: float
    warnings: tuple[str, ...] = field(default=())

    @classmethod
    def of(
        cls,
        out: Path,
        meta: StoreMeta,
        clips: Sequence[StoredClip],
        refused: Sequence[QuarantineRow],
        *,
        made_rows: int,
        seconds: float,
        warnings: tuple[str, ...],
    ) -> Self:
        """Count."""
        return cls(
            out=out,
            clips=len(clips),
            rows=meta.rows,
            size_bytes=meta.size_bytes,
            shorter=sum(clip.frames < meta.frames_per_clip for clip in clips),
            per_label=dict(Counter(clip.label for clip in clips)),
            per_quality=dict(Counter(clip.quality or "none" for clip in clips)),
            per_split=dict(Counter(clip.split or "none" for clip in clips)),
            refused=dict(sorted(Counter(row.kind for row in refused).items())),
            made_rows=made_rows,
            seconds=seconds,
            warnings=warnings,
        )

    @property
    def problem(self) -> str | None:
        """Why the run counts as short, or None."""
        refused = sum(self.refused.values())
        if refused > MAX_REFUSED_SHARE * (refused + self.clips):
            return (
                f"{refused} of {refused + self.clips} clips could not be used, more than "
                f"{MAX_REFUSED_SHARE:.0%}; see quarantine.parquet"
            )
        return None

    @property
    def exit_code(self) -> int:
        """0, or 3 where the run counts as short."""
        return 3 if self.problem else 0

    def print(self) -> None:
        """Tell a person, on stderr; warnings were said when the clips were listed."""
        lines: list[str] = []
        counts = (
            _counts(counts)
            for counts in (self.per_label, self.per_quality, self.per_split)
            if set(counts) != {"none"}
        )
        lines.append(
            f"{self.clips} clips ({'; '.join(counts)}), {self.rows} frames, "
            f"{_size(self.size_bytes)}; {self.made_rows} frames stored by this run in "
            f"{self.seconds:.0f} s"
        )
        if self.shorter:
            lines.append(f"{self.shorter} clips have fewer frames than asked for; all are stored")
        if self.refused:
            lines.append(
                f"{sum(self.refused.values())} clips in quarantine: {_counts(self.refused)}"
            )
        lines.append(f"frame store {os.fspath(self.out)}: sheet.png shows some of it")
        if self.problem:
            lines.append(f"short: {self.problem}")
        sys.stderr.write("\n".join(lines) + "\n")

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "out": os.fsdecode(self.out),
            "clips": self.clips,
            "rows": self.rows,
            "size_bytes": self.size_bytes,
            "shorter": self.shorter,
            "per_label": dict(self.per_label),
            "per_quality": dict(self.per_quality),
            "per_split": dict(self.per_split),
            "refused": dict(self.refused),
            "made_rows": self.made_rows,
            "seconds": round(self.seconds, 3),
            "warnings": list(self.warnings),
            "problem": self.problem,
            "exit_code": self.exit_code,
        }


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())
