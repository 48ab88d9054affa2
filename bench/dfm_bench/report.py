"""What one benchmark measured: tables and pictures for people, a file for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dfm_bench import page
from dfm_bench.facts import Facts
from dfm_bench.markdown import markdown_queues, markdown_rows, markdown_stages
from dfm_bench.measure import Row, StageRow
from dfm_bench.outlook import Outlook
from dfm_engine.durable import write_durably
from dfm_engine.report.markup import Markup

__all__ = ["BenchReport", "Figure"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A picture of the page: what it shows, as inline SVG, and a line to read it by."""

    title: str
    svg: Markup
    caption: str


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
        queues: between them: room, items waiting on average and at most.
        bottleneck: the stage that held it back.
        remark: what a reader has to know about the numbers; a line is a paragraph.
        figures: plots of the page.
        outlook: what the run says of the paper's whole data set.
    """

    verb: str
    command: str
    device: str
    facts: Facts
    rows: tuple[Row, ...]
    stages: tuple[StageRow, ...] = ()
    queues: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    bottleneck: str | None = None
    remark: str = ""
    figures: tuple[Figure, ...] = ()
    outlook: Outlook | None = None

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
        parts += [markdown_queues(self.queues)] if self.queues else []
        parts += [markdown_rows(self.rows), f"`{self.command}`: {self.facts.sentence()}."]
        parts += [self.outlook.markdown()] if self.outlook else []
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
            "queues": {name: dict(fill) for name, fill in self.queues.items()},
            "rows": [row.to_json() for row in self.rows],
            "outlook": self.outlook.to_json() if self.outlook else None,
        }

    def write(self, folder: Path) -> Path:
        """Write `<name>.json`, `.md` and `.html` into a folder, which is made; returns the first.

        Raises:
            EnvironmentUnfit: the folder cannot be written.
        """
        path = folder / f"{self.name}.json"
        write_durably(path, (json.dumps(self.to_json(), indent=1) + "\n").encode())
        write_durably(folder / f"{self.name}.md", self.markdown().encode())
        write_durably(folder / f"{self.name}.html", page.render(self).encode())
        return path
