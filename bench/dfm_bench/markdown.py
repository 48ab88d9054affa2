"""Rows as Markdown tables, and numbers as people read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from dfm_bench.measure import Row, StageRow

__all__ = [
    "QUEUE_HEADER",
    "markdown_queues",
    "markdown_rows",
    "markdown_stages",
    "number",
    "queue_lines",
    "table",
]

QUEUE_HEADER = ("queue", "room", "waiting, mean", "peak")


def markdown_rows(rows: Iterable[Row]) -> str:
    """A Markdown table of rates."""
    return table(
        ("what", "", "input", "rate", "p5 – p95 of a call", "ceiling", "reached"),
        [
            (
                row.name,
                row.way,
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


def markdown_queues(queues: Mapping[str, Mapping[str, float]]) -> str:
    """A Markdown table of the queues between the stages."""
    return table(QUEUE_HEADER, queue_lines(queues), right=(1, 2, 3))


def queue_lines(queues: Mapping[str, Mapping[str, float]]) -> list[tuple[str, ...]]:
    """A line for each queue."""
    return [
        (name, f"{fill['room']}", f"{fill['mean']:.2f}", f"{fill['peak']}")
        for name, fill in queues.items()
    ]


def table(
    header: Sequence[str], lines: Sequence[Sequence[str]], *, right: Sequence[int] = ()
) -> str:
    """A Markdown table; the columns `right` are aligned to that side."""
    rule = ["---:" if place in right else "---" for place in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *lines))


def number(value: float | None) -> str:
    """Three digits that count; a dash for None."""
    if value is None:
        return "–"
    if value >= 100:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _milliseconds(seconds: float) -> str:
    return f"{number(seconds * 1000)} ms"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"
