"""Rows to a table for people and a file for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfm_bench.facts import Facts
from dfm_bench.measure import Row, StageRow
from dfm_engine.durable import write_durably

__all__ = ["BenchReport", "markdown_rows", "markdown_stages", "number", "table"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """What one benchmark measured.

    Attributes:
        verb: of the command line, such as `build`.
        command: makes the report again.
        device: `cpu` or `cuda`.
        facts: on what.
        rows: rates.
        stages: of the run that was timed, if any.
        bottleneck: the stage that held it back.
        remark: what a reader has to know about the numbers.
    """

    verb: str
    command: str
    device: str
    facts: Facts
    rows: tuple[Row, ...]
    stages: tuple[StageRow, ...] = ()
    bottleneck: str | None = None
    remark: str = ""

    exit_code = 0
    """A benchmark whose code fails its check has no report."""

    @property
    def name(self) -> str:
        """Of the files, without suffix: `2026-11-22-build-cpu-2core`."""
        return f"{self.facts.date}-{self.verb}-{self.device}-{self.facts.cores:g}core"

    def markdown(self) -> str:
        """Tables, the command and the facts."""
        parts: list[str] = []
        if self.stages:
            parts += [markdown_stages(self.stages)]
            parts += [f"The bottleneck is `{self.bottleneck}`."] if self.bottleneck else []
        parts += [markdown_rows(self.rows), f"`{self.command}`: {self.facts.sentence()}."]
        parts += [self.remark] if self.remark else []
        return "\n\n".join(parts) + "\n"

    def print(self) -> None:
        """Tell a person, on stderr."""
        sys.stderr.write("\n" + self.markdown())

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        return {
            "schema_version": 1,
            "verb": self.verb,
            "command": self.command,
            "device": self.device,
            "facts": self.facts.to_json(),
            "bottleneck": self.bottleneck,
            "remark": self.remark,
            "stages": [stage.to_json() for stage in self.stages],
            "rows": [row.to_json() for row in self.rows],
        }

    def write(self, folder: Path) -> Path:
        """Write `<name>.json` and `<name>.md` into a folder, which is made; returns the first.

        Raises:
            EnvironmentUnfit: the folder cannot be written.
        """
        path = folder / f"{self.name}.json"
        write_durably(path, (json.dumps(self.to_json(), indent=1) + "\n").encode())
        write_durably(folder / f"{self.name}.md", self.markdown().encode())
        return path


def markdown_rows(rows: Iterable[Row]) -> str:
    """A Markdown table of rates."""
    return table(
        ("what", "", "input", "rate", "p5 – p95 of a call", "ceiling", "reached"),
        [
            (
                row.name,
                row.variant,
                f"{'x'.join(map(str, row.shape))} {row.dtype}",
                f"{number(row.rate)} {row.unit}",
                f"{_milliseconds(row.p5_s)} – {_milliseconds(row.p95_s)}"
                if row.repeats > 1
                else f"once, {row.median_s:.1f} s",
                f"{number(row.ceiling)}, {row.ceiling_of}" if row.ceiling else "–",
                _percent(row.share),
            )
            for row in rows
        ],
        right=(3, 4, 6),
    )


def markdown_stages(stages: Iterable[StageRow]) -> str:
    """A Markdown table of the stages of a run."""
    return table(
        ("stage", "clips", "frames", "busy", "of the wall", "frames/busy s", "ceiling", "reached"),
        [
            (
                stage.name + (f" (x{stage.workers})" if stage.workers > 1 else ""),
                str(stage.clips or "–"),
                str(stage.frames or "–"),
                f"{stage.busy_s:.2f} s",
                _percent(stage.share_of_wall),
                number(stage.frames_per_busy_s),
                number(stage.ceiling),
                _percent(stage.share_of_ceiling),
            )
            for stage in stages
        ],
        right=(1, 2, 3, 4, 5, 6, 7),
    )


def table(
    header: Sequence[str], lines: Sequence[Sequence[str]], *, right: Sequence[int] = ()
) -> str:
    """A Markdown table; the columns `right` are aligned to that side."""
    rule = ["---:" if place in right else "---" for place in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *lines))


def number(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return "–"
    if value >= 100:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _milliseconds(seconds: float) -> str:
    return f"{number(seconds * 1000)} ms"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"
